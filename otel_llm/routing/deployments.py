"""The deployments of a profile while an app runs: which to ask next, which to leave alone for now.

The choice is by weight among those that are neither cooling down nor full. A deployment cools down after a failure that is not
the caller's (429, 5xx, no connection, time-out), for as long as its `Retry-After` says, else for its `cooldown`. One that
cools down is asked when no other is left: better a further try than a call that fails without one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from opentelemetry import context as otel

from otel_llm import context
from otel_llm.routing.deployment_state import DeploymentState, LimitReached, failures
from otel_llm.routing.profiles import Profile
from otel_llm.routing.slots import Slot, Slots


class Pool:
    """The deployments of one profile, shared by every client and invoker made of it."""

    def __init__(self, profile: Profile, clock: Callable[[], float], chance: random.Random) -> None:
        self.profile = profile
        self.states = tuple(DeploymentState(deployment, clock) for deployment in profile.deployments)
        self.slots = Slots()
        self.now = clock
        self._chance = chance

    def order(self) -> tuple[DeploymentState, ...]:
        """The deployments to ask for the next call, one after the other. Raises LimitReached where all are full."""
        states = self.states
        if len(states) == 1:  # its limit is looked at when it is asked
            return states
        now = self.now()
        ready: list[DeploymentState] = []
        cooling: list[tuple[float, int]] = []
        for number, state in enumerate(states):
            if state.is_full(now):
                continue
            # Read once: another thread may change it meanwhile.
            until = state.cooling_until
            if until <= now:
                ready.append(state)
            else:
                cooling.append((until, number))
        if not ready and not cooling:
            raise LimitReached(
                f"profile {self.profile.name!r}: each of its {len(states)} deployments has reached its requests a minute; "
                "send less, raise a limit, or add a deployment"
            )
        if len(ready) > 1:
            ready = self._drawn(ready)
        if cooling:
            ready.append(states[min(cooling)[1]])
        return tuple(ready)

    def _drawn(self, states: list[DeploymentState]) -> list[DeploymentState]:
        """Drawn without replacement by weight: each comes first as often as its weight says."""
        draw = self._chance.expovariate
        # The smallest of exponential times with rates w is each one's with probability w / sum(w).
        drawn = {
            state: draw(1.0) / state.deployment.weight if state.deployment.weight else float("inf") for state in states
        }
        return sorted(states, key=drawn.__getitem__)


class Route:
    """The way of one call: the deployments that it may go to, one after the other."""

    def __init__(self, pool: Pool, *, repeats: bool = True) -> None:
        """`repeats`: whether it may go to another after one has failed. Raises LimitReached where all are full."""
        self._pool = pool
        self._left = pool.order()
        self.tries = len(self._left) if repeats else 1
        """Attempts that are left."""

    def next(self) -> Attempt:
        """The attempt at the next one; waits where each has as many calls as it may have at once."""
        slots = self._pool.slots
        return self._attempt(slots.wait(slots.ask(self._best())))

    async def next_async(self) -> Attempt:
        """The same for `await`."""
        slots = self._pool.slots
        return self._attempt(await slots.wait_async(slots.ask(self._best())))

    def _best(self) -> Sequence[DeploymentState]:
        """Those that work, while any is left: it is better to wait for one of them than to ask one that does not."""
        left = self._left
        if len(left) > 1:
            now = self._pool.now()
            left = tuple(state for state in left if state.cooling_until <= now) or left
        return left

    def _attempt(self, slot: Slot) -> Attempt:
        self._left = tuple(state for state in self._left if state is not slot.state)
        self.tries -= 1
        return Attempt(slot.state, slot)

    def goes_on(self, error: BaseException) -> bool:
        """Whether another deployment is asked after this error."""
        return self.tries > 0 and isinstance(error, failures())


class Attempt:
    """Around one request to one deployment: counts it, names profile and deployment to its span, notes a failure.

    The slot is given back at the end of the `with`, unless it is kept for a stream.
    """

    __slots__ = ("_inner", "_is_kept", "_outer", "_slot", "state")

    def __init__(self, state: DeploymentState, slot: Slot | None = None) -> None:
        self.state = state
        self._slot = slot or Slot(state)
        self._is_kept = False
        self._inner: otel.Context | None = None
        self._outer: otel.Context | None = None

    def __enter__(self) -> Self:
        try:
            self.state.take()
        except LimitReached:
            self.give_back()
            raise
        self._outer = otel.get_current()
        self._inner = context.extended(self.state.attributes)
        otel.attach(self._inner)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # No token: a coroutine that is dropped is closed wherever that happens, and nothing there is ours to change.
        if self._outer is not None and otel.get_current() is self._inner:
            otel.attach(self._outer)
        self._inner = self._outer = None  # a stream may keep this for long
        if error is not None and isinstance(error, failures()):
            self.state.failed(error)
        if error is not None or not self._is_kept:
            self.give_back()

    def keep(self) -> None:
        """Keeps the slot beyond the `with`, until `give_back`."""
        self._is_kept = True
        self._slot.lend()

    def keep_for(self, result: Any) -> Any:
        """Keeps the slot until the answer is closed, where `result` is one that is still to be read. Returns `result`."""
        if self.state.deployment.max_concurrency is not None:
            for name in ("response", "http_response"):  # streams and binary answers; raw responses
                response: Any = getattr(result, name, None)
                if getattr(response, "is_closed", True) is False:
                    self.keep()
                    _on_close(response.stream, self._slot.give_back)
                    break
        return result

    def give_back(self) -> None:
        """Lets another call have the slot."""
        self._slot.give_back()


def _on_close(stream: Any, then: Callable[[], None]) -> None:
    """Calls `then` once the byte stream of an HTTP response is closed: at its end, early, or by an error."""
    if hasattr(stream, "aclose"):
        aclose = stream.aclose

        async def close_async() -> None:
            try:
                await aclose()
            finally:
                then()

        stream.aclose = close_async
    if hasattr(stream, "close"):
        close = stream.close

        def close_now() -> None:
            try:
                close()
            finally:
                then()

        stream.close = close_now
