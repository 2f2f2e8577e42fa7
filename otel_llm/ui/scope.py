"""What a page is about: a period and filters, as they stand in its URL and as a condition on `llm_usage`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlencode

from otel_llm.account import sums
from otel_llm.account.call_filter import between
from otel_llm.account.engine import Engine, Values
from otel_llm.ui.score_filter import NO_SCORES, SCORE, BadLimit, has_scores, scored

NOBODY: Final = ""
"""The value of a filter for rows in which the column is NULL."""
_TAG: Final = "tag:"

_NAMES: Final = (
    "model", "user", "module", "status", "agent", "service", "provider", "operation", "workflow", "profile", "conversation",
    "session",
)  # fmt: skip
COLUMNS: Final = {**{name: sums.COLUMNS[name] for name in _NAMES}, "price": sums.COLUMNS["price_source"]}
"""What can be filtered by, and its SQL. A tag is `tag:<key>`, and a score `score:<name>`."""

PERIODS: Final = {
    "15m": "last 15 minutes",
    "1h": "last hour",
    "24h": "last 24 hours",
    "7d": "last 7 days",
    "30d": "last 30 days",
    "today": "today",
    "month": "this month",
    "last-month": "last month",
    "all": "all time",
}
DEFAULT_PERIOD: Final = "7d"
CUSTOM: Final = "custom"
_LENGTHS: Final = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}


class BadRequest(ValueError):
    """What the URL asks for cannot be answered: one line for the person who reads it."""


@dataclass(frozen=True, slots=True)
class PageScope:
    """A period and filters. Another value for one of them makes another scope; its `query` is what a link to it has."""

    period: str = DEFAULT_PERIOD
    since: datetime | None = None
    until: datetime | None = None
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    search: str = ""

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, str]], now: datetime | None = None) -> PageScope:
        """The scope that the query of a URL names; what is no filter is left alone. Raises `BadRequest`."""
        chosen: dict[str, list[str]] = {}
        others: dict[str, str] = {}
        for name, value in parameters:
            if name in COLUMNS or any(name.startswith(kind) and name != kind for kind in (_TAG, SCORE)):
                chosen.setdefault(name, []).append(value)
            else:
                others[name] = value
        filters = {name: tuple(dict.fromkeys(values)) for name, values in chosen.items()}
        period = others.get("period", CUSTOM if others.get("since") or others.get("until") else DEFAULT_PERIOD)
        if period == CUSTOM:
            since, until = _moment(others.get("since", "")), _moment(others.get("until", ""))
            if since and until and until <= since:
                raise BadRequest(f"the period ends ({others['until']}) before it begins ({others['since']})")
        elif period in PERIODS:
            since, until = _bounds(period, now or datetime.now().astimezone())
        else:
            raise BadRequest(f"there is no period {period!r}; there are {', '.join(PERIODS)}, or since= and until=")
        return cls(period, since, until, filters, others.get("q", "").strip())

    def condition(self, engine: Engine, values: Values, *, but: str | None = None) -> str:
        """SQL on `llm_usage`; what it refers to is added to `values`. Without the filter `but`."""
        clauses = between("started_at", self.since, self.until, engine, values)
        for name, chosen in self.filters.items():
            if name == but:
                continue
            if name.startswith(SCORE):
                clauses.append(_scored(name.removeprefix(SCORE), chosen, engine, values))
                continue
            column = column_of(name, engine, values)
            known = [engine.value(values.add(value)) for value in chosen if value != NOBODY]
            either = [f"{column} IN ({', '.join(known)})"] if known else []
            if NOBODY in chosen:
                either.append(f"{column} IS NULL")
            clauses.append(f"({' OR '.join(either)})")
        clauses += [engine.said(word, values) for word in self.search.split()]
        return " AND ".join(clauses) or "true"

    def pairs(self) -> list[tuple[str, str]]:
        """The query of a URL for this scope, in a fixed order."""
        pairs = [(name, value) for name, values in sorted(self.filters.items()) for value in values]
        if self.search:
            pairs.append(("q", self.search))
        if self.period == CUSTOM:
            pairs += [
                (name, moment.astimezone().strftime("%Y-%m-%dT%H:%M"))
                for name, moment in (("since", self.since), ("until", self.until))
                if moment is not None
            ]
        elif self.period != DEFAULT_PERIOD:
            pairs.append(("period", self.period))
        return pairs

    def query(self, **more: str) -> str:
        """`pairs` as text, with what else the page is asked for."""
        return urlencode([*self.pairs(), *more.items()])

    def toggled(self, name: str, value: str | None) -> PageScope:
        """With that filter where it was not, without it where it was."""
        value = NOBODY if value is None else value
        values = self.filters.get(name, ())
        changed = tuple(one for one in values if one != value) if value in values else (*values, value)
        filters = {**self.filters, name: changed} if changed else _without(self.filters, name)
        return PageScope(self.period, self.since, self.until, filters, self.search)

    def only(self, name: str, value: str | None) -> PageScope:
        """With that one value of the filter."""
        value = NOBODY if value is None else value
        return PageScope(self.period, self.since, self.until, {**self.filters, name: (value,)}, self.search)

    def between(self, since: datetime, until: datetime) -> PageScope:
        return PageScope(CUSTOM, since, until, self.filters, self.search)

    def during(self, period: str) -> PageScope:
        """The same filters in one of `PERIODS`."""
        return PageScope(period, *_bounds(period, datetime.now().astimezone()), self.filters, self.search)

    def cleared(self) -> PageScope:
        """The same period without filters."""
        return PageScope(self.period, self.since, self.until)

    def has(self, name: str, value: str | None) -> bool:
        return (NOBODY if value is None else value) in self.filters.get(name, ())

    @property
    def words(self) -> str:
        """The period as people say it."""
        if self.period != CUSTOM:
            return PERIODS[self.period]
        begin = f"from {self.since.astimezone():%Y-%m-%d %H:%M}" if self.since else ""
        end = f"to {self.until.astimezone():%Y-%m-%d %H:%M}" if self.until else ""
        return f"{begin} {end}".strip() or PERIODS["all"]


def column_of(name: str, engine: Engine, values: Values) -> str:
    """The SQL of a filter's column. Raises `BadRequest`."""
    if name in COLUMNS:
        return COLUMNS[name]
    if name.startswith(_TAG) and len(name) > len(_TAG):
        return engine.tag(values.add(name.removeprefix(_TAG)))
    raise BadRequest(f"there is nothing called {name!r}; there are {', '.join(COLUMNS)} and tag:KEY")


