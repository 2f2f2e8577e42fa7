-- Made by cluster.py: the tables on every server of a cluster. Run it once, on any of them, as an administrator.
--
-- {cluster}, {shard} and {replica} are macros of each server's configuration; a Keeper must be there. Roles: roles.sql, with
-- ON CLUSTER after each name.

CREATE DATABASE IF NOT EXISTS otel ON CLUSTER '{cluster}';

CREATE TABLE IF NOT EXISTS otel.llm_usage_local ON CLUSTER '{cluster}'
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
    retracted               UInt8 DEFAULT 0,
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_conversation conversation_id TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplicatedReplacingMergeTree(row_version, retracted)
PARTITION BY toYYYYMM(started_at, 'UTC')
ORDER BY (toStartOfHour(started_at, 'UTC'), trace_id, span_id);

CREATE TABLE IF NOT EXISTS otel.llm_usage ON CLUSTER '{cluster}' AS otel.llm_usage_local
ENGINE = Distributed('{cluster}', otel, llm_usage_local, cityHash64(trace_id));

CREATE TABLE IF NOT EXISTS otel.llm_running_local ON CLUSTER '{cluster}'
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
ENGINE = ReplicatedReplacingMergeTree(seen_at)
ORDER BY (trace_id, span_id)
TTL toDateTime(seen_at, 'UTC') + INTERVAL 1 HOUR;

CREATE TABLE IF NOT EXISTS otel.llm_running ON CLUSTER '{cluster}' AS otel.llm_running_local
ENGINE = Distributed('{cluster}', otel, llm_running_local, cityHash64(trace_id));

CREATE TABLE IF NOT EXISTS otel.spans_local ON CLUSTER '{cluster}'
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
ENGINE = ReplicatedReplacingMergeTree
PARTITION BY toMonday(started_at, 'UTC')
ORDER BY (toStartOfHour(started_at, 'UTC'), trace_id, span_id)
TTL toDateTime(started_at, 'UTC') + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.spans ON CLUSTER '{cluster}' AS otel.spans_local
ENGINE = Distributed('{cluster}', otel, spans_local, cityHash64(trace_id));

CREATE OR REPLACE VIEW otel.llm_usage_final ON CLUSTER '{cluster}' AS SELECT * FROM otel.llm_usage FINAL;

CREATE OR REPLACE VIEW otel.spans_final ON CLUSTER '{cluster}' AS SELECT * FROM otel.spans FINAL;

CREATE OR REPLACE VIEW otel.llm_daily ON CLUSTER '{cluster}' AS
SELECT toDate(started_at) AS day,
       provider,
       coalesce(request_model, response_model) AS model,
       countIf(coalesce(price_source, '') <> 'cache hit, not billed') AS calls,
       countIf(status <> 'ok') AS not_ok,
       sumIf(call.input_tokens, coalesce(usage_source, '') <> 'estimated') AS input_tokens,
       sumIf(call.output_tokens, coalesce(usage_source, '') <> 'estimated') AS output_tokens,
       sumIf(call.cost_usd, coalesce(usage_source, '') <> 'estimated') AS cost_usd,
       countIf(call.cost_usd IS NULL AND coalesce(price_source, '') <> 'refused, not billed') AS unpriced,
       sumIf(call.input_tokens, usage_source = 'estimated') AS estimated_input_tokens,
       sumIf(call.output_tokens, usage_source = 'estimated') AS estimated_output_tokens,
       sumIf(call.cost_usd, usage_source = 'estimated') AS estimated_usd
FROM (SELECT * FROM otel.llm_usage FINAL) AS call
GROUP BY day, provider, model;

