"""A program that spends: `python spender.py STORE CALLS USD [MERGES]`, with `OTEL_LLM_BUDGETS`.

It records so many calls of so many USD each. Without MERGES it ends then; with it, it stays until it is killed.
"""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import time
from typing import Any

_numbers = itertools.count(1)


def call(usd: float, **attributes: Any) -> dict[str, Any]:
    """A record of a call that cost so much."""
    now = time.time_ns()
    asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o", "otel_llm.reported_cost_usd": usd}
    return {
        "k": "e", "t": secrets.token_hex(16), "s": secrets.token_hex(8), "p": None, "n": "chat", "kd": "CLIENT",
        "st": now, "et": now + 1000, "a": {**asked, "gen_ai.usage.input_tokens": 10, **attributes},
    }  # fmt: skip


def main() -> None:
    from otel_llm.budgets.alerts import watching
    from otel_llm.store import Store

    path, calls, usd, *stays = sys.argv[1:]
    store = Store.open(path)
    watching.begin(store)
    for _ in range(int(calls)):
        store.write(call(float(usd)))
    print(os.getpid(), flush=True)
    while stays:
        time.sleep(60)


if __name__ == "__main__":
    main()
