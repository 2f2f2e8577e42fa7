"""The price data, and the override table that `OTEL_LLM_PRICES` names."""

from __future__ import annotations

from importlib import metadata

from otel_llm.cli.checks import Section
from otel_llm.logged import warnings_of
from otel_llm.settings import settings

_LIBRARY = "genai-prices"


def prices() -> Section:
    """Which prices calls are given, and whether the override table can be read."""
    section = Section("prices")
    try:
        section.facts["library"] = f"{_LIBRARY} {metadata.version(_LIBRARY)}"
    except metadata.PackageNotFoundError:
        section.problem("there is no price data, so cost_usd stays empty", f"pip install {_LIBRARY}")
    if (table := settings().prices) is not None:
        from otel_llm.store.price import PriceBook

        section.facts["override"] = str(table)
        with warnings_of("otel_llm") as messages:
            PriceBook(overrides=table).rows([])
        for message in messages:
            section.problem(message, f"correct {table}, which OTEL_LLM_PRICES names")
    return section
