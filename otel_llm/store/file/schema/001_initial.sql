-- The account: one row per model call. Columns may be added; none is renamed or changes its meaning.
CREATE TABLE llm_usage (
    started_at             TIMESTAMPTZ NOT NULL,
    duration_ms            DOUBLE,
    time_to_first_chunk_ms DOUBLE,
    trace_id               VARCHAR NOT NULL,
    span_id                VARCHAR NOT NULL,
    parent_span_id         VARCHAR,
    service_name           VARCHAR,
    operation              VARCHAR,
    provider               VARCHAR,
    request_model          VARCHAR,
    response_model         VARCHAR,
    response_id            VARCHAR,
    stream                 BOOLEAN,
    status                 VARCHAR,
    error_type             VARCHAR,
    finish_reasons         VARCHAR[],
    input_tokens           BIGINT,
    output_tokens          BIGINT,
    cache_read_tokens      BIGINT,
    cache_write_tokens     BIGINT,
    reasoning_tokens       BIGINT,
    audio_input_tokens     BIGINT,
    audio_output_tokens    BIGINT,
    image_input_tokens     BIGINT,
    image_output_tokens    BIGINT,
    usage_source           VARCHAR,
    cost_usd               DECIMAL(18, 9),
    price_source           VARCHAR,
    module                 VARCHAR,
    user_id                VARCHAR,
    session_id             VARCHAR,
    conversation_id        VARCHAR,
    request_id             VARCHAR,
    tags                   MAP(VARCHAR, VARCHAR),
    agent_name             VARCHAR,
    workflow_name          VARCHAR,
    profile                VARCHAR,
    server_address         VARCHAR,
    instrumentation        VARCHAR,
    attempts               INTEGER,
    input_messages         JSON,
    output_messages        JSON
);

-- Whole spans: enough to draw the tree and to send it to an OTLP backend again.
CREATE TABLE spans (
    trace_id       VARCHAR NOT NULL,
    span_id        VARCHAR NOT NULL,
    parent_span_id VARCHAR,
    name           VARCHAR,
    kind           VARCHAR,
    start_ns       BIGINT,
    end_ns         BIGINT,
    started_at     TIMESTAMPTZ,
    duration_ms    DOUBLE,
    status_code    VARCHAR,
    status_message VARCHAR,
    status         VARCHAR,
    operation      VARCHAR,
    service_name   VARCHAR,
    attributes     JSON,
    events         JSON,
    links          JSON,
    resource       JSON,
    scope_name     VARCHAR,
    scope_version  VARCHAR,
    trace_flags    UTINYINT
);

-- How far each journal segment has been taken in, written in the same transaction as its rows: that is what makes them
-- arrive exactly once.
CREATE TABLE journal_segments (
    segment  VARCHAR PRIMARY KEY,
    consumed BIGINT NOT NULL,
    finished BOOLEAN NOT NULL,
    corrupt  BIGINT NOT NULL
);
