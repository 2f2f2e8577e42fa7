"""`otel-llm prices import` and `otel-llm prices update`: price lists of others, beside the library's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import maintaining
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import counted, write_line, write_note

_MOST_BYTES: Final = 64 * 2**20
_SECONDS: Final = 30
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@click.command("import")
@click.argument("source", metavar="FILE|URL")
@store_option
def import_(source: str, store: Path | None) -> None:
    """Take in a price list: LiteLLM's map of model prices, or models.dev's api.json.

    \b
    Examples:
      otel-llm prices import model_prices_and_context_window.json
      otel-llm prices import https://mirror.example/api.json

    It is kept beside the store, in place of the one of the same name, and asked where the price library knows no price.
    Calls from now on get its prices; `otel-llm reprice` gives them to those that have none.
    """
    _take_in(_read(source), source, store)


@click.command()
@store_option
def update(store: Path | None) -> None:
    """Fetch the price lists of LiteLLM and models.dev, and take them in.

    \b
    Examples:
      otel-llm prices update
      otel-llm prices update && otel-llm reprice

    Both are under the MIT licence. The library itself is brought up to date by pip install --upgrade genai-prices. Where there
    is no network, or no way to these hosts, `otel-llm prices import` takes a file.
    """
    from otel_llm.prices.lists import SOURCES

    failed = []
    for url in SOURCES.values():
        try:
            _take_in(_read(url), url, store)
        except CommandError as error:
            failed.append(str(error))
    for failure in failed[: len(failed) if len(failed) < len(SOURCES) else -1]:
        write_note(failure)
    if len(failed) == len(SOURCES):
        raise CommandError(f"{failed[-1]}; otel-llm prices import takes a file")


def _take_in(text: bytes, source: str, store: Path | None) -> None:
    from otel_llm.prices import lists

    try:
        name, models = lists.parse(text)
    except lists.NoPriceList as error:
        raise CommandError(f"{source} cannot be taken in: {one_line(error)}") from error
    number = sum(map(len, models.values()))
    if not number:
        raise CommandError(f"{source} has no price that can be taken in")
    with maintaining(store) as paths:
        lists.save(paths.prices, name, models)
    write_line(f"Prices of {counted(number, 'model')} of {counted(len(models), 'provider')} taken from {name}.")


def _read(source: str) -> bytes:
    """A file, or what is at a URL. Raises CommandError."""
    from otel_llm.support import files

    if re.match(r"https?://", source):
        return _fetch(source)
    path = Path(source).expanduser()
    try:
        if (reason := files.no_file_at(path)) is not None:
            raise CommandError(f"{reason} that prices can be in")
        if path.stat().st_size > _MOST_BYTES:
            raise CommandError(f"{source} is too large for a price list")
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {source}: {error.strerror or error}") from error


def _fetch(url: str) -> bytes:
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    if url.startswith("http:") and urlsplit(url).hostname not in _LOOPBACK:
        raise CommandError(f"prices are not read over a connection that anybody can change: {url}; use https")
    try:
        with urlopen(Request(url, headers={"User-Agent": "otel-llm"}), timeout=_SECONDS) as answer:
            text: bytes = answer.read(_MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise CommandError(f"cannot fetch {url}: {one_line(error)}") from error
    if len(text) > _MOST_BYTES:
        raise CommandError(f"{url} is too large for a price list")
    return text