CREATE OR REPLACE VIEW otel.llm_conversations ON CLUSTER '{cluster}' AS
SELECT conversation_id,
       min(started_at) AS first_at,
       max(started_at) AS last_at,
       countIf(coalesce(price_source, '') <> 'cache hit, not billed') AS calls,
       countIf(status <> 'ok') AS not_ok,
       uniqExact(trace_id) AS traces,
       sum(call.duration_ms) AS duration_ms,
       sumIf(call.input_tokens, coalesce(usage_source, '') <> 'estimated') AS input_tokens,
       sumIf(call.output_tokens, coalesce(usage_source, '') <> 'estimated') AS output_tokens,
       sum(call.cache_read_tokens) AS cache_read_tokens,
       sum(call.reasoning_tokens) AS reasoning_tokens,
       sumIf(call.cost_usd, coalesce(usage_source, '') <> 'estimated') AS cost_usd,
       countIf(call.cost_usd IS NULL AND coalesce(price_source, '') <> 'refused, not billed') AS unpriced,
       arraySort(groupUniqArray(request_model)) AS models,
       arraySort(groupUniqArray(user_id)) AS users,
       arraySort(groupUniqArray(module)) AS modules,
       arraySort(groupUniqArray(agent_name)) AS agents,
       sumIf(call.input_tokens, usage_source = 'estimated') AS estimated_input_tokens,
       sumIf(call.output_tokens, usage_source = 'estimated') AS estimated_output_tokens,
       sumIf(call.cost_usd, usage_source = 'estimated') AS estimated_usd
FROM (SELECT * FROM otel.llm_usage FINAL) AS call
WHERE conversation_id IS NOT NULL
GROUP BY conversation_id;

CREATE TABLE IF NOT EXISTS otel.otel_traces_local ON CLUSTER '{cluster}'
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
ENGINE = ReplicatedMergeTree
PARTITION BY toDate(Timestamp)
ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))
TTL toDateTime(Timestamp) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.otel_traces ON CLUSTER '{cluster}' AS otel.otel_traces_local
ENGINE = Distributed('{cluster}', otel, otel_traces_local, cityHash64(TraceId));

CREATE TABLE IF NOT EXISTS otel.otel_traces_trace_id_ts_local ON CLUSTER '{cluster}'
(
    TraceId String CODEC(ZSTD(1)),
    Start   DateTime CODEC(Delta, ZSTD(1)),
    End     DateTime CODEC(Delta, ZSTD(1)),
    INDEX idx_trace_id TraceId TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = ReplicatedMergeTree
PARTITION BY toDate(Start)
ORDER BY (TraceId, Start)
TTL toDateTime(Start) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.otel_traces_trace_id_ts ON CLUSTER '{cluster}' AS otel.otel_traces_trace_id_ts_local
ENGINE = Distributed('{cluster}', otel, otel_traces_trace_id_ts_local, cityHash64(TraceId));

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.otel_traces_trace_id_ts_mv ON CLUSTER '{cluster}' TO otel.otel_traces_trace_id_ts AS
SELECT TraceId, min(Timestamp) AS Start, max(Timestamp) AS End FROM otel.otel_traces_local WHERE TraceId <> '' GROUP BY TraceId;

CREATE TABLE IF NOT EXISTS otel.otel_logs_local ON CLUSTER '{cluster}'
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
ENGINE = ReplicatedMergeTree
PARTITION BY toDate(Timestamp)
ORDER BY (toStartOfFiveMinutes(Timestamp), ServiceName, Timestamp)
TTL toDateTime(Timestamp) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS otel.otel_logs ON CLUSTER '{cluster}' AS otel.otel_logs_local
ENGINE = Distributed('{cluster}', otel, otel_logs_local, cityHash64(TraceId));

CREATE MATERIALIZED VIEW IF NOT EXISTS otel.llm_usage_from_logs ON CLUSTER '{cluster}' TO otel.llm_usage AS
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
FROM otel.otel_logs_local
WHERE (EventName = 'otel_llm.usage' OR (EventName = '' AND ScopeName = 'otel_llm' AND mapContains(LogAttributes, 'row_version')))
  AND parseDateTime64BestEffortOrNull(LogAttributes['started_at'], 6, 'UTC') IS NOT NULL;
