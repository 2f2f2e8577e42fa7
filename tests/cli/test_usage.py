"""`otel-llm usage`."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from otel_llm.calls import stream_usage
from otel_llm.prices.billing import remedy_for
from otel_llm.settings import reload
from otel_llm.store.merge.rows import _unpriced
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, Run, both_engines

MEASURES = [
    "calls",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached",
    "cost_usd",
    "share",
    "unpriced",
    "estimated_usd",
]

MINI = {"request_model": "gpt-5-mini", "response_model": "gpt-5-mini-2025-08-07", "price_source": "genai-prices"}
ALICE = {**MINI, "user_id": "alice", "input_tokens": 1000, "output_tokens": 100, "cost_usd": "0.000450"}
BOB = {
    **MINI,
    "user_id": "bob",
    "input_tokens": 2000,
    "output_tokens": 50,
    "cache_read_tokens": 1500,
    "cost_usd": "0.000225",
}
AZURE = {
    "request_model": "my-deployment", "user_id": "bob", "provider": "azure.ai.openai", "input_tokens": 10,
    "output_tokens": 1, "price_source": "no price for azure.ai.openai/my-deployment",
}  # fmt: skip
FAILED = {"request_model": "gpt-5-mini", "user_id": "alice", "status": "error", "price_source": "no usage reported"}


def rows(run: Run, *arguments: str) -> list[dict[str, Any]]:
    result = run("usage", *arguments, "--format", "json")
    assert (result.code, result.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


@both_engines
def test_by_model_without_being_asked(fill: Fill, run: Run) -> None:
    fill(ALICE, BOB, AZURE, FAILED)
    assert rows(run) == [
        {"model": "gpt-5-mini", "calls": 3, "errors": 1, "input_tokens": 3000, "output_tokens": 150, "cached": 1500,
         "cost_usd": 0.000675, "share": 1.0, "unpriced": 1, "estimated_usd": None},
        {"model": "my-deployment", "calls": 1, "errors": 0, "input_tokens": 10, "output_tokens": 1, "cached": None,
         "cost_usd": None, "share": None, "unpriced": 1, "estimated_usd": None},
    ]  # fmt: skip


@both_engines
def test_what_is_estimated_stands_beside_the_sums(fill: Fill, run: Run) -> None:
    stopped = {
        **ALICE,
        "status": "partial",
        "usage_source": "estimated",
        "input_tokens": 10,
        "output_tokens": 5,
        "cost_usd": "0.5",
    }
    fill(ALICE, stopped, {**stopped, "user_id": "bob"}, BOB | {"usage_source": "reported"})
    sums = {row["user"]: row for row in rows(run, "--by", "user")}
    for user, cost, asked in (("alice", 0.00045, 1000), ("bob", 0.000225, 2000)):
        assert (sums[user]["calls"], sums[user]["input_tokens"]) == (2, asked)
        assert (sums[user]["cost_usd"], sums[user]["estimated_usd"], sums[user]["unpriced"]) == (cost, 0.5, 0)
    written = run("usage").out
    assert "estimated_usd" in written and "1.0000" in written
    assert "Estimated, and not in these sums: 20 input and 10 output tokens of 2 calls" in written
    assert "estimated" not in run("usage", "--where", "status = 'ok'").out.lower()


@both_engines
def test_by_several_dimensions_the_dearest_first(fill: Fill, run: Run) -> None:
    fill(BOB, ALICE, AZURE, FAILED)
    found = rows(run, "--by", " user , model,user")
    assert list(found[0]) == ["user", "model", *MEASURES]
    assert [(row["user"], row["model"], row["calls"]) for row in found] == [
        ("alice", "gpt-5-mini", 2),
        ("bob", "gpt-5-mini", 1),
        ("bob", "my-deployment", 1),
    ]


@both_engines
def test_every_dimension_finds_its_column(fill: Fill, run: Run) -> None:
    columns = {
        "model": "request_model", "response_model": "response_model", "user": "user_id", "module": "module",
        "provider": "provider", "operation": "operation", "status": "status", "session": "session_id",
        "conversation": "conversation_id", "agent": "agent_name", "workflow": "workflow_name", "profile": "profile",
        "service": "service_name", "server": "server_address",
    }  # fmt: skip
    fill({column: f"the {column}" for column in columns.values()} | {"tags": {"team": "core", "it's": "quoted"}})
    for dimension, column in columns.items():
        assert [row[dimension] for row in rows(run, "--by", dimension)] == [f"the {column}"]
    assert [row["tag:team"] for row in rows(run, "--by", "tag:team")] == ["core"]
    assert [row["tag:it's"] for row in rows(run, "--by", "tag:it's")] == ["quoted"]
    assert [row["tag:none"] for row in rows(run, "--by", "tag:none")] == [None]


@both_engines
def test_a_call_without_a_request_model_goes_by_what_answered(fill: Fill, run: Run) -> None:
    fill({"response_model": "gpt-5-2025-08-07"})
    assert [row["model"] for row in rows(run)] == ["gpt-5-2025-08-07"]


@both_engines
def test_days_and_hours_are_local_and_in_order(fill: Fill, execute: Run) -> None:
    fill(
        {**ALICE, "started_at": "2026-11-21T04:30:00Z", "cost_usd": "9"},  # the evening before, in New York
        {**ALICE, "started_at": "2026-11-20T14:59:59Z"},
        {**ALICE, "started_at": "2026-07-01T03:59:59Z"},  # summer time: four hours
    )
    expected = {
        "day": ["2026-06-30", "2026-11-20"],
        "hour": ["2026-06-30 23:00", "2026-11-20 09:00", "2026-11-20 23:00"],
    }
    for dimension, values in expected.items():
        result = execute("usage", "--by", f"model,{dimension}", "--format", "json", TZ="America/New_York")
        assert [row[dimension] for row in json.loads(result.out)] == values
    result = execute("usage", "--since", "2026-11-20T23:30", "--format", "json", TZ="America/New_York")
    assert [row["calls"] for row in json.loads(result.out)] == [1]


REFUSED = {**FAILED, "price_source": "refused, not billed"}
HIT = {**MINI, "user_id": "alice", "cost_usd": "0", "price_source": "cache hit, not billed"}


@both_engines
def test_what_is_not_billed_is_not_missing(fill: Fill, run: Run) -> None:
    """A refused call is a call and an error, but nothing that the cost lacks; an answer out of a cache is no call."""
    fill(ALICE, FAILED, REFUSED, REFUSED, HIT)
    (found,) = rows(run)
    assert (found["calls"], found["errors"], found["unpriced"]) == (4, 3, 1)
    out = run("usage").out
    assert "Not in the cost: no usage reported (1)" in out
    assert "Not billed: 2 refused, 1 answered out of a cache" in out
    assert "Not billed: 2 refused, 1 answered out of a cache" in run("usage", "--plot").out
    assert [row["calls"] for row in rows(run, "--where", "price_source like 'cache%'")] == [0]


@both_engines
def test_since_and_until(fill: Fill, run: Run) -> None:
    now = datetime.now().astimezone()
    fill(*({**ALICE, "started_at": now - timedelta(hours=hours)} for hours in (1, 3, 100)))
    assert rows(run, "--since", "2h")[0]["calls"] == 1
    assert rows(run, "--until", "2h")[0]["calls"] == 2
    assert rows(run, "--since", "4h", "--until", "2h")[0]["calls"] == 1
    assert rows(run, "--since", "10s") == []
    named = run("usage", "--since", "2026-11-01", "--until", "10d")
    assert named.code == 0


@both_engines
def test_table(fill: Fill, run: Run) -> None:
    fill(ALICE, BOB, AZURE, FAILED)
    result = run("usage", "--by", "model,user")
    assert (result.code, result.err) == (0, "")
    assert [line.rstrip() for line in result.out.splitlines()] == [
        "model          user   calls  errors  input_tokens  output_tokens  cached  cost_usd   share  unpriced",
        "─" * 100,
        "gpt-5-mini     alice      2       1         1,000            100       –  0.000450   66.7%         1",
        "gpt-5-mini     bob        1       0         2,000             50   1,500  0.000225   33.3%         0",
        "my-deployment  bob        1       0            10              1       –         –       –         1",
        "─" * 100,
        "total                     4       1         3,010            151   1,500  0.000675  100.0%         2",
        "Not in the cost: no price for azure.ai.openai/my-deployment (1), no usage reported (1)",
        "No price: enter one in OTEL_LLM_PRICES, or run otel-llm prices update; then otel-llm reprice",
        "No usage: it may have been billed all the same, and the provider's bill alone tells how much",
    ]


@both_engines
def test_what_the_providers_told_stands_apart(fill: Fill, run: Run) -> None:
    told = {**BOB, "cost_usd": "0.5", "price_source": "reported"}
    fill(ALICE, told, told, AZURE)
    cost = ALICE["cost_usd"]
    out = run("usage").out
    assert (
        f"Of the cost 1.0000 is as the providers say (2 calls), {float(cost):.4f} computed from prices (1 call)" in out
    )
    found = {row["price_source"]: row["cost_usd"] for row in rows(run, "--by", "price_source")}
    assert found == {"reported": 1.0, ALICE["price_source"]: float(cost), AZURE["price_source"]: None}
    assert (
        "The cost is as the providers say: 1.0000 of 2 calls"
        in run("usage", "--where", "user_id = 'bob' and cost_usd > 0.1").out
    )
    assert "providers say" not in run("usage", "--where", "user_id = 'alice'").out


def test_every_reason_has_a_remedy() -> None:
    """Those of the merge, and those of the price book."""
    in_sql = re.findall(r"THEN '([^']+)'", _unpriced())
    assert len(in_sql) > 6 and REFUSED["price_source"] in in_sql
    in_sql.remove(REFUSED["price_source"])
    of_the_book = [
        "no model named",
        "no price for openai/m",
        "no flex price for openai/m",
        "price look-up failed: OSError",
    ]
    for reason in [*in_sql, *of_the_book, "no price for images of openai/m", "no reason recorded"]:
        assert remedy_for(reason), reason
        assert len(remedy_for(reason) or "") <= 100
    assert remedy_for("something else") is None


STREAM = {
    **ALICE,
    "time_to_first_chunk_ms": 20.0,
    "server_address": "vllm.local",
    "instrumentation": "otel_llm.instrumentation.openai",
}
UNTOLD = {**STREAM, "input_tokens": None, "output_tokens": None, "cost_usd": None, "price_source": "no usage reported"}


@pytest.mark.parametrize(
    ("mode", "refused", "remedy"),
    [
        ("auto", False, "with OTEL_LLM_STREAM_USAGE=auto, the default, streams are asked from now on"),
        ("never", False, "OTEL_LLM_STREAM_USAGE=never asks for none: unset it"),
        ("auto", True, "vllm.local:8000 refuses stream_options.include_usage"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--plot",)])
def test_streams_without_usage_and_what_to_do(mode, refused, remedy, more, fill, run, monkeypatch, store_path) -> None:
    monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", mode)
    reload()
    fill(UNTOLD, UNTOLD, {**UNTOLD, "server_address": "other.example"}, STREAM, ALICE)
    if refused:
        memory = StorePaths.of(store_path).stream_usage
        memory.parent.mkdir(mode=0o700, exist_ok=True)
        stream_usage.keep_at(memory)
        stream_usage.server("http://vllm.local:8000/v1", "vllm.local:8000").answered_unasked("m", said_so=True)
        stream_usage.save()
        stream_usage.keep_at(None)
    last = run("usage", *more).out.splitlines()[-1]
    assert last.startswith(
        "3 streams came without usage, so without tokens and cost: vllm.local (2), other.example (1); "
    )
    assert remedy in last
    # What other clients made, what was left early, what failed: nobody could have asked it.
    assert "streams" not in run("usage", "--where", "server_address is null").out
    if more:
        return
    report = json.loads(run("doctor", "--json").out)
    (told,) = [remark for remark in report["remarks"] if "streams came without usage" in remark["what"]]
    assert remedy in told["remedy"]
    assert report["instrumentation"]["stream_usage"].startswith(f"{mode} (OTEL_LLM_STREAM_USAGE")
    assert report["store"].get("refuse_stream_usage") == ("vllm.local:8000" if refused else None)


@both_engines
@pytest.mark.parametrize(
    "more",
    [
        {"status": "partial"},
        {"status": "error"},
        {"instrumentation": "otel_llm.instrumentation.langchain"},
        {"operation": "transcription"},
        {"time_to_first_chunk_ms": None},
    ],
)
def test_what_could_not_have_been_asked_is_no_stream_without_usage(more, fill, run) -> None:
    fill({**UNTOLD, **more})
    assert "without usage" not in run("usage").out


@both_engines
def test_a_table_of_priced_calls_does_not_speak_of_prices(fill: Fill, run: Run) -> None:
    fill({**ALICE, "cost_usd": "12.5"}, {**BOB, "cost_usd": "0.00001"}, {**BOB, "user_id": None, "cost_usd": "0"})
    out = run("usage", "--by", "user").out
    assert "unpriced" not in out
    assert "Not in the cost" not in out
    costs = [line.split()[-2] for line in out.splitlines() if "─" not in line]
    assert costs == ["cost_usd", "12.5000", "<0.0001", "0.0000", "12.5000"]


@both_engines
def test_csv(fill: Fill, run: Run) -> None:
    fill(ALICE, AZURE)
    header, first, second = csv.reader(io.StringIO(run("usage", "--format", "csv").out))
    assert header == ["model", *MEASURES]
    assert first == ["gpt-5-mini", "1", "0", "1000", "100", "", "0.00045", "1.0", "0", ""]
    assert second == ["my-deployment", "1", "0", "10", "1", "", "", "", "1", ""]


@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_recorded_yet(is_there: bool, fill: Fill, run: Run, store_path: Path) -> None:
    if is_there:
        fill()
    table, as_json, as_csv = (run("usage", "--format", format) for format in ("table", "json", "csv"))
    assert table.out == (f"No model calls recorded yet in {store_path}. Run: opentelemetry-instrument python app.py\n")
    assert as_json.out == "[]\n"
    assert as_csv.out == f"model,{','.join(MEASURES)}\n"
    assert {(result.code, result.err) for result in (table, as_json, as_csv)} == {(0, "")}
    assert store_path.exists() is is_there


@both_engines
def test_nothing_in_the_time_asked_for_is_said_so(fill: Fill, run: Run) -> None:
    path = fill(ALICE)
    result = run("usage", "--since", "2026-11-21", "--until", "2026-11-22T08:00")
    assert result.out == f"No model calls since 2026-11-21 00:00 and before 2026-11-22 08:00 in {path}.\n"
    assert (result.code, result.err) == (0, "")


@both_engines
@pytest.mark.parametrize("by", ["modl", "", "model,,user", "tag:", "user_id; DROP TABLE llm_usage", "1"])
def test_an_unknown_dimension_is_refused_by_name(by: str, fill: Fill, run: Run) -> None:
    fill(ALICE)
    result = run("usage", "--by", by)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("otel-llm: --by does not know ")
    assert "it takes model, response_model, user," in result.err


@both_engines
def test_what_users_type_into_their_calls_stays_text(fill: Fill, run: Run) -> None:
    fill({**ALICE, "user_id": "[red]'; DROP TABLE llm_usage; --\x1b[2J\n"})
    out = run("usage", "--by", "user").out
    assert r"[red]'; DROP TABLE llm_usage; --\x1b[2J\n" in out
    assert "\x1b" not in out


@both_engines
def test_the_share_is_of_the_cost_or_else_of_the_tokens(fill: Fill, run: Run) -> None:
    fill(ALICE, {**BOB, "cost_usd": "0.00135"}, AZURE)
    assert [row["share"] for row in rows(run, "--by", "user,model")] == [0.75, 0.25, None]
    # Where no cost is known, tokens tell who uses how much.
    assert [row["share"] for row in rows(run, "--by", "user,status", "--where", "cost_usd is null")] == [1.0]
    assert "share is of the tokens" in run("usage", "--where", "cost_usd is null").out


@both_engines
def test_no_share_of_nothing(fill: Fill, run: Run) -> None:
    fill(FAILED, {**FAILED, "user_id": "bob", "cost_usd": "0"})
    assert [row["share"] for row in rows(run, "--by", "user")] == [None, None]
    assert "NaN" not in run("usage", "--by", "user").out


@both_engines
@pytest.mark.parametrize(
    ("sort", "users"),
    [
        ("cost", ["alice", "bob"]),
        ("cost_usd", ["alice", "bob"]),
        ("share", ["alice", "bob"]),
        ("input", ["bob", "alice"]),
        ("tokens", ["bob", "alice"]),
        ("output_tokens", ["alice", "bob"]),
        ("cached", ["bob", "alice"]),  # what is not known comes last
        ("errors", ["alice", "bob"]),
        ("user", ["alice", "bob"]),
    ],
)
def test_sort(sort: str, users: list[str], fill: Fill, run: Run) -> None:
    fill(BOB, ALICE, FAILED)
    assert [row["user"] for row in rows(run, "--by", "user", "--sort", sort)] == users


@both_engines
def test_days_can_be_sorted_by_something_else(fill: Fill, run: Run) -> None:
    fill(ALICE, {**BOB, "started_at": "2026-11-19T12:00:00Z"})
    assert [row["cost_usd"] for row in rows(run, "--by", "day")] == [0.000225, 0.00045]
    assert [row["cost_usd"] for row in rows(run, "--by", "day", "--sort", "cost")] == [0.00045, 0.000225]


@both_engines
def test_top_cuts_the_rows_and_not_the_total(fill: Fill, run: Run) -> None:
    fill(ALICE, BOB, AZURE)
    assert [row["user"] for row in rows(run, "--by", "user", "--top", "1")] == ["alice"]
    lines = run("usage", "--by", "user", "--top", "1").out.splitlines()
    assert lines[4].split()[:4] == ["total", "3", "0", "3,010"]
    assert lines[5] == "the first 1 of 2 rows; the total is of all"
    assert [row["share"] for row in rows(run, "--by", "user", "--top", "1")] == [0.666667]


@both_engines
def test_where(fill: Fill, run: Run) -> None:
    fill({**ALICE, "tags": {"team": "core"}}, BOB, FAILED)
    assert rows(run, "--where", "user_id = 'bob' -- as he asked")[0]["calls"] == 1
    assert rows(run, "--where", "tags['team'] = 'core' or status = 'error'")[0]["calls"] == 2
    assert rows(run, "--by", "tag:team", "--since", "2026-11", "--where", "tags['team'] is not null")[0]["calls"] == 1
    assert rows(run, "--where", "user_id = '?'") == []
    nothing = run("usage", "--where", "false")
    assert (nothing.code, nothing.out[:38]) == (0, "No model calls for which that holds in")
    assert "Not in the cost" not in run("usage", "--where", "status = 'ok'").out


@both_engines
@pytest.mark.parametrize(
    "where",
    [
        "true) or (true", "1; drop table llm_usage", "true union select 1", "true /*", "'", "", "select 1", "modle = 'x'",
        "user_id", "count(*) > 1", "1, 2", "exists (select content from read_text('/etc/hostname'))",
        "$1 = 1", "x as y", "two\nlines",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_in_one_line(where: str, fill: Fill, run: Run) -> None:
    fill(ALICE)
    for command in ("usage", "logs"):
        result = run(command, "--where", where)
        assert (result.code, result.out) == (2, "")
        assert len(result.err.splitlines()) == 1


def plot(run: Run, *arguments: str) -> list[str]:
    result = run("usage", "--plot", *arguments)
    assert (result.code, result.err) == (0, "")
    return result.out.splitlines()


@both_engines
def test_a_plot_is_of_the_cost(fill: Fill, run: Run) -> None:
    fill(ALICE, BOB, {**ALICE, "user_id": "carol", "cost_usd": "0.0000001"}, AZURE | {"user_id": "dora"})
    lines = plot(run, "--by", "user")
    assert lines[0].split() == ["user", "cost_usd"]
    bars = {line.split()[0]: line.split()[2:] for line in lines[1:-3]}
    assert len(bars["alice"][0]) == 2 * len(bars["bob"][0].rstrip("▏▎▍▌▋▊▉")) + (len(bars["alice"][0]) % 2)
    assert bars["carol"] == ["▏"]  # next to nothing, which is not nothing
    assert bars["dora"] == []
    assert max(map(len, lines)) <= 100
    assert lines[-3:-1] == ["total 0.000675", "Not in the cost: no price for azure.ai.openai/my-deployment (1)"]


@both_engines
def test_a_plot_by_several_dimensions_has_its_bars_below_one_another(fill: Fill, run: Run) -> None:
    fill(ALICE, {**BOB, "request_model": "o4"})
    lines = plot(run, "--by", "model,user")[1:-1]
    assert [line.split()[:2] for line in lines] == [["gpt-5-mini", "alice"], ["o4", "bob"]]
    assert len({line.index("█") for line in lines}) == 1


@both_engines
def test_a_plot_of_calls_that_have_no_price_is_of_the_tokens(fill: Fill, run: Run) -> None:
    fill(AZURE)
    assert plot(run)[0].split() == ["model", "tokens"]
    assert plot(run)[1].split()[:2] == ["my-deployment", "11"]


@both_engines
def test_a_plot_of_days_has_those_without_calls_as_well(fill: Fill, run: Run) -> None:
    fill(*({**ALICE, "started_at": f"2026-{day}T12:00:00Z"} for day in ("10-30", "11-02")))
    lines = plot(run, "--by", "day")
    assert [line.split()[0] for line in lines[1:-1]] == ["2026-10-30", "2026-10-31", "2026-11-01", "2026-11-02"]
    assert ["█" in line for line in lines[1:-1]] == [True, False, False, True]
    assert len(plot(run, "--by", "hour")) == 2 + 3 * 24 + 1
    # In another order than that of time there are no gaps.
    assert len(plot(run, "--by", "day", "--sort", "cost")) == 2 + 2
    assert plot(run, "--by", "day", "--top", "1")[-1].endswith("in 2 rows, of which these are the first 1")


@both_engines
def test_a_plot_of_years_of_hours_is_not_filled(fill: Fill, run: Run) -> None:
    fill(ALICE, {**ALICE, "started_at": "2020-01-01T00:00:00Z"})
    assert len(plot(run, "--by", "hour")) == 4


@both_engines
def test_a_plot_of_what_users_type_stays_text(fill: Fill, run: Run) -> None:
    fill({**ALICE, "user_id": "日本" * 30 + "\x1b[2J"}, {**BOB, "user_id": None})
    out = "\n".join(plot(run, "--by", "user"))
    assert "日本" in out
    assert "…" in out
    assert "\x1b" not in out
