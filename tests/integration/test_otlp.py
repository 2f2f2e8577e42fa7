"""What a real OTLP receiver gets from a real process, held against what the store of that process keeps."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from otel_llm.setup import sdk
from tests.conftest import Rows, Run
from tests.integration.otlp_receiver import PROTOCOLS, OtlpReceiver, Protocol, ReceivedSpan

OURS = {
    # The stock distro may be installed as well, and which one `opentelemetry-instrument` takes is a matter of chance.
    "OTEL_PYTHON_DISTRO": "otel_llm",
    "OTEL_SERVICE_NAME": "otlp-test",
}
# Without `started_at`: DuckDB makes a datetime with a zone only where pytz is installed.
SPANS = "select * exclude (started_at) from spans"
USAGE = "select * exclude (started_at) from llm_usage order by started_at, span_id"

CALLS = """
    import openai
    from opentelemetry import trace

    from otel_llm import llm_context

    client = openai.OpenAI(max_retries=0)
    tracer = trace.get_tracer("the.app", "1.2.3")
    question = [{"role": "user", "content": "How many sheep are there?"}]

    with tracer.start_as_current_span("housekeeping"):
        pass
    with (
        llm_context("reports", user_id="alice", session_id="s-1", team="blue"),
        tracer.start_as_current_span(
            "nightly-report",
            kind=trace.SpanKind.CONSUMER,
            attributes={"whole": 1, "real": 1.0, "flag": True, "list": ["a", "b"], "numbers": [0.5, 2.0], "text": "å"},
        ) as report,
    ):
        report.add_event("began", {"attempt": 1, "late": False})
        client.chat.completions.create(
            model="gpt-4o-mini", messages=question, temperature=1.0, top_p=0.5, seed=7, n=2, stop=["END", "STOP"]
        )
        for _ in client.chat.completions.create(
            model="gpt-4o-mini", messages=question, stream=True, stream_options={"include_usage": True}
        ):
            pass
        client.responses.create(model="gpt-5-mini", input="How many?", reasoning={"effort": "low"})
        client.embeddings.create(model="text-embedding-3-small", input="sheep", dimensions=8)
        try:
            client.chat.completions.create(model="error-500", messages=question)
        except openai.InternalServerError as error:
            report.record_exception(error)
        report.set_status(trace.StatusCode.ERROR, "one of five failed")
"""
CALLS_MODEL_SPANS = [
    "chat error-500",
    "chat gpt-4o-mini",
    "chat gpt-4o-mini",
    "chat gpt-5-mini",
    "embeddings text-embedding-3-small",
]

AGENT = """
    from langchain.agents import create_agent
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from opentelemetry import trace

    from otel_llm import llm_context

    @tool
    def weather(city: str) -> str:
        "The weather in a city."
        return f"It is sunny in {city}."

    agent = create_agent(ChatOpenAI(model="gpt-4o-mini"), tools=[weather], name="weather-agent")
    tracer = trace.get_tracer("the.app")
    with llm_context("travel", conversation_id="trip-7"), tracer.start_as_current_span("request"):
        agent.invoke({"messages": [("user", "How is the weather in Lisbon?")]})
"""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def identity(span: ReceivedSpan) -> tuple[str, str]:
    return span.trace_id, span.span_id


def strict(value: Any) -> str:
    """JSON text, in which `1`, `1.0` and `true` are not equal as they are in Python."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


ERROR_TEXTS = ("exception.message", "exception.stacktrace")
"""What an app records of its errors it may send where it likes; the store keeps none of it, for it can quote a prompt."""


def of_received(span: ReceivedSpan) -> dict[str, str]:
    """What is compared, of a span that came over OTLP."""
    events = [
        [
            event.name,
            event.time_ns,
            {name: value for name, value in event.attributes.items() if name not in ERROR_TEXTS},
        ]
        for event in span.events
    ]
    return {
        "name": span.name,
        "parent": strict(span.parent_span_id),
        "kind": span.kind,
        "time": strict([span.start_ns, span.end_ns]),
        "attributes": strict(span.attributes),
        "status": strict(span.status_code),
        "events": strict(events),
        "resource": strict(span.resource),
        "scope": strict([span.scope_name, span.scope_version]),
    }


