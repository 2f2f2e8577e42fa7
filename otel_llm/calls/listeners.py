"""Those who hear of a model call between its start and its end, as the account does. A span processor hears of those two alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import Span

if TYPE_CHECKING:
    from otel_llm.content.increments import Increment


class CallListener(Protocol):
    def update(self, span: Span) -> None:
        """More is known of a running call, which counts if the process dies before its end."""

    def end_untold(self, span: Span) -> None:
        """A span has ended, perhaps without a word to its processors: an exception may have come up on the way."""

    def deny(self, span: Span) -> None:
        """The span around a request that is no model call, in case somebody else has taken it for one."""


listeners: list[CallListener] = []


class StreamListener(Protocol):
    def increment(self, span: Span, increment: Increment) -> None:
        """The answer of a running call has grown."""


stream_listeners: list[StreamListener] = []
"""Empty while nobody asks for increments, so that a stream costs nothing more. Asked as a stream begins."""


def teller(span: Span) -> Callable[[Increment], None]:
    """Tells those who asked of the increments of a call."""

    def tell(increment: Increment) -> None:
        for listener in stream_listeners:
            listener.increment(span, increment)

    return tell
