"""The private names of OpenTelemetry that we use: in one file, and there in the versions that we say we have seen."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import context as otel
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanKind, StatusCode, TraceState

from otel_llm.calls.tracing import AccountSampler
from otel_llm.support import otel_private
from tests.conftest import ROOT

FILE = Path(otel_private.__file__)
PACKAGE = FILE.parents[1]


def private_names(file: Path) -> Iterator[str]:
    """The private names of others that a file uses, as attributes, by `getattr` or in an import."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            names = [] if ast.unparse(node.value) in ("self", "cls") else [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            names = [ast.literal_eval(node.args[1])] if isinstance(node.args[1], ast.Constant) else []
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("opentelemetry."):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def test_they_are_used_in_one_file() -> None:
    ours = set(private_names(FILE))
    assert len(ours) > 10 and "_logs" not in ours  # which has no other name yet
    elsewhere = {
        (file.relative_to(PACKAGE).as_posix(), name)
        for file in PACKAGE.rglob("*.py")
        if file != FILE
        for name in private_names(file)
        if name in ours
    }
    assert elsewhere == set()


MISSING = otel_private.SEEN.get(importlib.metadata.version("opentelemetry-sdk"), frozenset())


def test_what_is_tested_was_seen() -> None:
    """Another version: look whether it has each name, then write it down."""
    oldest, *_, tested = otel_private.SEEN
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    for library in ("opentelemetry-api", "opentelemetry-sdk"):
        (pinned,) = (line.partition("==")[2] for line in constraints if line.startswith(f"{library}=="))
        assert pinned == tested
        assert f'"{library}>={oldest.removesuffix(".0")}"' in (ROOT / "pyproject.toml").read_text()


def _public_part_of(span: Any) -> Any:
    """A span of an SDK that keeps what it says in other fields."""
    names = ("context", "parent", "name", "kind", "start_time", "end_time", "status", "events", "links", "resource")
    return SimpleNamespace(
        instrumentation_scope=span.instrumentation_scope, **{name: getattr(span, name) for name in names}
    )


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider(span_limits=SpanLimits(max_attributes=2))


def test_a_span(provider: TracerProvider) -> None:
    span: Any = provider.get_tracer("test").start_span("a", attributes={"one": 1, "two": 2, "three": 3})
    held, plain = otel_private.attributes_of(span)
    assert plain == {"two": 2, "three": 3}
    assert (plain is otel_private.attributes_of(span)[1]) == ("_dict" not in MISSING)  # no copy
    assert (held.dropped, held.max_value_len) == (1, None)
    assert otel_private.end_of(span) == ("a", None, StatusCode.UNSET, False, False)
    span.add_event("event")
    span.add_link(span.get_span_context())
    span.end()
    for each in (span, otel_private.readable(span), _public_part_of(span)):
        assert otel_private.end_of(each) == ("a", span.end_time, StatusCode.UNSET, True, True)
        context = span.get_span_context()
        assert otel_private.facts_of(each) == otel_private.SpanFacts(
            *(context.trace_id, context.span_id, context.trace_flags, None),
            *("a", span.kind, span.start_time, "test", "", span.resource),
        )
    assert otel_private.readable(span).end_time == span.end_time
    assert otel_private.attributes_of(otel_private.readable(span))[1] == plain


@pytest.mark.parametrize(
    "attributes",
    [
        {"text": "a", "number": 1, "part": 0.5, "flag": True, "texts": ["a", "b"]},
        {"numbers": [1, 2], "texts": ("a",), "nothing": None, "map": {"a": 1}, "bytes": b"a", "other": object},
        {"long": "a" * 9, "texts": ["a" * 9]},
        {"": 1, "a": "b"},
        {f"a{number}": number for number in range(9)},
        {"before": 2},
        {},
    ],
)
@pytest.mark.parametrize(
    "limits",
    [
        SpanLimits(),
        SpanLimits(max_span_attributes=5),
        SpanLimits(max_span_attributes=0),
        SpanLimits(max_attribute_length=5),
    ],
)
def test_attributes_are_set_as_the_sdk_sets_them(attributes: dict[str, Any], limits: SpanLimits) -> None:
    tracer = TracerProvider(span_limits=limits).get_tracer("test")
    theirs, ours = (tracer.start_span("a", attributes={"before": 1}) for _ in range(2))
    theirs.set_attributes(attributes)
    otel_private.set_attributes(ours, attributes)
    for span in (theirs, ours):
        span.end()
        span.set_attributes({"late": 1})
    otel_private.set_attributes(ours, {"late": 1})
    held, plain = otel_private.attributes_of(theirs)  # type: ignore[arg-type]
    held_too, plain_too = otel_private.attributes_of(ours)  # type: ignore[arg-type]
    assert plain_too == plain and held_too.dropped == held.dropped
    assert [type(value) for value in plain_too.values()] == [type(value) for value in plain.values()]


class Ids(RandomIdGenerator):
    """The same for both."""

    def generate_trace_id(self) -> int:
        return 2**127

    def generate_span_id(self) -> int:
        return 7


