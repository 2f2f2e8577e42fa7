"""`otel-llm show`: the words around the tree. (The tree of real traces: tests/test_readme.py, tests/integration.)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from otel_llm.cli.screen.output import cell_width
from tests.cli.conftest import Fill, Run, both_engines

TRACE = f"{0:032x}"
SPANS = (
    {"name": "invoke_agent weather", "span_id": "a", "duration_ms": 1500.0},
    {"name": "chat gpt-5-mini", "span_id": "b", "parent_span_id": "a"},
    {"name": "execute_tool look", "span_id": "c", "parent_span_id": "a", "status": "error",
     "attributes": '{"error.type": "KeyError"}'},
)  # fmt: skip
CALL = {"span_id": "b", "request_model": "gpt-5-mini", "input_tokens": 10, "output_tokens": 2, "cost_usd": "0.0000065"}


@both_engines
def test_a_tree_with_times_tokens_and_cost(fill: Fill, fill_spans: Fill, execute: Run) -> None:
    fill(CALL)
    fill_spans(*SPANS)
    result = execute("show", TZ="UTC")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"trace {TRACE}  2026-11-20 12:00:00",
        "invoke_agent weather  1.50 s",
        "├─ chat gpt-5-mini    5.0 ms  10 in, 2 out  $0.0000065",
        "└─ execute_tool look  5.0 ms  error KeyError",
    ]


@both_engines
def test_an_estimate_is_told_apart(fill: Fill, fill_spans: Fill, run: Run) -> None:
    fill(CALL | {"usage_source": "estimated"})
    fill_spans(*SPANS)
    assert "5.0 ms  ~10 in, ~2 out  ~$0.0000065\n" in run("show").out
    told = json.loads(run("show", "--json").out)
    assert [one["usage_source"] for one in told] == [None, "estimated", None]


@both_engines
def test_a_tree_keeps_its_shape(fill: Fill, fill_spans: Fill, run: Run, on_terminal: Callable[..., str]) -> None:
    """Names that are twice as wide as they are long, names that are too long, a narrow terminal."""
    fill({**CALL, "span_id": "b"})
    fill_spans(
        {**SPANS[0], "name": "invoke_agent 天気予報"},
        {**SPANS[1], "name": f"chat {'model' * 9}"},
        {**SPANS[2], "status": "interrupted"},
    )
    lines = run("show").out.splitlines()[1:]
    assert len({cell_width(line[: re.search(r"\d+\.\d+ m?s", line).end()]) for line in lines}) == 1  # type: ignore[union-attr]
    narrow = on_terminal("show", columns=50)
    assert "\x1b[1;31mexecute_tool look\x1b[0m" in narrow  # red: the process died there
    lines = re.sub(r"\x1b\[[0-9;]*m", "", narrow).splitlines()[1:]
    assert lines == [
        "invoke_agent 天気予…  1.50 s",
        "├─ chat modelmodelm…  5.0 ms  10 in, 2 out  $0.00…",
        "└─ execute_tool look  5.0 ms  interrupted KeyError",
    ]


@both_engines
def test_the_text_of_an_error_stands_below_its_span(fill: Fill, fill_spans: Fill, run: Run) -> None:
    fill({"request_model": "a"})
    failed = {"status": "error", "status_message": "No tyres\x1b[2J\nleft.", "parent_span_id": f"{0:016x}"}
    fill_spans({"name": "a"}, {"name": "b"} | failed, {"name": "c", "parent_span_id": f"{0:016x}"})
    lines = run("show").out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["a", "├─ b", "│", "└─ c"]
    assert lines[3].startswith("│     No tyres") and lines[3].endswith("left.") and "\x1b" not in lines[3]
    assert [row["error_message"] is None for row in json.loads(run("show", "--json").out)] == [True, False, True]


@both_engines
@pytest.mark.parametrize("url", ["http://localhost:16686", "http://localhost:16686/"])
def test_the_page_in_jaeger_is_named_where_it_is_known(
    url: str, fill: Fill, fill_spans: Fill, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(CALL)
    fill_spans(*SPANS)
    assert "http" not in run("show").out
    monkeypatch.setenv("OTEL_LLM_JAEGER_URL", url)
    assert run("show").out.splitlines()[-1] == f"http://localhost:16686/trace/{TRACE}"
    assert isinstance(json.loads(run("show", "--json").out), list)


@both_engines
def test_a_trace_whose_spans_were_removed(fill: Fill, run: Run) -> None:
    fill(CALL)
    result = run("show")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"otel-llm: the spans of trace {TRACE} are no longer in the store; `otel-llm logs` has its calls\n"
    )


@both_engines
def test_a_run_is_shown_with_what_continues_it(fill: Fill, fill_spans: Fill, run: Run) -> None:
    waits = '{"otel_llm.run.waiting": true%s}'
    continues = ', "otel_llm.run.continues": "%s"'
    first, second, third, other = (f"{number:032x}" for number in range(1, 5))
    agent = {"name": "invoke_agent trip", "operation": "invoke_agent"}
    fill({"trace_id": first, "span_id": "c1", **CALL})
    root = {"trace_id": first, "span_id": "a" * 16}
    fill_spans(
        {**agent, **root, "attributes": waits % ""},
        {**agent, "trace_id": second, "span_id": "b" * 16, "attributes": waits % continues % f"{first}-{'a' * 16}"},
        {**agent, "trace_id": third, "span_id": "c" * 16, "attributes": waits % continues % ("a" * 16)},
        {**agent, "trace_id": other, "span_id": "d" * 16, "attributes": waits % continues % ("e" * 16)},
    )
    expected = []
    for trace, state in ((first, ""), (second, ""), (third, "  waiting")):
        expected += [f"trace {trace}", f"invoke_agent trip  5.0 ms{state}"]
    for asked in (first, second, third, f"{first}-{'a' * 16}"):
        lines = run("show", asked).out.splitlines()
        assert [line.split("  2026")[0] for line in lines] == expected
    rows = json.loads(run("show", second, "--json").out)
    assert [(row["trace_id"], row["waiting"]) for row in rows] == [(first, False), (second, False), (third, True)]
    *_, said = run("show", other).out.splitlines()
    assert said == f"invoke_agent trip continues the run {'e' * 16}, which is not in this store"
