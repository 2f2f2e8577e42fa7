"""The account of all calls: writing it to journals, merging them into DuckDB, and reading it.

Importing this package imports neither DuckDB nor the OpenTelemetry SDK.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from otel_llm.store.errors import StoreBusy, StoreError, StoreNotFound
from otel_llm.support import lazy

if TYPE_CHECKING:
    from otel_llm.store.file.connection import StoreConnection
    from otel_llm.store.jobs.merger import StoreStats
    from otel_llm.store.store import Store, flush

__all__ = ["Store", "StoreBusy", "StoreError", "StoreNotFound", "StoreStats", "connect", "flush"]

# What needs a POSIX system is imported with them: how spans are read, which others need as well, does not.
__getattr__ = lazy.attributes(__name__, {"Store": "store", "StoreStats": "jobs.merger", "flush": "store"})


def connect(path: str | os.PathLike[str] | None = None) -> StoreConnection:
    """A read-only connection to the store at `path` (default: `OTEL_LLM_STORE`).

    Each statement sees every call that has ended by then; those between `begin()` and `commit()` see one moment.
    Raises StoreNotFound where there is no store, StoreError where it cannot be read. See `otel_llm.store.reader.connect`.
    """
    from otel_llm.store import reader

    return reader.connect(path)
