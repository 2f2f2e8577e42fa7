"""Faults of otel-llm itself: logged once, never raised into the app. And exceptions of the app's that only came up in our lines.

A signal handler of the app's (a time limit: SIGALRM, RQ's, Celery's) raises wherever the program happens to be, in our lines
too, and just once. Such an exception is the app's, and it gets it: `report` lets it through. What was being done is done all the
same, by `surely`.

What an app's own function may do that we call (a redactor, a subscriber, a function of a middleware): whatever it raises ends
here, `sys.exit()` too; what merely reached it on its way to the app, such as Ctrl-C, goes on to the app. `is_passing_by` tells.
"""

from __future__ import annotations

import dis
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from otel_llm.support import masking

_logger = logging.getLogger("otel_llm")

counts: Final[Counter[str]] = Counter()
"""How often each kind of fault happened in this process: what makes the first of its kind the one that is logged."""


def report(where: str, error: BaseException) -> None:
    """Counts a fault of ours and logs the first of its kind. `where` names the hook, for the reader of the log.

    Raises `error` where it is no fault of ours, but what a signal handler of the app's raised.
    """
    pass_on(error)
    note(where, error)


def note(where: str, error: BaseException) -> None:
    """Like `report`, for a thread of our own, whose exceptions are nobody else's."""
    kind = f"{where}: {type(error).__name__}"
    counts[kind] += 1
    if counts[kind] == 1:
        _logger.warning(
            "otel-llm could not %s (%s); the app's call is not affected. Further faults of this kind are only counted.",
            where,
            _text_of(error),
            exc_info=_logger.isEnabledFor(logging.DEBUG),
        )


def _text_of(error: BaseException) -> str:
    try:
        return masking.error(error)
    except Exception:  # an error that cannot be told
        return type(error).__name__


# --- exceptions of the app's that come up in our lines ----------------------------------------------------------------
def pass_on(error: BaseException) -> None:
    """Raises `error` where it only came up here, and is the app's."""
    if _came_from_outside(error):
        raise error


def surely(step: Callable[..., None], *args: Any) -> None:
    """Does `step(*args)`, perhaps twice: where an exception of the app's comes up in it, it is done again, then that is raised."""
    try:
        step(*args)
    except BaseException as error:
        if is_the_apps(error):
            step(*args)
        raise


def is_the_apps(error: BaseException) -> bool:
    """Whether `error` came up here by no doing of ours: what is no `Exception`, and what was raised from outside."""
    return not isinstance(error, Exception) or _came_from_outside(error)


def is_passing_by(error: BaseException) -> bool:
    """Whether `error` only passed through a function of the app's that we called: then it must be raised on.

    Besides what comes from outside, that is Ctrl-C and whatever else ends threads, tasks and greenlets, but for what the function
    raises itself: an error or `KeyboardInterrupt` by `raise`, `SystemExit` by `sys.exit()`.
    """
    if _came_from_outside(error):
        return True
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if isinstance(error, Exception | SystemExit | GeneratorExit) or innermost is None:
        return False
    return not _raises(innermost)


def ends_here(error: BaseException) -> bool:
    """Whether `error` is a fault of what we called, a library that is broken: one that exits as it is imported is that too."""
    return isinstance(error, Exception | SystemExit) and not is_passing_by(error)


def _came_from_outside(error: BaseException) -> bool:
    """Whether a signal handler or another thread raised `error` here.

    The traceback tells: a signal handler has a frame in it, that of a function which was given the very frame that it
    interrupted; what another thread raises here (`PyThreadState_SetAsyncExc`) is raised by no line at all. Not told are the
    exceptions of a handler without a Python frame, and those of another thread that are Python's own (`TimeoutError`).
    """
    step, innermost = error.__traceback__, None
    in_main = threading.current_thread() is threading.main_thread()  # where alone signal handlers run
    handlers: set[CodeType] | None = None
    while step is not None:
        if in_main and step is not error.__traceback__:
            handlers = _handlers() if handlers is None else handlers
            if step.tb_frame.f_code in handlers or _was_given_its_caller(step.tb_frame):
                return True
        innermost, step = step, step.tb_next
    return innermost is not None and _is_foreign(type(error)) and not _raises(innermost)


def _was_given_its_caller(frame: FrameType) -> bool:
    """Whether a function has the frame that it was called in among its arguments, as signal handlers alone do."""
    code, caller = frame.f_code, frame.f_back
    if caller is None:
        return False
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    if not count:
        return False
    given = frame.f_locals
    for name in code.co_varnames[:count]:
        value = given.get(name)
        if value is caller or (type(value) is tuple and any(one is caller for one in value)):
            return True
    return False


def _handlers() -> set[CodeType]:
    """The code of the signal handlers that are set."""
    found = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        if callable(handler):
            handler = getattr(handler, "func", handler)  # a `functools.partial`
            called = handler if hasattr(handler, "__code__") else vars(type(handler)).get("__call__")
            code = getattr(called, "__code__", None)
            if isinstance(code, CodeType):
                found.add(code)
    return found


_OURS = frozenset(
    (
        "otel_llm",
        "opentelemetry",
        "wrapt",
        "orjson",
        "duckdb",
        "_duckdb",
        "openai",
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
    )
) | {"pydantic", "pydantic_core", "langchain_core", "langgraph", "google"}
"""What may fail by our doing, besides Python itself."""


def _is_foreign(cls: type) -> bool:
    """Whether an exception is neither Python's nor that of a library which we call."""
    home = cls.__module__.partition(".")[0]
    return home != "builtins" and home not in sys.stdlib_module_names and home not in _OURS


def _raises(step: TracebackType) -> bool:
    """Whether the line where an exception began raises one itself."""
    code = step.tb_frame.f_code.co_code
    return step.tb_lasti < len(code) and dis.opname[code[step.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
