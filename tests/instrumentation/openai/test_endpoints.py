"""Everything that costs tokens is recorded, and nothing else: images, audio, jobs, endpoints that nobody knows yet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from otel_llm.conventions import semconv as s
from otel_llm.instrumentation.openai._observe import Background, Once, background

MODEL = "gpt-5"
WAV: Any = ("a.wav", b"RIFF")
_numbers = itertools.count()


def sse(*events: Any) -> bytes:
    return b"".join(f"event: {event.get('type', 'x')}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def serve(*answers: Any, cls: Any = openai.OpenAI) -> Any:
    """A client whose requests get these answers in turn: JSON, or the bytes of a stream, or `(content type, bytes)`."""
    left = list(answers)

    def answer(_: httpx2.Request) -> httpx2.Response:
        match left.pop(0):
            case (kind, content):
                return httpx2.Response(200, headers={"content-type": kind}, content=content)
            case bytes() as content:
                return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content)
            case int() as status:
                return httpx2.Response(status, json={"error": {"message": "no"}})
            case value:
                return httpx2.Response(200, json=value)

    transport = httpx2.MockTransport(answer)
    http = httpx2.Client(transport=transport) if cls is openai.OpenAI else httpx2.AsyncClient(transport=transport)
    return cls(api_key="x", base_url="http://local/v1", http_client=http, max_retries=0)


IMAGE_USAGE = {
    "input_tokens": 50,
    "output_tokens": 4_160,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens_details": {"text_tokens": 0, "image_tokens": 4_160},
}
AUDIO_USAGE = {
    "type": "tokens",
    "input_tokens": 14,
    "output_tokens": 9,
    "input_token_details": {"text_tokens": 2, "audio_tokens": 12},
}
RESPONSE_USAGE = {
    "input_tokens": 7,
    "output_tokens": 3,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
    "output_tokens_details": {"reasoning_tokens": 2},
}
IMAGES = {"created": 1, "data": [{"b64_json": "aGk="}], "usage": IMAGE_USAGE}
IMAGE_TOLD = {
    s.INPUT_TOKENS: 50,
    s.OUTPUT_TOKENS: 4_160,
    s.IMAGE_INPUT_TOKENS: 40,
    s.IMAGE_OUTPUT_TOKENS: 4_160,
    s.IMAGES: 1.0,
}
AUDIO_TOLD = {s.INPUT_TOKENS: 14, s.OUTPUT_TOKENS: 9, s.AUDIO_INPUT_TOKENS: 12}
RESPONSE_TOLD = {
    s.INPUT_TOKENS: 7,
    s.OUTPUT_TOKENS: 3,
    s.CACHE_READ_TOKENS: 4,
    s.CACHE_WRITE_TOKENS: 1,
    s.REASONING_TOKENS: 2,
}
CALLS: dict[str, tuple[Callable[[Any], Any], Any, str, dict[str, Any]]] = {
    "images.generate": (
        lambda c: c.images.generate(model=MODEL, prompt="a dot"),
        IMAGES,
        "image_generation",
        IMAGE_TOLD,
    ),
    "images.edit": (
        lambda c: c.images.edit(model=MODEL, image=b"PNG", prompt="a dot"),
        IMAGES,
        "image_generation",
        IMAGE_TOLD,
    ),
    "images.variation": (
        lambda c: c.images.create_variation(model=MODEL, image=b"PNG"),
        IMAGES,
        "image_generation",
        IMAGE_TOLD,
    ),
    "images stream": (
        lambda c: list(c.images.generate(model=MODEL, prompt="a dot", stream=True)),
        sse({"type": "image_generation.partial_image"}, {"type": "image_generation.completed", "usage": IMAGE_USAGE}),
        "image_generation",
        IMAGE_TOLD,
    ),
    "images.edit stream": (
        lambda c: list(c.images.edit(model=MODEL, image=b"PNG", prompt="a dot", stream=True)),
        sse({"type": "image_edit.completed", "usage": IMAGE_USAGE}),
        "image_generation",
        IMAGE_TOLD,
    ),
    "transcriptions": (
        lambda c: c.audio.transcriptions.create(model=MODEL, file=WAV),
        {"text": "hello", "usage": AUDIO_USAGE},
        "transcription",
        AUDIO_TOLD,
    ),
    "transcriptions verbose": (
        lambda c: c.audio.transcriptions.create(model=MODEL, file=WAV, response_format="verbose_json"),
        {"text": "hello", "duration": 2.0, "language": "en", "usage": {"type": "duration", "seconds": 2.0}},
        "transcription",
        {s.AUDIO_SECONDS: 2.0},
    ),
    "transcriptions diarized": (
        lambda c: c.audio.transcriptions.create(model=MODEL, file=WAV, response_format="diarized_json"),
        {"text": "hello", "task": "transcribe", "duration": 2.0, "segments": [], "usage": AUDIO_USAGE},
        "transcription",
        AUDIO_TOLD,
    ),
    "transcriptions text": (
        lambda c: c.audio.transcriptions.create(model=MODEL, file=WAV, response_format="text"),
        ("text/plain", b"hello"),
        "transcription",
        {},
    ),
    "transcriptions stream": (
        lambda c: list(c.audio.transcriptions.create(model=MODEL, file=WAV, stream=True)),
        sse({"type": "transcript.text.delta", "delta": "h"}, {"type": "transcript.text.done", "usage": AUDIO_USAGE}),
        "transcription",
        AUDIO_TOLD,
    ),
    "translations": (
        lambda c: c.audio.translations.create(model=MODEL, file=WAV),
        {"text": "hello"},
        "translation",
        {},
    ),
    "speech": (
        lambda c: c.audio.speech.create(model=MODEL, voice="alloy", input="hello").read(),
        ("audio/mpeg", b"\x00\x01"),
        "speech",
        {s.CHARACTERS: 5.0},
    ),
    "speech sse": (
        lambda c: c.audio.speech.create(model=MODEL, voice="alloy", input="hello", stream_format="sse").read(),
        sse({"type": "speech.audio.delta", "audio": "AA"}, {"type": "speech.audio.done", "usage": AUDIO_USAGE}),
        "speech",
        {**AUDIO_TOLD, s.CHARACTERS: 5.0},
    ),
    "responses.compact": (
        lambda c: c.responses.compact(model=MODEL, input="hello"),
        {"id": "cmp_1", "object": "response.compaction", "output": [], "usage": RESPONSE_USAGE},
        "compact",
        RESPONSE_TOLD,
    ),
    "videos": (
        lambda c: c.post("/videos", cast_to=object, body={"model": MODEL, "prompt": "a dot"}),
        {"id": "video_1", "object": "video", "model": MODEL, "status": "queued", "seconds": "8", "size": "720x1280"},
        "video_generation",
        {s.VIDEO_SECONDS: 8.0},
    ),
    "videos.remix": (
        lambda c: c.post("/videos/video_1/remix", cast_to=object, body={"model": MODEL, "prompt": "two dots"}),
        {"id": "video_2", "object": "video", "model": MODEL, "status": "queued", "seconds": "many"},
        "video_generation",
        {},
    ),
    "decisions": (
        lambda c: c.post("/decisions", cast_to=object, body={"model": MODEL}),
        {"model": MODEL, "answers": [], "usage": RESPONSE_USAGE},
        "decision",
        RESPONSE_TOLD,
    ),
    "unknown": (
        lambda c: c.post("/dreams", cast_to=object, body={"model": MODEL}),
        {"id": "dream_1", "model": MODEL, "usage": RESPONSE_USAGE},
        "dreams",
        RESPONSE_TOLD,
    ),
    "unknown stream": (
        lambda c: list(
            c.post("/dreams", cast_to=object, body={"model": MODEL}, stream=True, stream_cls=openai.Stream[object])
        ),
        sse({"delta": "z"}, {"usage": RESPONSE_USAGE}),
        "dreams",
        RESPONSE_TOLD,
    ),
}


def told(span: Any) -> dict[str, Any]:
    return {name: value for name, value in span.attributes.items() if name.startswith(("gen_ai.usage.", s.UNIT_PREFIX))}


@pytest.mark.parametrize("way", CALLS)
def test_a_call_is_one_span_with_the_reported_tokens(way, instrumented):
    do, answer, operation, expected = CALLS[way]
    with instrumented.provider.get_tracer("app").start_as_current_span("app") as app:
        do(serve(answer))
    span, _ = instrumented.all()
    assert told(span) == expected
    assert span.attributes[s.OPERATION] == operation
    assert span.attributes[s.REQUEST_MODEL] == MODEL
    assert span.attributes[s.STATUS] == "ok"
    assert span.parent.span_id == app.get_span_context().span_id
    assert app.start_time <= span.start_time < span.end_time <= app.end_time
    assert (s.TIME_TO_FIRST_CHUNK in span.attributes) == way.endswith(" stream")


STORED = {"id": "1", "object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
NO_CALLS: dict[str, Callable[[Any], Any]] = {
    "files.create": lambda c: c.files.create(file=WAV, purpose="batch"),
    "vector_stores.create": lambda c: c.vector_stores.create(),
    "models.list": lambda c: c.models.list(),
    "moderations": lambda c: c.moderations.create(input="hello"),
    "threads.create": lambda c: c.beta.threads.create(),
    "input_tokens.count": lambda c: c.responses.input_tokens.count(model=MODEL, input="hello"),
    "a stored completion": lambda c: c.chat.completions.retrieve("chatcmpl-1"),
    "a stored completion changed": lambda c: c.chat.completions.update("chatcmpl-1", metadata={}),
    "a stored response": lambda c: c.responses.retrieve("resp_old"),
    "a stored response cancelled": lambda c: c.responses.cancel("resp_old"),
}


@pytest.mark.parametrize("way", NO_CALLS)
def test_what_runs_no_model_gives_no_span(way, instrumented):
    answer = STORED if "stored" in way else {"id": "x", "object": "list", "data": [], "results": []}
    NO_CALLS[way](serve(answer))
    assert instrumented.all() == []


def test_an_unknown_endpoint_that_fails_gives_no_span(instrumented):
    with pytest.raises(openai.NotFoundError):
        serve(404).post("/dreams", cast_to=object, body={"model": MODEL})
    assert instrumented.all() == []


# --- background responses --------------------------------------------------------------------------------------------
def state(status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "model": MODEL,
        "background": True,
        "status": status,
        "output": [],
        "usage": RESPONSE_USAGE if status == "completed" else None,
        **more,
    }


def create(client: Any, **more: Any) -> Any:
    return client.responses.create(model=MODEL, input="hello", background=True, **more)


def test_the_usage_of_a_background_response_lands_on_the_call_that_created_it_once(instrumented):
    client = serve(state("queued"), state("in_progress"), 500, state("completed"), state("completed"))
    assert create(client).status == "queued"
    client.responses.retrieve("resp_1")
    with pytest.raises(openai.InternalServerError):
        client.responses.retrieve("resp_1")
    assert instrumented.all() == []
    assert client.responses.with_raw_response.retrieve("resp_1").parse().status == "completed"
    client.responses.retrieve("resp_1")
    span = instrumented.one()
    assert told(span) == RESPONSE_TOLD
    assert span.attributes[s.STATUS] == "ok"
    assert span.attributes[s.RESPONSE_ID] == "resp_1"
    assert not background


async def test_async_background(instrumented):
    client = serve(state("queued"), state("completed"), cls=openai.AsyncOpenAI)
    await create(client)
    await client.responses.retrieve("resp_1")
    assert told(instrumented.one()) == RESPONSE_TOLD


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_background_response_that_does_not_complete(end, instrumented):
    client = serve(state("queued"), state(end, error={"code": "server_error"} if end == "failed" else None))
    create(client)
    if end == "cancelled":
        client.responses.cancel("resp_1")
    else:
        client.responses.retrieve("resp_1")
    assert instrumented.attributes()[s.STATUS] == {"cancelled": "cancelled", "failed": "error"}[end]


def test_a_background_stream_that_is_left_and_taken_up_again(instrumented):
    created = {"type": "response.created", "response": state("in_progress")}
    completed = {"type": "response.completed", "response": state("completed")}
    client = serve(sse(created, {"type": "response.output_text.delta", "delta": "x"}), sse(completed))
    stream = create(client, stream=True)
    next(stream)
    stream.close()
    assert instrumented.all() == []
    list(client.responses.retrieve("resp_1", stream=True, starting_after=1))
    span = instrumented.one()
    assert told(span) == RESPONSE_TOLD
    assert span.attributes[s.STATUS] == "ok"


def test_a_background_response_that_nobody_asks_for_is_partial_in_the_end(instrumented):
    create(serve(state("queued")))
    background.close()
    span = instrumented.one()
    assert span.attributes[s.STATUS] == "partial"
    assert told(span) == {}


def test_what_is_remembered_is_bounded(instrumented, monkeypatch):
    monkeypatch.setattr(Background, "MAX", 2)
    client = serve(*(state("queued", id=f"resp_{n}") for n in range(3)))
    for _ in range(3):
        create(client)
    assert [span.attributes[s.RESPONSE_ID] for span in instrumented.all()] == ["resp_0"]
    background.close()
    once = Once(2)
    assert [once.first(name) for name in "aabcb"] == [True, False, True, True, False]
    assert once.first("a")


# --- batches and runs ------------------------------------------------------------------------------------------------
def batch(status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"batch_{next(_numbers)}",
        "object": "batch",
        "status": status,
        "model": MODEL,
        "endpoint": "/v1/responses",
        "created_at": 1_700_000_000,
        "completed_at": 1_700_000_060,
        "usage": RESPONSE_USAGE,
        **more,
    }


def test_a_batch_is_counted_once_when_it_has_ended(instrumented):
    done = batch("completed")
    running = done | {"status": "in_progress", "usage": None}
    other = batch("cancelled")
    page = {"object": "list", "data": [done, other], "has_more": False}
    client = serve(running, done, done, page)
    for _ in range(3):
        client.batches.retrieve(done["id"])
    assert len(list(client.batches.list())) == 2
    first, second = instrumented.all()
    assert told(first) == told(second) == RESPONSE_TOLD
    assert first.attributes[s.OPERATION] == "batch"
    assert first.attributes[s.RESPONSE_MODEL] == MODEL
    assert first.attributes[s.RESPONSE_ID] == done["id"]
    assert (first.start_time, first.end_time) == (1_700_000_000 * 10**9, 1_700_000_060 * 10**9)
    assert [span.attributes[s.STATUS] for span in (first, second)] == ["ok", "cancelled"]


def run(status: str, run_id: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_token_details": {"cached_tokens": 4}}
    return {
        "id": run_id,
        "object": "thread.run",
        "status": status,
        "model": MODEL,
        "usage": usage if status == "completed" else None,
    }


RUN_TOLD = {s.INPUT_TOKENS: 7, s.OUTPUT_TOKENS: 3, s.CACHE_READ_TOKENS: 4}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_assistants_run_is_counted_once_when_it_has_ended(instrumented):
    run_id = f"run_{next(_numbers)}"
    client = serve(run("queued", run_id), run("completed", run_id), run("completed", run_id))
    runs = client.beta.threads.runs
    runs.create(thread_id="t", assistant_id="a")
    runs.retrieve(run_id, thread_id="t")
    runs.retrieve(run_id, thread_id="t")
    assert told(instrumented.one()) == RUN_TOLD


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("raw", [False, True])
def test_a_streamed_run(raw, instrumented):
    run_id = f"run_{next(_numbers)}"
    events = [("thread.run.created", run("queued", run_id)), ("thread.run.completed", run("completed", run_id))]
    body = b"".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode() for kind, data in events)
    runs = serve(body + b"event: done\ndata: [DONE]\n\n").beta.threads.runs
    if raw:
        with runs.with_streaming_response.create(thread_id="t", assistant_id="a", stream=True) as response:
            list(response.iter_lines())
    else:
        list(runs.create(thread_id="t", assistant_id="a", stream=True))
    assert told(instrumented.one()) == RUN_TOLD
