"""The account is the same whatever tracer provider, limits, samplers and suppression there are beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("langchain_core")

from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult

from otel_llm import chain, llm_context, subscribe, tool
from otel_llm.lifecycle import ProviderCompleted
from otel_llm.setup import distro
from otel_llm.store.reader import connect
from otel_llm.support import faults
from tests.instrumentation.openai.clients import http

USERS = ("customer-europe-000000000000000000000001", "customer-europe-000000000000000000000002")
ANSWER = {
    "id": "chatcmpl-a-long-name-of-an-answer",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}
Rows = list[tuple[Any, ...]]


def client() -> openai.OpenAI:
    def answer(request: Any) -> Any:
        return http.Response(200, json=ANSWER)

    return openai.OpenAI(api_key="x", max_retries=0, http_client=http.Client(transport=http.MockTransport(answer)))


def work() -> None:
    """Two calls of two users in a chain with a tool, and a chain of LangChain's."""
    asking = client()
    for user in USERS:
        with llm_context(
            "shop", user_id=user, session_id="s", request_id="r", **{f"tag{n}": "x" * 40 for n in range(9)}
        ):
            with chain("answer"):
                with tool("search"):
                    pass
                asking.chat.completions.create(
                    model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}], temperature=0.5, max_tokens=5
                )
            model = FakeListChatModel(responses=["x"])
            (RunnableLambda(lambda value: "hi").with_config(run_name="a-step-of-langchain") | model).invoke(1)


def rows(path: Path) -> tuple[Rows, Rows]:
    """The account and the spans of a store, without what differs from run to run."""
    with connect(path) as connection:
        calls = connection.execute(
            "SELECT user_id, session_id, module, request_id, workflow_name, provider, operation, request_model, "
            "response_model, status, input_tokens, output_tokens, finish_reasons, tags FROM llm_usage ORDER BY ALL"
        ).fetchall()
        spans = [
            (name, operation, above, json.dumps({k: v for k, v in json.loads(attributes).items() if "time" not in k}))
            for name, operation, above, attributes in connection.execute(
                "SELECT s.name, s.operation, p.name, s.attributes FROM spans s LEFT JOIN spans p "
                "ON s.parent_span_id = p.span_id AND s.trace_id = p.trace_id"
            ).fetchall()
        ]
    return calls, sorted(spans, key=repr)


@contextmanager
def kept(provider: Any, path: Path) -> Iterator[None]:
    before = faults.counts.copy()
    distro.instrument(tracer_provider=provider, store=path)
    try:
        yield
    finally:
        distro.uninstrument()
    assert faults.counts.copy() == before


def plain(processor: SpanProcessor | None = None, **options: Any) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False, **options)
    if processor is not None:
        made.add_span_processor(processor)
    return made


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows]:
    path = tmp_path_factory.mktemp("right") / "usage.duckdb"
    with kept(plain(), path):
        work()
    found = rows(path)
    assert len(found[0]) == 4 and len(found[1]) >= 8
    return found


# --- limits ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "limits",
    [
        {"max_attributes": 8},
        {"max_span_attributes": 1},
        {"max_span_attributes": 0},
        {"max_attribute_length": 8},
        {"max_span_attribute_length": 1},
        {"max_attributes": 3, "max_attribute_length": 3, "max_links": 0, "max_events": 0},
    ],
    ids=repr,
)
def test_limits_of_the_sdk_cut_no_record(limits: dict[str, int], right: tuple[Rows, Rows], tmp_path: Path) -> None:
    with kept(plain(span_limits=SpanLimits(**limits)), tmp_path / "usage.duckdb"):
        work()
    assert rows(tmp_path / "usage.duckdb") == right


@pytest.mark.parametrize("limits", [{}, {"max_attributes": 20}, {"max_attribute_length": 8}], ids=repr)
def test_what_the_app_sets_on_a_span_is_kept(limits: dict[str, int], tmp_path: Path) -> None:
    with kept(plain(span_limits=SpanLimits(**limits)), tmp_path / "usage.duckdb"), chain("mine") as run:
        assert run.span is not None
        run.span.set_attributes({"app.a": "new", "gen_ai.workflow.name": "other"})
    ((_, _, _, attributes),) = rows(tmp_path / "usage.duckdb")[1]
    told = json.loads(attributes)
    assert (told["app.a"], told["gen_ai.workflow.name"]) == ("new", "other")
    assert told["gen_ai.operation.name"] == "invoke_workflow"  # longer than its cut, and first to go


