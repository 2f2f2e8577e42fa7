"""What `OTEL_LLM_BUDGETS` says: the budgets, whom they tell, and every mistake in the file at once, a line each.

    [[budget]]
    name = "search"
    limit_usd = 50                       # or limit_tokens, or limit_calls
    per = "month"                        # hour, day, week, month (by the calendar), trace or conversation
    each = "user_id"                     # a limit for each value of a column, or of a tag: "tags.team"
    where = { module = "search", model = ["gpt-4o*", "o3"], tags = { team = "core" } }   # * and ? match
    thresholds = [0.5, 0.8, 1.0]
    action = "warn"                      # or "stop": no call is sent once it is spent
    fail = "open"                        # or "closed": whether calls are sent while the account cannot be read
    unpriced = 2.5                       # USD per million tokens of a call without a price; or "block", or "ignore"
    time_zone = "Europe/Berlin"
    notify = ["team-slack"]

    [[webhook]]
    name = "team-slack"
    url = "${SLACK_WEBHOOK_URL}"
    format = "slack"                     # json, slack or teams
    headers = { Authorization = "Bearer ${ALERT_TOKEN}" }
    timeout = 10                         # seconds

    [[command]]
    name = "page"
    run = ["/usr/local/bin/page-somebody", "--llm"]   # the event is on its standard input, as JSON
    timeout = 10

An entry with a mistake in it is left out; the others hold.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from otel_llm.support import masking

_logger = logging.getLogger("otel_llm")

Action = Literal["warn", "stop"]
Fail = Literal["open", "closed"]
MILLION: Final = 1_000_000

COLUMNS: Final = (
    "module",
    "user_id",
    "session_id",
    "conversation_id",
    "agent_name",
    "workflow_name",
    "model",
    "provider",
    "operation",
    "profile",
    "service_name",
    "server_address",
)
"""What a budget may choose calls by, beside `tags.KEY`: what is known of a call before it is sent. All are columns of `llm_usage`
but `model`, which is the model that was asked for."""
TAG: Final = "tags."
"""What the name of a column begins with that is a tag."""
_OTHER_NAMES: Final = {
    "user": "user_id",
    "session": "session_id",
    "conversation": "conversation_id",
    "agent": "agent_name",
    "workflow": "workflow_name",
    "request_model": "model",
    "service": "service_name",
    "server": "server_address",
}
"""As `otel-llm usage --by` calls them."""


class Unit(StrEnum):
    """What is limited. A key of the file is `limit_` and one of these."""

    usd = "usd"
    tokens = "tokens"
    calls = "calls"


class Per(StrEnum):
    """What a limit is for."""

    hour = "hour"
    day = "day"
    week = "week"
    month = "month"
    trace = "trace"
    conversation = "conversation"

    @property
    def run_column(self) -> str | None:
        """The column of `llm_usage` whose every value has the limit for itself; None for a time of the calendar."""
        return {Per.trace: "trace_id", Per.conversation: "conversation_id"}.get(self)


class Unpriced(StrEnum):
    """What becomes of a call without a price under a limit in USD."""

    ignore = "ignore"
    """It is not in the sum; how many there are is told with it."""
    block = "block"
    """It is refused where the budget stops calls; where it does not, the budget counts as spent with it."""


@dataclass(frozen=True)
class Cover:
    """A condition on calls: the column has one of these values."""

    column: str
    """Of `COLUMNS`, or `tags.KEY`."""
    values: tuple[str, ...]
    """In each, `*` stands for any text and `?` for one character."""

    @cached_property
    def exact(self) -> frozenset[str]:
        return frozenset(value for value in self.values if not is_pattern(value))

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        patterns = [value for value in self.values if is_pattern(value)]
        wild = {"*": ".*", "?": "."}
        texts = ("".join(wild.get(letter) or re.escape(letter) for letter in value) for value in patterns)
        return re.compile("|".join(texts), re.DOTALL) if patterns else None

    def matches(self, value: str | None) -> bool:
        """Whether a call with this value in the column is one of those."""
        if value is None:
            return False
        return value in self.exact or (self._pattern is not None and self._pattern.fullmatch(value) is not None)


def is_pattern(value: str) -> bool:
    """Whether a value of `where` stands for many."""
    return "*" in value or "?" in value


@dataclass(frozen=True, slots=True)
class Budget:
    """One `[[budget]]`."""

    name: str
    unit: Unit
    limit: Decimal
    """More than 0; whole for tokens and calls."""
    per: Per
    each: str | None = None
    """The column whose every value has the limit for itself, those calls that have none in it together; None: one for all."""
    where: tuple[Cover, ...] = ()
    """All of these hold for a call that it covers. With `per = "conversation"` the call is also in one."""
    thresholds: tuple[float, ...] = (0.5, 0.8, 1.0)
    """Shares of the limit, rising."""
    action: Action = "warn"
    fail: Fail = "open"
    unpriced: Unpriced | Decimal = Unpriced.ignore
    """A Decimal: USD per million tokens."""
    time_zone: str | None = None
    """Whose calendar; None: that of the machine."""
    notify: tuple[str, ...] = ()
    """The names of webhooks and commands."""

    @property
    def zone(self) -> tzinfo | None:
        """Whose calendar its periods are of; None: local time."""
        return None if self.time_zone is None else _zone(self.time_zone)

    @property
    def stops(self) -> bool:
        return self.action == "stop"

    def covers(self, value_of: Callable[[str], str | None]) -> bool:
        """Whether a call counts. `value_of` tells its value in a column of `COLUMNS`, in `tags.KEY`, or None."""
        if self.per is Per.conversation and value_of("conversation_id") is None:
            return False
        return all(cover.matches(value_of(cover.column)) for cover in self.where)


@dataclass(frozen=True, slots=True)
class Webhook:
    """One `[[webhook]]`. Its address and its headers are secrets: no representation shows them."""

    name: str
    url: str = field(repr=False)
    """As in the file: `${NAME}` stands for a variable, which is looked up when it is sent."""
    format: Literal["json", "slack", "teams"] = "json"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Command:
    """One `[[command]]`."""

    name: str
    run: tuple[str, ...]
    """The program and its arguments; no shell."""
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Rules:
    """A file as far as it is right."""

    budgets: tuple[Budget, ...] = ()
    receivers: Mapping[str, Webhook | Command] = field(default_factory=dict)
    """By name."""
    mistakes: tuple[str, ...] = ()
    """A line for each thing that is wrong."""

    def receivers_of(self, budget: Budget) -> list[Webhook | Command]:
        return [self.receivers[name] for name in budget.notify if name in self.receivers]


def load(path: Path) -> Rules:
    """What the file at `path` says. Raises nothing."""
    shown = masking.text(path)
    try:
        if not path.is_file():  # a pipe would be waited for
            why = "is no file" if path.exists() else "there is no such file"
            return Rules(mistakes=(f"{shown}: {why}; set OTEL_LLM_BUDGETS to the path of a TOML file",))
        if path.stat().st_size > _LARGEST:
            return Rules(mistakes=(f"{shown}: is larger than {_LARGEST >> 20} MB; name a file of budgets",))
        text = path.read_bytes().decode("utf-8-sig")
        document = tomllib.loads(text, parse_float=Decimal)
    except OSError as error:
        return Rules(mistakes=(f"{shown}: cannot be read ({error.strerror}); correct its permissions",))
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8
        return Rules(mistakes=(f"{shown}: is not valid TOML ({masking.text(error)}); correct it there",))
    found = parse(document, shown)
    return found if _is_trusted(path) else _without_commands(found, shown)


def parse(document: Mapping[str, Any], source: str) -> Rules:
    """What a document says; `source` names it in the mistakes."""
    reader = _RulesReader(source)
    budgets, receivers = reader.document(document)
    return Rules(budgets, receivers, tuple(reader.mistakes))


def _is_trusted(file: Path) -> bool:
    """Whether nobody but this user, root and a group can have written it."""
    if not hasattr(os, "geteuid"):
        return True
    try:
        found = file.stat()
    except OSError:
        return False
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & stat.S_IWOTH


def _without_commands(rules: Rules, source: str) -> Rules:
    """Nobody else's commands are run."""
    kept = {name: one for name, one in rules.receivers.items() if isinstance(one, Webhook)}
    if len(kept) == len(rules.receivers):
        return rules
    mistake = f"{source}: another user may have written it, so no [[command]] is run; chown it, and chmod o-w"
    return Rules(rules.budgets, kept, (*rules.mistakes, mistake))


