"""The OpenTelemetry SDK as the `OTEL_*` variables ask for it, as far as it can be had.

What cannot be had, an exporter that is not installed, a port that is taken, a number that is none, is named in one line, and the
rest is set up without it. That holds under `opentelemetry-instrument` with our distro too: a configurator that fails would end
everything that comes after it.

Import it after `environment.make_importable()`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.environment_variables import OTEL_LOGS_EXPORTER, OTEL_METRICS_EXPORTER, OTEL_TRACES_EXPORTER
from opentelemetry.instrumentation.dependencies import DependencyConflictError
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_INSECURE,
    OTEL_EXPORTER_OTLP_LOGS_ENDPOINT,
    OTEL_EXPORTER_OTLP_LOGS_PROTOCOL,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_METRICS_PROTOCOL,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.trace import TracerProvider

from otel_llm.setup import environment, wiring
from otel_llm.support import faults, masking, otel_private

_OTHER_SIGNALS: Final = (
    (OTEL_METRICS_EXPORTER, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, OTEL_EXPORTER_OTLP_METRICS_PROTOCOL),
    (OTEL_LOGS_EXPORTER, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL),
)
_SIGNALS: Final = (
    ("v1/traces", OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL),
    *((f"v1/{name}", *signal) for name, signal in zip(("metrics", "logs"), _OTHER_SIGNALS, strict=True)),
)
_HTTP: Final = "http/protobuf"
_GRPC_PORT: Final = 4317
_HTTP_PORT: Final = 4318
_GRPC_EXPORTER: Final = "otlp_proto_grpc"
_STORE: Final = "duckdb"
_NONE: Final = (OTEL_METRICS_EXPORTER, OTEL_LOGS_EXPORTER)
_OF_SPANS: Final = (
    "OTEL_LLM_", "OTEL_INSTRUMENTATION_", "OTEL_SEMCONV_", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_LOG_LEVEL",
    "OTEL_BSP_", "OTEL_SPAN_", "OTEL_EVENT_", "OTEL_LINK_", "OTEL_ATTRIBUTE_", "OTEL_SDK_DISABLED", "OTEL_PROPAGATORS",
)  # fmt: skip
"""How those variables begin that say nothing of exporters, or that the tracer provider and its processor read themselves."""


class Distro(BaseDistro):  # type: ignore[misc]
    """The defaults for a laptop: write the store; export over OTLP once an endpoint is named."""

    def _configure(self, **kwargs: Any) -> None:
        try:
            set_defaults()
            _guard_configurators()
        except Exception as fault:
            faults.report("fill in what is not set", fault)

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Loads one instrumentor. One that fails is left out; it would end all that come after it."""
        try:
            super().load_instrumentor(entry_point, **kwargs)
        except (DependencyConflictError, ImportError):
            raise  # the launcher knows these, and goes on
        except Exception as fault:
            faults.report(f"load the instrumentor {entry_point.name}", fault)


def set_up_sdk() -> None:
    """Sets the SDK up from the environment, for where no configurator has."""
    set_defaults()
    _configure(_set_up_store_alone if _asks_for_the_store_alone() else otel_private.set_up_sdk)


def _asks_for_the_store_alone() -> bool:
    """Whether no variable asks for more than spans in the store: then metrics, logs and their configuration need no import."""
    asked = {name: value.strip() for name, value in os.environ.items() if name.startswith("OTEL_")}
    return asked.pop(OTEL_TRACES_EXPORTER, "") == _STORE and all(
        name.startswith(_OF_SPANS) or (name in _NONE and value.lower() in ("", "none")) for name, value in asked.items()
    )


def _set_up_store_alone() -> None:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from otel_llm.store.exporter import DuckDBSpanExporter

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(DuckDBSpanExporter()))
    trace.set_tracer_provider(provider)


def _guard_configurators() -> None:
    """Has the configurator that `opentelemetry-instrument` runs next do what it can, instead of failing."""
    base = otel_private.base_configurator()
    original = base.configure

    @functools.wraps(original)
    def configure(self: Any, **kwargs: Any) -> None:
        base.configure = original
        _configure(functools.partial(original, self, **kwargs))

    base.configure = configure


def _configure(configure: Callable[[], Any]) -> None:
    try:
        configure()
        return
    except Exception as error:
        names = environment.to_blame(error)
        kept = "calls are recorded in the store all the same" if has_store() else "no call is recorded in a store"
        environment.warn(names, error, f"{kept}, `otel-llm doctor` says what is exported")
    if not wiring.is_provider_set():
        # It failed before it had begun, so that it can be tried once more without what was wrong.
        try:
            with environment.hidden(names):
                set_defaults()
                if names:
                    configure()
        except Exception:
            pass  # said above
    if not wiring.is_provider_set():
        trace.set_tracer_provider(environment.with_what_works(TracerProvider))


@functools.cache
def has_store() -> bool:
    """Whether the account can be kept in this installation: a library may be missing, or the platform be another."""
    try:
        import_module("otel_llm.store.exporter")
    except Exception:
        return False
    return True


