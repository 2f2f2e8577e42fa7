"""What an app writes with the middleware passes a strict type checker, against the Starlette that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAYS = """
from collections.abc import Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware

from otel_llm.middleware import LLMContextMiddleware, LLMContextWSGIMiddleware, Request

def user(request: Request) -> str | None:
    return request.headers.get("x-user")

def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    return [b""]

app = Starlette(middleware=[Middleware(LLMContextMiddleware, "web", user_id=user, team="blue", plan=lambda request: request.path)])
app.add_middleware(LLMContextMiddleware, module="web", conversation_id=lambda request: request.query.get("c"))
app.mount("/inner", LLMContextMiddleware(app, module="web"))
outer = LLMContextWSGIMiddleware(wsgi, module="web", user_id=user)
"""


def test_middleware(tmp_path: Path) -> None:
    (tmp_path / "ways.py").write_text(WAYS)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "examples/web.py", str(tmp_path / "ways.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert checked.stdout.startswith("Success"), checked.stdout
