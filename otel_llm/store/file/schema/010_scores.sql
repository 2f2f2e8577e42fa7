-- What people, programs and models thought of an answer: about a span, a whole trace or a request. One row for each subject, name and
-- source: a later one takes the place of an earlier one.
CREATE TABLE llm_scores (
    trace_id   VARCHAR,
    span_id    VARCHAR,
    request_id VARCHAR,
    name       VARCHAR NOT NULL,
    value      DOUBLE,
    label      VARCHAR,
    comment    VARCHAR,
    source     VARCHAR NOT NULL,
    scored_at  TIMESTAMPTZ NOT NULL
);
