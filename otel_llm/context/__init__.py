"""Who asked: `llm_context` carries module, user, session, conversation and request through any chain of calls.

The context is OpenTelemetry's: it follows async tasks, threads and instrumented calls between your own services (as W3C
baggage), nests, and restores what was there before. Every GenAI span takes it over at its start.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, lru_cache, wraps
from itertools import takewhile
from logging import Filter, LogRecord, getLogger
from types import AsyncGeneratorType, CoroutineType, GeneratorType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import quote_plus

from opentelemetry import baggage
from opentelemetry import context as otel

from otel_llm.context import around_yield
from otel_llm.conventions import semconv
from otel_llm.settings import settings
from otel_llm.support import faults, forks, otel_private

_logger = getLogger("otel_llm")
_P = ParamSpec("_P")
_R = TypeVar("_R")

_KEY = otel.create_key("otel-llm-context")
_BAGGAGE = next(iter(baggage.set_baggage("a", "b", otel.Context())))
"""The key under which OpenTelemetry keeps the baggage: its own functions copy everything once for each entry."""
_NOTHING: Mapping[str, str] = {}
_NO_ENTRIES: Mapping[str, object] = {}

LONGEST_VALUE = 256
"""Characters of a value that are kept: baggage travels in HTTP headers, which servers limit to 8 kB in all."""
MOST_TAGS = 32
MOST_BAGGAGE = 4096
"""Bytes that our entries take in the header at most; the other half is the app's."""

_FIELDS = (semconv.MODULE, semconv.USER_ID, semconv.SESSION_ID, semconv.CONVERSATION_ID, semconv.REQUEST_ID)
_ARGUMENTS = ("module", "user_id", "session_id", "conversation_id", "request_id")
_MEANT = {
    **{name.replace("_", ""): name for name in _ARGUMENTS},
    **{name.removesuffix("_id"): name for name in _ARGUMENTS},
    "modulename": "module",
    "thread": "conversation_id",
    "threadid": "conversation_id",
}
"""What a tag's name, without underscores and in lower case, is likely to stand for."""
_FIELD_NAMES = frozenset(_FIELDS)
_MOST = len(_FIELDS) + MOST_TAGS
_GOES_ON = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})

_ids = random.Random()
"""Not the app's generator: one that is seeded for reproducible results would give every process the same ids."""
forks.register(forks.Turn.CONTEXT_IDS, after_in_child=_ids.seed)


class Layer:
    """One open `llm_context`, as the OpenTelemetry context holds it."""

    __slots__ = ("inner", "outer", "owner", "size", "values")

    def __init__(self, owner: llm_context, outer: otel.Context, values: Mapping[str, str], size: int) -> None:
        self.owner = owner
        self.outer = outer
        self.values = values
        """Those of the outer layers included."""
        self.size = size
        """Bytes of baggage at most, in percent-encoding."""
        self.inner: otel.Context | None = None
        """What was attached; let go when it is left, for it refers to this layer."""


