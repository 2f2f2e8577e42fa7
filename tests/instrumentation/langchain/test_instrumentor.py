"""Coming in without importing LangChain, going without a trace, and never in the app's way."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.callbacks import manager as callback_managers
from langchain_core.callbacks.manager import AsyncCallbackManager, CallbackManager
from langchain_core.language_models import BaseChatModel, BaseLLM, FakeListChatModel
from langchain_core.runnables import RunnableLambda

from otel_llm import settings
from otel_llm.calls import parent
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import LangChainInstrumentor, _handler
from otel_llm.instrumentation.langchain.private import OF_RUNS, STARTS
from otel_llm.support import faults
from tests.instrumentation.conftest import Spans
from tests.instrumentation.langchain.conftest import Traced

PATCHED = [
    *((manager, event) for manager in (CallbackManager, AsyncCallbackManager) for event in STARTS),
    *(
        (getattr(callback_managers, f"{kind}CallbackManagerFor{run}"), event)
        for kind in ("", "Async")
        for run, events in OF_RUNS.items()
        for event in events
        if hasattr(getattr(callback_managers, f"{kind}CallbackManagerFor{run}"), event)
    ),
    (BaseChatModel, "_generate_with_cache"),
    (BaseChatModel, "_agenerate_with_cache"),
    (BaseLLM, "_generate_helper"),
    (BaseLLM, "_agenerate_helper"),
]


def test_uninstrument_leaves_everything_as_it_was(spans: Spans) -> None:
    before = [vars(owner)[name] for owner, name in PATCHED]
    sources = list(parent.sources)
    for _ in range(2):
        instrumentor = LangChainInstrumentor()
        instrumentor.instrument(tracer_provider=spans.provider)
        assert not any(vars(owner)[name] is old for (owner, name), old in zip(PATCHED, before, strict=True))
        instrumentor.uninstrument()
        assert all(vars(owner)[name] is old for (owner, name), old in zip(PATCHED, before, strict=True))
        assert parent.sources == sources
        FakeListChatModel(responses=["x"]).invoke("hi")
    assert spans.all() == []


def test_uninstrument_while_a_run_is_under_way(spans: Spans) -> None:
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    model = FakeListChatModel(responses=["x"])

    def stop(value: Any) -> Any:
        instrumentor.uninstrument()
        return model.invoke("hi")

    RunnableLambda(stop).invoke(1)
    (span,) = spans.all()
    assert (span.name, span.attributes[semconv.STATUS]) == ("invoke_workflow stop", "ok")


def test_sdk_disabled(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    settings.reload()
    try:
        instrumentor = LangChainInstrumentor()
        instrumentor.instrument(tracer_provider=spans.provider)
        FakeListChatModel(responses=["x"]).invoke("hi")
        instrumentor.uninstrument()
    finally:
        monkeypatch.undo()
        settings.reload()
    assert spans.all() == []


def test_suppressed_instrumentation(traced: Traced) -> None:
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation():
        RunnableLambda(lambda value: FakeListChatModel(responses=["x"]).invoke("hi")).invoke(1)
    assert traced.tree() == ""


def test_nothing_is_imported_to_instrument() -> None:
    script = """
import sys
from otel_llm.instrumentation.langchain import LangChainInstrumentor
LangChainInstrumentor().instrument(skip_dep_check=True)
heavy = [name for name in sys.modules if name.split(".")[0] in ("langchain_core", "langchain", "langgraph", "langsmith")]
assert not heavy, heavy
from otel_llm.calls import parent
assert parent.find_parent() is None
from langchain_core.language_models import FakeListChatModel
from langchain_core.callbacks import CallbackManager
assert type(vars(CallbackManager)["on_chain_start"]).__name__ == "FunctionWrapper"
assert FakeListChatModel(responses=["x"]).invoke("hi").content == "x"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_fault_of_ours_stays_ours(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("ours")

    reported: list[str] = []
    monkeypatch.setattr(faults, "report", lambda where, error: reported.append(where))
    monkeypatch.setattr(_handler, "part_of", boom)
    monkeypatch.setattr(_handler, "ModelRequest", boom)
    chain = RunnableLambda(lambda value: value) | FakeListChatModel(responses=["x"])
    assert chain.invoke("hi").content == "x"
    assert "take LangChain's on_chain_start" in reported
    assert "take LangChain's on_chat_model_start" in reported


async def test_a_thousand_runs_leave_nothing(traced: Traced) -> None:
    chain = RunnableLambda(lambda value: value) | FakeListChatModel(responses=["x"])
    runs = LangChainInstrumentor()._installed[0]
    await chain.abatch(["hi"] * 500)
    chain.batch(["hi"] * 500)
    gc.collect()
    assert len(runs) == 0
    assert len(traced.models()) == 1000
