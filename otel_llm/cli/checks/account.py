"""The store: where it is, what is in it, and whether everything that was recorded gets there."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from otel_llm.cli.checks import Section, Size, streams
from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import Place, asking, connection_of, locate, remote
from otel_llm.cli.screen.output import counted
from otel_llm.conventions.semconv import SPAN_SCOPES
from otel_llm.prices.billing import literal
from otel_llm.settings import settings

if TYPE_CHECKING:
    import duckdb

    from otel_llm.account.questions import Account
    from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
    from otel_llm.store.paths import StorePaths

_LITTLE_SPACE = 100 * 2**20
_REPORTED_TWICE = f"""SELECT scope_name, count(*) FROM spans ANTI JOIN llm_usage USING (trace_id, span_id)
    WHERE NOT starts_with(scope_name, {literal(SPAN_SCOPES)})
    AND operation IN ('chat', 'text_completion', 'embeddings', 'generate_content')
    GROUP BY 1 ORDER BY 1"""
"""Spans of model calls that are not in the account: another span stands there for the same call."""


@dataclass(slots=True)
class Writers:
    """Who has written the journal: how many programs run, and how many have ended."""

    living: int = 0
    dead: int = 0

    @classmethod
    def of(cls, paths: StorePaths) -> Writers:
        """Asks each writer's last segment whether its writer lives. Raises OSError."""
        from otel_llm.store.journal.segments import is_live, list_segments

        latest = {segment.writer: segment for segment in list_segments(paths.journal)}
        living = sum(map(is_live, latest.values()))
        return cls(living, len(latest) - living)


def account(store: Place | None) -> Section:
    """The store that programs write, or the one at `store`."""
    section = Section("store")
    if (url := remote(store)) is not None:
        return _in_clickhouse(section, url, named=store is not None)
    assert store is None or isinstance(store, Path)
    if store is None and settings().store is None:
        chosen = os.environ.get("OTEL_LLM_STORE", "").strip()
        why = settings().store_note or f"OTEL_LLM_STORE={chosen}: no account is kept"
        section.problem(why, "unset OTEL_LLM_STORE, or set it to a file path")
        return section
    if store is None and (note := settings().store_note) is not None:
        section.remark(note, "OTEL_LLM_STORE=/a/path/usage.duckdb")
    from otel_llm.store.paths import StorePaths

    paths = StorePaths.of(locate(store))
    section.facts["path"] = str(paths.database)
    section.facts["chosen by"] = (
        "--store" if store else "OTEL_LLM_STORE" if os.environ.get("OTEL_LLM_STORE", "").strip() else "default"
    )
    _check_place(section, paths, store or settings().store)
    _check_directory(section, paths.database.parent)
    if refusing := streams.refused_by(paths.stream_usage):
        section.facts["refuse stream usage"] = ", ".join(refusing)
    try:
        ended = Writers.of(paths).dead  # counted first: to read the store is to merge what they left
    except OSError:  # it is another user's
        ended = 0
    readable = _check_database(section, paths, store)
    _check_journal(section, paths, ended, readable)
    _check_damage(section, paths)
    return section


def _in_clickhouse(section: Section, url: ClickHouseURL, *, named: bool) -> Section:
    """The account that machines send to: whether it lets us in, and has the columns of this version."""
    from otel_llm.account.clickhouse_engine import ClickHouseEngine
    from otel_llm.fleet.clickhouse.http_client import TABLES_REMEDY
    from otel_llm.fleet.wire_row import RETRACTED, SPAN_COLUMNS, USAGE_COLUMNS

    section.facts["path"] = str(url)
    section.facts["chosen by"] = "--store" if named else "OTEL_LLM_STORE"
    try:
        with asking(url) as found:
            assert isinstance(found.engine, ClickHouseEngine)
            section.facts["server"] = found.engine.version()
            expected = {"llm_usage": (*USAGE_COLUMNS, RETRACTED), "spans": (*SPAN_COLUMNS,)}
            missing = [
                f"{table}.{column}"
                for table, columns in expected.items()
                for column in columns
                if column not in found.engine.columns(table)
            ]
            if missing:
                section.problem(f"{', '.join(missing)} is not there", TABLES_REMEDY)
            section.facts |= _contents(found)
            if (untold := streams.without_usage(found)) is not None:
                section.remarks.append(untold)
    except CommandError as error:
        section.problem(one_line(error), "mend what it says; machines keep their calls until they can send them")
        return section
    if not section.facts["calls"]:
        section.remark("no machine has sent a model call yet", f"otel-llm ship --to {url}")
    return section


def _check_place(section: Section, paths: StorePaths, asked: Path | None) -> None:
    """Whether the account is kept where it was asked for."""
    from otel_llm.store import place
    from otel_llm.store.paths import StorePaths

    because = None if asked is None else place.of(asked).because
    if asked is not None and because and paths != StorePaths.of(asked):
        section.remark(
            f"{because}: the account of this user is kept in {paths.database}",
            "set OTEL_LLM_STORE to a file path that is this user's own",
        )
    elif because:
        section.problem(because, "make it a place of this user's own, or set OTEL_LLM_STORE to another path")


