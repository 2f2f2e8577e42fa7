"""The OpenAI client of a profile: any `openai.OpenAI`, whose requests go to the deployment that is drawn for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import openai

from otel_llm.routing import first_token
from otel_llm.routing.deployment_state import DeploymentState
from otel_llm.routing.deployments import Attempt, Pool, Route
from otel_llm.routing.profiles import Deployment

_CHAT = "/chat/completions"
_OF_DEPLOYMENTS = frozenset({"api_key", "base_url", "admin_api_key", "data_residency", "provider", "workload_identity"})


class _ProfileClient:
    """What the sync and the async client share: the choice of deployments, and options that hold for all of them."""

    _pool: Pool
    _clients: Mapping[str, Any]

    def __init__(self, pool: Pool, clients: Mapping[str, Any]) -> None:
        first = next(iter(clients.values()))
        super().__init__(
            api_key=first.api_key,
            base_url=first.base_url,
            timeout=first.timeout,
            max_retries=first.max_retries,
            default_headers=first._custom_headers,
            http_client=first._client,
        )  # type: ignore[call-arg]
        self._pool = pool
        self._clients = clients

    def copy(self, **options: Any) -> Self:
        """The same profile with other options. Raises TypeError for what is a deployment's own, as `base_url` is."""
        if own := sorted(_OF_DEPLOYMENTS & options.keys()):
            raise TypeError(f"{own[0]} belongs to the deployments of profile {self._pool.profile.name!r}: set it there")
        clients = {name: client.with_options(**options) for name, client in self._clients.items()}
        return type(self)(self._pool, clients)

    with_options = copy

    def _route(self, options: Any) -> Route:
        # What was read from a file is gone after the first try.
        return Route(self._pool, repeats=options.files is None and getattr(options, "content", None) is None)

    def _request(self, attempt: Attempt, cast_to: Any, options: Any, **stream: Any) -> Any:
        """The request at the deployment of an attempt; to be awaited in the async client."""
        client = self._clients[attempt.state.deployment.name]
        return client.request(cast_to, self._addressed(options, attempt.state), **stream)

    def _addressed(self, options: Any, state: DeploymentState) -> Any:
        """The request for this deployment; the profile's name as the model stands for the deployment's model."""
        body = options.json_data
        if not isinstance(body, Mapping) or body.get("model") != state.deployment.profile:
            return options
        addressed = options.model_copy() if hasattr(options, "model_copy") else options.copy()
        addressed.json_data = _body(body, state.deployment, is_chat=options.url == _CHAT)
        return addressed


def _body(body: Mapping[str, Any], deployment: Deployment, *, is_chat: bool) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    if is_chat:
        defaults.update(deployment.parameters)
        defaults.update(defaults.pop("extra_body", {}))
        if deployment.stream_usage and body.get("stream"):
            defaults["stream_options"] = {"include_usage": True}
    return {**defaults, **body, "model": deployment.model}


class ProfileOpenAI(_ProfileClient, openai.OpenAI):  # type: ignore[misc]
    """Made by `LLMProvider.client`."""

    def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        route = self._route(options)
        while True:
            try:
                with route.next() as attempt:
                    answer = self._request(attempt, cast_to, options, stream=stream, stream_cls=stream_cls)
                    if route.tries and isinstance(answer, openai.Stream):
                        answer._iterator = first_token.begun(answer._iterator)
                    return attempt.keep_for(answer)
            except Exception as error:
                if not route.goes_on(error):
                    raise


class AsyncProfileOpenAI(_ProfileClient, openai.AsyncOpenAI):  # type: ignore[misc]
    """Made by `LLMProvider.async_client`."""

    async def request(self, cast_to: Any, options: Any, *, stream: bool = False, stream_cls: Any = None) -> Any:
        route = self._route(options)
        while True:
            try:
                with await route.next_async() as attempt:
                    answer = await self._request(attempt, cast_to, options, stream=stream, stream_cls=stream_cls)
                    if route.tries and isinstance(answer, openai.AsyncStream):
                        answer._iterator = await first_token.begun_async(answer._iterator)
                    return attempt.keep_for(answer)
            except Exception as error:
                if not route.goes_on(error):
                    raise


def make_client(pool: Pool, keys: Mapping[str, str]) -> ProfileOpenAI:
    """The client of a profile; `keys` has the API key of each deployment."""
    return ProfileOpenAI(pool, _clients(openai.OpenAI, pool, keys))


def make_async_client(pool: Pool, keys: Mapping[str, str]) -> AsyncProfileOpenAI:
    """The same for `await`."""
    return AsyncProfileOpenAI(pool, _clients(openai.AsyncOpenAI, pool, keys))


def _clients(kind: Any, pool: Pool, keys: Mapping[str, str]) -> dict[str, Any]:
    clients: dict[str, Any] = {}
    http_client = None  # one for all: it keeps connections by host
    for deployment in pool.profile.deployments:
        client = clients[deployment.name] = kind(
            api_key=keys[deployment.name],
            base_url=deployment.base_url,
            timeout=openai.DEFAULT_TIMEOUT if deployment.timeout is None else deployment.timeout,
            max_retries=deployment.max_retries,
            http_client=http_client,
        )
        http_client = client._client
    return clients
