"""Words that hold no secret, and no part of what tells one: most of a text is made of them, and they are looked at once.

To search a text for a hundred patterns takes longer than all the rest of recording it. Every pattern of `secrets` needs one word at
the least that has a digit, a sign or a name of those below in it, or that is long and mixed.
"""

from __future__ import annotations

import re
import threading
from typing import Final

STEMS: Final = (
    "key",
    "secret",
    "pass",
    "token",
    "pw",
    "psw",
    "jwt",
    "cred",
    "cookie",
    "authorization",
    "connection",
    "signature",
)
"""One of these is in each name of a secret, as `str.casefold` has it."""
COMMANDS: Final = ("sshpass", "login", "mysql", "mariadb", "redis-cli", "ldap", "zip", "http -a", "https -a")
"""Programs that take a password behind one letter."""
SHORTEST_KEY: Final = 14
"""Of an ordinary text next to nothing has as many characters between two blanks."""
_LONGEST: Final = 30
_MOST: Final = 8_192
"""Words that are remembered; a text of another language starts afresh."""
_OTHERS: Final = ("bearer", "identified", "basic", "auth", "dockerconfigjson", "curl", "kty")
_SIGNS: Final = ("%", "@", "\\u00", ":*:")
_SUSPICIOUS: Final = re.compile(
    rf"\d|{'|'.join(map(re.escape, (*STEMS, *(one for one in COMMANDS if ' ' not in one), *_OTHERS, *_SIGNS)))}"
)
_ALONE: Final = frozenset(("-a",))
"""Of a command that is written in two words."""

_known: set[str] = set()
_lock = threading.Lock()


def suspects_of(text: str) -> list[str]:
    """The words of a text, each once, that a secret may be in or be told by; none where the text has none."""
    new = {*text.split()}
    new.difference_update(_known)
    if not new:
        return []
    suspects = [word for word in new if not _is_ordinary(word)]
    if len(suspects) < len(new):
        new.difference_update(suspects)
        with _lock:
            if len(_known) + len(new) > _MOST:
                _known.clear()
            if len(new) <= _MOST:
                _known.update(new)
    return suspects


def _is_ordinary(word: str) -> bool:
    if len(word) > _LONGEST or word in _ALONE:
        return False
    folded = word.casefold()
    if _SUSPICIOUS.search(folded) is not None:
        return False
    return len(word) < SHORTEST_KEY or (has_one_case(word) and "=" not in word)


def has_one_case(word: str) -> bool:
    """Whether it has no small letters, or no capitals: a name, or a path. No key without a digit is like that."""
    return word == word.lower() or word == word.upper()
