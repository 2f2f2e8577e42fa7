"""Whatever the store writes, whoever writes it for us: nothing is ever open to other users, not for a moment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

STRACE = shutil.which("strace")

WORK = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from otel_llm.cli import main
from otel_llm.store import connect
from otel_llm.store.file import publish
from otel_llm.store.jobs import copying, exclusive, retention
from otel_llm.store.merge import duckdb_instance
from otel_llm.store.merge.ingest import merge
from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from tests.store.conftest import write_call

publish._REST = 0
paths = StorePaths.of(sys.argv[1])
journal = Journal(paths.journal)

def stored():
    write_call(journal)
    assert merge(paths.database).complete

for _ in range(3):  # the first file, a whole copy, the spare file
    stored()
with connect(paths.database) as held:
    stored()
    connect(paths.database).close()  # a copy, as the file is another one by now
with exclusive.alone(paths) as connection:  # what does not fit in memory
    connection.execute("SET memory_limit = '20MB'")
    connection.execute("SELECT count(*) FROM (SELECT DISTINCT repeat(i::VARCHAR, 20) FROM range(500000) AS t(i))").fetchall()
duckdb_instance.discard()
with journal.segment.open("ab") as segment:
    segment.write(b"damaged\\n")
stored()
copying.compact(paths)
copying.backup(paths, paths.database.with_name("backup.duckdb"))
publish._fixed.add(paths.database)
for _ in range(2):  # in its place
    stored()
with exclusive.alone(paths) as connection:
    retention.remove(connection, retention.Policy(max_age=1e9, max_size=1), now=0)
journal.close()
for suffix in ("parquet", "csv", "json", "jsonl"):
    file = str(paths.database.with_name(f"export.{suffix}"))
    try:
        main(["export", file, "--table", "spans", "--store", str(paths.database)])
    except SystemExit as end:
        assert not end.code, end.code
"""

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


def openings(trace: str, folder: str) -> Iterator[str]:
    """The system calls that made something, or opened it up, below `folder` so that others could have looked."""
    there: set[str] = {folder}
    closed: set[str] = set()
    for line in trace.splitlines():
        match = _CALL.match(line)
        if match is None or match[3].startswith("-"):
            continue
        call, arguments = match[1], match[2]
        names = _PATH.findall(arguments)
        if not names or not names[0].startswith(folder):
            continue
        name = names[0]
        hidden = any(name.startswith(f"{each}/") for each in closed)
        mode = re.search(r", (0[0-7]+)$", arguments)
        bits = int(mode[1], 8) if mode else 0
        makes = call.startswith("mkdir") or ("O_CREAT" in arguments and name not in there)
        if (makes or "chmod" in call) and bits & 0o077 and not hidden:
            yield line
        if makes:
            there.add(name)
            if call.startswith("mkdir") and not bits & 0o077:
                closed.add(name)
        elif call.startswith(("unlink", "rmdir")):
            there.discard(name)
            closed.discard(name)
        elif call.startswith(("rename", "link")):
            there.add(names[-1])
            if call.startswith("rename"):
                there.discard(name)


def test_what_is_seen_is_told() -> None:
    """The observer itself: it sees a file that is made open, and one that is opened up, and not what is behind a closed door."""
    trace = """
1 openat(AT_FDCWD, "/s/open", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 3
1 openat(AT_FDCWD, "/s/private", O_RDWR|O_CREAT|O_EXCL, 0600) = 3
1 openat(AT_FDCWD, "/s/private", O_RDWR|O_CREAT, 0666) = 3
1 unlink("/s/private") = 0
1 openat(AT_FDCWD, "/s/private", O_RDWR|O_CREAT, 0666) = 3
1 mkdir("/s/closed", 0700) = 0
1 openat(AT_FDCWD, "/s/closed/file", O_RDWR|O_CREAT, 0666) = 3
1 mkdir("/s/wide", 0777) = 0
1 chmod("/s/closed", 0755) = 0
1 openat(AT_FDCWD, "/s/refused", O_RDWR|O_CREAT, 0666) = -1 EACCES (Permission denied)
"""
    lines = trace.strip().splitlines()
    assert list(openings(trace, "/s")) == [lines[0], lines[4], lines[7], lines[8]]


@pytest.mark.skipif(STRACE is None, reason="NOT SEEN WHAT IS OPEN TO OTHERS: no program `strace` on PATH")
@pytest.mark.parametrize("umask", ["000", "022"])
def test_nothing_is_ever_open_to_others(umask: str, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)  # made by the user, who lets others in: so each file is to be private itself
    trace = tmp_path / "trace"
    calls = "trace=open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,chmod,fchmodat"
    command = [
        STRACE or "", "-f", "-qq", "-s", "1000", "-e", calls, "-e", "signal=none", "-o", str(trace),
        sys.executable, "-c", WORK, str(folder / "usage.duckdb"), umask,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("NOT SEEN WHAT IS OPEN TO OTHERS: strace may not trace here")
    assert done.returncode == 0, done.stderr
    seen = trace.read_text(errors="replace")
    for expected in ("usage.duckdb.next.wal", "usage.duckdb.wal", "spill", "backup.duckdb", "export.csv", "corrupt/"):
        assert expected in seen
    assert list(openings(seen, str(folder))) == []
    assert not (tmp_path / ".tmp").exists()
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*")} == {0}
