"""What really happened in a cell, by the server's ledger, and what was recorded of it, in the dialect of whoever recorded it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan

from tests.matrix.cell import Cell, Seen

_TREE = {"execute_tool", "invoke_agent", "create_agent", "invoke_workflow", "retrieval", "step"}
"""Operations that run no model themselves."""


class Truth(NamedTuple):
    """One model call."""

    status: str
    input: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None
    attempts: int | None = None


def truths(cell: Cell, ledger: Iterable[Any]) -> Counter[Truth]:
    """The model calls of a cell: one for each request that is no further try of the one before it."""
    calls: list[list[Any]] = []
    for entry in ledger:
        if entry.endpoint.startswith("/") or (entry.endpoint == "batches" and not entry.reported):
            continue  # no model, or a batch of which nobody knows yet that it is complete
        if int(entry.headers.get("x-stainless-retry-count", 0)):
            next(tries for tries in reversed(calls) if tries[0].body == entry.body).append(entry)
        else:
            calls.append([entry])
    return Counter([_truth(cell, tries) for tries in calls] + [Truth("error", attempts=1)] * cell.unseen)


def _truth(cell: Cell, tries: list[Any]) -> Truth:
    last = tries[-1]
    is_http_call = "x-stainless-retry-count" in last.headers and last.endpoint != "batches"
    attempts = len(tries) if is_http_call else None
    by_outcome = {"ok": "ok", "disconnected": cell.left_as}
    status = cell.left_as if cell.unread else by_outcome.get(last.outcome, "error")
    if status != "ok" or not last.reported:
        return Truth(status, attempts=attempts)
    return Truth(
        status, last.input_tokens, last.output_tokens, last.cached_tokens, last.reasoning_tokens, attempts=attempts
    )


# --- ours ------------------------------------------------------------------------------------------------------------
def recorded(spans: Iterable[ReadableSpan]) -> Counter[Truth]:
    """What the spans of otel-llm tell of the model calls that were made; answers out of a cache are none."""
    from otel_llm.conventions import semconv as s

    names = (s.STATUS, s.INPUT_TOKENS, s.OUTPUT_TOKENS, s.CACHE_READ_TOKENS, s.REASONING_TOKENS, s.ATTEMPTS)
    found: Counter[Truth] = Counter()
    for span in spans:
        told = span.attributes or {}
        if told[s.OPERATION] not in s.TREE_OPERATIONS and not told.get(s.CACHE_HIT):
            values: list[Any] = [told.get(name) for name in names]
            found[Truth(*values)] += 1
    return found


# --- anybody's -------------------------------------------------------------------------------------------------------
_INPUT = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.prompt_tokens",
    "llm.token_count.prompt",
    "llm.usage.prompt_tokens",
)
_OUTPUT = (
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
)


def is_model_call(told: Mapping[str, Any]) -> bool:
    """Whether a span with these attributes is a model call, by whichever convention it has."""
    if told.get("otel_llm.cache_hit"):
        return False
    if kind := told.get("openinference.span.kind"):
        return kind in ("LLM", "EMBEDDING")
    if told.get("traceloop.span.kind"):
        return False
    if operation := told.get("gen_ai.operation.name"):
        return operation not in _TREE
    if kind := told.get("llm.request.type"):
        return bool(kind != "unknown")
    return any(name in told for name in (*_INPUT, "gen_ai.request.model"))


def faults(cell: Cell, seen: Seen) -> list[str]:
    """What is wrong with the record of a cell; the same questions for every candidate: calls, their tokens, all ended.

    No peer has a name for a call that was left, so nothing is asked about the status. A count of nought for output is let pass
    where there is none (of embeddings), and so are the tokens of an answer that came but that the app did not read.
    """
    wanted = Counter((one.input, one.output or None) for one in truths(cell, seen.ledger).elements())
    model_calls = [span.attributes for span in seen.spans if is_model_call(span.attributes or {})]
    found = Counter((_first(told, _INPUT), _first(told, _OUTPUT) or None) for told in model_calls)
    wrong = []
    if seen.error:
        wrong.append(f"the app saw {seen.error}")
    if found.total() != wanted.total():
        wrong.append(f"{found.total()} spans for {wanted.total()} calls")
    elif found != wanted and not cell.unread:
        wrong.append(f"tokens {dict(found)} for {dict(wanted)}")
    if seen.open:
        wrong.append(f"{len(seen.open)} spans not ended")
    return wrong


def _first(told: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((told[name] for name in names if name in told), None)
