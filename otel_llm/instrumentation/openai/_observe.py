"""Requests that are no model call themselves, but whose answer may tell of one: looked at, and recorded where it does.

POST to an endpoint that is not known      -> `Unknown`: a call, where the answer carries usage
GET, cancel of a background response       -> `Result`: ends the call that created it; `Retrieved`, if another process did
batches, assistants' runs                  -> `Jobs`: one call for each that has ended, when its object says what it used
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import context as otel

from otel_llm.calls import parent
from otel_llm.calls.model_call import ModelCall
from otel_llm.calls.tracing import Tracer
from otel_llm.conventions import semconv
from otel_llm.conventions.token_usage import fields
from otel_llm.instrumentation.openai._answer import Answer

_BATCH = re.compile(r"/batches(?:/[^/]+(?:/cancel)?)?/?$")
_RUN = re.compile(r"/threads/(?:[^/]+/)?runs(?:/[^/]+(?:/cancel|/submit_tool_outputs)?)?/?$")
_RESPONSE = re.compile(r"/responses/([^/]+?)(/cancel)?/?$")
_STORED = re.compile(r"/chat/completions/[^/]+/?$")
"""Answers a completion that was counted when it was created."""


class Observer:
    """Stands in for the `ModelCall` of a request that is no model call itself."""

    finished = False
    """Whether `end` has been called; `conclude` sees to it that it is called once."""
    is_followed = False
    """Whether somebody follows its answer."""
    quiet_until_ns = 0
    """As of a `ModelCall`."""
    last_chunk_ns: int | None = None
    ended_perf_ns: int | None = None
    """When it ended, by the monotonic clock, where that is not now."""

    def answer(self) -> Answer:
        """What gathers the facts of the answer."""
        return Answer()

    def chunk(self, response_model: str | None = None) -> None:
        """A chunk of a stream has come."""

    def end(self, answer: Answer, status: str, error: BaseException | None) -> None:
        """The request has ended."""
        raise NotImplementedError


class Background:
    """Background responses: calls whose request is over while the provider goes on. Bounded; the oldest gives way.

    The span stays open until this process learns how the response ended, so its usage is on the row of the call that created
    it. What a process learns of a response that it did not create is recorded as `RETRIEVE`; the store puts it on that row.
    """

    MAX: Final = 1_000

    def __init__(self) -> None:
        self._calls: dict[str, ModelCall] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._calls

    def defer(self, response_id: str, call: ModelCall, attributes: Mapping[str, Any]) -> None:
        """Keeps the call open. What is known is on record from now on, should the process die."""
        call.describe("", None, attributes)
        self._calls[response_id] = call
        while len(self._calls) > self.MAX:
            try:
                self._give_up(self._calls.pop(next(iter(self._calls))))
            except (KeyError, RuntimeError, StopIteration):  # another thread was quicker
                break

    def take(self, response_id: str | None) -> ModelCall | None:
        """The call that created the response, if it is still open; nobody else gets it."""
        return None if response_id is None else self._calls.pop(response_id, None)

    def close(self) -> None:
        """Ends what is open: this process will not learn what became of it."""
        while self._calls:
            try:
                _, call = self._calls.popitem()
            except KeyError:
                break
            self._give_up(call)

    @staticmethod
    def _give_up(call: ModelCall) -> None:
        call.finish(semconv.PARTIAL, ended_perf_ns=call.last_chunk_ns)


background = Background()


class Once:
    """Remembers the last so many ids, to count what is reported again and again but once."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._seen: OrderedDict[str, None] = OrderedDict()

    def first(self, identity: str) -> bool:
        """Whether the id is new."""
        before = len(self._seen)
        self._seen.setdefault(identity)  # one step under the GIL
        if len(self._seen) == before:
            return False
        if before >= self._size:
            try:
                self._seen.popitem(last=False)
            except KeyError:
                pass
        return True


_jobs = Once()
_results = Once()


Known = Callable[[], tuple[str | None, dict[str, Any]]]
"""Works out what is known of a request: the model it names, and the attributes at the start of a span."""


def observer_of(method: str, url: str, tracer: Tracer, known: Known) -> Observer | None:
    """What looks at a request that `endpoint_of` knows nothing of; None where its answer tells of no model call."""
    is_post = method.lower() == "post"
    if not is_post and method.lower() != "get":
        return None
    path = urlsplit(url).path
    if found := _RESPONSE.search(path):
        if not is_post or found[2]:
            return Result(found[1]) if found[1] in background else Retrieved(tracer, found[1], known)
    elif _BATCH.search(path) or _RUN.search(path):
        return Jobs(tracer, known()[1])
    if not is_post or _STORED.search(path):
        return None
    return Unknown(tracer, path.rstrip("/").rpartition("/")[2] or "unknown", known)


