"""Draws the pictures of this folder: the real commands on a real pseudo-terminal, their colours as SVG.

    python docs/pictures/make.py [FOLDER]    # needs no key: examples/local_openai.py stands in for OpenAI

Times and ids differ from run to run; everything else is the same.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from local_openai import LocalOpenAI  # noqa: E402

COLUMNS = 100
PATIENCE = 30
"""Seconds that a command may take for its next words."""
DARK = [
    (24, 26, 31), (224, 108, 117), (152, 195, 121), (229, 192, 123),
    (97, 175, 239), (198, 120, 221), (86, 182, 194), (214, 218, 224),
]  # fmt: skip
THEME = TerminalTheme(DARK[0], DARK[-1], DARK)
FONTS = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"
SPREAD = """
    UPDATE llm_usage SET started_at = now() - to_days(CAST(hash(user_id || n || request_model) % 14 AS INTEGER))
    FROM (SELECT span_id AS id, row_number() OVER (PARTITION BY user_id, request_model ORDER BY started_at) AS n FROM llm_usage)
    WHERE id = span_id AND request_model NOT LIKE 'gpt-4.1%'
"""
"""Two weeks out of an afternoon's calls, for the days of `--plot`."""


class Screen:
    """What is on a terminal: prompts, commands and what they print."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment | {"TERM": "xterm-256color", "COLORTERM": "", "COLUMNS": str(COLUMNS)}
        self._bytes = b""

    def start(self, *command: str) -> tuple[subprocess.Popen[bytes], int]:
        """A command on a terminal of its own, and our side of it."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=self._environment
        )
        os.close(theirs)
        words = " ".join(f'"{word}"' if " " in word else word for word in command)
        self._bytes += f"{chr(10) if self._bytes else ''}\x1b[1;32m$\x1b[0m {words}\n".encode()
        return process, ours

    def read(self, ours: int, until: str | None = None, times: int = 1) -> None:
        """What a command prints, up to a word that comes so many times or to its end."""
        begin = len(self._bytes)
        while until is None or self._bytes[begin:].count(until.encode()) < times:
            if not select.select([ours], [], [], PATIENCE)[0]:
                raise SystemExit(f"waited {PATIENCE} s for {until or 'the end'} of\n{self._bytes.decode()}")
            try:
                self._bytes += os.read(ours, 65536)
            except OSError:  # how Linux says that the other side of a terminal was closed
                return

    def run(self, *command: str) -> None:
        """A command from beginning to end."""
        process, ours = self.start(*command)
        self.read(ours)
        os.close(ours)
        if process.wait():
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{self._bytes.decode()}")

    def draw(self, title: str) -> str:
        """The screen as SVG, with fonts that the reader has: nothing is fetched from anywhere."""
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
        console.print(Text.from_ansi(self._bytes.decode().replace("\r\n", "\n")), soft_wrap=True)
        svg = console.export_svg(title=title, theme=THEME, unique_id=title.replace(" ", "-"))
        svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S)
        svg = re.sub(r"\s*<!--.*?-->", "", svg, flags=re.S)
        return re.sub(r"font-family: [^;]+;", f"font-family: {FONTS};", svg)


def main(folder: Path) -> None:
    """Makes the runs and draws the pictures."""
    with tempfile.TemporaryDirectory() as scratch, LocalOpenAI() as server:
        store = Path(scratch) / "usage.duckdb"
        foreign = ("OTEL_", "OPENAI_", "LANGSMITH_", "LANGCHAIN_", "NO_COLOR")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environment |= server.environment | {"OTEL_LLM_STORE": str(store), "OTEL_PYTHON_DISTRO": "otel_llm"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"

        def instrumented(*command: str) -> None:
            subprocess.run(
                ["opentelemetry-instrument", "python", *command], env=environment, check=True, stdout=subprocess.DEVNULL
            )

        (folder / "tail.svg").write_text(tail(environment, instrumented))
        show = Screen(environment)
        show.run("otel-llm", "show", latest(environment, "trip-planner"))
        (folder / "show.svg").write_text(show.draw("otel-llm show"))
        for example in ("chat.py", "streaming.py", "shop.py", "shop.py", "agent.py"):
            instrumented(str(EXAMPLES / example))
        spread(store)
        usage = Screen(environment)
        usage.run("otel-llm", "usage", "--by", "module,user", "--top", "6")
        usage.run("otel-llm", "usage", "--by", "day", "--plot")
        (folder / "usage.svg").write_text(usage.draw("otel-llm usage"))


def tail(environment: dict[str, str], instrumented: Callable[..., None]) -> str:
    """`tail`, while one program runs and another is killed."""
    screen = Screen(environment)
    process, ours = screen.start("otel-llm", "tail", "-n", "0")
    journal = Path(f"{environment['OTEL_LLM_STORE']}.journal")
    while not any(sign.stat().st_mtime_ns for sign in journal.glob("follower-*")):
        time.sleep(0.01)
    instrumented(str(HERE / "planner.py"), "alice")
    screen.read(ours, "ChainCompleted")
    stuck = subprocess.Popen(
        ["opentelemetry-instrument", "python", str(HERE / "planner.py"), "bob", "stuck"],
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert stuck.stdout is not None
    stuck.stdout.readline()
    stuck.kill()
    stuck.communicate()
    screen.read(ours, "Interrupted", times=2)
    process.terminate()
    screen.read(ours)
    process.wait()
    os.close(ours)
    return screen.draw("otel-llm tail")


def latest(environment: dict[str, str], agent: str) -> str:
    """The beginning of the id of an agent's trace."""
    query = f"select trace_id[:8] from llm_usage where agent_name = '{agent}' order by started_at desc limit 1"
    command = ["otel-llm", "sql", "--format", "csv", query]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()[-1]


def spread(store: Path) -> None:
    """Moves the calls to other days."""
    import duckdb

    with duckdb.connect(str(store)) as connection:
        connection.execute(SPREAD)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
