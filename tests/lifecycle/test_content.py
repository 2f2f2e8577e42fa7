"""What a hand-written tool is asked and answers: recorded where content is captured, and nowhere else."""

from __future__ import annotations

import json

import pytest

from otel_llm import step, tool
from otel_llm.conventions import semconv
from tests.instrumentation.conftest import Capture, Spans


@tool
def weather(city: str, *, unit: str = "C") -> dict[str, object]:
    return {"city": city, "degrees": 21, "unit": unit}


class Shop:
    @tool("order")
    async def order(self, number: int) -> str:
        return f"{number} is on its way to ann@example.com"


async def test_arguments_and_results(capture: Capture, spans: Spans) -> None:
    capture()
    assert weather("Lisbon", unit="F") == {"city": "Lisbon", "degrees": 21, "unit": "F"}
    await Shop().order(17)
    first, second = (span.attributes or {} for span in spans.all())
    assert json.loads(str(first[semconv.TOOL_CALL_ARGUMENTS])) == {"city": "Lisbon", "unit": "F"}
    assert json.loads(str(first[semconv.TOOL_CALL_RESULT])) == {"city": "Lisbon", "degrees": 21, "unit": "F"}
    assert json.loads(str(second[semconv.TOOL_CALL_ARGUMENTS])) == {"number": 17}
    # A text as it is: Jaeger would show the quotes of its JSON.
    told = str(second[semconv.TOOL_CALL_RESULT])
    assert told.startswith("17 is on its way to ")
    assert "ann@example.com" not in told


def test_nothing_without_capture_and_nothing_of_a_step(capture: Capture, spans: Spans) -> None:
    weather("Lisbon")
    capture()
    step(lambda text: text)("secret")
    for span in spans.all():
        assert not {semconv.TOOL_CALL_ARGUMENTS, semconv.TOOL_CALL_RESULT} & (span.attributes or {}).keys()


def test_arguments_that_do_not_fit(capture: Capture, spans: Spans) -> None:
    capture()
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        weather(unit="F")  # type: ignore[call-arg]
    (span,) = spans.all()
    assert json.loads(str((span.attributes or {})[semconv.TOOL_CALL_ARGUMENTS])) == {"unit": "F"}


def test_what_went_wrong(capture: Capture, spans: Spans) -> None:
    capture()

    @tool
    def find(key: str) -> str:
        raise LookupError(f"nothing under {key}")

    with pytest.raises(LookupError), step("search"):
        find("ann@example.com")
    assert [span.name for span in spans.all()] == ["execute_tool find", "step search"]
    for span in spans.all():
        assert (span.attributes or {})[semconv.ERROR_TYPE] == "LookupError"
        (event,) = span.events
        told = (span.status.description, (event.attributes or {})[semconv.EXCEPTION_MESSAGE])
        for text in told:
            assert str(text).startswith("nothing under ")
        assert "ann@example.com" not in repr((told, dict(event.attributes or {})))


def test_nothing_of_what_went_wrong_without_capture(spans: Spans) -> None:
    with pytest.raises(LookupError), tool("find"):
        raise LookupError("nothing under ann@example.com")
    (span,) = spans.all()
    assert (span.status.is_ok, span.status.description, list(span.events)) == (False, None, [])
