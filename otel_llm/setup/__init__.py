"""What `opentelemetry-instrument` and `otel_llm.instrument()` call: everything is tied together here."""
