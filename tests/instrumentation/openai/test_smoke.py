"""What every client from openai 1.26 on can do, recorded. Runs against whichever version is installed:

python -m venv old && old/bin/pip install 'openai==1.26' 'httpx<0.28' -e '.[dev]'
old/bin/python -m pytest tests/instrumentation/openai/test_smoke.py
"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from otel_llm.conventions import semconv as s
from otel_llm.support import faults

HELLO: Any = [{"role": "user", "content": "Say hello."}]
CHAT: Any = {"model": "gpt-4o-mini", "messages": HELLO}
STREAM: Any = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}


def read_lines(client: Any) -> None:
    with client.chat.completions.with_streaming_response.create(**STREAM) as response:
        list(response.iter_lines())


async def call_async(server: Any) -> None:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="local") as client:
        async for _ in await client.chat.completions.create(**STREAM):
            pass


WAYS: dict[str, Any] = {
    "chat": lambda c: c.chat.completions.create(**CHAT),
    "chat stream": lambda c: list(c.chat.completions.create(**STREAM)),
    "chat raw": lambda c: c.chat.completions.with_raw_response.create(**CHAT).parse(),
    "chat streaming response": read_lines,
    "embeddings": lambda c: c.embeddings.create(model="text-embedding-3-small", input="hello"),
    "completions": lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello"),
    "responses": lambda c: c.responses.create(model="gpt-4o-mini", input="hello"),
    "responses stream": lambda c: list(c.responses.create(model="gpt-4o-mini", input="hello", stream=True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_one_span_with_the_billed_tokens(way, instrumented, client, openai_server):
    if way.startswith("responses") and not hasattr(client, "responses"):
        pytest.skip(f"openai {openai.__version__} has no Responses API")
    before = faults.counts.copy()
    WAYS[way](client)
    found = instrumented.attributes()
    (billed,) = openai_server.ledger
    assert found[s.INPUT_TOKENS] == billed.input_tokens
    assert found.get(s.OUTPUT_TOKENS) == billed.output_tokens
    assert found[s.STATUS] == "ok"
    assert found[s.ATTEMPTS] == 1
    assert faults.counts == before


def test_async_stream(instrumented, openai_server):
    asyncio.run(call_async(openai_server))
    assert instrumented.attributes()[s.OUTPUT_TOKENS] == openai_server.ledger[0].output_tokens


def test_retries_and_errors(instrumented, client):
    client.chat.completions.create(model="flaky-1", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="error-400", messages=HELLO)
    first, second = instrumented.all()
    assert first.attributes[s.STATUS] == "ok"
    assert first.attributes[s.ATTEMPTS] == 2
    assert second.attributes[s.ERROR_TYPE] == "400"


def test_left_early(instrumented, client):
    stream = client.chat.completions.create(**STREAM)
    next(stream)
    stream.close()
    assert instrumented.attributes()[s.STATUS] == "partial"
