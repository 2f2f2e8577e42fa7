"""How numbers are said, and that no text becomes HTML."""

from __future__ import annotations

from decimal import Decimal
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from otel_llm.ui.wording import json_tree, markdown, money, ms, percent, short


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (None, "–"), ("0", "$0"), ("0.000000001", "$0.000000001"), ("0.000037875", "$0.0000379"), ("0.004", "$0.004"),
        ("0.5", "$0.50"), ("0.999", "$0.999"), ("1", "$1.00"), ("1234.567", "$1,234.57"), ("-0.25", "-$0.25"),
    ],
)  # fmt: skip
def test_an_amount_is_told_however_small(amount: str | None, words: str) -> None:
    assert money(None if amount is None else Decimal(amount)) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.38, "0.38 ms"),
        (12.34, "12.3 ms"),
        (961.2, "961 ms"),
        (2450, "2.45 s"),
        (125_000, "2 min 5 s"),
        (float("nan"), "–"),
    ],
)
def test_a_time_has_the_unit_that_fits(value: float | None, words: str) -> None:
    assert ms(value) == words


def test_numbers_without_room() -> None:
    assert [short(one) for one in (None, 0, 999, 12_345, 1_234_567)] == ["–", "0", "999", "12.3k", "1.23M"]
    assert percent(0.0123) == "1.23 %"


class _Elements(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, [name for name, _ in attrs]))


HARMLESS = {
    ("p", ()), ("p", ("class",)), ("br", ()), ("ul", ()), ("li", ()), ("pre", ()), ("code", ()), ("strong", ()), ("em", ()),
    ("span", ("class",)), ("details", ()), ("details", ("open",)), ("summary", ()),
}  # fmt: skip

PIECES = [*"<>&\"'`*_#-[]()\n\t .:/=x", "script", "javascript:", "onerror", "```"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@given(TEXTS)
@example("[a](javascript:alert(1))")
@example("```html\n<script>alert(1)</script>")
@example("**<img src=x onerror=alert(1)>**")
@example('`"><script>`')
def test_markdown_makes_nothing_but_what_it_knows(text: str) -> None:
    for made in (markdown(text), json_tree({text: [text, {"x": text}]})):
        parser = _Elements()
        parser.feed(str(made))
        assert {(tag, tuple(names)) for tag, names in parser.seen} <= HARMLESS


def test_markdown() -> None:
    assert markdown("# Tyres\n\n- **winter**\n- `summer`\n\nOne *or* two\nlines\n\n```py\nx < 1\n```") == (
        '<p class="h">Tyres</p><ul><li><strong>winter</strong></li><li><code>summer</code></li></ul>'
        "<p>One <em>or</em> two<br>lines</p><pre><code>x &lt; 1</code></pre>"
    )
