"""`LLMInvoker`: the deployments of a profile as one LangChain runnable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Self, TypeAlias

from langchain_core.callbacks import Callbacks
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import merge_configs
from langchain_core.tools import BaseTool

from otel_llm.routing import first_token
from otel_llm.routing import tools as tool_loop
from otel_llm.routing.deployment_state import failures
from otel_llm.routing.deployments import Attempt, Pool, Route
from otel_llm.routing.profiles import Deployment

Tool: TypeAlias = BaseTool | Callable[..., Any]


class _Try(Runnable[Any, Any]):  # type: ignore[misc]
    """One attempt of a call at the next deployment of its route: names it to the spans, and notes its failures."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models

    def _model(self, attempt: Attempt) -> Any:
        return self._models[attempt.state.deployment.name]

    def invoke(self, input: Any, config: RunnableConfig | None = None, *, route: Route, **kwargs: Any) -> Any:
        with route.next() as attempt:
            return self._model(attempt).invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, *, route: Route, **kwargs: Any) -> Any:
        with await route.next_async() as attempt:
            return await self._model(attempt).ainvoke(input, config, **kwargs)

    # What comes before the first token alone is inside: a `with` around a `yield` would leave its context to the reader.
    def stream(self, input: Any, config: RunnableConfig | None = None, *, route: Route, **kwargs: Any) -> Iterator[Any]:
        with route.next() as attempt:
            attempt.keep()
            chunks = self._model(attempt).stream(input, config, **kwargs)
            begun = first_token.begun(chunks)
        try:
            yield from begun
        finally:
            attempt.give_back()

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, *, route: Route, **kwargs: Any
    ) -> AsyncIterator[Any]:
        with await route.next_async() as attempt:
            attempt.keep()
            chunks = self._model(attempt).astream(input, config, **kwargs)
            begun = await first_token.begun_async(chunks)
        try:
            async for chunk in begun:
                yield chunk
        finally:
            try:
                await chunks.aclose()
            finally:
                attempt.give_back()


