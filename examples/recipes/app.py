"""A cook's assistant on the web: each request is one run, and its client gets the run's events as they happen.

export OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=SPAN_ONLY    # or nothing of what is said is told, live or later
opentelemetry-instrument uvicorn --app-dir examples/recipes app:app
curl -N 'localhost:8000/ask?user=ada&q=How+do+I+cook+Shakshuka?'
otel-llm usage --by module,user
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

from assistant import reply
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.types import Send

from otel_llm import LLMContextFilter, chain, current_context, events
from otel_llm.lifecycle import Event, ProviderDelta, Scope
from otel_llm.middleware import LLMContextMiddleware

app = FastAPI()
app.add_middleware(
    LLMContextMiddleware,
    user_id=lambda request: request.query.get("user"),
    conversation_id=lambda request: request.query.get("conversation"),
)

log = logging.getLogger("recipes")
log.setLevel(logging.INFO)
handler = logging.StreamHandler()
handler.addFilter(LLMContextFilter())
handler.setFormatter(logging.Formatter("%(levelname)s %(llm_user_id)s %(llm_request_id)s %(message)s"))
log.addHandler(handler)


@app.get("/ask")
async def ask(q: str) -> StreamingResponse:
    headers = {"x-request-id": current_context().request_id}
    return ServerSentEvents(stream(q), media_type="text/event-stream", headers=headers)


class ServerSentEvents(StreamingResponse):
    async def stream_response(self, send: Send) -> None:
        # Starlette leaves its generator to the garbage collector where a client leaves while something is being sent.
        async with aclosing(self.body_iterator):
            await super().stream_response(send)


async def stream(question: str) -> AsyncIterator[str]:
    run = chain("ask")
    happening = events(run, types=[Event, ProviderDelta])  # listens from here on
    work = asyncio.create_task(answer(run, question))
    try:
        async for event in happening:
            yield sent(event.type, event.to_dict())
        if (text := await work) is not None:
            yield sent("Answer", {"text": text})
    finally:
        work.cancel()  # the client may have left


async def answer(run: Scope, question: str) -> str | None:
    try:
        with run:
            text = await reply(question)
    except asyncio.CancelledError:
        log.info("left")
        raise
    except Exception:
        log.exception("failed")  # ChainError has told the client
        return None
    log.info("answered")
    return text


def sent(event: str, data: dict) -> str:
    """A server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"
