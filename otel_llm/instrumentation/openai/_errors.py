"""How a call failed, without a word of what the provider said: error texts can echo the prompt."""

from __future__ import annotations

import asyncio
from typing import Any

from otel_llm import call as calls
from otel_llm import faults
from otel_llm.call import ModelCall
from otel_llm.instrumentation.openai._answer import Answer

_CANCELLING = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


def fail(call: ModelCall, error: BaseException, answer: Answer | None = None) -> None:
    """Finishes a call that raised, with what had arrived by then."""
    try:
        status = calls.CANCELLED if isinstance(error, _CANCELLING) else calls.ERROR
        status_code = getattr(error, "status_code", None)
        details: dict[str, Any] = {} if answer is None else answer.attributes()
        call.finish(
            status,
            usage=None if answer is None else answer.usage,
            error=error,
            error_type=str(status_code) if isinstance(status_code, int) else None,
            attributes=details,
        )
    except Exception as fault:
        faults.report("record a failed call", fault)
