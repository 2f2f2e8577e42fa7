-- Where `conversation_id` comes from, where nobody says it: `previous_response_id`. See `otel_llm/store/merge/conversations.py`, which does
-- for each new call what is done here for those that are there.
ALTER TABLE llm_usage ADD COLUMN conversation_source VARCHAR;

-- Not a temporary one: the statements that the process has prepared for its merges would be planned anew for each use.
CREATE TABLE named AS
WITH RECURSIVE call AS (
    SELECT llm_usage.trace_id, llm_usage.span_id, llm_usage.started_at, response_id, conversation_id,
        CASE WHEN conversation_id IS NULL THEN spans.attributes ->> '$."gen_ai.request.previous_response.id"' END AS previous
    FROM llm_usage LEFT JOIN spans USING (trace_id, span_id)
), known AS (
    SELECT response_id, arg_min(conversation_id, (started_at, span_id)) AS conversation_id,
        arg_min(previous, (started_at, span_id)) AS previous
    FROM call WHERE response_id IS NOT NULL GROUP BY response_id
), chain AS (
    SELECT trace_id, span_id, previous AS at FROM call WHERE previous IS NOT NULL
    UNION
    SELECT chain.trace_id, chain.span_id, known.previous FROM chain JOIN known ON known.response_id = chain.at
    WHERE known.conversation_id IS NULL AND known.previous IS NOT NULL
), ended AS (
    SELECT trace_id, span_id, min(coalesce(known.conversation_id, chain.at)) AS conversation_id
    FROM chain LEFT JOIN known ON known.response_id = chain.at
    WHERE known.conversation_id IS NOT NULL OR known.previous IS NULL GROUP BY ALL
)
FROM ended
UNION ALL
SELECT trace_id, span_id, response_id FROM call
WHERE conversation_id IS NULL AND previous IS NULL AND response_id IN (SELECT conversation_id FROM ended);

UPDATE llm_usage SET conversation_id = named.conversation_id, conversation_source = 'previous_response_id' FROM named
WHERE named.trace_id = llm_usage.trace_id AND named.span_id = llm_usage.span_id;
DROP TABLE named;
