"""The GenAI events: content through the logs, in the event modes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from otel_llm.conventions import semconv as s
from otel_llm.conventions.semconv import CONTENT
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from tests.instrumentation.conftest import Capture, Spans

MODEL = "gpt-4o-mini"
HELLO: Any = [{"role": "user", "content": "Say hello to ann@example.org."}]


class Logs:
    def __init__(self) -> None:
        self._memory = InMemoryLogRecordExporter()
        self.provider = LoggerProvider(shutdown_on_exit=False)
        self.provider.add_log_record_processor(SimpleLogRecordProcessor(self._memory))

    def all(self) -> list[Any]:
        return [each.log_record for each in self._memory.get_finished_logs()]


@pytest.fixture
def logs(spans: Spans) -> Iterator[Logs]:
    """The client, instrumented, with a LoggerProvider."""
    logs = Logs()
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider, logger_provider=logs.provider)
    yield logs
    instrumentor.uninstrument()
    logs.provider.shutdown()


def plain(value: Any) -> Any:
    """The SDK keeps sequences as tuples."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("mode", "in_span", "in_event"),
    [
        ("NO_CONTENT", False, False),
        ("SPAN_ONLY", True, False),
        ("EVENT_ONLY", False, True),
        ("SPAN_AND_EVENT", True, True),
    ],
)
def test_the_four_modes(
    mode: str, in_span: bool, in_event: bool, logs: Logs, spans: Spans, client: openai.OpenAI, capture: Capture
) -> None:
    capture(mode)
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    span = spans.one()
    assert bool(CONTENT & set(span.attributes or {})) is in_span
    if not in_event:
        assert logs.all() == []
        return
    (event,) = logs.all()
    assert (event.event_name, event.severity_number) == (
        "gen_ai.client.inference.operation.details",
        SeverityNumber.DEBUG,
    )
    assert (event.trace_id, event.span_id) == (span.context.trace_id, span.context.span_id)
    assert event.timestamp == span.end_time
    told = plain(dict(event.attributes))
    assert told[s.INPUT_MESSAGES] == [
        {"role": "user", "parts": [{"type": "text", "content": "Say hello to [redacted: email]."}]}
    ]
    (said,) = told[s.OUTPUT_MESSAGES]
    assert (said["role"], said["finish_reason"]) == ("assistant", "stop")
    assert said["parts"][0]["content"] == (answer.choices[0].message.content or "").replace(
        "ann@example.org", "[redacted: email]"
    )
    # Beside the content it says what the span says.
    assert {name: value for name, value in told.items() if name not in CONTENT} == {
        name: plain(value) for name, value in (span.attributes or {}).items() if name not in CONTENT
    }


def test_a_stream(logs: Logs, client: openai.OpenAI, capture: Capture) -> None:
    capture("EVENT_ONLY")
    for _ in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
        pass
    (event,) = logs.all()
    assert event.attributes[s.OUTPUT_MESSAGES][0]["parts"][0]["type"] == "text"


@pytest.mark.parametrize(("mode", "told"), [("SPAN_ONLY", False), ("EVENT_ONLY", True)])
def test_an_exception(mode: str, told: bool, logs: Logs, client: openai.OpenAI, capture: Capture) -> None:
    capture(mode)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="error-400-echo", messages=HELLO)
    exceptions = [event for event in logs.all() if event.event_name == "gen_ai.client.operation.exception"]
    assert len(exceptions) == told
    for event in exceptions:
        assert event.severity_number == SeverityNumber.WARN
        assert event.attributes[s.EXCEPTION_TYPE] == "openai.BadRequestError"
        assert "Say hello to [redacted: email]" in event.attributes[s.EXCEPTION_MESSAGE]
        assert "ann@example.org" not in repr(dict(event.attributes))


def test_without_a_logger_provider_nothing_is_read(
    instrumented: Spans, client: openai.OpenAI, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_llm.content import openai as reader

    def read(*args: object) -> None:
        pytest.fail("content was read that nobody takes")

    monkeypatch.setattr(reader, "request", read)
    monkeypatch.setattr(reader.Output, "see", read)
    monkeypatch.setattr(reader.Output, "see_choice", read)
    capture("EVENT_ONLY")
    client.chat.completions.create(model=MODEL, messages=HELLO)
    assert instrumented.one().attributes
