"""`otel-llm doctor`."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import duckdb
import pytest

from otel_llm.store.journal.writer import Journal
from otel_llm.store.paths import StorePaths
from otel_llm.version import __version__
from tests.cli.conftest import Fill, Run
from tests.store.conftest import write_call

CALL = {"request_model": "gpt-5-mini", "input_tokens": 1000, "cost_usd": "0.000450"}


DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"


@pytest.fixture(autouse=True)
def _others_stand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock distro and a peer may be installed for other tests."""
    monkeypatch.setenv("OTEL_PYTHON_DISTRO", "otel_llm")
    instrumentors = metadata.entry_points(group="opentelemetry_instrumentor")
    monkeypatch.setenv(DISABLED, ",".join(entry.name for entry in instrumentors if "otel_llm" not in entry.value))


@pytest.fixture
def examine(run: Run) -> Any:
    def report(*arguments: str) -> dict[str, Any]:
        result = run("doctor", "--json", *arguments)
        assert result.err == ""
        found: dict[str, Any] = json.loads(result.out)
        assert result.code == (0 if found["ok"] else 1)
        assert found["ok"] is not bool(found["problems"])
        return found

    return report


def problems(report: dict[str, Any]) -> str:
    return "\n".join(f"{problem['what']} -> {problem['remedy']}" for problem in report["problems"])


def remarks(report: dict[str, Any]) -> str:
    return "\n".join(f"{remark['what']} -> {remark['remedy']}" for remark in report["remarks"])


def test_all_is_well(fill: Fill, examine: Any, run: Run, store_path: Path) -> None:
    fill(CALL, {**CALL, "status": "error", "cost_usd": None})
    report = examine()
    assert report["ok"], problems(report)
    assert report["versions"]["otel-llm"] == __version__
    assert report["versions"]["duckdb"] == metadata.version("duckdb")
    assert report["instrumentation"]["otel_llm_openai"].endswith("would be patched")
    assert report["export"]["traces_exporter"] == "duckdb (default)"
    store = report["store"]
    assert store["path"] == str(store_path)
    assert (store["chosen_by"], store["calls"], store["unpriced"]) == ("OTEL_LLM_STORE", 2, 1)
    assert store["by_status"] == {"error": 1, "ok": 1}
    assert store["size"] >= store["in_use"] > 0
    assert store["kept"] == "everything"
    assert (store["pending"], store["running_writers"], store["corrupt_lines"]) == (0, 0, 0)
    assert report["prices"]["library"] == f"genai-prices {metadata.version('genai-prices')}"

    shown = run("doctor")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.endswith("All is well.\n")
    assert str(store_path) in shown.out


def test_what_has_not_arrived_over_otlp(examine: Any, store_path: Path) -> None:
    """Of programs that have ended: what a running one has under way is its own."""
    gone, running = (Journal(StorePaths.of(store_path).journal) for _ in range(2))
    for journal, times in ((gone, 2), (running, 1)):
        for _ in range(times):
            write_call(journal, o="http://there:4317")
    write_call(gone)
    gone.close()
    report = examine()
    assert report["store"]["missing_over_otlp"] == 2
    assert "2 spans of ended programs have not arrived at http://there:4317" in json.dumps(report)
    assert "otel-llm replay --missing --endpoint http://there:4317" in json.dumps(report)
    running.close()
    assert examine()["store"]["missing_over_otlp"] == 3