_said: Final[set[str]] = set()


def say(mistake: str) -> None:
    """Logs a mistake, once in a process."""
    if mistake not in _said:
        _said.add(mistake)
        _logger.warning("%s", mistake)


def column_named(name: str) -> str | None:
    """The column of `COLUMNS`, or `tags.KEY`, that is called so; None where there is none."""
    if name.startswith(TAG):
        return name if name != TAG else None
    name = _OTHER_NAMES.get(name, name)
    return name if name in COLUMNS else None


def expanded(text: str) -> str:
    """`text` with the variables in it. Raises ValueError, which names a variable that is not set."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name].strip()

    return _VARIABLE.sub(value, text)


def is_url(text: str) -> bool:
    """Whether it is the URL of something that HTTP can be spoken with."""
    if not text.isprintable() or any(letter.isspace() for letter in text):
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


# --- what is right ----------------------------------------------------------------------------------------------------
_LARGEST: Final = 2**20
_MOST: Final = 10**15
"""Beyond it a number is a slip."""
_LONGEST: Final = 200
"""Characters of a name."""
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _zone(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _is_text(value) and len(value) <= _LONGEST


def _is_number(value: object) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite() and abs(value) <= _MOST
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)


def _is_seconds(value: Any) -> bool:
    return _is_positive(value) and value <= 60


def _are_thresholds(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_positive(one) and one <= 10 for one in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _is_price(value: Any) -> bool:
    return value in ("ignore", "block") if isinstance(value, str) else _is_number(value) and value >= 0


def _is_zone(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(_zone(value))
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        return False


def _is_url(value: object) -> bool:
    """One that is so, or may be when its variables are known."""
    return isinstance(value, str) and (is_url(value) or _VARIABLE.match(value) is not None)


def _are_headers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) and isinstance(one, str) and one.isprintable()
        for name, one in value.items()
    )


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_program(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, str) and "\0" not in one for one in value)
        and bool(value[0].strip())
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a key of the file may be."""

    accepts: Callable[[Any], bool]
    expected: str
    example: str
    choices: tuple[str, ...] = ()
    """All that it may be, where that is a few words."""
    is_secret: bool = False


