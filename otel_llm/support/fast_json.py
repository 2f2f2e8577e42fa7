"""JSON where an app's thread reads and writes it: orjson's, or the standard library's where orjson is missing or broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

loads: Callable[[str | bytes | bytearray], Any]
"""Raises ValueError for what is no JSON."""
dumps: Callable[[Any], bytes]
"""Raises TypeError or ValueError for what JSON has no word for."""

try:
    import orjson

    loads, dumps = orjson.loads, orjson.dumps
except Exception:
    import json

    loads = json.loads

    def _dumps(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    dumps = _dumps
