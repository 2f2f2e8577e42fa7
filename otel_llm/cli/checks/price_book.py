"""The price data, and the override table that `OTEL_LLM_PRICES` names."""

from __future__ import annotations

from importlib import metadata

from otel_llm.cli.checks import Section
from otel_llm.settings import settings
from otel_llm.support.captured_warnings import warnings_of

_LIBRARY = "genai-prices"


def prices() -> Section:
    """Which prices calls are given, and whether the override table can be read."""
    section = Section("prices")
    try:
        section.facts["library"] = f"{_LIBRARY} {metadata.version(_LIBRARY)}"
    except metadata.PackageNotFoundError:
        section.problem("there is no price data, so cost_usd stays empty", f"pip install {_LIBRARY}")
    if imported := _imported():
        section.facts["lists"] = imported
    if (table := settings().prices) is not None:
        from otel_llm.prices.book import PriceBook

        section.facts["override"] = str(table)
        with warnings_of("otel_llm") as messages:
            PriceBook(overrides=table).rows([])
        for message in messages:
            section.problem(message, f"correct {table}, which OTEL_LLM_PRICES names")
    return section


def _imported() -> str:
    """The price lists beside the store, and the day of each."""
    from otel_llm.prices.lists import PriceLists
    from otel_llm.store.paths import StorePaths

    store = settings().store
    return "" if store is None else ", ".join(PriceLists(StorePaths.of(store).prices).names())
