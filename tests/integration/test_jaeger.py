"""What Jaeger's GenAI View reads, our spans carry: checked over OTLP always, and in a real Jaeger where `JAEGER_BIN` names one."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_llm.conventions import dialects, semconv
from tests.conftest import EXAMPLES, ROOT, Run
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol, ReceivedSpan
from tests.integration.ports import free_ports

CONFIGURATION = ROOT / "collector-config" / "jaeger.yaml"
SERVICE = "jaeger-test"
OURS = {"OTEL_SERVICE_NAME": SERVICE}

# The names in jaeger-ui, packages/jaeger-ui/src/components/TracePage/TraceTimelineViewer/SpanDetail/GenAITab/genAiData.ts and
# src/constants/span-attributes.ts, as of Jaeger 2.20. Written out, not taken from semconv: the test is that both sides agree.
NAMESPACE = "gen_ai."
"""A span with any attribute of it has a GenAI tab; a trace with such a span opens in the GenAI View."""
SECTION: dict[str, type] = {
    "gen_ai.operation.name": str,
    "gen_ai.provider.name": str,
    "gen_ai.request.model": str,
    "gen_ai.response.model": str,
}
TOKENS: dict[str, type] = {
    "gen_ai.usage.input_tokens": int,
    "gen_ai.usage.output_tokens": int,
    "gen_ai.usage.cache_read.input_tokens": int,
    "gen_ai.usage.reasoning.output_tokens": int,
}
TOOL: dict[str, type] = {
    "gen_ai.operation.name": str,
    "gen_ai.tool.name": str,
    "gen_ai.tool.call.id": str,
}
READ_ELSEWHERE = {
    semconv.CACHE_WRITE_TOKENS: "gen_ai.usage.cache_creation.input_tokens",
}
"""What Jaeger 2.20 still reads by its older name: ours stands under "Other GenAI Attributes", with its value."""
READ_LATER = {
    "gen_ai.agent.name",
    "gen_ai.usage.cache_write.input_tokens",
    "gen_ai.usage.audio.input_tokens",
    "gen_ai.usage.audio.output_tokens",
    "gen_ai.usage.image.input_tokens",
    "gen_ai.usage.image.output_tokens",
}
"""What has a row of its own in a later state of jaeger-ui (genAiData.test.ts at 01cc788)."""
ICONS = {
    "chat": "LLM call",
    "text_completion": "LLM call",
    "embeddings": "LLM call",
    "execute_tool": "Tool call",
    "invoke_agent": "Agent",
    "invoke_workflow": "Agent",
    "retrieval": "Retrieval",
}
"""By operation (src/utils/genai/detect.ts). Every other one has the icon "GenAI span"."""
ROLES = {"system", "user", "assistant", "tool"}
"""A message of any other role is shown under the heading "message"."""
PARTS: dict[str, tuple[str, ...]] = {
    "text": ("content",),
    "reasoning": ("content",),
    "tool_call": ("name", "arguments"),
    "tool_call_response": ("response",),
    "server_tool_call": ("name", "server_tool_call"),
    "server_tool_call_response": ("server_tool_call_response",),
    "blob": ("modality",),
    "file": ("modality", "file_id"),
    "uri": ("modality", "uri"),
}
"""The fields that are read of a part, by its type; one of another type is shown as JSON. 2.20 reads no `file_id` and no `uri`."""

MODEL_CALLS = """
    import openai

    client = openai.OpenAI(max_retries=0)
    question = [{"role": "user", "content": "How many sheep are there? " * 20}]
    client.chat.completions.create(model="gpt-5-mini", messages=question, reasoning_effort="low")
    for _ in client.chat.completions.create(
        model="gpt-5-mini", messages=question, reasoning_effort="low", stream=True, stream_options={"include_usage": True}
    ):
        pass
    client.responses.create(model="gpt-5-mini", input="How many?", reasoning={"effort": "low"})
