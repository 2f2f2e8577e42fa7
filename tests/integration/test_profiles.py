"""A thousand calls to a profile of which two deployments never answer: none fails, and the account shows every attempt."""

from __future__ import annotations

import math
from collections import Counter

from local_openai import LocalOpenAI

from tests.conftest import Rows, Run
from tests.routing.conftest import closed_port  # noqa: F401

CALLS = 1_000
# The clock is the script's own, so that cooldowns end in the middle of it: 50 s over all.
SCRIPT = """
import random, sys
from otel_llm import LLMProvider, llm_context

base_url, closed_port, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
deployments = {
    "large": {"model": "gpt-4o-mini", "weight": 3},
    "small": {"model": "gpt-4.1-mini", "weight": 1},
    "limited": {"model": "error-429-after-5", "weight": 2},
    "down": {"model": "gpt-4o-mini", "weight": 4, "base_url": f"http://127.0.0.1:{closed_port}/v1", "cooldown": 2},
}
now = 0.0
profile = {"deployments": {name: {"base_url": base_url, **table} for name, table in deployments.items()}}
provider = LLMProvider.from_dict({"profiles": {"fast": profile}}, clock=lambda: now, chance=random.Random(20261121))
invoker, client = provider.create_invoker("fast"), provider.client("fast")
for number in range(calls):
    now += 0.05
    with llm_context("shop", user_id="u"):
        if number % 2:
            assert invoker.invoke("Hello").text
        else:
            answer = client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "Hello"}])
            assert answer.choices[0].message.content
"""


def test_none_of_a_thousand_calls_fails(
    run_instrumented: Run,
    openai_server: LocalOpenAI,
    rows: Rows,
    closed_port: int,  # noqa: F811
) -> None:
    run_instrumented(
        SCRIPT,
        openai_server.base_url,
        str(closed_port),
        str(CALLS),
        stderr="is left alone for (5|2) s$",
    )

    found = rows("select profile, tags['deployment'] as deployment, status, error_type, user_id from llm_usage")
    assert {(row["profile"], row["user_id"]) for row in found} == {("fast", "u")}
    attempts = Counter((row["deployment"], row["status"], row["error_type"]) for row in found)
    large, small = attempts.pop(("large", "ok", None)), attempts.pop(("small", "ok", None))
    limited = attempts.pop(("limited", "error", "429"))
    down = attempts.pop(("down", "error", "openai.APIConnectionError"))
    assert not attempts
    assert large + small == CALLS

    # Each attempt that reached the server is a row. Those that could not are known from the clock: one for each cooldown.
    requests = Counter(call.model for call in openai_server.requests)
    assert requests == {"gpt-4o-mini": large, "gpt-4.1-mini": small, "error-429-after-5": limited}
    assert 2 <= limited <= 10 and 2 <= down <= 25

    # 99.9 % confidence; the draw is the same in each run.
    share = 0.75
    assert abs(large / CALLS - share) < 3.29 * math.sqrt(share * (1 - share) / CALLS)
