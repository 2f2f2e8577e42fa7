"""`otel-llm demo`: the examples against a local server, without a key. A wheel has the programs of `examples` in this folder."""
