"""What `opentelemetry-instrument` calls, and what `otel_llm.instrument()` does from code.

The order under `opentelemetry-instrument`: distro, configurator, `pre_instrument`, instrumentors. An exception in any of them would
stop everything after it, and the app would run on in silence. So nothing here raises: each step is taken on its own, and one line
says what cannot be done. Importing this module imports neither OpenTelemetry nor anything else that may be missing or
broken, or that reads a wrong variable.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from otel_llm.settings import announce_store, settings, store_path
from otel_llm.support import faults, masking

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

_logger = logging.getLogger("otel_llm")


def __getattr__(name: str) -> Any:
    if name != "Distro":  # the entry point
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _sdk().Distro


def _sdk() -> Any:
    from otel_llm.setup import environment

    environment.make_importable()
    return import_module("otel_llm.setup.sdk")


_KEEP: Final = "keep the account"


class _Steps:
    """Does one thing after another. What fails is left out, and told at the end: one line for each reason."""

    def __init__(self) -> None:
        self._failed: dict[str, list[str]] = {}

    def take(self, what: str, step: Callable[[], Any]) -> Any:
        """What `step` returns, None where it fails. `what` completes "otel-llm could not"."""
        try:
            return step()
        except BaseException as fault:
            if not faults.ends_here(fault):
                raise
            _logger.debug("otel-llm could not %s", what, exc_info=True)
            # A module that others need and that is not there is one reason.
            self._failed.setdefault(masking.error(fault), []).append(what)
        return None

    def tell(self) -> None:
        """Says what could not be done, why, and what that means."""
        failed = [what for steps in self._failed.values() for what in steps]
        for reason, steps in self._failed.items():
            _logger.warning(
                "otel-llm could not %s (%s); the app runs on, and %s",
                ", ".join(steps),
                reason,
                "no call is recorded in a store" if _KEEP in failed else "what is not named here works",
            )


def pre_instrument() -> None:
    """Adds the account to the tracer provider; sets one up where no configurator is installed."""
    steps = _Steps()
    if settings().sdk_disabled:
        return
    steps.take("look at gevent", _prepare_greenlets)
    steps.take("set up OpenTelemetry", lambda: _set_up(launched=True))
    steps.take(_KEEP, lambda: _keep_account(None, None))
    steps.take("carry the context", _carry_context)
    steps.tell()


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    store: str | os.PathLike[str] | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    redact: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
) -> None:
    """Instruments the OpenAI, LangChain and LiteLLM clients and keeps the account. Calling it again changes nothing.

    Whatever the environment, the platform and the installed libraries are like, the app runs on: what cannot be set up is left out
    and named in the log.

    Args:
        tracer_provider: where the spans go; default the global one if the app has set one, else one is set up from the
            `OTEL_*` variables, as `opentelemetry-instrument` would.
        store: the DuckDB file; default `OTEL_LLM_STORE`, else `usage.duckdb` in the user's data directory.
        meter_provider: where GenAI metrics are recorded; default the global one.
        logger_provider: where the events of content capture go; default the global one.
        redact: sees every message (`{"role": ..., "parts": [...]}`) before it is recorded and returns what is to be recorded,
            None for nothing; default what `OTEL_LLM_REDACT` names. What it raises is not raised here: nothing is recorded then.

    Raises:
        TypeError: `redact` cannot be called; nothing else.
    """
    steps = _Steps()
    steps.take("load OpenTelemetry", _sdk)
    if redact is not None:
        if not callable(redact):
            raise TypeError(f"redact must be a function that takes a message and returns one or None, not {redact!r}")
        steps.take("use the redactor, and records no content", lambda: _use_redactor(redact))
    if settings().sdk_disabled:
        return
    steps.take("look at gevent", _prepare_greenlets)  # before the SDK has threads
    if tracer_provider is None:
        tracer_provider = steps.take("set up OpenTelemetry", _set_up)
    steps.take(_KEEP, lambda: _keep_account(tracer_provider, store))
    steps.take("carry the context", _carry_context)
    for name, load in _INSTRUMENTORS.items():
        steps.take(f"instrument {name}", partial(_instrument, load, tracer_provider, meter_provider, logger_provider))
    steps.tell()


def uninstrument() -> None:
    """Undoes `instrument()`: every patched object is again the one it was, and what was recorded is in the store."""
    steps = _Steps()
    for name, load in _INSTRUMENTORS.items():
        steps.take(f"take the instrumentation off {name}", partial(_uninstrument, load))
    if (redaction := sys.modules.get("otel_llm.content.redaction")) is not None:
        redaction.use(None)
    if (concurrency := sys.modules.get("otel_llm.instrumentation.concurrency")) is not None:
        steps.take("take the context out of threads", concurrency.remove)
    if (wiring := sys.modules.get("otel_llm.setup.wiring")) is not None:
        steps.take("take the account off", wiring.unwire)
    steps.tell()


def flush(timeout: float = 10.0) -> bool:
    """Everything that has ended in this process is on disk and merged, in every store that it has open.

    `timeout` is in seconds, per store; false where one of them could not be merged in that time (nothing is lost then), or where no
    account can be kept. Raises nothing.
    """
    try:
        from otel_llm.store import flush as flush_all
    except BaseException as fault:
        if not faults.ends_here(fault):
            raise
        return False  # `instrument` has said so
    try:
        return flush_all(timeout)
    except Exception as fault:
        faults.report("flush the account", fault)
        return False


def _use_redactor(redact: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    from otel_llm.content import redaction

    redaction.use(redact)


def _prepare_greenlets() -> None:
    from otel_llm.support import greenlets

    greenlets.prepare()


def _set_up(*, launched: bool = False) -> Any:
    """The global provider, set up if need be. `launched`: a configurator has come before us, with the same variables."""
    sdk = _sdk()
    from otel_llm.setup import wiring

    is_theirs = wiring.is_provider_set()
    if not is_theirs:
        sdk.set_up_sdk()
    provider = wiring.global_provider()
    if launched or not is_theirs:
        from otel_llm.setup import otlp_batches

        otlp_batches.bound(wiring.taking_processors(provider))
    return provider


def _keep_account(provider: TracerProvider | None, store: str | os.PathLike[str] | None) -> None:
    from otel_llm.calls import withholding
    from otel_llm.setup import wiring

    if provider is None:
        provider = wiring.global_provider()
    try:
        path = settings().store if store is None else store_path(store)
    except ValueError as error:
        _logger.warning(
            "store=%s cannot be a store (%s); no account is kept", masking.text(os.fsdecode(store or "")), error
        )
        path = None
    if store is None and not _is_turned_off():
        announce_store()
    if path is None or (store is None and _is_turned_off()):
        withholding.withhold()
        wiring.observe(provider)
        wiring.stop_calls(provider, None)
        return
    wiring.wire(provider, path)


def _is_turned_off() -> bool:
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"


def _carry_context() -> None:
    if settings().thread_context:
        from otel_llm.instrumentation import concurrency

        concurrency.install()


def _instrument(
    load: Callable[[], Any],
    tracer_provider: TracerProvider | None,
    meter_provider: MeterProvider | None,
    logger_provider: LoggerProvider | None,
) -> None:
    instrumentor = load()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger_provider=logger_provider,
            skip_dep_check=True,
        )


def _uninstrument(load: Callable[[], Any]) -> None:
    instrumentor = load()
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


def _openai() -> Any:
    from otel_llm.instrumentation.openai import OpenAIInstrumentor

    return OpenAIInstrumentor()


def _langchain() -> Any:
    from otel_llm.instrumentation.langchain import LangChainInstrumentor

    return LangChainInstrumentor()


def _litellm() -> Any:
    from otel_llm.instrumentation.litellm import LiteLLMInstrumentor

    return LiteLLMInstrumentor()


_INSTRUMENTORS: Final[dict[str, Callable[[], Any]]] = {"openai": _openai, "langchain": _langchain, "litellm": _litellm}
