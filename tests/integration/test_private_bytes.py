"""Every byte that is written or sent is searched for what was said: none of it unless asked for, keys and headers never.

One real process talks to the model in every way, hears, speaks and draws, talks over a websocket, runs chains, agents and
retrievers, loses a stream half-way, fails, and is killed in the middle of a call. Each kind of content has a mark of its own, with
a key beside it, which no mode records.
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Rows
from tests.integration.otlp_receiver import OtlpReceiver
from tests.media_server import media_server

SCRIPT = """
import asyncio, base64, logging, os, sys
logging.basicConfig(level=logging.WARNING)
logging.getLogger("otel_llm").setLevel(logging.DEBUG)

import openai
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider

prompt, system, result, header, query, key = (os.environ["MARK_" + name] for name in
    ("PROMPT", "SYSTEM", "RESULT", "HEADER", "QUERY", "KEY"))
mark = lambda name: os.environ["MARK_" + name]
with_key = lambda name: f"{mark(name)} my key is {key}"
encoded = lambda name: base64.b64encode(mark(name).encode()).decode()
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

# What has kinds of its own: each mark stands beside the key, so the redactor has seen it where the mark is and the key is not.
media = openai.OpenAI(base_url=os.environ["MEDIA"], default_headers={"x-mine": header}, default_query={"q": query}, max_retries=0)
sound = ("a.wav", b"RIFF" + mark("SOUND").encode())
for more in ({}, {"response_format": "text"}):
    media.audio.transcriptions.create(model="whisper-1", file=sound, prompt=with_key("HINT"), **more)
list(media.audio.transcriptions.create(model="whisper-1", file=sound, prompt=with_key("HINT"), stream=True))
media.audio.translations.create(model="whisper-1", file=sound)
media.audio.speech.create(model="tts-1", voice="alloy", input=with_key("SPOKEN")).read()
media.images.generate(model="gpt-image-1", prompt=with_key("PICTURE"))
media.images.edit(model="gpt-image-1", image=b"PNG" + mark("DRAWN").encode(), prompt=with_key("PICTURE"))

talk = openai.OpenAI(base_url=os.environ["TALK"], websocket_base_url=os.environ["TALK"].replace("http:", "ws:"))
with talk.realtime.connect(model="gpt-realtime") as connection:
    connection.session.update(session={"type": "realtime", "instructions": with_key("SESSION")})
    content = [{"type": "input_text", "text": with_key("SENT")}, {"type": "input_audio", "audio": encoded("SOUND")}]
    connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    connection.input_audio_buffer.append(audio=encoded("SOUND"))
    connection.response.create()
    while connection.recv().type != "response.done":
        pass
    item = {"type": "function_call_output", "call_id": "c1", "output": with_key("TOOL_SENT")}
    connection.conversation.item.create(item=item)
    connection.response.create()
    while connection.recv().type != "response.done":
        pass

class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(with_key("FOUND"), metadata={"source": mark("SOURCE")})]

Shelf().invoke(with_key("SEARCHED"))
chain = RunnableLambda(lambda given: with_key("CHAIN_OUT")).with_config(run_name="chain")
chain.invoke({"question": with_key("CHAIN_IN"), "n": 1, "scan": b"PNG" + mark("DRAWN").encode()})
list(chain.stream({"question": with_key("CHAIN_STREAM"), "n": 1}))
answer = GenericFakeChatModel(messages=iter([AIMessage(with_key("AGENT_OUT"))]))
create_agent(answer, []).invoke({"messages": [("user", with_key("AGENT_IN"))]})

