"""The deployments of a profile while an app runs: which to ask next, which to leave alone for now.

The choice is by weight among those that are neither cooling down nor full. A deployment cools down after a failure that is not
the caller's (429, 5xx, no connection, time-out), for as long as its `Retry-After` says, else for its `cooldown`. One that
cools down is asked when no other is left: better a further try than a call that fails without one.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, Self

from opentelemetry import context as otel

from otel_llm import context
from otel_llm.conventions import semconv
from otel_llm.routing.profiles import Deployment, Profile
from otel_llm.routing.slots import Door, Slot
from otel_llm.support import forks

_logger = logging.getLogger("otel_llm")
_MINUTE = 60.0
_LONGEST_COOLDOWN = 3600.0


class LimitReached(RuntimeError):
    """Every deployment of the profile has had the requests that its limits allow. Nothing was sent."""


@cache
def failures() -> tuple[type[BaseException], ...]:
    """What another deployment may do better: 429, 5xx, no connection, time-out. The caller's mistakes are not among them."""
    import openai

    return openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError, LimitReached


class Target:
    """A deployment and its state. Safe to use from any thread."""

    __slots__ = ("__weakref__", "_clock", "_failed_at", "_lock", "_sent", "attributes", "cooling_until", "deployment")

    def __init__(self, deployment: Deployment, clock: Callable[[], float]) -> None:
        self.deployment = deployment
        self.attributes = {
            semconv.PROFILE: context.clean(deployment.profile),
            semconv.DEPLOYMENT: context.clean(deployment.name),
        }
        self.cooling_until = float("-inf")
        self._clock = clock
        self._failed_at = float("-inf")
        self._sent: deque[float] = deque()
        """When each request of the last minute was sent."""
        self.reset()
        _targets.add(self)

    def reset(self) -> None:
        """Forgets who holds the lock: in a forked child it was a thread of its parent's."""
        self._lock = threading.Lock()

    def is_full(self, now: float) -> bool:
        if self.deployment.requests_per_minute is None:
            return False
        with self._lock:
            return self._has_no_room(now)

    def take(self) -> None:
        """Counts a request that is about to be sent. Raises LimitReached."""
        deployment = self.deployment
        if deployment.requests_per_minute is None:
            return
        now = self._clock()
        with self._lock:
            if self._has_no_room(now):
                raise LimitReached(
                    f"profile {deployment.profile!r}, deployment {deployment.name!r}: {deployment.requests_per_minute} "
                    "requests a minute are its limit; send less, raise it, or add a deployment"
                )
            self._sent.append(now)

    def _has_no_room(self, now: float) -> bool:
        sent = self._sent
        while sent and sent[0] <= now - _MINUTE:
            sent.popleft()
        return len(sent) >= (self.deployment.requests_per_minute or 0)

    def failed(self, error: BaseException) -> None:
        """Leaves the deployment alone for a while."""
        if isinstance(error, LimitReached):
            return
        now = self._clock()
        asked = retry_after(error)
        seconds = self.deployment.cooldown if asked is None else min(asked, _LONGEST_COOLDOWN)
        if seconds > 0:
            # One warning for an outage, however many calls meet it.
            is_news = now - self._failed_at > _MINUTE
            _logger.log(
                logging.WARNING if is_news else logging.DEBUG,
                "profile %r: deployment %r failed (%s) and is left alone for %g s",
                self.deployment.profile,
                self.deployment.name,
                type(error).__name__,
                seconds,
            )
        self._failed_at = now
        # A failure without `Retry-After` does not shorten what another one said.
        self.cooling_until = max(self.cooling_until, now + seconds)


_targets = forks.members(forks.Turn.DEPLOYMENTS, Target.reset)


