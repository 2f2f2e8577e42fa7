"""We are no callback handler of the app's: it finds none of ours in its lists, and LangChain does what it does without us."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.callbacks import manager as callback_managers
from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.callbacks.manager import AsyncCallbackManager, BaseRunManager, CallbackManager, trace_as_chain_group
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import merge_configs

from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import LangChainInstrumentor
from otel_llm.instrumentation.langchain.private import OF_RUNS, STARTS
from tests.instrumentation.conftest import Spans
from tests.instrumentation.langchain.conftest import Traced

MODEL = FakeListChatModel(responses=["hello"])
NOT_TAKEN = {"on_text", "on_retry", "on_custom_event", "on_agent_action", "on_agent_finish"}
"""Events that tell nothing of how a run begins, goes on or ends."""


class First(BaseCallbackHandler):
    pass


class Second(BaseCallbackHandler):
    pass


def _types(handlers: Any) -> set[type]:
    assert len({id(handler) for handler in handlers}) == len(handlers)
    return {type(handler) for handler in handlers}


Change = Callable[[Any], Any]


@pytest.mark.parametrize("kind", [CallbackManager, AsyncCallbackManager])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manager: manager, {First}),
        (lambda manager: manager.copy(), {First}),
        (lambda manager: copy.copy(manager), {First}),
        (lambda manager: copy.deepcopy(manager), {First}),
        (lambda manager: pickle.loads(pickle.dumps(manager)), {First}),
        (lambda manager: manager.merge(type(manager)(handlers=[Second()])), {First, Second}),
        (lambda manager: type(manager).configure(manager, [Second()]), {First, Second}),
        (lambda manager: type(manager).configure(manager.handlers, manager), {First}),
        (lambda manager: manager.set_handlers([]) or manager, set()),
        (lambda manager: manager.set_handler(Second()) or manager, {Second}),
        (lambda manager: manager.add_handler(Second()) or manager, {First, Second}),
        (lambda manager: [manager.remove_handler(one) for one in list(manager.handlers)] and manager, set()),
        (
            lambda manager: merge_configs({"callbacks": manager}, {"callbacks": [Second()]})["callbacks"],
            {First, Second},
        ),
        (
            lambda manager: merge_configs({"callbacks": manager}, {"callbacks": type(manager)([Second()])})[
                "callbacks"
            ],
            {First, Second},
        ),
    ],
)
def test_managers_hold_what_the_app_gave_them(
    traced: Traced, kind: type[BaseCallbackManager], change: Change, expected: set[type]
) -> None:
    manager = change(kind(handlers=[First()]))
    assert _types(manager.handlers) == expected
    assert _types(kind.configure().handlers) == set()  # type: ignore[attr-defined]


async def test_runs_and_their_children_hold_what_the_app_gave_them(traced: Traced) -> None:
    seen: list[Any] = []

    def look(value: Any, config: Any) -> Any:
        seen.append(config["callbacks"])
        return value

    chain = RunnableLambda(look)
    given = [First()]
    chain.invoke(1, {"callbacks": given})
    await chain.ainvoke(1, {"callbacks": given})
    chain.invoke(1)
    assert [_types(manager.handlers) for manager in seen] == [{First}, {First}, set()]
    assert [type(handler) for handler in given] == [First]
    traced.all()
    traced.clear()
    with trace_as_chain_group("group") as group:
        assert group.handlers == group.inheritable_handlers == []
        chain.invoke(1, {"callbacks": group})
        MODEL.invoke("hi", {"callbacks": group})
    assert traced.tree() == "invoke_workflow group\n  chat"


def test_every_event_of_the_managers_is_taken() -> None:
    """Of the installed langchain-core, whatever it has come to tell: an event that is new here is to be looked at."""
    taken = {*STARTS, *(event for events in OF_RUNS.values() for event in events)}
    told = {
        event
        for _, manager in inspect.getmembers(callback_managers, inspect.isclass)
        if issubclass(manager, BaseCallbackManager | BaseRunManager)
        for event in dir(manager)
        if event.startswith("on_")
    }
    assert told - NOT_TAKEN <= taken
    assert taken - told <= {"on_stream_event"}  # langchain-core 0.3


class FailsAtTheEnd(BaseCallbackHandler):
    raise_error = True

    def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("the app's own")

    on_llm_end = on_chain_end


def test_a_handler_that_fails_the_run_leaves_its_end_known(traced: Traced) -> None:
    with pytest.raises(ValueError, match="the app's own"):
        RunnableLambda(lambda value: value, name="run").invoke(1, {"callbacks": [FailsAtTheEnd()]})
    with pytest.raises(ValueError, match="the app's own"):
        MODEL.invoke("hi", {"callbacks": [FailsAtTheEnd()]})
    assert {span.name: span.attributes[semconv.STATUS] for span in traced.all()} == {
        "invoke_workflow run": "ok",
        "chat": "ok",
    }


class Slow(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.told: list[str] = []

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("start")

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("end")


async def test_handlers_that_do_not_run_inline_are_told_as_ever(traced: Traced) -> None:
    """LangChain forgets these for a completion where one that does run inline is beside them."""
    handler = Slow()
    await FakeListLLM(responses=["x"]).ainvoke("hi", {"callbacks": [handler]})
    assert handler.told == ["start", "end"]
    events = [event["event"] async for event in FakeListLLM(responses=["x"]).astream_events("hi", version="v2")]
    assert (events[0], events[-1]) == ("on_llm_start", "on_llm_end")
    assert len(traced.models()) == 2


def test_usage_handlers_count_once(traced: Traced, model: Any) -> None:
    handler = UsageMetadataCallbackHandler()
    model.invoke("hi", {"callbacks": [handler]})
    (usage,) = handler.usage_metadata.values()
    (call,) = traced.ledger
    assert usage["input_tokens"] == call.input_tokens


def test_events_that_no_library_has_yet_cause_no_word(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    """LangGraph tells handlers of its own of interrupts; the next library of something else."""
    manager = CallbackManager.configure(inheritable_callbacks=[First()])
    run = manager.on_chain_start({"name": "x"}, {})
    with caplog.at_level(logging.WARNING):
        callback_managers.handle_event(CallbackManager.configure().handlers, "on_something_new", None, 1)
        callback_managers.handle_event(run.get_child().handlers[1:], "on_something_new", None, 1)
    run.on_chain_end({})
    assert caplog.records == []


async def test_what_is_under_way_ends_as_it_would_after_uninstrument(spans: Spans) -> None:
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    sync = CallbackManager.configure().on_chain_start({"name": "sync"}, {})
    (model,) = CallbackManager.configure(sync.get_child()).on_chat_model_start({"name": "m"}, [[]])
    other = await AsyncCallbackManager.configure().on_chain_start({"name": "async"}, {})
    instrumentor.uninstrument()
    model.on_llm_end(MODEL.generate([[]]))
    sync.on_chain_end({})
    await other.on_chain_error(ValueError())
    assert {span.name: span.attributes[semconv.STATUS] for span in spans.all()} == {
        "chat": "ok",
        "invoke_workflow sync": "ok",
        "invoke_workflow async": "error",
    }
