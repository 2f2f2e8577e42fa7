"""The matrix with something else in the process that must not decide over the account."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

pytest.importorskip("langchain.agents", reason="the matrix has cells of langchain 1.x")
pytest.importorskip("websockets")

from otel_llm.calls import abandoned
from otel_llm.setup import distro, wiring
from tests.matrix import cell as cells
from tests.matrix import test_matrix as plain
from tests.matrix.all_cells import CELLS


def _every(step: int) -> tuple[cells.Cell, ...]:
    """Some of the cells, of every group; all of them with MATRIX_ALL=1 (minutes)."""
    if os.environ.get("MATRIX_ALL"):
        return CELLS
    # Requests that are no model calls, which others take for some, are of few cells.
    return tuple(
        cell for at, cell in enumerate(CELLS) if at % step == 0 or cell.name.endswith(("background", "batches"))
    )


BESIDE = {"limits-8": 8, "limits-16": 16, "logfire-first": None, "logfire-later": None}
"""What the account has nothing to do with: limits of the SDK on a span's attributes, and Logfire, set up before us or after."""


@pytest.fixture(scope="module", params=BESIDE)
def beside(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[plain.Account]:
    """The matrix with something else in the process. Judged is what the account is told."""
    path = tmp_path_factory.mktemp("matrix") / "usage.duckdb"
    name = request.param
    with cells.matrix(BESIDE[name], settle=abandoned.finish_abandoned) as (matrix, provider), ExitStack() as others:
        if name.startswith("logfire"):
            pytest.importorskip("logfire", reason="Logfire is not installed: `.ci/beside` has it")
        if name == "logfire-first":
            provider = others.enter_context(cells.logfire(is_global=False))
            # Its own spans are in the store too, where they are of another call: none may be.
        matrix.recorder = cells.Recorder()
        distro.instrument(tracer_provider=provider, store=path)
        if name == "logfire-later":
            others.enter_context(cells.logfire(is_global=False))
        cells.hear_the_account(wiring.wire(provider, path), matrix.recorder)
        account = plain.Account(matrix, path)
        try:
            yield account
            account.check()
        finally:
            distro.uninstrument()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cell", _every(16), ids=lambda cell: cell.name)
def test_one_row_for_each_call_beside(cell: cells.Cell, beside: plain.Account) -> None:
    plain.test_one_row_for_each_call(cell, beside)
