"""What is wrapped in LangChain: its callback managers, which tell of every run, and where a run is about to make its request.

There is no callback handler of ours among the app's: the app would find it in its own lists, and copy, merge, count and send it.
And LangChain behaves otherwise where there is a handler, or a synchronous one, than where there is none.

Signatures are wrapt's, after what the hook itself is given: wrapped, instance, args, kwargs.
"""

from __future__ import annotations

import sys
from asyncio import gather
from collections.abc import Awaitable, Callable, Sequence
from inspect import iscoroutinefunction
from types import CoroutineType, FrameType
from typing import Any

from otel_llm.calls import admittance, hand_over
from otel_llm.conventions import semconv
from otel_llm.instrumentation.langchain import private
from otel_llm.instrumentation.langchain._models import ModelRun
from otel_llm.instrumentation.langchain._runs import Run, Runs
from otel_llm.instrumentation.langchain._tree import conversation_of, graph_of
from otel_llm.support import faults

Tell = Callable[..., None]


class CallbackHooks:
    """The wrappers, with the runs they tell of."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def start(self, tell: Tell, event: str, wrapped: Callable[..., Any], manager: Any, args: Any, kwargs: Any) -> Any:
        """Around a manager's `on_…_start`, async or not: its handlers first, so that a run is as long as what it does."""
        frame_says = _starting() if event == "on_chain_start" else {}
        started = wrapped(*args, **kwargs)
        if type(started) is CoroutineType:
            return self._started(tell, event, started, manager, args, kwargs, frame_says)
        self._tell_start(tell, event, started, manager, args, kwargs, frame_says)
        if (refusal := self._refuse(event, started)) is not None:
            _told_of_refusal(started, refusal)
            raise refusal
        return started

    async def _started(self, tell: Tell, event: str, starting: Awaitable[Any], *of_run: Any) -> Any:
        started = await starting
        self._tell_start(tell, event, started, *of_run)
        if (refusal := self._refuse(event, started)) is not None:
            await gather(*_told_of_refusal(started, refusal), return_exceptions=True)
            raise refusal
        return started

    def _refuse(self, event: str, managers: Sequence[Any]) -> Exception | None:
        """Why model runs that were started together may not be carried out: one that may not takes the others with it."""
        if admittance.gate is None or event not in private.STARTS_OF_SEVERAL:
            return None
        runs = [run for manager in managers if (run := self._runs.get(manager.run_id)) is not None]
        calls = [run.model.call for run in runs if run.model is not None]
        refusal = next((call.refusal for call in calls if call.refusal is not None), None)
        if refusal is not None:
            for call in calls:
                call.refuse(refusal)
        return refusal

    def _tell_start(
        self, tell: Tell, event: str, started: Any, manager: Any, args: Any, kwargs: Any, frame_says: dict[str, Any]
    ) -> None:
        try:
            rest = {**kwargs, **frame_says}
            serialized = args[0] if args else rest.pop("serialized", None)
            asked = args[1] if len(args) > 1 else rest.pop(private.STARTS[event])
            rest["parent_run_id"], rest["tags"], rest["metadata"] = (
                manager.parent_run_id,
                manager.tags,
                manager.metadata,
            )
            of_each = event in private.STARTS_OF_SEVERAL
            for one, each in zip(started, asked, strict=True) if of_each else ((started, asked),):
                rest["run_id"] = one.run_id
                tell(serialized, [each] if of_each else each, **rest)
                self._runs.watch(one.run_id, one)
        except Exception as fault:
            faults.report(f"take LangChain's {event}", fault)

    def token(self, wrapped: Callable[..., Any], manager: Any, args: Any, kwargs: Any) -> Any:
        """Around what a run's manager is told of a piece of a stream, async or not."""
        try:
            run = self._runs.get(manager.run_id)
            if run is not None and run.model is not None:
                run.model.chunk(args[0] if args else None, kwargs.get("chunk"))
        except Exception as fault:
            faults.report("take a piece of a stream of LangChain's", fault)
        return wrapped(*args, **kwargs)

    def tell(self, tell: Tell, wrapped: Callable[..., Any], manager: Any, args: Any, kwargs: Any) -> Any:
        """Around what a run's manager is told of it, its end above all, async or not: before the handlers, which take time."""
        try:
            tell(*args, **{**kwargs, "run_id": manager.run_id})
        except Exception as fault:
            faults.report(f"take LangChain's {wrapped.__name__}", fault)
        return wrapped(*args, **kwargs)

    def generate_one(self, wrapped: Callable[..., Any], model: Any, args: Any, kwargs: Any) -> Any:
        """Around `BaseChatModel._generate_with_cache`: the one place where a request is known to belong to a run."""
        self._offer(kwargs)
        return wrapped(*args, **kwargs)

    async def generate_one_async(self, wrapped: Callable[..., Any], model: Any, args: Any, kwargs: Any) -> Any:
        """Around `BaseChatModel._agenerate_with_cache`, whose cancellation LangChain tells no handler of."""
        run = self._offer(kwargs)
        try:
            return await wrapped(*args, **kwargs)
        except BaseException as error:
            # LangChain tells the handlers of any `Exception`. Nor does a coroutine that is dropped end here.
            if run is not None and not isinstance(error, (Exception, GeneratorExit)):
                self._cancel(run, kwargs, error)
            raise

    def generate_many(self, wrapped: Callable[..., Any], model: Any, args: Any, kwargs: Any) -> Any:
        """Around `BaseLLM._generate_helper` and its async twin: several prompts, perhaps in one request."""
        try:
            managers = kwargs["run_managers"] if "run_managers" in kwargs else args[2]
            begun = [run for manager in managers if (run := self._runs.get(manager.run_id)) is not None]
            self._begin_many(begun, shared=_answers_at_once(model))
        except Exception as fault:
            faults.report("begin a batch", fault)
            managers = ()
        if (refusal := self._refuse("on_llm_start", managers)) is not None:
            told = _told_of_refusal(managers, refusal)
            if iscoroutinefunction(wrapped):
                return _raise_when_told(told, refusal)
            raise refusal
        return wrapped(*args, **kwargs)

    def _begin_many(self, begun: list[Run], *, shared: bool) -> None:
        """Begins the calls of runs that wait for it: one for them all, or one each."""
        waiting = [run for run in begun if run.request is not None]
        if shared and waiting:
            first = waiting[0]
            assert first.request is not None
            first.request.characters = _sum([run.request.characters for run in waiting if run.request is not None])
            call = first.request.begin(self._runs.tracer, self._runs.nearest_parent_in(first.parent), first.started_ns)
            call.ask()
            model = ModelRun(call, [run.request for run in waiting if run.request is not None])
            for run in waiting:
                run.request, run.model = None, model
        else:
            for run in waiting:
                self._runs.begin_call(run, may_adopt=False)
        hand_over.offer(*dict.fromkeys(run.model.call for run in begun if run.model is not None))

    def _offer(self, kwargs: Any) -> Run | None:
        """Offers the call of the run whose manager is among the arguments, and makes it the innermost run here."""
        try:
            manager = kwargs.get("run_manager")
            run = None if manager is None else self._runs.get(manager.run_id)
            if run is None or run.model is None:
                return None
            hand_over.offer(run.model.call)
            self._runs.enter(run)
            return run
        except Exception as fault:
            faults.report("offer a call", fault)
            return None

    def _cancel(self, run: Run, kwargs: Any, error: BaseException) -> None:
        """Ends a run that LangChain leaves open."""
        try:
            if run.model is not None:
                run.model.fail(error)
            self._runs.end(kwargs["run_manager"].run_id, semconv.CANCELLED)
        except Exception as fault:
            faults.report("record a cancelled run", fault)


