"""What we touch of LiteLLM that nobody promises to keep: all of it, and nothing of it elsewhere.

Seen in litellm 1.80 and 1.110. What is installed is asked for each by `tests/instrumentation/litellm/test_private.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from otel_llm.conventions import semconv

FUNCTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "litellm.main": {
        "completion": semconv.CHAT,
        "text_completion": semconv.TEXT_COMPLETION,
        "embedding": semconv.EMBEDDINGS,
        "transcription": semconv.TRANSCRIPTION,
        "speech": semconv.SPEECH,
    },
    "litellm.responses.main": {"responses": semconv.CHAT},
    "litellm.images.main": {
        "image_generation": semconv.IMAGE_GENERATION,
        "image_edit": semconv.IMAGE_GENERATION,
        "image_variation": semconv.IMAGE_GENERATION,
    },
    "litellm.rerank_api.main": {"rerank": semconv.RERANKER},
}
"""The functions that ask a model, by their modules, and what they do. Each has an asynchronous twin: `acompletion`."""
INNER: Final = "original_function"
"""What the decorator of these functions calls what it is around: a variable of its own, so whoever has got hold of a function
earlier (`from litellm import completion`) has it too."""

LOGGING: Final = "litellm.litellm_core_utils.litellm_logging"
"""The module of `Logging`, of which there is one object to a call."""
BEFORE_REQUEST: Final = "pre_call"
"""What each provider's code calls with the request that it is about to send."""
AFTER_FAILURE: Final = "failure_handler"
CACHE: Final = "litellm.caching.caching_handler"
_CACHE_ASKED: Final = (("sync_get_cache", "_sync_get_cache"), ("async_get_cache", "_async_get_cache"))
"""What asks LiteLLM's own cache for an answer: the names of today, and of 1.80."""
_COST: Final = ("response_cost_calculator", "_response_cost_calculator")
"""What puts a price on an answer, before the app gets it: since 1.81, and before."""

PROVIDERS: Final = {
    "azure_text": "azure",
    "cohere_chat": "cohere",
    "custom_openai": "openai",
    "ollama_chat": "ollama",
    "text-completion-codestral": "mistral",
    "text-completion-openai": "openai",
    "vertex_ai_beta": "vertex_ai",
}
"""Names of LiteLLM's that tell the API of a provider, not only him."""
SENT_BY_CLIENT: Final = frozenset({"text-completion-openai", "azure_text"})
"""Providers whose streams the OpenAI client asks for once they are read, when LiteLLM's function has long returned."""
_NO_ANSWER: Final = frozenset({"TransportError", "APIConnectionError"})
"""What httpx, and the client, raise where there was no whole answer."""
_MOCKED: Final = ("mock_response", "mock_tool_calls")
_LOGGING_OBJECT: Final = "litellm_logging_obj"
CHUNKS: Final = ("litellm.litellm_core_utils.streaming_handler", "CustomStreamWrapper")
"""The stream of chat chunks, which nearly every provider's stream is made into; it may be hidden inside others."""
_INSIDE_CHUNKS: Final = "completion_stream"
CHUNK_READER: Final = "chunk_creator"
"""What a stream calls with each piece of the provider's, before the usage in it is taken out."""
_PIECES: Final = "BaseModelResponseIterator"
_PIECE_PARSER: Final = "chunk_parser"


def cost_calculator(logging: type) -> str:
    return next((name for name in _COST if name in vars(logging)), _COST[0])


def cache_lookups(handler: type) -> tuple[str, ...]:
    """What asks the cache, and what does asynchronously, of the class that keeps it."""
    return tuple(next((name for name in names if hasattr(handler, name)), names[0]) for names in _CACHE_ASKED)


def is_cached_text(found: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether the cache has answered what a language model was asked."""
    call_type = arguments.get("call_type")
    return getattr(found, "cached_result", None) is not None and str(call_type).endswith(("completion", "responses"))


def logging_of(kwargs: Mapping[str, Any]) -> Any:
    """The `Logging` of a call, in the arguments of the function that carries it out."""
    return kwargs.get(_LOGGING_OBJECT)


def logging_of_stream(stream: Any) -> Any:
    return getattr(stream, "logging_obj", None)


def is_mocked(arguments: Mapping[str, Any]) -> bool:
    """Whether the app has given the answer itself, for a test: then nothing is sent."""
    return any(arguments.get(name) is not None for name in _MOCKED)


def call_id(logging: Any) -> Any:
    """What tells a call from others: a copy of its `Logging` has the same."""
    return getattr(logging, "litellm_call_id", None)


def told(logging: Any) -> tuple[str | None, str | None]:
    """The provider and the model that are about to be asked, by LiteLLM's names."""
    details = logging.model_call_details
    provider, model = details.get("custom_llm_provider"), details.get("model")
    return provider if isinstance(provider, str) else None, model if isinstance(model, str) else None


def named(arguments: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The provider and the model that the arguments of a function name, before LiteLLM has looked who it is."""
    model, provider = arguments.get("model"), arguments.get("custom_llm_provider")
    if not isinstance(model, str):
        return provider if isinstance(provider, str) else None, None
    if isinstance(provider, str) and provider:
        return provider, model.removeprefix(f"{provider}/")
    before, slash, rest = model.partition("/")
    return (before, rest) if slash else ("openai", model)


def request(arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """Where a request goes, and its body, from what is said before it is sent: the body itself, which is sent as it is then."""
    additional = arguments.get("additional_args") or {}
    url = additional.get("api_base")
    return url if isinstance(url, str) else "", additional.get("complete_input_dict")


def is_stream(result: Any) -> bool:
    """Whether it is a stream that can be followed in place."""
    cls = type(result)
    return (hasattr(cls, "__next__") or hasattr(cls, "__anext__")) and hasattr(result, "__dict__")


def status_code(error: BaseException, causes: Iterable[BaseException]) -> str | None:
    """The status that the provider answered with. LiteLLM gives one to errors that no answer told of, too."""
    status = getattr(error, "status_code", None)
    if type(status) is not int or any(_NO_ANSWER & {cls.__name__ for cls in type(one).__mro__} for one in causes):
        return None
    return str(status)


def pieces_of(stream: Any) -> Any:
    """What a stream of chat chunks reads the provider's pieces from, where LiteLLM reads them itself; None once it is closed."""
    pieces = vars(stream).get(_INSIDE_CHUNKS)
    return pieces if any(cls.__name__ == _PIECES for cls in type(pieces).__mro__) else None


def watch_pieces(pieces: Any, see: Callable[[Any], None]) -> None:
    """Has `see` told of each piece as it came: 1.80 loses the usage of OpenAI's on the way."""
    parse = getattr(pieces, _PIECE_PARSER)

    def parse_and_tell(chunk: Any) -> Any:
        see(chunk)
        return parse(chunk)

    setattr(pieces, _PIECE_PARSER, parse_and_tell)
