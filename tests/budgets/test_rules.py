"""What a file of budgets says, and what is said where it is wrong."""

from __future__ import annotations

import os
import re
import stat
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm.budgets import rules
from otel_llm.budgets.rules import Budget, Command, Cover, Per, Rules, Unit, Unpriced, Webhook

RIGHT = """
[[budget]]
name = "search"
limit_usd = 50.5
per = "month"
each = "user"
where = { module = "search", model = ["gpt-4o*", "o3"], tags = { team = "core" } }
thresholds = [1, 0.5]
action = "stop"
fail = "closed"
unpriced = 2.5
time_zone = "Europe/Berlin"
notify = ["team-slack", "page"]

[[budget]]
name = "runs"
limit_calls = 100
per = "trace"

[[webhook]]
name = "team-slack"
url = "https://hooks.example/services/T0/B0/sesame"
format = "slack"
headers = { Authorization = "Bearer sesame" }
timeout = 2.5

[[command]]
name = "page"
run = ["page", "--llm"]
"""
GOOD = 'name = "b"\nlimit_usd = 1\nper = "day"\n'


def loaded(tmp_path: Path, text: str) -> Rules:
    file = tmp_path / "budgets.toml"
    file.write_text(text, encoding="utf-8")
    return rules.load(file)


def test_every_key_is_read(tmp_path: Path) -> None:
    found = loaded(tmp_path, RIGHT)
    assert found.mistakes == ()
    first, second = found.budgets
    assert first == Budget(
        name="search",
        unit=Unit.usd,
        limit=Decimal("50.5"),
        per=Per.month,
        each="user_id",
        where=(Cover("module", ("search",)), Cover("model", ("gpt-4o*", "o3")), Cover("tags.team", ("core",))),
        thresholds=(0.5, 1.0),
        action="stop",
        fail="closed",
        unpriced=Decimal("2.5"),
        time_zone="Europe/Berlin",
        notify=("team-slack", "page"),
    )
    assert second == Budget("runs", Unit.calls, Decimal(100), Per.trace)
    assert (second.thresholds, second.action, second.fail, second.unpriced) == (
        (0.5, 0.8, 1.0),
        "warn",
        "open",
        "ignore",
    )
    headers = {"Authorization": "Bearer sesame"}
    webhook = Webhook("team-slack", "https://hooks.example/services/T0/B0/sesame", "slack", headers, 2.5)
    assert found.receivers_of(first) == [webhook, Command("page", ("page", "--llm"))]
    assert found.receivers_of(second) == []


def test_no_representation_shows_a_secret(tmp_path: Path) -> None:
    assert "sesame" not in repr(loaded(tmp_path, RIGHT))


