-- Views over the two tables. After a change, raise `VIEWS_VERSION` in database.py: the views of stored files are then made again.

-- The life of a run as rows: what began, what ended, and what spans noted in between. A run is what is under one root of GenAI spans, and
-- under each chain that continues it.
-- `otel_llm/lifecycle/from_record.py` derives the same events in Python.
CREATE OR REPLACE VIEW llm_events AS
WITH RECURSIVE named AS (
    -- Some spans of others are about GenAI and do not say what they do.
    SELECT trace_id, span_id, parent_span_id,
        coalesce(operation, CASE WHEN (attributes ->> '$."gen_ai.system"') IS NOT NULL
            AND (attributes ->> '$."logfire.span_type"') IS DISTINCT FROM 'log' THEN 'unknown' END) AS operation,
        CASE WHEN operation IN ('invoke_workflow', 'invoke_agent', 'create_agent') THEN
            nullif(regexp_extract(attributes ->> '$."otel_llm.run.continues"', '^([0-9a-f]{32}-)?[0-9a-f]{16}$'), '') END AS continues
    FROM spans
), kind AS MATERIALIZED (
    SELECT *,
        CASE WHEN operation IN ('invoke_workflow', 'invoke_agent', 'create_agent') THEN 'Chain'
             WHEN operation IN ('step', 'retrieval', 'guardrail', 'evaluator') THEN 'Step'
             WHEN operation = 'execute_tool' THEN 'Tool'
             WHEN operation IS NOT NULL THEN 'Provider' END AS part_kind
    FROM named
), tree AS MATERIALIZED (
    -- `root`: what this part of a run began with. `above`: the nearest span about GenAI that it is in; `chains`: all chains that it is in.
    SELECT trace_id, span_id, CASE WHEN operation IS NOT NULL THEN span_id END AS root, NULL::VARCHAR AS above,
        []::VARCHAR[] AS chains
    FROM kind
    WHERE NOT EXISTS (FROM spans AS above WHERE above.trace_id = kind.trace_id AND above.span_id = kind.parent_span_id)
    UNION ALL
    SELECT inner_one.trace_id, inner_one.span_id,
        CASE WHEN inner_one.continues[-16:] <> repeat('0', 16) THEN inner_one.span_id
             ELSE coalesce(tree.root, CASE WHEN inner_one.operation IS NOT NULL THEN inner_one.span_id END) END,
        CASE WHEN outer_one.operation IS NOT NULL THEN outer_one.span_id ELSE tree.above END,
        CASE WHEN outer_one.part_kind = 'Chain' THEN list_append(tree.chains, outer_one.span_id) ELSE tree.chains END
    FROM tree
    JOIN kind AS outer_one USING (trace_id, span_id)
    JOIN kind AS inner_one ON inner_one.trace_id = tree.trace_id AND inner_one.parent_span_id = tree.span_id
), continued AS MATERIALIZED (
    -- What a chain says that it continues: the root of that, or what it says where that is not in the store.
    SELECT kind.trace_id, kind.span_id AS root,
        coalesce(min(tree.trace_id), CASE WHEN len(continues) = 49 THEN continues[:32] ELSE kind.trace_id END) AS in_trace_id,
        coalesce(arg_min(tree.root, tree.trace_id), continues[-16:]) AS in_root
    FROM kind LEFT JOIN tree ON tree.span_id = continues[-16:] AND tree.root <> kind.span_id
        AND (len(continues) = 16 OR tree.trace_id = continues[:32])
    WHERE continues IS NOT NULL AND continues[-16:] <> repeat('0', 16)
    GROUP BY kind.trace_id, kind.span_id, continues
), traced_back AS (
    SELECT trace_id, root, in_trace_id, in_root, 1 AS step FROM continued
    UNION ALL
    SELECT traced_back.trace_id, traced_back.root, continued.in_trace_id, continued.in_root, step + 1
    FROM traced_back JOIN continued ON continued.trace_id = traced_back.in_trace_id AND continued.root = traced_back.in_root
    WHERE step < 1000
), whole AS (
    SELECT trace_id, root, arg_max(in_trace_id, step) AS run_trace_id, arg_max(in_root, step) AS run FROM traced_back GROUP BY ALL
), part AS (
    SELECT spans.* REPLACE (kind.operation AS operation), coalesce(tree.root, spans.span_id) AS root, tree.above, tree.chains,
        coalesce(whole.run, tree.root, spans.span_id) AS run, coalesce(whole.run_trace_id, spans.trace_id) AS run_trace_id,
        part_kind, (attributes ->> '$."otel_llm.run.waiting"') = 'true' AS waiting,
        attributes ->> '$."error.type"' AS error_type,
        CAST(attributes -> '$."otel_llm.response.tool_call_ids"' AS VARCHAR[]) AS tool_call_ids,
        CAST(attributes -> '$."otel_llm.response.tool_call_names"' AS VARCHAR[]) AS tool_call_names
    FROM spans JOIN kind USING (trace_id, span_id) LEFT JOIN tree USING (trace_id, span_id)
    LEFT JOIN whole ON whole.trace_id = spans.trace_id AND whole.root = tree.root
    WHERE kind.operation IS NOT NULL
), inside AS (
    SELECT trace_id, unnest(chains) AS chain, span_id, part_kind, name, status, end_ns FROM part WHERE end_ns IS NOT NULL
), summed AS (
    SELECT trace_id, chain, count(*) FILTER (part_kind = 'Provider') AS model_calls,
        CAST(sum(input_tokens) FILTER (usage_source IS DISTINCT FROM 'estimated') AS BIGINT) AS input_tokens,
        CAST(sum(output_tokens) FILTER (usage_source IS DISTINCT FROM 'estimated') AS BIGINT) AS output_tokens,
        sum(cost_usd) FILTER (usage_source IS DISTINCT FROM 'estimated') AS cost_usd,
        sum(cost_usd) FILTER (usage_source = 'estimated') AS estimated_usd,
        list(inside.name ORDER BY inside.end_ns) FILTER (inside.status = 'ok')[-100:] AS completed
    FROM inside LEFT JOIN llm_usage USING (trace_id, span_id) GROUP BY ALL
), last_inside AS (
    SELECT trace_id, above, arg_max(span_id, end_ns) AS span_id, arg_max(name, end_ns) AS name, arg_max(status, end_ns) AS status
    FROM part WHERE above IS NOT NULL AND end_ns IS NOT NULL GROUP BY ALL
), failing AS (
    -- From a chain that failed inwards, as long as what ended last has failed as well.
    SELECT trace_id, span_id AS chain, span_id, name, 0 AS depth FROM part WHERE part_kind = 'Chain' AND status IN ('error', 'cancelled', 'refused')
    UNION ALL
    SELECT failing.trace_id, chain, last_inside.span_id, last_inside.name, depth + 1
    FROM failing JOIN last_inside ON last_inside.trace_id = failing.trace_id AND last_inside.above = failing.span_id
    WHERE last_inside.status IN ('error', 'cancelled', 'refused')
), failed AS (
    SELECT trace_id, chain, arg_max(name, depth) AS name, arg_max(span_id, depth) AS span_id FROM failing GROUP BY ALL
), chain_end AS (
    SELECT part.trace_id, part.span_id, coalesce(model_calls, 0) AS model_calls, input_tokens, output_tokens, summed.cost_usd, estimated_usd,
        CASE WHEN failed.chain IS NULL AND waiting THEN json_object('model_calls', coalesce(model_calls, 0), 'waiting', true)
             WHEN failed.chain IS NULL THEN json_object('model_calls', coalesce(model_calls, 0))
             ELSE json_object('model_calls', coalesce(model_calls, 0), 'where', failed.name, 'where_span_id', failed.span_id,
                              'completed', coalesce(completed, [])) END AS more
    FROM part
    LEFT JOIN summed ON summed.trace_id = part.trace_id AND summed.chain = part.span_id
    LEFT JOIN failed ON failed.trace_id = part.trace_id AND failed.chain = part.span_id
    WHERE part_kind = 'Chain'
), event AS (
    SELECT start_ns AS at_ns, 1 AS rank, CASE part_kind WHEN 'Tool' THEN 'ToolsStarted' ELSE part_kind || 'Started' END AS event,
        NULL::DOUBLE AS ms, NULL::VARCHAR AS failure, NULL::JSON AS more, part.*
    FROM part
    UNION ALL
    SELECT TRY_CAST(e ->> 'time_unix_nano' AS BIGINT), 2, e ->> 'name', NULL, NULL, e -> 'attributes', part.*
    FROM part, (SELECT unnest(CAST(part.events AS JSON[])) AS e)
    WHERE part.events IS NOT NULL
    UNION ALL
    SELECT end_ns, 3, CASE WHEN part_kind = 'Chain' AND status IN ('error', 'cancelled', 'refused') THEN 'ChainError' ELSE part_kind || 'Completed' END,
        duration_ms, error_type, NULL, part.*
    FROM part WHERE end_ns IS NOT NULL
    UNION ALL
    SELECT end_ns, 4, 'ToolsRequested', NULL, NULL,
        to_json([{'id': nullif(pair[1], ''), 'name': nullif(pair[2], '')} FOR pair IN list_zip(tool_call_ids, tool_call_names)]), part.*
    FROM part WHERE end_ns IS NOT NULL AND part_kind = 'Provider' AND len(tool_call_ids) > 0
)
SELECT
    make_timestamptz(at_ns // 1000) AS occurred_at,
    row_number() OVER (PARTITION BY event.trace_id, root ORDER BY at_ns, rank, span_id) AS sequence,
    event,
    event.operation,
    CASE WHEN starts_with(name, event.operation || ' ') THEN name[len(event.operation) + 2:] ELSE name END AS name,
    event.status,
    failure AS error_type,
    ms AS duration_ms,
    -- Of a chain the sums over the model calls in it.
    CASE WHEN rank = 3 THEN coalesce(chain_end.input_tokens, llm_usage.input_tokens) END AS input_tokens,
    CASE WHEN rank = 3 THEN coalesce(chain_end.output_tokens, llm_usage.output_tokens) END AS output_tokens,
    CASE WHEN rank = 3 THEN coalesce(chain_end.cost_usd, llm_usage.cost_usd) END AS cost_usd,
    event.service_name,
    event.attributes ->> '$."otel_llm.module"' AS module,
    event.attributes ->> '$."user.id"' AS user_id,
    coalesce(event.attributes ->> '$."gen_ai.conversation.id"', llm_usage.conversation_id) AS conversation_id,
    event.trace_id, span_id, event.parent_span_id, run,
    CASE WHEN rank = 3 THEN chain_end.more ELSE event.more END AS attributes,
    root, run_trace_id,
    CASE WHEN rank = 3 THEN llm_usage.usage_source END AS usage_source,
    CASE WHEN rank = 3 THEN chain_end.estimated_usd END AS estimated_usd
FROM event LEFT JOIN llm_usage USING (trace_id, span_id) LEFT JOIN chain_end USING (trace_id, span_id)
ORDER BY at_ns, sequence;

-- One row for each time that a model asked for a tool, or that a tool ran: who asked, where it ran, which call brought its result back.
CREATE OR REPLACE VIEW llm_tool_calls AS
WITH asked AS (
    SELECT trace_id, span_id, start_ns, end_ns, agent, answer, nullif(pair[1], '') AS id, nullif(pair[2], '') AS name, position
    FROM (
        SELECT trace_id, span_id, start_ns, end_ns, attributes ->> '$."gen_ai.agent.name"' AS agent,
            TRY_CAST(attributes ->> '$."gen_ai.output.messages"' AS JSON) AS answer,
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
    -- A tool that the client runs has no span: what was captured of the two calls says it.
    coalesce(execution.attributes ->> '$."gen_ai.tool.call.arguments"',
        [part FOR part IN json_extract(answer, '$[*].parts[*]')
            IF part ->> '$.type' = 'tool_call' AND part ->> '$.id' = asked.id][1] ->> '$.arguments') AS arguments,
    coalesce(execution.attributes ->> '$."gen_ai.tool.call.result"',
        [part FOR part IN json_extract(TRY_CAST(bringing.attributes ->> '$."gen_ai.input.messages"' AS JSON), '$[*].parts[*]')
            IF part ->> '$.type' = 'tool_call_response' AND part ->> '$.id' = asked.id][1] ->> '$.response') AS result,
    make_timestamptz(result.start_ns // 1000) AS returned_at,
    result.in_trace_id AS returned_to_trace_id,
    result.in_span_id AS returned_to_span_id
FROM asked
FULL JOIN execution ON execution.asked_trace_id = asked.trace_id AND execution.asked_span_id = asked.span_id
    AND execution.position = asked.position
LEFT JOIN result ON result.trace_id = asked.trace_id AND result.span_id = asked.span_id AND result.position = asked.position
LEFT JOIN spans AS bringing ON bringing.trace_id = result.in_trace_id AND bringing.span_id = result.in_span_id
ORDER BY coalesce(execution.start_ns, asked.end_ns);

-- One row for each run, over all its parts: what was continued in another request or process is one run.
CREATE OR REPLACE VIEW llm_runs AS
SELECT run,
       first(name ORDER BY occurred_at, sequence) AS name,
       min(occurred_at) AS first_at,
       max(occurred_at) AS last_at,
       -- Of the last part.
       last(status ORDER BY occurred_at, sequence) FILTER (span_id = root) AS status,
       coalesce(last((attributes ->> '$.waiting') = 'true' ORDER BY occurred_at, sequence) FILTER (span_id = root), false) AS waiting,
       count(DISTINCT (trace_id, root)) AS parts,
       list(trace_id ORDER BY occurred_at, sequence) FILTER (span_id = root AND ends_with(event, 'Started')) AS traces,
       count(*) FILTER (event = 'ProviderCompleted') AS model_calls,
       CAST(sum(input_tokens) FILTER (event = 'ProviderCompleted' AND usage_source IS DISTINCT FROM 'estimated') AS BIGINT) AS input_tokens,
       CAST(sum(output_tokens) FILTER (event = 'ProviderCompleted' AND usage_source IS DISTINCT FROM 'estimated') AS BIGINT) AS output_tokens,
       sum(cost_usd) FILTER (event = 'ProviderCompleted' AND usage_source IS DISTINCT FROM 'estimated') AS cost_usd,
       arg_min(user_id, occurred_at) AS user_id,
       arg_min(module, occurred_at) AS module,
       arg_min(conversation_id, occurred_at) AS conversation_id,
       sum(cost_usd) FILTER (event = 'ProviderCompleted' AND usage_source = 'estimated') AS estimated_usd
FROM llm_events
GROUP BY run_trace_id, run;

CREATE OR REPLACE VIEW llm_conversations AS
SELECT conversation_id,
       min(started_at) AS first_at,
       max(started_at) AS last_at,
       count(*) FILTER (WHERE price_source IS DISTINCT FROM 'cache hit, not billed') AS calls,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok,
       count(DISTINCT trace_id) AS traces,
       sum(duration_ms) AS duration_ms,
       sum(input_tokens) FILTER (usage_source IS DISTINCT FROM 'estimated') AS input_tokens,
       sum(output_tokens) FILTER (usage_source IS DISTINCT FROM 'estimated') AS output_tokens,
       sum(cache_read_tokens) AS cache_read_tokens,
       sum(reasoning_tokens) AS reasoning_tokens,
       sum(cost_usd) FILTER (usage_source IS DISTINCT FROM 'estimated') AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL AND price_source IS DISTINCT FROM 'refused, not billed') AS unpriced,
       list_sort(list(DISTINCT request_model) FILTER (WHERE request_model IS NOT NULL)) AS models,
       list_sort(list(DISTINCT user_id) FILTER (WHERE user_id IS NOT NULL)) AS users,
       list_sort(list(DISTINCT module) FILTER (WHERE module IS NOT NULL)) AS modules,
       list_sort(list(DISTINCT agent_name) FILTER (WHERE agent_name IS NOT NULL)) AS agents,
       sum(input_tokens) FILTER (usage_source = 'estimated') AS estimated_input_tokens,
       sum(output_tokens) FILTER (usage_source = 'estimated') AS estimated_output_tokens,
       sum(cost_usd) FILTER (usage_source = 'estimated') AS estimated_usd
FROM llm_usage
WHERE conversation_id IS NOT NULL
GROUP BY conversation_id;

CREATE OR REPLACE VIEW llm_daily AS
SELECT CAST(started_at AS DATE) AS day,
       provider,
       coalesce(request_model, response_model) AS model,
       count(*) FILTER (WHERE price_source IS DISTINCT FROM 'cache hit, not billed') AS calls,
       count(*) FILTER (WHERE status <> 'ok') AS not_ok,
       sum(input_tokens) FILTER (usage_source IS DISTINCT FROM 'estimated') AS input_tokens,
       sum(output_tokens) FILTER (usage_source IS DISTINCT FROM 'estimated') AS output_tokens,
       sum(cost_usd) FILTER (usage_source IS DISTINCT FROM 'estimated') AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL AND price_source IS DISTINCT FROM 'refused, not billed') AS unpriced,
       sum(input_tokens) FILTER (usage_source = 'estimated') AS estimated_input_tokens,
       sum(output_tokens) FILTER (usage_source = 'estimated') AS estimated_output_tokens,
       sum(cost_usd) FILTER (usage_source = 'estimated') AS estimated_usd
FROM llm_usage
GROUP BY ALL;
