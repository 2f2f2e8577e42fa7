-- The account of many machines. The server reads this file once, as its administrator; nothing that sends or reads makes a table.
--
-- A row may arrive several times, and again when it changes: with a late end, or a new price. Of those with one identity (hour, trace,
-- span) the one with the highest row_version counts; where that is retracted, none does. Until the server has merged them they all are
-- there: ask with FINAL, by the views of 2_views.sql, or with the setting `final = 1`, as otel-llm and the role otel_llm_read do.

CREATE DATABASE IF NOT EXISTS otel;

-- The columns are those of llm_usage in DuckDB (docs/columns.md). A list or a mapping is empty where it is NULL there.
CREATE TABLE IF NOT EXISTS otel.llm_usage
(
    started_at              DateTime64(6, 'UTC'),
    duration_ms             Nullable(Float64),
    time_to_first_chunk_ms  Nullable(Float64),
    trace_id                String,
    span_id                 String,
    parent_span_id          Nullable(String),
    service_name            LowCardinality(Nullable(String)),
    operation               LowCardinality(Nullable(String)),
    provider                LowCardinality(Nullable(String)),
    request_model           LowCardinality(Nullable(String)),
    response_model          LowCardinality(Nullable(String)),
    response_id             Nullable(String),
    stream                  Nullable(Bool),
    status                  LowCardinality(Nullable(String)),
    error_type              LowCardinality(Nullable(String)),
    finish_reasons          Array(Nullable(String)),
    input_tokens            Nullable(Int64),
    output_tokens           Nullable(Int64),
    cache_read_tokens       Nullable(Int64),
    cache_write_tokens      Nullable(Int64),
    reasoning_tokens        Nullable(Int64),
    audio_input_tokens      Nullable(Int64),
    audio_output_tokens     Nullable(Int64),
    image_input_tokens      Nullable(Int64),
    image_output_tokens     Nullable(Int64),
    cache_write_1h_tokens   Nullable(Int64),
    audio_cache_read_tokens Nullable(Int64),
    image_cache_read_tokens Nullable(Int64),
    usage_source            LowCardinality(Nullable(String)),
    cost_usd                Nullable(Decimal(18, 9)),
    price_source            LowCardinality(Nullable(String)),
    module                  LowCardinality(Nullable(String)),
    user_id                 Nullable(String),
    session_id              Nullable(String),
    conversation_id         Nullable(String),
    request_id              Nullable(String),
    tags                    Map(String, Nullable(String)),
    agent_name              LowCardinality(Nullable(String)),
    workflow_name           LowCardinality(Nullable(String)),
    profile                 LowCardinality(Nullable(String)),
    server_address          LowCardinality(Nullable(String)),
    instrumentation         LowCardinality(Nullable(String)),
    attempts                Nullable(Int32),
    input_messages          Nullable(String) CODEC(ZSTD(3)),
    output_messages         Nullable(String) CODEC(ZSTD(3)),
    service_tier            LowCardinality(Nullable(String)),
    error_message           Nullable(String),
    conversation_source     LowCardinality(Nullable(String)),
    units                   Map(String, Nullable(Float64)),
    row_version             UInt32 DEFAULT 1,
    input_chars             Nullable(Int64),
    output_chars            Nullable(Int64),
    reasoning_chars         Nullable(Int64),
    -- Whether the store has taken the row out, because another stands for the call.
    retracted               UInt8 DEFAULT 0,
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_conversation conversation_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree(row_version, retracted)
PARTITION BY toYYYYMM(started_at, 'UTC')
ORDER BY (toStartOfHour(started_at, 'UTC'), trace_id, span_id);
-- Without a TTL: an account is kept. ALTER TABLE otel.llm_usage DROP PARTITION 202611 takes a month away.

-- What runs, for `otel-llm ps`: each machine that ships tells it again every 10 seconds. What was not told for longer has ended.
CREATE TABLE IF NOT EXISTS otel.llm_running
(
    host       LowCardinality(String),
    pid        Nullable(Int64),
    started_at DateTime64(6, 'UTC'),
    seconds    Float64, -- for so long by then, by the clock of the machine
    name       LowCardinality(Nullable(String)),
    operation  LowCardinality(Nullable(String)),
    model      LowCardinality(Nullable(String)),
    user_id    Nullable(String),
    module     LowCardinality(Nullable(String)),
    trace_id   String,
    span_id    String,
    seen_at    DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(seen_at)
ORDER BY (trace_id, span_id)
TTL toDateTime(seen_at, 'UTC') + INTERVAL 1 HOUR;

-- Whole spans, for the tree of a trace: of those that were sent again the last counts.
CREATE TABLE IF NOT EXISTS otel.spans
(
    trace_id       String,
    span_id        String,
    parent_span_id Nullable(String),
    name           LowCardinality(Nullable(String)),
    kind           LowCardinality(Nullable(String)),
    start_ns       Nullable(Int64),
    end_ns         Nullable(Int64),
    started_at     DateTime64(6, 'UTC'),
    duration_ms    Nullable(Float64),
    status_code    LowCardinality(Nullable(String)),
    status_message Nullable(String),
    status         LowCardinality(Nullable(String)),
    operation      LowCardinality(Nullable(String)),
    service_name   LowCardinality(Nullable(String)),
    attributes     Nullable(String) CODEC(ZSTD(3)),
    events         Nullable(String) CODEC(ZSTD(3)),
    links          Nullable(String) CODEC(ZSTD(3)),
    resource       Nullable(String) CODEC(ZSTD(3)),
    scope_name     LowCardinality(Nullable(String)),
    scope_version  LowCardinality(Nullable(String)),
    trace_flags    Nullable(UInt8),
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toMonday(started_at, 'UTC')
ORDER BY (toStartOfHour(started_at, 'UTC'), trace_id, span_id)
TTL toDateTime(started_at, 'UTC') + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;
