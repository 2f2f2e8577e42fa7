"""What runs: the start lines of spans that have not ended, with which the next segment begins.

A long text, as a captured prompt is, stands in the first of them alone. So it is in each segment in which the span goes on, once,
and what is written of that span later leaves it out (see `record.shortened`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from otel_llm.store.journal import record

MAX_RUNNING: Final = 10_000
"""Spans that never end must not fill the memory."""


_LONG_LINE: Final = 1024
"""Bytes of a start line in which a long text is looked for."""


class RunningSpans:
    """By span id. The writer's lock is held where they are changed."""

    def __init__(self) -> None:
        self.texts: dict[int | None, Mapping[str, str]] = {}
        """The long texts in the start lines of those that have any."""
        self._first: dict[int, bytes] = {}
        self._latest: dict[int, bytes] = {}
        """What was known of some of them last, where that was written since."""

    def __len__(self) -> int:
        return len(self._first)

    def begin(self, span: int, line: bytes, entry: record.Record, *, is_short: bool) -> bytes:
        """Keeps the line of a span that begins, or of which more is known; returns the one to write."""
        if span in self._first:
            self._latest[span] = line
            return line
        if is_short:  # it has been forgotten meanwhile
            line = record.encode(entry)
        if len(self._first) >= MAX_RUNNING:
            self.end(next(iter(self._first)))
        self._first[span] = line
        if len(line) > _LONG_LINE and (texts := record.long_texts(entry)):
            self.texts[span] = texts
        return line

    def end(self, span: int) -> bool:
        """Whether it was known, and so has a start line in the open segment, if that has all that it should have."""
        if self._latest:
            self._latest.pop(span, None)
        if self.texts:
            self.texts.pop(span, None)
        return self._first.pop(span, None) is not None

    def lines(self) -> bytes:
        return b"".join([line + self._latest.get(span, b"") for span, line in self._first.items()])
