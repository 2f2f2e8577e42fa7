"""`chain`, `step`, `tool`: the tree of a hand-written agent, as spans of the GenAI conventions.

Each is a context manager and a decorator, of functions, coroutines, generators and async generators.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial, wraps
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar, cast, overload

from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, set_span_in_context

from otel_llm import context
from otel_llm.calls import abandoned, ending, parent
from otel_llm.calls.parent import inherit
from otel_llm.calls.tracing import Tracer
from otel_llm.context.generators import generator_function
from otel_llm.conventions import semconv
from otel_llm.lifecycle import run_ids
from otel_llm.lifecycle.hub import SCOPE_KEY, hub
from otel_llm.settings import settings
from otel_llm.signals import metrics
from otel_llm.support import faults

_P = ParamSpec("_P")
_R = TypeVar("_R")

INSTRUMENTATION: Final = "otel_llm.lifecycle"

_ENTRY: Final = otel.create_key("otel-llm-scope-entry")
_SPAN: Final = next(iter(set_span_in_context(trace.INVALID_SPAN, otel.Context())))
"""The key under which OpenTelemetry keeps the current span."""


class _Tracer:
    """The tracer of the provider that is instrumented, else of the global one."""

    def __init__(self) -> None:
        self.use(None)

    def use(self, provider: trace.TracerProvider | None) -> None:
        # Not to be suppressed: the app asks for these spans itself.
        self.start_span = Tracer(INSTRUMENTATION, provider, hides=False).start_span


tracer = _Tracer()


class _Entry:
    """A scope that has been entered and not been left. The context refers to it where it was entered by `with`."""

    __slots__ = ("_inner", "_is_left", "_outer", "_task", "attributes", "process", "run", "span", "stopwatch")

    def __init__(
        self,
        span: Span,
        attributes: dict[str, Any],
        run: Span | str,
        stopwatch: metrics.Stopwatch | None,
        outer: otel.Context,
    ) -> None:
        """`outer`: the context that it is entered in."""
        self.span = span
        self.attributes = attributes
        """What was set on the span."""
        self.run = run
        """The root of the run, or the id of one that is continued."""
        self.stopwatch = stopwatch
        self.process = abandoned.process()
        self._outer = outer
        self._task = _current_task()
        self._is_left = False
        self._inner: otel.Context | None = None
        """What was attached; let go when it is left, for it refers to this entry."""

    def attach(self) -> None:
        """Makes the span current."""
        self._inner = otel.Context({**self._outer, _SPAN: self.span, _ENTRY: self})
        otel.attach(self._inner)

    def leave(self) -> None:
        """Makes the span current no more where it is; a context that it was never current in stays as it is."""
        # No token: it would fail in another task, and in the wrong order it would bring back what was left before.
        inner, self._inner = self._inner, None
        self._is_left = True
        current = otel.get_current()
        if current is inner:
            otel.attach(_still_inside(self._outer))
        elif current.get(_ENTRY) is self:  # below an `llm_context`, say
            span = trace.get_current_span(current)
            # A span of the app's that was opened inside and is still open stays. One that has ended was forgotten there.
            if span is self.span or not span.is_recording():
                otel.attach(_without_span(current, _still_inside(self._outer)))
        elif (still := _still_inside(current)) is not current:  # what is current is gone, and perhaps this below it
            otel.attach(still)

    @property
    def is_gone(self) -> bool:
        """Whether it was entered here and has been left, here or elsewhere.

        Work that was begun inside goes on inside: its calls belong to this part of the run, though that has ended.
        """
        return self._is_left and self._task == _current_task()

    @property
    def above(self) -> _Entry | None:
        """The one that this one was entered in."""
        return _entry_of(self._outer)


def _entry_of(context: otel.Context) -> _Entry | None:
    """The innermost entry in `context`."""
    entry = context.get(_ENTRY)
    return entry if isinstance(entry, _Entry) else None


def _current_task() -> int:
    """Stands for the task, or else the thread, that runs this."""
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return threading.get_ident() if task is None else id(task)


def _still_inside(context: otel.Context) -> otel.Context:
    """`context` without the scopes that are gone: nobody can change the context that they were entered in from elsewhere."""
    while (entry := _entry_of(context)) is not None and entry.is_gone and context.get(_SPAN) is entry.span:
        context = _without_span(context, entry._outer)
    return context


def _without_span(context: otel.Context, around: otel.Context) -> otel.Context:
    """`context` with the span and the entry that are in `around`."""
    changed = {name: value for name, value in context.items() if name not in (_SPAN, _ENTRY)}
    return otel.Context(changed | {name: around[name] for name in (_SPAN, _ENTRY) if name in around})


class Scope:
    """A part of a run, as long as its `with` or the decorated function. Made by `chain`, `step` and `tool`."""

    __slots__ = ("_attributes", "_name", "_open", "_operation", "_run", "_span_attributes", "span")

    def __init__(self, operation: str, name: str | None, attributes: Mapping[str, Any]) -> None:
        self._operation = operation
        self._name = name
        self._attributes = {semconv.OPERATION: operation, **attributes}
        self._open: list[_Entry | None] = []
        """What is entered; None for an entry that failed."""
        self.span: Span | None = None
        """The span, once entered; of the last entry."""
        self._span_attributes: dict[str, Any] = {}
        """What was set on that span, which may hold less: see `calls.tracing`."""
        self._run: Span | str | None = None
        """The root of the run that it was entered in, or the id of the run that is continued here."""

    @property
    def span_id(self) -> str | None:
        """Hex id of the span; None before it is entered."""
        return None if self.span is None else f"{self.span.get_span_context().span_id:016x}"

    @property
    def trace_id(self) -> str | None:
        """Hex id of its trace; None before it is entered."""
        return None if self.span is None else f"{self.span.get_span_context().trace_id:032x}"

    @property
    def is_over(self) -> bool:
        """Whether it has been entered, and left since."""
        return self.span is not None and not self._open and not self.span.is_recording()

    @property
    def run_id(self) -> str | None:
        """The id of the run that this is part of, for `chain(continues=...)` in whatever process; None before it is entered."""
        run = self._run
        return run if run is None or isinstance(run, str) else run_ids.run_id(run.get_span_context())

    @property
    def waiting(self) -> bool:
        """Whether the run waits for its client once this chain has ended, and is not done.

        For the app to say, before the end: nobody else knows whether an answer that asks for tools is an answer. It is told by
        `ChainCompleted.waiting`, and in `llm_runs` until a chain continues the run.
        """
        told = self._attributes if self.span is None else self._span_attributes
        return bool(told.get(semconv.RUN_WAITING))

    @waiting.setter
    def waiting(self, waits: bool) -> None:
        told = {semconv.RUN_WAITING: bool(waits)}
        if self.span is None:
            self._attributes.update(told)
        else:
            self._span_attributes.update(told)
            self.span.set_attributes(told)

    # --- as a context manager ----------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        try:
            entry = self._begin(_still_inside(otel.get_current()))
            entry.attach()
            self._open.append(entry)
        except Exception as fault:
            faults.report(f"open a {self._operation} span", fault)
            self._open.append(None)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entry = self._last()
        if entry is not None:
            try:
                entry.leave()
            except Exception as fault:
                faults.report(f"leave a {self._operation} span", fault)
            self._end(entry, exc)

    def _last(self) -> _Entry | None:
        """The entry that is left here: where several tasks are in one scope, the innermost in the current context."""
        if len(self._open) > 1:
            entry = _entry_of(otel.get_current())
            while entry is not None:
                if entry in self._open:
                    self._open.remove(entry)
                    return entry
                entry = entry.above
        return self._open.pop() if self._open else None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _begin(self, current: otel.Context) -> _Entry:
        """Starts the span, in the current context."""
        abandoned.finish_abandoned()
        above = current
        attributes = {**self._attributes, **context.attributes(current)}
        if (run := parent.find_parent()) is not None:  # of LangChain's, which is not in the context
            above = set_span_in_context(run.span, current)
            inherit(attributes, run)
        if hub.subscribers:
            above = otel.set_value(SCOPE_KEY, self, above)
        name = self._name
        self.span = span = tracer.start_span(
            f"{self._operation} {name}" if name else self._operation,
            above,
            SpanKind.INTERNAL,
            attributes,
            run_ids.links(attributes[semconv.RUN_CONTINUES]) if semconv.RUN_CONTINUES in attributes else (),
        )
        self._span_attributes = attributes
        outer = _entry_of(current)
        self._run = of_run = attributes.get(semconv.RUN_CONTINUES) or (span if outer is None else outer.run)
        return _Entry(span, attributes, of_run, metrics.stopwatch(self._operation, attributes), current)

    def _end(self, entry: _Entry, error: BaseException | None) -> None:
        """Ends the span as `error` says."""
        span = entry.span
        if entry.process is not abandoned.process():
            return  # a forked child: the span is its parent's to end
        was_recorded = span.is_recording()
        if isinstance(error, GeneratorExit):
            # Perhaps inside the garbage collector, and so inside a lock that ending a span needs.
            if entry.stopwatch is not None:
                entry.stopwatch.halt()
            abandoned.later(partial(_finish, entry, error, time.time_ns()))
        else:
            _finish(entry, error)
        if hub.subscribers and not was_recorded:
            for subscriber in hub.subscribers:
                subscriber.span_ended(self)  # nobody waits for the events of a span that is not recorded

    # --- as a decorator ----------------------------------------------------------------------------------------------
    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Has every call of `function` happen in a part of its own."""
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"{self._operation} decorates a function, not {function!r}")
        name = self._name or getattr(function, "__name__", type(function).__name__)
        attributes = {**self._attributes, **_name_attributes(self._operation, name)}
        fresh = partial(Scope, self._operation, name, attributes)  # calls may overlap
        wrapper: Any
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            return cast("Callable[_P, _R]", generator_function(function, lambda: _GeneratorScope(fresh())))
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with fresh() as part:
                    part._capture_arguments(function, args, kwargs)
                    return part._capture_result(await function(*args, **kwargs))
        else:

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with fresh() as part:
                    part._capture_arguments(function, args, kwargs)
                    return part._capture_result(function(*args, **kwargs))

        return cast("Callable[_P, _R]", wrapper)

    # --- what a tool is asked and answers, where content is captured -------------------------------------------------
    def _capture_arguments(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._operation == semconv.EXECUTE_TOOL and settings().captures_content:
            self._capture(semconv.TOOL_CALL_ARGUMENTS, lambda: _arguments(function, args, kwargs))

    def _capture_result(self, result: _R) -> _R:
        if self._operation == semconv.EXECUTE_TOOL and settings().captures_content:
            self._capture(semconv.TOOL_CALL_RESULT, lambda: result)
        return result

    def _capture(self, name: str, value: Callable[[], Any]) -> None:
        try:
            from otel_llm.content import capture

            if self.span is not None:
                captured = capture.on_span({name: value()})
                self._span_attributes.update(captured)
                self.span.set_attributes(captured)
        except Exception as fault:  # an object of the app's that is not what it seems
            faults.report("read what a tool is asked or answers", fault)


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, without the object of a method."""
    try:
        given: dict[str, Any] = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # they do not fit: the call itself is about to say so
        given = kwargs
    return {name: value for name, value in given.items() if name not in ("self", "cls")}


class _GeneratorScope:
    """A scope for the body of a generator, which attaches its context itself, step by step."""

    __slots__ = ("_entry", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._entry: _Entry | None = None

    def __enter__(self) -> otel.Context:
        current = otel.get_current()
        try:
            self._entry = self._scope._begin(current)
            return set_span_in_context(self._entry.span, current)
        except Exception as fault:
            faults.report(f"open a {self._scope._operation} span", fault)
            return current

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entry is not None:
            self._scope._end(self._entry, exc)


def _finish(entry: _Entry, error: BaseException | None, ended_ns: int | None = None) -> None:
    status = semconv.OK if ending.is_control_flow(error) else ending.status_of(error)
    error_type = ending.error_type_of(error) if error is not None and status in semconv.FAILED else None
    ending.end_span(entry.span, entry.attributes, status, error=error, error_type=error_type, end_ns=ended_ns)
    if entry.stopwatch is not None:
        entry.stopwatch.stop(error_type, entry.span)


def _name_attributes(operation: str, name: str | None) -> dict[str, str]:
    """The attributes that hold a part's name."""
    attribute = _NAME_ATTRIBUTES.get(operation)
    return {} if name is None or attribute is None else {attribute: name}


_NAME_ATTRIBUTES: Final = {
    semconv.INVOKE_WORKFLOW: semconv.WORKFLOW_NAME,
    semconv.INVOKE_AGENT: semconv.AGENT_NAME,
    semconv.EXECUTE_TOOL: semconv.TOOL_NAME,
}


@overload
def chain(name: str | None = None, /, *, agent: bool = False, continues: Scope | str | None = None) -> Scope: ...
@overload
def chain(name: Callable[_P, _R], /) -> Callable[_P, _R]: ...
def chain(
    name: str | Callable[_P, _R] | None = None, /, *, agent: bool = False, continues: Scope | str | None = None
) -> Scope | Callable[_P, _R]:
    """A run of several calls, steps and tools: a span `invoke_workflow {name}`, or `invoke_agent {name}`.

        with chain("answer") as run:
            ...

        @chain("weather-agent", agent=True)
        async def answer(question): ...

    As a context manager, sync or async, and as a decorator of functions, coroutines, generators and async generators; a generator's
    span lasts from its first value to its last. The calls inside carry the name in `workflow_name`, or `agent_name`. What is raised
    passes through; it makes the status `error`, or `cancelled`.

    Args:
        name: the chain's name; a decorated function's own by default, so that `@chain` alone will do.
        agent: whether it is an agent, that is: whether a model decides what happens next.
        continues: the run that this goes on with, in another request or process: the `run_id` of its chain, or the chain itself.
            What is no id of a run gets a line in the log, and the chain is a run of its own.

    Raises TypeError for a name that is no text.
    """
    run = continues.run_id if isinstance(continues, Scope) else continues
    return _scope(semconv.INVOKE_AGENT if agent else semconv.INVOKE_WORKFLOW, name, run_ids.continuing(run))


@overload
def step(name: str | None = None, /) -> Scope: ...
@overload
def step(name: Callable[_P, _R], /) -> Callable[_P, _R]: ...
def step(name: str | Callable[_P, _R] | None = None, /) -> Scope | Callable[_P, _R]:
    """A part of a chain, such as the search before the answer: a span `step {name}`. Used like `chain`."""
    return _scope(semconv.STEP, name, {})


@overload
def tool(name: str | None = None, /, *, call_id: str | None = None) -> Scope: ...
@overload
def tool(name: Callable[_P, _R], /) -> Callable[_P, _R]: ...
def tool(name: str | Callable[_P, _R] | None = None, /, *, call_id: str | None = None) -> Scope | Callable[_P, _R]:
    """The execution of a tool: a span `execute_tool {name}`. Used like `chain`.

        for call in message.tool_calls:
            with tool(call.function.name, call_id=call.id):
                result = functions[call.function.name](**json.loads(call.function.arguments))

    Args:
        name: the tool's name.
        call_id: the id that the model gave this call of it, which ties the execution to the answer that asked for it.

    Arguments and result are recorded only of a decorated function, and only where content is captured.
    """
    attributes = {semconv.TOOL_TYPE: "function"}
    if call_id is not None:
        attributes[semconv.TOOL_CALL_ID] = str(call_id)
    return _scope(semconv.EXECUTE_TOOL, name, attributes)


def _scope(
    operation: str, name: str | Callable[_P, _R] | None, attributes: Mapping[str, Any]
) -> Scope | Callable[_P, _R]:
    if name is None or isinstance(name, str):
        return Scope(operation, name, {**attributes, **_name_attributes(operation, name)})
    if callable(name):
        return Scope(operation, None, attributes)(name)
    raise TypeError(f"the name of a chain, step or tool is text, not {name!r}")
