"""The public names that are imported when they are first asked for."""

from __future__ import annotations

import pytest

import otel_llm
import otel_llm.lifecycle
import otel_llm.routing


@pytest.mark.parametrize("module", [otel_llm, otel_llm.lifecycle, otel_llm.routing], ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_no_other(module):
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nothing'"):
        _ = module.nothing
