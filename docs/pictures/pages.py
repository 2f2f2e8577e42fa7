"""Draws the pictures of this folder that show the page of `otel-llm ui`: the real command, in a real Chromium.

python docs/pictures/pages.py [FOLDER]    # needs chromium; no key: examples/local_openai.py stands in for OpenAI
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from local_openai import LocalOpenAI  # noqa: E402

TRAFFIC = """
import random
import otel_llm
from openai import OpenAI

random.seed(7)
client = OpenAI(max_retries=0)

@otel_llm.tool
def stock(size: str) -> dict:
    return {"size": size, "left": 14, "price_eur": 89.9}

def ask(model, text, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)

for number in range(260):
    user, team = random.choice(["alice", "bob", "carol", "dora"]), random.choice(["core", "growth"])
    module = random.choice(["support", "search", "summaries"])
    model = random.choice(["gpt-5", "gpt-5-mini", "gpt-4o-mini", "gpt-4.1"])
    headers = {"x-local-behaviour": "error-429"} if number % 41 == 40 else None
    with otel_llm.llm_context(module, user_id=user, conversation_id=f"{user}-{number % 9}", team=team):
        try:
            ask(model, f"Which tyres fit wheel {number}? " * random.randint(1, 60), extra_headers=headers)
        except Exception:
            pass
with otel_llm.llm_context("support", user_id="alice", conversation_id="alice-tyres"), otel_llm.chain("tyre advice"):
    with otel_llm.step("plan"):
        ask("gpt-5-mini", "Which tyres fit a **28 inch** wheel, and do you have them?\\n\\n- winter\\n- summer")
    with otel_llm.step("look up"):
        stock("28 inch")
    with otel_llm.step("answer"):
        for _ in ask("gpt-5", "Say it in a sentence.", stream=True):
            pass
"""
SPREAD = """
UPDATE llm_usage SET started_at = started_at - to_hours(CAST(hash(span_id) % 330 AS INTEGER))
WHERE conversation_id IS DISTINCT FROM 'alice-tyres'
"""
"""Two weeks out of an afternoon's calls."""


def draw(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary, LocalOpenAI() as server:
        store = Path(temporary) / "usage.duckdb"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))},
            **server.environment,
            "OTEL_LLM_STORE": str(store),
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_PYTHON_DISTRO": "otel_llm",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
        }
        subprocess.run(["opentelemetry-instrument", sys.executable, "-c", TRAFFIC], env=environment, check=True)
        _spread(store)
        page = subprocess.Popen(
            ["otel-llm", "ui", "--port", "0", "--no-open", "--store", str(store)],
            env=environment, cwd=temporary, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert page.stdout is not None
            found = re.search(r"http://\S+", page.stdout.readline())
            assert found is not None
            _photograph(found[0], folder)
        finally:
            page.terminate()
            page.wait(60)


def _spread(store: Path) -> None:
    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    with exclusive.alone(StorePaths.of(store)) as connection:
        connection.execute(SPREAD)


def _photograph(url: str, folder: Path) -> None:
    base = url.partition("?")[0].rstrip("/")
    chromium = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1180, "height": 760}, color_scheme="light")
        page = context.new_page()
        page.goto(url)
        page.goto(f"{base}/?period=30d")
        page.locator("#live-state[data-state=live]").wait_for()
        page.screenshot(path=folder / "ui-overview.png")
        page.goto(f"{base}/calls?conversation=alice-tyres")
        page.locator("#rows .time a").first.click()
        page.locator(".spans a", has_text="gpt-5-mini").click()
        page.locator("#detail h2", has_text="gpt-5-mini").wait_for()
        page.set_viewport_size({"width": 1180, "height": 620})
        page.screenshot(path=folder / "ui-trace.png")
        dark = browser.new_context(viewport={"width": 1180, "height": 560}, color_scheme="dark").new_page()
        dark.goto(url)
        dark.goto(f"{base}/calls?period=30d")
        dark.locator(".facet").first.wait_for()
        dark.screenshot(path=folder / "ui-calls.png")
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
