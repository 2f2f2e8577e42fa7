"""What is installed, and what `opentelemetry-instrument` would do with it."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from packaging.requirements import Requirement

from otel_llm.cli.checks import Section
from otel_llm.cli.errors import one_line
from otel_llm.settings import reload, settings
from otel_llm.support import greenlets, masking
from otel_llm.support.captured_warnings import warnings_of
from otel_llm.version import __version__

DISTRIBUTION = "otel-llm"
_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_STREAM_USAGE = "OTEL_LLM_STREAM_USAGE"

_PACKAGES = (
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation",
    "opentelemetry-distro",
    "opentelemetry-exporter-otlp-proto-http",
    "duckdb",
    "genai-prices",
    "openai",
    "langchain-core",
    "langchain",
    "langchain-openai",
    "langgraph",
    "litellm",
)
_CLIENTS = ("openai", "langchain", "litellm")
"""The client libraries that we instrument, as they stand in the names of others who do so too."""


def versions() -> Section:
    """What is installed, whether it is what otel-llm needs, and whether the settings can be read."""
    section = Section("versions", {"otel-llm": __version__, "python": platform.python_version()})
    section.facts |= {package: _version(package) for package in _PACKAGES}
    try:
        needed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        section.problem(
            "otel-llm is imported from a folder, not installed, so opentelemetry-instrument does not know it",
            "pip install otel-llm",
        )
        return section
    for requirement in map(Requirement, needed):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            section.problem(
                f"otel-llm needs {requirement}, and {found or 'none'} is installed", f"pip install '{requirement}'"
            )
    return section


def environment() -> Section:
    """The variables that are set, and those that could not be read."""
    section = Section("environment")
    with warnings_of("otel_llm") as messages:
        values = reload()
    names = sorted(name for name in os.environ if name.startswith("OTEL_"))
    section.facts |= {name: masking.setting(name, os.environ[name]) for name in names}
    for message in messages:
        section.problem(message, "correct the variable, or unset it")
    if values.sdk_disabled:
        section.problem("OTEL_SDK_DISABLED=true: nothing is recorded", "unset OTEL_SDK_DISABLED")
    if _version("gevent") is not None:
        section.remark(f"gevent is installed: {greenlets.FAULT}", greenlets.REMEDY)
    return section


def instrumentation() -> Section:
    """The clients that are patched once a program starts under `opentelemetry-instrument`, and who else patches them."""
    section = Section("instrumentation")
    disabled = {name.strip() for name in os.environ.get(_DISABLED, "").split(",")} - {""}
    installed = active = False
    others = []
    for entry in metadata.entry_points(group="opentelemetry_instrumentor"):
        off = bool(disabled & {"*", entry.name})
        if entry.value.startswith("otel_llm."):
            is_there = _check_ours(section, entry, off)
            installed, active = installed or is_there, active or (is_there and not off)
        elif not off and any(client in f"{entry.name} {entry.value}" for client in _CLIENTS):
            section.facts[entry.name] = f"{_owner(entry)}, not ours"
            others.append(entry)
    for entry in others:
        if active:
            section.remark(
                f"{_owner(entry)} instruments {entry.name} as well: each call is counted once, as we record it, and has two "
                "spans in Jaeger or any OTLP backend",
                f"{_DISABLED}={','.join(sorted({*disabled, *(other.name for other in others)}))} for one span a call",
            )
        elif installed:
            section.remark(
                f"ours are turned off, so calls are counted as {_owner(entry)} reports them: without module, user and attempts, "
                "and only as far as spans are sampled and exported",
                f"take ours out of {_DISABLED}",
            )
    if not installed:
        section.problem("there is no client to instrument", "pip install 'otel-llm[openai]' or 'otel-llm[langchain]'")
    is_set = os.environ.get(_STREAM_USAGE, "").strip().lower() == settings().stream_usage
    section.facts["stream usage"] = f"{settings().stream_usage} ({_STREAM_USAGE}{'' if is_set else ' is not set'})"
    return section


def _check_ours(section: Section, entry: metadata.EntryPoint, off: bool) -> bool:
    """What becomes of one of our instrumentors when a program starts; returns whether its client is installed."""
    from opentelemetry.instrumentation.dependencies import get_dependency_conflicts

    try:
        instrumentor = entry.load()()
        needs = instrumentor.instrumentation_dependencies()
        conflict = get_dependency_conflicts(needs)
    except Exception as error:
        section.facts[entry.name] = "cannot be loaded"
        section.problem(f"{entry.name} cannot be loaded: {one_line(error)}", "pip install --force-reinstall otel-llm")
        return True
    if conflict is not None and not conflict.found:
        section.facts[entry.name] = f"{', '.join(needs)} is not installed"
        return False
    if conflict is not None:
        section.facts[entry.name] = f"{conflict.found} is not {conflict.required}"
        section.problem(
            f"{entry.name} needs {conflict.required}, and {conflict.found} is installed: its calls are not recorded",
            f"pip install '{conflict.required}'",
        )
        return True
    client = ", ".join(f"{name} {_version(name)}" for name in (Requirement(need).name for need in needs))
    if off:
        section.facts[entry.name] = f"{client} is not patched"
        section.remark(f"{_DISABLED} turns {entry.name} off", f"take it out of {_DISABLED}")
    else:
        is_now = instrumentor.is_instrumented_by_opentelemetry
        section.facts[entry.name] = f"{client} {'is' if is_now else 'would be'} patched"
    return True


def _owner(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
