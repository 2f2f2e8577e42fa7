"""What comes in with a request breaks nothing, and what goes out to a model provider is nothing."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry import context as otel
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.sdk.trace import TracerProvider

from otel_llm import llm_context
from otel_llm.calls import request
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.request import UnrecordedRequest
from otel_llm.calls.tracing import Tracer
from otel_llm.calls.withholding import WithholdingPropagator, _warn_of_header
from otel_llm.context import LONGEST_VALUE, MOST_TAGS, attributes
from otel_llm.conventions import semconv
from otel_llm.settings import reload

propagator = WithholdingPropagator(W3CBaggagePropagator())


@pytest.fixture
def trusting(monkeypatch):
    monkeypatch.setenv("OTEL_LLM_TRUST_BAGGAGE", "true")
    monkeypatch.setenv("OTEL_LLM_CONTEXT_KEYS", "tenant")
    reload()
    _warn_of_header.cache_clear()
    yield
    monkeypatch.undo()
    reload()


def extract(header: object) -> otel.Context:
    return propagator.extract({"baggage": header}, otel.Context())


def believed(context: otel.Context) -> dict[str, str]:
    found = dict(attributes(context))
    fields = {semconv.USER_ID, semconv.SESSION_ID, semconv.MODULE, semconv.CONVERSATION_ID, semconv.REQUEST_ID}
    assert len([name for name in found if name.startswith(semconv.TAG_PREFIX)]) <= MOST_TAGS
    for name, value in found.items():
        assert name in fields or name.startswith(semconv.TAG_PREFIX)
        assert name.isprintable() and value.isprintable() and len(value) <= LONGEST_VALUE
    return found


HOSTILE = {
    "huge": "user.id=" + "x" * 100_000,
    "huge but for the rest": "user.id=" + "x" * 4_090 + ",tenant=t",
    "a thousand members": ",".join(f"otel_llm.tag.{number}=1" for number in range(400)),
    "a thousand bad members": "user.id=u" + ",a" * 3_000,
    "control characters": "user.id=a%00%1b%0d%0aX%7fb,tenant=%0a",
    "raw control characters": "user.id=a\x00\x1b\r\nb",
    "not utf-8": "user.id=%ff%fe,tenant=%c3",
    "not ascii": "user.id=ü",
    "broken percent-encoding": "user.id=%,tenant=%zz%4",
    "properties": "user.id=u;metadata;a=b",
    "no names": "=,=a,,;,a",
    "overlong value": "user.id=" + "%41" * 1000,
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header(header, trusting, caplog):
    believed(extract(header))
    believed(extract(header))
    assert len(caplog.records) <= 1


def test_what_is_well_formed_beside_it_counts(trusting):
    assert believed(extract("user.id=%00u%0a, bad member ,tenant = t;p")) == {
        semconv.USER_ID: "u",
        semconv.TAG_PREFIX + "tenant": "t;p",
    }
    assert believed(extract("otel_llm.tag.a%0ab=x")) == {semconv.TAG_PREFIX + "ab": "x"}
    assert len(believed(extract(HOSTILE["a thousand members"]))) == MOST_TAGS


@given(st.text(st.characters(max_codepoint=255), max_size=300) | st.text("user.id=,;%0aA \t", max_size=300))
def test_any_header(header):
    """It says what OpenTelemetry's own propagator says of it, without its lines in the log."""
    log = logging.getLogger("opentelemetry.baggage.propagation")
    lines: list[logging.LogRecord] = []
    log.addFilter(lines.append)  # a filter that returns None drops the record
    try:
        ours = baggage.get_all(extract(header))
        assert not lines
        theirs = baggage.get_all(W3CBaggagePropagator().extract({"baggage": header}, otel.Context()))
    finally:
        log.removeFilter(lines.append)
    assert ours == theirs


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=100), max_size=10))
def test_what_others_send_is_passed_on_as_it_is(entries):
    context = otel.Context()
    for name, value in entries.items():
        context = baggage.set_baggage(name, value, context)
    carrier: dict[str, str] = {}
    W3CBaggagePropagator().inject(carrier, context)
    assert baggage.get_all(extract(carrier.get("baggage"))) == baggage.get_all(
        W3CBaggagePropagator().extract(carrier, otel.Context())
    )


@pytest.mark.parametrize("header", [None, "", [], ["user.id=u", "user.id=v"], 5, [None], [b"user.id=u"]], ids=repr)
def test_what_a_getter_may_give(header, trusting, caplog):
    class Getter:
        def get(self, carrier, key):
            return header if isinstance(header, list | None) else [header]

        def keys(self, carrier):
            return ["baggage"]

    found = believed(propagator.extract({}, otel.Context(), Getter()))
    assert found == ({semconv.USER_ID: "u"} if header == ["user.id=u", "user.id=v"] else {})
    assert len(caplog.records) <= 1


def test_what_other_code_puts_into_baggage(trusting, caplog):
    class Hostile:
        def __str__(self) -> str:
            raise ValueError("no")

        def __hash__(self) -> int:
            return hash("user.id")

        def __eq__(self, other: object) -> bool:
            raise ValueError("no")

    context = baggage.set_baggage("user.id", Hostile())
    for name, value in ((5, 5), (None, None), ("session.id", 7), ("tenant", ["a", 1]), ("otel_llm.tag.x", b"\xff")):
        context = baggage.set_baggage(name, value, context)
    assert believed(context) == {
        semconv.SESSION_ID: "7",
        semconv.TAG_PREFIX + "tenant": "['a', 1]",
        semconv.TAG_PREFIX + "x": r"b'\xff'",
    }
    believed(baggage.set_baggage(Hostile(), "x"))
    assert len(caplog.records) <= 1


# --- what goes out ----------------------------------------------------------------------------------------------------
def sent() -> dict[str, str]:
    carrier: dict[str, str] = {}
    propagator.inject(carrier)
    return carrier


@pytest.mark.parametrize("kind", ["call", "unrecorded"])
def test_a_request_to_a_provider_carries_nothing(kind):
    tracer = Tracer("t", TracerProvider(shutdown_on_exit=False))
    made = ModelCall(tracer, semconv.CHAT, "m", {}) if kind == "call" else UnrecordedRequest(propagates=False)
    with llm_context("m"):
        assert sent()
        outside = otel.get_current()
        request.enter(made, outside)
        assert not sent()
        made.propagates = True
        assert sent()
        made.propagates = False
        request.leave(made, outside)
        assert sent()
        # A thread that was started meanwhile may keep the context for good.
        request.enter(made, outside)
        if isinstance(made, UnrecordedRequest):
            made.finished = True
        else:
            made.finish(semconv.OK)
        assert sent()
        request.leave(made, outside)
