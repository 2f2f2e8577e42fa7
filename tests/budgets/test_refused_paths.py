"""A spent budget on every way to call a model: the app gets `BudgetExceeded`, nothing reaches the provider, and there is a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

pytest.importorskip("langchain.agents", reason="the matrix has cells of langchain 1.x")
pytest.importorskip("websockets")

import openai

import otel_llm
from otel_llm.budgets.stop.call_costs import Cost
from otel_llm.calls import abandoned
from otel_llm.conventions import semconv
from otel_llm.conventions.dialects import is_model_call
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from tests.matrix import cell as cells
from tests.matrix.all_cells import CELLS

_NO_CALLS = ("batches", "no-model")
"""What is known of at its end alone, and what is no model call."""
_CHOSEN = [cell for cell in CELLS if not cell.name.endswith(_NO_CALLS)]


@pytest.fixture(scope="module")
def matrix() -> Iterator[cells.Matrix]:
    instrumentors = OpenAIInstrumentor(), LangChainInstrumentor()
    with cells.matrix(settle=abandoned.finish_abandoned) as (made, provider):
        for instrumentor in instrumentors:
            instrumentor.instrument(tracer_provider=provider)
        try:
            yield made
        finally:
            for instrumentor in instrumentors:
                instrumentor.uninstrument()


@pytest.fixture(autouse=True)
def _nobody_waits(matrix: cells.Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some cells leave a call once it has reached the server, which none does here."""
    monkeypatch.setattr(matrix.env.server, "wait_for", lambda n: None)


def _spent() -> AbstractContextManager[object]:
    budget = otel_llm.budget("spent", limit_calls=1)
    budget.settle({}, Cost(0, 0))
    return budget


@pytest.mark.parametrize("cell", _CHOSEN, ids=lambda cell: cell.name)
def test_nothing_is_sent(matrix: cells.Matrix, cell: cells.Cell) -> None:
    with _spent():
        seen = matrix.run(cell)
    assert not seen.ledger
    assert not seen.open
    calls = [dict(span.attributes or {}) for span in seen.spans if is_model_call(span.attributes or {})]
    assert calls
    for call in calls:
        assert call[semconv.STATUS] == semconv.REFUSED
        assert call[semconv.ERROR_TYPE] == "otel_llm.BudgetExceeded"
        assert not {semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS} & call.keys()
    # Cells about errors and about streams that are left see to what is raised themselves.
    if cell.group not in ("errors", "left early"):
        assert seen.error is not None and seen.error.startswith("BudgetExceeded")


def test_without_a_budget_the_same_matrix_reaches_the_provider(matrix: cells.Matrix) -> None:
    chat = next(cell for cell in CELLS if cell.group == "sync")
    with nullcontext():
        assert len(matrix.run(chat).ledger) == 1


def test_an_app_that_catches_what_the_client_raises_catches_it() -> None:
    from otel_llm.budgets.stop.exceeded import exceeded

    refusal = exceeded("a", 1, 1, "calls")
    assert isinstance(refusal, openai.OpenAIError)
    assert isinstance(refusal, otel_llm.BudgetExceeded)
    assert not isinstance(refusal, openai.APIError)
