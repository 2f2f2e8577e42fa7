"""The client that is installed: what it stands on, and what it cannot do yet."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import _base_client

http: Any = getattr(_base_client, "httpx2", None) or _base_client.httpx  # type: ignore[attr-defined]
"""The HTTP library: `httpx2`, or `httpx` before openai 3."""

_CHAT = openai.OpenAI(api_key="none").chat.completions
MISSING = {
    name: f"openai {openai.__version__} has no {what}"
    for name, what, is_there in (
        ("responses", "Responses API", hasattr(openai.OpenAI(api_key="none"), "responses")),
        ("chat parse", "chat.completions.parse", hasattr(_CHAT, "parse")),
        ("chat .stream()", "chat.completions.stream", hasattr(_CHAT, "stream")),
    )
    if not is_there
}
"""What is not there, by the word for it in the names of test cases, and why such a case is skipped."""


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where the client cannot do this."""
    return pytest.mark.skipif(name in MISSING, reason=MISSING.get(name, ""))
