"""Whatever an app hands to a model, a tool or a chain is copied for the record, or named; nothing of it is run or drained."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import threading
import types
from collections import OrderedDict, UserDict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import orjson
import pytest
from pydantic import BaseModel, ConfigDict

from otel_llm.content.openai import definitions
from otel_llm.content.parts import parts_of, plain
from otel_llm.conventions.token_usage import fields
from otel_llm.conventions.usage_reading import read_usage
from otel_llm.instrumentation.openai._request import ENDPOINTS, attributes, server_at
from otel_llm.support import faults


class Schema(BaseModel):
    """What is wanted."""

    model_config = ConfigDict(extra="allow")
    city: str = "Oslo"


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Data:
    city: str = "Oslo"


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    city: str = "Oslo"


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(cls) -> str:
        raise RuntimeError


class Odd(metaclass=Meta):
    pass


def _never(*args: Any) -> Any:
    raise AssertionError("this is the app's to call")


class Raises:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    __iter__ = __len__ = __bool__ = __eq__ = __hash__ = __str__ = __repr__ = _never  # type: ignore[assignment]


class Answers:
    """Has every attribute that one asks it for."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any) -> Any:
        return self

    def __str__(self) -> str:
        return "answers"


class Lies:
    __class__ = property(lambda self: dict)  # type: ignore[assignment]

    def __str__(self) -> str:
        return "lies"


class LiesBadly:
    __class__ = property(_never)  # type: ignore[assignment]

    def __str__(self) -> str:
        return "lies"


class NoFields:
    __dict__ = property(_never)  # type: ignore[assignment]
    __slots__ = ()

    def __str__(self) -> str:
        return "no fields"


class Waits:
    """Of whose properties each would wait for ever."""

    def __init__(self) -> None:
        self.city = "Oslo"

    @property
    def slow(self) -> Any:
        threading.Event().wait()


class Endless(list[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()

    def __len__(self) -> int:
        return _never()  # type: ignore[no-any-return]


class EndlessDict(dict[str, int]):
    def items(self) -> Any:
        return ((str(n), n) for n in itertools.count())

    __iter__ = keys = _never  # type: ignore[assignment]


class Array:
    """As numpy and pandas have it: compared item by item, true or false for nobody."""

    __slots__ = ()

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "[1 2 3]"


class Text(str):
    __len__ = __bool__ = __contains__ = __getitem__ = __str__ = isascii = encode = _never  # type: ignore[assignment]


VALUES: list[tuple[Any, Any]] = [
    (Schema, "<class Schema>"),
    (Schema(), {"city": "Oslo"}),
    (Schema(more=1), {"city": "Oslo", "more": 1}),
    (Schema.model_construct(), {"city": "Oslo"}),
    (dict, "<class dict>"),
    (Odd, "<class Odd>"),
    (Color.RED, "red"),
    (Color, "<class Color>"),
    (Level.HIGH, 3),
    (Word.YES, "yes"),
    (Data(), {"city": "Oslo"}),
    (Slotted(), {"city": "Oslo"}),
    (Raises(), "<Raises>"),
    (Answers(), "answers"),
    (Lies(), "lies"),
    (LiesBadly(), "lies"),
    (NoFields(), "no fields"),
    (Waits(), {"city": "Oslo"}),
    (Endless([1, 2]), [1, 2]),
    (EndlessDict(a=1), {"a": 1}),
    (OrderedDict(a=1), {"a": 1}),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (Array(), "[1 2 3]"),
    (Text("a text"), "a text"),
    (types.SimpleNamespace(city="Oslo"), {"city": "Oslo"}),
    ({Schema: 1}, {str(Schema): 1}),
    ([Raises(), {"a": Odd}], ["<Raises>", {"a": "<class Odd>"}]),
    (memoryview(b"abcd").cast("H"), {"type": "blob", "size": 4}),
]


@pytest.mark.parametrize("number", range(len(VALUES)))  # pytest itself looks at what it is given
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"in": value}])
def test_a_value_like_others(number: int, wrap: Any) -> None:
    value, expected = VALUES[number]
    told = plain(wrap(value), 1000)
    assert told == wrap(expected)
    orjson.dumps(told)


@pytest.mark.parametrize(
    "value", [Schema.__init__, vars(Slotted)["city"], types, object(), mock.MagicMock(), threading.Lock(), len, range(3),
              Schema.model_json_schema]
)  # fmt: skip
def test_what_has_nothing_to_show_is_named(value: Any) -> None:
    told = plain([value], 1000)
    orjson.dumps(told)
    assert len(str(told)) < 1200


def test_generators_are_the_apps() -> None:
    given = (n for n in (1, 2))
    iterators = [iter([1, 2]), map(str, [1, 2]), zip([1], [2], strict=True), given]
    plain(iterators, 1000)
    assert [next(one) for one in iterators] == [1, "1", (1, 2), 1]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_where_fields_are_looked_for(number: int) -> None:
    value, _ = VALUES[number]
    assert isinstance(fields(value), dict | types.MappingProxyType)
    for reader in (read_usage, parts_of):
        reader(value)


@pytest.mark.parametrize("number", range(len(VALUES)))
@pytest.mark.parametrize("name", ["stop", "n", "text", "reasoning", "response_format", "conversation", "temperature"])
def test_the_parameters_of_a_request(number: int, name: str) -> None:
    """Nothing is asked whether it is true, and nothing is made a text of: each may raise, and none is what is looked for."""
    value, _ = VALUES[number]
    attributes(ENDPOINTS["/chat/completions"], server_at("local", 80), {name: value}, False)


def test_fields_of_mappings_are_their_items() -> None:
    class Noted(dict[str, int]):
        pass

    noted = Noted(a=1)
    noted.note = "of its own"  # type: ignore[attr-defined]
    assert fields(noted) == {"a": 1}
    assert fields(UserDict(a=1))
    assert fields(Schema) == {}
    assert fields(Schema(more=2)) == {"city": "Oslo", "more": 2}


def test_tools_given_as_classes_and_functions() -> None:
    def look_up(city: str) -> str:
        return city

    given = [Schema, look_up, {"type": "function", "function": {"name": "f", "parameters": Schema}}, Odd, Raises()]
    before = faults.counts.copy()
    assert [one["name"] for one in definitions(given)] == ["Schema", "look_up", "f", "Odd", "function"]
    assert faults.counts == before
