"""Opening the DuckDB file: for the milliseconds of a merge, or to read. DuckDB is imported here and nowhere earlier."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_llm.store.errors import StoreBusy, StoreError, StoreTooNew
from otel_llm.store.file import exits, handles
from otel_llm.store.file.publish import WorkingCopy
from otel_llm.store.paths import StorePaths
from otel_llm.support import files
from otel_llm.support.system import file_locks

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_logger = logging.getLogger("otel_llm")

SCHEMA_VERSION: Final = 10
VIEWS_VERSION: Final = 13
"""Of `schema/views.sql` and `schema/comments.sql`: raised whenever those change, so that stored files get the new ones. They hold
no data, so that takes no schema step; the comment on the table `schema_version` says which version a file has."""
_STORAGE: Final = "v1.5.0"
"""Files are made in the format of this DuckDB, so that its command line and tools on it can read them."""

ROW_GROUP: Final = 16_384
"""Rows of a row group. Each merge writes the last one anew: DuckDB's own 122,880 would cost it up to 400 MB and half a second."""

_ATTACHED: Final = "store"

_BUSY: Final = re.compile(
    r"Could not set lock|Conflicting lock|different configuration than existing|already attached|"
    r"being used by another process",
    re.IGNORECASE,
)
_CORRUPT: Final = re.compile(
    r"Corrupt (database|WAL) file|not a valid DuckDB database|Could not read enough bytes|replaying WAL|This WAL was created",
    re.IGNORECASE,
)
_FORMATS: Final = re.compile(
    r"database file with version number (\d+), but we can only read versions between \d+ and (\d+)"
)
_CORRUPT_WAL: Final = re.compile(r"Corrupt WAL|replaying WAL|This WAL was created", re.IGNORECASE)
"""Or it is that of another database: somebody has put a backup in the place of one that had a log."""


def open_in_memory() -> DuckDBPyConnection:
    """An instance with nothing in it, to attach a store to."""
    import duckdb

    exits.duckdb_is_imported()
    config = _config()
    config.pop("storage_compatibility_version", None)
    connection = duckdb.connect(config=config)
    # A checkpoint deletes the write-ahead log, and DuckDB would make the next one open to all: see `keep_log_private`.
    connection.execute("SET checkpoint_threshold = '1TB'")
    be_quiet(connection)
    return connection


def be_quiet(connection: DuckDBPyConnection) -> None:
    """Of a query that takes longer than two seconds DuckDB draws a bar: on the app's own stdout, or into a command's JSON."""
    connection.execute("SET enable_progress_bar = false")


def keep_spills_private(connection: DuckDBPyConnection, paths: StorePaths) -> None:
    """What does not fit in memory goes below the journal, where nobody else can look, and not below the current directory.

    Raises duckdb.Error where the instance has put something elsewhere already.
    """
    folder = str(paths.journal / "spill")
    (now,) = connection.execute("SELECT current_setting('temp_directory')").fetchall()[0]
    if now != folder:
        connection.execute("SET temp_directory = ?", [folder])


def attach_for_merge(connection: DuckDBPyConnection, paths: StorePaths, working_copy: WorkingCopy) -> None:
    """Attaches the working copy of the store to an instance and makes it the one in use; it is created or migrated where needed.

    The caller holds the merge lock. A damaged store is moved aside and a new one begun. Raises StoreBusy where another
    process has the database open, StoreError where it cannot be opened.
    """
    _attach_or_quarantine(connection, paths, working_copy)
    working_copy.opened()
    migrate(connection)


def detach(connection: DuckDBPyConnection, file: Path | None = None) -> None:
    """Lets go of the attached store, with everything in the database file itself and no write-ahead log left.

    `file` is the one that is attached, if one is.
    """
    if file is not None:
        _remove_unused_log(file)
    connection.execute("USE memory")
    connection.execute(f"DETACH DATABASE IF EXISTS {_ATTACHED}")


def _attach(connection: DuckDBPyConnection, path: Path) -> None:
    import duckdb

    for each in (path, _log_of(path)):
        files.require(each)  # DuckDB would wait on a FIFO for ever, and take whatever another user has put there
    # What is there stays in the format that it has: a database of the user's own may be of a newer one.
    made = not path.exists() and _version(duckdb.__version__) >= (2,)
    version = f", STORAGE_VERSION '{_STORAGE}'" if made else ""
    connection.execute(f"ATTACH {literal(path)} AS {_ATTACHED} (TYPE duckdb, ROW_GROUP_SIZE {ROW_GROUP}{version})")
    connection.execute(f"USE {_ATTACHED}")
    keep_log_private(path)


