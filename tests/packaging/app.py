"""An app as somebody packs it: it makes one call of a provider inside the process and prints its row."""

import httpx2 as httpx
from openai import OpenAI

import otel_llm

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello!"}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}

otel_llm.instrument()
transport = httpx.MockTransport(lambda _: httpx.Response(200, json=ANSWER))
client = OpenAI(api_key="none", http_client=httpx.Client(transport=transport))
with otel_llm.llm_context("packed"):
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
assert otel_llm.flush()
with otel_llm.connect() as store:
    row = store.sql("SELECT started_at, module, input_tokens, cost_usd FROM llm_usage").fetchall()
    print(len(row), row[0][0].year > 2000, *row[0][1:])
print(otel_llm.__file__)