def _check_directory(section: Section, directory: Path) -> None:
    nearest = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        section.problem(
            f"{nearest} cannot be written: calls are kept in memory and lost at exit",
            "make it writable, or set OTEL_LLM_STORE to another path",
        )
    free = shutil.disk_usage(nearest).free
    section.facts["free"] = Size(free)
    if free < _LITTLE_SPACE:
        section.problem(f"the disk of {nearest} is almost full", "free some space, or move the store")


def _check_database(section: Section, paths: StorePaths, store: Path | None) -> bool:
    """What is in it. False where it cannot be read, which is then said with its remedy."""
    from otel_llm.store.errors import StoreError
    from otel_llm.store.jobs import missing
    from otel_llm.store.jobs.retention import used

    try:
        with asking(store) as account:
            connection = connection_of(account)
            section.facts["size"] = Size(_size(paths.database) + _size(paths.wal))
            section.facts["in use"] = Size(used(connection))
            section.facts["kept"] = _kept()
            section.facts |= _contents(account)
            twice = connection.execute(_REPORTED_TWICE).fetchall()
            if (untold := streams.without_usage(account)) is not None:
                section.remarks.append(untold)
            segments, size = _pending(connection, paths)
            section.facts["pending segments"] = segments
            section.facts["pending"] = Size(size)
            not_arrived = missing.known(connection, paths)
    except (CommandError, OSError) as error:
        cause = error.__cause__ or error
        remedy = cause.remedy if isinstance(cause, StoreError) else StoreError.remedy
        section.problem(one_line(cause), f"{remedy}; what is recorded waits in the journal")
        return False
    for scope, number in twice:
        section.remark(
            f"{scope} has reported {counted(number, 'call')} in the store too: counted once, both spans are kept",
            "the remarks on instrumentation say how to turn it off",
        )
    section.facts["missing over otlp"] = sum(not_arrived.values())
    for endpoint, number in not_arrived.items():
        section.remark(
            f"{counted(number, 'span')} of ended programs {'has' if number == 1 else 'have'} not arrived at {endpoint}",
            f"otel-llm replay --missing --endpoint {endpoint}",
        )
    if not section.facts["calls"]:
        section.remark("no model call has been recorded yet", "opentelemetry-instrument python app.py")
    return True


def _kept() -> str:
    """What the settings of this shell would have removed, if programs started from it ran."""
    configured = settings()
    limits = []
    if configured.retention:
        limits.append(f"for {os.environ['OTEL_LLM_RETENTION'].strip()} (OTEL_LLM_RETENTION)")
    if configured.max_size:
        limits.append(f"up to {os.environ['OTEL_LLM_MAX_SIZE'].strip()} in use (OTEL_LLM_MAX_SIZE)")
    return " and ".join(limits) or "everything"


def _contents(account: Account) -> dict[str, object]:
    found = account.contents()
    return {
        "calls": found.calls,
        "by status": found.by_status,
        "recorded by": found.by_instrumentation,
        "unpriced": found.unpriced,
        "spans": found.spans,
        "first call": found.first,
        "last call": found.last,
    }


def _pending(connection: duckdb.DuckDBPyConnection, paths: StorePaths) -> tuple[int, int]:
    """How many segments of the journal hold what is not in the database, and how many bytes of it."""
    from otel_llm.store.journal.segments import list_segments
    from otel_llm.store.merge.ingest import read_offsets

    offsets = read_offsets(connection)
    left = [_size(segment.path) - offsets.get(segment.name, (0, False))[0] for segment in list_segments(paths.journal)]
    return sum(size > 0 for size in left), sum(size for size in left if size > 0)


def _check_journal(section: Section, paths: StorePaths, ended: int, readable: bool) -> None:
    """A database that cannot be read is why nothing is merged: its own remedy is the only one then."""
    section.facts["journal"] = str(paths.journal)
    try:
        writers = Writers.of(paths)
    except OSError as error:
        section.problem(f"the journal cannot be read: {error}", "let its owner read the store")
        return
    section.facts["running writers"] = writers.living
    section.facts["ended writers"] = ended
    if writers.dead and readable:
        section.problem(
            f"the last calls of {writers.dead} ended programs are not merged into the store yet",
            "close whatever keeps the database open; the calls wait in the journal, and readers see them there",
        )


def _check_damage(section: Section, paths: StorePaths) -> None:
    from otel_llm.support import files

    corrupt = 0
    for file in paths.corrupt.glob("*") if paths.corrupt.is_dir() else ():
        with suppress(OSError):  # it is no file of ours
            corrupt += sum(1 for line in files.read_own(file).split(b"\n") if line)
    section.facts["corrupt lines"] = corrupt
    if corrupt:
        section.problem(
            f"{corrupt} lines of the journal were damaged and are not in the store",
            f"look at them in {paths.corrupt}, then delete it",
        )
    for aside in sorted(paths.database.parent.glob(f"{paths.database.name}.corrupt-*")):
        section.problem(
            f"a damaged store was put aside as {aside.name}: its calls are not in the new one",
            "restore it from a backup, or delete it",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
