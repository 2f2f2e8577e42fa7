"""Gateway, worker, model: two real services and an HTTP client between them, all instrumented; one trace, one user, and the model
server learns nothing."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

from local_openai import LocalOpenAI

from tests.conftest import OTHER_INSTRUMENTORS, Rows
from tests.integration.otlp_receiver import OtlpReceiver
from tests.integration.test_processes import url_of
from tests.store.conftest import until

GATEWAY = """
import os
import httpx
from fastapi import FastAPI
from otel_llm.middleware import LLMContextMiddleware

app = FastAPI()
app.add_middleware(LLMContextMiddleware, module="gateway", user_id=lambda request: request.headers["x-user"], plan="pro")


@app.get("/ask")
async def ask(q: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(os.environ["WORKER"] + "/answer", params={"q": q}, timeout=30)).text
"""

WORKER = """
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from otel_llm import llm_context

app = FastAPI()
client = AsyncOpenAI()


@llm_context("worker")
async def tokens(q):
    stream = await client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": q}], stream=True)
    async for chunk in stream:
        yield chunk.choices[0].delta.content or ""


@app.get("/answer")
async def answer(q: str) -> StreamingResponse:
    return StreamingResponse(tokens(q))
"""


def test_gateway_worker_model(
    start_instrumented: Callable[..., subprocess.Popen[str]], openai_server: LocalOpenAI, rows: Rows, tmp_path: Path
) -> None:
    used = {"fastapi", "httpx", "httpx2"}
    with OtlpReceiver() as receiver:
        env = receiver.environment("http/protobuf") | {
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(set(OTHER_INSTRUMENTORS) - used),
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

        def serve(name: str, text: str, **more: str) -> tuple[subprocess.Popen[str], str]:
            (tmp_path / f"{name}.py").write_text(text)
            command = ["uvicorn", "--app-dir", str(tmp_path), "--port", "0", f"{name}:app"]
            process = start_instrumented(command, env=env | {"OTEL_SERVICE_NAME": name} | more)
            return process, url_of(process)

        worker, worker_url = serve("worker", WORKER, OTEL_LLM_TRUST_BAGGAGE="true")
        gateway, gateway_url = serve("gateway", GATEWAY, WORKER=worker_url)
        for user in ("alice", "bob"):
            # A stranger's baggage: the gateway does not believe it, and does not hand it to the worker, which would.
            stranger = {"x-user": user, "baggage": "session.id=stolen,otel_llm.tag.plan=free,theirs=1"}
            request = urllib.request.Request(f"{gateway_url}/ask?q=Hello", headers=stranger)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert b"Hello" in answer.read()

        found = rows()
        assert [
            (row["user_id"], row["module"], row["service_name"], row["session_id"], row["tags"]) for row in found
        ] == [(user, "worker", "worker", None, {"plan": "pro"}) for user in ("alice", "bob")]
        assert len({row["trace_id"] for row in found}) == 2
        assert found[0]["request_id"] != found[1]["request_id"]

        assert len(openai_server.ledger) == 2
        for call in openai_server.ledger:
            assert not {"traceparent", "tracestate", "baggage"} & call.headers.keys()

        row = found[0]

        def above() -> list[str]:
            """The spans from the model call up to the root, by service and name."""
            spans = {span.span_id: span for span in receiver.spans if span.trace_id == row["trace_id"]}
            chain, span_id = [], row["span_id"]
            while span_id in spans:
                span = spans[span_id]
                chain.append(f"{span.resource['service.name']}: {span.name}")
                span_id = span.parent_span_id
            return chain

        whole = ["worker: chat gpt-4o-mini", "worker: GET /answer", "gateway: GET", "gateway: GET /ask"]
        until(lambda: above() == whole, f"one trace, not {above()}")
        for process in (gateway, worker):
            process.terminate()
            process.communicate(timeout=120)
