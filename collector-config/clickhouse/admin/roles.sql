-- Who may do what. Run it as an administrator who may grant: in the container image that is `default` where
-- CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT=1 is set. Then make users, such as:
--
--   CREATE USER ship IDENTIFIED BY '...' DEFAULT ROLE otel_llm_insert;
--   CREATE USER alice IDENTIFIED BY '...' DEFAULT ROLE otel_llm_read;

-- For `otel-llm ship`: what it has sent, it cannot read.
CREATE ROLE IF NOT EXISTS otel_llm_insert;
GRANT INSERT ON otel.llm_usage TO otel_llm_insert;
GRANT INSERT ON otel.spans TO otel_llm_insert;
GRANT INSERT ON otel.llm_running TO otel_llm_insert;

-- For a Collector. The view llm_usage_from_logs inserts by its definer's right, not by that of who sends.
CREATE ROLE IF NOT EXISTS otel_collector;
GRANT INSERT ON otel.otel_traces TO otel_collector;
GRANT INSERT ON otel.otel_logs TO otel_collector;

-- For `otel-llm usage` and all that asks, dashboards too: each call counts once, whatever the query says. `otel-llm reprice` needs
-- otel_llm_insert as well.
CREATE ROLE IF NOT EXISTS otel_llm_read SETTINGS final = 1;
GRANT SELECT, SHOW ON otel.* TO otel_llm_read;
