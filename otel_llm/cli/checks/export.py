"""Where spans go besides the store, as the environment has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from importlib import metadata
from urllib.parse import urlsplit

from otel_llm.cli.checks import Section

OURS = "otel_llm"
"""The name of our distro."""

_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CONFIG_FILE = "OTEL_CONFIG_FILE"
_PORTS = {"grpc": 4317, "http/protobuf": 4318}
_CONNECT_SECONDS = 1.0


def export() -> Section:
    """The exporters of a program started under `opentelemetry-instrument`, and whether they can do their work."""
    distro = _distro()
    section = Section("export", {"distro": distro or "none"})
    if file := os.environ.get(_CONFIG_FILE):
        section.facts["configuration file"] = file
        section.remark(f"{_CONFIG_FILE} is set, so exporters and sampler come from {file}", "look there, not here")
        return section

    variables = _with_defaults(distro)
    exporters = [name.strip() for name in variables.get(_EXPORTER, "otlp").split(",") if name.strip()]
    is_chosen = bool(os.environ.get(_EXPORTER))
    section.facts["traces exporter"] = f"{', '.join(exporters)} ({_EXPORTER if is_chosen else 'default'})"
    section.facts["sampler"] = variables.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on (default)"
    _check_names(section, exporters)
    if not is_chosen and distro not in (OURS, None) and not _first(variables, _ENDPOINTS):
        section.remark(
            f"the distro {distro!r} exports over OTLP though no endpoint is set: programs end slowly",
            f"OTEL_PYTHON_DISTRO={OURS}, or {_EXPORTER}=duckdb",
        )
    elif any(name.startswith("otlp") for name in exporters):
        _check_otlp(section, variables)
    return section


def _distro() -> str | None:
    """The distro that `opentelemetry-instrument` takes: the one asked for, else the first that it finds."""
    wanted = os.environ.get("OTEL_PYTHON_DISTRO")
    return next(
        (entry.name for entry in metadata.entry_points(group="opentelemetry_distro") if wanted in (None, entry.name)),
        None,
    )


def _with_defaults(distro: str | None) -> Mapping[str, str]:
    """The environment as a program sees it once our distro has filled it in; this process's own stays as it is."""
    before = dict(os.environ)
    if distro not in (OURS, None):  # without a distro, the defaults are ours too
        return before
    from otel_llm.autoload import set_defaults

    try:
        set_defaults()
        return dict(os.environ)
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _check_names(section: Section, exporters: list[str]) -> None:
    known = {entry.name for entry in metadata.entry_points(group="opentelemetry_traces_exporter")} | {"none"}
    for name in exporters:
        if name not in known:
            section.problem(
                f"{_EXPORTER} names {name!r}, which nothing installed provides: OpenTelemetry stops there and instruments "
                "nothing",
                f"take it out, or install what provides it; there are {', '.join(sorted(known))}",
            )
    if "none" in exporters:
        section.problem(f"{_EXPORTER}=none: nothing is recorded", f"unset {_EXPORTER}, or set it to duckdb")


def _check_otlp(section: Section, variables: Mapping[str, str]) -> None:
    protocol = _first(variables, _PROTOCOLS) or "grpc"
    endpoint = _first(variables, _ENDPOINTS) or f"http://localhost:{_PORTS.get(protocol, 4317)}"
    parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else _PORTS.get(protocol, 4317))
    except ValueError:
        host, port = None, 0
    section.facts["otlp"] = f"{protocol} to {host}:{port}"
    if host is None:
        section.problem("the OTLP endpoint is not a URL", f"set {_ENDPOINTS[1]} to one such as http://localhost:4318")
        return
    if protocol not in _PORTS:
        section.problem(f"{protocol!r} is not an OTLP protocol", f"set {_PROTOCOLS[1]} to {' or '.join(_PORTS)}")
        return
    for other, usual in _PORTS.items():
        if port == usual and other != protocol:
            section.problem(
                f"{protocol} is spoken to port {port}, which is usually that of {other}",
                f"{_PROTOCOLS[1]}={other}, or port {_PORTS[protocol]}",
            )
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        section.problem(
            f"nothing answers at {host}:{port} ({error.strerror or error}): spans are in the store, and nowhere else",
            "start the Collector or Jaeger there, or correct the endpoint",
        )


def _first(variables: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((value for name in names if (value := variables.get(name, "").strip())), None)
