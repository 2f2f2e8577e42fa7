"""Those who hear of a model call between its start and its end, as the account does. A span processor hears of those two alone."""

from __future__ import annotations

from typing import Protocol

from opentelemetry.trace import Span


class CallListener(Protocol):
    def update(self, span: Span) -> None:
        """More is known of a running call, which counts if the process dies before its end."""

    def end_untold(self, span: Span) -> None:
        """A span has ended, perhaps without a word to its processors: an exception may have come up on the way."""

    def deny(self, span: Span) -> None:
        """The span around a request that is no model call, in case somebody else has taken it for one."""


listeners: list[CallListener] = []
