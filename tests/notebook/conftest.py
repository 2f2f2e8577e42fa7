"""What the tests of the command line have, for the same stores."""

from __future__ import annotations

import pytest

from otel_llm.settings import reload
from tests.cli.conftest import _own_settings, engine, fill, fill_spans

__all__ = ["_own_settings", "engine", "fill", "fill_spans"]


@pytest.fixture(autouse=True)
def _of_this_engine(_own_settings: None, engine: str | None) -> None:
    """The place that the environment names is read anew."""
    reload()
