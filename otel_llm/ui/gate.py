"""Who may see the page: the holder of its token, under a name of this machine, from a page of its own."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOKEN: Final = "token"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
_NO_ENTRY: Final = (
    "This page needs its token. Open the address that `otel-llm ui` printed: it ends in ?token=..., and a cookie keeps it "
    "for this browser."
)


class Gate:
    """Lets through what comes with the token, sets its cookie, refuses foreign hosts and origins, and adds the security headers.

    `hosts` are the values of the Host header under which the page may be asked for: a name that somebody has pointed at this
    machine (DNS rebinding) is none of them; empty takes any. `token` None takes whoever comes, for use behind a proxy that asks.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: Collection[str], cookie: str) -> None:
        self._app = app
        self._token = token
        self._hosts = frozenset(host.lower() for host in hosts)
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        response = self._refusal(scope)
        await (self._app if response is None else response)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self._hosts and host not in self._hosts:
            return PlainTextResponse(
                f"This page is not served under the name {host[:100]!r}: start otel-llm ui with --allow-host for it.\n",
                421,
            )
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            return PlainTextResponse("This request comes from another site.\n", 403)
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2].lower() != host:
                return PlainTextResponse("This request comes from another site.\n", 403)
        if self._token is None:
            return None
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in asked if name == _TOKEN]
        if given and self._is_token(given[0]):
            rest = urlencode([(name, value) for name, value in asked if name != _TOKEN])
            path = scope.get("root_path", "").rstrip("/") + _own_path(scope)
            response = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
            response.set_cookie(
                self._cookie, self._token, httponly=True, samesite="strict", path=scope.get("root_path") or "/"
            )
            return response
        if self._is_token(_cookie_of(headers, self._cookie)):
            return None
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] == "GET" and _own_path(scope) != "/live":
            # A link from elsewhere brings no SameSite=Strict cookie. Asked for again by this page itself, it does.
            return HTMLResponse(
                '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0"><title>otel-llm</title>',
                200,
            )
        return PlainTextResponse(_NO_ENTRY + "\n", 401)

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def form_token(token: str | None) -> str:
    """What a form of ours has in it and no other site knows."""
    return hmac.new((token or "").encode(), b"form", hashlib.sha256).hexdigest()[:32]


def _own_path(scope: Scope) -> str:
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if root else path


def _cookie_of(headers: Headers, name: str) -> str:
    cookies = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""
