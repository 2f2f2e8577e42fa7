"""The life of a run across processes: what a killed program had begun, and `otel-llm tail` beside it."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from tests.conftest import LocalOpenAI, Rows

AGENT = """
import sys
import openai
from otel_llm import chain, llm_context, step, tool

client = openai.OpenAI(max_retries=0)
with llm_context("travel", user_id="ada"), chain("weather-agent", agent=True):
    with step("prepare"), tool("look-up", call_id="call_1"):
        pass
    with step("ask"):
        print("asking", flush=True)
        client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "hi"}])
"""
BEGUN = [
    ("ChainStarted", "weather-agent", "interrupted"),
    ("StepStarted", "prepare", "ok"),
    ("ToolsStarted", "look-up", "ok"),
    ("ToolCompleted", "look-up", "ok"),
    ("StepCompleted", "prepare", "ok"),
    ("StepStarted", "ask", "interrupted"),
    ("ProviderStarted", "slow", "interrupted"),
]


def test_a_program_that_is_killed_has_begun_what_it_had_begun(
    start_instrumented: Any, environment: dict[str, str], openai_server: LocalOpenAI, rows: Rows
) -> None:
    tail = subprocess.Popen(
        ["otel-llm", "tail", "-n", "0"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        program = start_instrumented(AGENT)
        assert program.stdout.readline() == "asking\n"
        openai_server.wait_for(1)
        assert tail.stdout is not None
        assert tail.stderr is not None
        shown = [tail.stdout.readline().split()[2:4] for _ in BEGUN]
        program.kill()
        program.wait()
        assert shown == [[event, name] for event, name, _ in BEGUN]
        tail.send_signal(signal.SIGINT)
        assert tail.wait(120) == 130
        assert tail.stderr.read() == ""
    finally:
        tail.kill()
        tail.communicate()
    found = rows("FROM llm_events")
    assert [(row["event"], row["name"], row["status"]) for row in found] == BEGUN
    assert {(row["user_id"], row["module"]) for row in found} == {("ada", "travel")}
    assert {row["run"] for row in found} == {found[0]["span_id"]}
    (call,) = rows()
    assert (call["status"], call["agent_name"], call["user_id"]) == ("interrupted", "weather-agent", "ada")


def test_names_of_the_enclosing_chain_and_agent(run_instrumented: Any, rows: Rows) -> None:
    run_instrumented("""
import openai
from langchain_openai import ChatOpenAI
from otel_llm import chain

with chain("report"):
    with chain("planner", agent=True):
        openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
    ChatOpenAI(model="gpt-4o-mini").invoke("hi")
""")
    assert [(row["workflow_name"], row["agent_name"]) for row in rows()] == [("report", "planner"), ("report", None)]


def test_without_an_account_events_are_told_all_the_same(run_instrumented: Any, store_path: Any) -> None:
    script = """
import openai
from otel_llm import chain, subscribe

with subscribe(lambda event: print(event.type, event.name)), chain("c"):
    openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
"""
    for variables in ({"OTEL_LLM_STORE": "none"}, {"OTEL_TRACES_SAMPLER": "always_off"}):
        done = run_instrumented(script, env=variables)
        assert done.stdout.split("\n")[:-1] == [
            "ChainStarted c", "ProviderStarted gpt-4o-mini", "ProviderCompleted gpt-4o-mini", "ChainCompleted c",
        ]  # fmt: skip


TRIP = """
import sys
import openai
from otel_llm import chain, llm_context

model, run_id, waits = sys.argv[1], sys.argv[2] or None, sys.argv[3] == "waits"
client = openai.OpenAI(max_retries=0)
with llm_context("travel", user_id="ada"), chain("trip", agent=True, continues=run_id) as run:
    print(run.run_id, flush=True)
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    run.waiting = waits
"""


def test_a_run_goes_on_in_other_processes(
    run_instrumented: Any, start_instrumented: Any, openai_server: LocalOpenAI, rows: Rows, environment: dict[str, str]
) -> None:
    """One that waits, one that is killed in the midst of it, one that ends it: one run."""
    run_id = run_instrumented(TRIP, "gpt-4o-mini", "", "waits").stdout.strip()
    columns = "SELECT status, waiting, parts, len(traces) AS traces, model_calls, input_tokens, cost_usd FROM llm_runs"
    (row,) = rows(columns)
    assert (row["status"], row["waiting"], row["parts"], row["model_calls"]) == ("ok", True, 1, 1)

    killed = start_instrumented(TRIP, "slow", run_id, "waits")
    assert killed.stdout.readline().strip() == run_id
    openai_server.wait_for(1)
    killed.kill()
    killed.wait()
    (row,) = rows(columns)
    assert (row["status"], row["waiting"], row["parts"], row["model_calls"]) == ("interrupted", False, 2, 1)

    assert run_instrumented(TRIP, "gpt-4o-mini", run_id, "done").stdout.strip() == run_id
    (row,) = rows(columns)
    assert (row["status"], row["waiting"], row["parts"], row["traces"]) == ("ok", False, 3, 3)
    answered = [call for call in rows() if call["status"] == "ok"]
    assert len(answered) == row["model_calls"] == 2
    assert row["input_tokens"] == sum(call["input_tokens"] for call in answered)
    assert row["cost_usd"] == sum(call["cost_usd"] for call in answered) > 0
    found = rows("SELECT run, sequence FROM llm_events")
    assert [(one["run"], one["sequence"]) for one in found] == [
        (run_id[-16:], number) for events in (4, 2, 4) for number in range(1, events + 1)
    ]
    shown = subprocess.run(
        ["otel-llm", "show", run_id], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert shown.count("invoke_agent trip") == shown.count("trace ") == 3
    assert "waiting" not in shown
