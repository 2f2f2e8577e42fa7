"""Who asked: `llm_context` carries module, user, session, conversation and request through any chain of calls.

The context is OpenTelemetry's: it follows async tasks, copied contexts and instrumented calls between your own
services (as W3C baggage), nests, and restores what was there before. Every GenAI span takes it over at its start.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Mapping
from contextvars import Token
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from opentelemetry import baggage
from opentelemetry import context as otel

from otel_llm import faults, semconv
from otel_llm.settings import settings

_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEY = otel.create_key("otel-llm-context")
_NOTHING: Mapping[str, str] = {}

LONGEST_VALUE = 256
"""Characters of a value that are kept: baggage travels in HTTP headers, which servers limit to 8 kB in all."""
MOST_TAGS = 32

_FIELDS = {
    "module": semconv.MODULE,
    "user_id": semconv.USER_ID,
    "session_id": semconv.SESSION_ID,
    "conversation_id": semconv.CONVERSATION_ID,
    "request_id": semconv.REQUEST_ID,
}
_FIELD_NAMES = frozenset(_FIELDS.values())


class llm_context:
    """Names who is asking, for every model call inside the `with` block (or the decorated function).

        with llm_context("checkout", user_id="u-17", experiment="b"):
            client.chat.completions.create(...)

    Works as `with`, `async with` and as a decorator of sync and async functions. An inner context adds to the outer
    one and overrides it; leaving restores. Values are turned into text, stripped of control characters and cut at 256
    characters; None leaves what an outer context says.

    Args:
        module: the part of the app that calls. Column `module`.
        user_id: column `user_id`, attribute `user.id`.
        session_id: column `session_id`, attribute `session.id`.
        conversation_id: column `conversation_id`, attribute `gen_ai.conversation.id`.
        request_id: column `request_id`; generated when neither it nor an outer context gives one.
        tags: anything else; column `tags`. At most 32.
    """

    __slots__ = ("_tokens", "_values")

    def __init__(
        self,
        module: str | None = None,
        *,
        user_id: object = None,
        session_id: object = None,
        conversation_id: object = None,
        request_id: object = None,
        **tags: object,
    ) -> None:
        self._tokens: list[Token[otel.Context] | None] = []
        given = {
            semconv.MODULE: module,
            semconv.USER_ID: user_id,
            semconv.SESSION_ID: session_id,
            semconv.CONVERSATION_ID: conversation_id,
            semconv.REQUEST_ID: request_id,
        }
        for key in list(tags)[:MOST_TAGS]:
            given[semconv.TAG_PREFIX + key] = tags[key]
        self._values: dict[str, str] = {}
        for name, value in given.items():
            if value is not None and (text := clean(value)):
                self._values[name] = text

    def __enter__(self) -> llm_context:
        try:
            self._tokens.append(otel.attach(self._extend(otel.get_current())))
        except Exception as error:
            self._tokens.append(None)
            faults.report("open an llm_context", error)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._tokens.pop()
        if token is not None:
            otel.detach(token)

    async def __aenter__(self) -> llm_context:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        values = self._values

        def fresh() -> llm_context:
            # A context of its own for each call: calls may overlap, and each gets its own request id.
            context = llm_context()
            context._values = values
            return context

        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def in_context_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with fresh():
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", in_context_async)

        @wraps(function)
        def in_context(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with fresh():
                return function(*args, **kwargs)

        return in_context

    def _extend(self, outer: otel.Context) -> otel.Context:
        values = {**attributes(outer), **self._values}
        if semconv.REQUEST_ID not in values:
            values[semconv.REQUEST_ID] = uuid.uuid4().hex
        inner = otel.set_value(_KEY, values, outer)
        for name, value in values.items():
            inner = baggage.set_baggage(name, value, inner)
        return inner


def attributes(context: otel.Context | None = None) -> Mapping[str, str]:
    """The span attributes that the context asks for; an empty mapping outside any `llm_context`.

    Baggage that came in from another process counts only with `OTEL_LLM_TRUST_BAGGAGE=true`: anyone can send a header.
    """
    values = cast("Mapping[str, str] | None", otel.get_value(_KEY, context))
    if values is not None:
        return values
    if settings().trust_baggage:
        return _from_baggage(context)
    return _NOTHING


def extended(values: Mapping[str, str]) -> otel.Context:
    """The current context, whose spans take over these attributes too. They stay in this process: no baggage carries them."""
    current = otel.get_current()
    return otel.set_value(_KEY, {**attributes(current), **values}, current)


def of_span(attributes: Mapping[str, Any]) -> dict[str, str]:
    """The part of a span's attributes that it took over from the context."""
    return {
        name: str(value)
        for name, value in attributes.items()
        if name in _FIELD_NAMES or name.startswith(semconv.TAG_PREFIX)
    }


def _from_baggage(context: otel.Context | None) -> Mapping[str, str]:
    entries = baggage.get_all(context)
    if not entries:
        return _NOTHING
    allowed = settings().context_keys
    values: dict[str, str] = {}
    for name, value in entries.items():
        if len(values) >= MOST_TAGS:
            break
        if name in _FIELD_NAMES or name.startswith(semconv.TAG_PREFIX):
            values[name] = clean(value)
        elif name in allowed:
            values[semconv.TAG_PREFIX + name] = clean(value)
    return values


def clean(value: object) -> str:
    """`value` as text that is safe in a header, a span and a table: no control characters, at most 256 characters."""
    text = str(value)
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return text[:LONGEST_VALUE]
