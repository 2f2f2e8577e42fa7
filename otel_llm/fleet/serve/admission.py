"""Who may send: on loopback everybody, beyond it who has the token, or a certificate."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BEARER: Final = "bearer "


class NotAllowed(ValueError):
    """A receiver must not be started like this: why, and the remedy, in one line."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 is any that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`127.0.0.1:4317`, `[::1]:4317`, `localhost:4317`. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65535 or "/" in host:
            raise ValueError(f"{text} is not an address like 127.0.0.1:4317")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. With `client_ca` a sender must show a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """What a sender must show."""

    token: str | None = None
    tls: Tls | None = None

    def require_safe(self, *addresses: Address) -> None:
        """Raises NotAllowed where others than this machine could send without showing anything."""
        if self.token is not None or (self.tls is not None and self.tls.client_ca is not None):
            return
        for address in addresses:
            if not address.is_loopback:
                raise NotAllowed(
                    f"{address} can be reached from other machines: set OTEL_LLM_SERVE_TOKEN, or give --tls-cert, --tls-key and "
                    f"--client-ca, or listen on 127.0.0.1"
                )

    def admits(self, authorization: str | None) -> bool:
        """Whether the header `authorization` has the token, where there is one. (Certificates are the connection's matter.)"""
        if self.token is None:
            return True
        given = authorization or ""
        if not given.lower().startswith(_BEARER):
            return False
        return hmac.compare_digest(given[len(_BEARER) :].strip().encode(), self.token.encode())
