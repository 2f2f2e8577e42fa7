"""The process of a subject: measures what it is asked to, switched off and on.

It reads the name of a case a line from standard input, and answers with two figures, in microseconds: without, and with. A subject
that does not come off again has no first one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from calls import cases
from subjects import SUBJECTS, Telemetry

_WARM_UP = 10
_AFTER_SWITCHING = 2


async def _work(arguments: argparse.Namespace, answers: Any) -> None:
    subject = SUBJECTS[arguments.subject]
    versions = subject.versions()
    telemetry = Telemetry(metrics=subject.with_metrics)
    measured = cases(arguments.case, arguments.calls, arguments.chunks)

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    undo = subject.install(telemetry, arguments.directory)
    unrecorded = []
    for name, (call, _) in measured.items():
        before = telemetry.spans()
        for _ in range(_WARM_UP):
            await call()
        if telemetry.spans() == before:
            unrecorded.append(name)
    undo()
    still_on = []
    for name, (call, _) in measured.items():
        before = telemetry.spans()
        for _ in range(_WARM_UP):
            await call()
        if telemetry.spans() > before:
            still_on.append(name)
    # What importing and warming up has left behind is no garbage of a call's.
    gc.collect()
    gc.freeze()
    say({"versions": versions, "unrecorded": unrecorded, "still_on": still_on})

    comes_off = not still_on
    if not comes_off:
        undo = subject.install(telemetry, arguments.directory)

    async def once(name: str, *, on: bool) -> float:
        call, measure = measured[name]
        undo = subject.install(telemetry, arguments.directory) if on and comes_off else None
        for _ in range(_AFTER_SWITCHING):
            await call()
        telemetry.processor.force_flush()  # the exporter's thread works between the measurements
        figure = await measure() / 1000
        if undo is not None:
            undo()
        return figure

    on_first = False
    for line in sys.stdin:
        order = (True, False) if on_first else (False, True)
        on_first = not on_first
        figures = {on: await once(line.strip(), on=on) for on in order if on or comes_off}
        say([figures.get(False), figures[True]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=50)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    try:
        asyncio.run(_work(parser.parse_args(), answers))
    except Exception as error:  # whatever a peer raises is its result
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
