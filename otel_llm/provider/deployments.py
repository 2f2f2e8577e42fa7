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
from collections.abc import Callable, Mapping
from contextvars import Token
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType

from opentelemetry import context as otel

from otel_llm import context, semconv
from otel_llm.provider.profiles import Deployment, Profile

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

    __slots__ = ("_clock", "_failed_at", "_lock", "_sent", "attributes", "cooling_until", "deployment")

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


class Pool:
    """The deployments of one profile, shared by every client and invoker made of it."""

    def __init__(self, profile: Profile, clock: Callable[[], float], chance: random.Random) -> None:
        self.profile = profile
        self.targets = tuple(Target(deployment, clock) for deployment in profile.deployments)
        self._clock = clock
        self._chance = chance

    def order(self) -> tuple[Target, ...]:
        """The deployments to ask for the next call, one after the other. Raises LimitReached where all are full."""
        targets = self.targets
        if len(targets) == 1:  # its limit is looked at when it is asked
            return targets
        now = self._clock()
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


class Attempt:
    """Around one request to one deployment: counts it, names profile and deployment to its span, notes a failure."""

    __slots__ = ("_target", "_token")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._token: Token[otel.Context] | None = None

    def __enter__(self) -> None:
        self._target.take()
        self._token = otel.attach(context.extended(self._target.attributes))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            otel.detach(self._token)
        if error is not None and isinstance(error, failures()):
            self._target.failed(error)


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
