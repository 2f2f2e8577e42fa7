-- What is billed by other things than tokens, by its name: searches, images, seconds of audio.
ALTER TABLE llm_usage ADD COLUMN units MAP(VARCHAR, DOUBLE);
-- Kinds of tokens that have a price of their own: parts of `cache_write_tokens` and of `cache_read_tokens`.
ALTER TABLE llm_usage ADD COLUMN cache_write_1h_tokens BIGINT;
ALTER TABLE llm_usage ADD COLUMN audio_cache_read_tokens BIGINT;
ALTER TABLE llm_usage ADD COLUMN image_cache_read_tokens BIGINT;
-- How often the row has been written: whoever copies rows elsewhere takes the highest. The default is for rows of older versions.
ALTER TABLE llm_usage ADD COLUMN row_version INTEGER DEFAULT 1;
-- How long the texts were that went out and came back, which tells the tokens of a call that nobody reported.
ALTER TABLE llm_usage ADD COLUMN input_chars BIGINT;
ALTER TABLE llm_usage ADD COLUMN output_chars BIGINT;
