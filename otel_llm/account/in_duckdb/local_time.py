"""Local time in SQL, for many rows: for each DuckDB asks the calendar, which takes ten times as long as to add an offset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

_MINUTE: Final = 60_000_000
_DAY: Final = 24 * 60 * _MINUTE
_YEAR_1972: Final = 730
_YEAR_2300: Final = 120_529
"""Days since 1970."""

# Which offset holds at first, and each other one with the moment from which it does. Clocks have been changed at whole minutes
# since 1972; where a moment is earlier, or none that a calendar has (infinity), no row is answered.
_OFFSETS: Final = f"""
WITH edges AS (SELECT epoch_us(min({{column}})) // {_DAY} AS first, epoch_us(max({{column}})) // {_DAY} + 1 AS last FROM {{table}}),
day AS (SELECT unnest(range(first, last + 1)) * {_DAY} AS moment FROM edges WHERE first >= {_YEAR_1972} AND last < {_YEAR_2300}),
begun AS (SELECT moment, epoch_us(make_timestamptz(moment)::TIMESTAMP) - moment AS shift FROM day),
changed AS (
    SELECT lag(moment) OVER by_time AS day, lag(shift) OVER by_time AS earlier, shift FROM begun WINDOW by_time AS (ORDER BY moment)
),
minute AS (SELECT day, shift, day + unnest(range(0, {_DAY} + {_MINUTE}, {_MINUTE})) AS moment FROM changed WHERE earlier <> shift)
SELECT min(moment), arg_min(shift, moment) FROM begun HAVING count(*) > 0
UNION ALL
SELECT min(moment), shift FROM minute WHERE epoch_us(make_timestamptz(moment)::TIMESTAMP) - moment = shift GROUP BY day, shift
ORDER BY 1
"""


def local(ask: Callable[[str], Sequence[tuple[Any, ...]]], column: str, table: str) -> str:
    """SQL for the local time, a TIMESTAMP, of each moment in a column: what `column::TIMESTAMP` says, in a tenth of the time."""
    offsets = ask(_OFFSETS.format(column=column, table=table))
    return f"make_timestamp(epoch_us({column}) + {_shift(column, offsets)})" if offsets else f"{column}::TIMESTAMP"


def _shift(column: str, offsets: Sequence[tuple[int, int]]) -> str:
    """What to add, found by halves."""
    if len(offsets) == 1:
        return str(offsets[0][1])
    middle = len(offsets) // 2
    earlier, later = _shift(column, offsets[:middle]), _shift(column, offsets[middle:])
    return f"CASE WHEN epoch_us({column}) < {offsets[middle][0]} THEN {earlier} ELSE {later} END"
