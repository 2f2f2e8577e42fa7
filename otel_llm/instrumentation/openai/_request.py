"""What is known of a call before it is sent: which endpoint, which provider, which parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakKeyDictionary

from otel_llm.conventions import semconv
from otel_llm.conventions.hosts import is_at, provider_at
from otel_llm.conventions.token_usage import fields
from otel_llm.conventions.tool_calls import returned_in_chat, returned_in_input
from otel_llm.instrumentation.openai import private


class Endpoint(NamedTuple):
    """How an endpoint of the OpenAI API is recorded."""

    operation: str
    api_type: str | None = None
    usage_on_request: bool = False
    """Whether a stream reports its usage only if `stream_options.include_usage` asks for it."""


ENDPOINTS = {
    "/chat/completions": Endpoint(semconv.CHAT, "chat_completions", usage_on_request=True),
    "/responses": Endpoint(semconv.CHAT, "responses"),
    "/responses/compact": Endpoint(semconv.COMPACT, "responses"),
    "/completions": Endpoint(semconv.TEXT_COMPLETION, usage_on_request=True),
    "/embeddings": Endpoint(semconv.EMBEDDINGS),
    "/images/generations": Endpoint(semconv.IMAGE_GENERATION),
    "/images/edits": Endpoint(semconv.IMAGE_GENERATION),
    "/images/variations": Endpoint(semconv.IMAGE_GENERATION),
    "/audio/transcriptions": Endpoint(semconv.TRANSCRIPTION),
    "/audio/translations": Endpoint(semconv.TRANSLATION),
    "/audio/speech": Endpoint(semconv.SPEECH),
    "/videos": Endpoint(semconv.VIDEO_GENERATION),
    "/videos/edits": Endpoint(semconv.VIDEO_GENERATION),
    "/videos/extensions": Endpoint(semconv.VIDEO_GENERATION),
    "/remix": Endpoint(semconv.VIDEO_GENERATION),
    "/decisions": Endpoint(semconv.DECISION),
}
"""The endpoints that run a model, by the path that the client's resource methods use."""

UNKNOWN = Endpoint("")
"""An endpoint of which only its answer tells whether it runs one."""


def endpoint_of(method: str, url: str) -> Endpoint | None:
    """The endpoint that a request goes to, None where it runs no model."""
    if method != "post" and method.lower() != "post":
        return None
    found = ENDPOINTS.get(url)
    if found is not None:
        return found
    # A query (`?beta=true`), or a longer path or a whole URL given to `client.post()`.
    path = urlsplit(url).path.rstrip("/")
    for known, endpoint in ENDPOINTS.items():
        if path.endswith(known) and (known != "/completions" or not path.endswith("/chat/completions")):
            return endpoint
    return None


class Server(NamedTuple):
    """Who answers."""

    provider: str
    address: str | None
    port: int | None
    base: str = ""
    """Where its API begins: scheme, host, port and path."""
    is_azure_client: bool = False
    """Whether it is asked by an Azure client, which puts the deployment into the path."""
    is_known: bool = True
    """Whether its address tells whose it is."""

    @property
    def is_azure_openai(self) -> bool:
        """Whether it is Azure OpenAI, where the API version decides what is taken."""
        is_path = "/openai/deployments/" in self.base or (self.provider.startswith("azure.") and "/openai" in self.base)
        return self.is_azure_client or is_path

    @property
    def takes_usage(self) -> bool:
        """Whether `stream_options` is known to be taken, without asking: by OpenAI itself."""
        return self.provider == "openai" and is_at(self.address, "openai.com")

    @property
    def tells_unasked(self) -> bool:
        """Whether streams end with their usage, asked or not: then the chunk with it is the app's."""
        return self.provider in _TELLS_UNASKED


_TELLS_UNASKED = frozenset({"openrouter"})

_servers: WeakKeyDictionary[Any, tuple[Any, Server]] = WeakKeyDictionary()


def server_of(client: Any, url: str = "") -> Server:
    """Who answers a client's request to `url`: worked out once per client and base URL, unless `url` names a host itself."""
    if "://" in url:
        given = urlsplit(url)
        return _server_at_url(client, given.scheme, given.hostname, given.port, given.path)
    base_url = private.base_url(client)
    known = _servers.get(client)
    if known is not None and known[0] is base_url:
        return known[1]
    server = _server(client, base_url)
    _servers[client] = (base_url, server)
    return server


