"""The command line in a real terminal, driven by tmux: what a person sees, keys included."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Fill, otel_llm_command
from tests.cli.test_show import CALL, SPANS

pytestmark = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="TMUX IS NOT INSTALLED: nothing was seen on a real terminal (apt install tmux)"
)

DONE = "the command has ended with"


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, folder: Path, width: int = 80, height: int = 40, **variables: str) -> None:
        self._socket = folder / "tmux"
        self._runs = 0
        # A shell that is nobody's: no prompt, no start-up files of the machine.
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), "env PS1='READY> ' bash --norc",
            environment={**os.environ, "TERM": "xterm-256color", "TZ": "UTC", **variables},
        )  # fmt: skip
        self.wait(lambda screen: "READY>" in screen)

    def _tmux(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *arguments], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text: str) -> None:
        # A semicolon at the end would end tmux's own command.
        self._tmux("send-keys", "-l", f"{text[:-1]}\\;" if text.endswith(";") else text)

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def screen(self, *options: str) -> str:
        return self._tmux("capture-pane", "-p", *options)

    def wait(self, condition: Callable[[str], bool]) -> str:
        """The screen as soon as it is as it should be."""
        deadline = time.monotonic() + 60
        while not condition(screen := self.screen()):
            assert time.monotonic() < deadline, f"not yet:\n{screen}"
            time.sleep(0.02)
        return screen

    def run(self, *arguments: str) -> list[str]:
        """The lines that a command leaves on a clean screen."""
        self._runs += 1
        done = f"{DONE} {self._runs}"  # until the screen is cleared, it still shows the end of the run before
        self.type(f"clear; {shlex.join([*otel_llm_command(), *arguments])}; echo {done} $?")
        self.press("Enter")
        end = re.compile(rf"^{done} \d", re.M)
        screen = self.wait(lambda screen: end.search(screen) is not None)
        return screen[: end.search(screen).start()].splitlines()  # type: ignore[union-attr]

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path, store_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, OTEL_LLM_STORE=str(store_path), XDG_STATE_HOME=str(tmp_path / "state"))
    yield terminal
    terminal.close()


def test_a_tree_and_bars_fill_the_terminal_and_no_more(terminal: Terminal, fill: Fill, fill_spans: Fill) -> None:
    later = CALL | {"trace_id": f"{0:032x}"}
    fill(CALL, *({**later, "span_id": f"{hour}", "started_at": f"2026-11-20T{hour}:00:00Z"} for hour in (14, 15)))
    fill_spans(*SPANS)
    assert terminal.run("show")[-3:] == [
        "invoke_agent weather  1.50 s",
        "├─ chat gpt-5-mini    5.0 ms  10 in, 2 out  $0.0000065",
        "└─ execute_tool look  5.0 ms  error KeyError",
    ]
    lines = terminal.run("usage", "--by", "hour", "--plot")
    assert [line.split()[1] for line in lines[1:-1]] == ["12:00", "13:00", "14:00", "15:00"]
    assert [len(line) for line in lines[1:-1]] == [80, 26, 80, 80]
    assert "\x1b[36m█" in terminal.screen("-e")
    # Too narrow for the table: columns are left out, nothing wraps.
    table = terminal.run("usage", "--by", "model,user,day")
    assert max(map(len, table)) <= 80
    assert len([line for line in table if line.startswith("gpt-5")]) == 1


def test_a_conversation_in_sql(terminal: Terminal, fill: Fill, tmp_path: Path) -> None:
    fill({**CALL, "user_id": "alice"})
    terminal.type(f"clear; {shlex.join([*otel_llm_command(), 'sql'])}; echo {DONE} $?")
    terminal.press("Enter")
    terminal.wait(lambda screen: screen.rstrip().endswith("otel-llm>"))
    terminal.type("select user_i")
    terminal.press("Tab")
    terminal.wait(lambda screen: "select user_id" in screen)
    terminal.press("Enter")
    terminal.wait(lambda screen: screen.rstrip().endswith("...>"))
    terminal.type("from llm_us")
    terminal.press("Tab")
    terminal.wait(lambda screen: "from llm_usage" in screen)
    terminal.type(";")
    terminal.press("Enter")
    terminal.wait(lambda screen: "\nalice" in screen)
    # A slip is said, and ends nothing.
    terminal.type("select nosuch from llm_usage;")
    terminal.press("Enter")
    terminal.wait(lambda screen: "Binder Error" in screen and screen.rstrip().endswith("otel-llm>"))
    terminal.type("select 1")
    terminal.wait(lambda screen: "select 1" in screen)
    terminal.press("C-c")
    terminal.wait(lambda screen: "otel-llm> select 1\n" in screen and screen.rstrip().endswith("otel-llm>"))
    terminal.press("C-d")
    assert f"{DONE} 0" in terminal.wait(lambda screen: f"\n{DONE} " in screen)

    history = tmp_path / "state" / "otel-llm" / "sql_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "from llm_usage;" in history.read_text()
    # It is there next time.
    terminal.type(f"clear; {shlex.join([*otel_llm_command(), 'sql'])}")
    terminal.press("Enter")
    terminal.wait(lambda screen: screen.rstrip().endswith("otel-llm>"))
    terminal.press("Up")
    terminal.wait(lambda screen: "otel-llm> select nosuch from llm_usage;" in screen)
