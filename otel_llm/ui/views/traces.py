"""One trace: its tree and waterfall side by side, and what is known of the span that is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request

from otel_llm.conventions import semconv
from otel_llm.prices.billing import CACHE_HIT, LITELLM, NO_REASON, REFUSED, REPORTED_COST, remedy_for
from otel_llm.prices.terms import terms, total
from otel_llm.ui import charts, wording
from otel_llm.ui import page_questions as questions
from otel_llm.ui.page_questions import Node, Trace
from otel_llm.ui.scope import BadRequest, PageScope
from otel_llm.ui.views.view import Backend, PageView

_CONTENT = (
    semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES, semconv.SYSTEM_INSTRUCTIONS, semconv.TOOL_DEFINITIONS,
    semconv.TOOL_CALL_ARGUMENTS, semconv.TOOL_CALL_RESULT,
)  # fmt: skip

_BAD: Final = frozenset({*semconv.FAILED, semconv.INTERRUPTED})
"""How a span has ended whose line and bar are red."""
_TOLD: Final = (REPORTED_COST, LITELLM, CACHE_HIT, REFUSED)
"""Where a cost comes from that is not computed by prices of ours."""


def trace(request: Request, scope: PageScope, backend: Backend) -> PageView:
    trace_id = questions.trace_id_of(backend.engine, request.path_params["trace_id"])
    found = questions.trace(backend.engine, trace_id)
    chosen = request.query_params.get("span") or (found.nodes[0].span["span_id"] if found.nodes else None)
    if chosen is not None and all(node.span["span_id"] != chosen for node in found.nodes):
        raise BadRequest(f"there is no span {chosen[:40]} in the trace {trace_id}")
    running = [one for one in (backend.running() if backend.running else []) if one["t"] == trace_id]
    context = {
        "title": f"Trace {trace_id[:8]}",
        "trace": found,
        "bar": lambda node: bar(found, node),
        "bad": _BAD,
        "chosen": chosen,
        "running": running,
        "detail": None if chosen is None else detail(found, chosen, backend),
    }
    spans = [
        {**node.span, "depth": node.depth, "scores": found.scores_of(node.span["span_id"])} for node in found.nodes
    ]
    return PageView("traces/trace.html", context, spans)


def span(request: Request, scope: PageScope, backend: Backend) -> PageView:
    """What is known of one span alone."""
    trace_id = request.path_params["trace_id"]
    found = questions.trace(backend.engine, trace_id)
    known = detail(found, request.path_params["span_id"], backend)
    cost = known["cost"]
    if cost is not None:
        lines = [
            {"kind": one.kind, "number": one.number, "each_usd": one.each, "usd": one.amount} for one in cost["terms"]
        ]
        cost = {**cost, "terms": lines}
    data = {**known["span"], **known["raw"], "scores": known["scores"], "cost": cost}
    return PageView("traces/span.html", {"detail": known, "trace": found}, data)


def detail(found: Trace, span_id: str, backend: Backend) -> dict[str, Any]:
    """What is known of a span of the trace. Raises `BadRequest`."""
    node = next((node for node in found.nodes if node.span["span_id"] == span_id), None)
    if node is None:
        raise BadRequest(f"there is no span {span_id[:40]} in the trace {found.trace_id}")
    raw = questions.details(backend.engine, found.trace_id, span_id)
    attributes = raw.get("attributes") or {}
    usage = raw.get("usage") or {}
    given = questions.messages(attributes.get(semconv.INPUT_MESSAGES) or usage.get("input_messages"))
    taken = questions.messages(attributes.get(semconv.OUTPUT_MESSAGES) or usage.get("output_messages"))
    system = attributes.get(semconv.SYSTEM_INSTRUCTIONS)
    if system:
        parts = questions.decoded(system)
        given = [
            {"role": "system", "parts": parts if isinstance(parts, list) else [{"type": "text", "content": system}]},
            *given,
        ]
    return {
        "span": node.span,
        "raw": {name: value for name, value in raw.items() if name != "priced_by"},
        "usage": usage,
        "given": given,
        "taken": taken,
        "arguments": questions.decoded(attributes.get(semconv.TOOL_CALL_ARGUMENTS)),
        "result": questions.decoded(attributes.get(semconv.TOOL_CALL_RESULT)),
        "attributes": {name: value for name, value in sorted(attributes.items()) if name not in _CONTENT},
        "events": raw.get("events") or [],
        "scores": found.scores_of(span_id),
        "takes_scores": backend.score is not None,
        "cost": cost_of({**usage, **raw["priced_by"]}, backend) if usage else None,
    }


def cost_of(call: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """How the cost of a call comes about: its terms where it is computed by the prices known here, or who says so."""
    source, stored = call["price_source"], call["cost_usd"]
    found: dict[str, Any] = {"usd": stored, "source": source, "terms": [], "sum_usd": None, "known_by": None}
    if stored is None:
        return {**found, "remedy": remedy_for(source or NO_REASON)}
    if source in _TOLD or backend.quote is None:
        return found
    quote = backend.quote(call)
    tokens = call["input_tokens"] or 0
    rate = next((rate for rate in quote.rates if rate.above < tokens <= rate.up_to), None)
    if rate is None:
        return {**found, "known_by": quote.source}
    lines = terms(call, rate)
    return {**found, "terms": lines, "sum_usd": total(lines), "known_by": quote.source}


def bar(found: Trace, node: Node) -> Any:
    """The span's line in the waterfall."""
    whole = max(found.end_ns - found.begin_ns, 1)
    begin = (node.span["start_ns"] - found.begin_ns) / whole
    length = ((node.span["end_ns"] or found.end_ns) - node.span["start_ns"]) / whole
    after = wording.ms((node.span["start_ns"] - found.begin_ns) / 1e6)
    label = f"begins after {after}, takes {wording.ms(node.span['duration_ms'])}"
    kind = "bad" if node.span["status"] in _BAD else kind_of(node.span["operation"])
    return charts.meter(begin, length, style=f"k-{kind}", label=label)


def kind_of(operation: str | None) -> str:
    """Models, tools, agents and the rest apart."""
    if operation is None:
        return "other"
    if operation in semconv.CHAIN_OPERATIONS:
        return "chain"
    if operation in semconv.STEP_OPERATIONS:
        return "step"
    return "tool" if operation == semconv.EXECUTE_TOOL else "model"
