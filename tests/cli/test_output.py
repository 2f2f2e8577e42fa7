"""Rows on the way out."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from otel_llm.cli.screen import output
from otel_llm.cli.screen.output import Column, count, text, write_csv, write_json, write_table

VALUES = {
    "nothing": None,
    "yes": True,
    "whole": 2**70,
    "part": 0.5,
    "not a number": float("nan"),
    "money": Decimal("0.000000150"),
    "text": 'a "b",\nc',
    "moment": datetime(2026, 11, 1, 14, 30, tzinfo=UTC),
    "day": date(2026, 11, 1),
    "time taken": timedelta(milliseconds=1500),
    "bytes": b"\x00\xff",
    "id": UUID(int=7),
    "list": ["stop", None],
    "map": {"team": "core", 1: [Decimal("1.5")]},
}


def test_json_keeps_types(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(list(VALUES), [list(VALUES.values())])
    assert json.loads(capsys.readouterr().out) == [
        {
            "nothing": None,
            "yes": True,
            "whole": 2**70,
            "part": 0.5,
            "not a number": None,
            "money": 0.00000015,
            "text": 'a "b",\nc',
            "moment": "2026-11-01T14:30:00+00:00",
            "day": "2026-11-01",
            "time taken": 1.5,
            "bytes": "00ff",
            "id": "00000000-0000-0000-0000-000000000007",
            "list": ["stop", None],
            "map": {"team": "core", "1": [1.5]},
        }
    ]


def test_csv_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(list(VALUES), [list(VALUES.values())])
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == list(VALUES)
    fields = dict(zip(header, row, strict=True))
    assert fields["nothing"] == ""
    assert fields["yes"] == "true"
    assert fields["money"] == "0.00000015"  # never 1.5E-7
    assert fields["text"] == 'a "b",\nc'
    assert json.loads(fields["map"]) == {"team": "core", "1": [1.5]}


@pytest.mark.parametrize("rows", [[], iter(())])
def test_no_rows(rows: list[list[object]], capsys: pytest.CaptureFixture[str]) -> None:
    write_json(["a"], rows)
    assert capsys.readouterr().out == "[]\n"
    write_csv(["a", "b"], rows)
    assert capsys.readouterr().out == "a,b\n"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "–"),
        (0, "0"),
        (False, "false"),
        (Decimal("1.500000000"), "1.5"),
        (Decimal("100"), "100"),
        (["stop"], '["stop"]'),
        ("two\nlines\t", r"two\nlines\t"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("[bold]not markup[/]", "[bold]not markup[/]"),
        ("naïve 日本", "naïve 日本"),
    ],
)
def test_a_cell_is_one_line_that_no_terminal_acts_upon(value: object, cell: str) -> None:
    assert text(value) == cell


@pytest.mark.parametrize(
    ("words", "columns"), [("plain", 5), ("na\u00efve – ─", 9), ("日本", 4), ("e\u0301", 1), ("👍", 2), ("", 0)]
)
def test_the_room_that_text_takes(words: str, columns: int) -> None:
    assert output.cell_width(words) == columns
    assert output.fit(words, columns) == words


@pytest.mark.parametrize(("words", "cut"), [("gpt-5-mini", "gpt…"), ("日本語", "日…"), ("a日本", "a日…")])
def test_text_that_is_too_long_is_cut_to_its_room(words: str, cut: str) -> None:
    assert output.fit(words, 4).replace(" ", "") == cut
    assert output.cell_width(output.fit(words, 4)) <= 4


def test_numbers_have_their_thousands_set_apart() -> None:
    assert (count(1234567), count(0), count(None)) == ("1,234,567", "0", "–")


COLUMNS = [Column("model"), Column("user"), Column("input_tokens", "input", number=True), Column("calls", number=True)]
ROWS: list[list[object]] = [["gpt-5-mini-2025-08-07", "[red]alice", 1234, 5], ["gpt-5", None, 7, 1]]


def test_a_table_in_a_pipe_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(COLUMNS, ROWS, totals=["total", "", 1241, 6], notes=["a [note]"])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "model                  user        input_tokens  calls",
        "─" * 54,
        "gpt-5-mini-2025-08-07  [red]alice          1234      5",
        "gpt-5                  –                      7      1",
        "─" * 54,
        "total                                      1241      6",
        "a [note]",
    ]


@pytest.mark.parametrize(
    ("width", "heading", "row"),
    [
        (54, "model                  user        input_tokens  calls", "gpt-5-mini-2025-08-07  [red]alice          1234      5"),
        (53, "model                  user        input  calls", "gpt-5-mini-2025-08-07  [red]alice   1234      5"),
        (40, "model           user        input  calls", "gpt-5-mini-20…  [red]alice   1234      5"),
        (31, "model         user        input", "gpt-5-mini-…  [red]alice   1234"),
        (20, "model      user", "gpt-5-mi…  [red]ali…"),
        (5, "model", "gpt-…"),
    ],
)  # fmt: skip
def test_a_table_fits_its_terminal(
    width: int, heading: str, row: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "line_width", lambda: width)
    write_table(COLUMNS, ROWS)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert (lines[0], lines[2]) == (heading, row)
    hidden = [column.name for column in COLUMNS[len(heading.split()) :]]
    notes = [f"{len(hidden)} more column{'s' * (len(hidden) > 1)} in a wider terminal, or in --format json or csv: "]
    assert lines[4:] == [f"{note}{', '.join(hidden)}" for note in notes if hidden]


@pytest.mark.parametrize(
    ("width", "row"),
    [
        (30, "08:14:04  gpt-5-mini  7  9  ok"),
        (29, "08:14  gpt-5-mini  7  9  ok"),  # in brief,
        (24, "08:14  gpt-5-mini  9  ok"),  # then without what can be spared,
        (22, "08:14  gpt-5-m…  9  ok"),  # then cut,
        (17, "08:14  gpt-5-mini"),  # then without the last
    ],
)
def test_what_a_narrow_table_does_without(
    width: int, row: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "line_width", lambda: width)
    columns = [
        Column("at", brief=lambda moment: text(moment)[:5]),
        Column("m"),
        Column("a", number=True, spare=2),
        Column("b", number=True, spare=1),
        Column("s"),
    ]
    write_table(columns, [["08:14:04", "gpt-5-mini", 7, 9, "ok"]])
    lines = capsys.readouterr().out.splitlines()
    assert (lines[2], len(lines[1])) == (row, len(row))


@pytest.mark.parametrize(
    ("width", "line"),
    [(11, "one日本 two"), (10, "one日本 t…"), (8, "one日本…"), (7, "one日 …"), (4, "one…"), (3, "on…")],
)
def test_a_line_fits_its_terminal(
    width: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "line_width", lambda: width)
    output.write_parts([("one", "red"), ("日本", ""), (" two", "dim")])
    assert capsys.readouterr().out == f"{line}\n"
    assert output.cell_width(line) <= width
