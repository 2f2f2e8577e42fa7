"""`otel-llm export` for spreadsheets: Excel, and times that say no zone."""

from __future__ import annotations

import csv
import json
import stat
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import openpyxl
import pytest

from otel_llm.cli.screen import workbook
from tests.cli.conftest import Fill, Run, both_engines

CALLS = [
    {"started_at": "2026-07-20T12:00:00.250000Z", "user_id": "=1+1", "module": "#N/A", "cost_usd": "0.000037875",
     "input_tokens": 7, "tags": {"team": "core"}, "request_model": "a\x08b",
     "input_messages": json.dumps([{"role": "user", "content": "x" * 40_000}])},
    {"started_at": "2026-11-20T12:00:00Z", "user_id": "日本"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@both_engines
def test_a_workbook(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(*CALLS)
    file = tmp_path / "calls.xlsx"
    done = run("export", str(file))
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1] == "1 text longer than a cell of Excel holds was cut."
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    sheet = openpyxl.load_workbook(file).active
    assert (sheet.title, sheet.freeze_panes, sheet.max_row) == ("llm_usage", "A2", 3)
    names = [cell.value for cell in sheet[1]]
    rows = sorted(
        (dict(zip(names, line, strict=True)) for line in sheet.iter_rows(min_row=2)),
        key=lambda row: row["started_at"].value,
    )
    first, second = rows
    # Local times, in summer and in winter.
    assert [row["started_at"].value for row in rows] == [
        datetime(2026, 7, 20, 14, 0, 0, 250000),
        datetime(2026, 11, 20, 13),
    ]
    assert [(first[name].value, first[name].data_type) for name in ("user_id", "module")] == [
        ("=1+1", "s"),
        ("#N/A", "s"),
    ]
    assert (first["cost_usd"].value, first["input_tokens"].value, first["tags"].value) == (
        0.000037875,
        7,
        '{"team":"core"}',
    )
    assert first["request_model"].value == "a\ufffdb" and len(first["input_messages"].value) == 32_767
    assert (second["user_id"].value, second["cost_usd"].value) == ("日本", None)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_day_and_a_period(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(*CALLS)
    file = tmp_path / "days.xlsx"
    assert run("export", str(file), "--table", "llm_daily", "--since", "2026-11-01").code == 0
    sheet = openpyxl.load_workbook(file).active
    assert [row[0].value for row in sheet.iter_rows(min_row=2)] == [datetime(2026, 11, 20)]
    assert run("export", str(tmp_path / "x"), "--format", "xlsx").code == 0


def test_more_rows_than_a_sheet_holds(fill: Fill, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workbook.MOST_ROWS == 2**20 - 1
    monkeypatch.setattr(workbook, "MOST_ROWS", 1)
    fill(*CALLS)
    done = run("export", str(tmp_path / "calls.xlsx"))
    assert done.code == 2
    assert done.err.startswith("otel-llm: 2 rows are more than the 1 of a sheet of Excel; narrow them with --since")
    assert [*tmp_path.glob("*.xlsx*"), *tmp_path.glob(".*")] == []
    assert run("export", str(tmp_path / "calls.xlsx"), "--since", "2026-11-01").code == 0


@both_engines
def test_times_that_say_no_zone(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(*CALLS)
    for option, expected in (
        ((), ["2026-07-20T12:00:00.250000+00:00", "2026-11-20T12:00:00+00:00"]),
        (("--no-timezone",), ["2026-07-20T14:00:00.250000", "2026-11-20T13:00:00"]),
    ):
        file = tmp_path / f"calls{len(option)}.csv"
        assert run("export", str(file), *option).code == 0
        with file.open(newline="") as lines:
            read = [datetime.fromisoformat(row["started_at"]) for row in csv.DictReader(lines)]
        told = sorted(
            moment if option else moment.astimezone(datetime.fromisoformat(expected[0]).tzinfo) for moment in read
        )
        assert [moment.isoformat() for moment in told] == expected
        assert all((moment.tzinfo is None) == bool(option) for moment in read)


def test_where_a_zone_has_a_type(fill: Fill, run: Run, tmp_path: Path) -> None:
    fill(*CALLS)
    done = run("export", str(tmp_path / "calls.parquet"), "--no-timezone")
    assert (done.code, done.err) == (
        2, "otel-llm: --no-timezone is about CSV and Excel; parquet has a type for times with a zone\n",
    )  # fmt: skip


def test_without_its_package_it_says_what_to_install(
    fill: Fill, python_without: Callable[..., Path], tmp_path: Path
) -> None:
    import subprocess

    fill(*CALLS)
    file = tmp_path / "calls.xlsx"
    line = f"import sys; from otel_llm.cli import main; sys.exit(main(['export', {str(file)!r}]))"
    done = subprocess.run([str(python_without("openpyxl")), "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2, "otel-llm: an Excel file needs openpyxl: pip install 'otel-llm[excel]'; CSV needs nothing\n",
    )  # fmt: skip
    assert not file.exists()
