"""What a notebook shows of a trace and of sums: HTML in which nothing that was recorded is HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import otel_llm
from otel_llm.store import StoreError
from tests.cli.conftest import Fill, both_engines

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\u202e"
TRACE = "ab" * 16
ROOT, CALL = "1" * 16, "2" * 16


class Tags(HTMLParser):
    """The tags, attributes and text of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def html_of(shown: Any) -> Tags:
    """What a notebook gets of it. It is text, and a table of ours."""
    found = Tags(shown._repr_html_())
    assert found.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "code"}
    assert found.attributes <= {"style"}
    return found


@pytest.fixture
def recorded(fill: Fill, fill_spans: Fill) -> Any:
    fill({"trace_id": TRACE, "span_id": CALL, "user_id": HOSTILE, "request_model": "gpt-5", "input_tokens": 1200,
          "output_tokens": 5, "cost_usd": "0.25", "usage_source": "reported"})  # fmt: skip
    return fill_spans(
        {"trace_id": TRACE, "span_id": ROOT, "name": HOSTILE, "operation": "invoke_agent"},
        {
            "trace_id": TRACE,
            "span_id": CALL,
            "parent_span_id": ROOT,
            "name": "chat gpt-5",
            "operation": "chat",
            "status": "error",
        },
    )


@both_engines
def test_a_trace(recorded: Any) -> None:
    for shown in (otel_llm.trace(), otel_llm.trace("ABAB"), otel_llm.trace(TRACE, store=str(recorded))):
        assert shown.trace_id == TRACE
        assert [(span["depth"], span["span_id"]) for span in shown.spans] == [(0, ROOT), (1, CALL)]
    html = html_of(shown)
    assert "<script>alert(1)</script>" in html.text and "\\u202e" in html.text
    assert "1200 in, 5 out  $0.25  error" in html.text and TRACE in html.text
    lines = repr(shown).splitlines()
    assert lines[0] == f"trace {TRACE}" and lines[2].startswith("└─ chat gpt-5  5.0 ms  1200 in, 5 out")


@both_engines
def test_sums(recorded: Any) -> None:
    shown = otel_llm.usage("user,model")
    assert (len(shown), [row[:3] for row in shown]) == (1, [(HOSTILE, "gpt-5", 1)])
    row = dict(zip(shown.columns, shown.rows[0], strict=True))
    assert str(row["cost_usd"]).rstrip("0") == "0.25"
    html = html_of(shown)
    assert "<script>alert(1)</script>" in html.text and "1,200" in html.text and "100.0%" in html.text
    assert repr(shown).splitlines()[0].split()[:3] == ["user", "model", "calls"]
    assert len(otel_llm.usage(["model"], since="2026-11-20", until="2026-11-20", user=HOSTILE, model="gpt*")) == 1
    assert len(otel_llm.usage(since="2026-11-21", until="2026-11-22")) == 0
    assert html_of(otel_llm.usage(user="nobody")).tags
    assert otel_llm.usage(errors=True).rows == []


def test_what_is_not_there(store_path: Path, tmp_path: Path, fill: Fill) -> None:
    with pytest.raises(LookupError, match=f"no model calls are recorded yet in {store_path}"):
        otel_llm.trace()
    assert otel_llm.usage().rows == []
    fill({})
    with pytest.raises(LookupError, match="there is no trace 'cd'"):
        otel_llm.trace("cd")
    with pytest.raises(ValueError, match=r"^by does not know 'usr'"):
        otel_llm.usage("usr")
    with pytest.raises(ValueError, match=r"^since 'soon' is not a time"):
        otel_llm.usage(since="soon")
    with pytest.raises(StoreError, match=r"none\.duckdb"):
        otel_llm.usage(store=tmp_path / "none.duckdb")


def test_a_long_one_is_cut_and_says_so(fill: Fill, fill_spans: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    from otel_llm.notebook import shown

    monkeypatch.setattr(shown, "_MOST_SPANS", 2)
    monkeypatch.setattr(shown, "_MOST_ROWS", 2)
    fill(*({"user_id": f"user-{number}"} for number in range(3)))
    fill_spans(*({"span_id": f"{number:016x}"} for number in range(3)))
    trace, sums = otel_llm.trace("0" * 32), otel_llm.usage("user")
    for one, what in ((trace, "the first 2 of 3 spans"), (sums, "the first 2 of 3 rows")):
        assert what in html_of(one).text and what in repr(one)
    assert (len(trace.spans), len(sums)) == (3, 3)
