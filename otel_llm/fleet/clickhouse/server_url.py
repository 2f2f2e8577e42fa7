"""The URL that names a ClickHouse: `clickhouse://user@host:8123/database`; `clickhouses://` is TLS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

_PORTS: Final = {"clickhouse": 8123, "clickhouses": 8443}
PASSWORD: Final = "CLICKHOUSE_PASSWORD"
"""The environment variable with the password, as ClickHouse's own client and our Collector have it."""
_FORM: Final = "clickhouse://user@host:8123/database, or clickhouses:// for TLS"


class BadURL(ValueError):
    """It names no ClickHouse: why, in one line. It does not repeat a password."""


@dataclass(frozen=True, slots=True)
class ClickHouseURL:
    """Where a ClickHouse is, without the password."""

    host: str
    port: int
    database: str = "default"
    user: str = "default"
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> ClickHouseURL:
        """Raises BadURL."""
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError as error:
            raise BadURL(f"this is not a ClickHouse URL ({error}); use {_FORM}") from None
        if parts.password is not None:
            raise BadURL(
                f"a password does not belong into a URL, which others can see: leave it out and set {PASSWORD}"
            )
        path = unquote(parts.path).strip("/")
        if parts.scheme not in _PORTS or not parts.hostname or "/" in path or parts.query or parts.fragment:
            raise BadURL(f"{text.strip()[:200]!r} is not a ClickHouse URL; use {_FORM}")
        return cls(
            parts.hostname,
            port or _PORTS[parts.scheme],
            path or "default",
            unquote(parts.username or "") or "default",
            parts.scheme == "clickhouses",
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"clickhouse{'s' if self.tls else ''}://{self.user}@{host}:{self.port}/{self.database}"

    @property
    def password(self) -> str:
        return os.environ.get(PASSWORD, "")
