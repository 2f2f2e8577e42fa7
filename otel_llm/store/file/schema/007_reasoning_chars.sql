-- How much of `output_chars` is reasoning. Where it is none of it, the reasoning tokens are beside the text.
ALTER TABLE llm_usage ADD COLUMN reasoning_chars BIGINT;
