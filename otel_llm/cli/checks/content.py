"""Content capture: whether what was said is recorded, where it goes, and what is taken out of it before."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from otel_llm.cli.checks import Section, export_targets, other_signals
from otel_llm.settings import Capture, settings
from otel_llm.support.captured_warnings import warnings_of

_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_REDACT = "OTEL_LLM_REDACT"
_BUILTIN = "OTEL_LLM_REDACT_BUILTIN"


def content() -> Section:
    """What is captured, and whether the redactor can be found. It is imported, as it would be by a program."""
    section = Section("content")
    chosen = settings()
    is_chosen = os.environ.get(_CAPTURE, "").strip().upper() == chosen.capture.value
    section.facts["captured"] = f"{chosen.capture.value} ({_CAPTURE if is_chosen else 'default'})"
    if chosen.capture.in_event:
        section.facts["events"] = other_signals.events(section)
    patterns = "built-in patterns" if chosen.redact_builtin else f"no built-in patterns ({_BUILTIN}=off)"
    section.facts["redacted by"] = f"{patterns}, {_function(section, chosen.redact)}"
    if chosen.capture is not Capture.NO_CONTENT and any(
        os.environ.get(name) for name in export_targets.TRACES.endpoints
    ):
        section.facts["over OTLP"] = "in requests below 4 MiB, but for exporters that the program sets up itself"
    if chosen.capture is not Capture.NO_CONTENT and not chosen.redact_builtin:
        section.remark(
            f"{_BUILTIN}=off: API keys, e-mail addresses and card numbers in what is said are recorded as they are",
            f"unset {_BUILTIN}",
        )
    return section


def _function(section: Section, name: str | None) -> str:
    """What stands for the redactor of the app in the report."""
    if name is None:
        return f"no function ({_REDACT} is not set)"
    if _is_found(section, name):
        return f"{name} ({_REDACT})"
    return f"{name}, which cannot be used ({_REDACT})"


def _is_found(section: Section, name: str) -> bool:
    from otel_llm.content import redaction

    path = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))  # as `opentelemetry-instrument` has it
    try:
        # What the app's module prints when it is imported is not ours to print.
        with warnings_of("otel_llm") as messages, contextlib.redirect_stdout(io.StringIO()):
            redaction.current()
    finally:
        sys.path[:] = path
    for message in messages:
        section.problem(
            message.removesuffix(". Give module:function, importable."),
            "give module:function, and run doctor in the folder that the program starts in",
        )
    return not messages
