"""What `opentelemetry-instrument` loads before anything else, in its own process: the variables that otel-llm reads.

It offers each as an argument (`--llm_store usage.duckdb`). It is also the one moment before another distro's configurator. That
would fail over a malformed endpoint, and end everything after it, the account too: so such a one is named here, and counts as not
set.
"""

from __future__ import annotations

import os
from typing import Final

from otel_llm.setup import environment
from otel_llm.support import faults

OTEL_LLM_BUDGETS: Final = "OTEL_LLM_BUDGETS"
OTEL_LLM_CONTENT_LIMIT: Final = "OTEL_LLM_CONTENT_LIMIT"
OTEL_LLM_CONTEXT_KEYS: Final = "OTEL_LLM_CONTEXT_KEYS"
OTEL_LLM_ESTIMATE: Final = "OTEL_LLM_ESTIMATE"
OTEL_LLM_FLUSH_INTERVAL: Final = "OTEL_LLM_FLUSH_INTERVAL"
OTEL_LLM_FSYNC: Final = "OTEL_LLM_FSYNC"
OTEL_LLM_JAEGER_URL: Final = "OTEL_LLM_JAEGER_URL"
OTEL_LLM_MAX_SIZE: Final = "OTEL_LLM_MAX_SIZE"
OTEL_LLM_METRICS: Final = "OTEL_LLM_METRICS"
OTEL_LLM_PRICES: Final = "OTEL_LLM_PRICES"
OTEL_LLM_PROFILES: Final = "OTEL_LLM_PROFILES"
OTEL_LLM_PROPAGATE_TO: Final = "OTEL_LLM_PROPAGATE_TO"
OTEL_LLM_REDACT: Final = "OTEL_LLM_REDACT"
OTEL_LLM_REDACT_BUILTIN: Final = "OTEL_LLM_REDACT_BUILTIN"
OTEL_LLM_REPLAY_MISSING: Final = "OTEL_LLM_REPLAY_MISSING"
OTEL_LLM_RETENTION: Final = "OTEL_LLM_RETENTION"
OTEL_LLM_SEGMENT_AGE: Final = "OTEL_LLM_SEGMENT_AGE"
OTEL_LLM_SEGMENT_SIZE: Final = "OTEL_LLM_SEGMENT_SIZE"
OTEL_LLM_SERVE_MAX_REQUEST: Final = "OTEL_LLM_SERVE_MAX_REQUEST"
OTEL_LLM_SERVE_MAX_WAITING: Final = "OTEL_LLM_SERVE_MAX_WAITING"
OTEL_LLM_SERVE_SPANS: Final = "OTEL_LLM_SERVE_SPANS"
OTEL_LLM_SERVE_TOKEN: Final = "OTEL_LLM_SERVE_TOKEN"
OTEL_LLM_SHIP_HEADERS: Final = "OTEL_LLM_SHIP_HEADERS"
OTEL_LLM_SHIP_SPANS: Final = "OTEL_LLM_SHIP_SPANS"
OTEL_LLM_SHIP_TO: Final = "OTEL_LLM_SHIP_TO"
OTEL_LLM_STORE: Final = "OTEL_LLM_STORE"
OTEL_LLM_STREAM_USAGE: Final = "OTEL_LLM_STREAM_USAGE"
OTEL_LLM_THREAD_CONTEXT: Final = "OTEL_LLM_THREAD_CONTEXT"
OTEL_LLM_TRUST_BAGGAGE: Final = "OTEL_LLM_TRUST_BAGGAGE"


def take_out_malformed_endpoints() -> None:
    """Says in one line each which endpoints are none, and takes them out of the environment that the app will get."""
    for name, value in list(os.environ.items()):
        is_endpoint = name.startswith("OTEL_EXPORTER_") and name.endswith("_ENDPOINT")
        if is_endpoint and value.strip() and (fault := environment.endpoint_fault(value)) is not None:
            environment.warn([name], None, f"it {fault}, and counts as not set")
            del os.environ[name]


try:
    take_out_malformed_endpoints()
except Exception as fault:
    faults.report("look at the endpoints", fault)
