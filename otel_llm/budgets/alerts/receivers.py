"""Telling somebody of a crossing: a webhook over HTTP, or a command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_llm.budgets.alerts.crossings import Crossing
from otel_llm.budgets.rules import Command, Webhook, expanded, is_url
from otel_llm.conventions import semconv
from otel_llm.support import masking
from otel_llm.version import __version__

_LONGEST: Final = 300
"""Of what a receiver says where it refuses."""


class NotTold(Exception):
    """It did not get there; one line that says why, without a secret in it."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds that the receiver asks to wait."""


def tell(receiver: Webhook | Command, crossing: Crossing, timeout: float | None = None) -> None:
    """Tells a receiver of a crossing, within its own time or `timeout` where that is shorter. Raises NotTold."""
    seconds = receiver.timeout if timeout is None else max(min(timeout, receiver.timeout), 0.1)
    if isinstance(receiver, Command):
        _run(receiver, message(crossing), seconds)
    else:
        _post(receiver, crossing, seconds)


def message(crossing: Crossing) -> dict[str, Any]:
    """A crossing as JSON."""
    return {
        "event": semconv.EVENT_BUDGET_THRESHOLD,
        **asdict(crossing),
        "share": round(crossing.spent / crossing.limit, 6),
        "text": crossing.text,
        "host": socket.gethostname(),
    }


def attributes(crossing: Crossing) -> dict[str, Any]:
    """A crossing as attributes of an event."""
    names = {"budget": "name", "start": "period.start", "end": "period.end"}
    return {
        f"{semconv.BUDGET_PREFIX}{names.get(name, name)}": value
        for name, value in asdict(crossing).items()
        if value is not None and name != "at"
    }


# --- webhooks ---------------------------------------------------------------------------------------------------------
def _body(webhook: Webhook, crossing: Crossing) -> dict[str, Any]:
    if webhook.format == "slack":
        # https://docs.slack.dev/messaging/formatting-message-text: these three are all that has to be escaped
        escaped = crossing.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return {"text": escaped, "mrkdwn": False}
    if webhook.format == "teams":
        return {"type": "message", "attachments": [_card(crossing)]}
    return message(crossing)


def _card(crossing: Crossing) -> dict[str, Any]:
    """An Adaptive Card, as a workflow takes it that posts to a channel. Text runs know no Markdown, so a name is no link."""

    def line(text: str, **look: Any) -> dict[str, Any]:
        return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, **look}]}

    title = line(crossing.subject, weight="Bolder", color="Attention" if crossing.is_spent else "Warning")
    return {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "content": {
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": [title, line(crossing.details)],
        },
    }


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another place than the one that is named gets nothing: what is sent may be secret."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener: Final = urllib.request.build_opener(_NoRedirects)


def _post(webhook: Webhook, crossing: Crossing, timeout: float) -> None:
    secrets: list[str] = []
    try:
        url = expanded(webhook.url)
        headers = {name: expanded(value) for name, value in webhook.headers.items()}
        secrets = [url, urlsplit(url).path, *headers.values()]
        if not is_url(url):
            raise NotTold("its url is not an http or https URL")
        if not (url.isascii() and all(one.isascii() and one.isprintable() for one in headers.values())):
            raise NotTold("what is sent there has characters that HTTP does not have")
        request = urllib.request.Request(
            url,
            json.dumps(_body(webhook, crossing)).encode(),
            {
                "Content-Type": "application/json",
                "User-Agent": f"otel-llm/{__version__}",
                "Idempotency-Key": crossing.id,
                **headers,
            },
            method="POST",
        )
        with suppress_instrumentation(), _opener.open(request, timeout=timeout) as answer:
            answer.read(_LONGEST)
    except urllib.error.HTTPError as error:
        with error:
            raise NotTold(_refusal(error, secrets), _retry_after(error)) from None
    except urllib.error.URLError as error:
        raise NotTold(_without(secrets, f"cannot be reached: {error.reason}")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotTold(_without(secrets, str(error) or type(error).__name__)) from None


def _refusal(error: urllib.error.HTTPError, secrets: list[str]) -> str:
    said = ""
    try:
        said = " ".join(error.read(_LONGEST).decode(errors="replace").split())
    except (OSError, http.client.HTTPException):
        pass  # its status says enough
    return _without(secrets, f"answers {error.code}{f': {said}' if said else ''}")


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _without(secrets: list[str], text: str) -> str:
    for secret in sorted((one for one in secrets if len(one) > 3), key=len, reverse=True):
        text = text.replace(secret, masking.HIDDEN)
    return masking.text(text)


# --- commands ---------------------------------------------------------------------------------------------------------
def _run(command: Command, event: dict[str, Any], timeout: float) -> None:
    try:
        process = subprocess.Popen(
            command.run,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise NotTold(masking.text(f"cannot be run: {error}")) from None
    said = b""
    with process:
        try:
            _, said = process.communicate(json.dumps(event).encode(), timeout)
        except subprocess.TimeoutExpired:
            if process.poll() is None:  # else it is what it has started that goes on
                raise NotTold(f"has not ended after {timeout:g} s") from None
        finally:
            if process.poll() is None:
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                else:
                    process.kill()
                process.wait()
    if process.returncode:
        words = " ".join(said[-_LONGEST:].decode(errors="replace").split())
        raise NotTold(masking.text(f"ends with {process.returncode}{f': {words}' if words else ''}"))
