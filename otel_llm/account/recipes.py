"""Questions in SQL that people ask again and again: for the browser page, for agents, and on docs/sql-recipes.md."""

from __future__ import annotations

from typing import Final, NamedTuple


class Recipe(NamedTuple):
    """A query, and what it answers."""

    title: str
    sql: str
    everywhere: bool = False
    """Whether a ClickHouse answers it, too."""


RECIPES: Final = (
    Recipe(
        "the last calls",
        """\
from llm_usage order by started_at desc limit 5""",
    ),
    Recipe(
        "cost of each week, and what it was in all by then",
        """\
select date_trunc('week', started_at) as week, sum(cost_usd) as usd, sum(sum(cost_usd)) over (order by week) as so_far
from llm_usage group by week order by week""",
    ),
    Recipe(
        "the ten dearest traces, each with everything that it called",
        """\
select trace_id, min(started_at) as began, count(*) as calls, sum(cost_usd) as usd, list(distinct request_model) as models
from llm_usage group by trace_id order by usd desc nulls last limit 10""",
    ),
    Recipe(
        "what share of the input the provider's cache saved, by module",
        """\
select module, sum(cache_read_tokens) / sum(input_tokens) as cached, sum(input_tokens) as input_tokens
from llm_usage group by module order by input_tokens desc""",
    ),
    Recipe(
        "how often what fails, by hour of the day",
        """\
select hour(started_at) as hour, error_type, count(*) as failed
from llm_usage where status = 'error' group by all order by hour""",
    ),
    Recipe(
        "users who spend ten times as much as the median user",
        """\
with users as (select user_id, sum(cost_usd) as usd from llm_usage where user_id is not null group by user_id)
select * from users where usd > 10 * (select median(usd) from users)""",
    ),
    Recipe(
        "conversations that grow: the input of the last call against that of the first",
        """\
select conversation_id, count(*) as calls, arg_min(input_tokens, started_at) as first, arg_max(input_tokens, started_at) as last
from llm_usage where conversation_id is not null group by all having count(*) > 1 order by last desc""",
    ),
    Recipe(
        "which tools agents use, how long they take, how often they fail",
        """\
select tool_name, count(*) as calls, round(median(duration_ms), 1) as median_ms, count(*) filter (status <> 'ok') as not_ok
from llm_tool_calls group by all order by calls desc""",
    ),
    Recipe(
        "where the model that answered is not simply the one that was asked for",
        """\
select provider, request_model, response_model, count(*) as calls
from llm_usage where request_model <> response_model group by all order by calls desc""",
    ),
    Recipe(
        "what has no price, and why",
        """\
select provider, coalesce(response_model, request_model) as model, price_source, count(*) as calls
from llm_usage where cost_usd is null group by all order by calls desc""",
    ),
    Recipe(
        "what was reported, and what is estimated because it was billed and not reported",
        """\
select request_model, sum(cost_usd) filter (usage_source is distinct from 'estimated') as reported_usd,
    sum(cost_usd) filter (usage_source = 'estimated') as estimated_usd
from llm_usage group by all order by reported_usd desc nulls last""",
    ),
    Recipe(
        "cost by day",
        """\
select day, sum(cost_usd) as usd from llm_daily group by day order by day""",
        everywhere=True,
    ),
    Recipe(
        "cost by user and model",
        """\
select user_id, request_model, count(*) as calls, sum(cost_usd) as usd
from llm_usage group by user_id, request_model order by sum(cost_usd) desc nulls last""",
        everywhere=True,
    ),
    Recipe(
        "what fails, and when it did last",
        """\
select error_type, request_model, count(*) as calls, max(started_at) as last_at
from llm_usage where status = 'error' group by error_type, request_model order by count(*) desc""",
        everywhere=True,
    ),
    Recipe(
        "the dearest calls",
        """\
select started_at, request_model, user_id, cost_usd, trace_id
from llm_usage order by cost_usd desc nulls last limit 20""",
        everywhere=True,
    ),
)
"""In the order of their numbers on the page, which has them word for word."""


def page() -> str:
    """All of them, as the page has them."""
    return ";\n\n".join(f"-- {number}. {one.title}\n{one.sql}" for number, one in enumerate(RECIPES, 1)) + "\n"
