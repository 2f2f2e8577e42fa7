from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate
from opentelemetry import context as otel

from otel_llm import llm_context, semconv
from otel_llm.context import LONGEST_VALUE, MOST_TAGS, attributes, clean
from otel_llm.settings import reload


def test_outside_there_is_nothing():
    assert attributes() == {}


def test_fields_and_tags():
    with llm_context("m", user_id=7, session_id="s", conversation_id="c", request_id="r", experiment="b"):
        assert attributes() == {
            semconv.MODULE: "m",
            semconv.USER_ID: "7",
            semconv.SESSION_ID: "s",
            semconv.CONVERSATION_ID: "c",
            semconv.REQUEST_ID: "r",
            semconv.TAG_PREFIX + "experiment": "b",
        }
        assert baggage.get_baggage("user.id") == "7"
    assert attributes() == {}
    assert not baggage.get_all()


def test_nesting_inherits_overrides_and_restores():
    with llm_context("outer", user_id="u", a="1"):
        before = dict(attributes())
        with llm_context("inner", a="2", b="3"):
            inner = attributes()
            assert inner[semconv.MODULE] == "inner"
            assert inner[semconv.USER_ID] == "u"
            assert inner[semconv.TAG_PREFIX + "a"] == "2"
            assert inner[semconv.REQUEST_ID] == before[semconv.REQUEST_ID]
        assert attributes() == before


def test_a_request_id_is_generated_for_each():
    ids = []
    for _ in range(2):
        with llm_context("m"):
            ids.append(attributes()[semconv.REQUEST_ID])
    assert len(set(ids)) == 2


def test_an_exception_restores_too():
    with pytest.raises(ZeroDivisionError), llm_context("m"):
        raise ZeroDivisionError
    assert attributes() == {}


async def test_tasks_keep_apart():
    async def ask(user: str) -> str:
        async with llm_context("m", user_id=user):
            await asyncio.sleep(0)
            return attributes()[semconv.USER_ID]

    assert await asyncio.gather(*(ask(str(n)) for n in range(20))) == [str(n) for n in range(20)]


def test_decorator():
    @llm_context("m", user_id="u")
    def ask() -> str:
        return attributes()[semconv.REQUEST_ID]

    @llm_context("m", user_id="u")
    async def aask() -> str:
        await asyncio.sleep(0)
        return attributes()[semconv.USER_ID]

    assert ask() != ask()  # a request of its own for each call
    assert asyncio.run(aask()) == "u"
    assert ask.__name__ == "ask"
    assert attributes() == {}


def test_it_follows_a_copied_context_into_a_thread():
    seen = []
    with llm_context("m", user_id="u"):
        copied = contextvars.copy_context()
    thread = threading.Thread(target=copied.run, args=(lambda: seen.append(attributes()[semconv.USER_ID]),))
    thread.start()
    thread.join()
    assert seen == ["u"]


def incoming(**entries: str) -> otel.Context:
    return propagate.extract({"baggage": ",".join(f"{name}={value}" for name, value in entries.items())})


def test_baggage_from_outside_is_not_believed():
    context = incoming(**{"user.id": "mallory"})
    assert attributes(context) == {}
    token = otel.attach(context)
    try:
        with llm_context("m"):
            assert semconv.USER_ID not in attributes()
    finally:
        otel.detach(token)


def test_baggage_from_outside_is_believed_when_asked(monkeypatch):
    monkeypatch.setenv("OTEL_LLM_TRUST_BAGGAGE", "true")
    monkeypatch.setenv("OTEL_LLM_CONTEXT_KEYS", "tenant")
    reload()
    try:
        context = incoming(**{"user.id": "u", "tenant": "t", "other": "x", "otel_llm.tag.a": "b"})
        assert attributes(context) == {
            semconv.USER_ID: "u",
            semconv.TAG_PREFIX + "tenant": "t",
            semconv.TAG_PREFIX + "a": "b",
        }
    finally:
        monkeypatch.undo()
        reload()


@given(st.text(max_size=600))
def test_clean_values_are_printable_and_bounded(text):
    cleaned = clean(text)
    assert cleaned.isprintable()
    assert len(cleaned) <= LONGEST_VALUE


def test_tags_are_bounded():
    with llm_context("m", **{f"t{n}": n for n in range(100)}):
        assert len([name for name in attributes() if name.startswith(semconv.TAG_PREFIX)]) == MOST_TAGS
