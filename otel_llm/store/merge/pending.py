"""The sign that there are spans in the store which have not arrived over OTLP.

It is a file beside the journals, so that a process that begins need not open the database, nor import DuckDB, to learn that nothing
is missing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from otel_llm.store.journal import segments
from otel_llm.store.paths import StorePaths
from otel_llm.support import files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def leave_sign(paths: StorePaths, connection: DuckDBPyConnection) -> None:
    """Leaves the sign, or takes it away, as the table has it. Raises nothing for what the file system does."""
    ((some,),) = connection.execute("SELECT exists(FROM pending_exports)").fetchall()
    with suppress(OSError):
        if some:
            os.close(files.open_or_create(paths.pending))
        else:
            paths.pending.unlink(missing_ok=True)


def is_likely(paths: StorePaths) -> bool:
    """Whether the store may have something pending of a process that has ended. Costs no look at the database. Raises OSError."""
    return paths.pending.exists() or not all(map(segments.is_live, segments.list_segments(paths.journal)))
