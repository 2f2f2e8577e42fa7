"""Numbers, times and texts as a page shows them. Everything here returns plain text, but for `markdown` and `json_tree`."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from markupsafe import Markup, escape

UNKNOWN: Final = "–"
"""What nobody has reported. (Never 0.)"""


def money(value: Any) -> str:
    """An amount in USD, with as many places as it takes to have three digits of it: no `<$0.01`."""
    if value is None:
        return UNKNOWN
    amount = Decimal(value)
    if not amount:
        return "$0"
    size = abs(amount)
    if size >= 1:
        text = f"{size:,.2f}"
    else:
        places = min(2 - size.adjusted(), 9)
        text = f"{size:.{max(places, 2)}f}"
        head, _, tail = text.partition(".")
        text = f"{head}.{tail.rstrip('0').ljust(2, '0')}"
    return f"{'-' if amount < 0 else ''}${text}"


def amount(value: Decimal) -> str:
    """A decimal with all its digits: what is added up must be seen to add up."""
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: Any) -> str:
    """A number of things, whole."""
    return UNKNOWN if value is None else f"{int(value):,}"


def short(value: Any) -> str:
    """A number of things where there is no room: 1.2k, 3.4M."""
    if value is None:
        return UNKNOWN
    number = float(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{number:,.0f}"


def ms(value: Any) -> str:
    """Milliseconds in the unit that fits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 1:
        return f"{value:.2f} ms"
    if value < 1000:
        return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
    seconds = value / 1000
    if seconds < 100:
        return f"{seconds:.2f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def percent(value: Any) -> str:
    return UNKNOWN if value is None else f"{100 * float(value):.3g} %"


def moment(value: Any) -> str:
    """A time, local, to the second."""
    return UNKNOWN if value is None else f"{_local(value):%Y-%m-%d %H:%M:%S}"


def clock(value: Any) -> str:
    return UNKNOWN if value is None else f"{_local(value):%H:%M:%S}"


def day_and_clock(value: Any) -> str:
    """The clock alone for today, else with the day."""
    if value is None:
        return UNKNOWN
    local = _local(value)
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().date() else f"{local:%b %d, %H:%M:%S}"


def iso(value: Any) -> str:
    return "" if value is None else _local(value).isoformat()


def _local(value: datetime) -> datetime:
    return value.astimezone()


_INLINE: Final = re.compile(
    r"`(?P<code>[^`\n]+)`|\*\*(?P<bold>[^*\n]+)\*\*|(?<![\w*])\*(?P<italic>[^*\s][^*\n]*)\*(?![\w*])"
    r"|\[(?P<label>[^\]\n]+)\]\((?P<url>[^)\s]+)\)"
)
_FENCE: Final = re.compile(r"^```([\w+-]*)[ \t]*$")
_HEADING: Final = re.compile(r"^(#{1,6})\s+(.+)$")
_BULLET: Final = re.compile(r"^\s*(?:[-*+]|\d{1,3}[.)])\s+(.+)$")
_MOST_MARKDOWN: Final = 200_000


def markdown(text: Any) -> Markup:
    """What a model wrote, as HTML: headings, lists, code, bold, italic. Nothing of the text itself becomes HTML.

    A link is its label and its address as text: a page of the account leads nowhere that a model has chosen.
    """
    source = str(text)[:_MOST_MARKDOWN]
    html: list[Markup] = []
    paragraph: list[str] = []
    items: list[str] = []
    code: list[str] | None = None

    def flush() -> None:
        if paragraph:
            html.append(Markup("<p>%s</p>") % Markup("<br>").join(map(_inline, paragraph)))
            paragraph.clear()
        if items:
            html.append(Markup("<ul>%s</ul>") % Markup("").join(Markup("<li>%s</li>") % _inline(one) for one in items))
            items.clear()

    for line in source.split("\n"):
        fence = _FENCE.match(line)
        if code is not None:
            if fence:
                html.append(Markup("<pre><code>%s</code></pre>") % "\n".join(code))
                code = None
            else:
                code.append(line)
        elif fence:
            flush()
            code = []
        elif heading := _HEADING.match(line):
            flush()
            html.append(Markup('<p class="h">%s</p>') % _inline(heading[2]))
        elif bullet := _BULLET.match(line):
            if paragraph:
                flush()
            items.append(bullet[1])
        elif line.strip():
            if items:
                flush()
            paragraph.append(line)
        else:
            flush()
    if code is not None:
        html.append(Markup("<pre><code>%s</code></pre>") % "\n".join(code))
    flush()
    return Markup("").join(html)


def _inline(line: str) -> Markup:
    html: list[Markup] = []
    end = 0
    for found in _INLINE.finditer(line):
        html.append(escape(line[end : found.start()]))
        end = found.end()
        if found["code"] is not None:
            html.append(Markup("<code>%s</code>") % found["code"])
        elif found["bold"] is not None:
            html.append(Markup("<strong>%s</strong>") % found["bold"])
        elif found["italic"] is not None:
            html.append(Markup("<em>%s</em>") % found["italic"])
        else:
            html.append(Markup('%s <span class="url">(%s)</span>') % (found["label"], found["url"]))
    html.append(escape(line[end:]))
    return Markup("").join(html)


_DEEPEST: Final = 12
_MOST_ITEMS: Final = 200


def json_tree(value: Any, *, opened: int = 1) -> Markup:
    """A JSON value as a tree to fold, the first levels of it open."""
    return _tree(value, 0, opened)


def _tree(value: Any, depth: int, opened: int) -> Markup:
    if isinstance(value, dict | list) and value and depth < _DEEPEST:
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        rows = Markup("").join(
            Markup('<li><span class="k">%s</span> %s</li>') % (key, _tree(item, depth + 1, opened))
            for key, item in pairs[:_MOST_ITEMS]
        )
        if len(pairs) > _MOST_ITEMS:
            rows += Markup("<li>… %s more</li>") % (len(pairs) - _MOST_ITEMS)
        head = f"{{{len(pairs)}}}" if isinstance(value, dict) else f"[{len(pairs)}]"
        attribute = Markup(" open") if depth < opened else ""
        return Markup("<details%s><summary>%s</summary><ul>%s</ul></details>") % (attribute, head, rows)
    if isinstance(value, str):
        return Markup('<span class="s">%s</span>') % value
    return Markup('<span class="n">%s</span>') % json.dumps(value, default=str, ensure_ascii=False)[:2000]


FILTERS: Final = {
    "money": money, "amount": amount, "count": count, "short": short, "ms": ms, "percent": percent, "moment": moment,
    "clock": clock, "day_and_clock": day_and_clock, "iso": iso, "markdown": markdown, "json_tree": json_tree,
}  # fmt: skip
"""What templates call by these names."""
