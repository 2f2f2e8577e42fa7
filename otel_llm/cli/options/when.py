"""Times as people type them: `2h`, `7d`, `today`, `2026-11-01`. All of them are local times."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

from otel_llm.cli.errors import CommandError

_AGO = re.compile(
    r"(\d+(?:\.\d+)?)\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?|hrs?|d|days?|w|weeks?)", re.IGNORECASE
)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
"""By their first letter."""
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH = re.compile(r"\d{4}-\d{2}")


@dataclass(frozen=True, slots=True)
class Period:
    """What lies between `--since` and `--until`, and the words for it."""

    since: datetime | None = None
    until: datetime | None = None
    """Itself not included."""

    @property
    def words(self) -> str:
        return " and ".join(
            f"{word} {moment:%Y-%m-%d %H:%M}"
            for word, moment in (("since", self.since), ("before", self.until))
            if moment is not None
        )


def period(since_text: str | None, until_text: str | None) -> Period:
    """The time between `--since` and `--until`. Raises `CommandError` for one that cannot be read, and where there is none."""
    now = datetime.now().astimezone()
    found = Period(
        None if since_text is None else since(since_text, now), None if until_text is None else until(until_text, now)
    )
    if found.since is not None and found.until is not None and found.until <= found.since:
        raise CommandError(
            f"there is no time between --since {since_text} ({found.since:%Y-%m-%d %H:%M}) and --until {until_text} "
            f"({found.until:%Y-%m-%d %H:%M})"
        )
    return found


BEFORE = "before"


def compared(since_text: str | None, until_text: str | None, against: str) -> tuple[Period, Period]:
    """The time between `--since` and `--until`, and the one that `--against` names: a day, a week or a month, or `before`, which is
    as long as the first and ends where that begins. Without `--since` the first one begins where the other ends. Raises
    `CommandError`.
    """
    now = datetime.now().astimezone()
    if against.strip().lower() == BEFORE:
        one = period(since_text, until_text)
        if one.since is None:
            raise CommandError(f"--against {BEFORE} is the time before --since, which is not given")
        return one, Period(one.since - ((one.until or now) - one.since), one.since)
    begin, end = _period("--against", against, now)
    if begin == end:
        raise CommandError(
            f"--against {against} is a moment; name a period: yesterday, last-week, last-month, 2026-11, or {BEFORE} for the time "
            "before --since"
        )
    one = period(since_text, until_text)
    return (Period(end, one.until) if one.since is None else one), Period(begin, end)


def since(text: str, now: datetime | None = None) -> datetime:
    """The moment that `--since` names: a day or a month counts from its first moment."""
    return _period("--since", text, now)[0]


def until(text: str, now: datetime | None = None) -> datetime:
    """The moment that `--until` names, itself not included: a day or a month counts to its last moment."""
    return _period("--until", text, now)[1]


def at(text: str) -> datetime:
    """The moment that `--at` names: the first one of a day or a month."""
    return _period("--at", text, None)[0]


def _period(option: str, text: str, now: datetime | None) -> tuple[datetime, datetime]:
    """The first moment of what `text` names and the first one after it; the same where it names a moment."""
    try:
        return _parse(text.strip(), now or datetime.now().astimezone())
    except (ValueError, OverflowError, OSError):
        raise CommandError(
            f"{option} {text!r} is not a time; use 2h, 7d, today, yesterday, monday, last-week, this-month, last-month, 2026-11, "
            "2026-11-01 or 2026-11-01T14:30"
        ) from None


def _parse(text: str, now: datetime) -> tuple[datetime, datetime]:
    if ago := _AGO.fullmatch(text.lower()):
        moment = now - timedelta(**{_UNITS[ago[2][0]]: float(ago[1])})
        return moment, moment
    if text.lower() == "today":
        return _day(now.date())
    if text.lower() == "yesterday":
        return _day(now.date() - timedelta(days=1))
    if text.lower() in _WEEKDAYS:  # the latest one, today included
        return _day(now.date() - timedelta(days=(now.weekday() - _WEEKDAYS.index(text.lower())) % 7))
    if text.lower() in ("this-week", "last-week"):  # from Monday on (ISO 8601)
        monday = now.date() - timedelta(days=now.weekday() + (7 if text.lower() == "last-week" else 0))
        return _midnight(monday), _midnight(monday + timedelta(days=7))
    if text.lower() == "this-month":
        text = f"{now:%Y-%m}"
    if text.lower() == "last-month":
        text = f"{now.date().replace(day=1) - timedelta(days=1):%Y-%m}"
    if _MONTH.fullmatch(text):
        first = date.fromisoformat(f"{text}-01")
        return _midnight(first), _midnight((first + timedelta(days=31)).replace(day=1))
    try:
        day = date.fromisoformat(text)
    except ValueError:
        moment = datetime.fromisoformat(text).astimezone()
        return moment, moment
    return _day(day)


def _day(day: date) -> tuple[datetime, datetime]:
    return _midnight(day), _midnight(day + timedelta(days=1))


def _midnight(day: date) -> datetime:
    # From a naive time, so that the offset is that of this day and not of now: they differ across a clock change.
    return datetime.combine(day, time.min).astimezone()
