"""A request of a client's and its answer: what happens around the one method that every resource method calls, sync or async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from opentelemetry import context as otel

from otel_llm.calls import request
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.request import UnrecordedRequest
from otel_llm.support import faults, otel_private

_PENDING: Final = object()


class Exchange:
    """A request that is not recorded; what is recorded of another, and what is made of its answer, subclasses say."""

    __slots__ = ("_outside", "_request", "args", "result")

    def __init__(self, request: ModelCall | UnrecordedRequest | None, args: Any) -> None:
        """`request`: None where the provider cannot be kept from getting what is current, a fault of ours."""
        self._request = request
        self._outside: otel.Context | None = None
        self.args = args
        """What the request is made with."""
        self.result: Any = _PENDING

    @property
    def is_pending(self) -> bool:
        """Whether there is no answer."""
        return self.result is _PENDING

    def attach(self) -> None:
        """Begins the request: the span of a call is current, and nothing of ours goes out that is not to."""
        if self._request is not None:
            self._outside = outside = otel_private.current_context()
            request.enter(self._request, outside)

    def detach(self) -> None:
        """Undoes `attach`; once more changes nothing."""
        own = self._request
        if type(own) is UnrecordedRequest:
            own.finished = True
        if own is not None and self._outside is not None:
            request.leave(own, self._outside)

    def is_sent_again(self, error: Exception) -> bool:
        """Whether the request is made once more, with `args` as they are by now, instead of failing with `error`."""
        return False

    def end(self) -> None:
        """There is an answer."""
        self.detach()

    def fail(self, error: BaseException) -> None:
        """The app gets `error` instead of an answer; a signal handler may have raised it anywhere, in `end` too."""
        self.detach()


def carry_out(exchange: Exchange, send: Callable[..., Any], kwargs: Any) -> Any:
    """Sends the request of an exchange; returns what the app gets for it."""
    try:
        exchange.attach()
        # Again outside of `except`, so that the app's error has no context but its own.
        while exchange.result is _PENDING:
            try:
                exchange.result = send(*exchange.args, **kwargs)
            except Exception as error:
                if not exchange.is_sent_again(error):
                    raise
        exchange.end()
    except BaseException as error:
        faults.surely(exchange.fail, error)
        raise
    return exchange.result


async def carry_out_async(exchange: Exchange, send: Callable[..., Awaitable[Any]], kwargs: Any) -> Any:
    """The same for a client whose `send` is asynchronous."""
    try:
        exchange.attach()
        while exchange.result is _PENDING:
            try:
                exchange.result = await send(*exchange.args, **kwargs)
            except Exception as error:
                if not exchange.is_sent_again(error):
                    raise
        exchange.end()
    except BaseException as error:
        faults.surely(exchange.fail, error)
        raise
    return exchange.result