def _one_of(choices: Iterable[str], example: str) -> _Rule:
    words = tuple(map(str, choices))
    listed = f"{', '.join(words[:-1])} or {words[-1]}"
    return _Rule(lambda value: isinstance(value, str) and value in words, listed, example, words)


_TIMEOUT: Final = _Rule(_is_seconds, "a number of seconds, 60 at most", "timeout = 10")
_NAME: Final = _Rule(_is_name, f"a text of {_LONGEST} characters at most", 'name = "search"')
_LIMITS: Final = {
    "limit_usd": _Rule(_is_positive, "a number more than 0", "limit_usd = 50"),
    "limit_tokens": _Rule(_is_count, "a whole number more than 0", "limit_tokens = 1000000"),
    "limit_calls": _Rule(_is_count, "a whole number more than 0", "limit_calls = 1000"),
}
_BUDGET: Final = {
    "name": _NAME,
    **_LIMITS,
    "per": _one_of(Per, 'per = "month"'),
    "each": _Rule(lambda value: isinstance(value, str), "the name of a column", 'each = "user_id"'),
    "where": _Rule(_is_table, "a table", 'where = { module = "search" }'),
    "thresholds": _Rule(_are_thresholds, "a list of shares of the limit", "thresholds = [0.5, 0.8, 1.0]"),
    "action": _one_of(("warn", "stop"), 'action = "stop"'),
    "fail": _one_of(("open", "closed"), 'fail = "open"'),
    "unpriced": _Rule(_is_price, "USD per million tokens, ignore or block", "unpriced = 2.5", ("ignore", "block")),
    "time_zone": _Rule(_is_zone, "a time zone that is known here", 'time_zone = "Europe/Berlin"'),
    "notify": _Rule(_are_names, "a list of names of webhooks and commands", 'notify = ["team-slack"]'),
}
_WEBHOOK: Final = {
    "name": _NAME,
    "url": _Rule(_is_url, "an http or https URL", 'url = "${SLACK_WEBHOOK_URL}"', is_secret=True),
    "format": _one_of(("json", "slack", "teams"), 'format = "slack"'),
    "headers": _Rule(
        _are_headers, "a table of texts", 'headers = { Authorization = "Bearer ${ALERT_TOKEN}" }', is_secret=True
    ),
    "timeout": _TIMEOUT,
}
_COMMAND: Final = {
    "name": _NAME,
    "run": _Rule(_is_program, "a list: a program and its arguments", 'run = ["notify-send", "budget"]'),
    "timeout": _TIMEOUT,
}
_ENTRIES: Final = ("budget", "webhook", "command")
_REMEDIES: Final = {
    "limit": "write limit_usd, limit_tokens or limit_calls",
    "budget": "write limit_usd, limit_tokens or limit_calls",
    "period": 'write per = "month"',
    "by": 'write each = "user_id"',
    "timezone": 'write time_zone = "Europe/Berlin"',
    "tz": 'write time_zone = "Europe/Berlin"',
    "webhook": 'write notify = ["NAME"], and a [[webhook]] with that name',
    "command": 'write notify = ["NAME"], and a [[command]] with that name',
}
"""For keys that somebody may expect in a budget."""


