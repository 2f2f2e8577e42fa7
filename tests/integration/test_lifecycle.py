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
