"""What is known of servers that were asked for the usage of a stream: whether they take `stream_options`, or refuse it.

Learned from their answers, and kept in a small private file beside the journal for the processes to come. The file is read once,
at the first look; it is written where the store's background thread and `flush()` do their work, never while the app waits. No
store, no file, or one that cannot be used: what is learned lasts as long as the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from otel_llm.support import faults

REFUSED_SECONDS: Final = 7 * 86400.0
"""How long a refusal counts; then the server, which may be another version by now, is asked again."""
SUSPECTED_SECONDS: Final = 600.0
"""The same, where the server said nothing about it: it broke down when asked, and did not when not asked."""
MAX_SERVERS: Final = 256
MAX_MODELS: Final = 32
"""Models of one server whose refusal is remembered."""
MAX_BYTES: Final = 2**18
_ENOUGH_MODELS: Final = 2
"""So many models refuse, and none takes it: then it is the server."""
_ENOUGH_STRIKES: Final = 3
"""So many refusals in a row for other reasons, and no answer between: then those were perhaps not the reasons."""


class KnownServer:
    """What one server has shown, at one endpoint and API version. A gateway may differ by model.

    Changed without a lock: each step is one operation, and one that is lost to another thread is learned again.
    """

    __slots__ = (
        "_refused_here",
        "_strikes",
        "_suspects",
        "_took",
        "is_documented",
        "is_sure",
        "name",
        "refused",
        "taken_at",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_documented = False
        """Whether it is written that it takes the question: by OpenAI, of its own."""
        self.is_sure = False
        """Whether it has taken the question in this process: what it refuses then, it refuses for other reasons.

        What an earlier process saw is not enough: behind the same address may be another server by now.
        """
        self.taken_at = 0.0
        self.refused: dict[str, float] = {}
        """Until when, in seconds since 1970, by model."""
        self._refused_here: set[str] = set()
        self._took: set[str] = set()
        self._suspects: set[str] = set()
        self._strikes = 0

    def is_suspected(self, model: str) -> bool:
        """Whether the last stream that was asked for usage broke down, so that the next one is not asked."""
        return model in self._suspects

    def refuses(self, model: str, *, here: bool = False) -> bool:
        """Whether it is known not to take the question. `here`: by what this process has seen alone."""
        if not self.refused:
            return False
        until = self.refused.get(model)
        if until is not None and until < time.time():
            self.refused.pop(model, None)
            self._refused_here.discard(model)
        refused = self._refused_here if here else self.refused
        return model in refused or (not (self.is_sure or self.taken_at) and len(refused) >= _ENOUGH_MODELS)

    def took(self, model: str) -> None:
        """It has answered a stream that was asked for its usage."""
        self._strikes = 0
        if model not in self._took and len(self._took) < MAX_MODELS:
            self._took.add(model)
        self._suspects.discard(model)
        self.is_sure = True
        if not self.taken_at:
            self.taken_at = time.time()
            _memory.is_new = True

    def blames_the_app(self) -> bool:
        """Whether a refusal that does not name what we asked is taken for the app's own error. Counts it."""
        if self.is_documented or not self.is_sure:
            return self.is_documented
        self._strikes += 1
        return self._strikes <= _ENOUGH_STRIKES

    def answered_unasked(self, model: str, *, said_so: bool) -> None:
        """It has answered the same request without the question. `said_so`: it had refused the question in an answer."""
        self._suspects.discard(model)
        if said_so and model in self._took:
            # It takes it from this model, but not in every request. Should it go on, it takes it no more.
            self._took.discard(model)
            return
        while len(self.refused) >= MAX_MODELS:
            with contextlib.suppress(KeyError, RuntimeError, StopIteration):
                oldest = next(iter(self.refused))
                self._refused_here.discard(oldest)
                self.refused.pop(oldest)
        self._refused_here.add(model)
        self.refused[model] = time.time() + (REFUSED_SECONDS if said_so else SUSPECTED_SECONDS)
        _memory.is_new = True

    def refused_late(self, model: str) -> None:
        """It has refused the question inside an answer that had begun well, where there is no way back: it is asked no more."""
        self._took.discard(model)
        self.answered_unasked(model, said_so=True)

    def failed_unasked(self, model: str, *, is_refusal: bool) -> None:
        """The same request has failed without the question too: the question was not the reason."""
        self._suspects.discard(model)
        if is_refusal:
            self._strikes = 0
            self.is_sure = self.is_sure or bool(self.taken_at)

    def broke_down(self, model: str) -> None:
        """It has given no answer, for a reason that may be the question."""
        if not self.is_sure and len(self._suspects) < MAX_MODELS:
            self._suspects.add(model)

    @property
    def last_change(self) -> float:
        return max((self.taken_at, *self.refused.values()))


