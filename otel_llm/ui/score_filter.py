"""Calls by what was thought of them: a filter `score:NAME`, and which calls a score is about."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

from otel_llm.account.engine import Engine, Values

SCORE: Final = "score:"
GOOD: Final = "(value > 0 OR lower(label) = 'good')"
"""Whether a score says that an answer was good."""
NO_SCORES: Final = "scores are kept in the DuckDB store that they were given in: there are none here"

_LIMIT: Final = re.compile(r"\s*(>=|<=|>|<)\s*(\S+)\s*")
_OF_NO_CALL: Final = """NOT EXISTS (SELECT 1 FROM llm_usage AS scored
    WHERE scored.trace_id = llm_scores.trace_id AND scored.span_id = llm_scores.span_id)"""
SUBJECTS: Final = {
    ("trace_id", "span_id"): "llm_scores.span_id IS NOT NULL",
    ("trace_id",): f"(llm_scores.span_id IS NULL OR {_OF_NO_CALL})",
    ("request_id",): "llm_scores.trace_id IS NULL",
}
"""What a call and a score have in common where it is about the call: its span; else, for scores of no call, its trace; or its
request. With the condition on the scores."""


class BadLimit(ValueError):
    """What stands behind `score:NAME=` is neither a limit nor a word: one line for the person who reads it."""


def has_scores(engine: Engine) -> bool:
    """Whether the account has a table of scores: a ClickHouse has none, nor has the backup of an earlier version."""
    return bool(engine.ask("SELECT 1 FROM information_schema.tables WHERE table_name = 'llm_scores' LIMIT 1"))


def scored(name: str, chosen: Sequence[str], engine: Engine, values: Values) -> str:
    """The condition on `llm_usage` for calls with a score of that name that is one of the chosen: above a limit (`>0.5`, `>=1`),
    below it, a word, or none at all (the empty text). Raises `BadLimit`."""
    of_name = f"name = {engine.value(values.add(name))}"
    wanted = [_told(text, engine, values) for text in chosen if text]
    either = [_about(f"{of_name} AND ({' OR '.join(wanted)})")] if wanted else []
    if "" in chosen:
        either.append(f"NOT ({_about(of_name)})")
    return f"({' OR '.join(either)})"


def _told(text: str, engine: Engine, values: Values) -> str:
    limit = _LIMIT.fullmatch(text)
    if limit is None:
        return f"lower(label) = lower({engine.value(values.add(text))})"
    try:
        number = float(limit[2])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadLimit(f"{limit[2][:40]!r} is no number that a score can be above or below")
    return f"value {limit[1]} {number!r}"


def _about(condition: str) -> str:
    """Whether a score for which that holds is about the call."""
    return " OR ".join(
        f"""coalesce(({", ".join(keys)}) IN (SELECT {_keys(keys)} FROM llm_scores
            WHERE {condition} AND {of} AND {" AND ".join(f"{key} IS NOT NULL" for key in keys)}), false)"""
        for keys, of in SUBJECTS.items()
    )


def _keys(keys: Sequence[str]) -> str:
    return f"({', '.join(keys)})" if len(keys) > 1 else keys[0]
