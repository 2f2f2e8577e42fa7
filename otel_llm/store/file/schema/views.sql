-- Views over the two tables. After a change, raise `VIEWS_VERSION` in database.py: the views of stored files are then made again.

-- The life of a run as rows: what began, what ended, and what spans noted in between. A run is what is under one root of GenAI spans.
-- `otel_llm/lifecycle/from_record.py` derives the same events in Python.
CREATE OR REPLACE VIEW llm_events AS
WITH RECURSIVE named AS MATERIALIZED (
    -- Some spans of others are about GenAI and do not say what they do.
    SELECT trace_id, span_id, parent_span_id,
        coalesce(operation, CASE WHEN (attributes ->> '$."gen_ai.system"') IS NOT NULL
            AND (attributes ->> '$."logfire.span_type"') IS DISTINCT FROM 'log' THEN 'unknown' END) AS operation
    FROM spans
), tree AS (
    SELECT trace_id, span_id, CASE WHEN operation IS NOT NULL THEN span_id END AS run
    FROM named
    WHERE NOT EXISTS (FROM spans AS above WHERE above.trace_id = named.trace_id AND above.span_id = named.parent_span_id)
    UNION ALL
    SELECT named.trace_id, named.span_id, coalesce(tree.run, CASE WHEN named.operation IS NOT NULL THEN named.span_id END)
    FROM tree JOIN named ON named.trace_id = tree.trace_id AND named.parent_span_id = tree.span_id
), part AS (
    SELECT spans.* REPLACE (named.operation AS operation), coalesce(tree.run, spans.span_id) AS run,
        CASE WHEN named.operation IN ('invoke_workflow', 'invoke_agent', 'create_agent') THEN 'Chain'
             WHEN named.operation IN ('step', 'retrieval', 'guardrail', 'evaluator') THEN 'Step'
             WHEN named.operation = 'execute_tool' THEN 'Tool'
             ELSE 'Provider' END AS part_kind,
        attributes ->> '$."error.type"' AS error_type,
        CAST(attributes -> '$."otel_llm.response.tool_call_ids"' AS VARCHAR[]) AS tool_call_ids,
        CAST(attributes -> '$."otel_llm.response.tool_call_names"' AS VARCHAR[]) AS tool_call_names
    FROM spans JOIN named USING (trace_id, span_id) LEFT JOIN tree USING (trace_id, span_id)
    WHERE named.operation IS NOT NULL
), event AS (
    SELECT start_ns AS at_ns, 1 AS rank, CASE part_kind WHEN 'Tool' THEN 'ToolsStarted' ELSE part_kind || 'Started' END AS event,
        NULL::DOUBLE AS ms, NULL::VARCHAR AS failure, NULL::JSON AS more, part.*
    FROM part
    UNION ALL
    SELECT TRY_CAST(e ->> 'time_unix_nano' AS BIGINT), 2, e ->> 'name', NULL, NULL, e -> 'attributes', part.*
    FROM part, (SELECT unnest(CAST(part.events AS JSON[])) AS e)
    WHERE part.events IS NOT NULL
    UNION ALL
    SELECT end_ns, 3, CASE WHEN part_kind = 'Chain' AND status IN ('error', 'cancelled') THEN 'ChainError' ELSE part_kind || 'Completed' END,
        duration_ms, error_type, NULL, part.*
    FROM part WHERE end_ns IS NOT NULL
    UNION ALL
    SELECT end_ns, 4, 'ToolsRequested', NULL, NULL,
        to_json([{'id': nullif(pair[1], ''), 'name': nullif(pair[2], '')} FOR pair IN list_zip(tool_call_ids, tool_call_names)]), part.*
    FROM part WHERE end_ns IS NOT NULL AND part_kind = 'Provider' AND len(tool_call_ids) > 0
)
SELECT
    make_timestamptz(at_ns // 1000) AS occurred_at,
    row_number() OVER (PARTITION BY event.trace_id, run ORDER BY at_ns, rank, span_id) AS sequence,
    event,
    event.operation,
    CASE WHEN starts_with(name, event.operation || ' ') THEN name[len(event.operation) + 2:] ELSE name END AS name,
    event.status,
    failure AS error_type,
    ms AS duration_ms,
    CASE WHEN rank = 3 THEN input_tokens END AS input_tokens,
    CASE WHEN rank = 3 THEN output_tokens END AS output_tokens,
    CASE WHEN rank = 3 THEN cost_usd END AS cost_usd,
    event.service_name,
    event.attributes ->> '$."otel_llm.module"' AS module,
    event.attributes ->> '$."user.id"' AS user_id,
    event.attributes ->> '$."gen_ai.conversation.id"' AS conversation_id,
    event.trace_id, span_id, event.parent_span_id, run,
    more AS attributes
FROM event LEFT JOIN llm_usage USING (trace_id, span_id)
ORDER BY at_ns, sequence;

-- One row for each time that a model asked for a tool, or that a tool ran: who asked, where it ran, which call brought its result back.
CREATE OR REPLACE VIEW llm_tool_calls AS
WITH asked AS (
    SELECT trace_id, span_id, start_ns, end_ns, agent, nullif(pair[1], '') AS id, nullif(pair[2], '') AS name, position
    FROM (
        SELECT trace_id, span_id, start_ns, end_ns, attributes ->> '$."gen_ai.agent.name"' AS agent,
            unnest(list_zip(CAST(attributes -> '$."otel_llm.response.tool_call_ids"' AS VARCHAR[]),
                            CAST(attributes -> '$."otel_llm.response.tool_call_names"' AS VARCHAR[]))) AS pair,
            generate_subscripts(CAST(attributes -> '$."otel_llm.response.tool_call_ids"' AS VARCHAR[]), 1) AS position
        FROM spans WHERE (attributes -> '$."otel_llm.response.tool_call_ids"') IS NOT NULL)
), ran AS (
    SELECT spans.*, attributes ->> '$."gen_ai.tool.call.id"' AS id FROM spans WHERE operation = 'execute_tool'
), brought AS (
    SELECT trace_id, span_id, start_ns,
        unnest(CAST(attributes -> '$."otel_llm.request.tool_call_ids"' AS VARCHAR[])) AS id
    FROM spans WHERE (attributes -> '$."otel_llm.request.tool_call_ids"') IS NOT NULL
), execution AS (
    -- Ids need not be unique for ever: the last one who asked before counts.
    SELECT ran.*, asked.span_id AS asked_span_id, asked.trace_id AS asked_trace_id, asked.position
    FROM ran ASOF LEFT JOIN asked ON ran.id = asked.id AND ran.start_ns >= asked.start_ns
), result AS (
    SELECT asked.trace_id, asked.span_id, asked.position, min(brought.start_ns) AS start_ns,
        arg_min(brought.trace_id, brought.start_ns) AS in_trace_id, arg_min(brought.span_id, brought.start_ns) AS in_span_id
    FROM brought ASOF JOIN asked ON brought.id = asked.id AND brought.start_ns >= asked.start_ns
    GROUP BY ALL
)
SELECT
    coalesce(execution.id, asked.id) AS tool_call_id,
    coalesce(execution.attributes ->> '$."gen_ai.tool.name"', asked.name) AS tool_name,
    execution.attributes ->> '$."gen_ai.tool.type"' AS tool_type,
    make_timestamptz(asked.end_ns // 1000) AS requested_at,
    asked.trace_id AS requested_by_trace_id,
    asked.span_id AS requested_by_span_id,
    execution.started_at,
    execution.duration_ms,
    execution.status,
    execution.attributes ->> '$."error.type"' AS error_type,
    execution.trace_id, execution.span_id, execution.parent_span_id, execution.service_name,
    coalesce(execution.attributes ->> '$."gen_ai.agent.name"', asked.agent) AS agent_name,
    execution.attributes ->> '$."gen_ai.tool.call.arguments"' AS arguments,
    execution.attributes ->> '$."gen_ai.tool.call.result"' AS result,
    make_timestamptz(result.start_ns // 1000) AS returned_at,
    result.in_trace_id AS returned_to_trace_id,
    result.in_span_id AS returned_to_span_id
FROM asked
FULL JOIN execution ON execution.asked_trace_id = asked.trace_id AND execution.asked_span_id = asked.span_id
    AND execution.position = asked.position
LEFT JOIN result ON result.trace_id = asked.trace_id AND result.span_id = asked.span_id AND result.position = asked.position
ORDER BY coalesce(execution.start_ns, asked.end_ns);

CREATE OR REPLACE VIEW llm_conversations AS
SELECT conversation_id,
       min(started_at) AS first_at,
       max(started_at) AS last_at,
       count(*) FILTER (WHERE price_source IS DISTINCT FROM 'cache hit, not billed') AS calls,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok,
       count(DISTINCT trace_id) AS traces,
       sum(duration_ms) AS duration_ms,
       sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cache_read_tokens) AS cache_read_tokens,
       sum(reasoning_tokens) AS reasoning_tokens,
       sum(cost_usd) AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL AND price_source IS DISTINCT FROM 'refused, not billed') AS unpriced,
       list_sort(list(DISTINCT request_model) FILTER (WHERE request_model IS NOT NULL)) AS models,
       list_sort(list(DISTINCT user_id) FILTER (WHERE user_id IS NOT NULL)) AS users,
       list_sort(list(DISTINCT module) FILTER (WHERE module IS NOT NULL)) AS modules,
       list_sort(list(DISTINCT agent_name) FILTER (WHERE agent_name IS NOT NULL)) AS agents
FROM llm_usage
WHERE conversation_id IS NOT NULL
GROUP BY conversation_id;

CREATE OR REPLACE VIEW llm_daily AS
SELECT CAST(started_at AS DATE) AS day,
       provider,
       coalesce(request_model, response_model) AS model,
       count(*) FILTER (WHERE price_source IS DISTINCT FROM 'cache hit, not billed') AS calls,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok,
       sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens,
       sum(cost_usd) AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL AND price_source IS DISTINCT FROM 'refused, not billed') AS unpriced
FROM llm_usage
GROUP BY ALL;