def of_stored(row: dict[str, Any]) -> dict[str, str]:
    """The same of a row of `spans`."""
    events = json.loads(row["events"] or "[]")
    return {
        "name": row["name"],
        "parent": strict(row["parent_span_id"]),
        "kind": row["kind"],
        "time": strict([row["start_ns"], row["end_ns"]]),
        "attributes": strict(json.loads(row["attributes"] or "{}")),
        "status": strict(row["status_code"]),
        "events": strict([[event["name"], event["time_unix_nano"], event["attributes"]] for event in events]),
        "resource": strict(json.loads(row["resource"])),
        "scope": strict([row["scope_name"], row["scope_version"] or ""]),
    }


def assert_same(received: list[ReceivedSpan], stored: list[dict[str, Any]]) -> None:
    """Both have the same spans, each once, and they agree in everything that is compared."""
    over_otlp = {identity(span): of_received(span) for span in received}
    in_store = {(row["trace_id"], row["span_id"]): of_stored(row) for row in stored}
    assert len(over_otlp) == len(received)
    assert len(in_store) == len(stored)
    assert over_otlp == in_store


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_receiver_gets_what_the_store_keeps(
    protocol: Protocol, receiver: OtlpReceiver, run_instrumented: Run, rows: Rows
) -> None:
    run_instrumented(textwrap.dedent(CALLS), env={**OURS, **receiver.environment(protocol)})

    received = receiver.spans
    assert {span.protocol for span in received} == {protocol}
    # What has no model call below it is of no interest to the account.
    of_interest = [span for span in received if span.name != "housekeeping"]
    assert len(received) - len(of_interest) == 1
    assert_same(of_interest, rows(SPANS))

    # Not only the same, but what was done.
    (report,) = (span for span in received if span.name == "nightly-report")
    children = [span for span in of_interest if span is not report]
    assert sorted(span.name for span in children) == CALLS_MODEL_SPANS
    assert {(span.trace_id, span.parent_span_id, span.kind) for span in children} == {
        (report.trace_id, report.span_id, "CLIENT")
    }
    assert (report.kind, report.status_code, report.status_message) == ("CONSUMER", "ERROR", "one of five failed")
    assert [event.name for event in report.events] == ["began", "exception"]
    (failed,) = (span for span in children if span.name == "chat error-500")
    assert (failed.status_code, failed.status_message, failed.attributes["error.type"]) == ("ERROR", "", "500")
    assert {span.resource["service.name"] for span in received} == {"otlp-test"}
    assert {span.attributes["user.id"] for span in children} == {"alice"}

    # And each model call is one row of the account, under the same identity.
    account = {(row["trace_id"], row["span_id"]): row for row in rows(USAGE)}
    assert set(account) == {identity(span) for span in children}
    for span in children:
        row = account[identity(span)]
        assert row["input_tokens"] == span.attributes.get("gen_ai.usage.input_tokens")
        assert row["output_tokens"] == span.attributes.get("gen_ai.usage.output_tokens")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_agents_tree_is_the_same_on_both_sides(
    protocol: Protocol, receiver: OtlpReceiver, run_instrumented: Run, rows: Rows
) -> None:
    pytest.importorskip("langchain_openai")
    run_instrumented(textwrap.dedent(AGENT), env={**OURS, **receiver.environment(protocol)})

    received = receiver.spans
    assert_same(received, rows(SPANS))

    by_id = {span.span_id: span for span in received}
    names = [span.name for span in received]
    assert names.count("chat gpt-4o-mini") == 2
    assert names.count("execute_tool weather") == 1
    assert names.count("invoke_agent weather-agent") == 1
    (root,) = (span for span in received if span.parent_span_id is None)
    assert root.name == "request"
    # One tree: every parent is there, and the agent is above each model call and the tool.
    for span in received:
        path = [span.name]
        while span.parent_span_id is not None:
            span = by_id[span.parent_span_id]
            path.append(span.name)
        assert path[-1] == "request"
        if path[0].startswith(("chat", "execute_tool")):
            assert "invoke_agent weather-agent" in path
    assert len(rows(USAGE)) == 2


