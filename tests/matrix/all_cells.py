"""Every cell of the matrix, in order."""

from __future__ import annotations

from tests.matrix import langchain_cells, openai_cells
from tests.matrix.cell import Cell

CELLS: tuple[Cell, ...] = (*openai_cells.cells(), *langchain_cells.cells())
