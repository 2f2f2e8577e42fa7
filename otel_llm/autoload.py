"""What `opentelemetry-instrument` calls, and what `otel_llm.instrument()` does from code.

The order under `opentelemetry-instrument`: distro, configurator, `pre_instrument`, instrumentors. An exception in any of them would
stop everything after it while the app runs on in silence, so nothing here raises.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.environment_variables import OTEL_LOGS_EXPORTER, OTEL_METRICS_EXPORTER, OTEL_TRACES_EXPORTER
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_LOGS_ENDPOINT,
    OTEL_EXPORTER_OTLP_LOGS_PROTOCOL,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_METRICS_PROTOCOL,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.trace import TracerProvider

from otel_llm import faults, propagation, wiring
from otel_llm.settings import settings

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider


_logger = logging.getLogger("otel_llm")

_OTHER_SIGNALS: Final = (
    (OTEL_METRICS_EXPORTER, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, OTEL_EXPORTER_OTLP_METRICS_PROTOCOL),
    (OTEL_LOGS_EXPORTER, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL),
)


class Distro(BaseDistro):  # type: ignore[misc]
    """The defaults for a laptop: write the store; export over OTLP once an endpoint is named."""

    def _configure(self, **kwargs: Any) -> None:
        set_defaults()


class _Configurator(_OTelSDKConfigurator):
    pass


def set_up_sdk() -> None:
    """Sets the SDK up from the environment, for where no configurator has.

    What cannot be had, an exporter that is not installed or a port that is taken, is said, and the account is kept without it.
    """
    set_defaults()
    try:
        _Configurator().configure()  # type: ignore[no-untyped-call]
    except Exception as error:
        _logger.warning(
            "OpenTelemetry cannot be set up as the OTEL_* variables ask: %s: %s; calls are recorded in the store all the same, "
            "`otel-llm doctor` says what is exported",
            type(error).__name__,
            error,
        )
        if not wiring.is_provider_set():
            trace.set_tracer_provider(SdkTracerProvider())


def set_defaults() -> None:
    """Fills in the `OTEL_*` variables that are not set."""
    env = os.environ
    endpoint = env.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) or env.get(OTEL_EXPORTER_OTLP_ENDPOINT)
    env.setdefault(OTEL_TRACES_EXPORTER, "otlp,duckdb" if endpoint else "duckdb")
    if endpoint and not (env.get(OTEL_EXPORTER_OTLP_PROTOCOL) or env.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)):
        env[OTEL_EXPORTER_OTLP_PROTOCOL] = _protocol(endpoint)
    # Metrics and logs only where their own endpoint is named: a tracing backend (Jaeger) takes neither, and the SDK would
    # complain of that every minute.
    for exporter, own_endpoint, own_protocol in _OTHER_SIGNALS:
        if endpoint := env.get(own_endpoint):
            env.setdefault(exporter, "otlp")
            if not (env.get(own_protocol) or env.get(OTEL_EXPORTER_OTLP_PROTOCOL)):
                env[own_protocol] = _protocol(endpoint)


def _protocol(endpoint: str) -> str:
    # The SDK's default is gRPC whatever the port; 4318 is the registered port of OTLP over HTTP.
    return "http/protobuf" if urlsplit(endpoint).port == 4318 else "grpc"


def pre_instrument() -> None:
    """Adds the account to the tracer provider; sets one up where no configurator is installed."""
    try:
        if settings().sdk_disabled:
            return
        if not wiring.is_provider_set():
            set_up_sdk()
        _keep_account(wiring.global_provider(), None)
        _carry_context()
    except Exception as fault:
        faults.report("set up the account", fault)


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    store: str | os.PathLike[str] | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    redact: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
) -> None:
    """Instruments the OpenAI and LangChain clients and keeps the account. Calling it again changes nothing.

    Args:
        tracer_provider: an SDK TracerProvider; default the global one if the app has set one, else one is set up from the
            `OTEL_*` variables, as `opentelemetry-instrument` would.
        store: the DuckDB file; default `OTEL_LLM_STORE`, else `usage.duckdb` in the user's data directory.
        meter_provider: where GenAI metrics are recorded; default the global one.
        logger_provider: where the events of content capture go; default the global one.
        redact: sees every message (`{"role": ..., "parts": [...]}`) before it is recorded and returns what is to be recorded,
            None for nothing; default what `OTEL_LLM_REDACT` names. What it raises is not raised here: nothing is recorded then.

    Raises:
        TypeError: `redact` cannot be called.
    """
    if redact is not None:
        from otel_llm.content import redaction

        redaction.use(redact)
    if settings().sdk_disabled:
        return
    if tracer_provider is None:
        if not wiring.is_provider_set():
            set_up_sdk()
        tracer_provider = wiring.global_provider()
    _keep_account(tracer_provider, None if store is None else Path(store).expanduser().absolute())
    _carry_context()
    for instrumentor in _instrumentors():
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(
                tracer_provider=tracer_provider,
                meter_provider=meter_provider,
                logger_provider=logger_provider,
                skip_dep_check=True,
            )


def uninstrument() -> None:
    """Undoes `instrument()`: every patched object is again the one it was, and what was recorded is in the store."""
    for instrumentor in _instrumentors():
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
    if (redaction := sys.modules.get("otel_llm.content.redaction")) is not None:
        redaction.use(None)
    from otel_llm.instrumentation import concurrency

    concurrency.remove()
    wiring.unwire()


def _keep_account(provider: TracerProvider | None, store: Path | None) -> None:
    path = store or settings().store
    if path is None or (store is None and os.environ.get(OTEL_TRACES_EXPORTER, "").strip().lower() == "none"):
        propagation.withhold()
        wiring.observe(provider)
        return
    wiring.wire(provider, path)


def _carry_context() -> None:
    if settings().thread_context:
        from otel_llm.instrumentation import concurrency

        concurrency.install()


def _instrumentors() -> list[Any]:
    from otel_llm.instrumentation.langchain import LangChainInstrumentor
    from otel_llm.instrumentation.openai import OpenAIInstrumentor

    return [OpenAIInstrumentor(), LangChainInstrumentor()]
