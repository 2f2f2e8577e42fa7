"""`otel-llm report`: one file that needs nothing else, and says what the account says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from tests.cli.conftest import Fill, Run, both_engines

HOSTILE = "<script>alert(1)</script>|`*"


@both_engines
def test_a_report_in_html_needs_nothing_else(run: Run, fill: Fill, tmp_path: Path) -> None:
    fill(
        {"request_model": "gpt-5", "input_tokens": 10, "output_tokens": 3, "cost_usd": "0.000037", "user_id": HOSTILE},
        {"request_model": "gpt-4o", "status": "error", "price_source": "no price for x", "user_id": "alice"},
    )
    file = tmp_path / "report.html"
    assert run("report", "--since", "2026-11-01", "-o", str(file)).out == f"Wrote the report to {file}.\n"
    text = file.read_text(encoding="utf-8")
    assert "$0.000037" in text and "gpt-4o" in text and "no price for x" in text
    elements: list[tuple[str, dict[str, str | None]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            elements.append((tag, dict(attrs)))

    Parser().feed(text)
    assert not {"script", "link", "img", "iframe", "a"} & {tag for tag, _ in elements}
    assert not [attributes for _, attributes in elements if {"src", "href", "onclick"} & attributes.keys()]
    assert not re.search(r"url\(|@import", text)


@both_engines
def test_a_report_in_markdown(run: Run, fill: Fill) -> None:
    fill(
        {"request_model": "gpt-5", "cost_usd": "0.5", "user_id": HOSTILE},
        {"request_model": "gpt-5", "cost_usd": "0.25"},
    )
    done = run("report", "--by", "model,user", "--format", "md")
    assert done.code == 0
    assert "$0.75, 2 calls (none failed)" in done.out
    assert "| gpt-5 | $0.75 | 2 | 0 |" in done.out
    assert r"| \<script\>alert\(1\)\</script\>\|\`\* | $0.50 |" in done.out


def test_an_empty_account_has_a_report(run: Run, tmp_path: Path) -> None:
    assert "–, 0 calls" in run("report").out
    assert run("report", "-o", str(tmp_path / "r.html")).code == 0


def test_what_cannot_be_is_said_in_a_line(run: Run, fill: Fill, tmp_path: Path) -> None:
    fill({"request_model": "gpt-5"})
    assert "nothing called 'nonsense'" in run("report", "--by", "nonsense").err
    assert "cannot write" in run("report", "-o", str(tmp_path / "no" / "r.html")).err