def _attach_new(connection: DuckDBPyConnection, path: Path) -> None:
    """Attaches a new database. DuckDB would make the file open to all for a moment, so it is made behind a closed door."""
    with files.hidden_dir(path) as hidden:
        born = hidden / path.name
        _attach(connection, born)
        detach(connection, born)
        files.make_private(born, path.parent)
        try:
            os.link(born, path)
        except FileExistsError:
            raise StoreBusy(f"somebody else has just made {path}") from None
        except OSError:  # a file system without hard links
            born.rename(path)
    _attach(connection, path)


def checkpoint(connection: DuckDBPyConnection) -> None:
    """Writes everything to the database file itself, in the middle of the work on an attached store."""
    connection.execute("CHECKPOINT")
    (file,) = connection.execute(f"SELECT path FROM duckdb_databases() WHERE database_name = '{_ATTACHED}'").fetchall()[
        0
    ]
    keep_log_private(Path(file))


def keep_log_private(file: Path) -> None:
    """Makes the write-ahead log of the database in `file`, which is attached, before DuckDB does: it would make it open to all.

    DuckDB opens it with the first change, adds to what is there, and deletes it with a checkpoint. Raises OSError.
    """
    log = _log_of(file)
    try:
        os.close(files.create(log, os.O_WRONLY))
    except FileExistsError:  # another client's, that was not done with it
        files.require(log)
        log.chmod(files.PRIVATE_FILE)


def _log_of(file: Path) -> Path:
    """Where DuckDB puts the write-ahead log of a database."""
    return file.with_name(f"{file.name}.wal")


def _remove_unused_log(file: Path) -> None:
    """Nothing was changed: DuckDB does not know of the log. For as long as the database is attached it is nobody else's."""
    log = _log_of(file)
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()


def literal(path: Path) -> str:
    """A file's name in SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def require_openable(paths: StorePaths) -> None:
    """Raises StoreError where DuckDB would look for the database, or for its log, in another place than its name says."""
    import duckdb

    misread = "?\\" if _version(duckdb.__version__) >= (2,) and os.sep != "\\" else "?"
    found = [character for character in misread if character in str(paths.database)]
    if found:
        raise StoreError(f"DuckDB cannot use a path with {found[0]} in it, as {paths.database} has: name another store")


def prepare(paths: StorePaths) -> None:
    """Makes the directory of the store, and room for the store in it. Raises StoreError."""
    require_openable(paths)
    try:
        files.make_private_dir(paths.database.parent)
        for file in (paths.database, paths.wal):
            files.require(file)
        if paths.database.exists() and paths.database.stat().st_size == 0:
            _remove_placeholder(paths.database)
    except files.NotOurs as error:
        raise StoreError(f"the store {paths.database} cannot be used: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot make the store {paths.database}: {error}") from error


def _remove_placeholder(file: Path) -> None:
    """Deletes an empty file, as `tempfile` makes them: DuckDB takes none. One that somebody is just making is locked."""
    fd = files.open_own(file, os.O_RDWR)
    try:
        handles.lock(fd, handles.EXCLUSIVE)
        is_empty = os.fstat(fd).st_size == 0
        if is_empty and file_locks.IS_POSIX:
            file.unlink()
    except BlockingIOError:
        raise StoreBusy(f"the store {file} is being made by somebody else") from None
    finally:
        handles.let_go(fd)
    if is_empty and not file_locks.IS_POSIX:  # where nobody can delete what is open
        file.unlink()


def _attach_or_quarantine(connection: DuckDBPyConnection, paths: StorePaths, working_copy: WorkingCopy) -> None:
    import duckdb

    for last_try in (False, False, True):
        new = not working_copy.file.exists()
        try:
            (_attach_new if new else _attach)(connection, working_copy.file)
            return
        except duckdb.Error as error:
            failure = classify(paths, error)
            if last_try or isinstance(failure, StoreBusy) or not is_corruption(error) or not _is_ours(paths, error):
                raise failure from error
            if working_copy.reused:
                raise unusable(working_copy) from error
            quarantine(paths, str(error), only_wal=bool(_CORRUPT_WAL.search(str(error))))
            working_copy.begin_anew()
    raise AssertionError("unreachable")


def unusable(working_copy: WorkingCopy) -> StoreBusy:
    """What to raise for damage in a working copy that was made from the spare file: the next attempt is made from a whole copy."""
    return StoreBusy(f"the spare file that became {working_copy.file} is damaged; it is made anew")


def _config() -> dict[str, Any]:
    import duckdb

    config: dict[str, Any] = {"threads": 1, "python_enable_replacements": False}
    if _version(duckdb.__version__) >= (2,):
        config |= {"async_threads": 0, "storage_compatibility_version": _STORAGE}
    return config


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def classify(paths: StorePaths, error: Exception) -> StoreError:
    """A DuckDB error as one of ours, in one line."""
    import duckdb

    if isinstance(error, duckdb.InterruptException):  # as DuckDB does itself at the end of the process
        return StoreBusy(f"what was done with the store {paths.database} was interrupted; it can be tried again")
    line = " ".join(str(error).split())
    if _BUSY.search(line):
        holder = re.search(r"held in (.+?) \(PID (\d+)\)", line)
        who = f"process {holder[2]} ({Path(holder[1]).name})" if holder else "another connection"
        return StoreBusy(f"the store {paths.database} is held by {who}; close it there or try again")
    if (formats := _FORMATS.search(line)) and int(formats[1]) > int(formats[2]):
        return StoreTooNew(
            f"the store {paths.database} is in the format of a newer DuckDB than {duckdb.__version__}, which is installed here: "
            f"upgrade that (pip install --upgrade duckdb)"
        )
    return StoreError(f"the store {paths.database} cannot be used: {line[:300]}")


def is_corruption(error: Exception) -> bool:
    """Whether DuckDB says that the bytes of the file are wrong, and not that it cannot be reached."""
    return bool(_CORRUPT.search(str(error)))


def _is_ours(paths: StorePaths, error: Exception) -> bool:
    """A file that is no DuckDB database at all is moved aside only where a store was seen there before."""
    return "not a valid DuckDB database" not in str(error) or paths.merged.exists()


def quarantine(paths: StorePaths, cause: str, *, only_wal: bool = False) -> None:
    """Moves the damaged file beside, with its write-ahead log; says so loudly. Raises StoreError."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = paths.database.with_name(f"{paths.database.name}.corrupt-{stamp}")
    victims = {paths.wal: Path(f"{aside}.wal")}
    if not only_wal:
        victims[paths.database] = aside
    for path, target in victims.items():
        if not path.exists():
            continue
        while target.exists():
            target = target.with_name(f"{target.name}-again")
        try:
            path.rename(target)
        except OSError as error:
            raise StoreError(f"{path} is damaged and cannot be moved aside: {error}") from error
        _logger.error(
            "%s is damaged (%s); moved to %s and begun anew from what the journal still holds",
            path,
            " ".join(cause.split())[:200],
            target,
        )


