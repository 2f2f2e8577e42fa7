"""What an OpenAI request asks and what its answer says, typed or plain JSON, as messages of the GenAI conventions."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any, Final

from otel_llm.content.parts import (
    SLACK,
    Part,
    blob,
    class_name,
    each,
    parsed,
    part_of,
    parts_of,
    reasoning,
    tool_call,
    tool_call_response,
)
from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields
from otel_llm.settings import settings
from otel_llm.support import faults

Message = dict[str, Any]

_ASKED: Final = frozenset(
    {
        semconv.CHAT,
        semconv.TEXT_COMPLETION,
        semconv.COMPACT,
        semconv.DECISION,
        semconv.IMAGE_GENERATION,
        semconv.SPEECH,
        semconv.TRANSCRIPTION,
        semconv.TRANSLATION,
    }
)
"""Operations whose request is recorded. What is embedded is not: the conventions have no attribute for it."""
_LAST_IMAGE_EVENTS: Final = frozenset({"image_generation.completed", "image_edit.completed"})
_TRANSCRIBED: Final = frozenset({None, "transcript.text.done"})
"""The types of what holds a whole transcript as `text`: that of a plain answer, and that of a stream's last event."""
_SERVER_CALL_FIELDS: Final = ("status", "name", "server_label", "arguments", "queries", "action", "code", "input")
_SERVER_ANSWER_FIELDS: Final = ("output", "results", "outputs", "error")


def request(operation: str, body: Mapping[str, Any], files: object = None) -> dict[str, Any]:
    """The content of a request, by attribute name. Raises nothing.

    Args:
        operation: `gen_ai.operation.name`.
        body: what is sent as JSON, or as the fields of a form.
        files: what is uploaded with a form, as `httpx` takes it.
    """
    found: dict[str, Any] = {}
    if operation not in _ASKED:
        return found
    try:
        if instructions := parts_of(body.get("instructions")):
            found[semconv.SYSTEM_INSTRUCTIONS] = instructions
        messages = _asked(body)
        if uploaded := _uploaded(operation, files):
            told = [part for message in messages for part in message["parts"]]
            messages = [{"role": "user", "parts": [*uploaded, *told]}]
        if messages:
            found[semconv.INPUT_MESSAGES] = messages
        if tools := definitions(body.get("tools") or body.get("functions")):
            found[semconv.TOOL_DEFINITIONS] = tools
    except Exception as fault:
        faults.report("read what an OpenAI request asks", fault)
    return found


def _asked(body: Mapping[str, Any]) -> list[Message]:
    if isinstance(messages := body.get("messages"), list | tuple):
        return [chat_message(fields(message)) for message in messages]
    given = body.get("input")
    if isinstance(given, str):
        return [{"role": "user", "parts": parts_of(given)}]
    if isinstance(given, list | tuple):
        return [message for item in given if (message := item_message(fields(item))) is not None]
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        prompt = [prompt]
    if isinstance(prompt, list | tuple) and prompt:
        if isinstance(prompt[0], int):
            prompt = [prompt]
        return [{"role": "user", "parts": parts_of(one) if isinstance(one, str) else _tokens(one)} for one in prompt]
    return []


def _uploaded(operation: str, files: object) -> list[Part]:
    """Placeholders for the files of a form."""
    modality = "image" if operation == semconv.IMAGE_GENERATION else "audio"
    named = files.items() if isinstance(files, Mapping) else files if isinstance(files, list | tuple) else ()
    found = []
    for _, file in named:
        content, kind = file, None
        if isinstance(file, tuple):  # name, content, MIME type
            content, kind = file[1], file[2] if len(file) > 2 else None
        found.append(blob(modality, content if isinstance(content, bytes | bytearray) else None, kind))
    return found


def _tokens(given: object) -> list[Part]:
    return [{"type": "tokens", "count": len(given)}] if isinstance(given, list | tuple) else []


def chat_message(found: Mapping[str, Any]) -> Message:
    """A message of the chat API, asked or answered."""
    role = found.get("role")
    message: Message = {"role": role if isinstance(role, str) else "assistant", "parts": []}
    if isinstance(name := found.get("name"), str):
        message["name"] = name
    parts = message["parts"]
    if role in ("tool", "function"):
        parts.append(tool_call_response(found.get("tool_call_id"), found.get("content")))
        return message
    if thought := reasoning({"reasoning_content": found.get("reasoning_content") or found.get("reasoning")}):
        parts.append(thought)
    parts += parts_of(found.get("content"))
    if isinstance(refusal := found.get("refusal"), str) and refusal:
        parts.append({"type": "refusal", "content": refusal})
    if (audio := fields(found.get("audio"))) and (part := part_of({**audio, "type": "audio"})):
        parts.append(part)
    for call in each(found.get("tool_calls")):
        parts.append(_called(fields(call)))
    if call := fields(found.get("function_call")):
        parts.append(tool_call(None, call.get("name"), call.get("arguments")))
    return message


def _called(call: Mapping[str, Any]) -> Part:
    function = fields(call.get("function") or call.get("custom"))
    return tool_call(call.get("id"), function.get("name"), function.get("arguments", function.get("input")))