MISTAKES = {
    # an entry, and what is said of it
    f"{GOOD}limits = 1": "unknown key 'limits'; did you mean limit_usd?",
    f"{GOOD}period = 'day'": "unknown key 'period'; write per = \"month\"",
    f"{GOOD}zzz = 1": "unknown key 'zzz'; known are name, limit_usd, ",
    'limit_usd = 1\nper = "day"': 'budget number 1: no name; add name = "search"',
    'name = "b"\nlimit_usd = 1': 'no per; add per = "month"',
    'name = "b"\nper = "day"': "no limit; write one of limit_usd, limit_tokens and limit_calls",
    f"{GOOD}limit_calls = 2": "limit_usd and limit_calls stand there together; write one of",
    'name = ""\nlimit_usd = 1\nper = "day"': "name = '' is not a text of 200 characters at most; write e.g.",
    'name = "b"\nlimit_usd = "1"\nper = "day"': "limit_usd = '1' is not a number more than 0; write e.g. limit_usd = 50",
    'name = "b"\nlimit_usd = 0\nper = "day"': "limit_usd = 0 is not a number more than 0",
    'name = "b"\nlimit_usd = nan\nper = "day"': "limit_usd = NaN is not a number more than 0",
    'name = "b"\nlimit_usd = inf\nper = "day"': "limit_usd = Infinity is not a number more than 0",
    'name = "b"\nlimit_usd = 1e400\nper = "day"': "limit_usd = 1E+400 is not a number more than 0",
    'name = "b"\nlimit_usd = true\nper = "day"': "limit_usd = True is not a number more than 0",
    'name = "b"\nlimit_tokens = 1.5\nper = "day"': "limit_tokens = 1.5 is not a whole number more than 0",
    'name = "b"\nlimit_calls = -1\nper = "day"': "limit_calls = -1 is not a whole number more than 0",
    'name = "b"\nlimit_usd = 1\nper = "months"': "month, trace or conversation; did you mean 'month'?",
    'name = "b"\nlimit_usd = 1\nper = 1': 'per = 1 is not hour, day, week, month, trace or conversation; write e.g. per = "month"',
    f"{GOOD}each = 'user_ids'": "each: 'user_ids' is nothing that a budget can go by; did you mean user_id?",
    f"{GOOD}each = 'tags.'": "each: 'tags.' is nothing that a budget can go by; known are module, ",
    f"{GOOD}each = ['user_id']": "each = ['user_id'] is not the name of a column; write e.g.",
    f"{GOOD}where = 'search'": "where = 'search' is not a table; write e.g. where = { module = \"search\" }",
    f"{GOOD}where = {{ modul = 'search' }}": "where.modul: 'modul' is nothing that a budget can go by; did you mean module?",
    f"{GOOD}where = {{ module = 1 }}": "where.module = 1 is not a text or a list of texts; write e.g. where.module = \"search\"",
    f"{GOOD}where = {{ module = [] }}": "where.module = [] is not a text",
    f"{GOOD}where = {{ module = [''] }}": "where.module = [''] is not a text",
    f"{GOOD}where = {{ tags = 'x' }}": "where.tags: 'tags' is nothing that a budget can go by",
    f"{GOOD}where = {{ tags = {{ team = 1 }} }}": "where.tags.team = 1 is not a text",
    f"{GOOD}where = {{ user = 'a', user_id = 'b' }}": "where.user_id says of user_id what stands there already; use a list",
    f"{GOOD}where = {{ model = 'gpt-[45]*' }}": "where.model = 'gpt-[45]*' has a bracket beside * or ?; write ? for the bracket",
    f"{GOOD}thresholds = 0.5": "thresholds = 0.5 is not a list of shares of the limit; write e.g. thresholds",
    f"{GOOD}thresholds = []": "thresholds = [] is not a list of shares of the limit",
    f"{GOOD}thresholds = [50, 80]": "thresholds = [50, 80] is not a list of shares of the limit; write 0.8 for 80 %",
    f"{GOOD}thresholds = [-1]": "thresholds = [-1] is not a list of shares of the limit",
    f"{GOOD}action = 'stopp'": "action = 'stopp' is not warn or stop; did you mean 'stop'?",
    f"{GOOD}fail = 'shut'": 'fail = \'shut\' is not open or closed; write e.g. fail = "open"',
    f"{GOOD}unpriced = 'blocked'": "unpriced = 'blocked' is not USD per million tokens, ignore or block; did you mean 'block'?",
    f"{GOOD}unpriced = -1": "unpriced = -1 is not USD per million tokens",
    f"{GOOD}time_zone = 'Europe/Berln'": "is not a time zone that is known here; did you mean 'Europe/Berlin'?",
    f"{GOOD}time_zone = '../../../etc/passwd'": "is not a time zone that is known here",
    f"{GOOD}time_zone = 'Europe'": "time_zone = 'Europe' is not a time zone that is known here",
    f"{GOOD}notify = 'slack'": "notify = 'slack' is not a list of names of webhooks and commands",
}  # fmt: skip


@pytest.mark.parametrize(("entry", "said"), MISTAKES.items())
def test_a_mistake_is_one_line_and_the_others_hold(tmp_path: Path, entry: str, said: str) -> None:
    found = loaded(tmp_path, f"[[budget]]\n{entry}\n{RIGHT}")
    (line,) = found.mistakes
    assert line.startswith(f"{tmp_path / 'budgets.toml'}, budget ")
    assert said in line
    assert line.count("\n") == 0
    assert re.search(r"; \S", line), "the remedy"
    assert [budget.name for budget in found.budgets] == ["search", "runs"]


