"""`opentelemetry-instrument python app.py`, with the settings that a user may have, and with none."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from local_openai import LocalOpenAI

from tests.conftest import OTHER_INSTRUMENTORS, SCRIPTS, Rows, Run
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol

ASK = """
from openai import OpenAI

client = OpenAI()
question = [{"role": "user", "content": "Hello"}]
print(client.chat.completions.create(model="gpt-4o-mini", messages=question).choices[0].message.content)
"""

IS_PATCHED = """
import openai
from langchain_core.callbacks import CallbackManager
print("openai", hasattr(openai.OpenAI.request, "__wrapped__"))
print("langchain", hasattr(CallbackManager.on_chat_model_start, "__wrapped__"))
"""

PLAIN_DUCKDB = """
import os, sys, duckdb
if os.path.exists(sys.argv[1]):
    with duckdb.connect(sys.argv[1], read_only=True) as connection:
        print(connection.execute("select count(*), sum(input_tokens) from llm_usage").fetchone())
"""


def test_no_setting_at_all(
    run_instrumented: Run, python_without: Callable[..., Path], environment: dict[str, str], rows: Rows, tmp_path: Path
) -> None:
    """Our distro alone, as `pip install otel-llm` leaves it: the store is in the user's data directory, stderr is empty."""
    nothing = {"OTEL_LLM_STORE": None, "OTEL_PYTHON_DISTRO": None}
    run_instrumented(ASK, env=nothing, python=python_without("opentelemetry-distro"))
    path = run_instrumented(["otel-llm", "path"], env=nothing, instrument=False).stdout.strip()
    assert Path(path).is_relative_to(tmp_path)
    (row,) = rows(store=Path(path))
    assert (row["status"], row["request_model"]) == ("ok", "gpt-4o-mini")


def test_sdk_disabled_writes_nothing_and_changes_nothing(
    run_instrumented: Run, openai_server: LocalOpenAI, store_path: Path
) -> None:
    bare = run_instrumented(ASK, instrument=False)
    sent = openai_server.ledger[0]
    openai_server.reset()
    off = {"OTEL_SDK_DISABLED": "true"}
    assert run_instrumented(ASK, env=off).stdout == bare.stdout
    assert openai_server.ledger[0].headers == sent.headers
    assert list(store_path.parent.glob(f"{store_path.name}*")) == []
    assert run_instrumented(IS_PATCHED, env=off).stdout == "openai False\nlangchain False\n"


@pytest.mark.parametrize(
    ("disabled", "expected"),
    [
        (None, "openai True\nlangchain True\n"),
        ("otel_llm_openai", "openai False\nlangchain True\n"),
        ("otel_llm_langchain", "openai True\nlangchain False\n"),
        ("otel_llm_openai, otel_llm_langchain", "openai False\nlangchain False\n"),
    ],
)
def test_disabled_instrumentations(run_instrumented: Run, disabled: str | None, expected: str) -> None:
    env = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ", ".join((*OTHER_INSTRUMENTORS, *filter(None, [disabled])))}
    assert run_instrumented(IS_PATCHED, env=env).stdout == expected


def test_a_disabled_client_is_not_recorded(run_instrumented: Run, openai_server: LocalOpenAI, store_path: Path) -> None:
    env = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join((*OTHER_INSTRUMENTORS, "otel_llm_openai"))}
    run_instrumented(ASK, env=env)
    assert len(openai_server.ledger) == 1
    count = "select count(*) as n from llm_usage"
    answer = run_instrumented(["otel-llm", "sql", "--format", "json", count], instrument=False, code=None)
    assert "Traceback" not in answer.stdout + answer.stderr
    if answer.returncode == 0 and answer.stdout.strip() != "[]":
        assert json.loads(answer.stdout) == [{"n": 0}]


@pytest.mark.parametrize(
    "missing", [("openai", "langchain-openai"), ("langchain", "langchain-core", "langchain-openai")]
)
def test_whichever_client_is_installed(
    missing: tuple[str, ...], run_instrumented: Run, python_without: Callable[..., Path], rows: Rows
) -> None:
    """Neither client is a dependency: an app without one starts in silence, the other is recorded."""
    python = python_without(*missing)
    if "openai" in missing:
        run_instrumented("import langchain_core.runnables; print('ran')", python=python)
    else:
        run_instrumented(ASK, python=python)
        assert len(rows()) == 1


@pytest.mark.parametrize(
    ("distro", "protocol"), [("distro", "grpc"), ("distro", "http/protobuf"), ("otel_llm", "grpc"), (None, "grpc")]
)
def test_the_stock_distro_beside_ours(
    distro: str | None, protocol: Protocol, run_instrumented: Run, rows: Rows
) -> None:
    """Whichever of the two distros the launcher takes: `OTEL_TRACES_EXPORTER=otlp,duckdb` means what it says."""
    with OtlpReceiver() as receiver:
        exporters = {
            "OTEL_TRACES_EXPORTER": "otlp,duckdb",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }
        run_instrumented(ASK, env={**receiver.environment(protocol), **exporters, "OTEL_PYTHON_DISTRO": distro})
        (sent,) = receiver.spans
    (row,) = rows()
    assert (row["trace_id"], row["span_id"]) == (sent.trace_id, sent.span_id)
    assert (sent.name, sent.kind) == ("chat gpt-4o-mini", "CLIENT")
    assert sent.attributes["gen_ai.usage.input_tokens"] == row["input_tokens"]


