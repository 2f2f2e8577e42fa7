"""What went wrong inside otel-llm itself: logged once, counted, never raised into the app."""

from __future__ import annotations

import logging
from collections import Counter

_logger = logging.getLogger("otel_llm")
_counts: Counter[str] = Counter()


def report(where: str, error: BaseException) -> None:
    """Counts a fault of ours and logs the first of its kind. `where` names the hook, for the reader of the log."""
    kind = f"{where}: {type(error).__name__}"
    _counts[kind] += 1
    if _counts[kind] == 1:
        _logger.warning(
            "otel-llm could not %s (%s: %s); the app's call is not affected. Further faults of this kind are only counted.",
            where,
            type(error).__name__,
            error,
            exc_info=_logger.isEnabledFor(logging.DEBUG),
        )


def counts() -> dict[str, int]:
    """How often each kind of fault happened in this process."""
    return dict(_counts)
