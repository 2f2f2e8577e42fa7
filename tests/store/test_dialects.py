"""The spans that other instrumentations really make (`dialects/`), as rows: against what the server billed.

They come in by the exporter alone, or by the processor; whole, or a span at a time in either order. It must make no difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from otel_llm.conventions import semconv
from otel_llm.store import Store
from otel_llm.store.exporter import DuckDBSpanExporter
from otel_llm.store.span_record import recorded as as_kept
from otel_llm.store.usage_processor import UsageSpanProcessor
from tests.store.conftest import NOON, query

RECORDINGS = {
    file.stem: json.loads(file.read_text()) for file in sorted(Path(__file__).with_name("dialects").glob("*.json"))
}
COLUMNS = (
    "operation", "provider", "request_model", "response_model", "response_id", "input_tokens", "output_tokens",
    "cache_read_tokens", "reasoning_tokens", "finish_reasons", "status", "error_type", "stream", "instrumentation", "price_source",
)  # fmt: skip
APART = 3_600 * 10**9
"""Nanoseconds between two scenarios in one store."""
RESOURCE = Resource({"service.name": "tests"})
Way = Callable[[Path, Sequence[dict[str, Any]]], None]


def readable(span: dict[str, Any]) -> ReadableSpan:
    """A recorded span as the SDK hands it to an exporter."""

    def context(span_id: int) -> SpanContext:
        return SpanContext(span["trace_id"], span_id, False, TraceFlags(1))

    return ReadableSpan(
        span["name"],
        context(span["span_id"]),
        context(span["parent_id"]) if span["parent_id"] else None,
        RESOURCE,
        span["attributes"],
        [Event(event["name"], event["attributes"], NOON + event["time"]) for event in span["events"]],
        kind=SpanKind[span["kind"]],
        instrumentation_scope=InstrumentationScope(span["scope"]),
        status=Status(StatusCode[span["status"]], span["description"]),
        start_time=NOON + span["start"],
        end_time=NOON + span["end"],
    )


def by_the_exporter(path: Path, spans: Sequence[dict[str, Any]]) -> None:
    exporter = DuckDBSpanExporter(path)
    exporter.export([readable(span) for span in spans])
    assert exporter.force_flush()


def one_at_a_time(path: Path, spans: Iterable[dict[str, Any]]) -> None:
    """A merge for the first span of every scenario, then one for the second, and so on."""
    rounds: dict[int, list[dict[str, Any]]] = {}
    seen: dict[int, int] = {}
    for span in spans:
        scenario = span["start"] // APART
        seen[scenario] = number = seen.get(scenario, 0) + 1
        rounds.setdefault(number, []).append(span)
    for each in rounds.values():
        by_the_exporter(path, each)


def outer_ones_first(path: Path, spans: Sequence[dict[str, Any]]) -> None:
    one_at_a_time(path, reversed(spans))


def by_the_processor(path: Path, spans: Sequence[dict[str, Any]]) -> None:
    """Starts and ends real spans in the order of the recording; those of one trace nest as they did."""
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(UsageSpanProcessor(Store.open(path)))
    running: dict[int, Any] = {}
    moments = [(span["start"], 0, span) for span in spans] + [(span["end"], 1, span) for span in spans]
    for _, is_end, span in sorted(moments, key=lambda moment: moment[:2]):
        if is_end:
            ended = running[span["span_id"]]
            ended.set_attributes(span["attributes"])
            for event in span["events"]:
                ended.add_event(event["name"], event["attributes"], NOON + event["time"])
            ended.set_status(StatusCode[span["status"]])
            ended.end(NOON + span["end"])
            continue
        parent = trace.set_span_in_context(running[span["parent_id"]]) if span["parent_id"] else None
        kinds = ("openinference.span.kind", "gen_ai.operation.name", "traceloop.span.kind", "gen_ai.request.model")
        known = {name: value for name, value in span["attributes"].items() if name in kinds}
        running[span["span_id"]] = provider.get_tracer(span["scope"]).start_span(
            span["name"], parent, SpanKind[span["kind"]], known, start_time=NOON + span["start"]
        )
    provider.shutdown()


def account(path: Path) -> dict[int, list[dict[str, Any]]]:
    """The rows by the number of their scenario."""
    columns = ", ".join(COLUMNS)
    rows = query(path, f"SELECT epoch_ns(started_at), {columns} FROM llm_usage ORDER BY started_at, response_id")
    found: dict[int, list[dict[str, Any]]] = {}
    for started_ns, *row in rows:
        found.setdefault((started_ns - NOON) // APART, []).append(dict(zip(COLUMNS, row, strict=True)))
    return found


def apart(number: int, span: dict[str, Any]) -> dict[str, Any]:
    """A span of the scenario of that number: of a trace of its own, and a time of its own."""
    shift = number * 1000
    return span | {
        "trace_id": span["trace_id"] + shift,
        "span_id": span["span_id"] + shift,
        "parent_id": span["parent_id"] and span["parent_id"] + shift,
        "start": span["start"] + number * APART,
        "end": span["end"] + number * APART,
        "events": [event | {"time": event["time"] + number * APART} for event in span["events"]],
    }


def expected(call: dict[str, Any], says: dict[str, Any]) -> dict[str, Any]:
    """The row that a billed call must have. `says`: the row there is, for what a dialect may leave out."""
    usage = call["usage"] if call["reported"] else {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    written = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return says | {
        "operation": "embeddings" if call["endpoint"] == "embeddings" else "chat",
        "provider": "openai",
        "request_model": call["model"],
        "response_model": call["response_model"],
        "response_id": call["response_id"],
        "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        # Some say nothing where there are none; some say none where nothing was said.
        "reasoning_tokens": written.get("reasoning_tokens") or (says["reasoning_tokens"] and -1),
        "cache_read_tokens": details.get("cached_tokens") or (says["cache_read_tokens"] and -1),
        "status": "ok",
        "stream": call["stream"],
    }


UNTOLD = {
    ("openllmetry", "alone", "chain, streamed"): {"response_id": None, "response_model": "gpt-4o-mini", "stream": False}
}
"""What a dialect has otherwise, and nobody can tell from what it says."""


CACHED = "chat, twice with a cache"
NOT_BILLED = ("cache hit, not billed", None)
PRICED_AGAIN = ("genai-prices", 17)
HITS = {
    ("official", "alone"): [PRICED_AGAIN],
    ("openllmetry", "alone"): [PRICED_AGAIN],
}
"""How price and input tokens of an answer out of LangChain's cache are told, where not as `NOT_BILLED` alone."""