@pytest.mark.parametrize("distro", ["distro", "otel_llm"])
@pytest.mark.parametrize("endpoint", ["http://localhost:$PORT", "http://localhost:99999999", "http://[::1:4317"])
def test_a_malformed_endpoint_costs_no_account_whatever_the_distro(
    distro: str, endpoint: str, run_instrumented: Run, rows: Rows
) -> None:
    """The stock configurator's failure would end everything after it: the launcher looks beforehand."""
    off = {"OTEL_TRACES_EXPORTER": "duckdb", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    done = run_instrumented(
        ASK,
        env={**off, "OTEL_PYTHON_DISTRO": distro, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
        stderr="OTEL_EXPORTER_OTLP_ENDPOINT=.* counts as not set",
    )
    assert done.stderr.count("OTEL_EXPORTER_OTLP_ENDPOINT") == 1
    assert len(rows()) == 1


def test_the_launcher_takes_our_variables_as_arguments(environment: dict[str, str], tmp_path: Path, rows: Rows) -> None:
    command = [str(SCRIPTS / "opentelemetry-instrument"), "--llm_store", str(tmp_path / "named.duckdb")]
    subprocess.run([*command, sys.executable, "-c", ASK], env=environment, check=True, timeout=120)
    assert len(rows(store=tmp_path / "named.duckdb")) == 1


def test_the_stock_distro_beside_ours_without_settings(run_instrumented: Run, rows: Rows) -> None:
    """The stock distro exports to a Collector by default; there is none, which must cost neither the row nor the exit."""
    run_instrumented(ASK, env={"OTEL_PYTHON_DISTRO": "distro"}, stderr="localhost:4317|UNAVAILABLE|export", timeout=120)
    assert len(rows()) == 1


@pytest.mark.parametrize("instrument", [True, False], ids=["launched", "from code"])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "duckdb,slipt"}, "slipt"),
        ({"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "{taken}"}, "in use"),
        ({"OTEL_PYTHON_ID_GENERATOR": "nobody"}, "nobody"),
    ],
    ids=["no such exporter", "port taken", "no such generator"],
)
def test_the_account_is_kept_where_opentelemetry_cannot_be_set_up(
    asked: dict[str, str],
    said: str,
    instrument: bool,
    run_instrumented: Run,
    python_without: Callable[..., Path],
    openai_server: LocalOpenAI,
    rows: Rows,
) -> None:
    script = ASK if instrument else f"import otel_llm\notel_llm.instrument()\n{ASK}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {name: value.format(taken=taken.getsockname()[1]) for name, value in asked.items()}
        done = run_instrumented(
            script,
            env={**env, "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1", "OTEL_PYTHON_DISTRO": None},
            python=python_without("opentelemetry-distro"),
            instrument=instrument,
            stderr=".",
        )
    assert [row["response_id"] for row in rows()] == [call.response_id for call in openai_server.ledger]
    (line,) = [line for line in done.stderr.splitlines() if "cannot be set up" in line]
    assert said in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_endpoint_is_enough_for_otlp(protocol: Protocol, run_instrumented: Run, rows: Rows) -> None:
    with OtlpReceiver() as receiver:
        run_instrumented(ASK, env=receiver.environment(protocol))
        (sent,) = receiver.spans
    (row,) = rows()
    assert (row["trace_id"], row["span_id"]) == (sent.trace_id, sent.span_id)


def test_the_exporter_alone_gives_one_row_a_call(run_instrumented: Run, rows: Rows, openai_server: LocalOpenAI) -> None:
    run_instrumented(ASK * 3, env={"OTEL_TRACES_EXPORTER": "duckdb"})
    assert sorted(row["response_id"] for row in rows()) == sorted(
        call.response_id or "" for call in openai_server.ledger
    )


@pytest.mark.parametrize("sampler", ["always_off", "traceidratio"])
def test_no_sampler_hides_a_call(sampler: str, run_instrumented: Run, rows: Rows) -> None:
    with OtlpReceiver() as receiver:
        env = {
            "OTEL_TRACES_SAMPLER": sampler,
            "OTEL_TRACES_SAMPLER_ARG": "0.0",
            **receiver.environment("http/protobuf"),
        }
        run_instrumented(ASK * 3, env=env)
        assert receiver.spans == []
    assert len(rows()) == 3


