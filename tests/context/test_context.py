from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.sdk.trace import TracerProvider

from otel_llm import LLMContextFilter, context, current_context, llm_context
from otel_llm.context import LONGEST_VALUE, MOST_BAGGAGE, MOST_TAGS, _warn_of_baggage, attributes, clean
from otel_llm.conventions import semconv
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


# --- leaving ----------------------------------------------------------------------------------------------------------
def named(name: str) -> str | None:
    return attributes().get(semconv.TAG_PREFIX + name)


def test_left_in_any_order_nothing_stays(caplog):
    """Each that is left is gone, the others stay; what they say of the same thing too."""
    before = otel.get_current()
    for order in itertools.permutations("abc"):
        contexts = {name: llm_context(user_id=name, **{name: name}) for name in "abc"}
        for name in "abc":
            contexts[name].__enter__()
        first = attributes()[semconv.REQUEST_ID]
        still_open = list("abc")
        for name in order:
            contexts[name].__exit__(None, None, None)
            still_open.remove(name)
            assert [one for one in "abc" if named(one)] == still_open
            assert attributes().get(semconv.USER_ID) == (still_open[-1] if still_open else None)
            assert baggage.get_baggage("user.id") == (still_open[-1] if still_open else None)
            assert attributes().get(semconv.REQUEST_ID) == (first if still_open else None)
        assert otel.get_current() == before
    assert not caplog.records


async def test_left_in_another_task_or_never_entered_there(caplog):
    context, other = llm_context(user_id="u"), llm_context(session_id="s")
    entered, left = asyncio.Event(), asyncio.Event()

    async def enter() -> str | None:
        context.__enter__()
        entered.set()
        await left.wait()
        return attributes().get(semconv.USER_ID)

    task = asyncio.create_task(enter())
    await entered.wait()
    with other:
        context.__exit__(None, None, None)  # not entered here: nothing happens
        assert attributes()[semconv.SESSION_ID] == "s"
    left.set()
    assert await task == "u"
    context.__exit__(None, None, None)
    context.__enter__()

    async def leave() -> str | None:
        context.__exit__(None, None, None)
        return attributes().get(semconv.USER_ID)

    assert await asyncio.create_task(leave()) is None
    assert attributes()[semconv.USER_ID] == "u"
    context.__exit__(None, None, None)
    assert attributes() == {}
    assert not caplog.records


async def test_one_object_for_all_tasks():
    """A module may keep one: what is entered in one task is not left in another."""
    shared = llm_context("m")

    async def ask() -> set[str]:
        async with shared:
            found = {attributes()[semconv.REQUEST_ID]}
            await asyncio.sleep(0)
            with shared:
                await asyncio.sleep(0)
                found.add(attributes()[semconv.REQUEST_ID])
            found.add(attributes()[semconv.REQUEST_ID])
        assert attributes() == {}
        return found

    found = await asyncio.gather(*(ask() for _ in range(10)))
    assert all(len(one) == 1 for one in found)
    assert len(set().union(*found)) == 10


def test_a_coroutine_dropped_half_way_changes_nothing_where_it_is_closed(caplog):
    @llm_context("m", user_id="dropped")
    async def ask() -> None:
        await asyncio.Future(loop=loop)

    loop = asyncio.new_event_loop()
    coroutine = ask()
    contextvars.copy_context().run(coroutine.send, None)
    with llm_context(user_id="here"):
        inside = otel.get_current()
        coroutine.close()
        assert otel.get_current() is inside
    loop.close()
    assert attributes() == {}
    assert not caplog.records


def test_a_span_inside_stays_when_the_context_is_left_first():
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("app")

    def cross() -> None:
        context = llm_context(user_id="u")
        context.__enter__()
        with tracer.start_as_current_span("span") as span:
            context.__exit__(None, None, None)
            assert trace.get_current_span() is span
            assert attributes() == {} and not baggage.get_all()

    # The end of the span brings back what was before it, the context included: OpenTelemetry's doing.
    contextvars.copy_context().run(cross)


def test_nothing_is_left_for_the_garbage_collector():
    """What is left properly is freed at once: a cycle for each request would have the collector run more often."""
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(100):
            with llm_context("m", user_id="u"), llm_context(session_id="s"):
                pass
        assert len(gc.get_objects()) - before < 50
    finally:
        gc.enable()


def test_a_request_id_does_not_follow_the_app_s_seed():
    ids = []
    for _ in range(2):
        random.seed(1)
        with llm_context("m"):
            ids.append(attributes()[semconv.REQUEST_ID])
    assert ids[0] != ids[1]


def test_values_that_cannot_be_text():
    class Hostile:
        def __str__(self) -> str:
            raise ValueError("no")

    with llm_context("m", user_id=Hostile(), a="1"):
        assert attributes()[semconv.MODULE] == "m"


