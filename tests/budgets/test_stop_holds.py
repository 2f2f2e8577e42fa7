"""That stop holds: over processes, their deaths and forks, periods, and what the account says afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LocalOpenAI, Rows, Run, command
from tests.fleet import clickhouse_server

PRICE = '[[price]]\nmodel = "*"\ninput = {0}\noutput = {0}\n'
HEAD = '[[budget]]\nname = "all"\naction = "stop"\nthresholds = [10]\n'
"""Nobody is told of what is spent: what is written to stderr fails a test."""
PROCESSES, TASKS = 8, 50

ASK = """
import openai, otel_llm
client = openai.OpenAI(max_retries=0)
def ask(words="words-20", **more):
    more = {"max_tokens": 40, **more}
    return client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}],
        extra_headers={"x-local-behaviour": words}, **more)
"""


class Budgets:
    """The files of a test, and the environment that names them."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self.price(1000)

    def price(self, usd: float) -> None:
        """USD per million tokens, of whatever model."""
        (self._directory / "prices.toml").write_text(PRICE.format(usd))

    def env(self, text: str) -> dict[str, str]:
        (self._directory / "budgets.toml").write_text(f"{HEAD}{text}\n")
        files = {"OTEL_LLM_BUDGETS": "budgets.toml", "OTEL_LLM_PRICES": "prices.toml"}
        return {**self._environment, **{name: str(self._directory / file) for name, file in files.items()}}


@pytest.fixture
def budgets(tmp_path: Path, environment: dict[str, str]) -> Budgets:
    return Budgets(tmp_path, environment)


def billed(server: LocalOpenAI, usd: float = 1000) -> Decimal:
    """What the server has billed, in USD."""
    tokens = sum((call.input_tokens or 0) + (call.output_tokens or 0) for call in server.ledger)
    return Decimal(tokens) * Decimal(str(usd)) / 1_000_000


# --- overshoot ---------------------------------------------------------------------------------------------------------
CROWD = """
import asyncio, json, sys
import openai, otel_llm
client = openai.AsyncOpenAI(max_retries=0, timeout=120)
more = json.loads(sys.argv[1])
async def work(number):
    n = 0
    while True:
        try:
            await client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}],
                extra_headers={"x-local-behaviour": f"words-{10 if (number + n) % 2 else 60}"}, **more)
            n += 1
        except otel_llm.BudgetExceeded as error:
            if not error.reserved or "max_tokens" in more:
                return n
            await asyncio.sleep(0.2)  # calls that run may leave something of what is set aside for them
async def main():
    return sum(await asyncio.gather(*(work(number) for number in range(TASKS))))
print("ready", flush=True)
sys.stdin.readline()
print(asyncio.run(main()))
""".replace("TASKS", str(TASKS))