def test_what_an_app_adds_without_end_takes_nothing_away(right: tuple[Rows, Rows], tmp_path: Path) -> None:
    """The SDK's own limit is 128, and the oldest attribute goes first."""

    class Talkative(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            span.set_attributes({f"app.{n}": n for n in range(200)})

    with kept(plain(Talkative()), tmp_path / "usage.duckdb"):
        work()
    assert rows(tmp_path / "usage.duckdb")[0] == right[0]


class Adding(Sampler):
    """Has an attribute of its own put on each span that it takes."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {**args[4], "app.sampled": "why"})

    def get_description(self) -> str:
        return "adds"


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF, Adding()], ids=lambda one: one.get_description())
def test_what_processors_see_of_a_span_that_starts(sampler: Sampler, tmp_path: Path) -> None:
    """All that it was started with, those too that are told before ours; and what the sampler adds."""
    seen: list[dict[str, Any]] = []

    class Watching(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append(dict(span.attributes))

    with kept(plain(Watching(), sampler=sampler), tmp_path / "usage.duckdb"):
        work()
    calls = [one for one in seen if one["gen_ai.operation.name"] == "chat" and "server.address" in one]
    assert len(calls) == len(USERS)
    for one, user in zip(calls, USERS, strict=True):
        assert (one["user.id"], one["gen_ai.request.model"], one["server.port"]) == (user, "gpt-4o-mini", 443)
        assert one["gen_ai.request.temperature"] == 0.5
    assert all(("app.sampled" in one) == isinstance(sampler, Adding) for one in seen)


def test_who_subscribes_is_told_the_whole_too(tmp_path: Path) -> None:
    told: list[ProviderCompleted] = []
    provider = plain(span_limits=SpanLimits(max_attributes=2, max_attribute_length=4))
    with kept(provider, tmp_path / "usage.duckdb"), subscribe(told.append, types=ProviderCompleted) as subscription:
        with llm_context(user_id=USERS[0]):
            client().chat.completions.create(model="gpt-4o-mini", messages=[])
        assert subscription.close(30)
    (event,) = told
    assert (event.model, event.context["user.id"]) == ("gpt-4o-mini", USERS[0])
    assert event.usage is not None and event.usage.input == 5


# --- providers -------------------------------------------------------------------------------------------------------
class Wrapper(trace.TracerProvider):
    """As Logfire has one: it holds the SDK's, and is of no class that we know."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, inner: TracerProvider) -> None:
        self.something_else = 1
        self.held = inner

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return self.held.get_tracer(*args, **kwargs)


class Foreign(trace.TracerProvider):
    """Another's: it makes spans and takes no processors."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return _hidden.get_tracer(*args, **kwargs)


_hidden = plain()


class Lying(Foreign):
    """Takes processors, and asks none."""

    def add_span_processor(self, processor: Any) -> None: ...


class Slotted(Foreign):
    """Nothing can be noted of it."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Raising(trace.TracerProvider):
    class _Tracer(trace.Tracer):
        def start_span(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no spans today")

        start_as_current_span = start_span  # type: ignore[assignment]

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return self._Tracer()


class Dropping(Sampler):
    """Put in the place of ours by somebody who did not know it."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "drops"


class Unvarying(TracerProvider):
    """Its tracers have a sampler of their own."""

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return TracerProvider(sampler=Dropping(), shutdown_on_exit=False).get_tracer("x")


PROVIDERS: dict[str, Callable[[], Any]] = {
    "wrapper": lambda: Wrapper(plain()),
    "wrapper of a wrapper": lambda: Wrapper(Wrapper(plain())),  # type: ignore[arg-type]
    "wrapper of one with limits": lambda: Wrapper(plain(span_limits=SpanLimits(max_attributes=4))),
    "no-op": trace.NoOpTracerProvider,
    "another's": Foreign,
    "one that lies": Lying,
    "one of which nothing can be noted": Slotted,
    "always off": lambda: plain(sampler=ALWAYS_OFF),
    "a sampler out of reach": lambda: Unvarying(shutdown_on_exit=False),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_no_provider_decides_over_the_account(name: str, right: tuple[Rows, Rows], tmp_path: Path) -> None:
    with kept(PROVIDERS[name](), tmp_path / "usage.duckdb"):
        work()
        assert trace.get_current_span() is trace.INVALID_SPAN
    assert rows(tmp_path / "usage.duckdb") == right


def test_a_provider_that_raises(right: tuple[Rows, Rows], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distro.instrument(tracer_provider=Raising(), store=tmp_path / "usage.duckdb")
    try:
        work()
    finally:
        distro.uninstrument()
    assert rows(tmp_path / "usage.duckdb") == right
    assert caplog.text.count("no spans today") <= 1


def test_a_provider_that_is_exchanged_under_its_wrapper(right: tuple[Rows, Rows], tmp_path: Path) -> None:
    class Proxy(Wrapper):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            proxy = self

            class Late(trace.Tracer):
                def start_span(self, *more: Any, **options: Any) -> trace.Span:
                    return proxy.held.get_tracer(*args, **kwargs).start_span(*more, **options)

                start_as_current_span = start_span  # type: ignore[assignment]

            return Late()

    provider = Proxy(plain())
    with kept(provider, tmp_path / "usage.duckdb"):
        provider.held = plain()
        work()
    assert rows(tmp_path / "usage.duckdb") == right


def test_the_spans_of_another_provider_and_the_account_agree(tmp_path: Path) -> None:
    """Ids, so that one is found from the other; what the app sees as current is the other's span."""
    with kept(Foreign(), tmp_path / "usage.duckdb"), chain("mine") as run:
        current = trace.get_current_span()
        assert isinstance(current, trace.Span) and current.is_recording()
        trace_id, span_id = run.trace_id, run.span_id
        client().chat.completions.create(model="gpt-4o-mini", messages=[])
    with connect(tmp_path / "usage.duckdb") as connection:
        found = connection.execute("SELECT trace_id, parent_span_id FROM llm_usage").fetchall()
    assert found == [(trace_id, span_id)]


# --- suppression -----------------------------------------------------------------------------------------------------
@contextmanager
def suppressed(*names: str) -> Iterator[None]:
    context = otel.get_current()
    for name in names:
        context = otel.set_value(name, True, context)
    token = otel.attach(context)
    try:
        yield
    finally:
        otel.detach(token)


@pytest.mark.parametrize(
    "around",
    [
        suppress_instrumentation,
        lambda: suppressed(_SUPPRESS_INSTRUMENTATION_KEY),
        lambda: suppressed("suppress_instrumentation"),
    ],
    ids=["the API's", "one key", "the other"],
)
def test_suppression_holds_back_the_span_and_never_the_row(
    around: Callable[[], Any], right: tuple[Rows, Rows], tmp_path: Path
) -> None:
    seen = InMemorySpanExporter()
    with kept(plain(SimpleSpanProcessor(seen)), tmp_path / "usage.duckdb"), around():
        work()
    assert rows(tmp_path / "usage.duckdb") == right
    # The app asks for these itself: they are no instrumentation.
    assert {span.name for span in seen.get_finished_spans()} == {"invoke_workflow answer", "execute_tool search"}


def test_what_the_app_opens_in_a_suppressed_call_hangs_on_the_span_around(tmp_path: Path) -> None:
    provider = plain()
    inside: list[trace.SpanContext] = []

    def look(request: Any) -> Any:
        inside.append(trace.get_current_span().get_span_context())
        return http.Response(200, json=ANSWER)

    asking = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(look)))
    app = provider.get_tracer("app").start_as_current_span("around")
    with kept(provider, tmp_path / "usage.duckdb"), app as around, suppress_instrumentation():
        asking.chat.completions.create(model="gpt-4o-mini", messages=[])
    assert inside == [around.get_span_context()]
    with connect(tmp_path / "usage.duckdb") as connection:
        assert connection.execute("SELECT count(*) FROM llm_usage").fetchall() == [(1,)]


def test_suppressed_and_no_account(tmp_path: Path) -> None:
    seen = InMemorySpanExporter()
    provider = plain(SimpleSpanProcessor(seen))
    from tests.instrumentation.conftest import instrumented_clients

    with instrumented_clients(provider), suppress_instrumentation():
        answer = client().chat.completions.create(model="gpt-4o-mini", messages=[])
    assert answer.usage is not None and seen.get_finished_spans() == ()
