"""What recording costs the app's thread, in steps: seconds are of the machine, and what is called and how often is of the code.

The ceilings are what it takes today and a little more. Who needs more steps for more facts raises them, and says so.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import openai
import pytest

pytest.importorskip("langchain_core")

from langchain_core.language_models import FakeListChatModel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import otel_llm
from otel_llm.calls import admittance
from otel_llm.setup import distro
from otel_llm.support import otel_private
from tests.instrumentation.openai.clients import http

COUNTED = (str(Path(otel_llm.__file__).parent), str(Path(trace.__file__).parents[1]))
"""Ours, and OpenTelemetry's, which our code calls or saves calling."""
IS_TESTED = importlib.metadata.version("opentelemetry-sdk") == list(otel_private.SEEN)[-1]
IS_COUNTED = sys.version_info[:2] == (3, 11)
"""Another Python has other opcodes."""
CHUNKS = 40
DETAILS = {"cached_tokens": 0, "audio_tokens": 0}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": DETAILS}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
    "usage": USAGE,
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "gpt-4o-mini-2024-07-18",
    "output": [{"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}],
    "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
}
EMBEDDING = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "usage": {"prompt_tokens": 5, "total_tokens": 5},
}


def chunks(number: int) -> bytes:
    told = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "usage": None}
    pieces = [{"index": 0, "delta": {"content": "w"}, "finish_reason": None}] * number
    pieces.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [{**told, "choices": [piece]} for piece in pieces] + [{**told, "choices": [], "usage": USAGE}]
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def answer(request: Any) -> Any:
    asked = json.loads(request.content)
    if asked.get("stream"):
        return http.Response(200, content=chunks(asked["n"]), headers={"content-type": "text/event-stream"})
    return http.Response(
        200,
        json={"/v1/responses": RESPONSE, "/v1/embeddings": EMBEDDING}.get(request.url.path, CHAT),
    )


API = openai.OpenAI(
    api_key="x",
    base_url="https://api.openai.com/v1",
    http_client=http.Client(transport=http.MockTransport(answer)),
)
HI: Any = [{"role": "user", "content": "hi"}]


def stream(number: int) -> None:
    for _ in API.chat.completions.create(
        model="m", messages=HI, n=number, stream=True, stream_options={"include_usage": True}
    ):
        pass


class Steps(NamedTuple):
    calls: float
    """Of functions in Python."""
    opcodes: float
    """In them."""
    writes: float
    """To files."""


def steps_of(work: Callable[[], object], times: int = 10) -> Steps:
    """What one `work` takes, once what is done once is done."""
    calls: Counter[CodeType] = Counter()
    opcodes = writes = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal opcodes
        if not frame.f_code.co_filename.startswith(COUNTED):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call":
            calls[frame.f_code] += 1
        elif event == "opcode":
            opcodes += 1
        return count

    def profile(frame: FrameType, event: str, function: Any) -> None:
        nonlocal writes
        writes += event == "c_call" and function is os.write

    for _ in range(20):
        work()
    before = sys.gettrace(), sys.getprofile()
    try:
        sys.settrace(count)
        for _ in range(times):
            work()
        sys.settrace(before[0])
        sys.setprofile(profile)
        for _ in range(times):
            work()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return Steps(sum(calls.values()) / times, opcodes / times, writes / times)


@pytest.fixture(autouse=True)
def _account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_LLM_FLUSH_INTERVAL", "3600")
    monkeypatch.setattr(admittance, "gate", None)  # another test may have opened a budget
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    distro.instrument(tracer_provider=provider, store=tmp_path / "usage.duckdb")
    yield
    distro.uninstrument()
    provider.shutdown()


MODEL = FakeListChatModel(responses=["hi"])
WORK: dict[str, tuple[Callable[[], object], Steps]] = {
    "chat": (lambda: API.chat.completions.create(model="gpt-4o-mini", messages=HI), Steps(150, 5_600, 2)),
    "responses": (lambda: API.responses.create(model="gpt-4o-mini", input="hi"), Steps(149, 5_200, 2)),
    "embeddings": (lambda: API.embeddings.create(model="e", input="hi", encoding_format="float"), Steps(138, 4_650, 2)),
    "langchain": (lambda: MODEL.invoke("hi"), Steps(167, 5_000, 2)),
}


@pytest.mark.parametrize("work", WORK)
def test_a_call_takes_no_more_steps_than_it_did(work: str) -> None:
    call, ceiling = WORK[work]
    taken = steps_of(call)
    print(work, taken)
    assert taken.writes == ceiling.writes
    if IS_TESTED:
        assert taken.calls <= ceiling.calls
        assert taken.opcodes <= ceiling.opcodes or not IS_COUNTED


def test_a_chunk_takes_no_more_steps_than_it_did() -> None:
    few, many = steps_of(lambda: stream(4)), steps_of(lambda: stream(4 + CHUNKS))
    calls, opcodes, writes = ((much - little) / CHUNKS for little, much in zip(few, many, strict=True))
    print("chunk", calls, opcodes, writes)
    assert (calls, writes) == (3, 0)
    assert opcodes <= 125 or not IS_COUNTED