trace.get_tracer_provider().force_flush()
metrics.get_meter_provider().force_flush()
get_logger_provider().force_flush()
print("running", flush=True)
client.chat.completions.create(model="slow", messages=messages)
"""

SECRETS = ("HEADER", "QUERY", "KEY", "AUTH", "SOUND", "DRAWN")
"""What no mode records. Of sounds and images there is a second form, as base64."""
IN_CALLS = {
    # mark -> the attribute that it is in, where spans have content
    "HINT": "gen_ai.input.messages",
    "HEARD": "gen_ai.output.messages",
    "SPOKEN": "gen_ai.input.messages",
    "PICTURE": "gen_ai.input.messages",
    "SESSION": "gen_ai.system_instructions",
    "SENT": "gen_ai.input.messages",
    "TOOL_SENT": "gen_ai.input.messages",
}
IN_PARTS = {
    # the same, of what runs no model: the conventions have no event for it
    "SEARCHED": "gen_ai.retrieval.query.text",
    "FOUND": "gen_ai.retrieval.documents",
    "SOURCE": "gen_ai.retrieval.documents",
    "CHAIN_IN": "gen_ai.input.messages",
    "CHAIN_STREAM": "gen_ai.input.messages",
    "CHAIN_OUT": "gen_ai.output.messages",
}
IN_BOTH = {"AGENT_IN": "gen_ai.input.messages", "AGENT_OUT": "gen_ai.output.messages"}
"""Of an agent, and of the model that it runs."""
WITH_KEY = {*IN_CALLS, *IN_PARTS, *IN_BOTH} - {"SOURCE"}
SAID = ("PROMPT", "SYSTEM", "RESULT", *IN_CALLS, *IN_BOTH)
NAMES = (*SAID, *IN_PARTS, *SECRETS)


def realtime(sent: dict[str, Any]) -> list[Any]:
    if sent["type"] != "response.create":
        return []
    one = {"id": f"resp_{secrets.token_hex(4)}", "object": "realtime.response", "output": []}
    ended = {**one, "status": "completed", "usage": {"input_tokens": 2, "output_tokens": 1}}
    return [
        {"type": "response.created", "response": {**one, "status": "in_progress"}},
        {"type": "response.done", "response": ended},
    ]


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
    pytest.importorskip("websockets")
    from tests.instrumentation.openai.websocket_server import WebsocketServer

    heard, drawn = f"{marks['HEARD']} my key is {marks['KEY']}", marks["DRAWN"].encode()
    with (
        OtlpReceiver(all_signals=True) as receiver,
        media_server(heard, drawn) as media,
        WebsocketServer(realtime) as talk,
    ):
        environment = {
            "MEDIA": media,
            "TALK": talk.base_url,
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
    sought = [(name, mark.encode()) for name, mark in marks.items()]
    sought += [(name, base64.b64encode(marks[name].encode())) for name in ("SOUND", "DRAWN")]
    found = {(name, where) for name, mark in sought for where, data in everywhere.items() if mark in data}
    assert {(name, where) for name, where in found if name in SECRETS} == set()
    assert {(name, where) for name, where in found if where in ("/v1/metrics", "output")} == set()
    if mode is None:
        assert found == set()
        assert events == []
        return
    assert {name for name, where in found if where == "/v1/logs"} == set(SAID)
    elsewhere = {(name, where) for name, where in found if where != "/v1/logs"}
    if mode == "EVENT_ONLY":
        assert elsewhere == set()
        return
    # Exactly where it should be: in the attributes that hold content, and in the texts of errors.
    for name in (*SAID, *IN_PARTS):
        assert (name, "/v1/traces") in elsewhere
        assert (name, "rows") in elsewhere
        assert any(where.startswith("before: ") and ".journal" in where for said, where in elsewhere if said == name)
    content = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
               "gen_ai.tool.call.arguments", "gen_ai.tool.call.result")  # fmt: skip
    holders: dict[str, set[str]] = {name: set() for name in marks}
    for span in rows("from spans"):
        told = {**span, **json.loads(span["attributes"]), "attributes": None}
        for name, mark in marks.items():
            for holder, value in told.items():
                if mark in str(value):
                    holders[name].add(holder)
                    if name in WITH_KEY:
                        assert "[redacted: api key]" in str(value), (name, holder)
    for name, holder in (IN_CALLS | IN_PARTS | IN_BOTH).items():
        assert holders.pop(name) == {holder}, name
    assert {holder for those in holders.values() for holder in those} == {*content, "events", "status_message"}
    asked = [row for row in table if row["operation"] in ("chat", "text_completion")]
    starts = [marks[name] for name in ("PROMPT", "SENT", "TOOL_SENT", "AGENT_IN")]
    assert all(any(mark in row["input_messages"] for mark in starts) for row in asked)
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
