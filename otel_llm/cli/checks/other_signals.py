"""The metrics of model calls, and the events that content capture can write: both go nowhere unless one asks for it."""

from __future__ import annotations

import os

from otel_llm.cli.checks import Section, export_targets
from otel_llm.cli.checks.export_targets import LOGS, METRICS, Signal
from otel_llm.settings import settings

_NAMES = "OTEL_LLM_METRICS"


def metrics() -> Section:
    """Under which names metrics are recorded, and where they go."""
    section = Section("metrics")
    names = settings().metrics
    is_chosen = os.environ.get(_NAMES, "").strip().lower() == names
    section.facts["names"] = f"{names} ({_NAMES if is_chosen else 'default'})"
    exporters = exporters_of(METRICS, section)
    section.facts["exporter"] = ", ".join(exporters) or f"none ({METRICS.exporter} is not set)"
    if names == "none" and exporters:
        section.remark(
            f"{_NAMES}=none: {METRICS.exporter} is set, and gets no metrics of model calls",
            f"unset {_NAMES}, or set it to current",
        )
    return section


def exporters_of(signal: Signal, section: Section) -> list[str]:
    """Where a signal goes in a program started under `opentelemetry-instrument`; none where it goes nowhere.

    What is wrong with its exporters is added to `section`.
    """
    if file := os.environ.get(export_targets.CONFIG_FILE):
        return [f"what {file} says"]
    distro = export_targets.chosen_distro()
    variables = export_targets.with_defaults(distro)
    # Other distros export over OTLP unless told otherwise; ours does where an endpoint is named.
    fallback = [] if distro in (export_targets.OURS, None) else ["otlp"]
    exporters = export_targets.named(variables, signal) or fallback
    export_targets.check_names(section, exporters, signal)
    if any(name.startswith("otlp") for name in exporters) and signal.exporter in variables:
        where = export_targets.check_otlp(section, variables, signal)
        exporters = [f"{name} ({where})" if name.startswith("otlp") else name for name in exporters]
    return [name for name in exporters if name != "none"]


def events(section: Section) -> str:
    """Where the events of content capture go, in words."""
    exporters = exporters_of(LOGS, section)
    if not exporters:
        section.remark(
            "content is captured in events, and they go nowhere, unless the program sets a LoggerProvider",
            f"{LOGS.exporter}=otlp; or SPAN_ONLY, for Jaeger and the store",
        )
    return ", ".join(exporters) or "nowhere"
