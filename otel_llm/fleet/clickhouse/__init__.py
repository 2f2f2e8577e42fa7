"""ClickHouse over HTTP, with the standard library alone: where it is, what is said to it, and what it says."""
