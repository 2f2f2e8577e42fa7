"""What is known of a deployment while an app runs: how many requests it had of late, and whether it is left alone for now."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import cache

from otel_llm import context
from otel_llm.conventions import semconv
from otel_llm.routing import first_token
from otel_llm.routing.profiles import Deployment
from otel_llm.support import forks

_logger = logging.getLogger("otel_llm")
_MINUTE = 60.0
_LONGEST_COOLDOWN = 3600.0


class LimitReached(RuntimeError):
    """Every deployment of the profile has had the requests that its limits allow. Nothing was sent."""

    __module__ = "otel_llm.routing"  # where apps import it from: `error.type` names it so


@cache
def failures() -> tuple[type[BaseException], ...]:
    """What another deployment may do better: 429, 5xx, no connection, time-out, a stream that begins with an error.

    The caller's mistakes are not among them.
    """
    import openai

    return (
        openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError, first_token.error_in_stream(),
        LimitReached,
    )  # fmt: skip


class DeploymentState:
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
        _states.add(self)

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


_states = forks.members(forks.Turn.DEPLOYMENTS, DeploymentState.reset)


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
