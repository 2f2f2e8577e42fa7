"""An exception at the n-th line of ours that runs, as a signal handler of the app's raises it: for tests of what is left behind."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import otel_llm

OURS = str(Path(otel_llm.__file__).parent)


class Stop:
    """Calls `stop` at the n-th line under a directory, inside its `with`; `where` stays empty if there is none."""

    def __init__(
        self,
        at: int,
        stop: Callable[[], object],
        *,
        under: str = OURS,
        spared: Callable[[FrameType, str], bool] = lambda frame, line: False,
    ) -> None:
        """`spared`: whether the next line is to be stopped in place of this one, of a function in `frame`."""
        self._left = at
        self._stop = stop
        self._under = under
        self._spared = spared
        self.where = ""
        self.line = ""
        self.function = ""

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._under):
            return None
        if event == "line" and not self.where:
            self._left -= 1
            if self._left > 0:
                return self._trace
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if _signals_come(frame, line) and not self._spared(frame, line):
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self.line, self.function = line, frame.f_code.co_name
                self._stop()
        return self._trace


def _signals_come(frame: FrameType, line: str) -> bool:
    """Whether Python looks for signals at a line. `try`, and the end of a `with`, are lines for a tracer alone."""
    return line != "try:" and not (
        line.startswith(("with ", "async with ")) and frame.f_lasti > _first_offset(frame.f_code, frame.f_lineno)
    )


def _first_offset(code: CodeType, line: int) -> int:
    """Where the code of a line begins. The end of a `with` is the same line once more, further on."""
    return min(start for start, _, number in code.co_lines() if number == line)


def throw(error: type[BaseException]) -> None:
    raise error
