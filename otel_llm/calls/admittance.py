"""Whether a call may be made: asked before anything is sent, where a budget stops calls. Where none does, there is no gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from opentelemetry.trace import Span


class Held(Protocol):
    """What is set aside for a call that may be made."""

    def settle(self, attributes: Mapping[str, Any]) -> None:
        """The call has ended, and the account knows of it. `attributes` tell how, and what it has used."""

    def release(self) -> None:
        """It was never made."""


class CallGate(Protocol):
    def admit(
        self, attributes: Mapping[str, Any], span: Span | None, characters: int | None
    ) -> Held | Exception | None:
        """What is set aside for a call, or why it may not be made; None where no budget covers it.

        Args:
            attributes: what is known of it by now.
            span: its own; None where it has none yet.
            characters: of the text that it asks with, where that is known.
        """


gate: CallGate | None = None
"""None while no budget stops calls."""
