"""What is heard, spoken and drawn: the words of it on the span, the sounds and the images nowhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from otel_llm.conventions import semconv as s
from otel_llm.conventions.semconv import CONTENT
from otel_llm.support import faults
from tests.instrumentation.conftest import Capture, Spans
from tests.media_server import media_server

HEARD = "the cat sat on the mat"
DRAWN = b"PNG drawn-and-not-kept"
SOUND = b"RIFF heard-and-not-kept"
Way = Callable[[Any], Any]


@pytest.fixture
def media() -> Iterator[openai.OpenAI]:
    before = faults.counts.copy()
    with media_server(HEARD, DRAWN) as base_url:
        yield openai.OpenAI(base_url=base_url, api_key="local", max_retries=0)
    assert faults.counts == before


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "parts": list(parts)}]


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def blob(modality: str, **more: Any) -> dict[str, Any]:
    return {"type": "blob", "modality": modality, **more}


def heard_raw(client: Any) -> None:
    client.audio.transcriptions.with_raw_response.create(
        model="whisper-1", file=SOUND, response_format="text", prompt="cats"
    )


def heard_streaming_response(client: Any) -> None:
    with client.audio.transcriptions.with_streaming_response.create(
        model="whisper-1", file=SOUND, response_format="text", prompt="cats"
    ) as answer:
        answer.read()


HEARING: dict[str, Way] = {
    "json": lambda c: c.audio.transcriptions.create(model="whisper-1", file=SOUND, prompt="cats"),
    "text": lambda c: c.audio.transcriptions.create(
        model="whisper-1", file=SOUND, response_format="text", prompt="cats"
    ),
    "stream": lambda c: list(c.audio.transcriptions.create(model="x", file=SOUND, stream=True, prompt="cats")),
    "translation": lambda c: c.audio.translations.create(model="whisper-1", file=SOUND, prompt="cats"),
    "raw": heard_raw,
    "streaming response": heard_streaming_response,
}


@pytest.mark.parametrize("way", HEARING)
def test_what_is_heard(way: str, instrumented: Spans, media: openai.OpenAI, capture: Capture) -> None:
    capture()
    HEARING[way](media)
    told = instrumented.attributes()
    assert json.loads(told[s.INPUT_MESSAGES]) == user(blob("audio", size=len(SOUND)), text("cats"))
    assert json.loads(told[s.OUTPUT_MESSAGES]) == [{"role": "assistant", "parts": [text(HEARD)]}]


def test_a_transcript_that_is_left_early(instrumented: Spans, media: openai.OpenAI, capture: Capture) -> None:
    capture()
    with media.audio.transcriptions.create(model="x", file=("a.wav", io.BytesIO(SOUND)), stream=True) as stream:
        next(iter(stream))
    told = instrumented.attributes()
    assert json.loads(told[s.INPUT_MESSAGES]) == user(blob("audio"))
    assert json.loads(told[s.OUTPUT_MESSAGES]) == [{"role": "assistant", "parts": [text(HEARD[:4])]}]


def test_what_is_spoken(instrumented: Spans, media: openai.OpenAI, capture: Capture) -> None:
    capture()
    media.audio.speech.create(model="tts-1", voice="alloy", input="say it", instructions="Softly.").read()
    told = instrumented.attributes()
    assert json.loads(told[s.INPUT_MESSAGES]) == user(text("say it"))
    assert json.loads(told[s.SYSTEM_INSTRUCTIONS]) == [text("Softly.")]


def test_what_a_decision_is_about(instrumented: Spans, capture: Capture) -> None:
    capture()
    with media_server(HEARD, DRAWN) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="local")
        asked = [{"role": "user", "content": [{"type": "input_text", "text": "Is it a cat?"}]}]
        client.post("/decisions", cast_to=object, body={"model": "gpt-5", "input": asked, "questions": []})
    assert json.loads(instrumented.attributes()[s.INPUT_MESSAGES]) == user(text("Is it a cat?"))


DRAWING: dict[str, tuple[Way, list[dict[str, Any]]]] = {
    "generate": (lambda c: c.images.generate(model="gpt-image-1", prompt="a dot"), []),
    "generate stream": (lambda c: list(c.images.generate(model="gpt-image-1", prompt="a dot", stream=True)), []),
    "edit": (
        lambda c: c.images.edit(model="gpt-image-1", image=("a.png", DRAWN, "image/png"), prompt="a dot"),
        [blob("image", mime_type="image/png", size=len(DRAWN))],
    ),
    "edit stream": (
        lambda c: list(c.images.edit(model="gpt-image-1", image=[DRAWN, DRAWN], prompt="a dot", stream=True)),
        [blob("image", size=len(DRAWN))] * 2,
    ),
}


@pytest.mark.parametrize("way", DRAWING)
def test_what_is_drawn(way: str, instrumented: Spans, media: openai.OpenAI, capture: Capture) -> None:
    capture()
    do, uploaded = DRAWING[way]
    do(media)
    told = instrumented.attributes()
    assert json.loads(told[s.INPUT_MESSAGES]) == user(*uploaded, text("a dot"))
    assert json.loads(told[s.OUTPUT_MESSAGES]) == [
        {"role": "assistant", "parts": [blob("image", size=len(DRAWN))]},
    ]


@pytest.mark.parametrize("mode", ["SPAN_ONLY", "NO_CONTENT", "EVENT_ONLY"])
def test_no_sound_and_no_image_is_kept(mode: str, instrumented: Spans, media: openai.OpenAI, capture: Capture) -> None:
    capture(mode)
    for do in (*HEARING.values(), *(do for do, _ in DRAWING.values())):
        do(media)
    media.audio.speech.create(model="tts-1", voice="alloy", input="say it").read()
    told = repr([dict(span.attributes or {}) for span in instrumented.all()])
    for binary in (DRAWN, SOUND):
        assert binary.decode() not in told
        assert base64.b64encode(binary).decode()[:16] not in told
    assert (HEARD in told, "say it" in told) == (mode == "SPAN_ONLY",) * 2
    if mode != "SPAN_ONLY":
        assert not [name for name in CONTENT if name in told]


def test_the_limit_and_the_patterns_hold_here_too(instrumented: Spans, capture: Capture) -> None:
    capture(OTEL_LLM_CONTENT_LIMIT="10")
    with media_server("ann@example.com " + "x" * 50_000, DRAWN) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="local")
        client.audio.transcriptions.create(model="whisper-1", file=SOUND, response_format="text")
        client.audio.speech.create(model="tts-1", voice="alloy", input="bob@example.com " + "y" * 50_000).read()
    heard, spoken = ({**(span.attributes or {})} for span in instrumented.all())
    for told in (str(heard[s.OUTPUT_MESSAGES]), str(spoken[s.INPUT_MESSAGES])):
        assert "example.com" not in told
        assert len(told) < 200
