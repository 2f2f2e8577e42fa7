"""How many calls a deployment has at once: a slot for each of them, and who waits for one, in the order they came.

A slot that is given back goes to the first who waits for its deployment; nobody who comes later is quicker. Giving back takes no
lock that could be held: it may happen inside the garbage collector, where a stream that nobody closed is found.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from weakref import WeakSet

from otel_llm.routing.deployment_state import DeploymentState
from otel_llm.support import forks

PATIENCE = 5.0
"""Seconds of waiting after which streams are looked for that were dropped unclosed: they refer to themselves, so only the
collector finds them, and in a process where all wait it might never run."""
_LONGEST_PAUSE = 60.0
"""Seconds between two such searches at most. All of the process stands still meanwhile, for a quarter of a second where it has
three million objects, so each one that finds nothing makes the pause to the next twice as long."""


class Slot:
    """The right to one call at a deployment. Given back when the call is over, or when nothing refers to the slot any more."""

    __slots__ = ("__weakref__", "_epoch", "_slots", "state")

    def __init__(self, state: DeploymentState, slots: Slots | None = None) -> None:
        """`slots` keeps count of it; None where the deployment has no limit."""
        self.state = state
        self._slots = [] if slots is None else [slots]
        self._epoch = None if slots is None else slots.epoch

    def give_back(self) -> None:
        """Lets another call have it. Only the first time counts, from whatever thread."""
        try:
            slots = self._slots.pop()
        except (IndexError, AttributeError):  # given back before; or interrupted before it was anything
            return
        if slots.epoch is self._epoch:
            slots.tell(self.state)

    def lend(self) -> None:
        """From now on the app has it, with a stream that it may drop."""
        for slots in self._slots:
            slots.lent.add(self)

    __del__ = give_back


class Slots:
    """The slots of a profile's deployments. Safe to use from any thread."""

    def __init__(self) -> None:
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Forgets every slot and who waits: in a forked child they are its parent's."""
        self.epoch = object()
        self.lent: WeakSet[Slot] = WeakSet()
        self._taken: Counter[DeploymentState] = Counter()
        self._waiting: dict[Future[Slot], Sequence[DeploymentState]] = {}
        """In the order they came; no deployment that one of them waits for has a free slot."""
        self._told: deque[DeploymentState | Future[Slot]] = deque()
        """Deployments with a slot that was given back, and those who wait no more."""
        self._lock = threading.Lock()
        self._next_search = 0.0
        self._pause = 0.0

    def ask(self, states: Sequence[DeploymentState]) -> Slot | Future[Slot]:
        """A slot of the first deployment that has a free one, else the place of one who waits for any of them."""
        if states[0].deployment.max_concurrency is None:
            return Slot(states[0])
        with self._lock:
            for state in states:
                if state.deployment.max_concurrency is None:
                    asked: Slot | Future[Slot] = Slot(state)
                    break
                if self._taken[state] < state.deployment.max_concurrency:
                    asked = self._take(state)
                    break
            else:
                asked = Future()
                self._waiting[asked] = states
        self._settle()
        return asked

    def wait(self, asked: Slot | Future[Slot]) -> Slot:
        """The slot, as soon as there is one."""
        if isinstance(asked, Slot):
            return asked
        with self._leaving(asked):
            while True:
                try:
                    return asked.result(PATIENCE)
                except TimeoutError:
                    self._find_dropped()

    async def wait_async(self, asked: Slot | Future[Slot]) -> Slot:
        """The same for `await`."""
        if isinstance(asked, Slot):
            return asked
        with self._leaving(asked):
            waiting = asyncio.wrap_future(asked)
            while not (await asyncio.wait((waiting,), timeout=PATIENCE))[0]:
                self._find_dropped()
            return waiting.result()

    def tell(self, news: DeploymentState | Future[Slot]) -> None:
        """A slot of a deployment is free, or somebody waits no more."""
        self._told.append(news)
        self._settle()

    @contextmanager
    def _leaving(self, waiter: Future[Slot]) -> Iterator[None]:
        """Gives the place up, or the slot that came too late, where the wait ends otherwise than with a slot."""
        try:
            yield
        except BaseException:
            if waiter.cancel():
                self.tell(waiter)
            else:
                waiter.add_done_callback(lambda done: done.result().give_back())
            raise

    def _take(self, state: DeploymentState) -> Slot:
        self._taken[state] += 1
        return Slot(state, self)

    def _settle(self) -> None:
        """Does what was told. Whoever finds the lock held leaves it to its holder, who looks again after letting go."""
        while self._told:
            held: list[bool] = []
            lock = self._lock  # a fork replaces it
            try:
                # In one step, so that what a signal's handler raises finds the lock either not taken or known to be.
                held.extend(map(lock.acquire, (False,)))
                if not held[0]:
                    return
                granted = self._grant()
            finally:
                if held and held[0]:
                    lock.release()
            for waiter, slot in granted:
                if waiter.set_running_or_notify_cancel():
                    waiter.set_result(slot)
                else:
                    slot.give_back()

    def _grant(self) -> list[tuple[Future[Slot], Slot]]:
        granted = []
        while self._told:
            news = self._told.popleft()
            if isinstance(news, Future):
                self._waiting.pop(news, None)
                continue
            self._taken[news] -= 1
            for waiter, states in self._waiting.items():
                if news in states and not waiter.cancelled():
                    granted.append((waiter, self._take(news)))
                    del self._waiting[waiter]
                    break
        return granted

    def _find_dropped(self) -> None:
        now = time.monotonic()
        if not self.lent or now < self._next_search:  # once for all who wait
            return
        self._pause = min(2 * self._pause or PATIENCE, _LONGEST_PAUSE)
        self._next_search = now + self._pause
        before = len(self.lent)
        gc.collect()
        if len(self.lent) < before:
            self._pause = 0.0
            self._next_search = now + PATIENCE


_all = forks.members(forks.Turn.SLOTS, Slots.reset)