class Watcher(SpanProcessor):
    def __init__(self) -> None:
        self.begun: list[tuple[Any, Any]] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.begun.append((span, parent_context))


def above(*, is_remote: bool, flags: int) -> otel.Context:
    state = TraceState([("a", "b")])
    context = trace.SpanContext(2**126, 5, is_remote, trace.TraceFlags(flags), state)
    return trace.set_span_in_context(NonRecordingSpan(context), otel.Context())


PARENTS = [otel.Context(), otel.Context({otel_private.SPAN_KEY: "no span"})] + [
    above(is_remote=is_remote, flags=flags) for is_remote in (True, False) for flags in (0, 1, 2, 3)
]


class OfSomebodyElse(ALWAYS_OFF.__class__):  # type: ignore[misc, name-defined]
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY, {"added": 1}, TraceState([("c", "d")]))


@pytest.mark.parametrize(
    "sampler",
    [
        *(ALWAYS_ON, ALWAYS_OFF, DEFAULT_ON, DEFAULT_OFF, ParentBasedTraceIdRatio(0.5), TraceIdRatioBased(0.5)),
        *(ParentBased(DEFAULT_OFF), OfSomebodyElse(Decision.DROP), ParentBased(OfSomebodyElse(Decision.DROP))),
        AccountSampler(DEFAULT_OFF),
    ],
    ids=lambda sampler: sampler.get_description(),
)
@pytest.mark.parametrize("limits", [SpanLimits(), SpanLimits(max_span_attributes=2, max_attribute_length=5)])
def test_spans_are_made_as_the_sdk_makes_them(sampler: Sampler, limits: SpanLimits) -> None:
    provider = TracerProvider(sampler, id_generator=Ids(), span_limits=limits, shutdown_on_exit=False)
    watcher = Watcher()
    provider.add_span_processor(watcher)
    tracer: Any = provider.get_tracer("test", "1")
    tracer.sampler = ALWAYS_ON
    pattern = tracer.start_span("first", attributes={"a": 1})
    vars(pattern)["_sampler"] = tracer.sampler = sampler
    maker = otel_private.span_maker(tracer, pattern)
    assert maker is not None
    attributes = {"gen_ai.operation.name": "chat", "text": "abcdefgh", "number": 1, "texts": ["a"]}
    linked = [trace.Link(trace.SpanContext(2**125, 3, is_remote=False), {"id": "a"})]
    for context, links in product(PARENTS, ((), linked)):
        theirs = tracer.start_span("a", context, SpanKind.CLIENT, attributes, links, start_time=1)
        told = len(watcher.begun)
        ours = maker.make("a", context, SpanKind.CLIENT, attributes, links, 1)
        assert type(ours) is type(theirs) and len(watcher.begun) == told
        assert ours.get_span_context() == theirs.get_span_context()
        maker.begin(ours, context, knows := [])
        assert knows == [ours]
        if theirs.is_recording():
            assert watcher.begun[-1] == (ours, context)
            assert shown(ours) == shown(theirs)
            ours.end()
            assert vars(ours).keys() == vars(theirs).keys() and not ours.is_recording()


def shown(span: Any) -> list[object]:
    own = vars(span)
    apart = {"_lock", "_attributes", "_events", "_links", "_status", "_record_end_metrics", "_span_processor"}
    same = [(name, own[name]) for name in sorted(own.keys() - apart)]
    held = [
        (
            dict(span.attributes),
            span.dropped_attributes,
            list(span.events),
            [(link.context, dict(link.attributes)) for link in span.links],
        )
    ]
    kept = (span.status.status_code, type(own["_lock"]), callable(own["_record_end_metrics"]))
    return [*same, *held, kept, own["_attributes"].max_value_len]


