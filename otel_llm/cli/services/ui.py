"""`otel-llm ui`: the account in a browser."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.options.access import locate, remote
from otel_llm.cli.options.common import store_option
from otel_llm.cli.screen.output import write_line

if TYPE_CHECKING:
    from otel_llm.cli.options.access import Place
    from otel_llm.ui.views.view import Backend

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_EXTRA: Final = "the page needs more: pip install 'otel-llm[ui]'"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--open/--no-open", "opens", default=True, help="Open a browser.")
@click.option("--root-path", default="", metavar="PATH", help="The prefix that a proxy in front takes off the path.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Another name under which the page is asked for, as a proxy has it.",
)
@click.option("--no-token", is_flag=True, help="Let in whoever comes: only behind a proxy that asks who that is.")
@store_option
def ui(
    host: str, port: int, opens: bool, root_path: str, allow_host: Sequence[str], no_token: bool, store: Place | None
) -> int:
    """Show the account in a browser: spend, calls as they end, traces, conversations, SQL.

    \b
    Examples:
      otel-llm ui
      otel-llm ui --port 9000 --no-open
      otel-llm ui --store backup.duckdb
      otel-llm ui --store clickhouse://reader@warehouse:8123/otel

    It reads the store and writes nothing to it but scores, listens on this machine alone, and loads nothing from anywhere
    else. The address that is printed holds a token, new each time, without which nobody gets in. It ends with Ctrl-C.
    """
    try:
        import uvicorn

        from otel_llm.cli.services.page_backend import backend_at
        from otel_llm.ui.views.site import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "starlette", "jinja2", "markupsafe", "anyio"):
            raise
        raise CommandError(_EXTRA) from error
    if no_token and host not in _LOOPBACK:
        raise CommandError(f"--no-token lets in whoever reaches {host}: use it on 127.0.0.1, with a proxy in front")
    root = f"/{root_path.strip('/')}" if root_path.strip("/") else ""
    place = remote(store) or locate(store)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    token = None if no_token else secrets.token_urlsafe(24)
    backend, close = backend_at(place, token)
    names = {*(_LOOPBACK if host in _LOOPBACK else ()), host, *allow_host}
    # With and without the port: a proxy may leave it out.
    hosts = {_in_url(name) for name in allow_host} | {f"{_in_url(name)}:{port}" for name in names}
    if host in ("0.0.0.0", "::"):
        hosts = set()  # whatever this machine is called
    app = create_app(backend, hosts=hosts, cookie=f"otel_llm_{port}", root_path=root)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else _in_url(host)
    url = f"http://{shown}:{port}{root}/{'' if token is None else f'?token={token}'}"
    write_line(f"The account in {place}: {url}")
    if host not in _LOOPBACK:
        write_line("Whoever reads the traffic reads the token too: put TLS in front of it.")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, root_path=root
    )
    server = _server(uvicorn, config, backend, url if opens and _has_browser() else None)
    # uvicorn ends by the signal that it was ended by, once it has let go of everything.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # whoever opens the address as soon as he reads it waits for the rest
    except OSError as error:
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}; --port 0 takes a free port") from error
    return listening


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _has_browser() -> bool:
    """Whether there is anybody before a screen."""
    return sys.stdout.isatty() and (
        sys.platform == "darwin" or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    )


def _server(uvicorn: Any, config: Any, backend: Backend, url: str | None) -> Any:
    class PageServer(uvicorn.Server):  # type: ignore[misc]
        """Opens the browser once it listens; lets go of open streams at its end."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if url is not None:
                webbrowser.open(url)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if backend.live is not None:
                backend.live.close()
            super().handle_exit(sig, frame)

    return PageServer(config)
