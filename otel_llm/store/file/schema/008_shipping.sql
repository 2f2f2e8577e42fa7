-- In which order rows go to other machines. A row that is new, or has changed, has none until somebody ships it: then it gets the next one,
-- and no number is ever used again. See `otel_llm/fleet/ship/outbox.py`.
ALTER TABLE llm_usage ADD COLUMN commit_number BIGINT;
ALTER TABLE spans ADD COLUMN commit_number BIGINT;
CREATE TABLE commit_numbers (last BIGINT NOT NULL);
INSERT INTO commit_numbers VALUES (0);

-- Rows that were taken out of `llm_usage` again, because another one stands for the call: whoever has got them must learn of it.
CREATE TABLE retracted_calls (
    trace_id      VARCHAR NOT NULL,
    span_id       VARCHAR NOT NULL,
    started_at    TIMESTAMPTZ NOT NULL,
    row_version   INTEGER NOT NULL,
    commit_number BIGINT
);

-- How far each destination has got with the rows of each table: it has all up to `commit_number`, but for those that it `refused` and those
-- that were `removed` here before it had them.
CREATE TABLE shipments (
    destination   VARCHAR NOT NULL,
    source        VARCHAR NOT NULL,
    commit_number BIGINT NOT NULL,
    sent          BIGINT NOT NULL,
    refused       BIGINT NOT NULL,
    removed       BIGINT NOT NULL,
    begun_at      TIMESTAMPTZ NOT NULL,
    sent_at       TIMESTAMPTZ
);
