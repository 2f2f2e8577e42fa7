"""Which destination a URL names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from otel_llm.fleet.ship.destination import Destination


def destination_at(url: str, *, headers: str | None = None, environment: Mapping[str, str] = os.environ) -> Destination:
    """The destination at a URL: an OTLP endpoint (`http`, `https`, `grpc`, `grpcs`), or a ClickHouse. Opens no connection.

    `headers` are for OTLP, as `OTEL_EXPORTER_OTLP_HEADERS` has them. Raises ValueError where the URL names none.
    """
    if url.startswith(("clickhouse:", "clickhouses:")):
        from otel_llm.fleet.clickhouse.server_url import ClickHouseURL
        from otel_llm.fleet.ship.clickhouse import ClickHouseDestination

        return ClickHouseDestination(ClickHouseURL.parse(url))
    from otel_llm.fleet.ship.otlp import OtlpDestination, OtlpTarget

    return OtlpDestination(OtlpTarget.of(url, environment), headers=headers, environment=environment)