def _scored(name: str, chosen: Sequence[str], engine: Engine, values: Values) -> str:
    if not has_scores(engine):
        raise BadRequest(NO_SCORES)
    try:
        return scored(name, chosen, engine, values)
    except BadLimit as error:
        raise BadRequest(str(error)) from error


def _without(filters: Mapping[str, tuple[str, ...]], name: str) -> dict[str, tuple[str, ...]]:
    return {other: values for other, values in filters.items() if other != name}


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        raise BadRequest(f"{text!r} is not a time; use 2026-11-01 or 2026-11-01T14:30") from None


def _bounds(period: str, now: datetime) -> tuple[datetime | None, datetime | None]:
    if period in _LENGTHS:
        return now - _LENGTHS[period], None
    midnight = _local(now.year, now.month, now.day)
    first = _local(now.year, now.month, 1)
    before = first - timedelta(days=1)
    return {
        "all": (None, None),
        "today": (midnight, None),
        "month": (first, None),
        "last-month": (_local(before.year, before.month, 1), first),
    }[period]


def _local(year: int, month: int, day: int) -> datetime:
    # From a naive time, so that the offset is that of the day and not of now: they differ across a clock change.
    return datetime(year, month, day).astimezone()


def chips(scope: PageScope) -> Sequence[tuple[str, str, PageScope]]:
    """Each filter that is set: its name, its value, and the scope without it."""
    return [(name, value, scope.toggled(name, value)) for name, values in scope.filters.items() for value in values]
