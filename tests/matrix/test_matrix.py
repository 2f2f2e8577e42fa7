"""Every way to call a model: one row for each call, with the tokens that the provider billed, however the call ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("langchain.agents", reason="the matrix has cells of langchain 1.x")
pytest.importorskip("websockets")

from otel_llm.calls import abandoned
from otel_llm.setup import distro
from otel_llm.store.reader import connect
from otel_llm.support import faults
from tests.matrix import cell as cells
from tests.matrix import truth
from tests.matrix.all_cells import CELLS

_REPORTED = "CASE WHEN usage_source IS DISTINCT FROM 'estimated' THEN {0} END"
"""The matrix is about what the provider has told."""
_COLUMNS = ", ".join(
    (
        "status",
        *map(_REPORTED.format, ("input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens")),
        "attempts",
    )
)


class Account:
    """The matrix with otel-llm installed, spans and store."""

    def __init__(self, matrix: cells.Matrix, path: Path) -> None:
        self.matrix = matrix
        self._path = path
        self._cells: dict[tuple[str, str], str] = {}
        self._wanted: dict[str, Counter[truth.Truth]] = {}

    def expect(self, cell: cells.Cell, seen: cells.Seen, wanted: Counter[truth.Truth]) -> None:
        """Notes which rows the cell must have in the store."""
        self._wanted[cell.name] = self._wanted.get(cell.name, Counter()) + wanted
        for span in seen.spans:
            context = span.get_span_context()
            assert context is not None
            self._cells[f"{context.trace_id:032x}", f"{context.span_id:016x}"] = cell.name

    def check(self) -> None:
        """Every cell has one row for each of its calls; answers out of a cache are none. A merge for all of them is quicker."""
        with connect(self._path) as connection:
            query = f"SELECT {_COLUMNS}, trace_id, span_id FROM llm_usage WHERE price_source <> 'cache hit, not billed'"
            rows = connection.execute(query).fetchall()
        assert len({row[-2:] for row in rows}) == len(rows)
        found: dict[str, Counter[truth.Truth]] = {name: Counter() for name in self._wanted}
        for row in rows:
            found[self._cells.pop(row[-2:])][truth.Truth(*row[:-2])] += 1
        wrong = {name: (found[name], wanted) for name, wanted in self._wanted.items() if found[name] != wanted}
        assert not wrong


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """Its rows are checked when all cells have run (in this process: pytest-xdist gives each worker some of them)."""
    path = tmp_path_factory.mktemp("matrix") / "usage.duckdb"
    with cells.matrix(settle=abandoned.finish_abandoned) as (matrix, provider):
        distro.instrument(tracer_provider=provider, store=path)
        account = Account(matrix, path)
        try:
            yield account
            account.check()
        finally:
            distro.uninstrument()


def test_the_matrix_is_large_and_every_cell_has_a_name_of_its_own() -> None:
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names) >= 150
    assert {cell.group for cell in CELLS} == set(cells.GROUPS)


# langchain-openai warns of completions without usage, openai of what it will take away.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_one_row_for_each_call(cell: cells.Cell, account: Account) -> None:
    before = faults.counts.copy()
    seen = account.matrix.run(cell)
    assert seen.error is None
    wanted = truth.truths(cell, seen.ledger)
    assert wanted.total() == cell.calls + cell.unseen  # or the cell has shown nothing
    assert truth.recorded(seen.spans) == wanted
    assert seen.open == []
    assert truth.faults(cell, seen) == []  # what the peers are asked
    assert faults.counts == before
    account.expect(cell, seen, wanted)


@pytest.mark.parametrize("lie", ["nothing", "twice", "tokens", "open", "seen by the app"])
def test_a_wrong_record_is_found_out(lie: str, account: Account) -> None:
    cell = next(cell for cell in CELLS if cell.name == "openai-chat-plain")
    seen = account.matrix.run(cell)
    account.expect(cell, seen, truth.truths(cell, seen.ledger))
    match lie:
        case "nothing":
            seen.spans.clear()
        case "twice":
            seen.spans *= 2
        case "tokens":
            seen.ledger[0].usage["prompt_tokens"] += 1
        case "open":
            seen.open.append("chat")
        case "seen by the app":
            seen.error = "TypeError: ours"
    assert len(truth.faults(cell, seen)) == 1
    if lie not in ("open", "seen by the app"):
        assert truth.recorded(seen.spans) != truth.truths(cell, seen.ledger)
