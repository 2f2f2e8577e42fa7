"""Blocks of content, as OpenAI's and LangChain's messages have them, turned into the parts of the GenAI conventions.

Parts name what is binary (kind, MIME type, size) and never hold it. What they hold is still the app's: `plain` copies it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import islice
from types import MemberDescriptorType, ModuleType
from typing import Any, Final

from otel_llm.conventions.token_usage import fields
from otel_llm.support import faults

Part = dict[str, Any]

TRUNCATED: Final = "…[truncated]"
SLACK: Final = 4_096
"""Characters beyond the limit that are looked at, so that a secret which the limit cuts in two is still seen as one."""
_MAX_DEPTH: Final = 16
_MAX_ITEMS: Final = 1_000
ALL_TEXTS: Final = 16
"""The texts of an attribute are this many times as long as one text may be, taken together."""
COST: Final = 64
"""What an object costs of that, beside what is in it; a number costs an eighth."""

_TEXT_TYPES: Final = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})
_REASONING_TYPES: Final = frozenset({"thinking", "reasoning", "reasoning_content"})
_BINARY_TYPES: Final = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "image_file": "image",
    "output_image": "image",
    "input_audio": "audio",
    "output_audio": "audio",
    "audio": "audio",
    "audio_url": "audio",
    "video": "video",
    "video_url": "video",
    "file": "document",
    "input_file": "document",
    "document": "document",
    "media": "document",
}
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+=-]+)*?);base64,([A-Za-z0-9+/=_\s-]{16,})")
_BASE64_INSIDE: Final = re.compile(r"[A-Za-z0-9+/_-]{512,}={0,2}")
_BASE64: Final = re.compile(_BASE64_INSIDE.pattern + r"\s*")
_LOOKS_CODED: Final = re.compile(r"(?=.*[a-z])(?=.*[A-Z]).*[0-9]")
"""What a line of dashes, a word or a sequence of bases is not."""


def each(value: object) -> Sequence[Any]:
    """The items of a list; none of anything else that a server may send in its place."""
    return value if isinstance(value, list | tuple) else ()


def parts_of(content: object) -> list[Part]:
    """The parts of a message's content: text, or a list of blocks in any dialect."""
    if content is None:
        return []
    if issubclass(type(content), str):
        return [{"type": "text", "content": content}] if content != "" else []
    if issubclass(type(content), list | tuple):
        return [part for block in content[:_MAX_ITEMS] if (part := part_of(block)) is not None]  # type: ignore[index]
    part = part_of(content)
    return [] if part is None else [part]


def part_of(block: object) -> Part | None:
    """The part of one block. What is not known keeps its type alone."""
    if issubclass(type(block), str):
        return {"type": "text", "content": block}
    found = fields(block)
    kind = found.get("type")
    if not isinstance(kind, str):
        text = found.get("text")
        return {"type": "text", "content": text} if isinstance(text, str) else None
    if kind in _TEXT_TYPES:
        return {"type": "text", "content": _text(found.get("text"))}
    if kind == "refusal":
        return {"type": "refusal", "content": _text(found.get("refusal"))}
    if kind in _REASONING_TYPES:
        return reasoning(found)
    if kind in ("tool_call", "tool_use"):
        return tool_call(found.get("id"), found.get("name"), found.get("args", found.get("input")))
    if kind == "tool_result":
        return tool_call_response(found.get("tool_use_id"), found.get("content"))
    modality = _BINARY_TYPES.get(kind)
    return {"type": kind} if modality is None else _binary(kind, modality, found)


def reasoning(found: Mapping[str, Any]) -> Part | None:
    """What a model tells of its reasoning: a summary, or all of it. None where it is encrypted."""
    told: Any = None
    for name in ("thinking", "reasoning", "reasoning_content", "text"):
        told = told or found.get(name)
    if not told:
        blocks = [*each(found.get("summary")), *each(found.get("content"))]
        told = "\n".join(text for block in blocks if isinstance(text := fields(block).get("text"), str))
    return {"type": "reasoning", "content": told} if isinstance(told, str) and told else None


def tool_call(identity: object, name: object, arguments: object) -> Part:
    """A call that a model asks for. Arguments that are JSON text are taken apart."""
    part: Part = {"type": "tool_call", "name": name if isinstance(name, str) else ""}
    if isinstance(identity, str):
        part["id"] = identity
    if arguments is not None:
        part["arguments"] = parsed(arguments)
    return part


