-- What has been sent to an OTLP backend again, so that it is not sent there twice. `started_at` is the span's own, so that both
-- tables are read, and cleared, by the same range of time.
CREATE TABLE replayed (
    trace_id   VARCHAR NOT NULL,
    span_id    VARCHAR NOT NULL,
    endpoint   VARCHAR NOT NULL,
    started_at TIMESTAMPTZ,
    sent_at    TIMESTAMPTZ NOT NULL
);

-- When work that is due only now and then was last done, by whichever process: one row a task.
CREATE TABLE maintenance (
    task    VARCHAR NOT NULL,
    done_at TIMESTAMPTZ NOT NULL
);
