"""From the store of one machine into that of another, by `otel-llm ship` and `otel-llm serve`: the same account, row by row."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.fleet.serve.conftest import COMMAND, Server
from tests.store.conftest import USAGE, end, identity, query, start, write_call

OURS = {"sc": f"{semconv.SPAN_SCOPES}.openai"}


def ship(store: Path, url: str, *options: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [COMMAND, "ship", "--once", "--to", url, "--store", str(store), *options]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def account(store: Path) -> list[tuple[object, ...]]:
    return query(store, "SELECT COLUMNS(* EXCLUDE (commit_number))::VARCHAR FROM llm_usage ORDER BY trace_id, span_id")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_accounts_agree(protocol: str, serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    url = f"grpc://127.0.0.1:{server.grpc}" if protocol == "grpc" else server.url()
    store = tmp_path / "pod" / "usage.duckdb"
    journal = Journal(StorePaths.of(store).journal)
    journal.resource = {"service.name": "shop"}
    asked = {semconv.USER_ID: "a@b.example", semconv.TAG_PREFIX + "team": "blue", semconv.UNIT_PREFIX + "images": 2}
    write_call(journal, USAGE | asked | {semconv.FINISH_REASONS: ["stop"]}, **OURS)
    write_call(journal, USAGE | {semconv.REQUEST_MODEL: "mine"}, **OURS)
    first = write_call(journal, USAGE | {semconv.RESPONSE_ID: "resp_1"}, **OURS)
    running = start(**OURS)
    journal.append(running, start_of=identity(running))
    journal.close()
    merge(store)
    ship(store, url)
    assert account(server.store) == account(store) != []
    # One goes on from the first, which names their conversation; and one that was taken for dead has ended after all.
    write_call(journal, USAGE | {semconv.REQUEST_PREVIOUS_RESPONSE: "resp_1"}, **OURS)
    journal.append(end(running))
    merge(store)
    ship(store, url)
    assert account(server.store) == account(store)
    ((version,),) = query(server.store, f"SELECT row_version FROM llm_usage WHERE span_id = '{first['s']}'")
    assert version == 2
    journal.close()


def test_spans_that_are_shipped_too_make_no_second_row(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    store = tmp_path / "pod" / "usage.duckdb"
    journal = Journal(StorePaths.of(store).journal)
    for _ in range(5):
        write_call(journal, USAGE | {semconv.MODULE: "billing"}, **OURS)
    journal.close()
    merge(store)
    ship(store, server.url(), "--spans")
    ship(store, server.url(), "--spans")
    assert query(server.store, "SELECT count(*), count(module) FROM llm_usage") == [(5, 5)]
    spans = "SELECT COLUMNS(* EXCLUDE (commit_number))::VARCHAR FROM spans ORDER BY span_id"
    assert query(server.store, "SELECT count(*) FROM spans") == [(5,)]
    assert [row[:6] for row in query(server.store, spans)] == [row[:6] for row in query(store, spans)]


def test_a_retracted_row_goes_there_too(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two instrumentations report a call, the second after the first report was shipped."""
    reload()
    server = serve()
    store = tmp_path / "pod" / "usage.duckdb"
    journal = Journal(StorePaths.of(store).journal)
    journal.resource = {"service.name": "shop"}
    call = USAGE | {semconv.RESPONSE_ID: "chatcmpl-1"}
    one = write_call(journal, call, sc="a.framework.langchain")
    merge(store)
    ship(store, server.url())
    assert query(server.store, "SELECT span_id FROM llm_usage") == [(one["s"],)]
    other = write_call(journal, call, st=one["st"], sc="b.client")
    merge(store)
    assert query(store, "SELECT span_id FROM llm_usage") == [(other["s"],)]
    ship(store, server.url())
    assert query(server.store, "SELECT span_id FROM llm_usage") == [(other["s"],)]
    journal.close()
