"""`otel-llm doctor`: what is installed, patched, exported and stored, and how to mend what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from otel_llm.cli.errors import one_line
from otel_llm.cli.options.access import Place
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import printable, styled, text, write_json_object, write_line
from otel_llm.support import masking

if TYPE_CHECKING:
    from otel_llm.cli.checks import Section


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The whole report as one JSON object.")
@store_option
def doctor(as_json: bool, store: Place | None) -> None:
    """Find out why something is not recorded, and how to mend it.

    \b
    Examples:
      otel-llm doctor
      otel-llm doctor --json
      opentelemetry-instrument otel-llm doctor

    Run it in the environment of your program: the same virtual environment, the same variables. Exit code 0 if all is well,
    1 if something is wrong. Variables that may hold a secret are named, their values are not shown.
    """
    sections = examine(store)
    problems = [problem for section in sections for problem in section.problems]
    if as_json:
        write_json_object(
            {
                "ok": not problems,
                "problems": [asdict(problem) for problem in problems],
                "remarks": [asdict(remark) for section in sections for remark in section.remarks],
                **{section.title: _keyed(section.facts) for section in sections},
            }
        )
    else:
        _print(sections, len(problems))
    click.get_current_context().exit(1 if problems else 0)


def examine(store: Place | None) -> list[Section]:
    """Everything that there is to look at. A check that fails is itself a finding: doctor is for when things are broken."""
    from otel_llm.cli.checks import (
        Section,
        account,
        budget_rules,
        content,
        export_targets,
        installation,
        other_signals,
        price_book,
        shipping,
    )

    checks: dict[str, Callable[[], Section]] = {
        "versions": installation.versions,
        "environment": installation.environment,
        "instrumentation": installation.instrumentation,
        "export": export_targets.export,
        "content": content.content,
        "metrics": other_signals.metrics,
        "store": lambda: account.account(store),
        "shipping": lambda: shipping.shipping(store),
        "prices": price_book.prices,
        "budgets": budget_rules.budgets,
    }
    sections = []
    for title, check in checks.items():
        try:
            sections.append(section := check())
            if title != "store":  # its facts are paths and counts: those are shown as they are
                section.facts = {name: _shown(value) for name, value in section.facts.items()}
        except Exception as error:
            sections.append(failed := Section(title))
            failed.problem(f"this cannot be looked at: {type(error).__name__}: {one_line(error)}", "mend that first")
    return sections


def _shown(value: object) -> object:
    return masking.text(value) if isinstance(value, str) else value


def _print(sections: Sequence[Section], problems: int) -> None:
    for section in sections:
        if not (section.facts or section.problems or section.remarks):
            continue
        write_line(styled(section.title, "bold"))
        width = max(map(len, section.facts), default=0)
        for name, value in section.facts.items():
            write_line(f"  {name:<{width}}  {_value(value)}")
        for mark, style, findings in (("wrong", "red", section.problems), ("note", "yellow", section.remarks)):
            for finding in findings:
                write_line(f"{styled(f'  {mark}: ', style)}{printable(finding.what)}")
                write_line(f"    {printable(finding.remedy)}")
        write_line()
    if problems:
        write_line(styled(f"{problems} {'things are' if problems > 1 else 'thing is'} wrong.", "red"))
    elif notes := sum(len(section.remarks) for section in sections):
        write_line(styled(f"Nothing is wrong; {'1 note' if notes == 1 else f'{notes} notes'} above.", "green"))
    else:
        write_line(styled("All is well.", "green"))


def _keyed(facts: dict[str, object]) -> dict[str, object]:
    return {label.replace(" ", "_"): value for label, value in facts.items()}


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{text(key)} {text(item)}" for key, item in value.items()) or text(None)
    return text(value)