def _server(client: Any, base_url: Any) -> Server:
    return _server_at_url(client, base_url.scheme, base_url.host or None, base_url.port, base_url.path)


def _server_at_url(client: Any, scheme: str, host: str | None, port: int | None, path: str) -> Server:
    port = port or {"https": 443, "http": 80}.get(scheme)
    azure_client = any(cls.__name__ in ("AzureOpenAI", "AsyncAzureOpenAI") for cls in type(client).__mro__)
    server = server_at(host, port, azure_client=azure_client)
    return server._replace(base=f"{scheme}://{host}:{port}{path}", is_azure_client=azure_client)


def server_at(host: str | None, port: int | None, *, azure_client: bool = False) -> Server:
    """Who answers at a host."""
    # A host that is not known serves the OpenAI protocol under a name of its own: the conventions keep `openai` there, and
    # `server.address` tells it apart.
    provider = provider_at(host)
    is_known = azure_client or provider is not None
    return Server(provider or ("azure.ai.openai" if azure_client else "openai"), host, port, is_known=is_known)


def sent_body(options: Any) -> Mapping[str, Any]:
    """What the client sends: the body with `extra_body` over it, as the client's `_build_request` merges them."""
    body, extra = options.json_data, options.extra_json
    if extra is not None and isinstance(extra, Mapping):
        if body is None:
            return extra
        if isinstance(body, Mapping):
            return {name: value for name, value in {**body, **extra}.items() if type(value).__name__ != "Omit"}
    if body is None or isinstance(body, bytes):
        body = ready = body or getattr(options, "content", None)
        if isinstance(ready, bytes | bytearray | str) and len(ready) <= _LONGEST_READY:
            with suppress(ValueError, RecursionError):
                body = json.loads(ready)
    return body if isinstance(body, Mapping) else fields(body)


def sent_query(client: Any, options: Any) -> Mapping[str, Any]:
    """The query that the client sends: its own, the request's over it, and what stands in the URL."""
    query: dict[str, Any] = {**private.default_query(client), **(options.params or {})}
    if "?" in options.url:
        query = {**dict(parse_qsl(urlsplit(options.url).query)), **query}
    return query


def sent_model(endpoint: Endpoint, server: Server, options: Any, body: Mapping[str, Any]) -> str | None:
    """The model that is asked: on Azure the deployment in the path, which the client takes from the body without `extra_body`."""
    own = options.json_data
    if server.is_azure_client and endpoint.api_type != "responses" and isinstance(own, Mapping) and own.get("model"):
        body = own
    model = body.get("model")
    return model if isinstance(model, str) else None


_LONGEST_READY = 2**20
"""Bytes of a body that the app made itself, so far as it is read for its parameters."""


_SCALARS = (str, int, float, bool)


def _scalar(value: Any) -> Any:
    if not issubclass(type(value), _SCALARS):  # by `type`, here and below: an object may lie about its class
        return None
    # A number beyond 64 bits fails the whole batch that an OTLP exporter encodes it in.
    return str(value) if type(value) is int and not -(2**63) <= value < 2**63 else value


def _double(value: Any) -> Any:
    """An attribute has one type, however a caller writes the number."""
    value = _scalar(value)
    return float(value) if type(value) is int else value


def _stop_sequences(value: Any) -> list[str] | None:
    if issubclass(type(value), str):
        return [value] if value != "" else None
    # Anything else that can be iterated is the app's, to be read once.
    texts = [each for each in value if issubclass(type(each), str)] if type(value) in (list, tuple) else None
    return texts or None


def _choice_count(value: Any) -> int | None:
    return value if type(value) is int and value != 1 else None


def _service_tier(value: Any) -> str | None:
    return value if isinstance(value, str) and value not in ("", "auto") else None


def _word(value: Any) -> str | None:
    return value[:_LONGEST_WORD] if isinstance(value, str) and value.isascii() else None


_LONGEST_WORD = 32


def _output_type(value: Any) -> str | None:
    kind = fields(value).get("type")
    return _OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None


def _effort(value: Any) -> str | None:
    return effort if isinstance(effort := fields(value).get("effort"), str) else None