@contextmanager
def transaction(connection: DuckDBPyConnection) -> Iterator[None]:
    """All that is executed in the block, or nothing."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        try:
            connection.execute("ROLLBACK")
        except Exception:
            pass  # the first error says more
        raise


def migrate(connection: DuckDBPyConnection) -> None:
    """Brings the schema and the views to this version, in one transaction. What is newer is left as it is: it only ever adds."""
    version = schema_version(connection)
    if version > SCHEMA_VERSION or (version == SCHEMA_VERSION and _views_version(connection) >= VIEWS_VERSION):
        return
    with transaction(connection):
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL, applied_at TIMESTAMPTZ)"
        )
        for step in range(version + 1, SCHEMA_VERSION + 1):
            connection.execute(_migration(step))
            connection.execute("INSERT INTO schema_version (version, applied_at) VALUES (?, now())", [step])
        connection.execute(views_sql())
        connection.execute(comments_sql())
        steps = "The steps of the schema that this file went through."
        connection.execute(f"COMMENT ON TABLE schema_version IS '{steps} otel-llm views {VIEWS_VERSION}'")


def _views_version(connection: DuckDBPyConnection) -> int:
    """The version of the views in the file; 0 where it is not said."""
    row = connection.execute(
        """SELECT regexp_extract(comment, 'otel-llm views ([0-9]+)$', 1) FROM duckdb_tables()
        WHERE database_name = current_database() AND table_name = 'schema_version'"""
    ).fetchone()
    return int(row[0]) if row and row[0] else 0


def schema_version(connection: DuckDBPyConnection) -> int:
    """The version of the schema in the file; 0 where there is none."""
    import duckdb

    try:
        row = connection.execute("SELECT max(version) FROM main.schema_version").fetchone()
    except duckdb.CatalogException:
        return 0
    return int(row[0]) if row and row[0] is not None else 0


def _migration(step: int) -> str:
    for file in _schema().iterdir():
        if file.name.startswith(f"{step:03d}_") and file.name.endswith(".sql"):
            return file.read_text(encoding="utf-8")
    raise StoreError(f"schema step {step} is missing from the package")


def views_sql() -> str:
    """The statements that create the views."""
    return (_schema() / "views.sql").read_text(encoding="utf-8")


def comments_sql() -> str:
    """The statements that say what each table, view and column holds."""
    return (_schema() / "comments.sql").read_text(encoding="utf-8")


def _schema() -> Traversable:
    return resources.files("otel_llm.store.file") / "schema"
