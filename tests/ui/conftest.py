"""A store with calls of every kind, the real `otel-llm ui` on it, and a real Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import SCRIPTS, LocalOpenAI

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

BUDGETS = """
[[budget]]
name = "users"
limit_calls = 45
per = "month"
each = "user_id"
[[budget]]
name = "runs"
limit_usd = 1
per = "trace"
"""

TRAFFIC = f"""
import sys
import otel_llm
from openai import OpenAI

client = OpenAI(max_retries=0)
HOSTILE = {HOSTILE!r}

@otel_llm.tool
def search(query: str) -> dict:
    return {{"hits": [query, HOSTILE], "pages": 2}}

def ask(model, text, **more):
    return client.chat.completions.create(model=model, messages=[{{"role": "user", "content": text}}], **more)

for number in range(int(sys.argv[1])):
    user = ("alice", "bob", HOSTILE)[number % 3]
    team = ("core", "growth")[number % 2]
    who = dict(user_id=user, conversation_id=f"talk-{{number % 4}}", session_id=f"session/{{number % 2}}")
    with otel_llm.llm_context(module="chat", **who, team=team):
        ask(("gpt-4o-mini", "gpt-5-mini")[number % 2], f"Question {{number}}: **bold** {{HOSTILE}}")
with otel_llm.llm_context(user_id="alice", module="agents", conversation_id="talk/with a slash"):
    with otel_llm.chain("tyres"):
        with otel_llm.step("plan"):
            ask("gpt-4o-mini", "# Which tyres?\\n- winter\\n- `summer`")
        search("195/65")
        for _ in ask("gpt-5-mini", "Write it", stream=True):
            pass
    ask("unheard-of-model", "What do you cost?")
    try:
        ask("error-500", "Fail")
    except Exception:
        pass
"""


def _environment(server: LocalOpenAI, store: Path) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "OPENAI_"))}
    return {
        **mine,
        **server.environment,
        "OTEL_LLM_STORE": str(store),
        "OTEL_PYTHON_DISTRO": "otel_llm",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
        "PATH": os.pathsep.join((str(SCRIPTS), mine.get("PATH", ""))),
    }


@dataclass
class Ui:
    """A running `otel-llm ui`."""

    store: Path
    environment: dict[str, str]
    process: subprocess.Popen[str] = field(repr=False)
    url: str = ""
    """With its token."""

    @property
    def base(self) -> str:
        return self.url.partition("?")[0].rstrip("/")

    def traffic(self, number: int) -> None:
        subprocess.run(
            ["opentelemetry-instrument", sys.executable, "-c", TRAFFIC, str(number)],
            env=self.environment, check=True, timeout=240,
        )  # fmt: skip


@pytest.fixture(scope="session")
def start_ui(_openai_process: LocalOpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ui]]:
    started: list[Ui] = []

    def start(store: Path, *options: str) -> Ui:
        environment = _environment(_openai_process, store)
        budgets = store.with_name("budgets.toml")
        budgets.write_text(BUDGETS)
        environment |= {"OTEL_LLM_BUDGETS": str(budgets)}
        process = subprocess.Popen(
            ["otel-llm", "ui", "--port", "0", "--no-open", *options], env=environment, text=True, stdout=subprocess.PIPE
        )
        running = Ui(store, environment, process)
        started.append(running)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        running.url = found[0]
        return running

    yield start
    for one in started:
        one.process.terminate()
        assert one.process.wait(60) == 0
        assert one.process.stdout is not None
        one.process.stdout.close()


@pytest.fixture(scope="session")
def ui(start_ui: Callable[..., Ui], tmp_path_factory: pytest.TempPathFactory) -> Ui:
    """The page on a store with 130 calls."""
    running = start_ui(tmp_path_factory.mktemp("ui") / "usage.duckdb")
    running.traffic(125)
    return running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module: as long as it is there, an event loop runs in this thread, and no other test could run one."""
    chromium = os.environ.get("CHROMIUM_BIN") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip(
            "NOT SEEN IN A BROWSER: there is no Chromium; CHROMIUM_BIN names one (Debian: apt-get install chromium)"
        )
    sync_api = pytest.importorskip("playwright.sync_api", reason="NOT SEEN IN A BROWSER: playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what went wrong on it."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("console", lambda message: message.type in ("error", "warning") and self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(base) or self.faults.append(f"asks {request.url}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)


@pytest.fixture
def open_page(browser: Browser, ui: Ui) -> Iterator[Callable[..., Any]]:
    """Opens a path of the page, as somebody with the token; whatever goes wrong on it fails the test at its end."""
    watched: list[Watched] = []
    contexts = []

    def open_page(path: str, **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = Watched(context.new_page(), ui.base)
        watched.append(page)
        page.goto(ui.url)
        if path != "/":
            page.goto(ui.base + path)
        return page

    yield open_page
    for page in watched:
        assert page.evaluate("window.hacked") is None, "what stands in the store ran as a script"
    for context in contexts:
        context.close()
    assert [fault for page in watched for fault in page.faults] == []
