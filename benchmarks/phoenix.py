"""The same agent run in Phoenix and in `otel-llm ui`: from the command to the first trace on the screen, and memory.

    python -m venv /tmp/phx && /tmp/phx/bin/pip install arize-phoenix openinference-instrumentation-openai openai
    python benchmarks/phoenix.py --phoenix /tmp/phx/bin [--runs 3] [--calls 2000] [--pictures FOLDER]

An agent asks `examples/local_openai.py` which tool to take, runs it and asks again. One program, told once by OpenInference to
Phoenix and once by otel-llm to its store. The clock starts with the command of the server, on an empty directory; the program is
started when the server answers; the clock stops when a real Chromium, which has been looking at the list, shows the run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_AGENT = """
import json, os, sys
from openai import OpenAI

if os.environ["TOLD_BY"] == "openinference":
    from phoenix.otel import register
    provider = register(auto_instrument=True, verbose=False)
    tracer = provider.get_tracer("agent")
    agent, tool, end = tracer.agent(name="tyre advice"), tracer.tool, provider.force_flush
else:
    import otel_llm
    otel_llm.instrument()
    agent, tool, end = otel_llm.chain("tyre advice"), otel_llm.tool, otel_llm.flush

client = OpenAI()
TOOLS = [{"type": "function", "function": {"name": "stock", "description": "How many tyres of a size are there",
    "parameters": {"type": "object", "properties": {"size": {"type": "string"}}, "required": ["size"]}}}]

@tool
def stock(size: str) -> str:
    return json.dumps({"size": size, "left": 14})

@agent
def advise(question):
    messages = [{"role": "system", "content": "You sell tyres."}, {"role": "user", "content": question}]
    asked = client.chat.completions.create(model="gpt-4o-mini", messages=messages, tools=TOOLS).choices[0].message
    messages.append(asked.model_dump(exclude_none=True))
    for call in asked.tool_calls or []:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": stock(call.function.arguments)})
    return client.chat.completions.create(model="gpt-5-mini", messages=messages).choices[0].message.content

for number in range(int(sys.argv[1]) // 2):
    advise(f"Which **winter tyres** fit wheel {number}?")
end()
"""


@dataclass
class Side:
    """One of the two."""

    name: str
    serve: list[str]
    environment: dict[str, str]
    base: str
    python: str
    """What runs the program."""
    look: Callable[[Any, str], None]
    """Takes a page of the browser to the list in which the run is to appear."""
    shown: str
    """What is there as soon as it is."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def rss(pid: int) -> int:
    """MB of a process and those that it has started."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(found[1]) // 1024 if found else 0) + sum(rss(int(child)) for child in children)


def phoenix(folder: Path, binaries: Path) -> Side:
    port, grpc = free_port(), free_port()
    base = f"http://127.0.0.1:{port}"
    environment = {
        "PHOENIX_WORKING_DIR": str(folder), "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_COLLECTOR_ENDPOINT": base, "PHOENIX_TELEMETRY_ENABLED": "false", "TOLD_BY": "openinference",
    }  # fmt: skip

    def look(page: Any, _: str) -> None:
        page.goto(f"{base}/projects")
        page.get_by_role("link", name="default").first.click()
        page.wait_for_url("**/projects/**")

    return Side(
        "Phoenix",
        [str(binaries / "phoenix"), "serve"],
        environment,
        base,
        str(binaries / "python"),
        look,
        "text=tyre advice",
    )


def ours(folder: Path) -> Side:
    port = free_port()
    environment = {
        "OTEL_LLM_STORE": str(folder / "usage.duckdb"), "TOLD_BY": "otel-llm",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
    }  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "otel-llm"), "ui", "--port", str(port), "--no-open"]

    def look(page: Any, url: str) -> None:
        page.goto(url)
        page.goto(f"{base}/calls")

    return Side("otel-llm", command, environment, base, sys.executable, look, "#rows [data-call]")


def answers(base: str) -> bool:
    try:
        urllib.request.urlopen(base, timeout=1).close()
    except urllib.error.HTTPError:
        return True  # it asks for a token
    except OSError:
        return False
    return True


def measure(side: Side, folder: Path, server: str, browser: Any, options: Any) -> list[float]:
    """Seconds to an answering server, and to the run on the screen; MB with it, and after many calls."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_", "PHOENIX_"))}
    environment = {**clean, **side.environment, "OPENAI_BASE_URL": server, "OPENAI_API_KEY": "x"}
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    with contextlib.ExitStack() as stack:
        stack.callback(page.close)
        begun = time.perf_counter()
        log = stack.enter_context((folder / "log").open("w+"))
        process = subprocess.Popen(side.serve, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        while not answers(side.base):
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.02)
        up = time.perf_counter() - begun
        url = re.search(r"http://\S+token=\S+", (folder / "log").read_text())
        run = [side.python, "-c", _AGENT]
        program = subprocess.Popen([*run, "2"], env=environment)
        side.look(page, url[0] if url else side.base)
        page.locator(side.shown).first.wait_for(timeout=60_000)
        seen = time.perf_counter() - begun
        if program.wait(60):
            raise RuntimeError("the program failed")
        with_one = rss(process.pid)
        subprocess.run([*run, str(options.calls)], env=environment, check=True)
        page.wait_for_timeout(5000)
        figures = [up, seen, with_one, rss(process.pid)]
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=options.pictures / f"{side.name}-list.png")
            page.locator("#rows a" if side.name == "otel-llm" else side.shown).first.click()
            page.wait_for_timeout(3000)
            page.screenshot(path=options.pictures / f"{side.name}-trace.png")
        return figures


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phoenix", type=Path, required=True, help="the directory of its commands")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    from local_openai import LocalOpenAI

    with LocalOpenAI() as server, sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print(f"{'':<10} {'answers':>8} {'run seen':>9} {'MB':>6} {f'MB after {options.calls} calls':>20}")
        for make in (lambda folder: phoenix(folder, options.phoenix), ours):
            runs = []
            for _ in range(options.runs):
                with tempfile.TemporaryDirectory() as folder:
                    side = make(Path(folder))
                    runs.append(measure(side, Path(folder), server.base_url, browser, options))
            up, seen, one, many = (statistics.median(figures) for figures in zip(*runs, strict=True))
            print(f"{side.name:<10} {up:>6.1f} s {seen:>7.1f} s {one:>6.0f} {many:>20.0f}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
