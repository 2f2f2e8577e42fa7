"""Every byte that is written or sent is searched for what was said: none of it unless asked for, keys and headers never.

One real process talks to the model in every way, loses a stream half-way, fails, and is killed in the middle of a call.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Rows
from tests.integration.otlp_receiver import OtlpReceiver

SCRIPT = """
import asyncio, logging, os, sys
logging.basicConfig(level=logging.WARNING)
logging.getLogger("otel_llm").setLevel(logging.DEBUG)

import openai
from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider

prompt, system, result, header, query, key = (os.environ["MARK_" + name] for name in
    ("PROMPT", "SYSTEM", "RESULT", "HEADER", "QUERY", "KEY"))
client = openai.OpenAI(default_headers={"x-mine": header}, default_query={"q": query}, max_retries=0)
MODEL = "gpt-4o-mini"
said = f"{prompt} my key is {key}"
messages = [{"role": "system", "content": system}, {"role": "user", "content": said}]
function = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
tools = [{"type": "function", "function": function}]

client.chat.completions.create(model=MODEL, messages=messages)
client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
for _ in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
    pass
client.chat.completions.with_raw_response.create(model=MODEL, messages=messages).parse()
client.responses.create(model=MODEL, instructions=system, input=said)
for event in client.responses.create(model=MODEL, instructions=system, input=said, stream=True):
    pass
client.completions.create(model="gpt-3.5-turbo-instruct", prompt=said)
client.embeddings.create(model="text-embedding-3-small", input=said)

with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as left:  # early
    next(iter(left))
for bad in ("stream-broken", "stream-error-event"):
    try:
        for _ in client.chat.completions.create(model=bad, messages=messages, stream=True):
            pass
    except Exception:
        pass
for bad in ("error-400-echo", "error-500-echo", "error-html"):
    try:
        client.chat.completions.create(model=bad, messages=messages)
    except openai.APIError:
        pass

@tool
def look(at: str) -> str:
    "Looks."
    if "fail" in at:
        raise ValueError(result + at)
    return result

model = ChatOpenAI(model=MODEL, default_headers={"x-mine": header}, default_query={"q": query})
create_agent(model, [look], system_prompt=system).invoke({"messages": [HumanMessage(said)]})
list(model.stream([SystemMessage(system), HumanMessage(said)]))
asyncio.run(model.ainvoke(said))
GenericFakeChatModel(messages=iter([AIMessage(said)])).invoke([SystemMessage(system), HumanMessage(said)])
try:
    look.invoke({"at": "fail " + prompt})
except ValueError:
    pass

trace.get_tracer_provider().force_flush()
metrics.get_meter_provider().force_flush()
get_logger_provider().force_flush()
print("running", flush=True)
client.chat.completions.create(model="slow", messages=messages)
"""

NAMES = ("PROMPT", "SYSTEM", "RESULT", "HEADER", "QUERY", "KEY", "AUTH")
SECRETS = ("HEADER", "QUERY", "KEY", "AUTH")


@pytest.fixture
def marks() -> dict[str, str]:
    """Random, so that no compression makes another text of one."""
    made = {name: secrets.token_hex(12) for name in NAMES}
    made["KEY"] = f"sk-{made['KEY']}"
    made["AUTH"] = f"sk-{made['AUTH']}"
    return made


@pytest.mark.parametrize("mode", [None, "EVENT_ONLY", "SPAN_AND_EVENT"])
def test_every_byte(
    mode: str | None, marks: dict[str, str], start_instrumented: Any, openai_server: Any, store_path: Path, rows: Rows
) -> None:
    with OtlpReceiver(all_signals=True) as receiver:
        environment = {
            **{f"MARK_{name}": mark for name, mark in marks.items()},
            **receiver.environment("http/protobuf"),
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "otlp",
            "OPENAI_API_KEY": marks["AUTH"],
            "OTEL_LLM_FLUSH_INTERVAL": "1h",  # the journal stays where it can be searched
            **({} if mode is None else {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": mode}),
        }
        process = start_instrumented(SCRIPT, env=environment)
        assert process.stdout.readline() == "running\n", process.communicate()[1]
        openai_server.wait_for(1)
        process.kill()
        printed, logged = process.communicate()
        sent = {path: b"".join(receiver.bodies(path)) for path in ("/v1/traces", "/v1/metrics", "/v1/logs")}
        assert receiver.metrics
        events = receiver.logs
    before = files(store_path)
    table = rows("from llm_usage")
    stored = "\n".join(
        str(row) for kind in ("spans", "llm_usage") for row in rows(f"select t::varchar as row from {kind} t")
    )
    after = files(store_path)
    assert {row["status"] for row in table} >= {"ok", "partial", "error", "interrupted"}

    everywhere = {
        **{f"before: {name}": data for name, data in before.items()},
        **{f"after: {name}": data for name, data in after.items()},
        **sent,
        "rows": stored.encode(),
        "output": (printed + logged).encode(),
    }
    found = {
        (name, where) for name, mark in marks.items() for where, data in everywhere.items() if mark.encode() in data
    }
    assert {(name, where) for name, where in found if name in SECRETS} == set()
    assert {(name, where) for name, where in found if where in ("/v1/metrics", "output")} == set()
    if mode is None:
        assert found == set()
        assert events == []
        return
    assert {name for name, where in found if where == "/v1/logs"} == {"PROMPT", "SYSTEM", "RESULT"}
    elsewhere = {(name, where) for name, where in found if where != "/v1/logs"}
    if mode == "EVENT_ONLY":
        assert elsewhere == set()
        return
    # Exactly where it should be: in the attributes that hold content, and in the texts of errors.
    for name in ("PROMPT", "SYSTEM", "RESULT"):
        assert (name, "/v1/traces") in elsewhere
        assert (name, "rows") in elsewhere
        assert any(where.startswith("before: ") and ".journal" in where for said, where in elsewhere if said == name)
    content = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
               "gen_ai.tool.call.arguments", "gen_ai.tool.call.result")  # fmt: skip
    holders: set[str] = set()
    for span in rows("from spans"):
        for column, value in span.items():
            if column == "attributes":
                for name, held in json.loads(value).items():
                    holders |= {name for mark in marks.values() if mark in str(held)}
            elif any(mark in str(value) for mark in marks.values()):
                holders.add(column)
    assert holders == {*content, "events", "status_message"}
    asked = [row for row in table if row["operation"] in ("chat", "text_completion")]
    assert all(marks["PROMPT"] in row["input_messages"] for row in asked)
    (killed,) = [row for row in table if row["status"] == "interrupted"]
    assert killed["output_messages"] is None
    assert all(row["input_messages"] is None for row in table if row["operation"] == "embeddings")


def files(store_path: Path) -> dict[str, bytes]:
    """Every file of the store: database, write-ahead log, lock, journal, what was put aside."""
    found = {
        str(file.relative_to(store_path.parent)): file.read_bytes()
        for path in store_path.parent.glob(f"{store_path.name}*")
        for file in (path.rglob("*") if path.is_dir() else [path])
        if file.is_file()
    }
    assert found
    return found
