"""Another instrumentation of the same client, on before us: it must neither hide calls nor their answers from us."""

from __future__ import annotations

import openai
import pytest
import wrapt

from otel_llm.conventions import semconv as s
from otel_llm.instrumentation.openai import OpenAIInstrumentor

MESSAGES = [{"role": "user", "content": "hello"}]


class Proxy(wrapt.ObjectProxy):  # type: ignore[misc]
    """What OpenInference hands out in place of a stream: it looks like one, down to its `__dict__`."""

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.__wrapped__)


def around(wrapped, instance, args, kwargs):
    result = wrapped(*args, **kwargs)
    return Proxy(result) if kwargs.get("stream") else result


@pytest.fixture(params=["before us", "after us"])
def beside(request, spans):
    """Both on, in either order; theirs on the class that apps use, ours on the one beneath."""
    instrumentor = OpenAIInstrumentor()
    plain = openai.OpenAI.request
    if request.param == "before us":
        openai.OpenAI.request = wrapt.FunctionWrapper(plain, around)
    instrumentor.instrument(tracer_provider=spans.provider)
    if request.param == "after us":
        openai.OpenAI.request = wrapt.FunctionWrapper(openai.OpenAI.request, around)
    yield spans
    instrumentor.uninstrument()
    del openai.OpenAI.request
    assert openai.OpenAI.request is plain


def test_each_call_is_recorded_once_with_its_usage(beside, client, openai_server):
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    options = {"include_usage": True}
    list(client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options=options))
    told = [(span.attributes[s.RESPONSE_ID], span.attributes[s.OUTPUT_TOKENS]) for span in beside.all()]
    assert told == [(call.response_id, call.output_tokens) for call in openai_server.ledger]


def test_a_method_of_an_apps_own_class_is_left_alone(instrumented, client):
    class Own(openai.OpenAI):
        def request(self, *args, **kwargs):
            return super().request(*args, **kwargs)

    own = Own(base_url=client.base_url, api_key="local")
    own.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert len(instrumented.all()) == 1
