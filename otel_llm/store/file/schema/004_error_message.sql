-- What a failed call said, where content is captured: beside the class or the status of the error.
ALTER TABLE llm_usage ADD COLUMN error_message VARCHAR;
UPDATE llm_usage SET error_message = spans.status_message FROM spans
WHERE spans.trace_id = llm_usage.trace_id AND spans.span_id = llm_usage.span_id AND spans.status_message IS NOT NULL;