LARGE = """
    from opentelemetry import trace

    for number in range(40):
        with trace.get_tracer("app").start_as_current_span(f"span {number}", attributes={"text": "x" * 200_000}):
            pass
"""


@pytest.mark.parametrize("instrument", [True, False], ids=["launched", "from code"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_more_than_a_receiver_takes_at_once(
    protocol: Protocol, instrument: bool, receiver: OtlpReceiver, run_instrumented: Run
) -> None:
    """8 MB of spans in one batch of the SDK's; over gRPC, a request of more than 4 MiB is refused whole."""
    script = textwrap.dedent(LARGE)
    if not instrument:
        script = f"import otel_llm\notel_llm.instrument()\n{script}"
    run_instrumented(script, env={**OURS, **receiver.environment(protocol)}, instrument=instrument)
    assert sorted(int(span.name.split()[1]) for span in receiver.spans) == list(range(40))
    if protocol == "http/protobuf":
        assert max(map(len, receiver.bodies())) < 4 * 2**20


def test_gzip_over_http(receiver: OtlpReceiver, run_instrumented: Run, rows: Rows) -> None:
    environment = {**OURS, **receiver.environment("http/protobuf"), "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    run_instrumented(textwrap.dedent(CALLS), env=environment)

    assert set(receiver.content_encodings) == {"gzip"}
    assert_same([span for span in receiver.spans if span.name != "housekeeping"], rows(SPANS))


def test_what_the_sampler_drops_is_in_the_account_alone(
    receiver: OtlpReceiver, run_instrumented: Run, rows: Rows
) -> None:
    environment = {**OURS, **receiver.environment("http/protobuf"), "OTEL_TRACES_SAMPLER": "always_off"}
    run_instrumented(textwrap.dedent(CALLS), env=environment)

    assert receiver.spans == []
    assert sorted(f"{row['operation']} {row['request_model']}" for row in rows(USAGE)) == CALLS_MODEL_SPANS
    assert [row["status"] for row in rows(USAGE)] == ["ok", "ok", "ok", "ok", "error"]


def test_without_an_endpoint_nothing_is_sent(
    receiver: OtlpReceiver, run_instrumented: Run, rows: Rows, openai_server: Any
) -> None:
    # The hook sees every connection that Python code opens, those at exit included; gRPC's own are made in C, so that no
    # exporter may have been loaded at all.
    watched = """
        import sys

        def watch(event, arguments):
            if event == "socket.connect":
                print("connect", arguments[1][1])

        sys.addaudithook(watch)
        exporters = [name for name in sys.modules if name.startswith(("grpc", "opentelemetry.exporter.otlp.proto."))]
        print("exporters", exporters)
    """
    process = run_instrumented(textwrap.dedent(watched) + textwrap.dedent(CALLS), env=OURS)

    lines = process.stdout.splitlines()
    assert lines[0] == "exporters []"
    assert set(lines[1:]) == {f"connect {openai_server.port}"}
    assert receiver.spans == []
    assert len(rows(USAGE)) == len(CALLS_MODEL_SPANS)


@pytest.mark.parametrize(
    ("given", "exporters", "protocol"),
    [
        ({}, "duckdb", None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp,duckdb", "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, "otlp,duckdb", "grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example"}, "otlp,duckdb", "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp,duckdb", "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "otlp,duckdb",
            "grpc",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "otlp,duckdb",
            None,
        ),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console", None),
        ({"OTEL_TRACES_EXPORTER": "otlp,duckdb"}, "otlp,duckdb", "http/protobuf"),
    ],
)
def test_defaults(given: dict[str, str], exporters: str, protocol: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP, whatever the SDK's own default, but for the port of gRPC; what is given stays."""
    # A copy, because `set_defaults` writes to the process's environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | given
    monkeypatch.setattr(os, "environ", environment)
    sdk.set_defaults()
    assert environment["OTEL_TRACES_EXPORTER"] == exporters
    assert environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") == protocol