class Pool:
    """The deployments of one profile, shared by every client and invoker made of it."""

    def __init__(self, profile: Profile, clock: Callable[[], float], chance: random.Random) -> None:
        self.profile = profile
        self.targets = tuple(Target(deployment, clock) for deployment in profile.deployments)
        self.door = Door()
        self.now = clock
        self._chance = chance

    def order(self) -> tuple[Target, ...]:
        """The deployments to ask for the next call, one after the other. Raises LimitReached where all are full."""
        targets = self.targets
        if len(targets) == 1:  # its limit is looked at when it is asked
            return targets
        now = self.now()
        ready: list[Target] = []
        cooling: list[tuple[float, int]] = []
        for number, target in enumerate(targets):
            if target.is_full(now):
                continue
            # Read once: another thread may change it meanwhile.
            until = target.cooling_until
            if until <= now:
                ready.append(target)
            else:
                cooling.append((until, number))
        if not ready and not cooling:
            raise LimitReached(
                f"profile {self.profile.name!r}: each of its {len(targets)} deployments has reached its requests a minute; "
                "send less, raise a limit, or add a deployment"
            )
        if len(ready) > 1:
            ready = self._drawn(ready)
        if cooling:
            ready.append(targets[min(cooling)[1]])
        return tuple(ready)

    def _drawn(self, targets: list[Target]) -> list[Target]:
        """Drawn without replacement by weight: each comes first as often as its weight says."""
        draw = self._chance.expovariate
        # The smallest of exponential times with rates w is each one's with probability w / sum(w).
        drawn = {
            target: draw(1.0) / target.deployment.weight if target.deployment.weight else float("inf")
            for target in targets
        }
        return sorted(targets, key=drawn.__getitem__)


class Course:
    """The way of one call: the deployments that it may go to, one after the other."""

    def __init__(self, pool: Pool, *, repeats: bool = True) -> None:
        """`repeats`: whether it may go to another after one has failed. Raises LimitReached where all are full."""
        self._pool = pool
        self._left = pool.order()
        self.tries = len(self._left) if repeats else 1
        """Attempts that are left."""

    def next(self) -> Attempt:
        """The attempt at the next one; waits where each has as many calls as it may have at once."""
        door = self._pool.door
        return self._attempt(door.wait(door.ask(self._best())))

    async def next_async(self) -> Attempt:
        """The same for `await`."""
        door = self._pool.door
        return self._attempt(await door.wait_async(door.ask(self._best())))

    def _best(self) -> Sequence[Target]:
        """Those that work, while any is left: it is better to wait for one of them than to ask one that does not."""
        left = self._left
        if len(left) > 1:
            now = self._pool.now()
            left = tuple(target for target in left if target.cooling_until <= now) or left
        return left

    def _attempt(self, slot: Slot) -> Attempt:
        self._left = tuple(target for target in self._left if target is not slot.target)
        self.tries -= 1
        return Attempt(slot.target, slot)

    def goes_on(self, error: BaseException) -> bool:
        """Whether another deployment is asked after this error."""
        return self.tries > 0 and isinstance(error, failures())


class Attempt:
    """Around one request to one deployment: counts it, names profile and deployment to its span, notes a failure.

    The slot is given back at the end of the `with`, unless it is kept for a stream.
    """

    __slots__ = ("_inner", "_is_kept", "_outer", "_slot", "target")

    def __init__(self, target: Target, slot: Slot | None = None) -> None:
        self.target = target
        self._slot = slot or Slot(target)
        self._is_kept = False
        self._inner: otel.Context | None = None
        self._outer: otel.Context | None = None

    def __enter__(self) -> Self:
        try:
            self.target.take()
        except LimitReached:
            self.give_back()
            raise
        self._outer = otel.get_current()
        self._inner = context.extended(self.target.attributes)
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
            self.target.failed(error)
        if error is not None or not self._is_kept:
            self.give_back()

    def keep(self) -> None:
        """Keeps the slot beyond the `with`, until `give_back`."""
        self._is_kept = True
        self._slot.lend()

    def keep_for(self, result: Any) -> Any:
        """Keeps the slot until the answer is closed, where `result` is one that is still to be read. Returns `result`."""
        if self.target.deployment.max_concurrency is not None:
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


def retry_after(error: BaseException) -> float | None:
    """Seconds that the answer behind an error asks to wait; None where it does not say."""
    headers: Mapping[str, str] | None = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        # A date tells the wall clock's time.
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