"""

CONTENT_CALLS = """
    import openai

    from otel_llm import chain, step, tool

    @tool
    def divide(a, b):
        return a / b

    @tool
    def forecast(city):
        return {"city": city, "days": [21, 18]} if city == "Lisbon" else "no forecast"

    client = openai.OpenAI(max_retries=0)
    with chain("answer"), step("look"):
        client.embeddings.create(model="text-embedding-3-small", input="sheep")
        forecast("Lisbon")
        forecast("Atlantis")
        try:
            divide(1, 0)
        except ZeroDivisionError:
            pass
        client.chat.completions.create(model="gpt-4o-mini", messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [
                {"type": "text", "text": "How many sheep?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/sheep.png?signature=secret"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                {"type": "file", "file": {"file_id": "file-1"}},
            ]},
            {"role": "assistant", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "count", "arguments": '{"what": "sheep"}'}},
            ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "17"},
        ])
        client.responses.create(model="gpt-5-mini", instructions="Count.", input=[
            {"role": "user", "content": "How many goats?"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Goats, then."}]},
            {"type": "code_interpreter_call", "id": "ci_1", "status": "completed", "container_id": "c", "code": "6 * 7",
             "outputs": [{"type": "logs", "logs": "42"}]},
        ])
"""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def missing(span: ReceivedSpan, wanted: dict[str, type]) -> list[str]:
    """The attributes that the span has not, or not as that type: `True` is no number."""
    return [name for name, kind in wanted.items() if type(span.attributes.get(name)) is not kind]


def by_operation(spans: list[ReceivedSpan]) -> dict[str, list[ReceivedSpan]]:
    found: dict[str, list[ReceivedSpan]] = {}
    for span in spans:
        found.setdefault(span.attributes.get("gen_ai.operation.name", ""), []).append(span)
    return found


def test_the_names_that_jaeger_reads_are_ours() -> None:
    ours = {value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
    assert {*SECTION, *TOKENS, *TOOL} <= ours
    # The content that capture records has the names of its Conversation and Tool Call sections.
    assert {
        "gen_ai.system_instructions",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.tool.call.arguments",
        "gen_ai.tool.call.result",
    } <= ours
    assert ours >= READ_LATER
    # An older name is one that others write too, so the account knows it.
    for name, older in READ_ELSEWHERE.items():
        assert older in dialects.ALIASES[name]


def test_model_calls_carry_what_jaeger_shows(receiver: OtlpReceiver, run_instrumented: Run) -> None:
    run_instrumented(textwrap.dedent(MODEL_CALLS), env={**OURS, **receiver.environment("grpc")})

    assert set(by_operation(receiver.spans)) == {"chat"}
    assert len(receiver.spans) == 3
    for span in receiver.spans:
        assert missing(span, SECTION | TOKENS) == [], span.attributes
        assert span.attributes["gen_ai.usage.reasoning.output_tokens"] > 0
        assert span.kind == "CLIENT"
        # Nothing of a message leaves the process unasked: Jaeger shows no conversation.
        assert "sheep" not in json.dumps(span.attributes)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_agents_trace_carries_what_jaeger_shows(
    protocol: Protocol, receiver: OtlpReceiver, run_instrumented: Run
) -> None:
    pytest.importorskip("langchain_openai")
    run_instrumented(EXAMPLES / "agent.py", env={**OURS, **receiver.environment(protocol)})

    spans = receiver.spans
    assert len({span.trace_id for span in spans}) == 1
    for span in spans:
        assert any(name.startswith(NAMESPACE) for name in span.attributes), span.name
    operations = by_operation(spans)
    assert {operation: len(spans) for operation, spans in operations.items()} == {
        "invoke_agent": 1,
        "chat": 2,
        "execute_tool": 1,
    }
    for span in operations["chat"]:
        wanted = dict.fromkeys(set(TOKENS) - {"gen_ai.usage.reasoning.output_tokens"}, int)
        assert missing(span, SECTION | wanted) == [], span.attributes
    (tool,) = operations["execute_tool"]
    assert missing(tool, TOOL) == [], tool.attributes
    assert (tool.name, tool.attributes["gen_ai.tool.name"]) == ("execute_tool weather", "weather")
    (agent,) = operations["invoke_agent"]
    assert missing(agent, {"gen_ai.operation.name": str, "gen_ai.agent.name": str}) == []
    assert (agent.name, agent.parent_span_id) == ("invoke_agent weather-agent", None)


def conversation(span: ReceivedSpan) -> list[tuple[str, list[Any]]]:
    """The messages in the order that Jaeger shows them: role, and what it reads of each part. KeyError where a field is missing."""

    def read(part: dict[str, Any]) -> Any:
        values = [part[field] for field in PARTS[part["type"]]]
        return values[0] if len(values) == 1 else tuple(values)

    attributes = span.attributes
    instructions = [{"role": "system", "parts": json.loads(attributes.get("gen_ai.system_instructions", "[]"))}]
    messages = [message for message in instructions if message["parts"]]
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        messages += json.loads(attributes.get(name, "[]"))
    return [(message["role"], [read(part) for part in message["parts"]]) for message in messages]


def test_content_has_the_shape_that_jaeger_shows(receiver: OtlpReceiver, run_instrumented: Run) -> None:
    capture = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY"}
    run_instrumented(textwrap.dedent(CONTENT_CALLS), env={**OURS, **capture, **receiver.environment("grpc")})

    operations = by_operation(receiver.spans)
    # A step is none of the conventions' operations.
    assert operations.keys() - ICONS.keys() == {"step"}
    assert operations.keys() & ICONS.keys() == {"invoke_workflow", "embeddings", "execute_tool", "chat"}

    chat, response = sorted(operations["chat"], key=lambda span: span.start_ns)
    *asked, (role, (answer,)) = conversation(chat)
    assert asked == [
        ("system", ["Be brief."]),
        ("developer", ["Be kind."]),
        ("user", ["How many sheep?", ("image", "https://example.com/sheep.png"), "image", ("document", "file-1")]),
        ("assistant", [("count", {"what": "sheep"})]),
        ("tool", ["17"]),
    ]
    assert role == "assistant"
    assert isinstance(answer, str)
    assert {role for role, _ in asked} - ROLES == {"developer"}

    *asked, (role, (answer,)) = conversation(response)
    assert asked[:3] == [
        ("system", ["Count."]),
        ("user", ["How many goats?"]),
        ("assistant", ["Goats, then."]),
    ]
    ((ran, (call, result)),) = asked[3:]
    assert (ran, call[0], call[1]["code"]) == ("assistant", "code_interpreter", "6 * 7")
    assert result["outputs"]
    assert (role, isinstance(answer, str)) == ("assistant", True)

    # Arguments and results are shown as a tree where they begin like JSON's objects and lists, else as they stand.
    tools = sorted(operations["execute_tool"], key=lambda span: span.start_ns)
    names = ("gen_ai.tool.name", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result")
    assert [[span.attributes.get(name) for name in names] for span in tools] == [
        ["forecast", '{"city":"Lisbon"}', '{"city":"Lisbon","days":[21,18]}'],
        ["forecast", '{"city":"Atlantis"}', "no forecast"],
        ["divide", '{"a":1,"b":0}', None],
    ]
    assert [(span.status_code, span.status_message) for span in tools[1:]] == [
        ("UNSET", ""),
        ("ERROR", "division by zero"),
    ]


# --- a real Jaeger ---------------------------------------------------------------------------------------------------


class Jaeger:
    """A Jaeger process with `collector-config/jaeger.yaml` on free ports, and its API."""

    def __init__(self, binary: str, directory: Path, **settings: str) -> None:
        names = ("JAEGER_GRPC_PORT", "JAEGER_HTTP_PORT", "JAEGER_UI_PORT", "JAEGER_API_PORT", "JAEGER_HEALTH_PORT")
        self._ports = dict(zip(names, free_ports(5), strict=True))
        environment = {**os.environ, **{name: str(port) for name, port in self._ports.items()}, **settings}
        self._log = (directory / "jaeger.log").open("w+")
        self._process = subprocess.Popen(
            [binary, f"--config={CONFIGURATION}"], cwd=directory, env=environment, stdout=self._log, stderr=self._log
        )

    def environment(self, protocol: Protocol) -> dict[str, str]:
        """What an exporting process needs to be told."""
        port = self._ports["JAEGER_GRPC_PORT" if protocol == "grpc" else "JAEGER_HTTP_PORT"]
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://localhost:{port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }

    def get(self, path: str, port: str = "JAEGER_UI_PORT") -> Any:
        """The answer of the API, or None while there is none: it is not up yet, or knows no such trace."""
        try:
            with urllib.request.urlopen(f"http://localhost:{self._ports[port]}{path}", timeout=5) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            return None

    def check(self) -> None:
        """Fails with Jaeger's log if it has ended."""
        if self._process.poll() is not None:
            self._log.seek(0)
            pytest.fail(f"Jaeger ended with {self._process.returncode}:\n{self._log.read()[-4000:]}")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture
def jaeger(tmp_path: Path) -> Iterator[Jaeger]:
    if "JAEGER_BIN" not in os.environ:
        pytest.skip("NOT SEEN IN JAEGER: JAEGER_BIN does not name one")
    process = Jaeger(os.environ["JAEGER_BIN"], tmp_path)
    try:
        wait_for(process, lambda: process.get("/api/v3/services") is not None)
        yield process
    finally:
        process.close()


def wait_for(jaeger: Jaeger, condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        jaeger.check()
        assert time.monotonic() < deadline, "Jaeger does not show it"
        time.sleep(0.1)


def shown(answer: Any) -> list[dict[str, Any]]:
    """The spans of an answer: OTLP JSON, under `result`."""
    resources = (answer or {}).get("result", {}).get("resourceSpans", ())
    return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_from_nothing_to_a_trace_in_jaeger(protocol: Protocol, jaeger: Jaeger, run_instrumented: Run) -> None:
    pytest.importorskip("langchain_openai")
    run_instrumented(EXAMPLES / "agent.py", env={**OURS, **jaeger.environment(protocol)})

    since, until = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + by)) for by in (-600, 600))
    query = urllib.parse.urlencode(
        {
            "query.service_name": SERVICE,
            "query.startTimeMin": since,
            "query.startTimeMax": until,
            # As Jaeger 2.13 has them.
            "query.start_time_min": since,
            "query.start_time_max": until,
        }
    )
    # A trace becomes visible in pieces.
    wait_for(jaeger, lambda: len(shown(jaeger.get(f"/api/v3/traces?{query}"))) >= 4)
    spans = shown(jaeger.get(f"/api/v3/traces?{query}"))
    assert sorted(span["name"] for span in spans) == [
        "chat gpt-4o-mini",
        "chat gpt-4o-mini",
        "execute_tool weather",
        "invoke_agent weather-agent",
    ]
    (trace_id,) = {span["traceId"] for span in spans}
    assert len(shown(jaeger.get(f"/api/v3/traces/{trace_id}"))) == 4
    for span in spans:
        if span["name"].startswith("chat"):
            values = {attribute["key"]: attribute["value"] for attribute in span["attributes"]}
            assert values["gen_ai.request.model"] == {"stringValue": "gpt-4o-mini"}
            # OTLP JSON writes a 64-bit integer as text.
            assert int(values["gen_ai.usage.input_tokens"]["intValue"]) > 0


def test_jaeger_does_not_trace_who_looks_at_it(tmp_path: Path) -> None:
    """By default it does, and sends that to the applications' Collector."""
    if "JAEGER_BIN" not in os.environ:
        pytest.skip("NOT SEEN IN JAEGER: JAEGER_BIN does not name one")
    with OtlpReceiver() as receiver:
        jaeger = Jaeger(os.environ["JAEGER_BIN"], tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint("grpc"))
        try:
            wait_for(jaeger, lambda: jaeger.get("/api/v3/services") is not None)
            # And says so when it takes spans.
            wait_for(jaeger, lambda: (jaeger.get("/status", "JAEGER_HEALTH_PORT") or {}).get("healthy"))
        finally:
            jaeger.close()  # what it has of its own it sends by then
        assert receiver.spans == []
