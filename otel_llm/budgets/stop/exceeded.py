"""The exception of a call that a budget does not allow."""

from __future__ import annotations

import sys
from datetime import datetime
from decimal import Decimal
from typing import Any


class BudgetExceeded(Exception):
    """A budget is spent: the call was refused, and nothing was sent.

    Where the OpenAI client is loaded, what is raised is an `openai.OpenAIError` too: who catches all that the client raises has
    it already. It is no `openai.RateLimitError`: recipes, routers and agents try those again, and no budget comes back in seconds.
    """

    budget: str
    """Name of the budget."""
    spent: Decimal | int
    """What was spent when the call was refused, in `unit`."""
    reserved: Decimal | int
    """What is set aside beside for calls that run."""
    limit: Decimal | int
    unit: str
    """`usd`, `tokens` or `calls`."""
    key: str | None
    """Whose limit it is, where each value of a column has one of its own."""
    resets_at: datetime | None
    """When the next period begins; None where the budget is that of one run."""

    def __init__(
        self,
        budget: str,
        spent: Decimal | int = 0,
        limit: Decimal | int = 0,
        unit: str = "usd",
        *,
        reserved: Decimal | int = 0,
        key: str | None = None,
        resets_at: datetime | None = None,
        because: str | None = None,
    ) -> None:
        """`because`: in place of what was spent, where that is not the reason."""
        self.budget, self.spent, self.limit, self.unit = budget, spent, limit, unit
        self.reserved, self.key, self.resets_at, self.because = reserved, key, resets_at, because
        super().__init__(self._text())

    def _text(self) -> str:
        whose = f" of {self.key}" if self.key is not None else ""
        unit = "USD" if self.unit == "usd" else self.unit
        text = f"budget {self.budget!r}{whose}: "
        if self.because is not None:
            text += self.because
        else:
            text += f"{_plain(self.spent)} of {_plain(self.limit)} {unit} spent"
            if self.reserved:
                text += f", and {_plain(self.reserved)} set aside for calls that run"
            if self.spent < self.limit:
                text += "; there is no room for this call"
        if self.resets_at is not None:
            text += f"; the next period begins at {self.resets_at.isoformat(timespec='minutes')}"
        return f"{text}. Nothing was sent."

    def __reduce__(self) -> tuple[Any, ...]:
        # By our own class: another process may have no OpenAI client.
        told = (self.budget, self.spent, self.limit, self.unit, self.reserved, self.key, self.resets_at, self.because)
        return _again, told


BudgetExceeded.__module__ = "otel_llm"


_kinds: dict[Any, Any] = {}


def exceeded(*args: Any, **told: Any) -> BudgetExceeded:
    """The exception to raise: for what apps that ask by the OpenAI client catch too, where that is loaded."""
    base = getattr(sys.modules.get("openai"), "OpenAIError", None)
    kind = BudgetExceeded
    if isinstance(base, type) and issubclass(base, Exception):
        if base not in _kinds:
            same = {"__module__": BudgetExceeded.__module__, "__doc__": BudgetExceeded.__doc__}
            _kinds[base] = type(BudgetExceeded.__name__, (BudgetExceeded, base), same)
        kind = _kinds[base]
    return kind(*args, **told)


def _again(
    budget: str,
    spent: Decimal | int,
    limit: Decimal | int,
    unit: str,
    reserved: Decimal | int,
    key: str | None,
    resets_at: datetime | None,
    because: str | None,
) -> BudgetExceeded:
    return exceeded(budget, spent, limit, unit, reserved=reserved, key=key, resets_at=resets_at, because=because)


def _plain(amount: Decimal | int) -> str:
    """Without a tail of noughts."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
