"""The store as one program asks it for a long time: how often it looks at the journals."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_llm.account.in_duckdb.shared import SharedDuckDBEngine
from otel_llm.store.file.connection import StoreConnection
from otel_llm.store.jobs import exclusive
from otel_llm.store.paths import StorePaths


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SharedDuckDBEngine]:
    store = tmp_path / "usage.duckdb"
    with exclusive.alone(StorePaths.of(store)):
        pass
    found = SharedDuckDBEngine(store)
    found.ask("SELECT 1")
    yield found
    found.close()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each look at the journals."""
    found: list[None] = []
    refresh = StoreConnection.refresh
    monkeypatch.setattr(StoreConnection, "refresh", lambda self: (found.append(None), refresh(self))[1])
    return found


def _news_from_another_thread(engine: SharedDuckDBEngine) -> None:
    thread = threading.Thread(target=engine.has_news)
    thread.start()
    thread.join()


def test_one_page_looks_once_however_much_happens(engine: SharedDuckDBEngine, looks: list[None]) -> None:
    _news_from_another_thread(engine)
    with engine.one_moment():
        for _ in range(5):
            engine.ask("SELECT 1")
            _news_from_another_thread(engine)
        assert len(looks) == 1
    engine.ask("SELECT 1")
    assert len(looks) == 2, "the next one sees what has come meanwhile"


def test_who_writes_sees_what_he_has_written(engine: SharedDuckDBEngine, looks: list[None]) -> None:
    _news_from_another_thread(engine)
    with engine.one_moment():
        engine.ask("SELECT 1")
        engine.has_news()
        engine.ask("SELECT 1")
    assert len(looks) == 2
