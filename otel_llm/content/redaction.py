"""What the app's own function takes out of content before it is recorded. The built-in patterns (`secrets`) come after it.

It fails closed: where the function cannot be found, raises, or returns something that is no message, nothing is recorded.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from otel_llm.settings import settings
from otel_llm.support import faults, masking

Message = dict[str, Any]
Redactor = Callable[[Message], Message | None]

_logger = logging.getLogger("otel_llm")


class RedactionFailed(Exception):
    """Why a message was not recorded; never what was in it."""


_given: Redactor | None = None
_loaded: tuple[str, Redactor | None] | None = None
"""What `OTEL_LLM_REDACT` named when it was last looked at, and what was found there."""


def use(redactor: Redactor | None) -> None:
    """Has `redactor` see every message, in place of the one that `OTEL_LLM_REDACT` names; None goes back to that.

    Raises TypeError where it cannot be called.
    """
    global _given
    if redactor is not None and not callable(redactor):
        raise TypeError(f"redact must be a function that takes a message and returns one or None, not {redactor!r}")
    _given = redactor


def current() -> Redactor | None:
    """The app's function, None where it has none."""
    return _given if _given is not None else _named(settings().redact)


def redact(redactor: Redactor, message: Message) -> Message | None:
    """The message as `redactor` wants it recorded; None where it is not to be. Raises RedactionFailed."""
    failed = None
    answer: Any = None
    try:
        answer = redactor(message)
    except BaseException as error:
        if faults.is_passing_by(error):
            raise
        failed = type(error).__name__
    if (
        failed is not None
    ):  # outside the `except`: the log must not tell of the error itself, which may quote the message
        raise RedactionFailed(f"the redactor raised {failed}")
    if answer is None:
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("role"), str):
        raise RedactionFailed(f"the redactor returned a {type(answer).__name__}, not a message or None")
    parts = answer.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RedactionFailed("the redactor returned a message whose parts are not a list of dict")
    return answer


def _named(name: str | None) -> Redactor | None:
    global _loaded
    if name is None:
        return None
    if _loaded is None or _loaded[0] != name:
        _loaded = name, _load(name)
    return _loaded[1] or _drop


def _load(name: str) -> Redactor | None:
    module, _, function = name.partition(":")
    if not module or not function:
        why = "is not module:function"
    else:
        try:
            found: Any = importlib.import_module(module)
            for attribute in function.split("."):
                found = getattr(found, attribute)
            if callable(found):
                return found  # type: ignore[no-any-return]
            why = "names something that is no function"
        except BaseException as error:  # a script that ends itself must not end the app
            if faults.is_passing_by(error):
                raise
            why = f"cannot be loaded ({masking.error(error)})"
    _logger.warning(
        "OTEL_LLM_REDACT=%s %s; no content is recorded. Give module:function, importable.",
        masking.setting("OTEL_LLM_REDACT", name[:200]),
        why,
    )
    return None


def _drop(message: Message) -> None:
    return None


def fail(error: RedactionFailed) -> None:
    """Says once, and counts, that content was not recorded."""
    faults.report("redact what was said; it is not recorded", error)
