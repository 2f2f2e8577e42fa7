"""gevent, whose subprocesses are forks in Python: the hooks that libraries have on a fork run, and in the child greenlets go on.

openai asks for the name of the processor in its first request, which Python finds out by a subprocess. It is asked for
beforehand: once it is known, no client forks. Of the other subprocesses of an app there is a warning: the OpenTelemetry SDK starts
threads in the child, which lets the app's other greenlets run there until it is the other program.
"""

from __future__ import annotations

import logging
import platform
import sys
from functools import cache
from typing import Any, Final

import wrapt

from otel_llm.support import forks, otel_private

_logger = logging.getLogger("otel_llm")

FAULT: Final = (
    "gevent's subprocesses are forks in Python, and in the child the OpenTelemetry SDK starts threads, which lets the app's other "
    "greenlets run there too: calls may be made twice"
)
REMEDY: Final = "start programs with os.posix_spawn, or while no greenlet makes a call"


@cache
def prepare() -> None:
    """Once in a process: what gevent needs, now or when it is imported."""
    # Before it has patched anything, where it is imported later: then this is a plain subprocess.
    wrapt.register_post_import_hook(_know_the_processor, "gevent.monkey")
    forks.register(forks.Turn.GREENLETS, before=_before_fork)


def has_patched(module: str) -> bool:
    """Whether gevent stands in for a module of the standard library."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def _know_the_processor(_: object = None) -> None:
    try:
        platform.processor()
    except Exception:
        _logger.debug("the processor is not known", exc_info=True)


def _before_fork() -> None:
    if has_patched("threading") and otel_private.starts_threads_in_child():
        _warn()


@cache
def _warn() -> None:
    _logger.warning("%s; %s. Said once.", FAULT, REMEDY)
