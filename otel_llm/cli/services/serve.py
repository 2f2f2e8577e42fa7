"""`otel-llm serve`: a store that others send to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_llm.cli.errors import CommandError, one_line
from otel_llm.cli.options.access import locate
from otel_llm.cli.options.common import FILE
from otel_llm.cli.screen.output import write_line
from otel_llm.settings import settings

if TYPE_CHECKING:
    from otel_llm.fleet.serve.admission import Tls

_NONE = "none"


@click.command()
@click.option(
    "--grpc",
    default="127.0.0.1:4317",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to take OTLP over gRPC, or none.",
)
@click.option(
    "--http",
    default="127.0.0.1:4318",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to take OTLP over HTTP, protobuf and JSON, or none. /metrics and /health are there too.",
)
@click.option(
    "--store", metavar="PATH", type=FILE, help="The DuckDB file to write, in place of $OTEL_LLM_STORE or the default."
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=FILE,
    help="A file with the token that senders need, in place of $OTEL_LLM_SERVE_TOKEN.",
)
@click.option("--tls-cert", metavar="FILE", type=FILE, help="The certificate to show, PEM.")
@click.option("--tls-key", metavar="FILE", type=FILE, help="Its key, PEM.")
@click.option(
    "--client-ca", metavar="FILE", type=FILE, help="Senders must show a certificate that this one has signed, PEM."
)
def serve(
    grpc: str,
    http: str,
    store: Path | None,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
) -> None:
    """Take what other machines and languages send over OTLP into one store, each call once.

    \b
    Examples:
      otel-llm serve
      OTEL_LLM_SERVE_TOKEN=... otel-llm serve --grpc 0.0.0.0:4317 --http 0.0.0.0:4318
      OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 opentelemetry-instrument python app.py

    Account records (`otel-llm ship`) become rows as they are, spans about generative AI of any language by what they say, and
    other spans are kept for the tree ($OTEL_LLM_SERVE_SPANS). What is answered is in the journal. Needs otel-llm[serve].
    """
    from otel_llm.budgets.alerts import watching

    try:
        from otel_llm.fleet.serve import receiver
        from otel_llm.fleet.serve.admission import Address, Admission, NotAllowed
    except ModuleNotFoundError as error:
        raise CommandError(f"{one_line(error)}; pip install 'otel-llm[serve]' brings what a receiver needs") from error
    configured = settings()
    try:
        plan = receiver.Plan(
            store=_asked_for(store),
            grpc=None if grpc == _NONE else Address.parse(grpc),
            http=None if http == _NONE else Address.parse(http),
            only_genai=configured.serve_spans == "genai",
            max_request=configured.serve_max_request,
            max_waiting=configured.serve_max_waiting,
            admission=Admission(_token(token_file) or configured.serve_token, _tls(tls_cert, tls_key, client_ca)),
        )
        if plan.grpc is None and plan.http is None:
            raise CommandError("--grpc none and --http none leave nothing to listen at")
        receiver.serve(plan, write_line, watching.begin)
    except (NotAllowed, ValueError) as error:
        raise CommandError(str(error)) from error


def _asked_for(store: Path | None) -> Path:
    """The store that is named. `locate` says what is wrong with the name; where it would look elsewhere, nothing is served."""
    located = locate(store)
    asked = settings().store if store is None else store.expanduser().absolute()
    return located if asked is None else asked


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"the token cannot be read from {file}: {error}") from error
    if not token:
        raise CommandError(f"there is no token in {file}")
    return token


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    from otel_llm.fleet.serve.admission import Tls

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise CommandError("TLS needs both --tls-cert and --tls-key")
    for file in (certificate, key, client_ca):
        if file is not None and not file.is_file():
            raise CommandError(f"there is no file {file}")
    return Tls(certificate, key, client_ca)