def test_how_long_calls_are_kept(fill: Fill, examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(CALL)
    monkeypatch.setenv("OTEL_LLM_RETENTION", "90d")
    monkeypatch.setenv("OTEL_LLM_MAX_SIZE", "2GB")
    kept = examine()["store"]["kept"]
    assert kept == "for 90d (OTEL_LLM_RETENTION) and up to 2GB in use (OTEL_LLM_MAX_SIZE)"


def test_a_store_that_is_not_there_yet_is_no_fault(examine: Any, run: Run, store_path: Path) -> None:
    assert run("doctor").out.endswith("Nothing is wrong; 1 note above.\n")
    report = examine()
    assert report["ok"], problems(report)
    assert any("no model call" in remark["what"] for remark in report["remarks"])
    assert not store_path.exists()


def test_what_is_wrong_is_shown_with_its_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    result = run("doctor")
    assert result.code == 1
    assert "  wrong: OTEL_SDK_DISABLED=true: nothing is recorded\n    unset OTEL_SDK_DISABLED\n" in result.out
    assert result.out.endswith("1 thing is wrong.\n")


ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "nothing is recorded"),
        ({"OTEL_LLM_STORE": "none"}, "no account is kept"),
        ({"OTEL_LLM_FLUSH_INTERVAL": "often"}, "OTEL_LLM_FLUSH_INTERVAL=often is not a time"),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}, "SPAN_AND_EVENT; using NO_CONTENT"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "OTEL_TRACES_EXPORTER=none"),
        ({"OTEL_TRACES_EXPORTER": "otlp,jaeger"}, "names 'jaeger', which nothing installed provides"),
        ({ENDPOINT: "http://localhost:1"}, "nothing answers at localhost:1"),
        ({ENDPOINT: "http://localhost:$PORT"}, "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:$PORT is no URL like"),
        (
            {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://[::1:4317"},
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://[::1:4317 is no",
        ),
        ({ENDPOINT: "http://localhost:4318", PROTOCOL: "grpc"}, "grpc is spoken to port 4318"),
        ({ENDPOINT: "http://localhost:1", PROTOCOL: "thrift"}, "'thrift' is not an OTLP protocol"),
        ({"OTEL_LLM_PRICES": "/nowhere/prices.toml"}, "/nowhere/prices.toml cannot be read"),
    ],
)
def test_problems(variables: dict[str, str], what: str, examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert what in problems(examine())


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "JSON"])
def test_no_secret_is_printed(form: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://joe:S3CRET@127.0.0.1:1/v1?key=S3CRET#S3CRET"
    secrets = {
        ENDPOINT: url,
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url.replace(":1/", ":x/"),
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic S3CRET",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "password=S3CRET",
        "OTEL_RESOURCE_ATTRIBUTES": "token=S3CRET,service.name=shop",
        "OTEL_LLM_JAEGER_URL": "joe:S3CRET@jaeger:16686",
        "OTEL_LLM_FLUSH_INTERVAL": url,
        "OTEL_LLM_REDACT": "api_key=S3CRET",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    result = run("doctor", *form)
    assert result.code == 1
    assert "S3CRET" not in result.out + result.err
    assert all(name in result.out for name in secrets)
    assert "http://127.0.0.1:1/v1" in result.out and "service.name=shop" in result.out


def test_there_is_no_home_directory(examine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OTEL_LLM_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null/data")
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        report = examine()
    assert f"the account is kept in {tmp_path}" in remarks(report)
    assert report["store"]["path"].startswith(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/dev/null")
        report = examine()
    assert "no account is kept" in problems(report)


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of something that answers, as a Collector would."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_endpoint_that_answers_is_well(listener: int, examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://me:secret-word@127.0.0.1:{listener}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret-word")
    report = examine()
    assert report["ok"], problems(report)
    assert report["export"]["traces_exporter"] == "otlp, duckdb (default)"
    assert report["export"]["otlp"] == f"http/protobuf to 127.0.0.1:{listener}"
    assert report["environment"]["OTEL_EXPORTER_OTLP_HEADERS"] == "(set)"
    assert "secret-word" not in json.dumps(report)


def test_an_instrumentor_that_is_turned_off(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLED, "otel_llm_openai")
    report = examine()
    assert report["instrumentation"]["otel_llm_openai"].endswith("is not patched")
    assert f"{DISABLED} turns otel_llm_openai off" in json.dumps(report["remarks"])


def test_who_else_instruments_the_same_client(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.entry_points()
    other = metadata.EntryPoint("openai", "elsewhere.openai:Instrumentor", "opentelemetry_instrumentor")

    def with_other(**wanted: str) -> Any:
        points = list(found.select(**wanted))
        return [*points, other] if wanted.get("group") == other.group else points

    monkeypatch.setattr(metadata, "entry_points", with_other)
    monkeypatch.setenv(DISABLED, "flask")
    report = examine()
    assert (
        "elsewhere.openai:Instrumentor instruments openai as well: each call is counted once, as we record it, and has two spans "
        f"in Jaeger or any OTLP backend -> {DISABLED}=flask,openai for one span a call"
    ) in remarks(report)
    assert "elsewhere" not in problems(report)  # nothing is wrong with the account
    for settled in ("openai", "*"):
        monkeypatch.setenv(DISABLED, settled)
        assert "elsewhere" not in remarks(examine())
    monkeypatch.setenv(DISABLED, "otel_llm_openai,otel_llm_langchain")
    assert "ours are turned off, so calls are counted as elsewhere.openai:Instrumentor reports them" in remarks(
        examine()
    )


def test_who_else_reported_what_is_in_the_store(fill: Fill, examine: Any, store_path: Path) -> None:
    fill({**CALL, "instrumentation": "otel_llm.instrumentation.openai"})
    assert "in the store too" not in remarks(examine())
    with duckdb.connect(str(store_path)) as connection:
        connection.execute(
            """INSERT INTO spans (trace_id, span_id, scope_name, operation)
            VALUES ('t', 's', 'opentelemetry.instrumentation.openai.v1', 'chat'), ('t', 'u', 'someone', 'execute_tool')"""
        )
    report = examine()
    assert report["store"]["recorded_by"] == {"otel_llm.instrumentation.openai": 1}
    assert "opentelemetry.instrumentation.openai.v1 has reported 1 call in the store too" in remarks(report)
    assert "someone" not in remarks(report)


def test_damage_is_reported(fill: Fill, examine: Any, store_path: Path) -> None:
    fill(CALL)
    paths = StorePaths.of(store_path)
    paths.corrupt.mkdir(parents=True)
    (paths.corrupt / "writer-000001.jsonl").write_bytes(b"{half a li\n{another\n")
    store_path.with_name("usage.duckdb.corrupt-20261120T120000").write_bytes(b"")
    report = examine()
    assert report["store"]["corrupt_lines"] == 2
    assert "2 lines of the journal were damaged" in problems(report)
    assert "put aside as usage.duckdb.corrupt-20261120T120000" in problems(report)


def test_a_store_that_cannot_be_read_does_not_hide_the_rest(store_path: Path, examine: Any) -> None:
    store_path.write_bytes(b"not a database " * 1000)
    report = examine()
    assert not report["ok"]
    assert str(store_path) in problems(report)
    assert report["prices"]


def test_a_check_that_fails_is_a_finding(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault() -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("otel_llm.cli.checks.export_targets.export", fault)
    report = examine()
    assert "this cannot be looked at: RuntimeError: odd" in problems(report)
    assert report["store"]


def test_a_running_program_is_counted(examine: Any, store_path: Path) -> None:
    journal = Journal(StorePaths.of(store_path).journal)
    journal.append({"k": "s", "t": "a" * 32, "s": "b" * 16, "n": "chat", "st": 1}, start_of=1)
    try:
        assert examine()["store"]["running_writers"] == 1
    finally:
        journal.close()


# --- what is said, and the other signals ------------------------------------------------------------------------------

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def test_content_and_metrics_where_nobody_asked_for_them(examine: Any, run: Run) -> None:
    report = examine()
    assert report["content"] == {
        "captured": "NO_CONTENT (default)",
        "redacted_by": "built-in patterns, no function (OTEL_LLM_REDACT is not set)",
    }
    assert report["metrics"] == {"names": "current (default)", "exporter": "none (OTEL_METRICS_EXPORTER is not set)"}
    shown = run("doctor").out
    assert "\ncontent\n  captured     NO_CONTENT (default)\n  redacted by  built-in patterns, no function" in shown
    assert "\nmetrics\n  names     current (default)\n  exporter  none (OTEL_METRICS_EXPORTER is not set)\n" in shown


def test_the_redactor_is_looked_for_where_the_program_starts(
    tmp_path: Path, examine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "the_apps_own.py").write_text("print('hello from the app')\ndef redact(message): return None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CAPTURE, "span_only")
    monkeypatch.setenv("OTEL_LLM_REDACT", "the_apps_own:redact")
    report = examine()  # JSON, whatever the module prints
    assert report["ok"], problems(report)
    assert report["content"] == {
        "captured": f"SPAN_ONLY ({CAPTURE})",
        "redacted_by": "built-in patterns, the_apps_own:redact (OTEL_LLM_REDACT)",
    }
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("source", "name", "why"),
    [
        (None, "no_such_module:redact", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "without_it:redact", "has no attribute 'redact'"),
        ("redact = 1", "not_callable:redact", "names something that is no function"),
        ("", "without_colon", "is not module:function"),
        ("raise SystemExit(3)", "a_script:redact", "cannot be loaded (SystemExit: 3)"),
    ],
)
def test_a_redactor_that_cannot_be_used(
    source: str | None, name: str, why: str, tmp_path: Path, examine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_LLM_REDACT", name)
    report = examine()
    (problem,) = report["problems"]
    assert problem["what"].startswith(f"OTEL_LLM_REDACT={name} ")
    assert why in problem["what"]
    assert problem["remedy"].startswith("give module:function")
    assert report["content"]["redacted_by"].endswith(f"{name}, which cannot be used (OTEL_LLM_REDACT)")


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({CAPTURE: "EVENT_ONLY"}, "content is captured in events, and they go nowhere"),
        ({CAPTURE: "SPAN_ONLY", "OTEL_LLM_REDACT_BUILTIN": "off"}, "OTEL_LLM_REDACT_BUILTIN=off: API keys"),
        ({"OTEL_LLM_METRICS": "none", "OTEL_METRICS_EXPORTER": "console"}, "OTEL_LLM_METRICS=none: OTEL_METRICS"),
    ],
)
def test_remarks_on_content_and_metrics(
    variables: dict[str, str], what: str, examine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    report = examine()
    assert report["ok"]
    assert what in remarks(report)


def test_where_metrics_and_events_go(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE, "EVENT_ONLY")
    monkeypatch.setenv("OTEL_LLM_METRICS", "both")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "console")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{port}")
        report = examine()
    assert report["ok"], problems(report)
    assert report["metrics"] == {
        "names": "both (OTEL_LLM_METRICS)",
        "exporter": f"otlp (http/protobuf to 127.0.0.1:{port})",
    }
    assert report["content"]["events"] == "console"
    # The server is gone.
    assert f"nothing answers at 127.0.0.1:{port}" in problems(report := examine())
    assert "metrics are lost" in problems(report)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheux")
    assert "OTEL_METRICS_EXPORTER names 'prometheux', which nothing installed provides" in problems(examine())
    monkeypatch.setenv("OTEL_CONFIG_FILE", "sdk.yaml")
    assert examine()["metrics"]["exporter"] == "what sdk.yaml says"


def test_what_an_exporter_that_is_not_there_costs(examine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests/integration/test_auto_launch.py sees it happen."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheux")
    monkeypatch.setenv("OTEL_PYTHON_CONFIGURATOR", "none")
    assert "nothing is exported; calls are in the store all the same" in problems(examine())
    monkeypatch.delenv("OTEL_PYTHON_CONFIGURATOR")  # that of opentelemetry-distro comes first
    assert "nothing is exported, instrumented or recorded" in problems(examine())
