"""What a model says while it says it: the increments of a stream, redacted like what is recorded, for those who asked for them.

A secret may come in pieces. So what is looked at is the whole text so far, up to where a word has ended, and what is told of it is
what the redacted text has grown by. The longer the text, the longer the increments: reading it again costs in proportion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from otel_llm.content.capture import as_json, clean_messages
from otel_llm.content.openai import Output
from otel_llm.content.parts import SLACK, Part, each, parsed, tool_call
from otel_llm.content.redaction import RedactionFailed, current, fail
from otel_llm.conventions.token_usage import fields
from otel_llm.settings import settings
from otel_llm.support import faults

TEXT: Final = "text"
REASONING: Final = "reasoning"
REFUSAL: Final = "refusal"
TOOL_CALL: Final = "tool_call"

_MOST_PARTS: Final = 1_024
_SHARE: Final = 64
"""A text of n characters is told on by n / this at least: all readings of it together cost this many times one of the whole."""
_ENDED_WORD: Final = re.compile(
    r""".*(?:[\s\u0e00-\u0eff\u3000-\u9fff\uac00-\ud7af\uff00-\uffef]|["\]}],)""", re.DOTALL
)
"""Up to where no word goes on: a blank, a script that is written without any, and what parts two fields of JSON."""
_NUMBER: Final = re.compile(r"(?:\d[ -]?)+\Z")
"""What may be the beginning of a card number, which has blanks in it."""
_LONGEST_NUMBER: Final = 48


class Increment(NamedTuple):
    """What a part of an answer has grown by."""

    kind: str
    """`text`, `reasoning`, `refusal` or `tool_call`."""
    text: str
    """Of a tool call a piece of its arguments; empty as it begins."""
    choice: int = 0
    """Which of several answers to one request."""
    tool_name: str | None = None
    tool_call_id: str | None = None


Tell = Callable[[Increment], None]


class Increments:
    """The parts of one answer that is being streamed, and what they grow by."""

    __slots__ = ("_is_last", "_last", "_parts", "_tell")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._parts: dict[tuple[int, str, object], _Growing] = {}
        self._last: dict[int, _Growing] = {}
        """The part that each choice was last heard of with."""

    def add(
        self,
        kind: str,
        piece: object,
        choice: int = 0,
        part: object = 0,
        name: object = None,
        identity: object = None,
    ) -> None:
        """Takes a piece of a part. `part` tells parts of one kind apart; a tool call may be named by its first piece alone."""
        key = choice, kind, part
        growing = self._parts.get(key)
        if growing is None:
            if len(self._parts) >= _MOST_PARTS:
                return
            growing = self._parts[key] = _Growing(Increment(kind, "", choice, _text(name), _text(identity)))
            if kind == TOOL_CALL:
                self._tell(growing.told)
        before = self._last.get(choice)
        if before is not growing:
            self._last[choice] = growing
            if before is not None:
                self._send(before, before.rest())
        if isinstance(piece, str) and piece:
            self._send(growing, growing.add(piece))

    def end(self) -> None:
        """The answer is over: tells what was kept back."""
        for growing in self._last.values():
            self._send(growing, growing.rest())
        self._last.clear()

    def _send(self, growing: _Growing, text: str) -> None:
        if text:
            self._tell(growing.told._replace(text=text))


class _Growing:
    """One text that arrives in pieces."""

    __slots__ = ("_cleaned", "_clears", "_longest", "_raw", "_read", "_safe", "_whole", "told")

    def __init__(self, told: Increment) -> None:
        self.told = told
        """What every increment of it says beside its text."""
        redactor = current()
        self._raw = ""
        self._longest = settings().content_limit + SLACK
        self._clears = redactor is not None or settings().redact_builtin
        # The app's function takes the arguments of a tool apart: it is to see what it sees at the end.
        self._whole = redactor is not None and told.kind == TOOL_CALL
        self._safe = 0
        """Up to where no word goes on."""
        self._read = 0
        """Up to where it was redacted."""
        self._cleaned = ""
        """What came of that, and was told."""

    def add(self, piece: str) -> str:
        """Takes a piece. What can be told now."""
        start = len(self._raw)
        piece = piece[: max(0, self._longest - start)]
        self._raw += piece
        if self._whole or not piece:
            return ""
        if not self._clears:
            self._read = len(self._raw)
            return piece
        if (ended := _ENDED_WORD.match(self._raw, max(0, start - 1))) is not None:
            self._safe = ended.end()
        safe = self._safe
        if number := _NUMBER.search(self._raw, max(0, safe - _LONGEST_NUMBER), safe):
            safe = number.start()
        return self._tell_until(safe) if safe - self._read > len(self._raw) // _SHARE else ""

    def rest(self) -> str:
        """What is left to tell: no more is to come, or not for now."""
        end = len(self._raw)
        return self._tell_until(end, is_end=True) if self._clears and self._read < end else ""

    def _tell_until(self, end: int, *, is_end: bool = False) -> str:
        text = self._raw[:end]
        # A text in JSON is read as the value it stands for, which one that is cut off is not.
        closing = "" if is_end else _closing(text)
        if closing is None:
            return ""
        self._read = end
        try:
            cleaned = self._clean(text + closing)
        except RedactionFailed as failure:
            fail(failure)
            self._longest = 0  # no more of it
            return ""
        if cleaned is None:
            return ""
        cleaned = cleaned.removesuffix(closing)
        before, self._cleaned = self._cleaned, cleaned
        # What was told cannot be taken back: where it has become part of something to be left out, what follows it is told.
        return cleaned[_common(before, cleaned) :]

    def _clean(self, text: str) -> str | None:
        part: Part = {"type": self.told.kind, "content": text}
        field = "content"
        if self.told.kind == TOOL_CALL:
            part = tool_call(self.told.tool_call_id, self.told.tool_name, None)
            field = "arguments"
            part[field] = parsed(text) if self._whole else text
        messages = clean_messages([{"role": "assistant", "parts": [part]}])
        cleaned = messages[0]["parts"][0].get(field) if messages and messages[0]["parts"] else None
        return cleaned if cleaned is None or isinstance(cleaned, str) else as_json(cleaned)


def _closing(text: str) -> str | None:
    """What closes a JSON text that is cut off; empty where it is none, None where it is cut off between two values."""
    if text[:1] not in ("{", "["):
        return ""
    open_ends: list[str] = []
    in_string = False
    for found in _JSON_SIGNS.finditer(text):
        sign = found[0]
        if sign == '"':
            in_string = not in_string
        elif in_string:
            continue
        elif sign in _CLOSING:
            open_ends.append(_CLOSING[sign])
        elif open_ends and sign[0] != "\\":
            open_ends.pop()
    closing = '"' * in_string + "".join(reversed(open_ends))
    try:
        json.loads(text + closing)
    except json.JSONDecodeError as error:
        return None if error.pos >= len(text.rstrip()) - 1 else ""
    except (ValueError, RecursionError):
        return ""
    return closing


_JSON_SIGNS: Final = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_CLOSING: Final[Mapping[str, str]] = {"{": "}", "[": "]"}


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    if other.startswith(one):
        return len(one)
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


# --- OpenAI's streams -------------------------------------------------------------------------------------------------
class ToldOutput(Output):
    """What a model says, which somebody is told of as it comes."""

    __slots__ = ("_increments",)

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._increments = Increments(tell)

    def see(self, kind: str | None, found: Mapping[str, Any]) -> None:
        super().see(kind, found)
        try:
            if kind is not None and (of := _DELTAS.get(kind)) is not None:
                part = found.get("output_index"), found.get("content_index"), found.get("summary_index")
                self._increments.add(of, found.get("delta"), part=part)
            elif kind == "response.output_item.added":
                self._see_item(found.get("output_index"), fields(found.get("item")))
        except Exception as fault:
            faults.report("tell of an increment", fault)

    def _see_item(self, index: object, item: Mapping[str, Any]) -> None:
        if item.get("call_id") is not None:
            part = index, None, None
            self._increments.add(TOOL_CALL, None, part=part, name=item.get("name"), identity=item["call_id"])

    def see_choice(self, number: int, found: Mapping[str, Any]) -> None:
        super().see_choice(number, found)
        try:
            if text := found.get("text"):
                self._increments.add(TEXT, text, number)
            if delta := fields(found.get("delta")):
                see_delta(self._increments, delta, number)
        except Exception as fault:
            faults.report("tell of an increment", fault)

    def messages(self, finish_reasons: Mapping[int, str]) -> list[dict[str, Any]]:
        # Nobody asks what was said before the end.
        try:
            self._increments.end()
        except Exception as fault:
            faults.report("tell of an increment", fault)
        return super().messages(finish_reasons)


_DELTAS: Final[Mapping[str, str]] = {
    "response.output_text.delta": TEXT,
    "response.output_audio_transcript.delta": TEXT,
    "response.audio.transcript.delta": TEXT,
    "transcript.text.delta": TEXT,
    "response.reasoning_text.delta": REASONING,
    "response.reasoning_summary_text.delta": REASONING,
    "response.refusal.delta": REFUSAL,
    "response.function_call_arguments.delta": TOOL_CALL,
    "response.custom_tool_call_input.delta": TOOL_CALL,
}
"""Events of the Responses API, and of transcriptions, that tell a piece of what comes whole later."""


def see_delta(increments: Increments, delta: Mapping[str, Any], choice: int = 0) -> None:
    """What a chunk of the chat API adds."""
    if thought := delta.get("reasoning_content") or delta.get("reasoning"):
        increments.add(REASONING, thought, choice)
    if content := delta.get("content"):
        increments.add(TEXT, content, choice)
    if audio := delta.get("audio"):
        increments.add(TEXT, fields(audio).get("transcript"), choice)
    if refusal := delta.get("refusal"):
        increments.add(REFUSAL, refusal, choice)
    for call in each(delta.get("tool_calls")):
        told = fields(call)
        function = fields(told.get("function") or told.get("custom"))
        piece = function.get("arguments") or function.get("input")
        index = told.get("index")
        part = index if type(index) is int else told.get("id")
        increments.add(TOOL_CALL, piece, choice, part, function.get("name"), told.get("id"))
    if call := fields(delta.get("function_call")):
        increments.add(TOOL_CALL, call.get("arguments"), choice, "function_call", call.get("name"))


# --- LangChain's streams ----------------------------------------------------------------------------------------------
class LangChainIncrements(Increments):
    """Of a model that LangChain alone tells of."""

    __slots__ = ("_tells",)

    def __init__(self, tell: Tell) -> None:
        super().__init__(tell)
        self._tells: str | None = None
        """What tells: LangChain tells of one stream in its tokens, in its events, or in both."""

    def see(self, piece: object, chunk: object) -> None:
        """Takes what a run's manager is told of: a token with its chunk, or an event of LangChain's protocol. Raises nothing."""
        try:
            found = piece if isinstance(piece, Mapping) else {}
            tells = "events" if "event" in found else "tokens"
            self._tells = self._tells or tells
            if tells != self._tells:
                return
            if found:
                self._see_event(found)
            else:
                self._see_chunk(piece, getattr(chunk, "message", None))
        except Exception as fault:
            faults.report("tell of an increment", fault)

    def finish(self) -> None:
        """Tells what was kept back. Raises nothing."""
        try:
            self.end()
        except Exception as fault:
            faults.report("tell of an increment", fault)

    def _see_chunk(self, token: object, message: Any) -> None:
        thought = (getattr(message, "additional_kwargs", None) or {}).get("reasoning_content")
        if thought:
            self.add(REASONING, thought)
        content = getattr(message, "content", token)
        for block in each(content) if isinstance(content, list) else (content,):
            if isinstance(block, str):
                if block:
                    self.add(TEXT, block)
                continue
            found = fields(block)
            for name, kind in _BLOCKS.items():
                if isinstance(text := found.get(name), str) and text:
                    self.add(kind, text, part=found.get("index", 0))
        for call in each(getattr(message, "tool_call_chunks", None)):
            part = call.get("index") if call.get("index") is not None else call.get("id")
            self.add(TOOL_CALL, call.get("args"), 0, part, call.get("name"), call.get("id"))

    def _see_event(self, event: Mapping[str, Any]) -> None:
        part = event.get("index")
        begun, delta = fields(event.get("content")), fields(event.get("delta"))
        if event["event"] == "content-block-start" and str(begun.get("type")).startswith("tool_call"):
            self.add(TOOL_CALL, begun.get("args"), 0, part, begun.get("name"), begun.get("id"))
        elif delta.get("type") == "text-delta":
            self.add(TEXT, delta.get("text"), part=part)
        elif delta.get("type") == "reasoning-delta":
            self.add(REASONING, delta.get("reasoning"), part=part)
        elif delta.get("type") == "tool-call-delta":
            self.add(TOOL_CALL, delta.get("args"), 0, part)
        elif delta.get("type") == "block-delta" and "args" in (told := fields(delta.get("fields"))):
            self.add(TOOL_CALL, told.get("args"), 0, part, told.get("name"), told.get("id"))


_BLOCKS: Final[Mapping[str, str]] = {"text": TEXT, "reasoning": REASONING, "thinking": REASONING, "refusal": REFUSAL}