class llm_context:
    """Names who is asking, for every model call inside the `with` block (or the decorated function).

        with llm_context("checkout", user_id="u-17", experiment="b"):
            client.chat.completions.create(...)

    Works as `with`, `async with` and as a decorator of functions, async functions, generators and async generators, also in
    classes. An inner context adds to the outer one and overrides it; leaving restores. Values are turned into text, stripped
    of control characters and cut at 256 characters; None leaves what an outer context says. One object may be entered any
    number of times, by any number of tasks and threads at once.

    Do not put the `with` around a `yield`: between two steps the caller would be inside. Decorate the generator.

    Args:
        module: the part of the app that calls. Column `module`.
        user_id: column `user_id`, attribute `user.id`.
        session_id: column `session_id`, attribute `session.id`.
        conversation_id: column `conversation_id`, attribute `gen_ai.conversation.id`.
        request_id: column `request_id`; generated when neither it nor an outer context gives one.
        tags: anything else; column `tags`. At most 32.
    """

    __slots__ = ("_size", "_values")

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
        self._values: dict[str, str] = {}
        self._size = 0
        try:
            for name, value in zip(_FIELDS, (module, user_id, session_id, conversation_id, request_id), strict=True):
                if value is not None:
                    self._take(name, value)
            if tags:
                for key in list(tags)[:MOST_TAGS]:
                    _warn_of_likely_argument(key)
                    if tags[key] is not None:
                        self._take(semconv.TAG_PREFIX + clean(key), tags[key])
        except Exception as error:  # a value that cannot be made text
            faults.report("take a value into an llm_context", error)

    def _take(self, name: str, value: object) -> None:
        if text := clean(value):
            self._values[name] = text
            self._size += _most_bytes(name, text)

    def __enter__(self) -> LLMContext:
        try:
            inner = self._open(otel_private.current_context())
            otel_private.attach(inner)
            layer = cast("Layer", inner[_KEY])
            around_yield.enter(sys._getframe(1), layer)
            return LLMContext(layer.values)
        except Exception as error:
            faults.report("open an llm_context", error)
            return LLMContext(self._values)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # No token: it would fail in another task, and in the wrong order it would bring back what was left before.
        try:
            by_generator = around_yield.leave(sys._getframe(1), self)
            current = otel_private.current_context()
            layer = current.get(_KEY)
            if isinstance(layer, Layer) and layer.owner is self and layer.inner is current:
                layer.inner = None
                otel_private.attach(layer.outer)
            elif (found := _find(current, self)) is not None:
                otel_private.attach(_without(current, found))
            elif by_generator and exc_type is not GeneratorExit:  # which the garbage collector brings, wherever it runs
                around_yield.warn()
        except Exception as error:
            faults.report("leave an llm_context", error)

    async def __aenter__(self) -> LLMContext:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Decorates `function`: each call has a context of its own, with its own request id.

        What the call returns decides how long it lasts: a coroutine, a generator and an async generator go on in the context
        of the call that made them, wherever they are run, and whoever drives them sees nothing of it. Any other object (a
        task, a future, a stream) is returned as it is.

        Raises TypeError for a class: its instances would be no instances of what took its name. Decorate its methods.
        """
        if isinstance(function, staticmethod | classmethod):
            return cast("Callable[_P, _R]", type(function)(self(function.__func__)))
        if isinstance(function, type):
            raise TypeError(f"llm_context decorates functions and methods, not the class {function.__qualname__}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            from otel_llm.context.generators import generator_function

            def opening() -> nullcontext[otel.Context]:
                return nullcontext(self._open(otel_private.current_context()))

            return cast("Callable[_P, _R]", generator_function(function, opening))
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def in_context_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", in_context_async)

        @wraps(function)
        def in_context(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self:
                result = function(*args, **kwargs)
                return _continued(result) if type(result) in _GOES_ON else result

        return in_context

    def _open(self, outer: otel.Context) -> otel.Context:
        """`outer` with this in it."""
        around = outer.get(_KEY)
        if isinstance(around, Layer):
            values, size = {**around.values, **self._values}, around.size + self._size
        else:
            believed = _said_in(outer)
            values = {**believed, **self._values}
            size = self._size + sum(_most_bytes(name, value) for name, value in believed.items())
        if semconv.REQUEST_ID not in values:
            values[semconv.REQUEST_ID] = f"{_ids.getrandbits(128):032x}"
            size += _REQUEST_ID_BYTES
        if len(values) > _MOST:
            values = _bounded(values)
        layer = Layer(self, outer, values, size)
        inner = layer.inner = _with(outer, layer, outer)
        return inner


class LLMContext:
    """Who is asking: what `current_context()` and `with llm_context(...) as ...` give. It stays as it was."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    @property
    def module(self) -> str | None:
        """The part of the app that calls."""
        return self._values.get(semconv.MODULE)

    @property
    def user_id(self) -> str | None:
        """The user for whom it calls."""
        return self._values.get(semconv.USER_ID)

    @property
    def session_id(self) -> str | None:
        """The user's session."""
        return self._values.get(semconv.SESSION_ID)

    @property
    def conversation_id(self) -> str | None:
        """The conversation that the calls belong to."""
        return self._values.get(semconv.CONVERSATION_ID)

    @property
    def request_id(self) -> str | None:
        """The request: given, or made by the outermost `llm_context` (32 hexadecimal digits)."""
        return self._values.get(semconv.REQUEST_ID)

    @property
    def tags(self) -> dict[str, str]:
        """Everything else that was named."""
        prefix = semconv.TAG_PREFIX
        return {name.removeprefix(prefix): value for name, value in self._values.items() if name.startswith(prefix)}

    def __repr__(self) -> str:
        said = {name: value for name in _ARGUMENTS if (value := getattr(self, name)) is not None} | self.tags
        return f"LLMContext({', '.join(f'{name}={value!r}' for name, value in said.items())})"


