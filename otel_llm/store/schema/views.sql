-- First useful views over the two tables. They are made again by every migration; to change one, add a schema step.

-- The life of a chain as rows: what began, what happened inside, what ended.
CREATE OR REPLACE VIEW llm_events AS
SELECT started_at AS at, 'start' AS event, operation, name, trace_id, span_id, parent_span_id, status,
       NULL::DOUBLE AS duration_ms, NULL::JSON AS attributes
FROM spans
UNION ALL
SELECT make_timestamptz(TRY_CAST(e ->> 'time_unix_nano' AS BIGINT) // 1000), e ->> 'name', operation, name,
       trace_id, span_id, parent_span_id, status, NULL, e -> 'attributes'
FROM (SELECT *, unnest(CAST(events AS JSON[])) AS e FROM spans WHERE events IS NOT NULL)
UNION ALL
SELECT make_timestamptz(end_ns // 1000), 'end', operation, name, trace_id, span_id, parent_span_id, status,
       duration_ms, NULL
FROM spans WHERE end_ns IS NOT NULL;

CREATE OR REPLACE VIEW llm_tool_calls AS
SELECT started_at, duration_ms, trace_id, span_id, parent_span_id, service_name, status,
       attributes ->> '$."gen_ai.tool.name"' AS tool_name,
       attributes ->> '$."gen_ai.tool.type"' AS tool_type,
       attributes ->> '$."gen_ai.tool.call.id"' AS tool_call_id,
       attributes ->> '$."error.type"' AS error_type,
       attributes ->> '$."gen_ai.agent.name"' AS agent_name,
       attributes ->> '$."gen_ai.tool.call.arguments"' AS arguments,
       attributes ->> '$."gen_ai.tool.call.result"' AS result
FROM spans
WHERE operation = 'execute_tool';

CREATE OR REPLACE VIEW llm_conversations AS
SELECT conversation_id,
       min(started_at) AS first_at,
       max(started_at) AS last_at,
       count(*) AS calls,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok,
       sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cost_usd) AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL) AS unpriced,
       list(DISTINCT request_model) FILTER (WHERE request_model IS NOT NULL) AS models,
       list(DISTINCT user_id) FILTER (WHERE user_id IS NOT NULL) AS users
FROM llm_usage
WHERE conversation_id IS NOT NULL
GROUP BY conversation_id;

CREATE OR REPLACE VIEW llm_daily AS
SELECT CAST(started_at AS DATE) AS day,
       provider,
       coalesce(response_model, request_model) AS model,
       count(*) AS calls,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok,
       sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cost_usd) AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL) AS unpriced
FROM llm_usage
GROUP BY ALL;
