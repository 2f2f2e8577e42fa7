"""`with llm_context(...)` around a `yield`: whoever drives the generator may take each step in another copy of the context.

Starlette takes each step of a plain generator in a thread, with a fresh copy: what the first step entered is gone in the second.
The frame of the generator is the same in all of them, so a call that is made from it finds there what its context has lost.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from functools import cache
from logging import getLogger
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_llm.context import Layer, llm_context

_logger = getLogger("otel_llm")
by_frame: dict[FrameType, list[Layer]] = {}
"""By generators that are still inside, outermost first. A frame is kept no longer than its `with` lasts."""


def enter(frame: FrameType, layer: Layer) -> None:
    """Notes that the code of `frame` has entered `layer`, if it is a generator's."""
    if frame.f_code.co_flags & inspect.CO_GENERATOR:
        by_frame.setdefault(frame, []).append(layer)


def leave(frame: FrameType, owner: llm_context) -> bool:
    """The end of what `enter` noted; False if it noted nothing."""
    layers = by_frame.get(frame)
    if not layers:
        return False
    for layer in reversed(layers):
        if layer.owner is owner:
            layers.remove(layer)
            break
    if not layers:
        del by_frame[frame]
    return True


def entered() -> Sequence[Layer]:
    """The layers that the innermost such generator among our callers has entered, outermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if layers := by_frame.get(frame):
            return layers
        frame = frame.f_back
    return ()


@cache
def warn() -> None:
    """Says once that a context was left where it had not been entered."""
    _logger.warning(
        "an llm_context was left in another context than it was entered in, as happens with `with llm_context(...)` "
        "around a `yield`: model calls of the generator itself have it, other calls in between may not. "
        "Decorate the generator: @llm_context(...). Said once."
    )
