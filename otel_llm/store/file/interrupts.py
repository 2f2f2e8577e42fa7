"""Running DuckDB in a thread that no signal handler runs in.

In the main thread DuckDB looks for signals while a query runs. What the app's handler raises then (KeyboardInterrupt, a time limit)
it throws away: the query fails with a `RuntimeError: Query interrupted`, and the app never gets its exception. So a merge on behalf
of the main thread is made in another one. The main thread waits, and its exception comes up there at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

_Result = TypeVar("_Result")

_SWALLOWED: Final = "Query interrupted"


def off_main_thread(work: Callable[[], _Result]) -> Callable[[], _Result]:
    """Does `work` where no signal handler runs; calling what is returned gives what it returned, or raises what it raised.

    So whatever is raised here is the app's own. Who is interrupted here leaves the work to its own end.
    """
    returned: list[_Result] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(work())
        except BaseException as error:
            raised.append(error)

    def outcome() -> _Result:
        if raised:
            raise raised.pop()  # kept nowhere: it holds whatever the work had in its hands
        return returned.pop()

    if threading.current_thread() is threading.main_thread():
        thread = threading.Thread(target=run, name="otel-llm-merge", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down
            run()
        else:
            thread.join()
    else:
        run()
    return outcome


def was_interrupted(error: BaseException) -> bool:
    """Whether DuckDB has thrown away what a signal handler raised."""
    return isinstance(error, RuntimeError) and str(error) == _SWALLOWED
