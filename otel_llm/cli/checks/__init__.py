"""What `otel-llm doctor` looks at. Each check is a function that returns a `Section`: what is there, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from otel_llm.support import masking


@dataclass(frozen=True, slots=True)
class Finding:
    """Something amiss, and how to mend it. Each is one sentence without a full stop."""

    what: str
    remedy: str


class Size(int):
    """A number of bytes: people read it in MB, programs as it is."""

    def __str__(self) -> str:
        size = float(self)
        for unit in ("bytes", "kB", "MB", "GB"):
            if size < 1000:
                return f"{size:.3g} {unit}"
            size /= 1000
        return f"{size:,.1f} TB"


@dataclass(slots=True)
class Section:
    """One part of the report. `facts` are labelled as people read them, JSON has underscores for the blanks.

    `problems` are wrong and make the command exit with 1; `remarks` are worth knowing and do not.
    """

    title: str
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)

    def problem(self, what: str, remedy: str) -> None:
        """Adds what is wrong."""
        self.problems.append(Finding(masking.text(what), masking.text(remedy)))

    def remark(self, what: str, remedy: str) -> None:
        """Adds what is worth knowing."""
        self.remarks.append(Finding(masking.text(what), masking.text(remedy)))