class _RulesReader:
    """Reads a document and collects the mistakes."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.mistakes: list[str] = []

    def document(self, document: Mapping[str, Any]) -> tuple[tuple[Budget, ...], dict[str, Webhook | Command]]:
        for key in document:
            if key not in _ENTRIES:
                near = difflib.get_close_matches(key, _ENTRIES, 1)
                remedy = f"did you mean [[{near[0]}]]?" if near else "known are [[budget]], [[webhook]] and [[command]]"
                self._add("", f"unknown entry {_shown(key)}", remedy)
        receivers: dict[str, Webhook | Command] = {}
        for entry, made in (("webhook", self._webhook), ("command", self._command)):
            for where, table in self._tables(document, entry):
                receiver = made(where, table)
                if receiver is not None and self._is_new(where, receiver.name, receivers):
                    receivers[receiver.name] = receiver
        budgets: dict[str, Budget] = {}
        known = {name for entry in ("webhook", "command") for name in _names(document.get(entry))}
        for where, table in self._tables(document, "budget"):
            budget = self._budget(where, table, known)
            if budget is not None and self._is_new(where, budget.name, budgets):
                budgets[budget.name] = budget
        if not budgets and not self.mistakes:
            self._add("", "there are no budgets in it", 'add [[budget]] with name, limit_usd and per = "month"')
        return tuple(budgets.values()), receivers

    def _tables(self, document: Mapping[str, Any], entry: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """The entries of a kind, and how each is named in a mistake."""
        entries = document.get(entry, [])
        if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
            self._add("", f"{entry} is not a list of tables", f"write [[{entry}]], with two brackets")
            return
        for number, table in enumerate(entries, 1):
            name = table.get("name")
            yield (f"{entry} {name!r}" if _is_name(name) else f"{entry} number {number}"), table

    def _is_new(self, where: str, name: str, known: Mapping[str, Any]) -> bool:
        if name in known:
            self._add(where, f"name = {name!r} stands there twice, and the first holds", "give each its own name")
        return name not in known

    def _budget(self, where: str, table: Mapping[str, Any], receivers: set[str]) -> Budget | None:
        before = len(self.mistakes)
        good = self._values(where, table, _BUDGET, ("name", "per"))
        limits = [key for key in _LIMITS if key in table]
        if len(limits) != 1:
            problem = f"{' and '.join(limits)} stand there together" if limits else "no limit"
            self._add(where, problem, "write one of limit_usd, limit_tokens and limit_calls")
        covers = self._covers(where, good.pop("where", {}))
        if (each := good.get("each")) is not None:
            good["each"] = self._column(where, "each", each)
        if len(self.mistakes) > before:
            return None
        notify = tuple(dict.fromkeys(good.pop("notify", ())))
        for name in notify:
            if name not in receivers:  # the budget holds all the same
                near = difflib.get_close_matches(name, receivers, 1)
                remedy = f"did you mean {near[0]!r}?" if near else f"add [[webhook]] with name = {name!r}"
                self._add(where, f"notify: there is no webhook or command {name!r}", remedy)
        key = limits[0]
        unpriced = good.pop("unpriced", Unpriced.ignore)
        return Budget(
            unit=Unit(key.removeprefix("limit_")),
            limit=Decimal(good.pop(key)),
            per=Per(good.pop("per")),
            where=covers,
            thresholds=tuple(sorted({float(one) for one in good.pop("thresholds", (0.5, 0.8, 1.0))})),
            unpriced=Unpriced(unpriced) if isinstance(unpriced, str) else Decimal(unpriced),
            notify=notify,
            **good,
        )

    def _covers(self, where: str, table: Mapping[str, Any]) -> tuple[Cover, ...]:
        found: dict[str, tuple[str, ...]] = {}
        for key, value in table.items():
            if key == "tags" and isinstance(value, Mapping):
                named = {f"{TAG}{tag}": one for tag, one in value.items()}
            else:
                named = {key: value}
            for name, one in named.items():
                column = self._column(where, f"where.{name}", name)
                values = self._texts(where, f"where.{name}", one)
                if column is not None and values:
                    if column in found:
                        self._add(where, f"where.{name} says of {column} what stands there already", "use a list")
                    found[column] = values
        return tuple(Cover(column, values) for column, values in found.items())

    def _column(self, where: str, key: str, name: str) -> str | None:
        column = column_named(name)
        if column is None:
            near = difflib.get_close_matches(name, [*COLUMNS, *_OTHER_NAMES], 1)
            known = f"did you mean {near[0]}?" if near else f"known are {', '.join(COLUMNS)} and tags.KEY"
            self._add(where, f"{key}: {_shown(name)} is nothing that a budget can go by", known)
        return column

    def _texts(self, where: str, key: str, value: object) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        texts = [one for one in listed if isinstance(one, str) and one]
        if not texts or len(texts) < len(listed):
            self._add(
                where, f"{key} = {_shown(value)} is not a text or a list of texts", f'write e.g. {key} = "search"'
            )
            return ()
        for one in texts:
            if is_pattern(one) and "[" in one:
                self._add(where, f"{key} = {_shown(one)} has a bracket beside * or ?", "write ? for the bracket")
                return ()
        return tuple(dict.fromkeys(texts))

    def _webhook(self, where: str, table: Mapping[str, Any]) -> Webhook | None:
        before = len(self.mistakes)
        good = self._values(where, table, _WEBHOOK, ("name", "url"))
        if len(self.mistakes) > before:
            return None
        good["timeout"] = float(good.get("timeout", 10))
        return Webhook(**good)

    def _command(self, where: str, table: Mapping[str, Any]) -> Command | None:
        before = len(self.mistakes)
        good = self._values(where, table, _COMMAND, ("name", "run"))
        if len(self.mistakes) > before:
            return None
        return Command(good["name"], tuple(good["run"]), float(good.get("timeout", 10)))

    def _values(
        self, where: str, table: Mapping[str, Any], rules: Mapping[str, _Rule], needed: tuple[str, ...]
    ) -> dict[str, Any]:
        """The values of known keys that are as they should be."""
        good = {}
        for key in needed:
            if key not in table:
                self._add(where, f"no {key}", f"add {rules[key].example}")
        for key, value in table.items():
            rule = rules.get(key)
            if rule is None:
                near = difflib.get_close_matches(key, rules, 1)
                remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(rules)}"
                if rules is _BUDGET:
                    remedy = _REMEDIES.get(key, remedy)
                self._add(where, f"unknown key {_shown(key)}", remedy)
            elif rule.accepts(value):
                good[key] = value
            else:
                said = key if rule.is_secret else f"{key} = {_shown(value)}"
                self._add(where, f"{said} is not {rule.expected}", _remedy(key, rule, value))
        return good

    def _add(self, where: str, problem: str, remedy: str) -> None:
        place = f"{self._source}, {where}" if where else self._source
        self.mistakes.append(f"{place}: {problem}; {remedy}")


def _remedy(key: str, rule: _Rule, value: object) -> str:
    """What to write instead."""
    known: Iterable[str] = rule.choices
    if key == "time_zone":
        from zoneinfo import available_timezones

        known = available_timezones()
    if key == "thresholds" and isinstance(value, list) and any(_is_number(one) and one > 10 for one in value):
        return "write 0.8 for 80 %"
    near = difflib.get_close_matches(value, list(known), 1) if isinstance(value, str) else []
    return f"did you mean {near[0]!r}?" if near else f"write e.g. {rule.example}"


def _names(entries: object) -> list[str]:
    """The names in a list of entries, right or not."""
    listed = entries if isinstance(entries, list) else []
    return [one["name"] for one in listed if isinstance(one, Mapping) and isinstance(one.get("name"), str)]


def _shown(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)[:60]
    return masking.text(repr(value)[:60])
