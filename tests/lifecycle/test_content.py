"""What a hand-written tool is asked and answers: recorded where content is captured, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from otel_llm import semconv, step, tool
from otel_llm.settings import reload
from tests.instrumentation.conftest import Spans

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CAPTURE, "SPAN_ONLY")
    reload()
    yield
    monkeypatch.undo()
    reload()


@tool
def weather(city: str, *, unit: str = "C") -> dict[str, object]:
    return {"city": city, "degrees": 21, "unit": unit}


class Shop:
    @tool("order")
    async def order(self, number: int) -> str:
        return f"{number} is on its way to ann@example.com"


async def test_arguments_and_results(capture: None, spans: Spans) -> None:
    assert weather("Lisbon", unit="F") == {"city": "Lisbon", "degrees": 21, "unit": "F"}
    await Shop().order(17)
    first, second = (span.attributes or {} for span in spans.all())
    assert json.loads(str(first[semconv.TOOL_CALL_ARGUMENTS])) == {"city": "Lisbon", "unit": "F"}
    assert json.loads(str(first[semconv.TOOL_CALL_RESULT])) == {"city": "Lisbon", "degrees": 21, "unit": "F"}
    assert json.loads(str(second[semconv.TOOL_CALL_ARGUMENTS])) == {"number": 17}
    assert "ann@example.com" not in str(second[semconv.TOOL_CALL_RESULT])
    assert "is on its way" in str(second[semconv.TOOL_CALL_RESULT])


def test_nothing_without_capture_and_nothing_of_a_step(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    weather("Lisbon")
    monkeypatch.setenv(CAPTURE, "SPAN_ONLY")
    reload()
    step(lambda text: text)("secret")
    monkeypatch.undo()
    reload()
    for span in spans.all():
        assert not {semconv.TOOL_CALL_ARGUMENTS, semconv.TOOL_CALL_RESULT} & (span.attributes or {}).keys()


def test_arguments_that_do_not_fit(capture: None, spans: Spans) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        weather(unit="F")  # type: ignore[call-arg]
    (span,) = spans.all()
    assert json.loads(str((span.attributes or {})[semconv.TOOL_CALL_ARGUMENTS])) == {"unit": "F"}
