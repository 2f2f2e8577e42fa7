"""The files of otel_llm that each journey of docs/architecture.md passes, seen by a profiler: a JSON object by the journey's name.

    python -m tests.journeys    # how many each passes, on stderr

What is done for the first time alone (imports, settings, connections) is done before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from local_openai import LocalOpenAI  # noqa: E402

import otel_llm  # noqa: E402


def passed(journey: Callable[[], object]) -> list[str]:
    """The files whose functions run, in every thread, in the order of their first turn."""
    files: dict[str, None] = {}
    package = Path(otel_llm.__file__).parent
    prefix = f"{package}{os.sep}"

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(prefix) and frame.f_code.co_name != "<module>":
            files[Path(frame.f_code.co_filename).relative_to(package.parent).as_posix()] = None

    threading.setprofile(see)
    sys.setprofile(see)
    try:
        journey()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(files)


def main(store: Path) -> dict[str, list[str]]:
    """Goes on every journey twice; returns what the second time passed."""
    # Merged when it is said to, not in the middle of another journey.
    os.environ |= {"OTEL_LLM_STORE": str(store), "OTEL_LLM_FLUSH_INTERVAL": "3600"}
    with LocalOpenAI() as server:
        os.environ |= server.environment
        otel_llm.instrument()

        import openai
        from langchain.agents import create_agent
        from langchain_core.tools import tool
        from langchain_openai import ChatOpenAI
        from opentelemetry import trace

        from otel_llm import cli

        client = openai.OpenAI()
        tracer = trace.get_tracer("opentelemetry.instrumentation.openai.v1")

        @tool
        def weather(city: str) -> str:
            """The weather."""
            return f"sunny in {city}"

        agent = create_agent(ChatOpenAI(model="gpt-4o-mini"), tools=[weather], name="weather-agent")

        def chat() -> None:
            client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello!"}])

        def foreign() -> None:
            asked = {"gen_ai.system": "openai", "llm.request.type": "chat", "gen_ai.request.model": "gpt-4o-mini"}
            with tracer.start_as_current_span("chat", attributes=asked) as span:
                span.set_attribute("gen_ai.usage.prompt_tokens", 3)
            otel_llm.flush()

        def usage() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                assert cli.main(["usage"]) == 0

        found = {}
        for _ in range(2):
            found["A chat call"] = passed(chat)
            with client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello!"}], stream=True
            ) as stream:
                next(stream)
                found["A streamed chunk"] = passed(lambda stream=stream: next(stream))
            found["An agent's run"] = passed(lambda: agent.invoke({"messages": [("user", "Lisbon?")]}))
            found["A merge"] = passed(otel_llm.flush)
            found["A foreign span"] = passed(foreign)
            chat()
            found["`otel-llm usage`"] = passed(usage)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        journeys = main(Path(folder) / "usage.duckdb")
    for name, files in journeys.items():
        print(f"{name}: {len(files)} files", file=sys.stderr)
    print(json.dumps(journeys))