def _conversation_id(value: Any) -> str | None:
    identity = value if issubclass(type(value), str) else fields(value).get("id")
    return identity if issubclass(type(identity), str) and identity != "" else None


_OUTPUT_TYPES = {"json_object": "json", "json_schema": "json", "text": "text"}

_Parameters = tuple[tuple[str, str, Callable[[Any], Any]], ...]

_PARAMETERS: _Parameters = (
    # field of the body -> attribute, and what reads it: where that finds nothing, there is none. The last of two counts.
    ("temperature", semconv.REQUEST_TEMPERATURE, _double),
    ("top_p", semconv.REQUEST_TOP_P, _double),
    ("top_k", semconv.REQUEST_TOP_K, _scalar),
    ("max_tokens", semconv.REQUEST_MAX_TOKENS, _scalar),
    ("max_completion_tokens", semconv.REQUEST_MAX_TOKENS, _scalar),
    ("max_output_tokens", semconv.REQUEST_MAX_TOKENS, _scalar),
    ("frequency_penalty", semconv.REQUEST_FREQUENCY_PENALTY, _double),
    ("presence_penalty", semconv.REQUEST_PRESENCE_PENALTY, _double),
    ("seed", semconv.REQUEST_SEED, _scalar),
    ("dimensions", semconv.EMBEDDINGS_DIMENSIONS, _scalar),
    ("reasoning_effort", semconv.REQUEST_REASONING_LEVEL, _scalar),
    ("previous_response_id", semconv.REQUEST_PREVIOUS_RESPONSE, _scalar),
    ("stop", semconv.REQUEST_STOP_SEQUENCES, _stop_sequences),
    ("n", semconv.REQUEST_CHOICE_COUNT, _choice_count),
    ("service_tier", semconv.OPENAI_REQUEST_SERVICE_TIER, _service_tier),
    ("text", semconv.OUTPUT_TYPE, lambda value: _output_type(fields(value).get("format"))),
    ("response_format", semconv.OUTPUT_TYPE, _output_type),
    ("reasoning", semconv.REQUEST_REASONING_LEVEL, _effort),
    ("conversation", semconv.CONVERSATION_ID, _conversation_id),
)
_OF_OPERATION: Mapping[str, _Parameters] = {
    semconv.EMBEDDINGS: (
        (
            "encoding_format",
            semconv.REQUEST_ENCODING_FORMATS,
            lambda value: [value] if isinstance(value, str) else None,
        ),
    ),
    semconv.CHAT: (
        ("input", semconv.RETURNED_TOOL_IDS, lambda value: returned_in_input(value) or None),
        ("messages", semconv.RETURNED_TOOL_IDS, lambda value: returned_in_chat(value) or None),
    ),
    semconv.IMAGE_GENERATION: (
        ("size", semconv.IMAGE_SIZE, _word),
        ("quality", semconv.IMAGE_QUALITY, _word),
    ),
    semconv.VIDEO_GENERATION: (("size", semconv.IMAGE_SIZE, _word),),
    semconv.SPEECH: (("input", semconv.CHARACTERS, lambda value: float(len(value)) if type(value) is str else None),),
}


def attributes(endpoint: Endpoint, server: Server, body: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    """The span attributes that are known at the start, the model apart."""
    found: dict[str, Any] = {semconv.PROVIDER: server.provider}
    if server.address is not None:
        found[semconv.SERVER_ADDRESS] = server.address
        if server.port is not None:
            found[semconv.SERVER_PORT] = server.port
    if endpoint.api_type is not None:
        found[semconv.OPENAI_API_TYPE] = endpoint.api_type
    if stream:
        found[semconv.REQUEST_STREAM] = True
    if not _PARAMETER_FIELDS.isdisjoint(body):
        _take(_PARAMETERS, body, found)
    if (own := _OF_OPERATION.get(endpoint.operation)) is not None:
        _take(own, body, found)
    return found


_PARAMETER_FIELDS = frozenset(field for field, _, _ in _PARAMETERS)


def _take(parameters: _Parameters, body: Mapping[str, Any], found: dict[str, Any]) -> None:
    for field, attribute, read in parameters:
        if field in body and (value := read(body[field])) is not None:
            found[attribute] = value
