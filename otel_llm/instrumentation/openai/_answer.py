"""What came back, gathered from one object or from the chunks of a stream, typed or plain JSON.

Servers send anything. What is not what the API documents is passed over, field by field: a bad field costs its own fact, no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Final

from otel_llm.conventions import semconv
from otel_llm.conventions.finish_reasons import INCOMPLETE
from otel_llm.conventions.server_tools import server_tools
from otel_llm.conventions.token_usage import Usage, fields
from otel_llm.conventions.tool_calls import ToolRequests
from otel_llm.conventions.usage_reading import NO_UNITS, Reading, read_usage
from otel_llm.settings import settings
from otel_llm.support import faults

_RUNNING = ("queued", "in_progress")
_ENDED = ("completed", "incomplete", "failed", "cancelled")
_CODE = re.compile(r"[\w.:/-]{1,100}", re.ASCII)
"""What a code looks like: a sentence in its place may echo the prompt."""
_SOME_ERROR = "error"
_FAILED = ("message", "msg", "detail")
"""What gateways call the text of an error that stands in the answer itself."""
_ANSWERED = ("choices", "output", "data", "text", "usage")
"""What an answer has that is one."""
USAGE_QUESTION = ("stream_options", "include_usage", "streamoptions", "includeusage")
"""What a refusal to tell the usage of a stream names."""
_IMAGE = frozenset({"b64_json", "url", "revised_prompt"})
_IMAGE_EVENTS = ("image_generation.completed", "image_edit.completed")
_NOTHING: Mapping[str, Any] = {}
_NO_UNITS: dict[str, float] = {}
_OF_CHUNK = itemgetter("choices", "usage", "service_tier")
_OF_CHOICE = itemgetter("delta", "finish_reason")
_OF_DELTA = itemgetter("content", "tool_calls")
_LONGEST_TEXT = 1_000
"""Characters of an id, a name, a reason; whoever sends more sends no such thing."""


class Answer:
    """The facts of an answer that are recorded. Keeps no reference to the answer itself, unless its content is captured."""

    __slots__ = (
        "_asked",
        "_finish_reasons",
        "_reading",
        "_requested",
        "_state",
        "background",
        "characters",
        "content",
        "conversation",
        "error_type",
        "final",
        "fingerprint",
        "id",
        "model",
        "reasoning_characters",
        "refuses_usage",
        "tier",
        "units",
        "usage",
    )

    def __init__(self, asked: Mapping[str, Any] = _NOTHING) -> None:
        """`asked`: what is known of the call that it answers, as the attributes of its span."""
        self._asked = asked
        self._reading: Reading | None = None
        self.id: str | None = None
        self.model: str | None = None
        self.usage: Usage | None = None
        self.units: dict[str, float] = _NO_UNITS
        """What is billed by other things than tokens, by attribute."""
        self.conversation: str | None = None
        """The one that the provider keeps and has added this answer to."""
        self.characters = 0
        """How long it is by now: the text, the arguments of tool calls, and reasoning where that comes as it is, not summed up."""
        self.reasoning_characters = 0
        self.tier: str | None = None
        self.fingerprint: str | None = None
        self.error_type: str | None = None
        self.final = False
        """Whether the last event of a stream has been seen: leaving after it is not leaving early."""
        self.refuses_usage = False
        """Whether it tells of an error that names how we ask for usage."""
        self.background = False
        """Whether the provider goes on with it when nobody listens."""
        self._state: object = None
        """`status` of a Responses object, as it was last seen."""
        self._finish_reasons: dict[int, str] = {}
        self._requested: ToolRequests | None = None
        self.content: Any = None
        """What gathers the words of the answer, where they are captured."""
        if settings().captures_content:
            self.content = _content()

    def see(self, payload: object) -> None:
        """Takes what is new from an answer, a chunk or an event."""
        found = fields(payload)
        if not found:
            found = _bare(payload)
        kind = found.get("type")
        if kind is None or not isinstance(kind, str):
            kind = None
            self._see_object(found)
        elif (see := _EVENTS.get(kind)) is not None:
            see(self, found)
        elif not kind.startswith("response."):
            self._see_object(found)
        if self.content is not None and found.get("choices") is None:  # each choice is told of as it is read
            self.content.see(kind, found)

    def see_mere_text(self, chunk: Any) -> bool:
        """Takes a chunk of a chat that has nothing new but a piece of the text, as nearly all of a stream; False for any other.

        Of the client's own (pydantic) classes, with no field beside those that they name. Where `is_begun`.
        """
        try:
            (choice,), usage, tier = _OF_CHUNK(chunk.__dict__)
            said, reason = _OF_CHOICE(choice.__dict__)
            text, tools = _OF_DELTA(said.__dict__)
            if (
                type(text) is str
                and text
                and usage is None
                and reason is None
                and not (tools or chunk.__pydantic_extra__ or choice.__pydantic_extra__)
                and (tier is None or tier == self.tier)
            ):
                self.characters += len(text)
                return True
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # no chunk, or several choices or none
            faults.pass_on(error)
        return False

    @property
    def is_begun(self) -> bool:
        """Whether the first chunk has told whose answer this is, and what it says need not be kept."""
        return self.id is not None and self.content is None

    def _see_object(self, found: Mapping[str, Any]) -> None:
        """An answer that is no event, a chunk of one, or an event that holds its facts as an answer does."""
        whole = found.get("object")
        if whole == "response":
            self._see_response(found)
            return
        if self.id is None:
            self._see_identity(found)
        if error := found.get("error"):
            self._see_error(error)
        elif whole == "error":
            self._see_error(found)
        if choices := found.get("choices"):
            for choice in choices if isinstance(choices, list | tuple) else ():
                self._see_choice(fields(choice))
        elif not whole and found.get("type") is None:
            self._see_other_failure(found)
            self._see_images(found.get("data"))
        elif whole == "video":
            self._see_video(found.get("seconds"))
        if (usage := found.get("usage")) is not None:
            self._see_usage(usage, embeds=whole == "list")
        elif self._finish_reasons and self.usage is None:
            self._look_elsewhere(found)
        if (tier := found.get("service_tier")) is not None:
            self.tier = _text(tier)

    def _see_choice(self, found: Mapping[str, Any]) -> None:
        """One of the choices of a chat or a completion, or what a chunk adds to it."""
        reason = found.get("finish_reason")
        if reason is not None and (reason := _text(reason)) is not None:
            self._finish_reasons[_number(found)] = reason
        if reason == "error" or found.get("error"):  # OpenRouter, of a model that failed in the midst of it
            self._see_error(found.get("error"))
        whole = found.get("message")
        said = whole or found.get("delta")
        if type(said) is dict:
            text, asked = said.get("content"), said.get("tool_calls")
        else:
            text, asked = getattr(said, "content", None), getattr(said, "tool_calls", None)
        if text and type(text) is str:
            self.characters += len(text)
        if asked:
            self._see_tool_calls(asked)
        if whole or not text:
            self._see_other_text(found, fields(said))
        if self.content is not None:
            self.content.see_choice(_number(found), found)

    def _see_other_text(self, choice: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """What a model has written that is no content of a message: its reasoning, a refusal, a completion."""
        for name in ("reasoning_content", "reasoning"):
            if type(thought := said.get(name)) is str:
                self.reasoning_characters += len(thought)
                self.characters += len(thought)
                break  # who sends both sends the same
        if type(text := said.get("refusal") or choice.get("text")) is str:
            self.characters += len(text)

    def _see_piece(self, event: Mapping[str, Any]) -> None:
        if type(piece := event.get("delta")) is str:
            self.characters += len(piece)

    def _see_piece_of_reasoning(self, event: Mapping[str, Any]) -> None:
        if type(piece := event.get("delta")) is str:
            self.characters += len(piece)
            self.reasoning_characters += len(piece)

    def _see_usage(self, usage: object, *, embeds: bool = False) -> None:
        """Takes what a usage object says; in a stream each counts from the beginning, so the last one counts."""
        asked = self._asked
        model = self.model or asked.get(semconv.REQUEST_MODEL)
        reading = read_usage(usage, asked.get(semconv.PROVIDER), model, embeds=embeds)
        told, before = reading.usage, self.usage
        if told is None and not reading:
            return
        if told is None or (before is not None and not any(told)):  # 0, where nothing is said any more
            told = before
        elif self.units and semconv.IMAGES in self.units and told.output and told.image_output is None:
            told = told._replace(image_output=told.output)  # what an answer of images alone is made of
        self.usage = told
        self._reading = None if reading.units is NO_UNITS and reading.adds_up else reading

    def _look_elsewhere(self, found: Mapping[str, Any]) -> None:
        """The last chunk of a stream whose usage was not asked for, or is told in another place."""
        usage = fields(found.get("x_groq")).get("usage")
        choices = found.get("choices")
        if usage is None and isinstance(choices, list | tuple) and choices:
            usage = fields(choices[0]).get("usage")  # Moonshot
        usage = found.get("timings") if usage is None else usage  # llama.cpp
        if usage is not None:
            self._see_usage(usage)

    def _see_images(self, data: object) -> None:
        """The images of an answer, which nothing else names as such."""
        if isinstance(data, list | tuple) and data and not _IMAGE.isdisjoint(fields(data[0])):
            self.units = {semconv.IMAGES: float(len(data))}

    def _see_video(self, seconds: object) -> None:
        """A job that makes a video; how long that will be is said in words."""
        if isinstance(seconds, str | int) and str(seconds).isascii() and str(seconds).isdigit():
            self.units = {semconv.VIDEO_SECONDS: float(str(seconds)[:9])}

    def _see_state(self, event: Mapping[str, Any]) -> None:
        self._see_response(fields(event.get("response")))

    def _see_last_event(self, event: Mapping[str, Any]) -> None:
        self.final = True
        if event.get("type") in _IMAGE_EVENTS:
            self.units = {semconv.IMAGES: self.units.get(semconv.IMAGES, 0.0) + 1.0}
        self._see_object(event)

    def _see_error_event(self, event: Mapping[str, Any]) -> None:
        self.error_type = error_code(fields(event.get("error"))) or error_code(event) or _SOME_ERROR

    def _see_error(self, error: object) -> None:
        """An answer that tells of a failure, whatever the HTTP status says. The text of it is not looked at."""
        self.error_type = error_code(fields(error)) or self.error_type or _SOME_ERROR
        self.refuses_usage = self.refuses_usage or names_usage_question(error)

    def _see_other_failure(self, found: Mapping[str, Any]) -> None:
        """An answer without anything that was asked for, as gateways and providers put a failure into one of status 200."""
        if any(found.get(name) for name in _ANSWERED):
            return
        errors, told = found.get("errors"), fields(found.get("base_resp"))  # Cloudflare; MiniMax
        if errors:
            self._see_error(errors[0] if isinstance(errors, list | tuple) else errors)
        elif type(code := told.get("status_code")) is int and code:
            self._see_error({"code": code})
        elif found.get("success") is False or any(found.get(name) for name in _FAILED):
            self._see_error(found)

    def _see_identity(self, found: Mapping[str, Any]) -> None:
        self.id = _text(found.get("id"))
        self.model = _text(found.get("model")) or self.model
        if (fingerprint := found.get("system_fingerprint")) is not None:
            self.fingerprint = _text(fingerprint)

    def _see_response(self, found: Mapping[str, Any]) -> None:
        self._see_identity(found)
        self.tier = _text(found.get("service_tier"))
        self.conversation = _text(fields(found.get("conversation")).get("id"))
        if (usage := found.get("usage")) is not None:
            self._see_usage(usage)
        self.background = found.get("background") is True
        self._state = state = found.get("status")
        self.final = state in _ENDED
        output = found.get("output")
        items = [fields(item) for item in output] if isinstance(output, list | tuple) else ()
        if items:
            self.characters = self.reasoning_characters = 0  # whole, after the pieces of a stream
        for item in items:
            self._see_item(item)
        self.units = server_tools(items, found.get("tools")) or self.units
        match state:
            case "completed":
                self._finish_reasons[0] = "tool_calls" if self._requested else "stop"
            case "incomplete":
                limit = self._detail(found, "incomplete_details", "reason") or "incomplete"
                self._finish_reasons[0] = INCOMPLETE.get(limit, limit)
            case "failed":
                self._finish_reasons[0] = "error"
                error = fields(found.get("error")) or fields(fields(found.get("status_details")).get("error"))
                self.error_type = error_code(error) or "failed"
            case "cancelled":
                self._finish_reasons[0] = self._detail(found, "status_details", "reason") or "cancelled"
            case _ if found.get("error"):
                self._see_error(found["error"])

    def _see_tool_calls(self, asked: object) -> None:
        """Chat: whole in a message; in the deltas of a stream the id and the name come with the first piece of each."""
        for one in asked if isinstance(asked, list | tuple) else ():
            told = fields(one)
            function = fields(told.get("function") or told.get("custom"))
            name, arguments = function.get("name"), function.get("arguments") or function.get("input")
            self._request(_text(told.get("id")), _text(name))
            self.characters += (len(name) if type(name) is str else 0) + (
                len(arguments) if type(arguments) is str else 0
            )

    def _see_item(self, item: Mapping[str, Any]) -> None:
        """Responses: what has a `call_id` is for the client to run; what the provider runs itself has none."""
        kind = item.get("type")
        self.characters += _length_of_item(item)
        if kind == "reasoning":
            self.reasoning_characters += _length_of_item(item)
        if "call_id" in item and isinstance(kind, str) and kind.endswith("_call"):
            self._request(_text(item["call_id"]), _text(item.get("name")) or kind.removesuffix("_call"))

    def _request(self, identity: str | None, name: str | None) -> None:
        if identity is not None or name is not None:
            self._requested = self._requested or ToolRequests()
            self._requested.add(identity, name)

    @staticmethod
    def _detail(found: Mapping[str, Any], own: str, name: str) -> str | None:
        """A detail of how a response ended; Realtime has it in `status_details`, Responses in a field of its own."""
        return _text(fields(found.get(own) or found.get("status_details")).get(name))

    @property
    def status(self) -> str:
        if self.error_type is not None:
            return semconv.ERROR
        return semconv.CANCELLED if self._state == "cancelled" else semconv.OK

    @property
    def is_running(self) -> bool:
        """Whether the provider is still at work on it (a Responses object that is queued or in progress)."""
        return self._state in _RUNNING

    def attributes(self) -> dict[str, Any]:
        """The span attributes, usage apart."""
        found: dict[str, Any] = {}
        if self.id is not None:
            found[semconv.RESPONSE_ID] = self.id
        if self.model is not None:
            found[semconv.RESPONSE_MODEL] = self.model
        if self.conversation is not None:
            found[semconv.CONVERSATION_ID] = self.conversation
        if self._finish_reasons:
            found[semconv.FINISH_REASONS] = tuple(self._finish_reasons.values())  # as the SDK keeps it
        if self.units:
            found |= self.units
        if self._reading is not None:
            found |= self._reading.attributes()
        if self.tier is not None:
            found[semconv.OPENAI_RESPONSE_SERVICE_TIER] = self.tier
        if self.fingerprint is not None:
            found[semconv.OPENAI_SYSTEM_FINGERPRINT] = self.fingerprint
        if self._requested is not None:
            found |= self._requested.attributes()
        if self.content is not None and (said := self.content.messages(self._finish_reasons)):
            found[semconv.OUTPUT_MESSAGES] = said
        return found


_EVENTS: Final[Mapping[str, Callable[[Answer, Mapping[str, Any]], None]]] = {
    "error": Answer._see_error_event,
    **dict.fromkeys(
        (
            f"response.{piece}.delta"
            for piece in (
                "output_text",
                "refusal",
                "function_call_arguments",
                "custom_tool_call_input",
                "mcp_call_arguments",
                "code_interpreter_call_code",
            )
        ),
        Answer._see_piece,
    ),
    "response.reasoning_text.delta": Answer._see_piece_of_reasoning,
    **dict.fromkeys(
        (
            f"response.{state}"
            for state in ("created", "queued", "completed", "incomplete", "failed", "cancelled", "done")
        ),
        Answer._see_state,
    ),
    **dict.fromkeys(
        (*_IMAGE_EVENTS, "transcript.text.done", "speech.audio.done"),
        Answer._see_last_event,
    ),
}
"""The events of a stream that tell something. Any other of the Responses API tells a piece of what comes whole later."""


def _length_of_item(item: Mapping[str, Any]) -> int:
    """Characters that a model has written into an item of the output. A summary of its reasoning is not what it has written."""
    total = 0
    for name in ("arguments", "input", "code"):
        if type(text := item.get(name)) is str:
            total += len(text)
    for part in parts if isinstance(parts := item.get("content"), list | tuple) else ():
        said = fields(part)
        if type(text := said.get("text") or said.get("refusal")) is str:
            total += len(text)
    return total


def _number(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if type(index) is int else 0


def _bare(payload: object) -> Mapping[str, Any]:
    """What has no fields of its own: the text that a transcription may be asked for, and Gemini's errors, which come in a list."""
    if issubclass(type(payload), str):
        return {"text": payload}
    return fields(payload[0]) if type(payload) is list and payload else {}


def error_code(error: Mapping[str, Any]) -> str | None:
    """The code of an error object; else its type, or its status as Google has it. None where it has none."""
    for name in ("code", "type", "status"):
        value = error.get(name)
        if type(value) is int:
            return str(value)
        if isinstance(value, str) and _CODE.fullmatch(value):
            return value
    return None


def names_usage_question(*told: object) -> bool:
    """Whether what is told of an error names how the usage of a stream is asked for."""
    try:
        said = " ".join(map(str, told)).lower()
    except Exception as fault:  # an exception of another's making
        faults.pass_on(fault)
        return False
    return any(name in said for name in USAGE_QUESTION)


def _content() -> Any:
    from otel_llm.content import capture  # only with capture

    if not capture.wanted():
        return None
    from otel_llm.content.openai import Output

    return Output()


def _text(value: object) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    if len(value) > _LONGEST_TEXT:
        value = value[:_LONGEST_TEXT]
    # JSON can spell lone surrogates, which no exporter can encode.
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