class LLMInvoker(Runnable[Any, Any]):  # type: ignore[misc]
    """A profile as a LangChain runnable: prompt or messages in, an AIMessage out. Made by `LLMProvider.create_invoker`.

    Each call goes to a deployment drawn by weight, and to the next one after 429, 5xx, a failed connection or a time-out.
    A stream gives way until its first token. Where all are at their `max_concurrency`, a call waits. Composes as any runnable does:
    `prompt | invoker | parser`, `batch`.

    Each method takes `callbacks=[...]` too, LangChain's handlers, beside those of `config` and of the invoker.

    Raises, from each method that calls a model: the OpenAI client's exceptions (of the first deployment asked, where all
    failed), and LimitReached where the limits of all deployments are reached.
    """

    def __init__(self, pool: Pool, models: Mapping[str, Any], callbacks: Callbacks = None) -> None:
        self._pool = pool
        self._models = models
        self._callbacks = callbacks
        self._try = _Try(models)
        # As LangChain composes it, once for each number of deployments.
        self._composed = lru_cache(self._compose)

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self._pool.profile.name

    def _compose(self, tries: int) -> Any:
        if tries == 1:
            return self._try
        composed = self._try.with_fallbacks([self._try] * (tries - 1), exceptions_to_handle=failures())
        composed.name = self.profile
        return composed

    def _next(self) -> tuple[Any, Route]:
        """What carries out a call, and the route that it is to be given."""
        route = Route(self._pool)
        return self._composed(route.tries), route

    def _config(self, config: RunnableConfig | None, callbacks: Callbacks) -> RunnableConfig | None:
        """`config` with the callbacks of the invoker and of the call."""
        for more in (self._callbacks, callbacks):
            if more is not None:
                config = merge_configs(config, {"callbacks": more})
        return config

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, *, callbacks: Callbacks = None, **kwargs: Any
    ) -> Any:
        """One call. Returns an AIMessage."""
        call, route = self._next()
        return call.invoke(input, self._config(config, callbacks), route=route, **kwargs)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, *, callbacks: Callbacks = None, **kwargs: Any
    ) -> Any:
        """One call. Returns an AIMessage."""
        call, route = self._next()
        return await call.ainvoke(input, self._config(config, callbacks), route=route, **kwargs)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, *, callbacks: Callbacks = None, **kwargs: Any
    ) -> Iterator[Any]:
        """One call, AIMessageChunks as they come."""
        call, route = self._next()
        return iter(call.stream(input, self._config(config, callbacks), route=route, **kwargs))

    def astream(
        self, input: Any, config: RunnableConfig | None = None, *, callbacks: Callbacks = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """One call, AIMessageChunks as they come."""
        call, route = self._next()
        return aiter(call.astream(input, self._config(config, callbacks), route=route, **kwargs))

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Self:
        """The same profile, its models knowing these tools. Arguments as `ChatOpenAI.bind_tools`."""
        return self._with_models(lambda model: model.bind_tools(tools, **kwargs))

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Self:
        """The same profile, answering with `schema`. Arguments as `ChatOpenAI.with_structured_output`."""
        return self._with_models(lambda model: model.with_structured_output(schema, **kwargs))

    def _with_models(self, change: Callable[[Any], Any]) -> Self:
        models = {name: change(model) for name, model in self._models.items()}
        return type(self)(self._pool, models, self._callbacks)

    def invoke_with_tools(
        self,
        input: Any,
        tools: Sequence[Tool],
        config: RunnableConfig | None = None,
        *,
        callbacks: Callbacks = None,
        max_steps: int = 10,
        transcript: list[BaseMessage] | None = None,
    ) -> AIMessage:
        """Calls the model and the tools it asks for in turn, until it answers without asking for one.

        What a tool raises goes back to the model as a ToolMessage with `status="error"`, and so does a name or arguments that
        fit no tool. The tools of one answer run one after the other.

        Args:
            input: a string, or the messages so far.
            tools: LangChain tools, or functions with a docstring and annotations.
            max_steps: model calls at most.
            transcript: a list to which the messages of the loop are added as they come, the model's and the tools'.

        Returns:
            The last AIMessage.

        Raises:
            StepLimitReached: the model still asks for tools after `max_steps` calls.
        """
        answer: AIMessage = self._loop(tools, max_steps, transcript).invoke(input, self._config(config, callbacks))
        return answer

    async def ainvoke_with_tools(
        self,
        input: Any,
        tools: Sequence[Tool],
        config: RunnableConfig | None = None,
        *,
        callbacks: Callbacks = None,
        max_steps: int = 10,
        transcript: list[BaseMessage] | None = None,
    ) -> AIMessage:
        """As `invoke_with_tools`; the tools of one answer run at the same time."""
        answer: AIMessage = await self._loop(tools, max_steps, transcript).ainvoke(
            input, self._config(config, callbacks)
        )
        return answer

    def _loop(self, tools: Sequence[Tool], max_steps: int, transcript: list[BaseMessage] | None) -> Any:
        """The loop as one run, so that its calls and tools are one tree."""
        by_name = tool_loop.by_name(tools)
        model = self.bind_tools(list(by_name.values()))

        def run(input: Any, config: RunnableConfig) -> Any:
            return tool_loop.run(tool_loop.steps(model, by_name, input, max_steps, transcript), config)

        async def arun(input: Any, config: RunnableConfig) -> Any:
            return await tool_loop.arun(tool_loop.steps(model, by_name, input, max_steps, transcript), config)

        return RunnableLambda(run, afunc=arun, name=f"{self.profile} with tools")


def make_invoker(pool: Pool, keys: Mapping[str, str], *, streaming: bool, callbacks: Callbacks = None) -> LLMInvoker:
    """The invoker of a profile; `keys` has the API key of each deployment."""
    models = {one.name: _model(one, keys[one.name], streaming=streaming) for one in pool.profile.deployments}
    return LLMInvoker(pool, models, callbacks)


def _model(deployment: Deployment, key: str, *, streaming: bool) -> Any:
    from langchain_openai import ChatOpenAI

    known = ChatOpenAI.model_fields
    fields = {*known, *(field.alias for field in known.values() if field.alias)}
    parameters = {name: value for name, value in deployment.parameters.items() if name in fields}
    others = {name: value for name, value in deployment.parameters.items() if name not in fields}
    for name in ("base_url", "timeout", "stream_usage"):
        if (value := getattr(deployment, name)) is not None:
            parameters[name] = value
    if others:
        parameters["model_kwargs"] = others
    if streaming:
        parameters["streaming"] = True
    return ChatOpenAI(model=deployment.model, api_key=key, max_retries=deployment.max_retries, **parameters)
