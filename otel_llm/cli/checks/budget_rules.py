"""The file of budgets that `OTEL_LLM_BUDGETS` names, and who is told."""

from __future__ import annotations

from typing import Final

from otel_llm.cli.checks import Section
from otel_llm.cli.screen.output import counted
from otel_llm.settings import settings

_LONGEST: Final = {"hour": 1, "day": 2, "week": 8, "month": 32}
"""Days that calls must be kept for, to be counted to the end of a period."""


def budgets() -> Section:
    """Whether the file is right, the variables of its webhooks are set, and everybody has been told."""
    section = Section("budgets")
    if (file := settings().budgets) is None:
        return section
    from otel_llm.budgets import rules
    from otel_llm.budgets.rules import Webhook

    found = rules.load(file)
    section.facts["file"] = str(file)
    section.facts["budgets"] = len(found.budgets)
    section.facts["that stop calls"] = sum(one.stops for one in found.budgets)
    section.facts["webhooks and commands"] = ", ".join(found.receivers) or "none"
    for mistake in found.mistakes:
        what, _, remedy = mistake.rpartition("; ")
        section.problem(what, remedy)
    for receiver in found.receivers.values():
        for text in (receiver.url, *receiver.headers.values()) if isinstance(receiver, Webhook) else ():
            try:
                rules.expanded(text)
            except ValueError as error:
                section.problem(f"webhook {receiver.name!r}: {error}", "set it where the program runs, or name another")
    if (kept := settings().retention) is not None:
        for one in found.budgets:
            if _LONGEST.get(one.per, 0) * 86_400 > kept:
                what = f"budget {one.name!r} is for a {one.per}, and calls are removed sooner (OTEL_LLM_RETENTION)"
                section.problem(what, "what is removed is not counted: keep calls for longer, or limit a shorter time")
    if (waiting := _waiting()) > 0:
        remedy = "otel-llm budget says who, and otel-llm budget --test-notify why; a program that runs tells them later"
        section.remark(f"{counted(waiting, 'notification')} did not get through yet", remedy)
    return section


def _waiting() -> int:
    from otel_llm.budgets.alerts import crossings
    from otel_llm.store.paths import StorePaths

    if (store := settings().store) is None:
        return 0
    told = crossings.read(StorePaths.of(store))
    return sum(how == "waiting" for one in told for name, how in one.to.items() if name != crossings.LOG)
