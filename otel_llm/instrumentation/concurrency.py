"""The context follows work into threads, pools and processes: `OTEL_LLM_THREAD_CONTEXT`.

Signatures are wrapt's: wrapped, instance, args, kwargs. asyncio needs nothing of this: its tasks copy the context by themselves,
and `run_in_executor` and `to_thread` submit to a pool.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from opentelemetry import context as otel

from otel_llm.calls import carrying
from otel_llm.instrumentation.patching import Patches
from otel_llm.support import faults

_INFRASTRUCTURE = frozenset(
    {"anyio", "concurrent", "grpc", "logging", "multiprocessing", "opentelemetry", "otel_llm", "queue"}
)
"""Packages whose threads serve whoever comes: they would keep the context of the one who came first, for good."""
_MISSING = object()

_lock = threading.Lock()
_patches: Patches | None = None


def install() -> None:
    """Patches `threading`, `concurrent.futures` and `multiprocessing`, the latter two when the app imports them. Idempotent."""
    global _patches
    with _lock:
        if _patches is not None:
            return
        patches = _patches = Patches()

    def patch(module: str, owner: str, wrapper: Callable[..., Any], *names: str) -> None:
        def apply(imported: Any) -> None:
            try:
                for name in names:
                    patches.wrap(getattr(imported, owner), name, wrapper, optional=True)
            except Exception as fault:
                faults.report(f"carry the context into {owner}", fault)

        patches.when_imported(module, apply)

    patch("threading", "Thread", _start_thread, "start")
    patch("concurrent.futures.thread", "ThreadPoolExecutor", _submit_to_thread, "submit")
    patch("concurrent.futures.process", "ProcessPoolExecutor", _submit_to_process, "submit")
    patch("multiprocessing.process", "BaseProcess", _start_process, "start")
    # `map`, `starmap` and their asynchronous forms are all `_map_async`.
    patch("multiprocessing.pool", "Pool", _hand_to_pool, "apply_async", "_map_async", "imap", "imap_unordered")


def remove() -> None:
    """Takes the patches off again."""
    global _patches
    with _lock:
        patches, _patches = _patches, None
    if patches is not None:
        patches.undo()


def _current() -> otel.Context | None:
    """The OpenTelemetry context to carry to a thread; None where OpenTelemetry's own instrumentation of threads does it."""
    official = sys.modules.get("opentelemetry.instrumentation.threading")
    if official is not None and official.ThreadingInstrumentor().is_instrumented_by_opentelemetry:
        return None
    return otel.get_current()


# --- threads ----------------------------------------------------------------------------------------------------------
def _start_thread(wrapped: Callable[..., Any], thread: Any, args: Any, kwargs: Any) -> Any:
    own = _MISSING
    changed = False
    try:
        context, belongings = _current(), carrying.carried()
        if (context or belongings) and thread.ident is None and not _serves_all(thread):
            own = thread.__dict__.get("run", _MISSING)
            # On the object: a subclass has a `run` of its own.
            thread.run = partial(_run_thread, thread, own, context or None, belongings)
            changed = True
    except Exception as fault:
        faults.report("carry the context into a thread", fault)
    try:
        return wrapped(*args, **kwargs)
    except BaseException:
        if changed:
            _restore_run(thread, own)
        raise


def _run_thread(thread: Any, own: Any, context: otel.Context | None, belongings: carrying.Carried | None) -> None:
    _restore_run(thread, own)
    carrying.run_here(context, belongings, thread.run)


def _restore_run(work: Any, own: Any) -> None:
    if own is _MISSING:
        work.__dict__.pop("run", None)
    else:
        work.run = own


def _serves_all(work: Any) -> bool:
    target = getattr(work, "_target", None)
    module = getattr(type(work) if target is None else target, "__module__", None) or ""
    return module.partition(".")[0] in _INFRASTRUCTURE


def _submit_to_thread(wrapped: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
    # The interpreters of an InterpreterPoolExecutor (Python 3.14) share no objects.
    if not args or type(executor).__module__ == "concurrent.futures.interpreter":
        return wrapped(*args, **kwargs)
    try:
        context, belongings = _current(), carrying.carried()
    except Exception as fault:
        faults.report("carry the context into a pool", fault)
        return wrapped(*args, **kwargs)
    # An empty context counts too: the worker may stand in one that it was started with.
    return wrapped(carrying.run_here, context, belongings, *args, **kwargs)


# --- processes --------------------------------------------------------------------------------------------------------
def _submit_to_process(wrapped: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
    if not args:
        return wrapped(*args, **kwargs)
    try:
        sent = carrying.message()
    except Exception as fault:
        faults.report("carry the context into a process", fault)
        return wrapped(*args, **kwargs)
    # An empty one counts too: a forked worker stands in the context of whoever submitted first.
    return wrapped(carrying.run_there, sent, *args, **kwargs)


def _start_process(wrapped: Callable[..., Any], process: Any, args: Any, kwargs: Any) -> Any:
    own = _MISSING
    changed = False
    try:
        if (otel.get_current() or carrying.carried()) and not _serves_all(process):
            own = process.__dict__.get("run", _MISSING)
            process.run = partial(
                carrying.run_there, carrying.message(), _run_process, process, None if own is _MISSING else own
            )
            changed = True
    except Exception as fault:
        faults.report("carry the context into a process", fault)
    try:
        return wrapped(*args, **kwargs)
    finally:
        if changed:
            _restore_run(process, own)


def _run_process(process: Any, own: Any) -> None:
    _restore_run(process, _MISSING if own is None else own)
    process.run()


def _hand_to_pool(wrapped: Callable[..., Any], pool: Any, args: Any, kwargs: Any) -> Any:
    try:
        function = args[0] if args else kwargs["func"]
        if isinstance(pool, sys.modules["multiprocessing.pool"].ThreadPool):
            carried = partial(carrying.run_here, otel.get_current(), carrying.carried(), function)
        else:
            carried = partial(carrying.run_there, carrying.message(), function)
        if args:
            args = (carried, *args[1:])
        else:
            kwargs = {**kwargs, "func": carried}
    except Exception as fault:
        faults.report("carry the context into a pool", fault)
    return wrapped(*args, **kwargs)
