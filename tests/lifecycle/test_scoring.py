"""`score`: what it is about, what it takes, what it refuses, and that the app never notices."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

import otel_llm
from otel_llm.conventions import semconv
from otel_llm.settings import reload
from otel_llm.setup import wiring
from otel_llm.signals import events
from otel_llm.store import store as stores
from tests.conftest import Run
from tests.instrumentation.conftest import Spans
from tests.instrumentation.openai.test_events import Logs

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HOSTILE = "\"'><script>window.hacked=1</script>\x00\r\n\u202e\U0001f600; DROP TABLE llm_scores"

Stored = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def stored(spans: Spans, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    """An account in this process; its scores, by the columns that are asked for."""
    monkeypatch.setenv("OTEL_LLM_STORE", str(store_path))
    monkeypatch.setattr(stores, "_stores", {})
    reload()
    store = wiring.wire(spans.provider, store_path)

    def read(
        columns: str = "trace_id, span_id, request_id, name, value, label, comment, source",
    ) -> list[tuple[Any, ...]]:
        with otel_llm.connect(store_path) as connection:
            return connection.execute(f"SELECT {columns} FROM llm_scores ORDER BY ALL").fetchall()

    yield read
    store.close()
    monkeypatch.undo()
    reload()


def test_it_is_about_the_current_span(stored: Stored) -> None:
    with otel_llm.llm_context(request_id="r1"), otel_llm.chain("tyres"), otel_llm.step("plan"):
        span = trace.get_current_span().get_span_context()
        otel_llm.score("helpful", True, comment="why")
    assert stored() == [(f"{span.trace_id:032x}", f"{span.span_id:016x}", None, "helpful", 1.0, None, "why", "app")]


def test_without_a_span_about_the_request(stored: Stored) -> None:
    with otel_llm.llm_context(request_id="r1"):
        otel_llm.score("helpful", label="good", source="judge")
    assert stored() == [(None, None, "r1", "helpful", None, "good", None, "judge")]


def test_about_what_is_named(stored: Stored) -> None:
    with otel_llm.chain("other"):
        current = f"{trace.get_current_span().get_span_context().trace_id:032x}"
        otel_llm.score("a", 1, trace_id=TRACE.upper(), span_id=SPAN)
        otel_llm.score("b", 2, trace_id=int(TRACE, 16), span_id=int(SPAN, 16))
        otel_llm.score("c", 3, trace_id=TRACE)
        otel_llm.score("d", 4, request_id="r")
        otel_llm.score("e", 5, span_id=SPAN)
    assert stored("name, trace_id, span_id, request_id") == [
        ("a", TRACE, SPAN, None), ("b", TRACE, SPAN, None), ("c", TRACE, None, None), ("d", None, None, "r"),
        ("e", current, SPAN, None),
    ]  # fmt: skip


def test_it_is_there_at_once_and_the_last_one_counts(stored: Stored) -> None:
    for value in (1, Decimal("0.25"), Fraction(1, 2)):
        otel_llm.score("helpful", value, trace_id=TRACE)  # type: ignore[arg-type]
        assert stored("value") == [(float(value),)]


def test_hostile_texts_are_texts(stored: Stored) -> None:
    otel_llm.score(HOSTILE, label=HOSTILE, comment=HOSTILE, request_id=HOSTILE, source=HOSTILE)
    otel_llm.score("half a character: \ud800", 1, trace_id=TRACE, comment="x" * 100_000)
    assert stored("request_id, name, label, comment, source")[0] == (HOSTILE,) * 5
    ((name, characters),) = stored("name, length(comment)")[1:]
    assert (name, characters) == ("half a character: ?", 65_536)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "", "value": 1}, "name is empty"),
        ({"name": "n" * 300, "value": 1}, "300 characters"),
        ({"name": "n"}, "neither a value nor a label"),
        ({"name": "n", "value": float("nan")}, "no finite number"),
        ({"name": "n", "value": 10**400}, "no finite number"),
        ({"name": "n", "value": Decimal("sNaN")}, "no finite number"),
        ({"name": "n", "value": 1, "trace_id": "xyz"}, "32 hexadecimal digits"),
        ({"name": "n", "value": 1, "trace_id": 0}, "32 hexadecimal digits"),
        ({"name": "n", "value": 1, "trace_id": -5}, "32 hexadecimal digits"),
        ({"name": "n", "value": 1, "trace_id": TRACE, "span_id": TRACE}, "16 hexadecimal digits"),
        ({"name": "n", "value": 1, "span_id": SPAN, "trace_id": None}, "give trace_id="),
        ({"name": "n", "value": 1, "trace_id": None}, "inside a chain() or an llm_context()"),
        ({"name": "n", "value": 1, "request_id": " ", "trace_id": None}, "request_id is empty"),
    ],
)
def test_bad_input_is_one_line(
    arguments: dict[str, Any], said: str, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "otel_llm"):
        otel_llm.score(**{"trace_id": TRACE, **arguments})
    (line,) = [one.getMessage() for one in caplog.records]
    assert line.startswith("otel-llm has not recorded a score: ") and said in line and "\n" not in line
    assert stored() == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": 1, "value": 1}, {"name": "n", "value": "good"}, {"name": "n", "value": 1j}, {"name": "n", "label": 1},
        {"name": "n", "value": 1, "comment": b""}, {"name": "n", "value": 1, "trace_id": 1.5},
        {"name": "n", "value": 1, "span_id": True},
        {"name": "n", "value": 1, "request_id": 7}, {"name": "n", "value": 1, "source": None},
    ],
)  # fmt: skip
def test_what_is_no_text_and_no_number_is_a_type_error(arguments: dict[str, Any], stored: Stored) -> None:
    with pytest.raises(TypeError, match="of a score is"):
        otel_llm.score(**arguments)
    assert stored() == []


def test_it_is_told_as_an_event(stored: Stored) -> None:
    logs = Logs()
    events.use(logs.provider)
    try:
        with otel_llm.chain("tyres"):
            here = trace.get_current_span()
            here.set_attribute(semconv.RESPONSE_ID, "resp_1")
            otel_llm.score("helpful", 0.5, label="fair", comment="short")
            otel_llm.score("helpful", 1, trace_id=TRACE, span_id=SPAN)
            otel_llm.score("helpful", 1, trace_id=TRACE)
            otel_llm.score("helpful", 1, request_id="r1")
    finally:
        events.use(None)
    own, span, whole, request = logs.all()
    context = here.get_span_context()
    assert own.event_name == "gen_ai.evaluation.result"
    assert (own.trace_id, own.span_id) == (context.trace_id, context.span_id)
    assert dict(own.attributes) == {
        "gen_ai.evaluation.name": "helpful", "gen_ai.evaluation.score.value": 0.5, "gen_ai.evaluation.score.label": "fair",
        "gen_ai.evaluation.explanation": "short", "gen_ai.response.id": "resp_1",
    }  # fmt: skip
    assert (span.trace_id, span.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert (whole.trace_id, whole.span_id) == (int(TRACE, 16), 0)
    assert (request.trace_id, request.attributes["otel_llm.request.id"]) == (0, "r1")
    logs.provider.shutdown()


def test_an_exporter_that_breaks_is_not_the_apps(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    from otel_llm.support import faults

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(events, "evaluated", broken)
    monkeypatch.setattr(events, "wanted", lambda *_: True)
    monkeypatch.setattr(faults, "counts", type(faults.counts)())
    otel_llm.score("helpful", 1, trace_id=TRACE)
    assert faults.counts == {"record a score: RuntimeError": 1}
    assert stored("value") == [(1.0,)]
    monkeypatch.undo()


_APP = """
import os, signal, sys, otel_llm
from openai import OpenAI
with otel_llm.chain("tyres"):
    OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello"}])
    otel_llm.score("helpful", 1, comment="x")
