"""Where spans go besides the store, as the environment has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from urllib.parse import urlsplit

from otel_llm.cli.checks import Section
from otel_llm.setup import environment
from otel_llm.support import masking
from otel_llm.support.captured_warnings import warnings_of

OURS = "otel_llm"
"""The name of our distro."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One kind of telemetry: its name in OpenTelemetry's variables, and what becomes of it where nothing answers."""

    name: str
    elsewhere: str

    @property
    def exporter(self) -> str:
        """The variable that names its exporters."""
        return f"OTEL_{self.name}_EXPORTER"

    @property
    def endpoints(self) -> tuple[str, str]:
        """The variables that say where OTLP goes: its own first."""
        return f"OTEL_EXPORTER_OTLP_{self.name}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"

    @property
    def protocols(self) -> tuple[str, str]:
        """The variables that say how OTLP goes: its own first."""
        return f"OTEL_EXPORTER_OTLP_{self.name}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"


TRACES = Signal("TRACES", "spans are in the store, and nowhere else")
METRICS = Signal("METRICS", "metrics are lost")
LOGS = Signal("LOGS", "what is captured in events is lost")

CONFIG_FILE = "OTEL_CONFIG_FILE"
_PORTS = {"grpc": 4317, "http/protobuf": 4318}
_CONNECT_SECONDS = 1.0


def export() -> Section:
    """The exporters of a program started under `opentelemetry-instrument`, and whether they can do their work."""
    distro = chosen_distro()
    section = Section("export", {"distro": distro or "none"})
    check_endpoints(section)
    if file := os.environ.get(CONFIG_FILE):
        section.facts["configuration file"] = file
        section.remark(f"{CONFIG_FILE} is set, so exporters and sampler come from {file}", "look there, not here")
        return section

    variables = with_defaults(distro)
    if "grpc" == _first(os.environ, TRACES.protocols) != _first(variables, TRACES.protocols):
        section.problem(
            "OTLP is to go over gRPC, which is not installed: spans go over HTTP, if anywhere",
            "pip install 'otel-llm[grpc]', or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        )
    is_chosen = bool(os.environ.get(TRACES.exporter))
    exporters = named(variables, TRACES) or ["otlp"]
    section.facts["traces exporter"] = f"{', '.join(exporters)} ({TRACES.exporter if is_chosen else 'default'})"
    section.facts["sampler"] = variables.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on (default)"
    check_names(section, exporters, TRACES)
    if "none" in exporters:
        section.problem(f"{TRACES.exporter}=none: nothing is recorded", f"unset {TRACES.exporter}, or set it to duckdb")
    if not is_chosen and distro not in (OURS, None) and not _first(variables, TRACES.endpoints):
        section.remark(
            f"the distro {distro!r} exports over OTLP though no endpoint is set: programs end slowly",
            f"OTEL_PYTHON_DISTRO={OURS}, or {TRACES.exporter}=duckdb",
        )
    elif any(name.startswith("otlp") for name in exporters):
        section.facts["otlp"] = check_otlp(section, variables, TRACES)
    return section


def chosen_distro() -> str | None:
    """The distro that `opentelemetry-instrument` takes: the one asked for, else the first that it finds."""
    wanted = os.environ.get("OTEL_PYTHON_DISTRO")
    return next(
        (entry.name for entry in metadata.entry_points(group="opentelemetry_distro") if wanted in (None, entry.name)),
        None,
    )


def with_defaults(distro: str | None) -> Mapping[str, str]:
    """The environment as a program sees it once our distro has filled it in; this process's own stays as it is."""
    before = dict(os.environ)
    if distro not in (OURS, None):  # without a distro, the defaults are ours too
        return before
    environment.make_importable()
    from otel_llm.setup.sdk import set_defaults

    try:
        with warnings_of("otel_llm"):  # `check_endpoints` has them
            set_defaults()
        return dict(os.environ)
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _is_set_up_by_others() -> bool:
    """Whether a configurator comes before us: `opentelemetry-instrument` ends with its failure, we go on without an exporter."""
    wanted = os.environ.get("OTEL_PYTHON_CONFIGURATOR")
    return any(wanted in (None, entry.name) for entry in metadata.entry_points(group="opentelemetry_configurator"))


def named(variables: Mapping[str, str], signal: Signal) -> list[str]:
    """The exporters that the variables name for a signal."""
    return [name.strip() for name in variables.get(signal.exporter, "").split(",") if name.strip()]


def check_names(section: Section, exporters: Iterable[str], signal: Signal) -> None:
    """Whether something that is installed provides each of the exporters."""
    group = f"opentelemetry_{signal.name.lower()}_exporter"
    known = {entry.name for entry in metadata.entry_points(group=group)} | {"none"}
    if any(name.startswith("otlp_") for name in known):
        known.add("otlp")  # which stands for one of those
    lost = (
        "nothing is exported, instrumented or recorded"
        if _is_set_up_by_others()
        else "nothing is exported; calls are in the store all the same"
    )
    for name in exporters:
        if name not in known:
            section.problem(
                f"{signal.exporter} names {name!r}, which nothing installed provides: {lost}",
                f"take it out, or install what provides it; there are {', '.join(sorted(known))}",
            )


def check_endpoints(section: Section) -> None:
    """Whether every endpoint that is set can be one."""
    for name in sorted({name for signal in (TRACES, METRICS, LOGS) for name in signal.endpoints}):
        value = os.environ.get(name, "").strip()
        if value and (fault := environment.endpoint_fault(value)) is not None:
            section.problem(
                f"{name}={masking.setting(name, value)} {fault}: nothing is exported there, and where another distro than "
                f"{OURS!r} is chosen OpenTelemetry may not start at all",
                f"correct {name}",
            )


def check_otlp(section: Section, variables: Mapping[str, str], signal: Signal) -> str:
    """Whether something answers where OTLP goes; returns how and where that is."""
    endpoints, protocols = signal.endpoints, signal.protocols
    protocol = _first(variables, protocols) or "grpc"
    endpoint = _first(variables, endpoints) or f"http://localhost:{_PORTS.get(protocol, 4317)}"
    if environment.endpoint_fault(endpoint) is not None:
        return f"{protocol} to nowhere"  # `check_endpoints` says why
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else _PORTS.get(protocol, 4317))
    where = f"{protocol} to {host}:{port}"
    if protocol not in _PORTS:
        section.problem(f"{protocol!r} is not an OTLP protocol", f"set {protocols[1]} to {' or '.join(_PORTS)}")
        return where
    for other, usual in _PORTS.items():
        if port == usual and other != protocol:
            section.problem(
                f"{protocol} is spoken to port {port}, which is usually that of {other}",
                f"{protocols[1]}={other}, or port {_PORTS[protocol]}",
            )
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        section.problem(
            f"nothing answers at {host}:{port} ({error.strerror or error}): {signal.elsewhere}",
            "start the Collector or Jaeger there, or correct the endpoint",
        )
    return where


def _first(variables: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((value for name in names if (value := variables.get(name, "").strip())), None)
