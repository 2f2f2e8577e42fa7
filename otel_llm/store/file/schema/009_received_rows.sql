-- Which rows of llm_usage have come whole, from another store, and in which version: what is sent twice is counted once. A row stays here
-- when its call turns out to be counted elsewhere. `started_at` is the row's own.
CREATE TABLE received_rows (
    trace_id    VARCHAR NOT NULL,
    span_id     VARCHAR NOT NULL,
    row_version INTEGER NOT NULL,
    started_at  TIMESTAMPTZ
);
