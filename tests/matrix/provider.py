"""The local OpenAI server with the endpoints that only the matrix needs: images, audio, jobs, websockets.

`python tests/matrix/provider.py --port 8080` serves it; `Provider()` is it as a child process, as `LocalOpenAI` is.

Endpoints, beside those of `examples/local_openai.py`: `/v1/images/generations`, `/v1/images/edits`,
`/v1/audio/transcriptions`, `/v1/audio/translations`, `/v1/audio/speech`, `/v1/responses/compact`, `/v1/decisions`, `/v1/batches`
(complete when first asked for), `/v1/files`, `/v1/moderations`; and the websockets `/v1/realtime`, `/v1/responses`,
`/v1/live/sessions`.

An endpoint that runs no model has its path as `Call.endpoint` in the ledger, so it begins with a slash; a websocket has an entry
for each response. Behaviours work where they are refusals; `cut` loses a websocket in the middle of a response.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import local_openai as local
elif "local_openai" in sys.modules:
    local = sys.modules["local_openai"]
else:
    # By its file, as in tests/conftest.py: the directory of the examples stays out of sys.path.
    _file = Path(__file__).resolve().parents[2] / "examples" / "local_openai.py"
    _spec = importlib.util.spec_from_file_location("local_openai", _file)
    local = sys.modules["local_openai"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(local)

JSON = dict[str, Any]
_DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Provider(local.LocalOpenAI):
    """The server in a process of its own."""

    _script = Path(__file__).resolve()


# ---------------------------------------------------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------------------------------------------------


def _whole(plan: Any, answer: Any, usage: JSON | None, wire_usage: Any = None, *, id_prefix: str = "") -> Any:
    """An answer in one piece, which reports what is billed if there is anything."""
    plan.usage, plan.id_prefix = usage, id_prefix
    plan.reported = usage is not None
    if usage is not None:
        answer = {**answer, "usage": usage if wire_usage is None else wire_usage}
    plan.body = local._cut_at_id(local._dump(answer))
    return plan


def _events(plan: Any, *events: JSON) -> Any:
    """A stream of named events, of which the last carries the usage."""
    plan.content_type = b"text/event-stream; charset=utf-8"
    plan.frames = [local._sse(event, event["type"]) for event in events]
    plan.usage_frame = len(events) - 1
    return plan


def _plan_images(request: Any, wire_usage: Any) -> Any:
    prompt = str(request.body.get("prompt", ""))
    if refused := request.refusal(prompt):
        return refused
    text, images, made = local._count(prompt), 40 if "image" in request.body else 0, 4_160
    usage = {
        "input_tokens": text + images,
        "output_tokens": made,
        "total_tokens": text + images + made,
        "input_tokens_details": {"text_tokens": text, "image_tokens": images},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
    }
    head = {"created": int(time.time()), "size": "1024x1024", "quality": "low", "output_format": "png"}
    if request.stream:
        kind = "image_edit" if request.plan.endpoint == "images.edit" else "image_generation"
        image = {"b64_json": _DOT, "created_at": head["created"], "background": "opaque", **head}
        request.plan.usage = usage
        return _events(
            request.plan,
            {"type": f"{kind}.partial_image", "partial_image_index": 0, **image},
            {"type": f"{kind}.completed", "usage": usage if wire_usage is None else wire_usage, **image},
        )
    return _whole(request.plan, {**head, "data": [{"b64_json": _DOT}]}, usage, wire_usage)


def _plan_transcription(request: Any, wire_usage: Any) -> Any:
    if refused := request.refusal("audio"):
        return refused
    text, plan = "hello from the tape", request.plan
    if request.model == "whisper-1":  # billed by the length, and told in the verbose format only
        if request.body.get("response_format") == "verbose_json":
            seconds = {"type": "duration", "seconds": 2}
            return _whole(plan, {"text": text, "duration": 2.0, "language": "english"}, seconds)
        return _whole(plan, {"text": text}, None)
    usage = {
        "type": "tokens",
        "input_tokens": 14,
        "output_tokens": 5,
        "total_tokens": 19,
        "input_token_details": {"text_tokens": 2, "audio_tokens": 12},
    }
    if request.body.get("response_format") == "text":
        plan.usage, plan.content_type, plan.body = usage, b"text/plain; charset=utf-8", [text.encode()]
        return plan
    if request.stream:
        plan.usage = usage
        deltas = [{"type": "transcript.text.delta", "delta": word} for word in text.split()]
        return _events(plan, *deltas, {"type": "transcript.text.done", "text": text, "usage": usage})
    return _whole(plan, {"text": text}, usage, wire_usage)


def _plan_translation(request: Any, wire_usage: Any) -> Any:
    return request.refusal("audio") or _whole(request.plan, {"text": "hello from the tape"}, None)


def _plan_speech(request: Any, wire_usage: Any) -> Any:
    if refused := request.refusal(str(request.body.get("input", ""))):
        return refused
    plan = request.plan
    usage = {"input_tokens": local._count(str(request.body.get("input", ""))), "output_tokens": 20, "total_tokens": 25}
    plan.usage = usage
    if request.body.get("stream_format") == "sse":
        return _events(
            plan, {"type": "speech.audio.delta", "audio": "AAAA"}, {"type": "speech.audio.done", "usage": usage}
        )
    plan.content_type, plan.body = b"audio/mpeg", [b"\x00\x01\x02"]
    return plan


def _plan_compact(request: Any, wire_usage: Any) -> Any:
    if refused := request.refusal(str(request.body.get("input", ""))):
        return refused
    tokens = local._count(str(request.body.get("input", "")))
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": tokens // 2, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens + 6,
    }
    answer = {"id": f"resp_{local._ID}", "object": "response.compaction", "created_at": int(time.time()), "output": []}
    return _whole(request.plan, answer, usage, wire_usage, id_prefix="resp_")


def _plan_decision(request: Any, wire_usage: Any) -> Any:
    usage = {"input_tokens": 6, "output_tokens": 1, "total_tokens": 7}
    return request.refusal("") or _whole(request.plan, {"model": request.model, "answers": []}, usage, wire_usage)


def _plan_batch(request: Any, wire_usage: Any) -> Any:
    """Billed as one call, which is told once the batch is complete."""
    plan = request.plan
    plan.model = plan.response_model = "gpt-5-mini"
    usage = plan.usage = {
        "input_tokens": 70,
        "input_tokens_details": {"cached_tokens": 10},
        "output_tokens": 30,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 100,
    }
    now = int(time.time())
    batch = {
        "id": f"batch_{local._ID}",
        "object": "batch",
        "endpoint": request.body.get("endpoint"),
        "input_file_id": request.body.get("input_file_id"),
        "completion_window": "24h",
        "created_at": now,
        "status": "validating",
    }
    plan.id_prefix = "batch_"
    plan.body = local._cut_at_id(local._dump(batch))
    done = {**batch, "status": "completed", "completed_at": now, "model": plan.model, "usage": usage}
    plan.later, plan.reported_later = local._cut_at_id(local._dump(done)), True
    return plan


def _plan_moderation(request: Any, wire_usage: Any) -> Any:
    categories = {"violence": False, "hate": False}
    result = {"flagged": False, "categories": categories, "category_scores": {}, "category_applied_input_types": {}}
    answer = {"id": "modr-1", "model": "omni-moderation-latest", "results": [result]}
    return request.refusal("") or _whole(request.plan, answer, None)


def _plan_file(request: Any, wire_usage: Any) -> Any:
    answer = {"id": "file-1", "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
    return _whole(request.plan, {**answer, "status": "processed"}, None)


local._ENDPOINTS.update(
    {
        "/images/generations": ("images.generate", _plan_images),
        "/images/edits": ("images.edit", _plan_images),
        "/audio/transcriptions": ("audio.transcriptions", _plan_transcription),
        "/audio/translations": ("audio.translations", _plan_translation),
        "/audio/speech": ("audio.speech", _plan_speech),
        "/responses/compact": ("responses.compact", _plan_compact),
        "/decisions": ("decisions", _plan_decision),
        "/batches": ("batches", _plan_batch),
        "/moderations": ("/moderations", _plan_moderation),
        "/files": ("/files", _plan_file),
    }
)


# ---------------------------------------------------------------------------------------------------------------------
# The application
# ---------------------------------------------------------------------------------------------------------------------


def _form(body: bytes) -> JSON:
    """The fields of a multipart form, as far as an answer depends on them."""
    found: JSON = {}
    for part in body.split(body.partition(b"\r\n")[0])[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        if name := re.search(rb'name="([^"]+)"', head):
            text = value.removesuffix(b"\r\n").decode("latin-1")
            found[name[1].decode()] = {"true": True, "false": False}.get(text, text)
    return found


class App(local.App):
    """The server as an ASGI application."""

    async def __call__(self, scope: JSON, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _plan(self, path: str, body: bytes, behaviours: str, wire_usage: str) -> Any:
        if body.startswith(b"--"):
            body = json.dumps(_form(body)).encode()
        return super()._plan(path, body, behaviours, wire_usage)

    async def _websocket(self, scope: JSON, receive: Any, send: Any) -> None:
        kind = scope["path"].removeprefix("/v1/").partition("/")[0]
        query = scope["query_string"].decode()
        await receive()
        await send({"type": "websocket.accept"})
        session: list[Any] = []
        while (message := await receive())["type"] != "websocket.disconnect":
            event = json.loads(message.get("text") or message["bytes"])
            for said in self._say(kind, event, session, scope["path"], "cut" in query):
                if said is None:
                    await send({"type": "websocket.close", "code": 1011 if "cut" in query else 1000})
                    return
                await send({"type": "websocket.send", "text": json.dumps(said)})

    def _bill(self, kind: str, path: str, model: str | None, usage: JSON, *, cut: bool) -> str:
        """A line in the ledger for a response over a websocket; returns the response's id."""
        response_id = f"resp_{self._run}{next(self._ids):08x}"
        plan = local._Plan(kind, model, model, stream=True, usage=usage)
        outcome = "broken" if cut else "ok"
        self._entries.append(local._Entry(plan, path, response_id, 200, outcome, not cut, [], b""))
        return response_id

    def _say(self, kind: str, event: JSON, session: list[Any], path: str, cut: bool) -> list[JSON | None]:
        """What a websocket answers to an event; None closes it."""
        numbers = itertools.count()

        def events(*all_: JSON) -> list[JSON | None]:
            told: list[JSON | None] = [{"event_id": f"e{next(numbers)}", **one} for one in all_]
            return [told[0], None] if cut else told

        match kind, event.get("type"):
            case "realtime", "response.create":
                usage = _realtime_usage()
                identity = self._bill("realtime", path, "gpt-realtime", usage, cut=cut)
                head = {"id": identity, "object": "realtime.response"}
                delta = {"type": "response.output_audio.delta", "response_id": identity, "delta": "AAAA"}
                done = {**head, "status": "completed", "usage": usage}
                created = {"type": "response.created", "response": {**head, "status": "in_progress", "usage": None}}
                return events(created, delta, {"type": "response.done", "response": done})
            case "responses", "response.create":
                usage = {"input_tokens": 7, "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 2}}
                identity = self._bill("responses", path, event.get("model"), usage, cut=cut)
                head = {"id": identity, "object": "response", "model": event.get("model"), "output": []}
                created = {"type": "response.created", "response": {**head, "status": "in_progress"}}
                done = {**head, "status": "completed", "usage": usage}
                return events(created, {"type": "response.completed", "response": done})
            case "live", "session.start":
                model = event["session"]["model"]
                identity = self._bill("live", path, model, {"seconds": 3.0}, cut=cut)
                head = {"id": identity, "model": model}
                delegated = [
                    {"type": "response.event", "event": one}
                    for one in (() if cut else self._say("realtime", {"type": "response.create"}, session, path, False))
                ]
                closed = {"type": "session.closed", "session": head, "reason": "close_requested"}
                return [
                    *events(
                        {"type": "session.started", "session": head},
                        {"type": "session.usage.updated", "usage": {"seconds": 1.5}},
                        *delegated,
                        {**closed, "usage": {"seconds": 3.0}},
                    ),
                    None,
                ]
        return [None]  # rather than have the client wait


def _realtime_usage() -> JSON:
    return {
        "total_tokens": 30,
        "input_tokens": 20,
        "output_tokens": 10,
        "input_token_details": {"text_tokens": 5, "audio_tokens": 12, "image_tokens": 3, "cached_tokens": 4},
        "output_token_details": {"text_tokens": 3, "audio_tokens": 7},
    }


if __name__ == "__main__":
    local.main(App)
