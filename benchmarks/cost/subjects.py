"""The subjects of the benchmarks: ways to instrument the OpenAI client and LangChain, each switched on and off within a process."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Undo = Callable[[], object]

ROOT = Path(__file__).resolve().parents[2]
_CLIENTS = ("openai", "langchain", "langchain-openai", "opentelemetry-sdk")


class Telemetry:
    """A tracer provider as an app has it, with a batch processor and an exporter that counts and drops, and its meter provider."""

    def __init__(self, *, metrics: bool) -> None:
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

        telemetry = self

        class NullExporter(SpanExporter):
            def export(self, exported: Sequence[ReadableSpan]) -> SpanExportResult:
                telemetry._count += len(exported)
                return SpanExportResult.SUCCESS

        self._count = 0
        self.processor = BatchSpanProcessor(NullExporter())
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(self.processor)
        self.meter_provider: Any = None
        if metrics:
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import InMemoryMetricReader

            self.meter_provider = MeterProvider([InMemoryMetricReader()])

    def spans(self) -> int:
        """Spans exported so far, those that have ended included."""
        self.processor.force_flush()
        return self._count

    def providers(self) -> dict[str, Any]:
        """What instrumentors are given."""
        meter = {"meter_provider": self.meter_provider} if self.meter_provider else {}
        return {"tracer_provider": self.tracer_provider, **meter}


def _nothing(telemetry: Telemetry, directory: Path) -> Undo:
    return lambda: None


def _one_span(telemetry: Telemetry, directory: Path) -> Undo:
    """A span of the SDK around the method, with the attributes that the conventions want; nothing is read but the answer."""
    from openai.resources.chat.completions import AsyncCompletions, Completions
    from openai.resources.embeddings import Embeddings
    from openai.resources.responses import Responses
    from opentelemetry.trace import Span, SpanKind

    tracer = telemetry.tracer_provider.get_tracer("bare")

    def start(operation: str, arguments: dict[str, Any]) -> Any:
        return tracer.start_as_current_span(
            f"{operation} {arguments['model']}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": arguments["model"],
                "server.address": "api.openai.com",
                "server.port": 443,
                "gen_ai.request.temperature": arguments.get("temperature", 0.0),
                "gen_ai.output.type": "text",
                "openai.request.service_tier": "auto",
                "openai.api.type": "chat_completions",
                "gen_ai.request.choice.count": 1,
            },
        )

    def end(span: Span, answer: Any) -> None:
        usage = answer.usage
        span.set_attributes(
            {
                "gen_ai.response.id": getattr(answer, "id", ""),
                "gen_ai.response.model": answer.model,
                "gen_ai.response.finish_reasons": ("stop",),
                "gen_ai.usage.input_tokens": getattr(usage, "prompt_tokens", 0),
                "gen_ai.usage.output_tokens": getattr(usage, "completion_tokens", 0),
                "gen_ai.usage.cache_read.input_tokens": 0,
                "openai.response.service_tier": "default",
            }
        )

    def around(original: Any, operation: str) -> Any:
        @functools.wraps(original)
        def create(self: Any, **arguments: Any) -> Any:
            if arguments.get("stream"):
                return original(self, **arguments)
            with start(operation, arguments) as span:
                answer = original(self, **arguments)
                end(span, answer)
                return answer

        return create

    def around_async(original: Any, operation: str) -> Any:
        @functools.wraps(original)
        async def create(self: Any, **arguments: Any) -> Any:
            if arguments.get("stream"):
                return await original(self, **arguments)
            with start(operation, arguments) as span:
                answer = await original(self, **arguments)
                end(span, answer)
                return answer

        return create

    originals: list[tuple[Any, Any]] = []
    for owner, wrap, operation in (
        (Completions, around, "chat"),
        (AsyncCompletions, around_async, "chat"),
        (Responses, around, "chat"),
        (Embeddings, around, "embeddings"),
    ):
        originals.append((owner, owner.create))
        owner.create = wrap(owner.create, operation)

    def undo() -> None:
        for owner, original in originals:
            owner.create = original

    return undo


def _both(telemetry: Telemetry, openai: Any, langchain: Any, **more: Any) -> Undo:
    """An instrumentor for each of the two."""
    instrumentors = (openai(), langchain())
    for instrumentor in instrumentors:
        instrumentor.instrument(**telemetry.providers(), **more)

    def undo() -> None:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()

    return undo


def _official(telemetry: Telemetry, directory: Path) -> Undo:
    from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    return _both(telemetry, OpenAIInstrumentor, LangChainInstrumentor)


def _official_openai(telemetry: Telemetry, directory: Path) -> Undo:
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(**telemetry.providers())
    return instrumentor.uninstrument  # type: ignore[no-any-return]


def _openinference(telemetry: Telemetry, directory: Path) -> Undo:
    from openinference.instrumentation import TraceConfig
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from openinference.instrumentation.openai import OpenAIInstrumentor

    config = TraceConfig(hide_inputs=True, hide_outputs=True)
    return _both(telemetry, OpenAIInstrumentor, LangChainInstrumentor, config=config)


def _openllmetry(telemetry: Telemetry, directory: Path) -> Undo:
    from opentelemetry.instrumentation.langchain import LangchainInstrumentor
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    return _both(telemetry, OpenAIInstrumentor, LangchainInstrumentor)


def _otel_llm(telemetry: Telemetry, directory: Path) -> Undo:
    import otel_llm

    otel_llm.instrument(**telemetry.providers())  # OTEL_LLM_STORE=none
    return otel_llm.uninstrument


def _otel_llm_store(telemetry: Telemetry, directory: Path) -> Undo:
    import otel_llm

    otel_llm.instrument(**telemetry.providers(), store=directory / "usage.duckdb")
    return otel_llm.uninstrument


@dataclass(frozen=True, slots=True)
class Subject:
    """One of them."""

    name: str
    environment: str
    """Those with the same name share one."""
    install: Callable[[Telemetry, Path], Undo]
    distributions: tuple[str, ...] = ()
    """What it is, as the registry names it."""
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables."""
    with_metrics: bool = False

    def versions(self) -> str:
        """Raises PackageNotFoundError."""
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.distributions)


