"""What is wrapped in LangChain: where the handler comes in, and where a model run is about to make its request.

Signatures are wrapt's: wrapped, instance, args, kwargs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from otel_llm import call as calls
from otel_llm import faults
from otel_llm.instrumentation.langchain._models import ModelRun
from otel_llm.instrumentation.langchain._runs import Run, Runs


class Hooks:
    """The wrappers, with the runs they tell of."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._handler: Any = None

    def add_handler(self, wrapped: Callable[..., Any], manager: Any, args: Any, kwargs: Any) -> Any:
        """After `BaseCallbackManager.__init__`: every manager hands our handler down."""
        result = wrapped(*args, **kwargs)
        try:
            handler = self._handler
            if handler is None:
                from otel_llm.instrumentation.langchain._handler import Handler

                handler = self._handler = Handler(self._runs)
            # New lists: those the app gave stay as they are.
            if handler not in manager.handlers:
                manager.handlers = [*manager.handlers, handler]
            if handler not in manager.inheritable_handlers:
                manager.inheritable_handlers = [*manager.inheritable_handlers, handler]
        except Exception as fault:
            faults.report("add the LangChain handler", fault)
        return result

    def watch_manager(self, wrapped: Callable[..., Any], manager: Any, args: Any, kwargs: Any) -> Any:
        """After `BaseRunManager.__init__`: a run whose manager is gone can never end."""
        result = wrapped(*args, **kwargs)
        try:
            self._runs.watch(manager.run_id, manager)
        except Exception as fault:
            faults.report("watch a run", fault)
        return result

    async def start_llm_async(self, wrapped: Callable[..., Any], manager: Any, args: Any, kwargs: Any) -> Any:
        """Around `AsyncCallbackManager.on_llm_start`, which forgets the handlers that do not run inline where one does.

        With ours in sight it would forget the app's (`astream_events` of a completion gave no event). So it sees a manager without
        ours, which is told of the runs right after.
        """
        ours, unaware = self._handler, None
        try:
            if ours in manager.handlers and not all(handler.run_inline for handler in manager.handlers):
                unaware = copy.copy(manager)
                unaware.handlers = [handler for handler in manager.handlers if handler is not ours]
                wrapped = wrapped.__func__.__get__(unaware)  # type: ignore[attr-defined]
        except Exception as fault:
            faults.report("hide the LangChain handler", fault)
        managers = await wrapped(*args, **kwargs)
        try:
            if unaware is not None:
                for one, prompt in zip(managers, _argument(args, kwargs, 1, "prompts"), strict=True):
                    one.handlers = [*one.handlers, ours]
                    told = {
                        **kwargs,
                        "serialized": _argument(args, kwargs, 0, "serialized"),
                        "prompts": [prompt],
                        "run_id": one.run_id,
                        "parent_run_id": manager.parent_run_id,
                        "tags": manager.tags,
                        "metadata": manager.metadata,
                    }
                    ours.on_llm_start(**told)
        except Exception as fault:
            faults.report("begin a completion", fault)
        return managers

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
        return wrapped(*args, **kwargs)

    def _begin_many(self, begun: list[Run], *, shared: bool) -> None:
        """Begins the calls of runs that wait for it: one for them all, or one each."""
        waiting = [run for run in begun if run.request is not None]
        if shared and waiting:
            first = waiting[0]
            assert first.request is not None
            call = first.request.begin(self._runs.tracer, self._runs.nearest_place(first.parent), first.started_ns)
            model = ModelRun(call, [run.request for run in waiting if run.request is not None])
            for run in waiting:
                run.request, run.model = None, model
        else:
            for run in waiting:
                self._runs.begin_call(run, may_adopt=False)
        calls.offer(*dict.fromkeys(run.model.call for run in begun if run.model is not None))

    def _offer(self, kwargs: Any) -> Run | None:
        """Offers the call of the run whose manager is among the arguments, and makes it the innermost run here."""
        try:
            manager = kwargs.get("run_manager")
            run = None if manager is None else self._runs.get(manager.run_id)
            if run is None or run.model is None:
                return None
            calls.offer(run.model.call)
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
            self._runs.end(kwargs["run_manager"].run_id, calls.CANCELLED)
        except Exception as fault:
            faults.report("record a cancelled run", fault)


def _argument(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs[name]


def _answers_at_once(model: Any) -> bool:
    """Whether a non-chat model may send several prompts in one request; `LLM` subclasses answer one prompt at a time."""
    from langchain_core.language_models.llms import LLM

    return not isinstance(model, LLM)
