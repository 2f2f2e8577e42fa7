"""Thresholds that are crossed, and who is told of them, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_llm.budgets.alerts import crossings, receivers, watching
from otel_llm.budgets.alerts.crossings import LOG, Crossing, CrossingLog
from otel_llm.budgets.alerts.receivers import NotTold
from otel_llm.budgets.alerts.watching import BudgetWatch
from otel_llm.budgets.periods import period
from otel_llm.budgets.rules import Budget, Command, Per, Unit, Unpriced, Webhook
from otel_llm.budgets.spending import Spending
from otel_llm.settings import reload
from otel_llm.store import Store
from otel_llm.store.paths import StorePaths
from tests.budgets.conftest import Write
from tests.budgets.spender import call
from tests.budgets.webhook_server import WebhookServer, webhook_server
from tests.fleet.serve.conftest import serve

__all__ = ["serve"]

SPENDER = Path(__file__).with_name("spender.py")
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with webhook_server() as server:
        yield server


def rules_for(server: WebhookServer, *, limit: float = 1, per: str = "month", **more: Any) -> str:
    keys = {"limit_usd": limit, "per": per, "notify": ["hook"], **more}
    budget = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
    return f'[[budget]]\nname = "b"\n{budget}\n[[webhook]]\nname = "hook"\nurl = "{server.url}"\ntimeout = 5\n'


Watching = Callable[..., tuple[Store, BudgetWatch]]


@pytest.fixture
def watched(budgets: Write, store_path: Path) -> Iterator[Watching]:
    """A store of this process whose budgets are looked at when the test says so, by `look`."""
    opened: list[Store] = []

    def begin(text: str) -> tuple[Store, BudgetWatch]:
        file = budgets(text)
        reload()
        store = Store.open(store_path)
        opened.append(store)
        return store, BudgetWatch(store, file)

    yield begin
    for store in opened:
        store.close()


def look(watch: BudgetWatch) -> None:
    """One look, until everybody who is told then has answered or not."""
    watch._once()
    for line in watch._lines.values():
        if line.thread is not None:
            line.thread.join(30)
            assert not line.thread.is_alive()


def spend(store: Store, usd: float, **attributes: Any) -> None:
    store.write(call(usd, **attributes))
    assert store.flush()


def run(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SPENDER), *map(str, arguments)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What a process has said in its log."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


# --- once -------------------------------------------------------------------------------------------------------------
def test_each_threshold_is_told_of_once(watched: Watching, server: WebhookServer, caplog: Any) -> None:
    store, watch = watched(rules_for(server))
    for usd in (0.3, 0.3, 0.05, 0.2, 0.05, 0.3, 0.3):
        spend(store, usd)
        look(watch)
        look(watch)
    assert [body["threshold"] for body in server.received] == [0.5, 0.8, 1.0]
    assert [body["spent"] for body in server.received] == pytest.approx([0.6, 0.85, 1.2])
    lines = [record.getMessage() for record in caplog.records if record.name == "otel_llm"]
    assert [line.partition(", until")[0] for line in lines] == [
        "budget 'b': 50 % is spent, 0.6 of 1 USD this month",
        "budget 'b': 80 % is spent, 0.85 of 1 USD this month",
        "budget 'b': spent, 1.20 of 1 USD this month",
    ]


def test_of_several_at_once_the_highest_is_told_of(watched: Watching, server: WebhookServer) -> None:
    store, watch = watched(rules_for(server))
    spend(store, 0.9)
    look(watch)
    spend(store, 9)
    look(watch)
    assert [body["threshold"] for body in server.received] == [0.8, 1.0]


def test_a_value_for_itself(watched: Watching, server: WebhookServer) -> None:
    store, watch = watched(rules_for(server, each="user_id", thresholds=[1.0]))
    for user in ("alice", "bob", "alice", "carol"):
        spend(store, 0.5, **{"user.id": user})
        look(watch)
    spend(store, 1)
    look(watch)
    assert [(body["each"], body["value"]) for body in server.received] == [("user_id", "alice"), ("user_id", None)]
    assert "user_id = (none)" in server.received[1]["text"]


def test_another_limit_is_told_of_again(watched: Watching, server: WebhookServer, budgets: Write) -> None:
    store, watch = watched(rules_for(server, thresholds=[1.0]))
    spend(store, 1)
    look(watch)
    budgets(rules_for(server, limit=2, thresholds=[1.0]))
    look(watch)
    spend(store, 1)
    look(watch)
    assert [(body["limit"], body["spent"]) for body in server.received] == [(1, 1), (2, 2)]


def test_a_lower_threshold_that_comes_later_is_not_told_of(
    watched: Watching, server: WebhookServer, budgets: Write
) -> None:
    store, watch = watched(rules_for(server, thresholds=[1.0]))
    spend(store, 1)
    look(watch)
    budgets(rules_for(server, thresholds=[0.5, 1.0]))
    look(watch)
    assert [body["threshold"] for body in server.received] == [1.0]


def test_over_processes_one_after_another(budgets: Write, server: WebhookServer, store_path: Path) -> None:
    budgets(rules_for(server))
    said = [ended(run(store_path, 1, usd)) for usd in (0.3, 0.3, 0.1, 0.1, 0.3)]
    assert [body["threshold"] for body in server.received] == [0.5, 0.8, 1.0]
    assert [text.count("budget 'b'") for text in said] == [0, 1, 0, 1, 1]
    assert all(text.count("\n") == text.count("budget 'b'") for text in said), said


def test_over_processes_at_once(budgets: Write, server: WebhookServer, store_path: Path) -> None:
    budgets(rules_for(server, thresholds=[step / 10 for step in range(1, 11)]))
    processes = [run(store_path, 25, 0.01) for _ in range(4)]
    said = "".join(map(ended, processes))
    ended(run(store_path, 1, 0.01))  # what the last of them has left, if they ended at the same time
    assert set(Counter(server.answered).values()) == {1}
    assert [body["threshold"] for body in server.received][-1] == 1.0
    assert len(server.received) - 1 <= said.count("budget 'b'") <= len(server.received)


def test_nobody_is_told_of_hundreds_one_by_one(watched: Watching, server: WebhookServer, caplog: Any) -> None:
    store, watch = watched(rules_for(server, each="user_id"))
    for number in range(30):
        store.write(call(0.6 + number / 100, **{"user.id": f"user {number}"}))
    assert store.flush()
    look(watch)
    assert [body["value"] for body in server.received] == [f"user {number}" for number in range(29, 9, -1)]
    said = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert said == [
        "budget 'b': 10 more limits are above a threshold, of which nobody is told one by one; otel-llm budget has them"
    ]
    look(watch)
    spend(store, 1, **{"user.id": "user 0"})
    look(watch)
    assert [(body["value"], body["threshold"]) for body in server.received[20:]] == [("user 0", 1.0)]


def test_one_at_a_time_tells(watched: Watching, server: WebhookServer) -> None:
    store, watch = watched(rules_for(server, thresholds=[0.5]))
    other = BudgetWatch(store, watch._file)
    spend(store, 0.3)
    look(watch)  # has the lock from here on
    spend(store, 0.3)
    look(other)
    assert server.received == []
    look(watch)
    look(other)
    assert len(server.received) == 1
    watch.start_afresh()
    look(other)  # takes over, and knows who was told
    assert len(server.received) == 1


@pytest.mark.parametrize("moment", ["noted", "asked", "answered"])
def test_after_a_process_was_killed(budgets: Write, server: WebhookServer, store_path: Path, moment: str) -> None:
    """The next process tells whoever has not answered, by the same id; whoever has is left alone."""
    going_on = threading.Event()

    def held() -> int:
        going_on.wait(60)
        return 200

    budgets(rules_for(server))
    if moment != "answered":
        server.answers.append(held)
    process = run(store_path, 1, 0.6, "stays")
    paths = StorePaths.of(store_path)
    if moment == "noted":
        wait_until(lambda: len(crossings.read(paths)) == 1)
    elif moment == "asked":
        server.wait_for(lambda: len(server.received) == 1)
    else:
        wait_until(lambda: [told.to for told in crossings.read(paths)] == [{LOG: "told", "hook": "told"}])
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    going_on.set()
    ended(run(store_path, 1, 0.01))
    ended(run(store_path, 1, 0.01))
    assert len({body["id"] for body in server.received}) == 1
    assert len(server.received) in {"noted": (1, 2), "asked": (2,), "answered": (1,)}[moment]
    assert [told.to for told in crossings.read(paths)] == [{LOG: "told", "hook": "told"}]
    if moment == "answered":
        assert len(server.answered) == 1


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- who cannot be told -----------------------------------------------------------------------------------------------
def test_who_refuses_is_told_later(watched: Watching, server: WebhookServer, caplog: Any) -> None:
    hanging = threading.Event()
    server.answers = [lambda: 500, lambda: (429, {"Retry-After": "120"}), lambda: (hanging.wait(60), 200)[1]]  # type: ignore[index]
    store, watch = watched(rules_for(server).replace("timeout = 5", "timeout = 0.2"))
    spend(store, 0.6)
    look(watch)
    line = watch._lines["hook"]
    waits = [line.not_before - time.monotonic()]
    look(watch)  # too early
    assert len(server.received) == 1
    for _ in range(3):
        line.not_before = 0
        look(watch)
        waits.append(line.not_before - time.monotonic())
    hanging.set()
    assert 0.5 < waits[0] < 1.3 and 119 < waits[1] <= 120 and 2.5 < waits[2] < 5.1 and waits[3] < 0
    assert len(server.received) == 4 and len({body["id"] for body in server.received}) == 1
    said = [record.getMessage() for record in caplog.records if "'hook'" in record.getMessage()]
    assert said == [
        "budgets: 'hook' could not be told (answers 500: busy); it is tried again",
        "budgets: 'hook' takes what it is told again",
    ]
    line.not_before = 0
    look(watch)
    assert len(server.received) == 4


def test_who_hangs_holds_up_nobody(watched: Watching, server: WebhookServer, tmp_path: Path) -> None:
    hanging = threading.Event()
    server.answers = [lambda: (hanging.wait(60), 200)[1]]  # type: ignore[index]
    text = rules_for(server, notify=["hook", "other"])
    store, watch = watched(
        f'{text}[[command]]\nname = "other"\nrun = ["sh", "-c", "cat > {tmp_path / "other.json"}"]\n'
    )
    spend(store, 0.6)
    watch._once()
    server.wait_for(lambda: len(server.received) == 1)
    merges = store.stats.merges
    spend(store, 0.6)
    watch._once()
    assert store.stats.merges == merges + 1
    told = watch._lines["other"].thread
    assert told is not None
    told.join(30)
    wait_until(lambda: "1.0" in json.dumps(_told_to(store, "other")))
    assert _told_to(store, "hook") == []
    hanging.set()
    look(watch)
    look(watch)
    assert [body["threshold"] for body in server.received] == [0.5, 1.0]


def _told_to(store: Store, name: str) -> list[float]:
    return [told.crossing.threshold for told in crossings.read(store.paths) if told.to.get(name) == "told"]


def test_who_is_not_told_in_a_day_is_not_told_any_more(
    watched: Watching, server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [lambda: 500]
    store, watch = watched(rules_for(server))
    spend(store, 0.6)
    look(watch)
    watch._lines["hook"].not_before = 0
    monkeypatch.setattr(watching, "_TOO_OLD_SECONDS", -1)
    look(watch)
    look(watch)
    assert [told.to["hook"] for told in crossings.read(store.paths) if "hook" in told.to] == ["gave up"]
    assert len(server.received) == 1


def test_a_receiver_that_is_not_there_may_come_back(watched: Watching, server: WebhookServer, budgets: Write) -> None:
    text = rules_for(server)
    server.answers = [lambda: 500]
    store, watch = watched(text)
    spend(store, 0.6)
    look(watch)
    budgets(text.replace('name = "hook"', 'name = "renamed"'))
    watch._lines["hook"].not_before = 0
    look(watch)
    assert len(server.received) == 1
    budgets(text)
    look(watch)
    assert len(server.answered) == 1


def test_a_file_that_is_wrong_is_said_once_and_the_rest_holds(
    watched: Watching, server: WebhookServer, budgets: Write, caplog: Any
) -> None:
    store, watch = watched(f"[[budget]]\nname = 'wrong'\n{rules_for(server)}")
    spend(store, 0.6)
    look(watch)
    look(watch)
    said = [record.getMessage() for record in caplog.records if "'wrong'" in record.getMessage()]
    assert len(said) == 2 and len(server.answered) == 1
    budgets("[[")
    spend(store, 0.6)
    look(watch)
    assert len(server.answered) == 1 and "is not valid TOML" in caplog.records[-1].getMessage()


# --- which period -----------------------------------------------------------------------------------------------------
def test_a_period_that_has_just_ended_is_looked_at_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from otel_llm.budgets import spending

    asked = []
    monkeypatch.setattr(spending, "spent", lambda account, budget, at, **_: asked.append(at) or [])
    midnight = datetime(2026, 11, 20, tzinfo=UTC)
    budget = Budget("b", Unit.usd, Decimal(1), Per.day, time_zone="UTC")
    account: Any = None
    watching._spent_of(account, budget, midnight + timedelta(seconds=59))
    assert asked == [midnight + timedelta(seconds=59), midnight - timedelta(microseconds=1)]
    asked.clear()
    watching._spent_of(account, budget, midnight + timedelta(seconds=61))
    assert len(asked) == 1
    asked.clear()
    watching._spent_of(account, Budget("b", Unit.usd, Decimal(1), Per.trace), midnight)
    assert len(asked) == 1


# --- the file ---------------------------------------------------------------------------------------------------------
def crossing(amount: str = "0.6", threshold: float = 0.5, **more: Any) -> Crossing:
    budget = Budget("b", Unit.usd, Decimal(1), Per.day, time_zone="UTC", **more)
    spending = Spending(budget, "alice", None, period(Per.day, NOON, UTC), Decimal(amount), 3, 0, 0)
    return Crossing.of(spending, threshold, NOON)


def test_half_a_line_is_left_out_and_the_next_is_whole(store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    log = CrossingLog(paths)
    first, second = crossing(), crossing("0.9", 0.8)
    log.add([(first, ["hook"])])
    with paths.crossings.open("ab") as file:
        file.write(b'{"told": "' + first.id.encode())
    log = CrossingLog(paths)
    assert log.waiting() == {"hook": [first]}
    log.add([(second, ["hook"])])
    log.told(first, "hook")
    assert CrossingLog(paths).waiting() == {"hook": [second]}
    assert [told.to for told in crossings.read(paths)] == [{"hook": "told"}, {"hook": "waiting"}]


@pytest.mark.parametrize(
    "line",
    [b"[]", b"1", b'{"crossed": 1, "to": []}', b'{"crossed": {"id": "x"}, "to": []}', b'{"told": "?", "to": "x"}',
     b"{}", b"\xff\xfe", b'{"crossed": {}, "to": 5}'],
)  # fmt: skip
def test_lines_of_others_are_left_out(store_path: Path, line: bytes) -> None:
    paths = StorePaths.of(store_path)
    CrossingLog(paths).add([(crossing(), ["hook"])])
    with paths.crossings.open("ab") as file:
        file.write(line + b"\n")
    assert CrossingLog(paths).waiting() == {"hook": [crossing()]}
    assert len(crossings.read(paths)) == 1


def test_a_file_that_has_grown_keeps_what_is_asked_for(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = StorePaths.of(store_path)
    log = CrossingLog(paths)
    settled, waiting = crossing(), crossing("0.9", 0.8)
    log.add([(settled, ["hook"]), (waiting, ["hook"])])
    log.told(settled, "hook")
    monkeypatch.setattr(crossings, "_LARGEST", 10)
    assert CrossingLog(paths).is_known(settled)  # its period may go on
    monkeypatch.setattr(crossings, "_KEPT_SECONDS", -1e9)
    log = CrossingLog(paths)
    assert log.waiting() == {"hook": [waiting]} and not log.is_known(settled)
    assert [told.crossing for told in crossings.read(paths)] == [waiting]


def test_the_file_is_private_and_nobody_elses_is_read(store_path: Path) -> None:
    paths = StorePaths.of(store_path)
    CrossingLog(paths).add([(crossing(), [])])
    assert paths.crossings.stat().st_mode & 0o077 == 0
    paths.journal.chmod(0o777)
    assert crossings.read(paths) == []


# --- how it is told ---------------------------------------------------------------------------------------------------
def test_the_id_is_that_of_the_limit_and_its_period() -> None:
    assert crossing().id == crossing("0.7").id
    others = {crossing(threshold=0.8).id, crossing(each="user_id").id, crossing().id}
    assert len(others) == 3


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (crossing(), "budget 'b': 50 % is spent, 0.6 of 1 USD today, until 2026-11-21 00:00 UTC"),
        (crossing("1", 1.0, action="stop", each="user_id"),
         "budget 'b', user_id = 'alice': spent, 1 of 1 USD today, until 2026-11-21 00:00 UTC; no further call is sent"),
        (crossing("0.00001234", 0.125), "budget 'b': 12.5 % is spent, 0.000012 of 1 USD today, until 2026-11-21 00:00 UTC"),
    ],
)  # fmt: skip
def test_what_is_said(found: Crossing, text: str) -> None:
    assert found.text == text


def test_what_is_said_of_calls_that_nobody_can_price() -> None:
    budget = Budget("b", Unit.usd, Decimal(1), Per.trace)
    ignoring = Spending(budget, None, "f" * 32, None, Decimal("0.5"), 9, 2, 1)
    assert Crossing.of(ignoring, 0.5, NOON).text == (
        f"budget 'b', trace {'f' * 32}: 50 % is spent, 0.5 of 1 USD; 2 calls of unknown cost not counted"
    )
    blocking = Spending(
        Budget("b", Unit.usd, Decimal(1), Per.trace, unpriced=Unpriced.block), None, "f", None, Decimal(0), 9, 2, 0
    )
    assert Crossing.of(blocking, 1.0, NOON).text == (
        "budget 'b', trace f: spent, 0 of 1 USD; a call without a price blocks it; 2 calls of unknown cost not counted"
    )


def test_the_formats_of_a_webhook(server: WebhookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "sesame")
    budget = Budget("<b> & *c*", Unit.usd, Decimal(1), Per.day, each="user_id", time_zone="UTC")
    value = "<!channel> [x](http://evil)\x1b[31m"
    spending = Spending(budget, value, None, period(Per.day, NOON, UTC), Decimal("0.6"), 3, 0, 0)
    found = Crossing.of(spending, 0.5, NOON)
    for format in ("json", "slack", "teams"):
        webhook = Webhook("w", server.url, format, {"Authorization": "Bearer ${HOOK_TOKEN}"})  # type: ignore[arg-type]
        receivers.tell(webhook, found)
    plain, slack, teams = server.received
    assert {**plain, "host": ""} == {
        "event": "otel_llm.budget.threshold", "id": found.id, "at": "2026-11-20T12:00:00.000+00:00", "budget": "<b> & *c*",
        "unit": "usd", "limit": 1.0, "threshold": 0.5, "action": "warn", "per": "day", "each": "user_id", "value": value,
        "run": None, "start": "2026-11-20T00:00:00+00:00", "end": "2026-11-21T00:00:00+00:00", "spent": 0.6, "share": 0.6,
        "calls": 3, "uncounted": 0, "blocked": False, "text": found.text, "host": "",
    }  # fmt: skip
    assert slack["mrkdwn"] is False and "&lt;!channel&gt;" in slack["text"] and "<" not in slack["text"]
    assert "\x1b" not in slack["text"]
    (attachment,) = teams["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert {block["type"] for block in attachment["content"]["body"]} == {"RichTextBlock"}  # which knows no Markdown
    assert all(headers["Authorization"] == "Bearer sesame" for headers in server.headers)
    assert all(headers["Idempotency-Key"] == found.id for headers in server.headers)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server: WebhookServer, status: int) -> None:
    server.answers = [lambda: (status, {"Location": server.url})]
    with pytest.raises(NotTold, match=f"answers {status}"):
        receivers.tell(Webhook("w", server.url), crossing())
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("webhook", "says"),
    [
        (Webhook("w", "http://127.0.0.1:9/sesame"), "cannot be reached: [Errno 111] Connection refused"),
        (Webhook("w", "${HOOK_NONE}"), "the environment variable HOOK_NONE is not set"),
        (Webhook("w", "${HOOK_URL}"), "its url is not an http or https URL"),
        (Webhook("w", "http://x.invalid/sesame"), "cannot be reached"),
        (
            Webhook("w", "http://127.0.0.1:9/", headers={"A": "${HOOK_LINES}"}),
            "what is sent there has characters that HTTP",
        ),
        (Webhook("w", "http://127.0.0.1:9/${HOOK_LINES}"), "its url is not an http or https URL"),
        (Webhook("w", "http://127.0.0.1:9/\u00e4${HOOK_URL}"), "what is sent there has characters that HTTP"),
        (
            Webhook("w", "http://127.0.0.1:9/", headers={"A": "\u20ac${HOOK_URL}"}),
            "what is sent there has characters that HTTP",
        ),
    ],
)
def test_why_somebody_was_not_told(webhook: Webhook, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_URL", "sesame")
    monkeypatch.setenv("HOOK_LINES", "sesame\r\nX: y")
    with pytest.raises(NotTold) as raised:
        receivers.tell(webhook, crossing())
    assert says in str(raised.value) and "sesame" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_refusal_that_quotes_a_secret(server: WebhookServer) -> None:
    server.answers = [lambda: 403]
    with pytest.raises(NotTold, match="answers 403: busy"):
        receivers.tell(Webhook("w", server.url, headers={"X-Key": "sesame"}), crossing())
    assert receivers._without(["http://x/sesame", "/sesame"], "no http://x/sesame or /sesame") == "no *** or ***"


def test_a_command_has_the_event_on_its_input(tmp_path: Path) -> None:
    file = tmp_path / "it's here.json"
    receivers.tell(Command("c", ("sh", "-c", 'cat > "$0"', str(file))), crossing())
    assert json.loads(file.read_text())["id"] == crossing().id


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (("/nowhere/program",), "cannot be run: [Errno 2] No such file or directory"),
        (("sh", "-c", "echo no luck >&2; exit 3"), "ends with 3: no luck"),
        (("sh", "-c", "sleep 60"), "has not ended after 0.2 s"),
        (("sh", "-c", "exec 2>&-; sleep 60"), "has not ended after 0.2 s"),
    ],
)
def test_why_a_command_has_not_told(run: tuple[str, ...], says: str) -> None:
    with pytest.raises(NotTold) as raised:
        receivers.tell(Command("c", run, 0.2), crossing())
    assert says in str(raised.value)


def test_a_command_that_starts_something_has_ended(tmp_path: Path) -> None:
    receivers.tell(Command("c", ("sh", "-c", "sleep 5 &"), 0.2), crossing())


def test_an_event_goes_to_whoever_takes_events(watched: Watching, server: WebhookServer) -> None:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    from otel_llm.signals import events

    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    events.use(provider)
    try:
        store, watch = watched(rules_for(server, each="user_id"))
        spend(store, 0.6, **{"user.id": "alice"})
        look(watch)
        look(watch)
    finally:
        events.use(None)
    (found,) = exporter.get_finished_logs()
    record = found.log_record
    assert (record.event_name, record.severity_text) == ("otel_llm.budget.threshold", record.severity_text)
    attributes = dict(record.attributes or {})
    start = attributes.pop("otel_llm.budget.period.start")
    assert str(start).endswith("T00:00:00+00:00") and attributes.pop("otel_llm.budget.period.end")
    assert attributes.pop("otel_llm.budget.id") == server.received[0]["id"]
    assert attributes == {
        f"otel_llm.budget.{name}": value
        for name, value in {
            "name": "b", "unit": "usd", "limit": 1.0, "threshold": 0.5, "action": "warn", "per": "month", "each": "user_id",
            "value": "alice", "spent": 0.6, "calls": 1, "uncounted": 0, "blocked": False,
        }.items()
    }  # fmt: skip


# --- a real program ---------------------------------------------------------------------------------------------------
def test_a_program_that_is_instrumented_tells_at_its_end(
    run_instrumented: Any, budgets: Write, server: WebhookServer
) -> None:
    file = budgets(rules_for(server).replace("limit_usd = 1", "limit_calls = 2"))
    program = """
