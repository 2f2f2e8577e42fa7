"""The `otel-llm` command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `otel-llm` with `arguments`, those of the process by default. Returns the exit code."""
    from otel_llm.cli.app import run

    return run(arguments)