def test_a_plain_duckdb_client_reads_while_the_app_runs(
    start_instrumented: Callable[..., subprocess.Popen[str]], openai_server: LocalOpenAI, store_path: Path
) -> None:
    app = start_instrumented(
        f"{ASK}\nimport sys\nfor _ in sys.stdin:\n" + "".join(f"    {line}\n" for line in ASK.splitlines())
    )
    assert app.stdin is not None and app.stdout is not None
    for calls in (1, 2, 3):
        assert app.stdout.readline()
        expected = str((calls, sum(call.input_tokens or 0 for call in openai_server.ledger)))
        # Each look is a process of its own without any of our code; the test's time-out bounds their number.
        looks = []
        while not looks or looks[-1] != expected:
            looks.append(
                subprocess.run(
                    [sys.executable, "-c", PLAIN_DUCKDB, str(store_path)], capture_output=True, text=True, check=True
                ).stdout.strip()
            )
        assert app.poll() is None
        app.stdin.write("again\n")
        app.stdin.flush()
    app.stdin.close()
    assert app.wait(timeout=120) == 0


def test_a_subprocess_of_the_app_writes_the_same_store(
    run_instrumented: Run, rows: Rows, openai_server: LocalOpenAI
) -> None:
    child = f"{ASK}\nimport subprocess, sys\nsubprocess.run([sys.executable, '-c', {ASK!r}], check=True)\n"
    run_instrumented(child)
    assert len(rows()) == len(openai_server.ledger) == 2


def test_a_failing_app_fails_as_it_would(run_instrumented: Run, rows: Rows) -> None:
    script = ASK.replace("gpt-4o-mini", "error-404")
    bare = run_instrumented(script, instrument=False, code=1, stderr=".*")
    instrumented = run_instrumented(script, code=1, stderr=".*")

    def last_line(process: subprocess.CompletedProcess[str]) -> str:
        return process.stderr.splitlines()[-1]

    assert "NotFoundError" in last_line(bare)
    assert last_line(instrumented) == last_line(bare)
    (row,) = rows()
    assert (row["status"], row["input_tokens"], row["cost_usd"]) == ("error", None, None)


def test_the_launcher_is_found() -> None:
    """The tests stand on it: an environment without it would skip what they promise."""
    assert (SCRIPTS / "opentelemetry-instrument").is_file()
    assert (SCRIPTS / "otel-llm").is_file()


# --- metrics and events ----------------------------------------------------------------------------------------------
METRICS = {"gen_ai.client.inference.duration", "gen_ai.client.inference.usage.input_tokens"}


def test_a_tracing_backend_gets_no_metrics_it_would_refuse(run_instrumented: Run) -> None:
    """An endpoint alone may be Jaeger's, which takes traces; stderr stays empty."""
    with OtlpReceiver() as receiver:
        run_instrumented(ASK, env=receiver.environment("http/protobuf"))
        assert receiver.spans
        assert receiver.metrics == {}


@pytest.mark.parametrize("way", ["exporter", "endpoint"])
def test_metrics_go_where_they_are_asked_to(way: str, run_instrumented: Run, rows: Rows) -> None:
    with OtlpReceiver(all_signals=True) as receiver:
        endpoint = receiver.endpoint("http/protobuf")
        if way == "exporter":
            env = {**receiver.environment("http/protobuf"), "OTEL_METRICS_EXPORTER": "otlp"}
        else:
            env = {
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{endpoint}/v1/metrics",
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf",
            }
        run_instrumented(ASK * 2, env=env)
        metrics = receiver.metrics
    assert set(metrics) >= METRICS
    (point,) = metrics["gen_ai.client.inference.duration"].histogram.data_points
    assert point.count == len(rows()) == 2
    (tokens,) = metrics["gen_ai.client.inference.usage.input_tokens"].sum.data_points
    assert tokens.as_int == sum(row["input_tokens"] for row in rows())


def test_events_go_where_they_are_asked_to(run_instrumented: Run, rows: Rows) -> None:
    with OtlpReceiver(all_signals=True) as receiver:
        env = {
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{receiver.endpoint('http/protobuf')}/v1/logs",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "EVENT_ONLY",
        }
        run_instrumented(ASK, env=env)
        (event,) = receiver.logs
    (row,) = rows()
    assert event.event_name == "gen_ai.client.inference.operation.details"
    assert (event.trace_id.hex(), event.span_id.hex()) == (row["trace_id"], row["span_id"])
    held = {pair.key: pair.value for pair in event.attributes}
    (message,) = held["gen_ai.input.messages"].array_value.values
    assert {pair.key: pair.value.string_value for pair in message.kvlist_value.values}["role"] == "user"
    assert row["input_messages"] is None


def test_a_redactor_that_is_not_there(run_instrumented: Run, rows: Rows) -> None:
    env = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY", "OTEL_LLM_REDACT": "nowhere:redact"}
    run_instrumented(ASK, env=env, stderr="^OTEL_LLM_REDACT=nowhere:redact cannot be loaded .* no content is recorded")
    (row,) = rows()
    assert row["input_messages"] is None
