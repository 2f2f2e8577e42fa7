"""`otel-llm prices import` and `otel-llm prices update`."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from otel_llm.prices import lists
from otel_llm.store.paths import StorePaths
from tests.cli.conftest import Fill, Run

PRICE = {"input_cost_per_token": 2e-6, "output_cost_per_token": 4e-6}
LITELLM = json.dumps({"dashscope/qwen-new": {"litellm_provider": "dashscope", "mode": "chat", **PRICE}}).encode()
MODELS_DEV = json.dumps({"alibaba": {"models": {"qwen-other": {"cost": {"input": 3, "output": 4}}}}}).encode()
Serve = Callable[[dict[str, bytes]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves texts by their paths; returns the base URL."""
    servers = []

    def start(texts: dict[str, bytes]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = texts.get(self.path)
                self.send_response(200 if text is not None else 404)
                self.send_header("content-length", str(len(text or b"")))
                self.end_headers()
                self.wfile.write(text or b"")

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_calls_get_prices_by_an_import(fill: Fill, run: Run, tmp_path: Path) -> None:
    store = fill({"provider": "dashscope", "request_model": "qwen-new", "input_tokens": 1_000_000, "output_tokens": 0})
    file = tmp_path / "prices.json"
    file.write_bytes(LITELLM)
    result = run("prices", "import", str(file))
    assert (result.code, result.out) == (0, "Prices of 1 model of 1 provider taken from LiteLLM.\n")
    assert "LiteLLM" in run("prices", "qwen-new").out
    assert "1 of 1 call got another price" in run("reprice").out
    (row,) = json.loads(run("sql", "select cost_usd, price_source, row_version from llm_usage", "--format", "json").out)
    assert (row["cost_usd"], row["price_source"].split()[0], row["row_version"]) == (2.0, "LiteLLM", 2)
    folder = StorePaths.of(store).prices
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, *folder.iterdir())] == [0o700, 0o600]


def test_before_the_first_call(run: Run, serve: Serve) -> None:
    assert run("prices", "import", serve({"/map": LITELLM}) + "/map").code == 0
    assert "LiteLLM" in run("prices", "qwen-new", "--provider", "dashscope").out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"nothing", "cannot be taken in: it is no JSON"),
        (b"{}", "neither LiteLLM's map of model prices nor models.dev's api.json"),
        (b'{"m": {"litellm_provider": "openai"}}', "has no price that can be taken in"),
        (None, "HTTP Error 404"),
    ],
)
def test_what_is_no_price_list(text: bytes | None, said: str, run: Run, serve: Serve) -> None:
    result = run("prices", "import", serve({} if text is None else {"/map": text}) + "/map")
    assert (result.code, result.out) == (2, "")
    assert said in result.err and len(result.err.splitlines()) == 1


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    for name in (tmp_path / "none.json", tmp_path):
        result = run("prices", "import", str(name))
        assert (result.code, len(result.err.splitlines())) == (2, 1)


def test_prices_are_not_read_where_anybody_can_change_them(run: Run) -> None:
    result = run("prices", "import", "http://example.com/map")
    assert result.code == 2 and "use https" in result.err


def test_an_update_fetches_both_lists(run: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    base = serve({"/map": LITELLM, "/api": MODELS_DEV})
    monkeypatch.setattr(lists, "SOURCES", {"LiteLLM": f"{base}/map", "models.dev": f"{base}/api"})
    assert run("prices", "update").out.splitlines() == [
        "Prices of 1 model of 1 provider taken from LiteLLM.",
        "Prices of 1 model of 1 provider taken from models.dev.",
    ]
    assert "models.dev" in run("prices", "qwen-other", "--provider", "dashscope").out
    monkeypatch.setattr(lists, "SOURCES", {"LiteLLM": f"{base}/gone", "models.dev": f"{base}/api"})
    half = run("prices", "update")
    assert half.code == 0 and f"cannot fetch {base}/gone" in half.err + half.out
    monkeypatch.setattr(lists, "SOURCES", {"LiteLLM": f"{base}/gone", "models.dev": f"{base}/gone"})
    none = run("prices", "update")
    assert none.code == 2 and "otel-llm prices import takes a file" in none.err