RECEIVERS = {
    "[[webhook]]\nurl = 'http://x'": "webhook number 1: no name; add",
    "[[webhook]]\nname = 'w'": 'webhook \'w\': no url; add url = "${SLACK_WEBHOOK_URL}"',
    "[[webhook]]\nname = 'w'\nurl = 'ftp://sesame'": "webhook 'w': url is not an http or https URL; write e.g. url",
    "[[webhook]]\nname = 'w'\nurl = 'http://[sesame'": "webhook 'w': url is not an http or https URL",
    "[[webhook]]\nname = 'w'\nurl = 'http://x/sesame y'": "webhook 'w': url is not an http or https URL",
    "[[webhook]]\nname = 'w'\nurl = 'http://x'\nformat = 'slak'": "is not json, slack or teams; did you mean 'slack'?",
    "[[webhook]]\nname = 'w'\nurl = 'http://x'\nheaders = { 'a b' = 'sesame' }": "webhook 'w': headers is not a table of texts",
    "[[webhook]]\nname = 'w'\nurl = 'http://x'\nheaders = { a = \"sesame\\r\\nb: c\" }": "headers is not a table of texts",
    "[[webhook]]\nname = 'w'\nurl = 'http://x'\ntimeout = 0": "timeout = 0 is not a number of seconds, 60 at most; write",
    "[[webhook]]\nname = 'w'\nurl = 'http://x'\ntimeout = 3600": "timeout = 3600 is not a number of seconds, 60 at most",
    "[[command]]\nname = 'c'\nrun = 'rm -rf /'": "run = 'rm -rf /' is not a list: a program and its arguments; write",
    "[[command]]\nname = 'c'\nrun = []": "run = [] is not a list",
    "[[command]]\nname = 'page'\nrun = ['x']\n[[webhook]]\nname = 'page'\nurl = 'http://x'": "name = 'page' stands there twice",
    "[webhook]\nname = 'w'": "webhook is not a list of tables; write [[webhook]], with two brackets",
    "[[hook]]\nname = 'w'": "unknown entry 'hook'; did you mean [[webhook]]?",
    "[[zzz]]\nname = 'w'": "unknown entry 'zzz'; known are [[budget]], [[webhook]] and [[command]]",
}  # fmt: skip


@pytest.mark.parametrize(("entry", "said"), RECEIVERS.items())
def test_a_mistake_in_a_receiver(tmp_path: Path, entry: str, said: str) -> None:
    found = loaded(tmp_path, f"[[budget]]\n{GOOD}\n{entry}\n")
    (line,) = found.mistakes
    assert said in line
    assert "sesame" not in line
    assert [budget.name for budget in found.budgets] == ["b"]


def test_a_budget_holds_whom_ever_it_tells(tmp_path: Path) -> None:
    found = loaded(tmp_path, RIGHT.replace('"page"]', '"pgae"]'))
    (line,) = found.mistakes
    assert "budget 'search': notify: there is no webhook or command 'pgae'; did you mean 'page'?" in line
    assert [one.name for one in found.receivers_of(found.budgets[0])] == ["team-slack"]


def test_a_wrong_receiver_is_told_of_once(tmp_path: Path) -> None:
    found = loaded(tmp_path, RIGHT.replace('format = "slack"', 'format = "irc"'))
    assert len(found.mistakes) == 1
    assert [one.name for one in found.receivers_of(found.budgets[0])] == ["page"]


