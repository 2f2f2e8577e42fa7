"""A page's URL and what it asks for say the same."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm.ui.scope import COLUMNS, PERIODS, BadRequest, PageScope

NAMES = st.sampled_from([*COLUMNS, "tag:team", "tag:ä b=&"])


@given(
    st.dictionaries(NAMES, st.lists(st.text(max_size=10), min_size=1, max_size=3, unique=True), max_size=4),
    st.sampled_from([*PERIODS]),
    st.text(max_size=10).map(str.strip),
)
def test_a_link_leads_to_the_same_page(filters: dict[str, list[str]], period: str, search: str) -> None:
    scope = PageScope.of([("period", period), ("q", search), *((n, v) for n, vs in filters.items() for v in vs)])
    again = PageScope.of(parse_qsl(scope.query(), keep_blank_values=True))
    assert (again.period, dict(again.filters), again.search) == (period, dict(scope.filters), search)


def test_a_filter_is_set_and_taken_back() -> None:
    scope = PageScope().toggled("model", "a").toggled("model", "b").toggled("user", None)
    assert scope.filters == {"model": ("a", "b"), "user": ("",)}
    assert scope.toggled("model", "a").toggled("user", None).filters == {"model": ("b",)}
    assert scope.has("user", None) and not scope.has("user", "alice")


def test_periods_begin_where_people_think() -> None:
    now = datetime(2026, 3, 15, 12, 30, tzinfo=UTC).astimezone()
    month = PageScope.of([("period", "last-month")], now)
    assert month.since is not None and month.until is not None
    assert (month.since.month, month.since.day, month.until.month, month.until.day) == (2, 1, 3, 1)
    today = PageScope.of([("period", "today")], now)
    assert today.since is not None and (today.since.hour, today.since.day) == (0, now.day)


@pytest.mark.parametrize(
    "query",
    [
        "period=soon",
        "since=yesterday",
        "since=2026-02-01&until=2026-01-01",
        "since=99999-01-01",
        "period=custom&until=x",
    ],
)
def test_what_cannot_be_read_is_said(query: str) -> None:
    with pytest.raises(BadRequest):
        PageScope.of(parse_qsl(query))
