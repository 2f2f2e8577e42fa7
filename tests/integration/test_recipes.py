"""The recipe app of examples/recipes, served by uvicorn: two hundred cooks at once, some of whom leave while they are answered.

The account is the ledger of the server that answered, by module and user. The ledger knows both by what is in the prompts alone:
the cook's name, and what each module of the app tells its model. Nothing of the context was sent.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from local_openai import Call, LocalOpenAI

from tests.conftest import EXAMPLES, Rows

REQUESTS = 200
COOKS = ("Ada", "Bob", "Cleo", "Dora", "Emil", "Frida", "Gus", "Hedy", "Ivo", "June")
MODULES = {"find out": "intent", "write recipes": "recipes", "plan meals": "planner"}
"""What tells a module's prompt -> its name."""


class Cook(NamedTuple):
    """Who makes a request."""

    number: int

    @property
    def name(self) -> str:
        return COOKS[self.number % len(COOKS)]

    @property
    def user_id(self) -> str:
        """What the app knows the cook by; the provider never sees it."""
        return f"account-{self.name.lower()}"

    @property
    def plans(self) -> bool:
        """Whether the agent is asked: how many people there are is said. Else a recipe is written, as a stream."""
        return self.number // len(COOKS) % 4 == 0

    @property
    def leaves(self) -> bool:
        """Whether the cook leaves in the middle of the stream."""
        return self.number // len(COOKS) % 4 == 1

    @property
    def query(self) -> dict[str, str]:
        people = " for 4" if self.plans else ""
        return {
            "user": self.user_id,
            "conversation": f"conversation-{self.number}",
            "q": f"{self.name} here: how do I cook Shakshuka{people}?",
        }


class Event(NamedTuple):
    """One server-sent event."""

    type: str
    data: dict[str, Any]


class Served(NamedTuple):
    """What a cook got."""

    cook: Cook
    request_id: str
    events: list[Event]


@pytest.fixture
def provider() -> Iterator[LocalOpenAI]:
    """A server whose streams go on when they are let: however slow the machine is, they do not begin to by themselves."""
    with LocalOpenAI(cap=800) as server:
        yield server


class App:
    """The app as a process: its address, and the lines of its log as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._coming: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._wait_for(r"running on (http://[\d.:]+)", 1)[0][1]

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._coming.put(line)
        self._coming.put("")

    def _wait_for(self, pattern: str, count: int) -> list[re.Match[str]]:
        """The first `count` lines of the log that match, as soon as they are there."""
        while len(found := [match for line in self.log if (match := re.search(pattern, line))]) < count:
            line = self._coming.get()
            assert line, "".join(self.log)
            self.log.append(line)
        return found

    def wait_for(self, said: str, count: int) -> set[tuple[str, str]]:
        """The user and the request id of the first `count` lines that say `said`."""
        return {(match[1], match[2]) for match in self._wait_for(rf"^INFO (\S+) (\S+) {said}$", count)}

    def stop(self) -> None:
        """Ends it as a container is ended."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=240)
        while line := self._coming.get():
            self.log.append(line)


async def events_of(response: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield Event(name, json.loads(line.removeprefix("data: ")))


async def serve_all(app: App, provider: LocalOpenAI) -> tuple[list[Served], set[tuple[str, str]]]:
    """All requests at once; returns what each cook got, and who left, as the app's log says it."""
    cooks = [Cook(number) for number in range(REQUESTS)]

    async def ask(client: httpx.AsyncClient, cook: Cook) -> Served:
        async with client.stream("GET", f"{app.url}/ask", params=cook.query) as response:
            served = Served(cook, response.headers["x-request-id"], [])
            async for event in events_of(response):
                served.events.append(event)
                if cook.leaves and event.type == "ProviderDelta":
                    break
        return served

    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(), trust_env=False) as client:
        asked = [asyncio.create_task(ask(client, cook)) for cook in cooks]
        # Every stream stands after its first word, which is told when the second has come. So nobody leaves just as a piece
        # comes: the `asyncio.wait_for` of Python 3.11, which langchain-openai has around each, loses a cancellation then.
        await asyncio.to_thread(provider.wait_for, sum(not cook.plans for cook in cooks))
        provider.release()
        left = await asyncio.to_thread(app.wait_for, "left", sum(cook.leaves for cook in cooks))
        provider.open()
        return await asyncio.gather(*asked), left


