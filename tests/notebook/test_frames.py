"""`otel_llm.df`: data frames of the account, by what is installed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow
import pytest

import otel_llm
from otel_llm.settings import reload
from otel_llm.store import StoreError, StoreNotFound
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, both_engines


@pytest.fixture
def store(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OTEL_LLM_STORE", str(store_path))
    reload()
    with exclusive.alone(StorePaths.of(store_path)) as connection:
        connection.execute(
            """INSERT INTO llm_usage (trace_id, span_id, started_at, user_id, cost_usd, input_tokens, tags) VALUES
            ('t', 's2', '2026-11-20T13:00:00Z', NULL, NULL, NULL, NULL),
            ('t', 's1', '2026-11-20T12:00:00Z', 'alice', 0.000037875, 7, MAP {'team': 'core'})"""
        )
    return store_path


KINDS = {"pandas": pandas.DataFrame, "polars": polars.DataFrame, "arrow": pyarrow.Table}


@pytest.mark.parametrize("to", KINDS)
def test_each_kind_of_frame(to: str, store: Path) -> None:
    everything = otel_llm.df(to=to)
    assert isinstance(everything, KINDS[to])
    assert len(everything) == 2
    asked = otel_llm.df("select user_id, input_tokens, cost_usd from llm_usage order by started_at", to=to, store=store)
    if to == "pandas":
        assert asked["user_id"].tolist()[0] == "alice" and asked["user_id"].isna().tolist() == [False, True]
        assert asked["cost_usd"].tolist()[0] == 0.000037875 and asked["input_tokens"].isna().tolist() == [False, True]
        assert str(everything["started_at"].dtype).startswith("datetime64[us, ")
    else:
        rows = asked.to_dicts() if to == "polars" else asked.to_pylist()
        assert rows == [
            {"user_id": "alice", "input_tokens": 7, "cost_usd": Decimal("0.000037875")},
            {"user_id": None, "input_tokens": None, "cost_usd": None},
        ]


def test_what_is_not_asked_for_right(store: Path, tmp_path: Path) -> None:
    assert isinstance(otel_llm.df(), pandas.DataFrame)
    with pytest.raises(ValueError, match="makes no 'numpy'; it makes pandas, polars, arrow"):
        otel_llm.df(to="numpy")
    with pytest.raises(duckdb.Error, match="nosuch"):
        otel_llm.df("from nosuch")
    with pytest.raises(duckdb.Error, match="read-only"):
        otel_llm.df("delete from llm_usage")
    with pytest.raises(StoreNotFound, match=r"none\.duckdb"):
        otel_llm.df(store=tmp_path / "none.duckdb")


def test_by_what_is_installed(store: Path, python_without: Callable[..., Path]) -> None:
    script = """
import otel_llm
try:
    print(type(otel_llm.df({})).__module__.partition('.')[0])
except ImportError as error:
    print(error)
"""

    def run(python: Path, to: str = "") -> str:
        done = subprocess.run([str(python), "-c", script.format(to)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    without_pandas = python_without("pandas", "pyarrow")
    assert run(without_pandas) == "polars"  # which needs no pyarrow
    assert run(without_pandas, "to='pandas'") == "a frame of pandas needs pandas: pip install pandas"
    assert run(without_pandas, "to='arrow'") == "a frame of arrow needs pyarrow: pip install pyarrow"
    bare = python_without("pandas", "pyarrow", "polars")
    assert run(bare) == "otel_llm.df needs pandas, polars or pyarrow: pip install pandas"


def test_nothing_is_imported_before(python_without: Callable[..., Path]) -> None:
    script = """
import sys, otel_llm
otel_llm.df, otel_llm.usage, otel_llm.trace
print({'pandas', 'polars', 'pyarrow'} & set(sys.modules))
"""
    done = subprocess.run([str(python_without("jinja2")), "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


CALLS: list[dict[str, Any]] = [
    {"user_id": "alice", "cost_usd": "0.000037875", "input_tokens": 7, "started_at": "2026-07-20T12:00:00Z"},
    {"user_id": None, "started_at": "2026-11-20T12:00:00Z"},
]


@both_engines
@pytest.mark.parametrize("to", KINDS)
def test_wherever_the_account_is(to: str, fill: Fill) -> None:
    place = fill(*CALLS)
    everything = otel_llm.df(to=to)
    assert isinstance(everything, KINDS[to]) and len(everything) == 2
    asked = otel_llm.df(
        "SELECT user_id, input_tokens, cost_usd, started_at FROM llm_usage ORDER BY started_at", to=to, store=place
    )
    rows = asked.to_dict("records") if to == "pandas" else asked.to_dicts() if to == "polars" else asked.to_pylist()
    assert [row["started_at"].isoformat()[:19] for row in rows] == ["2026-07-20T12:00:00", "2026-11-20T12:00:00"]
    assert all(row["started_at"].utcoffset() == timedelta(0) for row in rows)
    assert rows[0]["user_id"] == "alice" and rows[0]["input_tokens"] == 7
    assert float(rows[0]["cost_usd"]) == 0.000037875 and isinstance(
        rows[0]["cost_usd"], float if to == "pandas" else Decimal
    )
    missing = [rows[1][name] for name in ("user_id", "input_tokens", "cost_usd")]
    assert [*map(pandas.isna, missing)] == [True] * 3


@pytest.mark.parametrize("engine", ["clickhouse"], indirect=True)
def test_what_a_clickhouse_refuses(fill: Fill, engine: str) -> None:
    fill(*CALLS)
    with pytest.raises(StoreError, match="nosuch"):
        otel_llm.df("select * from nosuch")
    with pytest.raises(StoreError, match="clickhouse://"):
        otel_llm.df(store="clickhouse://nowhere.invalid:1/otel")