class Unknown(Observer):
    """An endpoint that is not known. A call with usage becomes a span that began when the request did."""

    def __init__(self, tracer: Tracer, operation: str, known: Known) -> None:
        self._tracer = tracer
        self._operation = operation
        self._model, self._attributes = known()
        self._started_ns = time.time_ns()
        self._first_perf_ns: int | None = None
        self._context = otel.get_current()
        self._under = parent.find_parent()

    def answer(self) -> Answer:
        return Answer(self._attributes)

    def chunk(self, response_model: str | None = None) -> None:
        self.last_chunk_ns = time.perf_counter_ns()
        if self._first_perf_ns is None:
            self._first_perf_ns = self.last_chunk_ns

    def end(self, answer: Answer, status: str, error: BaseException | None) -> None:
        if answer.usage is None:
            return
        token = otel.attach(self._context)
        try:
            call = ModelCall(
                self._tracer,
                self._operation,
                self._model,
                self._attributes,
                under=self._under,
                started_ns=self._started_ns,
            )
        finally:
            otel.detach(token)
        details = answer.attributes()
        if self._first_perf_ns is not None:
            details[semconv.TIME_TO_FIRST_CHUNK] = max(0, self._first_perf_ns - call.started_perf_ns) / 1e9
        call.finish(
            status,
            usage=answer.usage,
            error=error,
            error_type=answer.error_type,
            attributes=details,
            ended_perf_ns=self.ended_perf_ns,
        )


class Result(Observer):
    """Asks for a background response that this process created."""

    def __init__(self, response_id: str) -> None:
        self._response_id = response_id

    def end(self, answer: Answer, status: str, error: BaseException | None) -> None:
        # Asking may fail, or be given up, without a consequence for the response itself.
        if not answer.final or answer.id != self._response_id:
            return
        call = background.take(self._response_id)
        if call is not None:
            _results.first(self._response_id)
            call.answer = answer
            call.finish(answer.status, usage=answer.usage, error_type=answer.error_type, attributes=answer.attributes())


class Retrieved(Observer):
    """Asks for a response that this process did not create; how a background one ended is recorded once."""

    def __init__(self, tracer: Tracer, response_id: str, known: Known) -> None:
        self._tracer = tracer
        self._response_id = response_id
        self._known = known

    def end(self, answer: Answer, status: str, error: BaseException | None) -> None:
        if not (answer.final and answer.background and answer.id == self._response_id):
            return
        if not _results.first(self._response_id):
            return
        call = ModelCall(self._tracer, semconv.RETRIEVE, answer.model, self._known()[1])
        call.finish(answer.status, usage=answer.usage, error_type=answer.error_type, attributes=answer.attributes())


class Jobs(Observer):
    """Batches and assistants' runs, one or a page of them. Each is counted once in a process, when it has ended."""

    def __init__(self, tracer: Tracer, attributes: Mapping[str, Any]) -> None:
        self._tracer = tracer
        self._attributes = attributes

    def answer(self) -> Answer:
        return _JobAnswer(self._tracer, self._attributes)

    def end(self, answer: Answer, status: str, error: BaseException | None) -> None:
        """Nothing is left to do: each job was recorded as it was seen."""


class _JobAnswer(Answer):
    """Records each job as it passes."""

    __slots__ = ("_attributes", "_tracer")

    def __init__(self, tracer: Tracer, attributes: Mapping[str, Any]) -> None:
        super().__init__()
        self._tracer = tracer
        self._attributes = attributes

    def see(self, payload: object) -> None:
        found = fields(payload)
        data = found.get("data")
        if isinstance(data, list | tuple):  # a page
            for item in data:
                self._see_job(fields(item))
        else:  # one, or the event of a stream
            self._see_job(found if data is None else fields(data))

    def _see_job(self, job: Mapping[str, Any]) -> None:
        kind, state, job_id = job.get("object"), job.get("status"), job.get("id")
        operation = _JOB_OPERATIONS.get(kind) if isinstance(kind, str) else None
        status = _JOB_STATUSES.get(state) if isinstance(state, str) else None
        if operation is None or status is None or not isinstance(job_id, str):
            return
        answer = Answer()
        answer.see({name: job.get(name) for name in ("id", "model", "usage", "service_tier")})
        if answer.usage is None or not _jobs.first(job_id):
            return
        if operation == semconv.BATCH:
            answer.tier = "batch"  # what it is priced at
        created = job.get("started_at") or job.get("created_at")
        started_ns = created * 10**9 if type(created) is int and 0 < created * 10**9 < time.time_ns() else None
        call = ModelCall(self._tracer, operation, answer.model, self._attributes, started_ns=started_ns)
        ended, ended_perf_ns = job.get("completed_at"), None
        if started_ns is not None and type(ended) is int and started_ns <= ended * 10**9 < time.time_ns():
            ended_perf_ns = call.started_perf_ns + ended * 10**9 - started_ns
        call.finish(
            status,
            usage=answer.usage,
            error_type=state if status == semconv.ERROR else None,
            attributes=answer.attributes(),
            ended_perf_ns=ended_perf_ns,
        )


_JOB_OPERATIONS: Final[Mapping[str, str]] = {"batch": semconv.BATCH, "thread.run": semconv.CHAT}
_JOB_STATUSES: Final[Mapping[str, str]] = {
    "completed": semconv.OK,
    "failed": semconv.ERROR,
    "expired": semconv.PARTIAL,
    "incomplete": semconv.PARTIAL,
    "cancelled": semconv.CANCELLED,
}