_CAPTURE = {
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
}
_OFFICIAL = ("opentelemetry-instrumentation-genai-openai", "opentelemetry-instrumentation-genai-langchain")
_OPENINFERENCE = ("openinference-instrumentation-openai", "openinference-instrumentation-langchain")
_OPENLLMETRY = ("opentelemetry-instrumentation-openai", "opentelemetry-instrumentation-langchain")
_OURS = ("otel-llm",)

BARE, SPAN, OFFICIAL, OURS, STORE = "bare client", "bare SDK span", "official", "otel-llm", "otel-llm + store"
OFFICIAL_OPENAI = "official, OpenAI alone"
"""For apps that have no LangChain, which the other instrumentor imports."""
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(BARE, "clients", _nothing),
        Subject(SPAN, "clients", _one_span),
        Subject(OFFICIAL, "official", _official, _OFFICIAL),
        Subject("OpenInference", "openinference", _openinference, _OPENINFERENCE),
        Subject("OpenLLMetry", "openllmetry", _openllmetry, _OPENLLMETRY, {"TRACELOOP_TRACE_CONTENT": "false"}),
        Subject(OURS, "otel-llm", _otel_llm, _OURS),
        Subject(STORE, "otel-llm", _otel_llm_store, _OURS),
        Subject(OFFICIAL_OPENAI, "official", _official_openai, _OFFICIAL[:1]),
        Subject(f"{OFFICIAL}, content", "official", _official, _OFFICIAL, _CAPTURE),
        Subject(f"{STORE}, content", "otel-llm", _otel_llm_store, _OURS, _CAPTURE),
        Subject(f"{OFFICIAL}, metrics", "official", _official, _OFFICIAL, with_metrics=True),
        Subject(f"{STORE}, metrics", "otel-llm", _otel_llm_store, _OURS, with_metrics=True),
    )
}

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "clients": _CLIENTS,
    # With what `opentelemetry-instrument` needs beside it.
    "official": (*_CLIENTS, *_OFFICIAL, "opentelemetry-distro"),
    "openinference": (*_CLIENTS, *_OPENINFERENCE),
    "openllmetry": (*_CLIENTS, *_OPENLLMETRY),
    "otel-llm": (*_CLIENTS, str(ROOT)),
}
"""What is installed in each environment."""