def current_context() -> LLMContext:
    """Who is asking here: the values of all `llm_context` blocks that this line is in; all None outside any."""
    return LLMContext(attributes())


class LLMContextFilter(Filter):
    """A `logging.Filter` that lets every record pass, and puts on it who is asking.

    Its attributes are `llm_module`, `llm_user_id`, `llm_session_id`, `llm_conversation_id` and `llm_request_id`, "-" where nobody
    has said one. Add it to a handler: `handler.addFilter(LLMContextFilter())`.
    """

    def filter(self, record: LogRecord) -> bool:
        """Adds the attributes; always True."""
        values = attributes()
        for argument, name in zip(_ARGUMENTS, _FIELDS, strict=True):
            setattr(record, f"llm_{argument}", values.get(name, "-"))
        return True


def _continued(result: Any) -> Any:
    """`result`, or what goes on in the current context in its place."""
    from otel_llm.context.generators import continued

    return continued(result, nullcontext(otel_private.current_context()))


def _with(context: otel.Context, layer: Layer | None, outside: otel.Context) -> otel.Context:
    """`context` with `layer` as its innermost one, and the baggage to match.

    What came in under one of our names and is not believed goes no further: the next service may believe us.
    """
    kept = {name: value for name, value in _entries(context).items() if not _is_ours(name)}
    if layer is not None:
        kept.update(layer.values if layer.size <= MOST_BAGGAGE else _fitting(layer.values))
    else:
        kept.update((name, value) for name, value in _entries(outside).items() if _is_ours(name))
    changed: dict[str, object] = {**context, _KEY: layer, _BAGGAGE: kept}
    if layer is None:
        del changed[_KEY]
        if not kept:
            del changed[_BAGGAGE]
    return otel.Context(changed)


def _find(context: otel.Context, owner: llm_context) -> Layer | None:
    """The innermost layer of `owner` in `context`."""
    return next((layer for layer in _outwards(cast("Layer | None", context.get(_KEY))) if layer.owner is owner), None)


def _without(context: otel.Context, left: Layer) -> otel.Context:
    """`context` as it would be had `left` never been in it; the layers inside it stay."""
    layer = cast("Layer", context[_KEY])
    layer.inner = None
    if layer is left:
        around = left.outer.get(_KEY)
        return _with(context, around if isinstance(around, Layer) else None, left.outer)
    outer = _without(layer.outer, left)
    values = {**_said_in(outer), **layer.owner._values}
    values.setdefault(semconv.REQUEST_ID, layer.values[semconv.REQUEST_ID])  # its calls have had this one so far
    # Its `inner` stays unset, so that it will be taken out of what is current then: of what it was opened in, other parts (a
    # `chain`, say) may have been left by now.
    return _with(context, Layer(layer.owner, outer, values, layer.size), outer)


def opened(outer: otel.Context, values: Mapping[str, str]) -> otel.Context:
    """`outer` with an `llm_context` in it that says `values`: span attributes, as `attributes` returns them."""
    context = llm_context()
    for name, value in values.items():
        context._take(name, value)
    return context._open(outer)


def attributes(context: otel.Context | None = None) -> Mapping[str, str]:
    """The span attributes that the context asks for; an empty mapping outside any `llm_context`.

    Baggage that came in from another process counts only with `OTEL_LLM_TRUST_BAGGAGE=true`: anyone can send a header.
    """
    if context is None:
        context = otel_private.current_context()
    if around_yield.by_frame and (entered := around_yield.entered()):
        return _with_lost(cast("Layer | None", context.get(_KEY)), entered)
    return _said_in(context)


def _said_in(context: otel.Context) -> Mapping[str, str]:
    layer = context.get(_KEY)
    if isinstance(layer, Layer):
        return layer.values
    if settings().trust_baggage:
        return _from_baggage(context)
    return _NOTHING


def _with_lost(layer: Layer | None, entered: Sequence[Layer]) -> Mapping[str, str]:
    """The values of `layer`, with those of the layers that a generator has `entered`, where it has lost some of them.

    What was opened in these goes before them; what they were opened in does not.
    """
    now = list(_outwards(layer))
    if layer is not None and all(each in now for each in entered):
        return layer.values
    around = list(_outwards(entered[0]))
    inside = list(takewhile(lambda each: each not in around, now))
    values = dict(entered[0].values)
    for each in (*entered[1:], *reversed(inside)):
        values.update(each.owner._values)
    return values


