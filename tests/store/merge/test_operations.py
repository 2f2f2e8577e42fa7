"""What a span is: Python says it as the span starts, SQL when it is merged. Both read `conventions/dialects.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import dialects, semconv
from otel_llm.store.journal.writer import Journal
from tests.store.conftest import end, query, start

OPERATIONS = sorted(value for name, value in vars(semconv).items() if name.isupper() and str(value).isidentifier())
KINDS = sorted((name, value) for name, values in dialects.KINDS.items() for value in (*values, "of tomorrow", ""))
MODEL: dict[str, Any] = {"gen_ai.system": "openai", semconv.REQUEST_MODEL: "m"}


def seen(journal: Journal, path: Path, spans: list[dict[str, Any]]) -> list[tuple[str | None, bool]]:
    """The operation in `spans`, and whether there is a row in `llm_usage`, for spans with these attributes."""
    for number, attributes in enumerate(spans, 1):
        journal.append(end(start(number=number), {}, a=attributes))
    rows = query(
        path,
        """SELECT spans.operation, llm_usage.span_id IS NOT NULL FROM spans LEFT JOIN llm_usage USING (trace_id, span_id)
        ORDER BY start_ns""",
    )
    assert len(rows) == len(spans)
    return rows


def said(spans: list[dict[str, Any]]) -> list[tuple[str | None, bool]]:
    return [(dialects.operation_of(span), dialects.is_model_call(span)) for span in spans]


@pytest.mark.parametrize("spelled", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("beside", [{}, {semconv.REQUEST_MODEL: "m"}, {"llm.token_count.prompt": 3}], ids=str)
def test_kinds_of_other_dialects(
    journal: Journal, store_path: Path, spelled: Callable[[str], str], beside: dict[str, Any]
) -> None:
    spans = [{kind: spelled(value)} | beside for kind, value in KINDS]
    assert seen(journal, store_path, spans) == said(spans)


def test_operations_by_their_name(journal: Journal, store_path: Path) -> None:
    names = [*OPERATIONS, *dialects.OPERATIONS, "of tomorrow", "CHAT", ""]
    assert {"chat", "execute_tool", "retrieve"} <= set(names)
    spans = [{semconv.OPERATION: name} for name in names]
    assert seen(journal, store_path, spans) == said(spans)


def test_several_dialects_in_one_span(journal: Journal, store_path: Path) -> None:
    kinds = [{attribute: value} for attribute, value in KINDS[::3]]
    spans = [one | other for one in kinds for other in [*kinds, {semconv.OPERATION: "chat"}]]
    assert seen(journal, store_path, spans) == said(spans)


@pytest.mark.parametrize("attributes", [{}, MODEL, {"http.request.method": "GET"}, {semconv.OPERATION: "chat"} | MODEL])
@pytest.mark.parametrize("mark", [dict([pair]) for pair in dialects.NO_SPANS])
def test_what_only_looks_like_a_span(
    journal: Journal, store_path: Path, attributes: dict[str, Any], mark: dict[str, str]
) -> None:
    assert seen(journal, store_path, [attributes | mark]) == [(None, False)]
    assert not dialects.is_genai(attributes | mark)


def test_a_span_that_says_nothing_of_what_it_does(journal: Journal, store_path: Path) -> None:
    """It may be a call as far as its start tells; at its end it must have named a model."""
    spans: list[dict[str, Any]] = [{"gen_ai.system": "openai"}, MODEL]
    assert seen(journal, store_path, spans) == [(None, False), (None, True)]
    assert said(spans) == [(None, True)] * 2
    assert all(map(dialects.is_genai, spans))