def set_defaults() -> None:
    """Fills in the `OTEL_*` variables that are not set. An endpoint that is none counts as not set."""
    environment.drop_endless_timeouts()
    env = os.environ
    said = {name for name, value in env.items() if value.strip()}
    store = [_STORE] if has_store() else []
    endpoint = _endpoint(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT)
    if not env.get(OTEL_TRACES_EXPORTER, "").strip():
        env[OTEL_TRACES_EXPORTER] = ",".join(["otlp", *store] if endpoint else store)
    elif not store:
        # The others that are named can do their work without it.
        named = env[OTEL_TRACES_EXPORTER].split(",")
        env[OTEL_TRACES_EXPORTER] = ",".join(name for name in named if name.strip() != _STORE)
    if endpoint and not (env.get(OTEL_EXPORTER_OTLP_PROTOCOL) or env.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)):
        env[OTEL_EXPORTER_OTLP_PROTOCOL] = _protocol(endpoint)
    if not endpoint and "otlp" in _named(OTEL_TRACES_EXPORTER) and not _protocol_of(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL):
        env[OTEL_EXPORTER_OTLP_PROTOCOL] = _HTTP  # the SDK's own default is gRPC
    # Metrics and logs only where their own endpoint is named: a tracing backend (Jaeger) takes neither, and the SDK would
    # complain of that every minute.
    for exporter, own_endpoint, own_protocol in _OTHER_SIGNALS:
        if endpoint := _endpoint(own_endpoint):
            env.setdefault(exporter, "otlp")
            if not (env.get(own_protocol) or env.get(OTEL_EXPORTER_OTLP_PROTOCOL)):
                env[own_protocol] = _protocol(endpoint)
    for signal in _SIGNALS:
        _do_without_grpc(*signal, said=said)


def _endpoint(*names: str) -> str | None:
    """The endpoint that the first of the variables names; None where none is set, or it is none."""
    for name in names:
        if value := os.environ.get(name, "").strip():
            if environment.endpoint_fault(value) is None:
                return value
            _say_malformed(name, value)
            return None
    return None


@functools.cache
def _say_malformed(name: str, value: str) -> None:
    environment.warn([name], None, f"it {environment.endpoint_fault(value)}, and nothing is sent there")


def _protocol(endpoint: str) -> str:
    # The SDK's default is gRPC whatever the port; 4317 is the registered port of that.
    return "grpc" if environment.port_of(endpoint) == _GRPC_PORT else _HTTP


# --- without gRPC ----------------------------------------------------------------------------------------------------
def _do_without_grpc(path: str, exporter: str, own_endpoint: str, own_protocol: str, *, said: set[str]) -> None:
    """Has a signal that is to go over gRPC sent over HTTP where the extra `grpc` is not installed, or not at all where nothing
    says at which port. `said` are the variables that the user has set."""
    names = _named(exporter)
    by_protocol = "otlp" in names and _protocol_of(own_protocol) == "grpc"
    if not (by_protocol or _GRPC_EXPORTER in names) or has_grpc():
        return
    endpoint = _over_http(_endpoint(own_endpoint, OTEL_EXPORTER_OTLP_ENDPOINT) or f"http://localhost:{_GRPC_PORT}")
    names = list(dict.fromkeys("otlp" if name == _GRPC_EXPORTER else name for name in names))
    what = path.rpartition("/")[2]
    if endpoint is None:
        names.remove("otlp")
        instead = f"no {what} are sent"
    else:
        os.environ[own_endpoint], os.environ[own_protocol] = f"{endpoint}/{path}", _HTTP
        instead = f"{what} are sent over HTTP, to {masking.text(endpoint)}"
    asked = [own_protocol, OTEL_EXPORTER_OTLP_PROTOCOL] if by_protocol else [exporter]
    asked = [name for name in asked if name in said] or [
        name for name in (own_endpoint, OTEL_EXPORTER_OTLP_ENDPOINT) if name in said
    ]
    kept = "; the store has every call" if has_store() else ""
    environment.warn(asked[:1], None, f"gRPC needs pip install 'otel-llm[grpc]': {instead}{kept}")
    os.environ[exporter] = ",".join(names)


@functools.cache
def has_grpc() -> bool:
    """Whether OpenTelemetry's exporter for gRPC is installed."""
    return find_spec("grpc") is not None and bool(
        entry_points(group="opentelemetry_traces_exporter", name=_GRPC_EXPORTER)
    )


def _over_http(endpoint: str) -> str | None:
    """Where the receiver behind an endpoint of gRPC takes HTTP: at the port beside it, or at that of the web. None elsewhere."""
    scheme, _, rest = endpoint.rpartition("://")
    scheme = scheme or ("http" if os.environ.get(OTEL_EXPORTER_OTLP_INSECURE, "").lower() == "true" else "https")
    parts = urlsplit(f"{scheme}://{rest}")
    if parts.port not in (_GRPC_PORT, None, 80, 443):
        return None
    netloc = re.sub(rf":{_GRPC_PORT}$", f":{_HTTP_PORT}", parts.netloc)
    return parts._replace(netloc=netloc, path="", query="", fragment="").geturl()


def _named(exporter: str) -> list[str]:
    return [name for each in os.environ.get(exporter, "").split(",") if (name := each.strip())]


def _protocol_of(own: str) -> str:
    """The protocol that a signal is to be sent by; the empty string where nothing says it."""
    return (os.environ.get(own) or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL) or "").strip()