def crowd(budgets: Budgets, directory: Path, text: str, processes: int = PROCESSES, **more: Any) -> int:
    """So many processes with so many calls at once, all from one moment on, until each call is refused. How many were answered."""
    env = budgets.env(text)
    line = [*command(CROWD, directory), json.dumps(more)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(line, env=env, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes
    return sum(map(int, answers))


def test_with_max_tokens_eight_processes_of_fifty_calls_overshoot_by_nothing(
    budgets: Budgets, openai_server: LocalOpenAI, tmp_path: Path, rows: Rows
) -> None:
    """Each call is set aside with the most that it can cost. Unbounded, the first round alone would cost more than the limit."""
    answered = crowd(budgets, tmp_path, 'limit_usd = 1\nper = "month"\nfail = "closed"', max_tokens=64)
    assert len(openai_server.ledger) == answered
    each = billed(openai_server) / answered
    assert each * PROCESSES * TASKS > 1
    most = Decimal(64 + 64) / 1000  # what one call sets aside at most: the answer, and a request of five characters
    assert 1 - most < billed(openai_server) <= 1
    (told,) = rows("select sum(cost_usd) as usd, count(*) filter (status = 'ok') as ok from llm_usage")
    assert told == {"usd": billed(openai_server), "ok": answered}
    assert rows("select count(*) as n from llm_usage where status = 'refused' and cost_usd is null")[0]["n"] > 0


def test_without_max_tokens_the_overshoot_is_what_calls_in_flight_cost_beyond_what_was_expected(
    budgets: Budgets, openai_server: LocalOpenAI, tmp_path: Path
) -> None:
    answered = crowd(budgets, tmp_path, 'limit_usd = 1\nper = "month"\nfail = "closed"', 3)
    largest = max((call.input_tokens or 0) + (call.output_tokens or 0) for call in openai_server.ledger)
    smallest = min((call.input_tokens or 0) + (call.output_tokens or 0) for call in openai_server.ledger)
    beyond = Decimal(largest - smallest) / 1000 * 3 * TASKS
    assert answered == len(openai_server.ledger) > 0
    assert billed(openai_server) <= 1 + beyond


def test_calls_and_tokens_are_exact_too(budgets: Budgets, openai_server: LocalOpenAI, tmp_path: Path) -> None:
    assert crowd(budgets, tmp_path, 'limit_calls = 70\nper = "month"\nfail = "closed"', 3, max_tokens=8) == 70
    assert len(openai_server.ledger) == 70


# --- the account -------------------------------------------------------------------------------------------------------
ONE_BY_ONE = (
    ASK
    + """
n = 0
try:
    for _ in range(MOST):
        ask(**MORE)
        n += 1
except otel_llm.BudgetExceeded as error:
    print(n, "refused", error.budget, error.unit, error.spent, error.limit, error.resets_at is not None)
else:
    print(n)
"""
)


def one_by_one(most: int = 50, more: str = "{}") -> str:
    return ONE_BY_ONE.replace("MOST", str(most)).replace("MORE", more)


def test_calls_made_before_there_was_a_budget_count(
    run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI, tmp_path: Path
) -> None:
    plain = {"OTEL_LLM_PRICES": str(tmp_path / "prices.toml")}
    assert run_instrumented(one_by_one(10), env=plain).stdout.split() == ["10"]
    spent = billed(openai_server)
    said = run_instrumented(one_by_one(), env=budgets.env(f'limit_usd = {spent}\nper = "day"\nfail = "closed"')).stdout
    assert said.split()[:4] == ["0", "refused", "all", "usd"]
    assert Decimal(said.split()[4]) == spent
    assert len(openai_server.ledger) == 10


def test_each_process_goes_on_from_where_the_last_one_was(
    run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI
) -> None:
    env = budgets.env('limit_calls = 10\nper = "day"\nfail = "closed"')
    assert run_instrumented(one_by_one(7), env=env).stdout.split() == ["7"]
    assert run_instrumented(one_by_one(7), env=env).stdout.split()[:2] == ["3", "refused"]
    assert len(openai_server.ledger) == 10


@pytest.mark.parametrize("damage", ["missing", "cut", "overwritten"])
def test_counters_that_are_lost_are_made_again_from_the_account(
    run_instrumented: Run, budgets: Budgets, store_path: Path, damage: str
) -> None:
    env = budgets.env('limit_calls = 10\nper = "day"\nfail = "closed"')
    assert run_instrumented(one_by_one(7), env=env).stdout.split() == ["7"]
    ledger = store_path.with_name(store_path.name + ".budgets") / "ledger"
    match damage:
        case "missing":
            ledger.unlink()
        case "cut":
            os.truncate(ledger, 700)
        case "overwritten":
            ledger.write_bytes(b"\xff" * ledger.stat().st_size)
    assert run_instrumented(one_by_one(7), env=env).stdout.split()[:2] == ["3", "refused"]


def test_another_price_counts_when_the_account_is_read_again(
    run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI
) -> None:
    env = budgets.env('limit_usd = 1\nper = "day"\nfail = "closed"')
    assert run_instrumented(one_by_one(5), env=env).stdout.split() == ["5"]
    budgets.price(20_000)
    run_instrumented(["otel-llm", "reprice", "--all"], env=env, instrument=False)
    said = run_instrumented(WAITS_FOR_A_READING, env=env).stdout.split()
    assert said == ["refused", str(billed(openai_server, 20_000).normalize())]


WAITS_FOR_A_READING = (
    ASK
    + """
from otel_llm.budgets.stop import stopping
stopping._rebasing.read()
try:
    ask()
    print("sent")
except otel_llm.BudgetExceeded as error:
    print("refused", error.spent.normalize())
"""
)


def test_each_value_has_its_own_limit(run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI) -> None:
    script = (
        ASK
        + """
for user in ("ann", "ann", "bob", "ann", "bob", None):
    try:
        with otel_llm.llm_context(user_id=user):
            ask()
        print(user, "sent")
    except otel_llm.BudgetExceeded as error:
        print(error.key, "refused")
"""
    )
    env = budgets.env('limit_calls = 2\nper = "day"\neach = "user_id"\nwhere = { user_id = ["ann", "bob"] }')
    said = run_instrumented(script, env=env).stdout.split("\n")
    assert said == ["ann sent", "ann sent", "bob sent", "ann refused", "bob sent", "None sent", ""]


def test_a_run_has_its_own_limit(run_instrumented: Run, budgets: Budgets) -> None:
    script = (
        ASK
        + """
for name in ("one", "two"):
    with otel_llm.chain(name):
        for _ in range(3):
            try:
                ask()
                print(name, "sent")
            except otel_llm.BudgetExceeded:
                print(name, "refused")
"""
    )
    said = run_instrumented(script, env=budgets.env('limit_calls = 2\nper = "trace"')).stdout.split("\n")
    assert said == [*["one sent"] * 2, "one refused", *["two sent"] * 2, "two refused", ""]


def test_the_period_rolls_over(run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI) -> None:
    script = (
        ASK
        + """
import time
from datetime import UTC, datetime, timedelta
from otel_llm.budgets.stop import gatekeeper
real = time.time_ns
def sent():
    try:
        ask()
        return True
    except otel_llm.BudgetExceeded as error:
        return error.resets_at
print(sent(), sent(), end=" ")
resets_at = sent()
class Later:
    @staticmethod
    def time_ns():
        return int(resets_at.timestamp()) * 10**9 + 1
gatekeeper.time = Later
print(sent(), sent(), sent() - resets_at)
"""
    )
    said = run_instrumented(script, env=budgets.env('limit_calls = 2\nper = "hour"')).stdout.strip()
    assert said == "True True True True 1:00:00"


# --- the end of a process ----------------------------------------------------------------------------------------------
def test_what_a_killed_process_had_set_aside_is_free_again(
    run_instrumented: Run, start_instrumented: Any, budgets: Budgets, openai_server: LocalOpenAI
) -> None:
    env = budgets.env('limit_usd = 0.1\nper = "day"\nfail = "closed"')  # room for one call of 80 tokens
    running = start_instrumented(ASK + 'ask("slow", max_tokens=60)', env=env)
    openai_server.wait_for(1)
    said = run_instrumented(one_by_one(1, "{'max_tokens': 60}"), env=env).stdout.split()
    assert said[:2] == ["0", "refused"]
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert run_instrumented(one_by_one(1, "{'max_tokens': 60}"), env=env).stdout.split() == ["1"]


def test_a_living_process_hears_of_the_death(
    start_instrumented: Any, budgets: Budgets, openai_server: LocalOpenAI
) -> None:
    env = budgets.env('limit_usd = 0.1\nper = "day"\nfail = "closed"')
    survivor = start_instrumented(
        ASK
        + """
import sys
for _ in sys.stdin:
    try:
        ask(max_tokens=60)
        print("sent", flush=True)
    except otel_llm.BudgetExceeded:
        print("refused", flush=True)
""",
        env=env,
    )
    running = start_instrumented(ASK + 'ask("slow", max_tokens=60)', env=env)
    openai_server.wait_for(1)

    def ask() -> str:
        survivor.stdin.write("\n")
        survivor.stdin.flush()
        return str(survivor.stdout.readline().strip())

    assert ask() == "refused"
    running.kill()
    running.wait()
    until = time.monotonic() + 20
    while (said := ask()) == "refused" and time.monotonic() < until:
        pass
    assert said == "sent"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_counts_for_itself_and_with_its_parent(
    run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI
) -> None:
    script = (
        ASK
        + """
import os
ask(); ask()
child = os.fork()
if not child:
    n = 0
    try:
        while True:
            ask(); n += 1
    except otel_llm.BudgetExceeded:
        pass
    os._exit(n)
n = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
try:
    ask()
    print("sent")
except otel_llm.BudgetExceeded:
    print(n, "refused")
"""
    )
    env = budgets.env('limit_calls = 7\nper = "day"\nfail = "closed"')
    # From Python 3.12 on it warns of a fork beside threads.
    assert run_instrumented(script, env=env, stderr=r"fork\(").stdout.split() == ["5", "refused"]
    assert len(openai_server.ledger) == 7


def test_many_threads_share_what_is_left(run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI) -> None:
    script = (
        ASK
        + """
from concurrent.futures import ThreadPoolExecutor
def one(_):
    try:
        ask()
        return 1
    except otel_llm.BudgetExceeded:
        return 0
with ThreadPoolExecutor(16) as pool:
    print(sum(pool.map(one, range(64))))
"""
    )
    env = budgets.env('limit_calls = 21\nper = "day"\nfail = "closed"')
    assert run_instrumented(script, env=env).stdout.split() == ["21"]
    assert len(openai_server.ledger) == 21


# --- no account --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("fail", "said"), [("open", ["1"]), ("closed", ["0", "refused"])])
@pytest.mark.parametrize("why", ["turned off", "unreadable"])
def test_where_the_account_cannot_be_read_the_budget_says_what_happens(
    run_instrumented: Run,
    budgets: Budgets,
    openai_server: LocalOpenAI,
    store_path: Path,
    fail: str,
    said: list[str],
    why: str,
) -> None:
    env = budgets.env(f'limit_usd = 1\nper = "day"\nfail = "{fail}"')
    if why == "turned off":
        env["OTEL_LLM_STORE"] = "none"
    else:
        store_path.write_bytes(b"no database at all")
    done = run_instrumented(one_by_one(1), env=env, stderr=".")
    assert done.stdout.split()[: len(said)] == said
    assert done.stderr.count("cannot be read, so") == 1
    assert len(openai_server.ledger) == int(said[0])


def test_what_is_counted_stops_calls_also_where_the_account_cannot_be_read(
    run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI, store_path: Path
) -> None:
    store_path.write_bytes(b"no database at all")
    done = run_instrumented(one_by_one(9), env=budgets.env('limit_calls = 3\nper = "day"'), stderr=".")
    assert done.stdout.split()[:2] == ["3", "refused"]
    assert len(openai_server.ledger) == 3


# --- several machines --------------------------------------------------------------------------------------------------
def test_what_another_machine_has_spent_counts_once_it_is_shipped(
    run_instrumented: Run, budgets: Budgets, openai_server: LocalOpenAI, clickhouse: str, tmp_path: Path
) -> None:
    clickhouse_server.empty(clickhouse)
    shared = {**budgets.env('limit_calls = 6\nper = "day"\nfail = "closed"'), "OTEL_LLM_STORE": clickhouse}
    one, other = ({**shared, "XDG_DATA_HOME": str(tmp_path / name)} for name in ("one", "other"))
    kept = "the account is kept in"
    assert run_instrumented(one_by_one(4), env=one, stderr=kept).stdout.split() == ["4"]
    (store,) = (tmp_path / "one").rglob("usage.duckdb")
    ship = ["otel-llm", "ship", "--store", str(store), "--to", clickhouse, "--once"]
    run_instrumented(ship, env=one, instrument=False, stderr=".")
    assert run_instrumented(one_by_one(9), env=other, stderr=kept).stdout.split()[:2] == ["2", "refused"]
    assert len(openai_server.ledger) == 6


# --- prices ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("unpriced", "sent", "log"),
    [('"ignore"', "3", "count nothing"), ('"block"', "0", None), ("1000", "2", None)],
)
def test_calls_without_a_price(
    run_instrumented: Run, budgets: Budgets, unpriced: str, sent: str, log: str | None
) -> None:
    env = budgets.env(f'limit_usd = 0.09\nper = "day"\nfail = "closed"\nunpriced = {unpriced}')
    env["OTEL_LLM_PRICES"] = ""
    script = one_by_one(3, "{'max_tokens': 30}").replace('"gpt-4o-mini"', '"nobody-knows-it"')
    done = run_instrumented(script, env=env, stderr=".")
    assert done.stdout.split()[0] == sent
    assert done.stderr.count("count nothing") == (log is not None)