def tool_call_response(identity: object, response: object) -> Part:
    """What a tool answered."""
    if isinstance(response, list | tuple):
        blocks = parts_of(response)
        texts = [part["content"] for part in blocks if part["type"] == "text"]
        response = "".join(texts) if len(texts) == len(blocks) else blocks
    part: Part = {"type": "tool_call_response", "response": response}
    if isinstance(identity, str):
        part["id"] = identity
    return part


def parsed(value: object) -> object:
    """The value of a JSON text that holds an object or a list; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def blob(modality: str, data: object, mime_type: object = None) -> Part:
    """A placeholder for binary data: its size in bytes, worked out from the length of its base64."""
    part: Part = {"type": "blob", "modality": modality}
    if isinstance(mime_type, str):
        part["mime_type"] = mime_type
    if isinstance(data, str):
        part["size"] = len(data) * 3 // 4 - data[-2:].count("=")
    elif isinstance(data, bytes | bytearray):
        part["size"] = len(data)
    return part


def _binary(kind: str, modality: str, found: Mapping[str, Any]) -> Part:
    """A file, an image or a sound, by reference or inside the message, in OpenAI's or LangChain's form."""
    inner = found.get(kind)
    inside = fields(inner) if not isinstance(inner, str) else {}
    source = fields(found.get("source"))  # Anthropic's

    def find(*names: str) -> Any:
        for holder in (inside, found, source):
            for name in names:
                value = holder.get(name)
                if isinstance(value, str | bytes) and value:
                    return value
        return None

    mime_type = find("mime_type", "media_type")
    if mime_type is None and isinstance(form := find("format"), str):
        mime_type = form if "/" in form else f"{modality}/{form}"
    if (
        modality == "document"
        and isinstance(mime_type, str)
        and mime_type.partition("/")[0] in ("image", "audio", "video")
    ):
        modality = mime_type.partition("/")[0]
    own = inner if isinstance(inner, str) else None  # an address, or what it would lead to
    is_address = own is not None and (own.startswith("data:") or "://" in own[:64])
    url = own if is_address else find("url", "image_url", "file_url")
    if isinstance(url, str):
        if url.startswith("data:"):
            head, _, data = url.partition(",")
            return blob(modality, data, head[5:].partition(";")[0] or mime_type)
        part: Part = {"type": "uri", "modality": modality, "uri": url.partition("?")[0]}  # signed addresses are keys
        if isinstance(mime_type, str):
            part["mime_type"] = mime_type
        return part
    data = own or find("data", "file_data", "base64", "b64_json", "audio")
    file_id = find("file_id", "id")
    if data is None and file_id is not None:
        return {"type": "file", "modality": modality, "file_id": file_id}
    if isinstance(data, str) and data.startswith("data:"):
        head, _, data = data.partition(",")
        mime_type = head[5:].partition(";")[0] or mime_type
    part = blob(modality, data, mime_type)
    if isinstance(transcript := find("transcript"), str):
        part["transcript"] = transcript
    return part


class Allowance:
    """How much of a value is still copied, in characters."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


def plain(value: object, longest: int, allowance: Allowance | None = None, depth: int = 0) -> Any:
    """A bounded copy of `value` that JSON can say: texts of at most `longest` characters, no base64, nothing that is the app's.

    Of lists too long for `allowance` (`ALL_TEXTS` of those texts by default) the rest is `{"type": "omitted", "items": 12}`.
    """
    if allowance is None:
        allowance = Allowance(longest * ALL_TEXTS)
    if (
        type(value) is str
        and len(value) < _LONG
        and len(value) <= longest
        and value.isascii()
        and "base64," not in value
        and allowance.left > 0
    ):  # most of the texts of most messages: nothing is to be done to them
        allowance.left -= len(value)
        return value
    try:
        return _plain(value, longest, allowance, depth)
    except Exception as error:  # an object of the app's that is not what it seems
        faults.pass_on(error)
        return f"<{class_name(type(value))}>"


