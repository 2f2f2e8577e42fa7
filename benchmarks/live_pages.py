"""What the live page of `otel-llm ui` does under traffic: memory of its server, and from a call's end to its line on the screen.

    python benchmarks/live_pages.py [--minutes 60] [--rate 20] [--tabs 1] [--slow 0]

Calls are made at that rate against `examples/local_openai.py`, under `opentelemetry-instrument`; the real command is started on the
store, and so many tabs of a real Chromium have the page of calls open. Each minute the memory of the server is noted.
At the end, for each call: when it ended (as the store has it) and when its line was drawn in the first tab. `--slow` opens as many
connections besides that ask for a page and for the stream of hints, and read nothing of the answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = """
import sys, time
import otel_llm
from openai import OpenAI
client, rate, seconds, number = OpenAI(max_retries=0), float(sys.argv[1]), float(sys.argv[2]), 0
begun = time.monotonic()
while time.monotonic() - begun < seconds:
    number += 1
    time.sleep(max(begun + number / rate - time.monotonic(), 0))
    with otel_llm.llm_context(user_id=f"user-{number % 20}", module=("chat", "search")[number % 2], team="core"):
        client.chat.completions.create(
            model=("gpt-4o-mini", "gpt-5-mini")[number % 2], messages=[{"role": "user", "content": f"Question {number}"}])
print(number)
"""
_WATCH = """
window.drawn = [];
new MutationObserver((changes) => {
  const ids = changes.flatMap((change) => [...change.addedNodes])
    .flatMap((node) => node.dataset?.call ? [node.dataset.call] : []);
  if (ids.length) requestAnimationFrame(() => setTimeout(() => {
    const now = performance.timeOrigin + performance.now();
    window.drawn.push(...ids.map((id) => [id, now]));
  }));
}).observe(document.querySelector("#rows"), { childList: true });
"""


def rss(pid: int) -> float:
    """MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def slow_browser(url: str, cookie: str, path: str) -> socket.socket:
    """Asks and does not read."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((parts.hostname, parts.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncookie: {cookie}\r\n\r\n".encode())
    return connection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--tabs", type=int, default=1)
    parser.add_argument("--slow", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measure(Path(folder), options, stack)


def measure(folder: Path, options: Any, stack: contextlib.ExitStack) -> None:
    from playwright.sync_api import sync_playwright

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    scripts = str(Path(sys.executable).parent)
    environment |= {
        "OTEL_LLM_STORE": str(folder / "usage.duckdb"),
        "OTEL_PYTHON_DISTRO": "otel_llm",
        "OPENAI_API_KEY": "x",
    }
    environment["PATH"] = os.pathsep.join((scripts, environment.get("PATH", "")))

    def run(*command: str, **more: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **more)
        stack.callback(process.terminate)
        return process

    server = run(sys.executable, str(ROOT / "examples" / "local_openai.py"), "--port", "0")
    environment["OPENAI_BASE_URL"] = _url(server)
    page_server = run("otel-llm", "ui", "--port", "0", "--no-open")
    url = _url(page_server)
    base = url.partition("?")[0]
    command = ("opentelemetry-instrument", sys.executable, "-c", _TRAFFIC, str(options.rate))
    run(*command, "1").wait()  # so that there is something to look at
    playwright = stack.enter_context(sync_playwright())
    chromium = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    pages: list[Any] = []
    for _ in range(options.tabs):
        page = context.new_page()
        if not pages:
            page.goto(url)  # the token
        page.goto(f"{base}calls?period=24h", wait_until="commit", timeout=120_000)
        pages.append(page)
    for page in pages:
        page.locator("#live-state[data-state=live]").wait_for(timeout=120_000)
    pages[0].evaluate(_WATCH)
    watched_from = time.time()
    traffic = run(*command, str(options.minutes * 60))
    cookie = "; ".join(f"{one['name']}={one['value']}" for one in context.cookies())
    held = [slow_browser(url, cookie, ("/live", "/calls?period=24h")[number % 2]) for number in range(options.slow)]
    print("minute, MB of the server, lines in the table, calls drawn so far", flush=True)
    minute = 0
    drawn: dict[str, float] = {}
    while traffic.poll() is None:
        print(
            f"{minute:>6} {rss(page_server.pid):>8.1f} {pages[0].locator('#rows tr').count():>6} {len(drawn):>7}",
            flush=True,
        )
        for _ in range(12 if options.minutes >= 5 else 2):
            pages[0].wait_for_timeout(5000)
            found: list[tuple[str, float]] = pages[0].evaluate("window.drawn.splice(0)")
            for call, at in found:
                drawn.setdefault(call, at / 1000)
        minute += 1
    made = int((traffic.stdout.read() if traffic.stdout else "0") or 0)
    watched_to = time.time()
    pages[0].wait_for_timeout(3000)
    for call, at in pages[0].evaluate("window.drawn.splice(0)"):
        drawn.setdefault(call, at / 1000)
    live_tabs = sum(page.locator("#live-state[data-state=live]").count() for page in pages)
    newest = {page.locator("#rows [data-call]").first.get_attribute("data-call") for page in pages}
    print(f"{minute:>6} {rss(page_server.pid):>8.1f} after the traffic", flush=True)
    for connection in held:
        connection.close()
    ended = _ends(environment)
    shown = [drawn[call] - end for call, end in ended.items() if call in drawn and watched_from < end < watched_to]
    missed = [call for call, end in ended.items() if call not in drawn and watched_from + 2 < end < watched_to - 2]
    hundredths = statistics.quantiles(shown, n=1000)
    print(
        f"{made} calls at {options.rate:g} a second; {live_tabs} of {options.tabs} tabs live, newest lines: {len(newest)}"
    )
    print(f"drawn {len(shown)}, not drawn {len(missed)}")
    print(
        "seconds from the end of a call to its line: "
        f"p50 {statistics.median(shown):.2f}, p95 {hundredths[949]:.2f}, p99 {hundredths[989]:.2f}, longest {max(shown):.2f}"
    )
    browser.close()


def _ends(environment: dict[str, str]) -> dict[str, float]:
    """When each call ended, by its trace and span."""
    sql = "SELECT trace_id || '-' || span_id AS call, epoch_us(started_at) / 1e6 + duration_ms / 1000 AS ended FROM llm_usage"
    found = subprocess.run(
        ["otel-llm", "sql", sql, "--format", "json"], env=environment, capture_output=True, text=True, check=True
    )
    return {row["call"]: row["ended"] for row in json.loads(found.stdout)}


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    return found[0]


if __name__ == "__main__":
    main()