@pytest.mark.parametrize("way", [by_the_exporter, one_at_a_time, outer_ones_first, by_the_processor])
@pytest.mark.parametrize("beside", ["alone", "with ours"])
@pytest.mark.parametrize("family", RECORDINGS)
def test_rows(way: Way, family: str, beside: str, store_path: Path) -> None:
    scenarios = RECORDINGS[family][beside]
    spans = [apart(number, span) for number, each in enumerate(scenarios.values()) for span in each["spans"]]
    way(store_path, spans)
    found = account(store_path)
    for number, (scenario, recorded) in enumerate(scenarios.items()):
        rows = found[number]
        if scenario == "chat, error":
            facts = [(row["status"], row["input_tokens"], row["request_model"], row["error_type"]) for row in rows]
            assert [fact[:3] for fact in facts] == [("error", None, "error-429-echo")]
            assert facts[0][3] in ("429", "RateLimitError", "openai.RateLimitError")
        else:
            if scenario == CACHED:
                rows, hits = rows[:1], rows[1:]
                told = [(str(row["price_source"]).partition(" 0")[0], row["input_tokens"]) for row in hits]
                assert sorted(told) == HITS.get((family, beside), [NOT_BILLED])
                found[number] = rows + [row for row in hits if row["price_source"] == NOT_BILLED[0]]
            untold = UNTOLD.get((family, beside, scenario), {})
            billed = [expected(call, row) | untold for call, row in zip(recorded["billed"], rows, strict=True)]
            assert rows == billed, scenario
            for row in rows:
                assert row["finish_reasons"] or family == "openinference" or row["operation"] == "embeddings"
    instrumentations = {row["instrumentation"] for rows in found.values() for row in rows}
    assert {name.startswith("otel_llm.") for name in instrumentations} == {beside == "with ours"}
    # Nothing of what was said is anywhere in the store, and the tree is whole.
    assert query(store_path, "SELECT name FROM spans WHERE contains(spans::VARCHAR, 'CONTENT')") == []
    assert query(store_path, "SELECT count(*) FROM spans") == [(len(spans),)]


def answer(llm_output: Any = None, text: str = "Hello", **kwargs: Any) -> str:
    """An answer as OpenInference tells it of LangChain."""
    message = {"type": "constructor", "kwargs": {"content": text, **kwargs}}
    return json.dumps({"generations": [[{"text": text, "message": message}]], "llm_output": llm_output})


FREE = {"input_tokens": 7, "output_tokens": 21, "total_cost": 0}


@pytest.mark.parametrize(
    ("told", "is_hit"),
    [
        (answer(usage_metadata=FREE), True),
        (answer(usage_metadata=FREE, llm_output={"model_name": "m"}), False),  # a provider that asks nothing
        (answer(usage_metadata=FREE | {"total_cost": 0.1}), False),
        (answer(usage_metadata=None, tool_calls=[{"name": "bill", "args": {"total_cost": 0}}]), False),
        (answer(text=answer(usage_metadata=FREE)), False),
        (answer(usage_metadata=FREE)[:-20], False),  # cut at a limit of attributes
        ('{"total_cost": 0}', False),
        ('"total_cost"', False),
        ("[" * 10_000 + '"total_cost"', False),
    ],
)
def test_an_answer_out_of_a_cache_is_told_by_langchains_own_mark(told: str, is_hit: bool) -> None:
    kept = as_kept({"output.value": told, "llm.token_count.prompt": 7, "llm.model_name": "m"})
    assert dict(kept) == {"llm.model_name": "m"} | (
        {semconv.CACHE_HIT: True} if is_hit else {"llm.token_count.prompt": 7}
    )
