"""What an app sends over a websocket, kept until the call that it is for begins."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from otel_llm.content.openai import Message, item_message, request
from otel_llm.content.parts import SLACK, parts_of, plain
from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields
from otel_llm.settings import settings
from otel_llm.support import faults

_ITEMS: Final[Mapping[str, str]] = {
    "conversation.item.create": semconv.CHAT,
    "response.item.create": semconv.CHAT,
    "decision.item.create": semconv.DECISION,
}
"""The events that carry an item, and what the item is for."""
_SESSIONS: Final = frozenset({"session.update", "session.start"})
_APPENDED: Final = frozenset({"session.instructions.append", "session.thinking.append", "session.commentary.append"})
"""Texts for the model that leads a live session."""
_STANDING: Final = {"instructions": semconv.SYSTEM_INSTRUCTIONS, "tools": semconv.TOOL_DEFINITIONS}
_TOLD: Final = frozenset({*_ITEMS, *_SESSIONS, *_APPENDED, "response.create"})


class Sent:
    """What was sent on one connection. Holds no object of the app's."""

    MOST: Final = 256
    """Messages that no call takes must not fill the memory: the oldest give way."""

    def __init__(self, is_live: bool) -> None:
        self._leader = semconv.LIVE_SESSION if is_live else semconv.CHAT
        """What a session's own settings are for: the session, where that is a call itself, else its responses."""
        self._messages: defaultdict[str, deque[Message]] = defaultdict(partial(deque, maxlen=self.MOST))
        self._standing: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        """Instructions and tools, by what they are for."""
        self._next: dict[str, Any] = {}
        """Those of the next response alone."""

    def see(self, event: object) -> None:
        """Takes note of an event that is about to be sent, the client's own object or plain JSON. Raises nothing."""
        try:
            found = fields(event)
            kind = found.get("type")
            if not isinstance(kind, str) or kind not in _TOLD:
                return  # a piece of sound, mostly
            if (operation := _ITEMS.get(kind)) is not None:
                if (message := item_message(fields(found.get("item")))) is not None:
                    self._add(operation, [message])
            elif kind == "response.create":  # Realtime has what it asks inside, Responses in the event itself
                self._next |= self._read(semconv.CHAT, fields(found.get("response")) or found)
            elif kind in _SESSIONS:
                session = fields(found.get("session"))
                delegated = fields(fields(session.get("delegation")).get("responses"))
                for operation, told in ((self._leader, session), (semconv.CHAT, delegated)):
                    standing = self._standing[operation]
                    for field, name in _STANDING.items():
                        if told.get(field) in ("", [], ()):  # taken back
                            standing.pop(name, None)
                    standing |= self._read(operation, told)
            elif parts := parts_of(found.get("content")):
                self._add(self._leader, [{"role": "developer", "parts": parts}])
        except Exception as fault:
            faults.report("read what is sent over a websocket", fault)

    def _read(self, operation: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps the messages for `operation`; returns instructions and tools."""
        said = request(semconv.CHAT, told)
        self._add(operation, said.pop(semconv.INPUT_MESSAGES, ()))
        kept: dict[str, Any] = plain(said, settings().content_limit + SLACK)
        return kept

    def _add(self, operation: str, messages: list[Message] | tuple[Message, ...]) -> None:
        for message in messages:
            self._messages[operation].append(plain(message, settings().content_limit + SLACK))

    def take(self, operation: str) -> dict[str, Any]:
        """The content of a call that begins, by attribute name: what was sent for it since the last one."""
        said = dict(self._standing.get(operation, ()))
        if operation == semconv.CHAT:
            said |= self._next
            self._next = {}
        queue = self._messages.get(operation)
        messages = []
        while queue:
            messages.append(queue.popleft())
        if messages:
            said[semconv.INPUT_MESSAGES] = messages
        return said
