"""`score`: how good an answer was, said of the call, the run or the request that gave it."""

from __future__ import annotations

import logging
import math
import time
from decimal import Decimal
from numbers import Real
from typing import Any, Final

from opentelemetry import trace

from otel_llm import context
from otel_llm.conventions import semconv
from otel_llm.settings import settings
from otel_llm.store import store as stores
from otel_llm.store.journal import record
from otel_llm.store.journal.record import Score
from otel_llm.support import faults

_logger = logging.getLogger("otel_llm")

_MOST_CHARACTERS: Final = 256
_MOST_COMMENT: Final = 65_536
_HEX: Final = frozenset("0123456789abcdef")


class BadScore(ValueError):
    """It cannot be recorded: one line that says why, and what to give instead."""


def score(
    name: str,
    value: float | None = None,
    *,
    label: str | None = None,
    comment: str | None = None,
    trace_id: str | int | None = None,
    span_id: str | int | None = None,
    request_id: str | None = None,
    source: str = "app",
) -> None:
    """Records how good an answer was, in the table `llm_scores`; tells of it as the event `gen_ai.evaluation.result`, too.

    It is about the current span (that of a `chain`, `step` or `tool`, or the app's own), or else about the current request, where
    neither a trace nor a request is named. A later score of the same name, subject and source takes the place of the earlier one.
    What cannot be recorded is said in one line of the log.

    Args:
        name: what was looked at, such as `helpful`.
        value: how good it was, as a number; true is 1 and false 0.
        label: the same in a word, such as `good`. One of the two must be given.
        comment: why.
        trace_id: the trace that it is about; 32 hexadecimal digits, or OpenTelemetry's number.
        span_id: the span in it; 16 hexadecimal digits, or the number. Without `trace_id` one of the current trace.
        request_id: the request, as `llm_context` or a middleware has named it.
        source: who says so.

    Raises:
        TypeError: an argument is neither text nor a number; nothing else.
    """
    _require_types(name, value, label, comment, trace_id, span_id, request_id, source)
    try:
        if settings().sdk_disabled:
            return
        subject, here = _subject(trace_id, span_id, request_id)
        given = checked(*subject, name, value, label=label, comment=comment, source=source)
        targets = stores.opened()
        if not targets and (path := settings().store) is not None:
            targets = [stores.Store.open(path)]
        for store in targets:
            store.write(record.score_record(given))
        _tell(given, here)
    except BadScore as error:
        _logger.warning("otel-llm has not recorded a score: %s", error)
    except Exception as fault:
        faults.report("record a score", fault)


def _require_types(name: Any, value: Any, label: Any, comment: Any, *others: Any) -> None:
    trace_id, span_id, request_id, source = others
    if value is not None and not isinstance(value, Real | Decimal):
        hint = "; a word is a label: score(name, label=...)" if isinstance(value, str) else ""
        raise TypeError(f"the value of a score is a number, not {type(value).__name__}{hint}")
    for what, given, needed in (
        ("name", name, True), ("label", label, False), ("comment", comment, False), ("request_id", request_id, False),
        ("source", source, True),
    ):  # fmt: skip
        if not isinstance(given, str) and (needed or given is not None):
            raise TypeError(f"the {what} of a score is text, not {type(given).__name__}")
    for what, given in (("trace_id", trace_id), ("span_id", span_id)):
        if given is not None and (not isinstance(given, str | int) or isinstance(given, bool)):
            raise TypeError(f"the {what} of a score is text or OpenTelemetry's number, not {type(given).__name__}")


_Subject = tuple[str | None, str | None, str | None]


def _subject(
    trace_id: str | int | None, span_id: str | int | None, request_id: str | None
) -> tuple[_Subject, trace.Span | None]:
    """The ids of trace, span and request, and the current span where that is what it is about. Raises `BadScore`."""
    trace_text, span_text = _hex("trace_id", trace_id, 32), _hex("span_id", span_id, 16)
    current = trace.get_current_span()
    known = current.get_span_context()
    if span_text is not None and trace_text is None:
        if not known.is_valid:
            raise BadScore(f"no trace is current that the span {span_text} could be in: give trace_id=, too")
        trace_text = f"{known.trace_id:032x}"
    if trace_text is not None or request_id is not None:
        return (trace_text, span_text, request_id), None
    if known.is_valid:
        return (f"{known.trace_id:032x}", f"{known.span_id:016x}", None), current
    request_id = context.attributes().get(semconv.REQUEST_ID)
    if request_id is None:
        raise BadScore(
            "nothing is current that it could be about: call score() inside a chain() or an llm_context(), "
            "or give trace_id= or request_id="
        )
    return (None, None, request_id), None


def _hex(what: str, given: str | int | None, digits: int) -> str | None:
    if given is None:
        return None
    text = f"{given:0{digits}x}" if isinstance(given, int) else given.strip().lower()
    if len(text) != digits or not _HEX.issuperset(text) or not text.strip("0"):
        raise BadScore(f"{what}={given!r:.60} is not {digits} hexadecimal digits, as the column {what} has them")
    return text


def checked(
    trace_id: str | None,
    span_id: str | None,
    request_id: str | None,
    name: str,
    value: Any = None,
    *,
    label: str | None = None,
    comment: str | None = None,
    source: str,
) -> Score:
    """A score as of now, ready to be written. Raises `BadScore`."""
    texts = {"name": name, "label": label, "source": source, "request_id": request_id}
    for what, text in texts.items():
        if text is not None and (not text.strip() or len(text) > _MOST_CHARACTERS):
            raise BadScore(
                f"its {what} is {f'{len(text)} characters long, more than {_MOST_CHARACTERS}' if text.strip() else 'empty'}"
            )
    number = None if value is None else _finite(name, value)
    if number is None and label is None:
        raise BadScore(f"{name!r:.60} has neither a value nor a label")
    if comment is not None and len(comment) > _MOST_COMMENT:
        comment = comment[: _MOST_COMMENT - 1] + "…"
    return (
        _hex("trace_id", trace_id, 32), _hex("span_id", span_id, 16), request_id, _plain(name), number, _plain(label),
        _plain(comment) or None, _plain(source), time.time_ns() // 1000,
    )  # fmt: skip


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise BadScore(f"the value of {name!r:.60} is no finite number: {value!r:.60}")
    return number


def _plain(text: Any) -> Any:
    """A text as itself: an enumeration's value, and nothing that UTF-8 has no word for."""
    return None if text is None else str.__str__(text).encode("utf-8", "replace").decode()


def _tell(given: Score, here: trace.Span | None) -> None:
    """Emits the event, where somebody takes events."""
    from otel_llm.signals import events  # brings the logs API with it

    if not events.wanted(semconv.EVENT_EVALUATION):
        return
    trace_id, span_id, request_id, name, value, label, comment, _, at_us = given
    answered = getattr(here, "attributes", None) or {}
    told = {
        semconv.EVALUATION_NAME: name,
        semconv.EVALUATION_VALUE: value,
        semconv.EVALUATION_LABEL: label,
        semconv.EVALUATION_EXPLANATION: comment,
        semconv.RESPONSE_ID: answered.get(semconv.RESPONSE_ID),
        semconv.REQUEST_ID: request_id,
    }
    at = None if here is not None else (int(trace_id or "0", 16), int(span_id or "0", 16))
    events.evaluated({key: one for key, one in told.items() if one is not None}, at, at_us * 1000)
