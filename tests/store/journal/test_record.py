from __future__ import annotations

import json
import math
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_llm.store.journal import record

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner) | st.tuples(inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(st.characters(), min_size=1), json_values))
def test_any_attributes_make_one_intact_line(attributes: dict[str, object]) -> None:
    line = record.encode({"k": "e", "a": attributes})
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert record.is_intact(line[:-1])
    assert record.kind(line[:-1]) == b"e"
    assert set(json.loads(line)) == {"c", "k", "a"}


def test_what_json_cannot_say_is_kept_as_text() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    attributes = {"surrogate": "a\ud800b", "big": 2**70, "nan": math.nan, "bytes": b"\x00\xff", "odd": Odd(), 3: "key"}
    read = record.decode(record.encode({"k": "e", "a": attributes})[:-1])["a"]
    assert read == {"surrogate": "a?b", "big": str(2**70), "nan": None, "bytes": "AP8=", "odd": "<Odd>", "3": "key"}


def test_a_circle_does_not_hang() -> None:
    circle: dict[str, object] = {}
    circle["self"] = circle
    assert record.is_intact(record.encode({"k": "e", "a": circle})[:-1])


def test_the_checksum_covers_what_follows_it() -> None:
    line = record.encode({"k": "s", "n": "x"})[:-1]
    assert line[:6] == b'{"c":"' and int(line[6:14], 16) == zlib.crc32(line[16:])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_byte_is_noticed(position: int, flip: int) -> None:
    line = bytearray(record.encode({"k": "e", "a": {"gen_ai.operation.name": "chat"}, "n": "name"})[:-1])
    line[position % len(line)] ^= flip
    # Upper-case digits of the checksum, and a comma's neighbours, may still say the same: then the record is the same too.
    if record.is_intact(bytes(line)):
        assert (
            bytes(line).lower() == record.encode({"k": "e", "a": {"gen_ai.operation.name": "chat"}, "n": "name"})[:-1]
        )