def item_message(found: Mapping[str, Any]) -> Message | None:
    """An item of the Responses API."""
    kind = found.get("type")
    if kind == "message" or (kind is None and "role" in found):
        return chat_message({"role": found.get("role"), "content": found.get("content")})
    if not isinstance(kind, str):
        return None
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {"role": "tool", "parts": [tool_call_response(found.get("call_id"), found.get("output"))]}
    if kind in ("function_call", "custom_tool_call"):
        called = tool_call(found.get("call_id"), found.get("name"), found.get("arguments", found.get("input")))
        return {"role": "assistant", "parts": [called]}
    if kind == "reasoning":
        thought = reasoning(found)
        return None if thought is None else {"role": "assistant", "parts": [thought]}
    if kind == "image_generation_call":
        return {"role": "assistant", "parts": [blob("image", found.get("result"))]}
    if kind == "compaction":
        return {"role": "assistant", "parts": [{"type": "compaction"}]}
    if kind.endswith("_output") or kind == "mcp_approval_response":
        return {"role": "tool", "parts": [_served(found, kind)]}
    return {"role": "assistant", "parts": _serving(found, kind)}


def _serving(found: Mapping[str, Any], kind: str) -> list[Part]:
    """A tool that the provider runs itself: what was asked of it, and its answer where the item carries that too."""
    if not kind.endswith("_call"):
        return [{"type": kind}]
    name = found.get("name")
    asked: Part = {"type": kind}
    for field in _SERVER_CALL_FIELDS:
        if (value := found.get(field)) is not None and field != "name":
            asked[field] = parsed(value)
    call: Part = {
        "type": "server_tool_call",
        "name": name if isinstance(name, str) else kind.removesuffix("_call"),
        "server_tool_call": asked,
    }
    parts = [call]
    if any(found.get(field) is not None for field in _SERVER_ANSWER_FIELDS):
        parts.append(_served(found, kind))
    for part in parts:
        if isinstance(identity := found.get("id"), str):
            part["id"] = identity
    return parts


def _served(found: Mapping[str, Any], kind: str) -> Part:
    answer: Part = {"type": kind}
    for field in _SERVER_ANSWER_FIELDS:
        value = found.get(field)
        if isinstance(value, str):
            answer[field] = value
        elif value is not None:
            blocks = value if isinstance(value, list | tuple) else [value]
            answer[field] = [part for block in blocks if (part := part_of(block)) is not None]
    return {"type": "server_tool_call_response", "server_tool_call_response": answer}


def definitions(tools: object) -> list[Part]:
    found: list[Part] = []
    for tool in tools if isinstance(tools, list | tuple) else ():
        if issubclass(type(tool), type | FunctionType):  # LangChain's tools may be given so: the schema is made of it
            called = class_name(tool) if issubclass(type(tool), type) else tool.__name__
            found.append({"type": "function", "name": called.rpartition(".")[2]})
            continue
        told = fields(tool)
        kind = told.get("type")
        inner = fields(told.get("function")) or fields(told.get("custom")) or told
        name = inner.get("name") or told.get("server_label")
        definition: Part = {"type": kind if isinstance(kind, str) else "function"}
        definition["name"] = name if isinstance(name, str) else definition["type"]
        for field in ("description", "parameters"):
            if (value := inner.get(field)) is not None:
                definition[field] = value
        found.append(definition)
    return found