def test_a_name_stands_once(tmp_path: Path) -> None:
    found = loaded(tmp_path, f"[[budget]]\n{GOOD}[[budget]]\n{GOOD.replace('= 1', '= 2')}")
    assert [budget.limit for budget in found.budgets] == [1]
    assert "budget 'b': name = 'b' stands there twice, and the first holds" in found.mistakes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[[budget]\n", "is not valid TOML (Expected ']]'"),
        (b"\xff\xfe[\0", "is not valid TOML ("),
        (b"a = " + b"[" * 100_000, "is not valid TOML ("),
        (b"a = '" + b"x" * 2**20 + b"'", "is larger than 1 MB"),
        (b"", "there are no budgets in it; add [[budget]]"),
        (b"budget = 'x'", "budget is not a list of tables; write [[budget]]"),
        (b"budget = [1]", "budget is not a list of tables"),
        (b"budget = [{ name = \"\\u001b[31m\", limit_usd = 1, per = 'day' }]", "budget number 1: name = '\\x1b[31m'"),
    ],
)
def test_a_hostile_file(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "b.toml"
    file.write_bytes(content)
    found = rules.load(file)
    assert found.budgets == ()
    (line,) = found.mistakes
    assert line.startswith(str(file)) and said in line and line.isprintable()


def test_no_file(tmp_path: Path) -> None:
    assert "there is no such file; set OTEL_LLM_BUDGETS" in rules.load(tmp_path / "none").mistakes[0]
    assert "is no file" in rules.load(tmp_path).mistakes[0]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is no file" in rules.load(pipe).mistakes[0]


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text(RIGHT)
    file.chmod(stat.S_IWUSR)
    assert "cannot be read (Permission denied)" in rules.load(file).mistakes[0]


def test_nobody_elses_commands_are_run(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text(RIGHT)
    file.chmod(0o664)
    assert "page" in rules.load(file).receivers
    file.chmod(0o666)
    found = rules.load(file)
    assert [*found.receivers] == ["team-slack"] and len(found.budgets) == 2
    assert found.mistakes == (
        f"{file}: another user may have written it, so no [[command]] is run; chown it, and chmod o-w",
    )
    file.write_text(RIGHT.partition("[[command]]")[0].replace(', "page"', ""))
    assert rules.load(file).mistakes == ()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_another_users_commands_are_not_run(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text(RIGHT)
    os.chown(file, 12345, -1)
    assert [*rules.load(file).receivers] == ["team-slack"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert loaded(tmp_path, f"\ufeff{RIGHT}").mistakes == ()


@pytest.mark.parametrize(
    ("values", "value", "matches"),
    [
        (("a", "b"), "b", True),
        (("a", "b"), "c", False),
        (("gpt-4o*",), "gpt-4o-mini", True),
        (("gpt-4o*",), "x-gpt-4o", False),
        (("gpt-4?",), "gpt-4o", True),
        (("gpt-4?",), "gpt-4", False),
        (("a.c*",), "abc", False),
        (("*",), "with\na line", True),
        (("*",), "", True),
        (("*",), None, False),
        (("a*", "b*"), "bb", True),
        (("a*", "b*"), "cb", False),
    ],
)
def test_what_a_value_matches(values: tuple[str, ...], value: str | None, matches: bool) -> None:
    assert Cover("module", values).matches(value) is matches


@given(st.text(), st.text())
def test_what_has_no_star_is_meant_word_for_word(value: str, other: str) -> None:
    cover = Cover("module", (value,))
    assert cover.matches(value)
    assert rules.is_pattern(value) or cover.matches(other) is (other == value)


def test_which_calls_are_covered(tmp_path: Path) -> None:
    budget = loaded(tmp_path, RIGHT).budgets[0]
    call = {"module": "search", "model": "o3", "tags.team": "core"}
    assert budget.covers(call.get)
    for column in call:
        assert not budget.covers({**call, column: "another"}.get)
        assert not budget.covers({name: value for name, value in call.items() if name != column}.get)


def test_a_call_outside_of_conversations_is_in_no_conversation() -> None:
    budget = Budget("c", Unit.usd, Decimal(1), Per.conversation)
    assert budget.covers({"conversation_id": "c-1"}.get)
    assert not budget.covers({}.get)


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_PATH", "sesame\n")
    monkeypatch.delenv("HOOK_NONE", raising=False)
    assert rules.expanded("https://x/${HOOK_PATH}?$HOOK_PATH") == "https://x/sesame?$HOOK_PATH"
    with pytest.raises(ValueError, match="the environment variable HOOK_NONE is not set"):
        rules.expanded("${HOOK_NONE}")


def test_the_example_in_the_module_is_right() -> None:
    import tomllib

    assert rules.__doc__ is not None
    example = "\n".join(line.strip() for line in rules.__doc__.splitlines() if line.startswith("    "))
    assert rules.parse(tomllib.loads(example, parse_float=Decimal), "doc").mistakes == ()


def test_what_may_be_chosen_by_are_columns() -> None:
    from otel_llm.account.sums import COLUMNS
    from otel_llm.store.merge.rows import USAGE_COLUMNS

    assert set(rules.COLUMNS) - {"model"} <= set(USAGE_COLUMNS)
    for name, sql in COLUMNS.items():  # the words of `usage --by`
        if (column := rules.column_named(name)) is not None:
            assert column in (sql, "model")
    assert Unpriced("block") is Unpriced.block