def _plain(value: Any, longest: int, allowance: Allowance, depth: int) -> Any:
    # By `type`, and by the methods of the built-in types: what is the app's may lie about its class, iterate for ever, or count how
    # often it is looked at. Nothing of it is called that is not needed to know what the value is.
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    is_full = allowance.left <= 0
    if issubclass(kind, str):
        text = value if kind is str else str.__str__(value)
        if is_full and len(text) > COST:
            return TRUNCATED  # not a part of it: half a secret would not be seen as one
        text = _shortened(text, longest)
        allowance.left -= len(text)
        return text
    allowance.left -= COST // 8
    if issubclass(kind, int):
        number = int.__index__(value)
        return number if -(2**63) <= number < 2**63 else str(number)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, bytes | bytearray | memoryview):
        return {"type": "blob", "size": memoryview(value).nbytes}
    if depth >= _MAX_DEPTH or is_full:
        return TRUNCATED
    if issubclass(kind, dict | Mapping):
        allowance.left -= COST
        items = islice(dict.items(value) if issubclass(kind, dict) else value.items(), _MAX_ITEMS)
        return {_key(key): plain(item, longest, allowance, depth + 1) for key, item in items}
    for sequence in (list, tuple, set, frozenset):
        if issubclass(kind, sequence):
            return _plain_items(sequence, value, longest, allowance, depth)
    if issubclass(kind, type):
        return f"<class {class_name(value)}>"
    if issubclass(kind, Enum):
        return plain(value._value_, longest, allowance, depth + 1)
    own = {} if issubclass(kind, ModuleType) else fields(value) or _slots(value)
    if public := {name: item for name, item in own.items() if type(name) is str and not name.startswith("_")}:
        return plain(public, longest, allowance, depth + 1)
    return plain(str(value), longest, allowance, depth)


def _plain_items(sequence: Any, value: Any, longest: int, allowance: Allowance, depth: int) -> list[Any]:
    copied: list[Any] = []
    for item in islice(sequence.__iter__(value), _MAX_ITEMS):
        if allowance.left <= 0:
            copied.append({"type": "omitted", "items": sequence.__len__(value) - len(copied)})
            break
        copied.append(plain(item, longest, allowance, depth + 1))
    return copied


def _key(key: object) -> str:
    try:
        return _shortened(key if type(key) is str else str(key), 256)
    except Exception as error:
        faults.pass_on(error)
        return f"<{class_name(type(key))}>"


def _slots(value: object) -> dict[str, Any]:
    """The fields of a dataclass that keeps them in slots."""
    found = {}
    for name in getattr(type(value), "__dataclass_fields__", ()):
        slot = getattr(type(value), name, None)
        if type(slot) is MemberDescriptorType:
            found[name] = slot.__get__(value)
    return found


def class_name(cls: type) -> str:
    """The name of a class, which no metaclass of the app's can change."""
    return str(_QUALNAME(cls))


_QUALNAME: Final = vars(type)["__qualname__"].__get__


_LONG: Final = 512
"""Characters of a text that may be base64."""


def _shortened(text: str, longest: int) -> str:
    if "base64," in text:
        text = _DATA_URL.sub(lambda found: f"data:{found[1] or ''};base64,[{len(found[3])} characters]", text)
    if len(text) >= _LONG:
        if _BASE64.fullmatch(text):
            return f"[base64, {len(text)} characters]"
        is_cut = len(text) > 2 * longest  # what is far beyond the limit is not looked at
        # Inside JSON, say, that is not taken apart: a tool's answer, or arguments that were cut.
        text = text[: 2 * longest]
        if _may_hold_base64(text):
            text = _BASE64_INSIDE.sub(_without_base64, text)
        if len(text) > longest or is_cut:
            text = text[:longest] + TRUNCATED
    elif len(text) > longest:
        text = text[:longest] + TRUNCATED
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell lone surrogates, which no exporter can encode
            text = text.encode("utf-8", "replace").decode()
    return str(text) if type(text) is not str else text


def _may_hold_base64(text: str) -> bool:
    """Whether so many characters stand without a blank: half as many do then that begin at a multiple of half as many."""
    half = _LONG // 2
    return any(" " not in text[at : at + half] for at in range(0, len(text) - half + 1, half))


def _without_base64(found: re.Match[str]) -> str:
    return f"[base64, {len(found[0])} characters]" if _LOOKS_CODED.match(found[0], 0, 512) else found[0]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
