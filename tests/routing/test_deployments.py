"""Which deployment is asked next: weights, cooldowns, limits, without any request."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import openai
import pytest
from opentelemetry import context as otel

from otel_llm import context, llm_context
from otel_llm.conventions import semconv
from otel_llm.routing.deployment_state import LimitReached, retry_after
from otel_llm.routing.deployments import Attempt, Pool
from otel_llm.routing.profiles import Deployment, Profile
from tests.routing.conftest import Clock


def pool(clock: Clock, *deployments: Deployment) -> Pool:
    return Pool(Profile("fast", deployments), clock, random.Random(7))


def deployment(name: str, weight: float = 1, **options: object) -> Deployment:
    return Deployment("fast", name, "m", weight=weight, **options)  # type: ignore[arg-type]


def order(pool: Pool) -> list[str]:
    return [state.deployment.name for state in pool.order()]


def refused(headers: Mapping[str, str]) -> openai.RateLimitError:
    request = httpx2.Request("POST", "http://127.0.0.1/")
    return openai.RateLimitError("", response=httpx2.Response(429, headers=headers, request=request), body=None)


def fail(pool: Pool, name: str, error: Exception | None = None) -> None:
    (state,) = (one for one in pool.states if one.deployment.name == name)
    error = error or openai.APIConnectionError(request=httpx2.Request("POST", "http://127.0.0.1/"))
    with pytest.raises(type(error)), Attempt(state):
        raise error


def test_each_comes_first_and_second_as_its_weight_says(clock: Clock) -> None:
    shared = pool(clock, deployment("a", 6), deployment("b", 3), deployment("c", 1))
    orders = [order(shared) for _ in range(10_000)]
    first = Counter(each[0] for each in orders)
    # Within four standard deviations; the draw is the same in each run.
    assert abs(first["a"] - 6000) < 4 * 49 and abs(first["b"] - 3000) < 4 * 46 and abs(first["c"] - 1000) < 4 * 30
    after_a = Counter(each[1] for each in orders if each[0] == "a")
    assert abs(after_a["b"] / after_a.total() - 0.75) < 0.02
    assert all(sorted(each) == ["a", "b", "c"] for each in orders)


def test_a_weight_of_zero_is_a_spare(clock: Clock) -> None:
    shared = pool(clock, deployment("spare", 0), deployment("a"), deployment("b"))
    assert {order(shared)[-1] for _ in range(50)} == {"spare"}
    assert order(pool(clock, deployment("spare", 0))) == ["spare"]


def test_one_that_failed_is_left_alone_for_its_cooldown(clock: Clock) -> None:
    shared = pool(clock, deployment("a", 100, cooldown=30), deployment("b"), deployment("c"))
    fail(shared, "a")
    # Still there as a last resort, after those that work.
    assert all(order(shared)[-1] == "a" for _ in range(50))
    clock.now += 29.9
    assert order(shared)[-1] == "a"
    clock.now += 0.2
    assert "a" in [order(shared)[0] for _ in range(10)]


def test_where_all_cool_down_the_one_that_ends_first_is_asked(clock: Clock) -> None:
    shared = pool(clock, deployment("a", cooldown=30), deployment("b", cooldown=10), deployment("c", cooldown=20))
    for name in "abc":
        fail(shared, name)
    assert order(shared) == ["b"]


def test_retry_after_says_how_long(clock: Clock) -> None:
    shared = pool(clock, deployment("a", 100, cooldown=30), deployment("b"))
    fail(shared, "a", refused({"retry-after": "7"}))
    clock.now += 6.9
    assert order(shared) == ["b", "a"]
    clock.now += 0.2
    assert order(shared) == ["a", "b"]
    fail(shared, "a", refused({"retry-after": "60"}))
    fail(shared, "a")  # does not shorten it
    clock.now += 59
    assert order(shared) == ["b", "a"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(refused(headers)) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(minutes=30)
    found = retry_after(refused({"retry-after": format_datetime(later, usegmt=True)}))
    assert found is not None and 1700 < found <= 1800
    assert retry_after(refused({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0


def test_the_callers_mistakes_are_no_failures(clock: Clock) -> None:
    shared = pool(clock, deployment("a", 100), deployment("b"))
    request = httpx2.Request("POST", "http://127.0.0.1/")
    for kind, status in ((openai.BadRequestError, 400), (openai.AuthenticationError, 401)):
        fail(shared, "a", kind("", response=httpx2.Response(status, request=request), body=None))
    fail(shared, "a", KeyError("of the app"))
    assert order(shared)[0] == "a"


def test_a_full_one_is_passed_over_and_all_full_is_an_error(clock: Clock) -> None:
    shared = pool(clock, deployment("a", 1e9, requests_per_minute=2), deployment("b", requests_per_minute=1))
    asked = []
    for _ in range(3):
        state = shared.order()[0]
        with Attempt(state):
            asked.append(state.deployment.name)
        clock.now += 10
    assert asked == ["a", "a", "b"]
    with pytest.raises(LimitReached, match="each of its 2 deployments has reached"):
        shared.order()
    clock.now += 31  # a minute after the first
    assert order(shared) == ["a"]


def test_a_limit_is_never_passed_even_where_the_choice_was_earlier(clock: Clock) -> None:
    (state,) = pool(clock, deployment("a", requests_per_minute=1)).order()
    with Attempt(state):
        pass
    with pytest.raises(LimitReached, match="deployment 'a': 1 requests a minute"), Attempt(state):
        pytest.fail("was sent")
    assert state.cooling_until < clock.now


def test_a_limit_holds_between_threads(clock: Clock) -> None:
    shared = pool(clock, deployment("a", requests_per_minute=100), deployment("b", requests_per_minute=50))

    def ask(_: int) -> str:
        try:
            state = shared.order()[0]
            with Attempt(state):
                return state.deployment.name
        except LimitReached:
            return "full"

    with ThreadPoolExecutor(8) as threads:
        asked = Counter(threads.map(ask, range(1000)))
    assert asked["a"] <= 100 and asked["b"] <= 50 and asked["full"] >= 850
    with pytest.raises(LimitReached):
        shared.order()


def test_an_attempt_names_itself_to_the_spans_and_leaves_the_context_as_it_was(clock: Clock) -> None:
    (state,) = pool(clock, deployment("a")).order()
    with llm_context("shop", user_id="u"):
        before = otel.get_current()
        with Attempt(state):
            inside = context.attributes()
        assert otel.get_current() == before
    assert (inside[semconv.PROFILE], inside[semconv.DEPLOYMENT], inside[semconv.MODULE]) == ("fast", "a", "shop")