def _told_of_refusal(managers: Sequence[Any], refusal: Exception) -> list[Any]:
    """Has the app's handlers, which heard of the start, hear that it failed; what is to be awaited, of asynchronous managers."""
    told = []
    for manager in managers:
        try:
            told.append(manager.on_llm_error(refusal))
        except Exception as error:  # of a handler of the app's that wants it to be seen: the refusal is
            faults.pass_on(error)
    return told


async def _raise_when_told(told: Sequence[Awaitable[Any]], refusal: Exception) -> None:
    await gather(*told, return_exceptions=True)
    raise refusal


def _starting() -> dict[str, Any]:
    """What only the frame that starts a run knows of it: the graph of LangGraph's, and the conversation in its configuration.

    LangChain is told a name and metadata, which a graph inside another inherits; what it is (an agent, its name) only the graph
    itself knows. The thread of a graph, and the session of a `RunnableWithMessageHistory`, are in the configuration alone. All is
    at hand in that frame, whoever imported what and when.
    """
    try:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and str(frame.f_globals.get("__name__")).startswith("wrapt"):  # without its C extension
            frame = frame.f_back
        if frame is None:
            return {}
        if (started := private.starting_graph(frame)) is not None:
            return {"graph": graph_of(*started)}
        if (config := private.configuration(frame)) is not None:
            return {"configured": conversation_of(config.get("configurable"))}
    except Exception as fault:
        faults.report("look at the start of a chain", fault)
    return {}


def _answers_at_once(model: Any) -> bool:
    """Whether a non-chat model may send several prompts in one request; `LLM` subclasses answer one prompt at a time."""
    from langchain_core.language_models.llms import LLM

    return not isinstance(model, LLM)


def _sum(lengths: Sequence[int | None]) -> int | None:
    """None where one of them is not known."""
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None
