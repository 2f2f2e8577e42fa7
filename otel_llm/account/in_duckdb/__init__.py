"""The engine of a DuckDB store: for one question, for many threads, and for SQL that nobody has looked at."""
