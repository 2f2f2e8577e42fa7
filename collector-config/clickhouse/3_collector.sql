-- What the Collector's ClickHouse exporter writes, which makes no tables itself (create_schema: false): columns as in its own templates
-- (exporter/clickhouseexporter/internal/sqltemplates, 0.161). A batch that is sent twice stands here twice.

CREATE TABLE IF NOT EXISTS otel.otel_traces
(
    Timestamp          DateTime64(9) CODEC(Delta, ZSTD(1)),
    TraceId            String CODEC(ZSTD(1)),
    SpanId             String CODEC(ZSTD(1)),
    ParentSpanId       String CODEC(ZSTD(1)),
    TraceState         String CODEC(ZSTD(1)),
    SpanName           LowCardinality(String) CODEC(ZSTD(1)),
    SpanKind           LowCardinality(String) CODEC(ZSTD(1)),
    ServiceName        LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeName          String CODEC(ZSTD(1)),
    ScopeVersion       String CODEC(ZSTD(1)),
    SpanAttributes     Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    Duration           UInt64 CODEC(ZSTD(1)),
    StatusCode         LowCardinality(String) CODEC(ZSTD(1)),
    StatusMessage      String CODEC(ZSTD(1)),
    Events Nested
    (
        Timestamp  DateTime64(9),
        Name       LowCardinality(String),
        Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    Links Nested
    (
        TraceId    String,
        SpanId     String,
        TraceState String,
        Attributes Map(LowCardinality(String), String)
    ) CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_span_attr_key mapKeys(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_span_attr_value mapValues(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_duration Duration TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))
TTL toDateTime(Timestamp) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

-- When a trace was, for Grafana and whoever else looks for one by its id.
CREATE TABLE IF NOT EXISTS otel.otel_traces_trace_id_ts
(
    TraceId String CODEC(ZSTD(1)),
    Start   DateTime CODEC(Delta, ZSTD(1)),
    End     DateTime CODEC(Delta, ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(Start)
ORDER BY (TraceId, Start)
TTL toDateTime(Start) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.otel_traces_trace_id_ts_mv TO otel.otel_traces_trace_id_ts AS
SELECT TraceId, min(Timestamp) AS Start, max(Timestamp) AS End FROM otel.otel_traces WHERE TraceId <> '' GROUP BY TraceId;

CREATE TABLE IF NOT EXISTS otel.otel_logs
(
    Timestamp          DateTime64(9) CODEC(Delta(8), ZSTD(1)),
    TraceId            String CODEC(ZSTD(1)),
    SpanId             String CODEC(ZSTD(1)),
    TraceFlags         UInt8,
    SeverityText       LowCardinality(String) CODEC(ZSTD(1)),
    SeverityNumber     UInt8,
    ServiceName        LowCardinality(String) CODEC(ZSTD(1)),
    Body               String CODEC(ZSTD(1)),
    ResourceSchemaUrl  LowCardinality(String) CODEC(ZSTD(1)),
    ResourceAttributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    ScopeSchemaUrl     LowCardinality(String) CODEC(ZSTD(1)),
    ScopeName          String CODEC(ZSTD(1)),
    ScopeVersion       LowCardinality(String) CODEC(ZSTD(1)),
    ScopeAttributes    Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    LogAttributes      Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    EventName          String CODEC(ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_key mapKeys(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_log_attr_value mapValues(LogAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX idx_lower_body lower(Body) TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 8
)
ENGINE = MergeTree
PARTITION BY toDate(Timestamp)
ORDER BY (toStartOfFiveMinutes(Timestamp), ServiceName, Timestamp)
TTL toDateTime(Timestamp) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

-- The account's records become rows of the account: each attribute is a column, which the exporter has made text. Any other log record
-- stays where it is. A record that says no time is left out: an error here would hold up the batch that it came in. A Collector that
-- started while no ClickHouse was there to be asked for its columns leaves EventName empty, until its next start (0.161).
CREATE MATERIALIZED VIEW IF NOT EXISTS otel.llm_usage_from_logs TO otel.llm_usage AS
SELECT
    assumeNotNull(parseDateTime64BestEffortOrNull(LogAttributes['started_at'], 6, 'UTC')) AS started_at,
    toFloat64OrNull(LogAttributes['duration_ms']) AS duration_ms,
    toFloat64OrNull(LogAttributes['time_to_first_chunk_ms']) AS time_to_first_chunk_ms,
    TraceId AS trace_id,
    SpanId AS span_id,
    if(mapContains(LogAttributes, 'parent_span_id'), LogAttributes['parent_span_id'], NULL) AS parent_span_id,
    if(mapContains(LogAttributes, 'service_name'), LogAttributes['service_name'], NULL) AS service_name,
    if(mapContains(LogAttributes, 'operation'), LogAttributes['operation'], NULL) AS operation,
    if(mapContains(LogAttributes, 'provider'), LogAttributes['provider'], NULL) AS provider,
    if(mapContains(LogAttributes, 'request_model'), LogAttributes['request_model'], NULL) AS request_model,
    if(mapContains(LogAttributes, 'response_model'), LogAttributes['response_model'], NULL) AS response_model,
    if(mapContains(LogAttributes, 'response_id'), LogAttributes['response_id'], NULL) AS response_id,
    if(mapContains(LogAttributes, 'stream'), LogAttributes['stream'] = 'true', NULL) AS stream,
    if(mapContains(LogAttributes, 'status'), LogAttributes['status'], NULL) AS status,
    if(mapContains(LogAttributes, 'error_type'), LogAttributes['error_type'], NULL) AS error_type,
    JSONExtract(LogAttributes['finish_reasons'], 'Array(Nullable(String))') AS finish_reasons,
    toInt64OrNull(LogAttributes['input_tokens']) AS input_tokens,
    toInt64OrNull(LogAttributes['output_tokens']) AS output_tokens,
    toInt64OrNull(LogAttributes['cache_read_tokens']) AS cache_read_tokens,
    toInt64OrNull(LogAttributes['cache_write_tokens']) AS cache_write_tokens,
    toInt64OrNull(LogAttributes['reasoning_tokens']) AS reasoning_tokens,
    toInt64OrNull(LogAttributes['audio_input_tokens']) AS audio_input_tokens,
    toInt64OrNull(LogAttributes['audio_output_tokens']) AS audio_output_tokens,
    toInt64OrNull(LogAttributes['image_input_tokens']) AS image_input_tokens,
    toInt64OrNull(LogAttributes['image_output_tokens']) AS image_output_tokens,
    toInt64OrNull(LogAttributes['cache_write_1h_tokens']) AS cache_write_1h_tokens,
    toInt64OrNull(LogAttributes['audio_cache_read_tokens']) AS audio_cache_read_tokens,
    toInt64OrNull(LogAttributes['image_cache_read_tokens']) AS image_cache_read_tokens,
    if(mapContains(LogAttributes, 'usage_source'), LogAttributes['usage_source'], NULL) AS usage_source,
    toDecimal64OrNull(LogAttributes['cost_usd'], 9) AS cost_usd,
    if(mapContains(LogAttributes, 'price_source'), LogAttributes['price_source'], NULL) AS price_source,
    if(mapContains(LogAttributes, 'module'), LogAttributes['module'], NULL) AS module,
    if(mapContains(LogAttributes, 'user_id'), LogAttributes['user_id'], NULL) AS user_id,
    if(mapContains(LogAttributes, 'session_id'), LogAttributes['session_id'], NULL) AS session_id,
    if(mapContains(LogAttributes, 'conversation_id'), LogAttributes['conversation_id'], NULL) AS conversation_id,
    if(mapContains(LogAttributes, 'request_id'), LogAttributes['request_id'], NULL) AS request_id,
    JSONExtract(LogAttributes['tags'], 'Map(String, Nullable(String))') AS tags,
    if(mapContains(LogAttributes, 'agent_name'), LogAttributes['agent_name'], NULL) AS agent_name,
    if(mapContains(LogAttributes, 'workflow_name'), LogAttributes['workflow_name'], NULL) AS workflow_name,
    if(mapContains(LogAttributes, 'profile'), LogAttributes['profile'], NULL) AS profile,
    if(mapContains(LogAttributes, 'server_address'), LogAttributes['server_address'], NULL) AS server_address,
    if(mapContains(LogAttributes, 'instrumentation'), LogAttributes['instrumentation'], NULL) AS instrumentation,
    toInt32OrNull(LogAttributes['attempts']) AS attempts,
    if(mapContains(LogAttributes, 'input_messages'), LogAttributes['input_messages'], NULL) AS input_messages,
    if(mapContains(LogAttributes, 'output_messages'), LogAttributes['output_messages'], NULL) AS output_messages,
    if(mapContains(LogAttributes, 'service_tier'), LogAttributes['service_tier'], NULL) AS service_tier,
    if(mapContains(LogAttributes, 'error_message'), LogAttributes['error_message'], NULL) AS error_message,
    if(mapContains(LogAttributes, 'conversation_source'), LogAttributes['conversation_source'], NULL) AS conversation_source,
    JSONExtract(LogAttributes['units'], 'Map(String, Nullable(Float64))') AS units,
    greatest(toUInt32OrZero(LogAttributes['row_version']), 1) AS row_version,
    toInt64OrNull(LogAttributes['input_chars']) AS input_chars,
    toInt64OrNull(LogAttributes['output_chars']) AS output_chars,
    toInt64OrNull(LogAttributes['reasoning_chars']) AS reasoning_chars,
    if(LogAttributes['retracted'] = 'true', 1, 0) AS retracted
FROM otel.otel_logs
WHERE (EventName = 'otel_llm.usage' OR (EventName = '' AND ScopeName = 'otel_llm' AND mapContains(LogAttributes, 'row_version')))
  AND parseDateTime64BestEffortOrNull(LogAttributes['started_at'], 6, 'UTC') IS NOT NULL;
