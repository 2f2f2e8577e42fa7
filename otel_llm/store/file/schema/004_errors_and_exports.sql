-- What a failed call said, where content is captured: beside the class or the status of the error.
ALTER TABLE llm_usage ADD COLUMN error_message VARCHAR;
UPDATE llm_usage SET error_message = spans.status_message FROM spans
WHERE spans.trace_id = llm_usage.trace_id AND spans.span_id = llm_usage.span_id AND spans.status_message IS NOT NULL;

-- Spans that are to go out over OTLP, of processes that note what has arrived there: a row goes when its span has. What is left of a
-- process that has ended is missing at the endpoint. `started_at` is the span's own; `writer` is the process, as its journal has it.
CREATE TABLE pending_exports (
    trace_id   VARCHAR NOT NULL,
    span_id    VARCHAR NOT NULL,
    endpoint   VARCHAR NOT NULL,
    writer     VARCHAR NOT NULL,
    started_at TIMESTAMPTZ
);