# --- what travels -----------------------------------------------------------------------------------------------------
def test_what_came_in_and_is_not_believed_goes_no_further():
    """The next service may believe us: it must not get the user that a stranger named."""
    token = otel.attach(incoming(**{"user.id": "mallory", "otel_llm.tag.a": "x", "app": "1"}))
    try:
        with llm_context("m"):
            inner = baggage.get_all()
            assert "user.id" not in inner and "otel_llm.tag.a" not in inner
            assert inner["app"] == "1"  # the app's own is the app's business
        assert baggage.get_baggage("user.id") == "mallory"
    finally:
        otel.detach(token)


@given(
    st.dictionaries(st.text(max_size=50), st.text(max_size=400), max_size=60),
    st.dictionaries(st.text(max_size=50), st.text(max_size=400), max_size=60),
)
def test_whatever_is_said_fits_into_the_header_and_arrives(outer, inner):
    reserved = {"self", "module", "user_id", "session_id", "conversation_id", "request_id"}
    outer, inner = ({k: v for k, v in tags.items() if k not in reserved} for tags in (outer, inner))
    with llm_context("m", user_id="u", **outer), llm_context(session_id="s", **inner):
        said = dict(attributes())
        carrier: dict[str, str] = {}
        W3CBaggagePropagator().inject(carrier)
    assert len([name for name in said if name.startswith(semconv.TAG_PREFIX)]) <= MOST_TAGS
    assert len(carrier["baggage"]) <= MOST_BAGGAGE
    arrived = baggage.get_all(W3CBaggagePropagator().extract(carrier, otel.Context()))
    assert arrived["user.id"] == "u" and arrived["session.id"] == "s"
    for name, value in arrived.items():
        # The format trims, and has no empty names.
        assert said.get(name, said.get(f"{name} ", value)).strip() == value


def test_what_does_not_fit_stays_in_this_process(caplog):
    _warn_of_baggage.cache_clear()
    tags = {f"tag{number}": "é" * 250 for number in range(5)}
    with llm_context("m", user_id="u", **tags):
        assert len([name for name in attributes() if name.startswith(semconv.TAG_PREFIX)]) == 5
        sent = baggage.get_all()
        assert sent["user.id"] == "u" and len([name for name in sent if name.startswith(semconv.TAG_PREFIX)]) == 2
    with llm_context("m", user_id="u", **tags):
        pass
    assert len(caplog.records) == 1


def test_who_is_asking_can_be_read() -> None:
    assert repr(current_context()) == "LLMContext()" and current_context().request_id is None
    outer = llm_context("chat", user_id="u1", experiment="b")
    with outer as asked, llm_context(conversation_id="c1", session_id="s1") as inner:
        assert inner.request_id == asked.request_id == current_context().request_id
        assert (inner.module, inner.user_id, inner.conversation_id, inner.session_id) == ("chat", "u1", "c1", "s1")
        assert inner.tags == {"experiment": "b"}
    assert asked.request_id is not None and len(asked.request_id) == 32  # for the response, when the block is left
    assert asked.conversation_id is None and current_context().module is None
    assert repr(asked) == f"LLMContext(module='chat', user_id='u1', request_id='{asked.request_id}', experiment='b')"


@pytest.mark.parametrize(
    ("tag", "argument"),
    [
        ("module_name", "module"), ("user", "user_id"), ("userId", "user_id"), ("session", "session_id"),
        ("conversation", "conversation_id"), ("thread_id", "conversation_id"), ("request", "request_id"),
        ("conversaton_id", "conversation_id"),
        *((name, None) for name in ("model", "user_ip", "user_name", "experiment", "requests")),
    ],
)  # fmt: skip
def test_a_tag_that_was_meant_as_an_argument(tag: str, argument: str | None, caplog: pytest.LogCaptureFixture) -> None:
    context._warn_of_likely_argument.cache_clear()
    for _ in range(2):
        with llm_context(**{tag: "x"}) as asked:
            assert asked.tags == {tag: "x"}
    said = f"llm_context({tag}=...) becomes a tag; did you mean {argument}=? Said once."
    assert [record.message for record in caplog.records] == ([said] if argument else [])


def test_log_lines_say_who_is_asking() -> None:
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(handler.format(record))  # type: ignore[method-assign]
    handler.addFilter(LLMContextFilter())
    handler.setFormatter(logging.Formatter("%(llm_user_id)s %(llm_module)s %(llm_conversation_id)s %(message)s"))
    logger = logging.Logger("an app's")
    logger.addHandler(handler)
    logger.warning("outside")
    with llm_context("chat", user_id="u1"):
        logger.warning("inside")
    assert logged == ["- - - outside", "u1 chat - inside"]
