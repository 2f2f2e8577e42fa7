"""When hours, days, weeks and months begin and end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_llm.budgets.periods import CalendarPeriod, period
from otel_llm.budgets.rules import Per

CALENDAR = (Per.hour, Per.day, Per.week, Per.month)
TICK = timedelta(microseconds=1)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",  # clocks were put forward at midnight
    "America/Havana",  # clocks are put back at one, to midnight
    "Australia/Lord_Howe",  # by half an hour
    "Asia/Kathmandu",  # 5:45
    "Asia/Beirut",
    "Pacific/Apia",  # a day was left out
    "America/Toronto",  # once, from 23:30 to 00:30
    "Africa/Cairo",
)
MOMENTS = st.datetimes(datetime(1905, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))


def _at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


@given(st.sampled_from(CALENDAR), MOMENTS, st.sampled_from(ZONES))
@example(Per.day, _at("2011-12-30T09:59:59"), "Pacific/Apia")
@example(Per.day, _at("2011-12-30T10:00:00"), "Pacific/Apia")
@example(Per.day, _at("1919-03-31T04:30:00"), "America/Toronto")
@example(Per.hour, _at("2026-04-04T15:15:00"), "Australia/Lord_Howe")
@example(Per.hour, _at("2026-10-03T15:45:00"), "Australia/Lord_Howe")
def test_periods_follow_one_another_without_a_gap(per: Per, moment: datetime, zone_name: str) -> None:
    zone = ZoneInfo(zone_name)
    found = period(per, moment, zone)
    assert found.start <= moment < found.end
    assert period(per, found.start, zone) == found
    assert period(per, found.end - TICK, zone) == found
    assert period(per, found.end, zone).start == found.end
    assert period(per, found.start - TICK, zone).end == found.start


def _transitions(zone: tzinfo, year: int) -> Iterator[datetime]:
    moment = datetime(year, 1, 1, tzinfo=UTC)
    while moment.year == year:
        later = moment + timedelta(minutes=30)
        if later.astimezone(zone).utcoffset() != moment.astimezone(zone).utcoffset():
            yield later
        moment = later


@pytest.mark.parametrize("per", CALENDAR)
@pytest.mark.parametrize("zone_name", ZONES)
def test_around_each_change_of_the_clocks(zone_name: str, per: Per) -> None:
    zone = ZoneInfo(zone_name)
    for year in (1919, 2011, 2017, 2026):
        for change in _transitions(zone, year):
            found = period(per, change - timedelta(hours=26), zone)
            while found.start <= change + timedelta(hours=26):
                following = period(per, found.end, zone)
                assert following.start == found.end
                assert period(per, found.end - TICK, zone) == found
                if per is not Per.hour:
                    # Every moment in it has a date in it.
                    dates = {one.astimezone(zone).date() for one in (found.start, found.end - TICK)}
                    assert following.start.astimezone(zone).date() not in dates
                found = following


@given(MOMENTS, st.sampled_from(ZONES))
def test_what_a_period_is_called(moment: datetime, zone_name: str) -> None:
    zone = ZoneInfo(zone_name)
    local = moment.astimezone(zone)
    day, week, month = (period(per, moment, zone) for per in (Per.day, Per.week, Per.month))
    assert day.start.astimezone(zone).date() == local.date()
    assert week.start.astimezone(zone).isocalendar()[:2] == local.isocalendar()[:2]
    assert (month.start.astimezone(zone).year, month.start.astimezone(zone).month) == (local.year, local.month)


@pytest.mark.parametrize(
    ("per", "moment", "zone", "start", "end"),
    [
        (Per.day, "2026-03-29T12:00", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00"),  # 23 hours
        (Per.day, "2026-10-25T12:00", "Europe/Berlin", "2026-10-24T22:00", "2026-10-25T23:00"),  # 25 hours
        (Per.week, "2026-11-29T23:59", "UTC", "2026-11-23T00:00", "2026-11-30T00:00"),  # a Sunday
        (Per.week, "2026-11-30T00:00", "UTC", "2026-11-30T00:00", "2026-12-07T00:00"),  # a Monday
        (Per.month, "2026-02-28T23:59", "UTC", "2026-02-01T00:00", "2026-03-01T00:00"),
        (Per.month, "2028-02-29T23:59", "UTC", "2028-02-01T00:00", "2028-03-01T00:00"),
        (Per.month, "2026-12-31T23:30", "Europe/Berlin", "2026-11-30T23:00", "2026-12-31T23:00"),
        (Per.hour, "2026-11-29T10:20", "Asia/Kathmandu", "2026-11-29T04:15", "2026-11-29T05:15"),
        (Per.day, "2018-11-04T12:00", "America/Sao_Paulo", "2018-11-04T03:00", "2018-11-05T02:00"),  # begins at 01:00
    ],
)
def test_some_periods(per: Per, moment: str, zone: str, start: str, end: str) -> None:
    assert period(per, _at(moment, zone), ZoneInfo(zone)) == CalendarPeriod(_at(start), _at(end))


def test_an_hour_that_comes_twice_is_two() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first, second = (_at(f"2026-10-25T0{hour}:30") for hour in (0, 1))
    assert first.astimezone(zone).hour == second.astimezone(zone).hour == 2
    assert period(Per.hour, first, zone).end == period(Per.hour, second, zone).start


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the machine's zone cannot be changed here")
@pytest.mark.parametrize("zone_name", ["America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe"])
@pytest.mark.parametrize("per", CALENDAR)
def test_local_time_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, per: Per, zone_name: str) -> None:
    monkeypatch.setenv("TZ", zone_name)
    time.tzset()
    try:
        zone = ZoneInfo(zone_name)
        for change in (_at("2018-11-04T03:00"), _at("2026-03-08T07:00"), _at("2026-04-04T15:00")):
            for minutes in range(-1500, 1500, 15):
                moment = change + timedelta(minutes=minutes)
                assert period(per, moment, None) == period(per, moment, zone)
    finally:
        monkeypatch.undo()
        time.tzset()