import openai
for _ in range(2):
    openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hi"}])
"""
    done = run_instrumented(program, env={"OTEL_LLM_BUDGETS": str(file)}, stderr="^budget 'b': ")
    assert done.stderr.startswith("budget 'b': spent, 2 of 2 calls this month, until ")
    assert [body["threshold"] for body in server.received] == [1.0]


def test_a_receiver_tells_of_what_others_send(
    serve: Callable[..., Any], budgets: Write, server: WebhookServer, tmp_path: Path
) -> None:
    receiving = serve(env={"OTEL_LLM_BUDGETS": str(budgets(rules_for(server)))})
    here = tmp_path / "here.duckdb"
    store = Store.open(here)
    spend(store, 1.5)
    store.close()
    command = str(Path(sys.executable).with_name("otel-llm"))
    shipped = [command, "ship", "--to", f"http://127.0.0.1:{receiving.http}", "--once", "--store", str(here)]
    subprocess.run(shipped, check=True, capture_output=True, timeout=60)
    server.wait_for(lambda: len(server.answered) == 1)
    assert server.received[0]["threshold"] == 1.0
    assert "budget 'b': spent, 1.50 of 1 USD this month" in receiving.stop()


def test_no_budgets_no_thread(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_LLM_BUDGETS", raising=False)
    reload()
    store = Store.open(store_path)
    before = len(store.before_flush)
    watching.begin(store)
    assert len(store.before_flush) == before
