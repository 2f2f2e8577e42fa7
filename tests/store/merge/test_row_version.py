"""How often a row was written: 1, and one more for each change, so that who copies rows elsewhere knows the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.store.jobs import exclusive, repricing
from otel_llm.store.jobs.repricing import Choice
from otel_llm.store.journal.writer import Journal
from otel_llm.store.merge.ingest import merge
from otel_llm.store.paths import StorePaths
from tests.store.conftest import CHAT, USAGE, end, identity, merging, query, start, write_call

OURS = {"sc": f"{semconv.SPAN_SCOPES}.openai"}
BACKGROUND = {semconv.RESPONSE_ID: "resp_1"}


def versions(path: Path) -> list[tuple[str, int]]:
    return query(path, "SELECT status, row_version FROM llm_usage ORDER BY started_at")


@pytest.mark.parametrize("overlaid", [False, True])
def test_a_late_end_is_the_second_version(overlaid: bool, journal: Journal, store_path: Path) -> None:
    begun = start()
    journal.append(begun, start_of=identity(begun))
    journal.close()
    merge(store_path)
    assert versions(store_path) == [("interrupted", 1)]
    if overlaid:
        with merging(StorePaths.of(store_path)):
            write_call(journal)
            journal.append(end(begun), end_of=identity(begun))
            assert versions(store_path) == [("ok", 2), ("ok", 1)]
    else:
        journal.append(end(begun), end_of=identity(begun))
        assert versions(store_path) == [("ok", 2)]


def test_the_end_of_a_call_in_the_same_merge_is_the_first_version(journal: Journal, store_path: Path) -> None:
    write_call(journal)
    assert versions(store_path) == [("ok", 1)]


def test_a_new_price_is_a_new_version(
    journal: Journal, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(journal, USAGE | {semconv.REQUEST_MODEL: "mine"})
    write_call(journal)
    merge(store_path)
    for price, expected in ((1, 2), (1, 2), (2, 3)):
        table = tmp_path / f"{price}.toml"
        table.write_text(f'[[price]]\nmodel = "mine"\ninput = {price}\noutput = {price}\n')
        monkeypatch.setenv("OTEL_LLM_PRICES", str(table))
        reload()
        with exclusive.alone(StorePaths.of(store_path)) as connection:
            repricing.reprice(connection, Choice(priced_too=True))
        assert versions(store_path) == [("ok", expected), ("ok", 1)]


@pytest.mark.parametrize("at_once", [False, True])
def test_the_result_of_a_background_response_is_a_new_version_of_its_call(
    at_once: bool, journal: Journal, store_path: Path
) -> None:
    write_call(journal, BACKGROUND, **OURS)
    if not at_once:
        merge(store_path)
    retrieved = BACKGROUND | USAGE | {semconv.OPERATION: semconv.RETRIEVE, semconv.PROVIDER: CHAT[semconv.PROVIDER]}
    write_call(journal, retrieved, **OURS)
    assert query(store_path, "SELECT operation, input_tokens, row_version FROM llm_usage") == [
        ("chat", 1000, 1 if at_once else 2)
    ]