class Output:
    """What a model says, gathered from one object or from the chunks of a stream. Bounded by the content limit."""

    __slots__ = ("_choices", "_images", "_items", "_longest", "_texts", "_transcript")

    def __init__(self) -> None:
        self._longest = settings().content_limit + SLACK
        self._choices: dict[int, _Choice] = {}
        self._items: dict[int, Any] = {}
        """Output items of the Responses API, complete."""
        self._texts: dict[int, _Text] = {}
        """The text so far of items that are not complete."""
        self._images: list[Part] = []
        self._transcript: _Text | None = None

    def see(self, kind: str | None, found: Mapping[str, Any]) -> None:
        """Takes what is new from an answer, a chunk or an event (of this kind) that has no choices. Raises nothing."""
        try:
            if kind is not None and kind.startswith("response."):
                self._see_event(kind, found)
            elif found.get("object") == "response":
                self._see_response(found)
            elif isinstance(data := found.get("data"), list | tuple):
                self._images += [
                    blob("image", image.get("b64_json"))
                    for item in data
                    if (image := fields(item)).get("b64_json") or image.get("url")
                ]
            elif kind in _LAST_IMAGE_EVENTS:
                self._images.append(blob("image", found.get("b64_json")))
            elif kind == "transcript.text.delta" or kind in _TRANSCRIBED:
                self._see_transcript(found)
        except Exception as fault:
            faults.report("read what an OpenAI answer says", fault)

    def see_choice(self, number: int, found: Mapping[str, Any]) -> None:
        """Takes what is new from a choice of a chat or a completion. Raises nothing."""
        try:
            choice = self._choices.get(number)
            if choice is None:
                choice = self._choices[number] = _Choice()
            if (message := found.get("message")) is not None:
                choice.message = message
            elif (delta := found.get("delta")) is not None:
                choice.see_delta(fields(delta), self._longest)
            elif (text := found.get("text")) is not None:
                choice.text.add(text, self._longest)
        except Exception as fault:
            faults.report("read what an OpenAI answer says", fault)

    def _see_transcript(self, found: Mapping[str, Any]) -> None:
        if (whole := found.get("text")) is not None or self._transcript is None:
            self._transcript = _Text()
        self._transcript.add(found.get("delta") if whole is None else whole, self._longest)

    def _see_event(self, kind: str, event: Mapping[str, Any]) -> None:
        index = event.get("output_index")
        number = index if type(index) is int else 0
        if kind == "response.output_text.delta":
            text = self._texts.get(number)
            if text is None:
                text = self._texts[number] = _Text()
            text.add(event.get("delta"), self._longest)
        elif kind == "response.output_item.done":
            self._items[number] = event.get("item")
            self._texts.pop(number, None)
        elif response := fields(event.get("response")):
            self._see_response(response)

    def _see_response(self, response: Mapping[str, Any]) -> None:
        output = response.get("output")
        if isinstance(output, list | tuple) and output:
            self._items = dict(enumerate(output))
            self._texts.clear()

    def messages(self, finish_reasons: Mapping[int, str]) -> list[Message]:
        """One message for each choice; empty where nothing was said.

        `finish_reasons`: by the number of the choice; a Responses object, whose output is one message, has the first. Raises
        nothing: of an answer that cannot be read, all else is still told.
        """
        try:
            return self._messages(finish_reasons)
        except Exception as fault:
            faults.report("read what an OpenAI answer says", fault)
            return []

    def _messages(self, finish_reasons: Mapping[int, str]) -> list[Message]:
        found: list[Message] = []
        for number, choice in sorted(self._choices.items()):
            found.append(choice.output())
            if (reason := finish_reasons.get(number)) is not None:
                found[-1]["finish_reason"] = reason
        items: dict[int, list[Part]] = {}
        for number, item in self._items.items():
            if (message := item_message(fields(item))) is not None:
                items[number] = message["parts"]
        for number, text in self._texts.items():
            items[number] = parts_of(text.value())
        parts = [part for _, those in sorted(items.items()) for part in those] + self._images
        if self._transcript is not None:
            parts += parts_of(self._transcript.value())
        if parts:
            found.append({"role": "assistant", "parts": parts})
            if (reason := finish_reasons.get(0)) is not None:
                found[-1]["finish_reason"] = reason
        return [message for message in found if message["parts"]]


class _Text:
    """A text that arrives in pieces. Keeps no more than will be recorded."""

    __slots__ = ("_length", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0

    def add(self, piece: object, longest: int) -> None:
        if isinstance(piece, str) and self._length <= longest:
            self._pieces.append(piece)
            self._length += len(piece)

    def value(self) -> str:
        return "".join(self._pieces)


class _Choice:
    """One of the answers to a chat or a completion."""

    __slots__ = ("message", "reasoning", "refusal", "role", "text", "tools", "transcript")

    MOST_TOOLS: Final = 256

    def __init__(self) -> None:
        self.message: object = None
        self.role = "assistant"
        self.text = _Text()
        self.reasoning = _Text()
        self.refusal = _Text()
        self.transcript = _Text()
        self.tools: dict[int, tuple[dict[str, Any], _Text]] = {}

    def see_delta(self, delta: Mapping[str, Any], longest: int) -> None:
        if isinstance(role := delta.get("role"), str):
            self.role = role
        if content := delta.get("content"):
            self.text.add(content, longest)
        if refusal := delta.get("refusal"):
            self.refusal.add(refusal, longest)
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            self.reasoning.add(thought, longest)
        if audio := delta.get("audio"):
            self.transcript.add(fields(audio).get("transcript"), longest)
        if asked := delta.get("tool_calls"):
            self._see_tool_calls(asked, longest)

    def _see_tool_calls(self, asked: object, longest: int) -> None:
        for call in each(asked):
            told = fields(call)
            index = told.get("index")
            number = index if type(index) is int else len(self.tools)
            if number not in self.tools and len(self.tools) >= self.MOST_TOOLS:
                continue
            known, arguments = self.tools.setdefault(number, ({}, _Text()))
            function = fields(told.get("function") or told.get("custom"))
            known.update(
                {key: value for key, value in (("id", told.get("id")), ("name", function.get("name"))) if value}
            )
            arguments.add(function.get("arguments") or function.get("input"), longest)

    def output(self) -> Message:
        if self.message is not None:
            message = chat_message(fields(self.message))
        else:
            told: dict[str, Any] = {
                "role": self.role,
                "content": self.text.value(),
                "refusal": self.refusal.value(),
                "reasoning_content": self.reasoning.value(),
            }
            message = chat_message(told)
            if transcript := self.transcript.value():
                message["parts"].append({"type": "blob", "modality": "audio", "transcript": transcript})
            for _, (known, arguments) in sorted(self.tools.items()):
                message["parts"].append(tool_call(known.get("id"), known.get("name"), arguments.value()))
        return message