if os.fork() == 0:
    with otel_llm.llm_context(request_id="in the child"):
        otel_llm.score("helpful", 0)
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_loses_no_score(run_instrumented: Run, store_path: Path) -> None:
    run_instrumented(_APP, code=-signal.SIGKILL, stderr=r"multi-threaded|os\.fork")  # Python 3.12 warns of any fork
    with otel_llm.connect(store_path) as connection:
        found = connection.execute("SELECT request_id, value FROM llm_scores ORDER BY value").fetchall()
        assert found == [("in the child", 0.0), (None, 1.0)]
        cost = "SELECT sum(cost_usd) > 0 FROM llm_usage JOIN llm_scores USING (trace_id)"
        assert connection.execute(cost).fetchall() == [(True,)]


def test_a_program_of_its_own_scores_what_another_has_called(run_instrumented: Run, store_path: Path) -> None:
    """Nothing is instrumented in it: an evaluation, say."""
    run_instrumented(f"import otel_llm; otel_llm.score('tone', label='good', trace_id={TRACE!r})", instrument=False)
    with otel_llm.connect(store_path) as connection:
        assert connection.execute("SELECT label FROM llm_scores").fetchall() == [("good",)]


@pytest.mark.parametrize("variables", [{"OTEL_LLM_STORE": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_where_no_account_is_kept(variables: dict[str, str], run_instrumented: Run, store_path: Path) -> None:
    run_instrumented(f"import otel_llm; otel_llm.score('tone', 1, trace_id={TRACE!r})", env=dict(variables))
    assert not store_path.exists()


def test_on_the_command_line(run_instrumented: Run, store_path: Path, environment: dict[str, str]) -> None:
    run_instrumented(_APP.partition("if os.fork")[0])
    with otel_llm.connect(store_path) as connection:
        ((trace_id, span_id),) = connection.execute("SELECT trace_id, span_id FROM llm_usage").fetchall()

    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["otel-llm", "score", *words], env=environment, capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    assert run(trace_id[:8], "tone", "good") == (0, f"tone good: trace {trace_id}\n", "")
    assert run(f"{trace_id}/{span_id[:6]}", "tone", "-1", "--comment", HOSTILE.replace("\x00", "")) == (
        0, f"tone -1: trace {trace_id}, span {span_id}\n", "",
    )  # fmt: skip
    assert run("--request", "r1", "tone", "nan", "--source", "me")[0] == 0
    with otel_llm.connect(store_path) as connection:
        found = connection.execute(
            "SELECT span_id, request_id, value, label, source FROM llm_scores WHERE name = 'tone' ORDER BY ALL"
        ).fetchall()
    assert found == [
        (span_id, None, -1.0, None, "cli"),
        (None, "r1", None, "nan", "me"),
        (None, None, None, "good", "cli"),
    ]
    for words, said in (
        (["ffff", "tone", "1"], "there is no trace 'ffff'"),
        ([f"{trace_id}/ffff", "tone", "1"], "no span begins with 'ffff'"),
        ([trace_id, "tone"], "takes TRACE[/SPAN] NAME VALUE"),
        ([trace_id, " ", "1"], "its name is empty"),
        (["--request", "r", "t", "1", "--store", "nowhere.duckdb"], "nowhere.duckdb"),
    ):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1) and said in err, err
