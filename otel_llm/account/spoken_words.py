"""A word that somebody looks for in what was said: the ways in which it may be written there."""

from __future__ import annotations

import json


def in_json(word: str) -> str:
    """As it stands in messages, which are kept as JSON."""
    return json.dumps(without_surrogates(word), ensure_ascii=False)[1:-1]


def in_ascii_json(word: str) -> list[str]:
    """As it stands there where JSON was written in ASCII, as Python does it: an escape is another for a capital letter. Small."""
    if word.isascii():
        return []
    word = without_surrogates(word)
    return [
        *dict.fromkeys(json.dumps(one)[1:-1].lower() for one in (word.lower(), word.upper(), word.capitalize(), word))
    ]


def pattern(text: str) -> str:
    """A regular expression (RE2's) that finds the text in whatever case."""
    return "(?i)" + "".join(
        letter if letter.isalnum() or not letter.isascii() else f"\\x{{{ord(letter):x}}}" for letter in text
    )


def without_surrogates(word: str) -> str:
    """What a terminal has sent that is no UTF-8 stands nowhere."""
    return word.encode("utf-8", "replace").decode()
