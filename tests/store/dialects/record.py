"""Records the spans that another instrumentation really makes, for `test_dialects.py`.

    python tests/store/dialects/record.py > tests/store/dialects/openinference.json

Run it in an environment that has otel-llm with its extras and one family of instrumentations, for both clients. Every
scenario runs twice: with theirs alone, and with ours beside it. What was billed is the local server's ledger.

Whatever holds a prompt or an answer is replaced by `CONTENT`: so the recordings are small, and a test can look for it. Where
other facts are read from the JSON that holds it (`JSON`), the rest of it is kept.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

from local_openai import LocalOpenAI

CONTENT = "CONTENT"
WORD = "pomegranate"
"""In every prompt and tool result; the server quotes prompts in its answers."""
PROMPT = f"What is a {WORD} and where does it grow best?"
JSON = ("output.value", "llm.invocation_parameters")
LONGEST = 1000
MODEL, REASONING_MODEL, EMBEDDING_MODEL = "gpt-4o-mini", "o3-mini", "text-embedding-3-small"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]


def scenarios(openai: Any, langchain: Any) -> dict[str, Callable[[], object]]:
    """What is recorded, by name. Imported clients are given: they are imported after they have been instrumented."""

    def stream(usage: bool) -> None:
        options = {"stream_options": {"include_usage": True}} if usage else {}
        list(openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **options))

    def error() -> None:
        try:
            openai.with_options(max_retries=0).chat.completions.create(model="error-429-echo", messages=MESSAGES)
        except Exception as expected:
            assert type(expected).__name__ == "RateLimitError"

    return {
        "chat": lambda: openai.chat.completions.create(model=MODEL, messages=MESSAGES),
        "chat, reasoning": lambda: openai.chat.completions.create(model=REASONING_MODEL, messages=MESSAGES),
        "chat, streamed": lambda: stream(True),
        "chat, streamed without usage": lambda: stream(False),
        "chat, error": error,
        "responses": lambda: openai.responses.create(model=MODEL, input=PROMPT),
        "responses, streamed": lambda: list(openai.responses.create(model=MODEL, input=PROMPT, stream=True)),
        "embeddings": lambda: openai.embeddings.create(model=EMBEDDING_MODEL, input=PROMPT),
        "chain": lambda: langchain.chain.invoke({"fruit": WORD}),
        "chain, streamed": lambda: list(langchain.chain.stream({"fruit": WORD})),
        "chat, twice with a cache": lambda: [langchain.cached.invoke(PROMPT) for _ in range(2)],
        "agent": lambda: langchain.agent.invoke({"messages": [("user", PROMPT)]}),
    }


class LangChain:
    """A chain, an agent and a model with a cache."""

    def __init__(self) -> None:
        from langchain.agents import create_agent
        from langchain_core.caches import InMemoryCache
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import ChatPromptTemplate
        from langchain_core.tools import tool
        from langchain_openai import ChatOpenAI

        @tool
        def orchards(question: str) -> str:
            """Where a fruit grows."""
            return f"The {WORD} grows in Lisbon."

        model = ChatOpenAI(model=MODEL, stream_usage=True)
        self.chain = ChatPromptTemplate.from_template("What is a {fruit}?") | model | StrOutputParser()
        self.cached = ChatOpenAI(model=MODEL, cache=InMemoryCache())
        self.agent = create_agent(model, tools=[orchards], name="gardener")


def main() -> None:
    """Prints the recording."""
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    theirs, ours = [], []
    for entry in importlib.metadata.entry_points(group="opentelemetry_instrumentor"):
        (ours if entry.name.startswith("otel_llm") else theirs).append(entry)
    with LocalOpenAI() as server:
        os.environ |= server.environment
        recording: dict[str, Any] = {"versions": dict(sorted(versions(theirs).items()))}
        for name, group in (("alone", theirs), ("with ours", [*theirs, *ours])):
            for entry in group:
                entry.load()().instrument()  # a second time does nothing
            from openai import OpenAI

            recorded = recording[name] = {}
            for scenario, run in scenarios(OpenAI(), LangChain()).items():
                server.reset()
                memory.clear()
                run()
                recorded[scenario] = {
                    "billed": [billed(call) for call in server.ledger],
                    "spans": renumbered([described(span) for span in memory.get_finished_spans()]),
                }
    json.dump(recording, sys.stdout, indent=1)
    print()


def versions(entries: Sequence[importlib.metadata.EntryPoint]) -> dict[str, str]:
    names = {entry.dist.name for entry in entries if entry.dist} | {"openai", "langchain", "langchain-openai"}
    return {name: importlib.metadata.version(name) for name in names}


def billed(call: Any) -> dict[str, Any]:
    """What the server says of a call."""
    fields = ("endpoint", "model", "response_model", "response_id", "stream", "usage", "reported")
    return {name: getattr(call, name) for name in fields}


def described(span: ReadableSpan) -> dict[str, Any]:
    """A span as JSON, without content."""
    assert span.context is not None and span.instrumentation_scope is not None
    return {
        "name": without_content(span.name),
        "scope": span.instrumentation_scope.name,
        "trace_id": span.context.trace_id,
        "span_id": span.context.span_id,
        "parent_id": span.parent.span_id if span.parent else None,
        "kind": span.kind.name,
        "start": span.start_time,
        "end": span.end_time,
        "status": span.status.status_code.name,
        "description": without_content(span.status.description),
        "attributes": {name: attribute(name, value) for name, value in (span.attributes or {}).items()},
        "events": [
            {
                "name": event.name,
                "time": event.timestamp,
                "attributes": {name: attribute(name, value) for name, value in (event.attributes or {}).items()},
            }
            for event in span.events[:3]
        ],
    }


def attribute(name: str, value: Any) -> Any:
    """The value of an attribute, without content."""
    if name in JSON:
        try:
            return json.dumps(without_content(json.loads(value)))
        except ValueError:
            pass
    return without_content(value)


def without_content(value: Any) -> Any:
    """The value, `CONTENT` where it holds what was said; what is long is cut."""
    match value:
        case str():
            return CONTENT if WORD in value else value[:LONGEST]
        case dict():
            return {name: without_content(item) for name, item in value.items()}
        case list() | tuple():
            return [without_content(item) for item in (value[:1] if len(value) > 8 else value)]
    return value


def renumbered(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Small ids and times from zero, so that two recordings can be compared."""
    ids: dict[Any, int] = {}
    zero = min((span["start"] for span in spans), default=0)
    for span in sorted(spans, key=lambda span: span["start"]):
        for name in ("trace_id", "span_id", "parent_id"):
            if span[name] is not None:
                span[name] = ids.setdefault(span[name], len(ids) + 1)
        span["start"] -= zero
        span["end"] -= zero
        for event in span["events"]:
            event["time"] -= zero
    return spans


if __name__ == "__main__":
    main()
