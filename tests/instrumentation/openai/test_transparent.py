"""The app sees what it would have seen: types, objects, headers, bodies, chunks; and nothing of ours leaves for the provider."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import openai
import pytest
from openai import _base_client
from opentelemetry import baggage, propagate, trace

from otel_llm import llm_context
from otel_llm.calls import withholding
from otel_llm.conventions import semconv as s
from otel_llm.instrumentation.openai import OpenAIInstrumentor
from otel_llm.settings import reload
from tests.instrumentation.openai.clients import http

HELLO: Any = [{"role": "user", "content": "Say hello."}]
MODEL = "gpt-4o-mini"


def test_uninstrument_leaves_every_object_identical(spans):
    owners = (_base_client.SyncAPIClient, _base_client.AsyncAPIClient)
    before = [dict(vars(owner)) for owner in owners]
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    assert vars(owners[0])["request"] is not before[0]["request"]
    instrumentor.uninstrument()
    for owner, names in zip(owners, before, strict=True):
        assert dict(vars(owner)) == names
        assert all(vars(owner)[name] is value for name, value in names.items())


def test_a_patch_on_top_of_ours_survives_and_ours_goes_quiet(spans, client, openai_server, monkeypatch):
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    ours = _base_client.SyncAPIClient.request
    seen = []

    def theirs(self, *args, **kwargs):
        seen.append(1)
        return ours.__get__(self)(*args, **kwargs)

    monkeypatch.setattr(_base_client.SyncAPIClient, "request", theirs)
    instrumentor.uninstrument()
    client.chat.completions.create(model=MODEL, messages=HELLO)
    assert seen == [1]
    assert spans.all() == []
    monkeypatch.undo()
    _base_client.SyncAPIClient.request = ours.__wrapped__


def test_streams_keep_their_type_and_repr(client, openai_server, spans):
    plain = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    try:
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert isinstance(stream, openai.Stream)
        assert repr(stream).split(" at ")[0] == repr(plain).split(" at ")[0]
        assert (type(stream).__module__, type(stream).__qualname__) == (
            type(plain).__module__,
            type(plain).__qualname__,
        )
        assert _without_ids(stream) == _without_ids(plain)
    finally:
        instrumentor.uninstrument()


def _without_ids(stream: Any) -> list[dict[str, Any]]:
    return [chunk.model_dump(exclude={"id", "created"}) for chunk in stream]


def test_no_reference_to_the_answer_is_kept(instrumented, client):
    answer = weakref.ref(client.chat.completions.create(model=MODEL, messages=HELLO))
    gc.collect()
    assert answer() is None


def test_the_callers_arguments_are_not_changed(instrumented, client, monkeypatch):
    monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", "always")
    reload()
    headers, options, messages = {"x-own": "1"}, {}, [dict(HELLO[0])]
    list(
        client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options=options, extra_headers=headers
        )
    )
    assert (headers, options, messages) == ({"x-own": "1"}, {}, HELLO)


@pytest.fixture(autouse=True)
def _settings():
    yield
    reload()


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_stream_usage(mode, instrumented, client, openai_server, monkeypatch):
    monkeypatch.setenv("OTEL_LLM_STREAM_USAGE", mode)
    reload()
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    # The app did not ask for usage, so it gets to see none, whoever asked for it.
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)
    found = instrumented.attributes()
    assert (s.INPUT_TOKENS in found) == (mode != "never")
    sent = openai_server.ledger[0].body
    assert ("stream_options" in sent) == (mode != "never")


def test_auto_asks_openai_itself(instrumented):
    sent = []

    def answer(request: http.Request) -> http.Response:
        sent.append(request.content.replace(b" ", b""))  # as spaced by old clients, or not
        return http.Response(200, headers={"content-type": "text/event-stream"}, content=b"data: [DONE]\n\n")

    client = openai.OpenAI(api_key="x", http_client=http.Client(transport=http.MockTransport(answer)))
    list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert b'"include_usage":true' in sent[0]
    # What the app says stands.
    list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": False}
        )
    )
    assert b'"include_usage":false' in sent[1]


def test_nothing_of_ours_is_sent_to_the_provider(instrumented, openai_server):
    """An instrumented HTTP client injects trace context and baggage; on the way to a provider nothing is injected."""
    before = propagate.get_global_textmap()
    withholding.withhold()

    def inject(request: http.Request) -> None:
        propagate.inject(request.headers)

    session = http.Client(event_hooks={"request": [inject]})
    client = openai.OpenAI(base_url=openai_server.base_url, api_key="local", http_client=session)
    tracer = instrumented.provider.get_tracer("app")
    try:
        with tracer.start_as_current_span("app"), llm_context("m", user_id="u-1"):
            client.chat.completions.create(model=MODEL, messages=HELLO)
            between_own_services: dict[str, str] = {}
            propagate.inject(between_own_services)
    finally:
        propagate.set_global_textmap(before)
    headers = {name.lower() for name in dict(openai_server.ledger[0].headers)}
    assert not headers & {"traceparent", "tracestate", "baggage"}
    assert set(between_own_services) == {"traceparent", "baggage"}


def test_a_fault_of_ours_never_reaches_the_app(instrumented, client, monkeypatch):
    from otel_llm.instrumentation.openai import _answer, _hooks
    from otel_llm.support import faults

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(_hooks, "attributes", broken)
    assert client.chat.completions.create(model=MODEL, messages=HELLO).id
    monkeypatch.undo()
    monkeypatch.setattr(_answer.Answer, "see", broken)
    assert client.chat.completions.create(model=MODEL, messages=HELLO).id
    assert len(list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))) > 1
    assert any("RuntimeError" in kind for kind in faults.counts)
    assert len(instrumented.all()) == 3  # each has less to tell; none is lost


def test_the_span_is_current_during_the_request_only(instrumented, openai_server):
    current = []
    session = http.Client(event_hooks={"request": [lambda _: current.append(trace.get_current_span())]})
    client = openai.OpenAI(base_url=openai_server.base_url, api_key="local", http_client=session)
    with instrumented.provider.get_tracer("app").start_as_current_span("app") as app:
        client.chat.completions.create(model=MODEL, messages=HELLO)
        assert trace.get_current_span() is app
    model, _ = instrumented.all()
    assert current[0].get_span_context() == model.context
    assert model.parent.span_id == app.get_span_context().span_id
    assert not baggage.get_all()