def _outwards(layer: Layer | None) -> Iterator[Layer]:
    while isinstance(layer, Layer):
        yield layer
        layer = cast("Layer | None", layer.outer.get(_KEY))


def extended(values: Mapping[str, str]) -> otel.Context:
    """The current context, whose spans take over these attributes too. They stay in this process: no baggage carries them."""
    current = otel_private.current_context()
    around = current.get(_KEY)
    owner = llm_context()
    owner._values.update(values)
    size = around.size if isinstance(around, Layer) else 0
    return otel.set_value(_KEY, Layer(owner, current, {**_said_in(current), **values}, size), current)


def of_span(attributes: Mapping[str, Any]) -> dict[str, str]:
    """The part of a span's attributes that it took over from the context."""
    return {
        name: str(value)
        for name, value in attributes.items()
        if name in _FIELD_NAMES or name.startswith(semconv.TAG_PREFIX)
    }


def _from_baggage(context: otel.Context) -> Mapping[str, str]:
    entries = _entries(context)
    if not entries:
        return _NOTHING
    allowed = settings().context_keys
    values: dict[str, str] = {}
    for name, value in entries.items():
        try:
            if name in allowed and not _is_ours(name):
                name = semconv.TAG_PREFIX + name
            if _is_ours(name) and (text := clean(value)):
                values[clean(name)] = text
        except Exception as error:  # other code may put any object there
            faults.report("read baggage", error)
    return values if len(values) <= _MOST else _bounded(values)


def _entries(context: otel.Context) -> Mapping[str, object]:
    entries = context.get(_BAGGAGE)
    return entries if isinstance(entries, dict) else _NO_ENTRIES


def _is_ours(name: object) -> bool:
    return isinstance(name, str) and (name in _FIELD_NAMES or name.startswith(semconv.TAG_PREFIX))


def _bounded(values: Mapping[str, str]) -> dict[str, str]:
    """No more tags than `MOST_TAGS`: the first."""
    tags = [name for name in values if name not in _FIELD_NAMES]
    return {name: values[name] for name in (*_FIELDS, *tags[:MOST_TAGS]) if name in values}


def _fitting(values: Mapping[str, str]) -> dict[str, str]:
    """What fits into `MOST_BAGGAGE`, the fields before the tags."""
    fitting: dict[str, str] = {}
    room = MOST_BAGGAGE
    for name in sorted(values, key=lambda name: name not in _FIELD_NAMES):
        size = len(quote_plus(name)) + len(quote_plus(values[name])) + 2
        if size <= room:
            room -= size
            fitting[name] = values[name]
        else:
            _warn_of_baggage()
    return fitting


def _most_bytes(name: str, text: str) -> int:
    """Bytes that an entry takes in the header at most: `%` and two digits for each byte, four bytes for a character."""
    return (3 if name.isascii() and text.isascii() else 12) * (len(name) + len(text)) + 2


_REQUEST_ID_BYTES = _most_bytes(semconv.REQUEST_ID, 32 * "0")


@lru_cache(1024)
def _warn_of_likely_argument(tag: str) -> None:
    """Says once of each name that it has become a tag though an argument was most likely meant."""
    import difflib

    argument = _MEANT.get(tag.replace("_", "").lower())
    if argument is None:
        near = difflib.get_close_matches(tag, _ARGUMENTS, 1, 0.92)
        argument = near[0] if near else None
    if argument is not None:
        _logger.warning("llm_context(%s=...) becomes a tag; did you mean %s=? Said once.", clean(tag), argument)


@cache
def _warn_of_baggage() -> None:
    _logger.warning(
        "an llm_context is larger than %d bytes of baggage: the rows of this process have all of it, other services "
        "get what fits. Said once.",
        MOST_BAGGAGE,
    )


def clean(value: object) -> str:
    """`value` as text that is safe in a header, a span and a table: no control characters, at most 256 characters."""
    text = value if type(value) is str else str(value)
    if text.isprintable():
        return text[:LONGEST_VALUE]
    # What is far beyond the limit is not looked at: a megabyte costs no more than a page.
    return "".join(character for character in text[: 8 * LONGEST_VALUE] if character.isprintable())[:LONGEST_VALUE]
