-- For whoever asks without otel-llm and without the role otel_llm_read: each call once, by names of their own.

CREATE OR REPLACE VIEW otel.llm_usage_final AS SELECT * FROM otel.llm_usage FINAL;

CREATE OR REPLACE VIEW otel.spans_final AS SELECT * FROM otel.spans FINAL;

-- As in DuckDB, but that a day is one of UTC.
CREATE OR REPLACE VIEW otel.llm_daily AS
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

CREATE OR REPLACE VIEW otel.llm_conversations AS
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
