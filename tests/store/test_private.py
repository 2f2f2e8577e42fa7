"""What other instrumentations capture of the content is not kept, unless it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode

from otel_llm.settings import reload
from otel_llm.store import Store, connect
from otel_llm.store.span_record import recorded
from otel_llm.store.usage_processor import UsageSpanProcessor

MARKER = "do-not-keep-me"
CONTENT = dict.fromkeys(
    [
        "gen_ai.prompt.0.content",
        "gen_ai.completion.0.content",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
        "input.value",
        "output.value",
        "llm.input_messages.0.message.content",
        "llm.output_messages.0.message.content",
        "traceloop.entity.input",
        "url.query",
        "http.request.header.authorization",
        "embedding.embeddings.0.embedding.text",
    ],
    MARKER,
)
FACTS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.usage.input_tokens": 3,
    "gen_ai.prompt.name": "greet",
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch):
    yield
    monkeypatch.undo()
    reload()


def record(store_path: Path) -> bytes:
    """One foreign span with content everywhere; returns every byte that the store wrote."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(UsageSpanProcessor(Store.open(store_path)))
    tracer = provider.get_tracer("somebody.else")
    with tracer.start_as_current_span("GET /ask", attributes={"http.target": f"/ask?q={MARKER}"}) as server:
        with tracer.start_as_current_span("x", attributes={**FACTS, **CONTENT}) as span:
            span.add_event("gen_ai.user.message", {"content": MARKER})
            span.record_exception(ValueError(MARKER))
        server.set_status(Status(StatusCode.ERROR, MARKER))
    journal = b"".join(file.read_bytes() for file in store_path.with_name(f"{store_path.name}.journal").glob("*.jsonl"))
    provider.shutdown()
    with connect(store_path) as connection:
        rows = connection.execute(
            "select spans::varchar from spans union all select llm_usage::varchar from llm_usage"
        ).fetchall()
        (kept,) = connection.execute(
            "select attributes ->> '$.\"gen_ai.prompt.name\"' from spans where name = 'x'"
        ).fetchall()
    assert kept == ("greet",)
    return journal + repr(rows).encode() + store_path.read_bytes()


def test_nothing_of_it_is_written(store_path: Path) -> None:
    assert MARKER.encode() not in record(store_path)


def test_keys_are_kept_by_no_mode(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for is content: headers and queries are none, and an address in a prompt is masked in theirs as in ours."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    reload()
    for name in CONTENT:
        told = recorded({name: f"{MARKER} ann@example.org"}, "somebody.else").get(name, "")
        is_content = not name.startswith(("url.", "http."))
        assert told == (f"{MARKER} [redacted: email]" if is_content else "")


def test_a_redactor_sees_what_others_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    monkeypatch.setenv("OTEL_LLM_REDACT", "no.such.module:redact")
    reload()
    assert recorded({"gen_ai.prompt.0.content": MARKER, "gen_ai.request.model": "m"}, "somebody.else") == {
        "gen_ai.request.model": "m"
    }


def test_it_is_kept_when_asked_for(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    reload()
    assert MARKER.encode() in record(store_path)
