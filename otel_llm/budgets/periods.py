"""When the hour, the day, the week or the month of a moment begins and ends, by the calendar of a time zone.

The periods of a kind follow one another without a gap, whatever the clocks do: a day has 23 or 25 hours where they are changed, and
begins with its first moment, also where there is no midnight. A week begins on Monday.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple

from otel_llm.budgets.rules import Per

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)


class CalendarPeriod(NamedTuple):
    """From `start`, up to and without `end`; both in UTC."""

    start: datetime
    end: datetime


def period(per: Per, moment: datetime, zone: tzinfo | None) -> CalendarPeriod:
    """The period that `moment` (of whatever zone) lies in. `zone` None: local time."""
    if per is Per.hour:
        return _hour(moment, zone)
    bounds = _BOUNDS[per](moment.astimezone(zone).replace(tzinfo=None, fold=0))
    return CalendarPeriod(*(_first_moment(one, zone) for one in bounds))


def _day(local: datetime) -> tuple[datetime, datetime]:
    start = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return start, start + _DAY


def _week(local: datetime) -> tuple[datetime, datetime]:
    start = _day(local)[0] - timedelta(days=local.weekday())
    return start, start + timedelta(days=7)


def _month(local: datetime) -> tuple[datetime, datetime]:
    start = _day(local)[0].replace(day=1)
    return start, (start + timedelta(days=31)).replace(day=1)


_BOUNDS: Final[dict[Per, Callable[[datetime], tuple[datetime, datetime]]]] = {
    Per.day: _day,
    Per.week: _week,
    Per.month: _month,
}
"""Midnights by the clock on the wall."""


def _first_moment(midnight: datetime, zone: tzinfo | None) -> datetime:
    """When the clocks first showed `midnight`, or what they showed instead where they were put forward over it."""
    first, second = (_in_utc(midnight.replace(fold=fold), zone) for fold in (0, 1))
    if first <= second:
        return first
    # The clocks never showed it. They were changed after `second` and at `first` at the latest.
    while first - second > timedelta(seconds=1):
        middle = second + (first - second) / 2
        if _on_the_wall(middle, zone) >= midnight:
            first = middle
        else:
            second = middle
    return first.replace(microsecond=0)


def _in_utc(local: datetime, zone: tzinfo | None) -> datetime:
    if zone is None:  # `astimezone` takes the other offset for what the clocks left out
        return datetime.fromtimestamp(local.timestamp(), UTC)
    return local.replace(tzinfo=zone).astimezone(UTC)


def _on_the_wall(moment: datetime, zone: tzinfo | None) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _hour(moment: datetime, zone: tzinfo | None) -> CalendarPeriod:
    """An hour that comes twice is two. Where clocks are changed by half an hour, the one before the change has ninety minutes."""
    start = moment.astimezone(UTC)
    while past := _past_the_hour(start, zone):
        start -= past
    end = start + _HOUR
    while past := _past_the_hour(end, zone):
        end += _HOUR - past
    return CalendarPeriod(start, end)


def _past_the_hour(moment: datetime, zone: tzinfo | None) -> timedelta:
    local = moment.astimezone(zone)
    return timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