class OfTheApp(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.ending: list[Any] = []
        self.ended: list[Any] = []

    def _on_ending(self, span: Any) -> None:
        self.ending.append(span)

    def on_end(self, span: Any) -> None:
        self.ended.append(span.name)


def test_each_processor_is_told_of_the_spans_that_are_made(provider: TracerProvider) -> None:
    exporter, early, late = InMemorySpanExporter(), OfTheApp(), OfTheApp()
    for processor in (SimpleSpanProcessor(exporter), early):
        provider.add_span_processor(processor)
    tracer: Any = provider.get_tracer("test")
    maker = otel_private.span_maker(tracer, tracer.start_span("pattern"))
    assert maker is not None
    before, after = (maker.make(name, otel.Context(), SpanKind.CLIENT, {}, (), None) for name in ("before", "after"))
    maker.begin(before, otel.Context(), [])
    before.end()
    provider.add_span_processor(late)
    maker.begin(after, otel.Context(), [])
    after.end()
    assert [span.name for span, _ in early.begun] == ["pattern", "before", "after"]
    has_ending = hasattr(SpanProcessor, "_on_ending")
    assert early.ending == [before, after] * has_ending and late.ending == [after] * has_ending
    assert early.ended == ["before", "after"] and late.ended == ["after"]
    assert [span.name for span in exporter.get_finished_spans()] == ["before", "after"]


def test_who_makes_no_spans_like_another(provider: TracerProvider) -> None:
    tracer: Any = provider.get_tracer("test")
    span: Any = tracer.start_span("a")
    maker = otel_private.span_maker(tracer, span)
    assert maker is not None and maker.make("b", otel.Context(), SpanKind.CLIENT, {}, (), None) is not None
    assert otel_private.span_maker(object(), span) is None
    assert otel_private.span_maker(trace.NoOpTracer(), span) is None
    assert otel_private.span_maker(tracer, NonRecordingSpan(INVALID_SPAN_CONTEXT)) is None
    span.of_the_app = 1  # a field that is not known
    assert otel_private.span_maker(tracer, span) is None
    for field in ("sampler", "resource", "span_processor"):
        before = getattr(tracer, field)
        setattr(tracer, field, object())
        assert maker.make("b", otel.Context(), SpanKind.CLIENT, {}, (), None) is None
        setattr(tracer, field, before)
    tracer.start_span = tracer.start_span  # somebody has replaced it
    assert otel_private.span_maker(tracer, tracer.start_span("a")) is None


def test_contexts() -> None:
    span = NonRecordingSpan(INVALID_SPAN_CONTEXT)
    assert otel.Context({otel_private.SPAN_KEY: span}) == trace.set_span_in_context(span, otel.Context())
    assert not otel_private.is_instrumentation_suppressed(otel.get_current())
    with suppress_instrumentation():
        assert otel_private.is_instrumentation_suppressed(otel.get_current())


def test_a_tracer_provider(provider: TracerProvider) -> None:
    before = provider.get_tracer("before")
    otel_private.set_sampler(provider, ALWAYS_OFF)
    assert not provider.get_tracer("after").start_span("a").is_recording()
    assert before.start_span("a").is_recording() == ("_tracers" in MISSING)
    one, two = (SimpleSpanProcessor(InMemorySpanExporter()) for _ in range(2))
    provider.add_span_processor(one)
    provider.add_span_processor(two)
    assert otel_private.span_processors(provider) == (one, two)
    otel_private.remove_span_processor(provider, one)
    assert otel_private.span_processors(provider) == (two,)


def test_exporters_of_batches(provider: TracerProvider) -> None:
    spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
    logger_provider = LoggerProvider()
    try:
        provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        provider.add_span_processor(BatchSpanProcessor(spans))
        logger_provider.add_log_record_processor(BatchLogRecordProcessor(logs))
        assert list(otel_private.batch_exporters(provider, logger_provider)) == [spans, logs]
        assert otel_private.starts_threads_in_child()
    finally:
        provider.shutdown()
        logger_provider.shutdown()


def test_threads_that_start_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the SDK's threads where its provider has no hook of its own, as older ones have none."""
    assert otel_private.starts_threads_in_child() == ("_handle_fork" not in MISSING)
    monkeypatch.delattr(TracerProvider, "_handle_fork", raising=False)
    of_others, enumerate_all = set(threading.enumerate()), threading.enumerate
    monkeypatch.setattr(threading, "enumerate", lambda: [one for one in enumerate_all() if one not in of_others])
    assert not otel_private.starts_threads_in_child()
    processor = BatchSpanProcessor(InMemorySpanExporter())
    try:
        assert otel_private.starts_threads_in_child()
    finally:
        processor.shutdown()


def test_a_provider_without_threads_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    provider: Any = otel_private.without_threads_in_child(TracerProvider)()
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self))
    assert hasattr(provider, "_tracers_lock") == ("_tracers" not in MISSING)
    with getattr(provider, "_tracers_lock", nullcontext()):  # of a thread that is not there in a child
        provider._handle_fork()
        assert provider.get_tracer("test").start_span("a").is_recording()
    assert started == []


def test_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    api = sys.modules["opentelemetry.metrics._internal"]
    assert hasattr(api, "_METER_PROVIDER")
    monkeypatch.setattr(api, "_METER_PROVIDER", None)
    assert otel_private.is_meter_provider_unset()
    monkeypatch.setattr(api, "_METER_PROVIDER", metrics.NoOpMeterProvider())
    assert not otel_private.is_meter_provider_unset()
    monkeypatch.delattr(api, "_METER_PROVIDER")
    assert not otel_private.is_meter_provider_unset()  # who does not know asks
    with_reader, without = MeterProvider([InMemoryMetricReader()]), MeterProvider()
    assert otel_private.has_metric_reader(with_reader) is True
    assert otel_private.has_metric_reader(without) is False
    assert otel_private.has_metric_reader(metrics.NoOpMeterProvider()) is None


def test_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    base = otel_private.base_configurator()
    monkeypatch.setattr(base, "configure", lambda self: told.append(self))
    otel_private.set_up_sdk()
    otel_private.set_up_sdk()
    assert len(told) == 2 and all(isinstance(each, base) for each in told)


def test_providers_of_others_have_none_of_it() -> None:
    provider: Any = trace.NoOpTracerProvider()
    otel_private.remove_span_processor(provider, SimpleSpanProcessor(InMemorySpanExporter()))
    assert otel_private.span_processors(provider) == ()
    assert list(otel_private.batch_exporters(provider, object())) == []