class _Memory:
    """What this process knows of servers, and the file that it has it from."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.is_new = False
        """Whether something has been learned that the file does not say."""
        self._servers: dict[str, KnownServer] = {}
        self._told: dict[str, KnownServer] | None = None
        """What the file said, as long as nobody has asked for it."""

    def server(self, address: str, name: str, *, is_documented: bool = False) -> KnownServer:
        known = self._servers.get(address)
        if known is None:
            if self._told is None:
                self._told = {} if self.path is None else read(self.path)
            known = self._told.get(_digest(address)) or KnownServer(name)
            known.is_sure = known.is_documented = is_documented
            while len(self._servers) >= MAX_SERVERS:
                with contextlib.suppress(KeyError, RuntimeError, StopIteration):
                    self._servers.pop(next(iter(self._servers)))
            known = self._servers.setdefault(address, known)
        return known

    def keep_at(self, path: Path | None) -> None:
        if path != self.path:
            self.path = path
            self._told = None

    def save(self) -> None:
        path = self.path
        if not self.is_new or path is None or not _is_ours(path.parent):
            return
        self.is_new = False
        learned = {_digest(address): server for address, server in self._servers.copy().items()}
        try:
            _write(path, _merged(read(path), learned))
        except OSError as error:
            faults.report("remember which servers tell the usage of streams", error)

    def forget(self) -> None:
        self.is_new = False
        self._servers = {}
        self._told = None


_memory = _Memory()


def server(address: str, name: str, *, is_documented: bool = False) -> KnownServer:
    """What is known of the server at `address`, which tells it from every other; `name` is what people call it."""
    return _memory.server(address, name, is_documented=is_documented)


def keep_at(path: Path | None) -> None:
    """Where this process remembers what it learns from now on; None for nowhere."""
    _memory.keep_at(path)


def save() -> None:
    """Writes what has been learned since it was last written, if anything. Raises nothing."""
    _memory.save()


def forget() -> None:
    """Forgets what this process has learned; the file stays."""
    _memory.forget()


# --- the file --------------------------------------------------------------------------------------------------------
def read(path: Path) -> dict[str, KnownServer]:
    """What the file at `path` says, by the digest of each server's address: nothing, where it is damaged or not ours."""
    try:
        content = _content(path)
        told = json.loads(content) if content else {}
    except (OSError, ValueError, RecursionError):
        return {}
    servers = told.get("servers") if isinstance(told, dict) else None
    return dict(_sound(servers)) if isinstance(servers, dict) else {}


def _sound(servers: Mapping[str, Any]) -> Iterator[tuple[str, KnownServer]]:
    now = time.time()
    for digest, told in list(servers.items())[:MAX_SERVERS]:
        if not isinstance(told, dict) or not isinstance(told.get("server"), str):
            continue
        server = KnownServer(told["server"])
        if _is_time(told.get("taken")):
            server.taken_at = min(told["taken"], now)
        refused = told.get("refused")
        for model, until in list(refused.items())[:MAX_MODELS] if isinstance(refused, dict) else ():
            if _is_time(until) and now < until <= now + REFUSED_SECONDS:
                server.refused[model] = until
        if server.last_change:
            yield digest, server


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < 2**40  # type: ignore[operator]


def _content(path: Path) -> bytes:
    """The bytes of a file of ours, unless there are too many. Raises OSError."""
    from otel_llm.support import files  # not on every system

    with os.fdopen(files.open_own(path), "rb") as file:
        content = file.read(MAX_BYTES + 1)
    return content if len(content) <= MAX_BYTES else b""


def _merged(told: Mapping[str, KnownServer], learned: Mapping[str, KnownServer]) -> dict[str, KnownServer]:
    """What the file will say: other processes learn too, and what they learn of one server at once is all true."""
    both = dict(told)
    for digest, server in learned.items():
        if not server.last_change:
            continue
        if (other := both.get(digest)) is not None:
            merged = KnownServer(server.name)
            merged.taken_at = max(server.taken_at, other.taken_at)
            merged.refused = {**other.refused, **server.refused}
            server = merged
        both[digest] = server
    kept = sorted(both.items(), key=lambda item: item[1].last_change, reverse=True)[:MAX_SERVERS]
    return dict(kept)


def _write(path: Path, servers: Mapping[str, KnownServer]) -> None:
    """Puts the file in place in one step. Raises OSError."""
    told = {
        digest: {"server": server.name, "taken": server.taken_at or None, "refused": server.refused}
        for digest, server in servers.items()
    }
    content = json.dumps({"v": 1, "servers": told}).encode()
    while len(content) > MAX_BYTES and told:
        told.popitem()  # the oldest
        content = json.dumps({"v": 1, "servers": told}).encode()
    from otel_llm.support import files

    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(files.create(beside), "wb") as file:
            file.write(content)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _is_ours(directory: Path) -> bool:
    """Whether it is there, and nobody else may put files into it. It is the journal's to create."""
    from otel_llm.support import files

    try:
        return directory.is_dir() and files.directory_objection(directory) is None
    except OSError:
        return False


def _digest(address: str) -> str:
    """Stands for an address in the file: the path of one may hold a key."""
    return hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()[:32]