@pytest.mark.timeout(900)  # two hundred requests take a slow machine minutes
def test_the_account_is_the_ledger_by_module_and_user(
    start_instrumented: Callable[..., subprocess.Popen[str]], provider: LocalOpenAI, rows: Rows
) -> None:
    environment = {
        **provider.environment,
        "OPENAI_CUSTOM_HEADERS": "x-local-behaviour: stream-slow, parallel-tools",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
        "OTEL_LLM_ESTIMATE": "off",  # the account is held against a bill, which has what was reported alone
    }
    app = App(
        start_instrumented(
            ["uvicorn", "--app-dir", str(EXAMPLES / "recipes"), "--port", "0", "--no-access-log", "app:app"],
            env=environment,
        )
    )
    served, left = asyncio.run(serve_all(app, provider))
    app.stop()

    # Who stayed was told the whole run, and answered; who left, a part of it. The log names everybody.
    for cook, request_id, events in served:
        run = [event for event in events if event.type not in ("ProviderDelta", "Answer")]
        assert [event.data["sequence"] for event in run] == list(range(1, len(run) + 1))
        assert {event.data["context"]["otel_llm.request.id"] for event in run} == {request_id}
        assert run[0].type == "ChainStarted"
        assert {event.data["run"] for event in events if event.type != "Answer"} == {run[0].data["span_id"]}
        if not cook.leaves:
            text = events[-1].data["text"]
            assert (events[-1].type, run[-1].type, run[-1].data["status"]) == ("Answer", "ChainCompleted", "ok")
            assert ("The tool says" if cook.plans else f"You asked: {cook.name}") in text
            told = "".join(event.data["text"] for event in events if event.type == "ProviderDelta")
            assert told == ("" if cook.plans else text)
    assert left == {(cook.user_id, request_id) for cook, request_id, _ in served if cook.leaves}
    assert app.wait_for("answered", REQUESTS - len(left)) == {
        (cook.user_id, request_id) for cook, request_id, _ in served if not cook.leaves
    }
    assert not [line for line in app.log if not line.startswith("INFO")]

    # The account is what was billed, but for what the provider never came to report: that is NULL.
    ledger = provider.ledger
    broken_off = {call.response_id for call in ledger if call.outcome == "disconnected"}
    assert len(broken_off) == len(left)
    assert account(rows) == billed(ledger, broken_off)
    assert {row["response_id"] for row in rows("from llm_usage where status <> 'ok'")} == broken_off
    assert rows(
        """select distinct status, module, stream, input_tokens, output_tokens, cost_usd, usage_source from llm_usage
           where status <> 'ok'"""
    ) == [
        {
            "status": "cancelled", "module": "recipes", "stream": True,
            "input_tokens": None, "output_tokens": None, "cost_usd": None, "usage_source": None,
        }
    ]  # fmt: skip

    # One request, one id, one conversation; the client's sums are those of the account.
    of_requests = {
        row["request_id"]: row
        for row in rows(
            """select request_id, any_value(user_id) as user_id, any_value(conversation_id) as conversation,
                      count(*) as calls, count(distinct (user_id, conversation_id, trace_id)) as different,
                      coalesce(sum(input_tokens), 0) as input_tokens
               from llm_usage group by request_id"""
        )
    }
    assert len(of_requests) == REQUESTS
    for cook, request_id, events in served:
        row = of_requests[request_id]
        assert (row["user_id"], row["conversation"]) == (cook.user_id, f"conversation-{cook.number}")
        assert (row["calls"], row["different"]) == (3 if cook.plans else 2, 1)
        if not cook.leaves:
            told = events[-2].data
            assert (told["model_calls"], told["usage"]["input"]) == (row["calls"], row["input_tokens"])

    # Nothing of all that went to the provider.
    for call in ledger:
        sent = json.dumps([call.headers, call.body])
        assert "account-" not in sent and "conversation-" not in sent
        assert not {"traceparent", "tracestate", "baggage"} & call.headers.keys()


def billed(ledger: list[Call], broken_off: set[str | None]) -> Counter[tuple[str, str, str]]:
    """Calls, input and output tokens by module and user, as the provider's ledger has them."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for call in ledger:
        system, question = (message["content"] for message in call.body["messages"][:2])
        (module,) = [name for words, name in MODULES.items() if words in system]
        (name,) = [name for name in COOKS if name in question]
        by = module, f"account-{name.lower()}"
        sums[*by, "calls"] += 1
        if call.response_id in broken_off:
            sums[*by, "cancelled"] += 1
        else:
            assert call.reported and call.outcome == "ok"
            sums[*by, "input"] += call.input_tokens or 0
            sums[*by, "output"] += call.output_tokens or 0
    return sums


def account(rows: Rows) -> Counter[tuple[str, str, str]]:
    """The same, as anybody would ask the store."""
    found = rows(
        """select module, user_id, count(*) as calls, count(*) filter (status = 'cancelled') as cancelled,
                  sum(input_tokens) as input, sum(output_tokens) as output
           from llm_usage group by module, user_id"""
    )
    return Counter(
        {
            (row["module"], row["user_id"], name): row[name]
            for row in found
            for name in ("calls", "cancelled", "input", "output")
            if row[name]
        }
    )
