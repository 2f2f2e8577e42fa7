"""The settings of the Collector and Jaeger components that `collector-config/` may use, by their current names.

A table is the keys of a mapping: to None where any value may stand, to a table where a mapping must, to a list of one table where a
list of such mappings must. Written from the components' `config.schema.yaml` or the `mapstructure` tags of their `config.go`:

- opentelemetry-collector 0.161: `exporter/exporterhelper/internal/queuebatch`, `internal/memorylimiter`, `config/configgrpc`,
  `config/confighttp`, `config/configretry`, `config/configtls`, `receiver/otlpreceiver`, `exporter/{otlp,otlphttp,debug}exporter`
- opentelemetry-collector-contrib 0.161: `processor/{tailsampling,redaction,filter,resource}processor`,
  `connector/spanmetricsconnector`, `exporter/{clickhouse,file,loadbalancing,prometheus}exporter`, `extension/storage/filestorage`,
  `extension/{healthcheck,bearertokenauth}extension`
- jaeger 2.20: `cmd/jaeger/internal/extension/{jaegerquery,jaegerstorage}`, `internal/storage/v1/badger`,
  `cmd/jaeger/internal/exporters/storageexporter`

Old names are left out, so that a configuration that has one fails: the exporters `otlp`, `otlphttp`, `jaeger`, the processor
`batch`, the connector `spanmetrics`, and what the schemas mark as deprecated (`dimensions_cache_size`, `add_metric_suffixes`).
"""

from __future__ import annotations

from typing import Any

Table = dict[str, Any]

TLS: Table = {"insecure": None, "insecure_skip_verify": None, "ca_file": None, "cert_file": None, "key_file": None}
RETRY: Table = {
    "enabled": None,
    "initial_interval": None,
    "randomization_factor": None,
    "multiplier": None,
    "max_interval": None,
    "max_elapsed_time": None,
    "max_retries": None,
}
QUEUE: Table = {
    "enabled": None,
    "wait_for_result": None,
    "sizer": None,
    "queue_size": None,
    "block_on_overflow": None,
    "storage": None,
    "num_consumers": None,
    "batch": {
        "flush_timeout": None,
        "sizer": None,
        "min_size": None,
        "max_size": None,
        "partition": {"metadata_keys": None},
    },
}
SERVER_TLS: Table = {
    "cert_file": None,
    "key_file": None,
    "client_ca_file": None,
    "client_ca_file_reload": None,
    "min_version": None,
    "reload_interval": None,
}
AUTHENTICATOR: Table = {"authenticator": None}
GRPC_SERVER: Table = {
    "endpoint": None,
    "transport": None,
    "tls": SERVER_TLS,
    "auth": AUTHENTICATOR,
    "max_recv_msg_size_mib": None,
    "max_concurrent_streams": None,
    "keepalive": {"server_parameters": {"max_connection_age": None, "max_connection_age_grace": None}},
}
HTTP_SERVER: Table = {"endpoint": None, "tls": SERVER_TLS, "auth": AUTHENTICATOR, "max_request_body_size": None}
OTLP_EXPORTER: Table = {
    "endpoint": None,
    "tls": TLS,
    "auth": AUTHENTICATOR,
    "headers": None,
    "compression": None,
    "timeout": None,
    "retry_on_failure": RETRY,
    "sending_queue": QUEUE,
}
CONDITIONS: Table = {"error_mode": None, "trace_conditions": None, "log_conditions": None, "metric_conditions": None}
DIMENSION: Table = {"name": None, "default": None}

POLICY: Table = {
    "name": None,
    "type": None,
    "latency": {"threshold_ms": None, "upper_threshold_ms": None},
    "numeric_attribute": {"key": None, "min_value": None, "max_value": None, "invert_match": None},
    "probabilistic": {"hash_salt": None, "sampling_percentage": None},
    "status_code": {"status_codes": None},
    "string_attribute": {
        "key": None,
        "values": None,
        "enabled_regex_matching": None,
        "cache_max_size": None,
        "invert_match": None,
    },
    "rate_limiting": {"spans_per_second": None},
    "span_count": {"min_spans": None, "max_spans": None},
    "boolean_attribute": {"key": None, "value": None, "invert_match": None},
    "ottl_condition": {"error_mode": None, "span": None, "spanevent": None},
}
"""A policy of tail sampling; its settings stand under the key that is its type. `always_sample` has none."""

RECEIVERS: Table = {"otlp": {"protocols": {"grpc": GRPC_SERVER, "http": HTTP_SERVER}}}
SERVICE: Table = {
    "extensions": None,
    "pipelines": None,
    "telemetry": {
        "metrics": {
            "level": None,
            "readers": [{"pull": {"exporter": {"prometheus": {"host": None, "port": None}}}}],
        },
        "logs": {"level": None, "encoding": None},
    },
}

COLLECTOR: Table = {
    "receivers": RECEIVERS,
    "processors": {
        "memory_limiter": {
            "check_interval": None,
            "limit_mib": None,
            "spike_limit_mib": None,
            "limit_percentage": None,
            "spike_limit_percentage": None,
        },
        "redaction": {
            "allow_all_keys": None,
            "allowed_keys": None,
            "allowed_values": None,
            "blocked_key_patterns": None,
            "blocked_values": None,
            "hash_function": None,
            "ignored_key_patterns": None,
            "ignored_keys": None,
            "redact_all_types": None,
            "summary": None,
        },
        "filter": CONDITIONS,
        "resource": {"attributes": [{"action": None, "key": None, "pattern": None, "value": None}]},
        "tail_sampling": {
            "block_on_overflow": None,
            "decision_cache": {"sampled_cache_size": None, "non_sampled_cache_size": None},
            "decision_wait": None,
            "decision_wait_after_root_received": None,
            "drop_pending_traces_on_shutdown": None,
            "expected_new_traces_per_sec": None,
            "maximum_trace_size_bytes": None,
            "num_traces": None,
            "policies": [POLICY],
            "sample_on_first_match": None,
        },
    },
    "exporters": {
        "debug": {"verbosity": None, "sampling_initial": None, "sampling_thereafter": None},
        "otlp_grpc": OTLP_EXPORTER,
        "otlp_http": OTLP_EXPORTER,
        "load_balancing": {
            "routing_key": None,
            "resolver": {
                "static": {"hostnames": None},
                "dns": {"hostname": None, "port": None, "interval": None, "timeout": None},
            },
            "protocol": {"otlp": OTLP_EXPORTER},
            "timeout": None,
            "retry_on_failure": RETRY,
            "sending_queue": QUEUE,
        },
        "file": {
            "path": None,
            "format": None,
            "compression": None,
            "flush_interval": None,
            "create_directory": None,
            "rotation": {"max_megabytes": None, "max_days": None, "max_backups": None, "localtime": None},
        },
        "clickhouse": {
            "endpoint": None,
            "username": None,
            "password": None,
            "database": None,
            "traces_table_name": None,
            "logs_table_name": None,
            "ttl": None,
            "compress": None,
            "async_insert": None,
            "create_schema": None,
            "cluster_name": None,
            "json": None,
            "connection_params": None,
            "table_engine": {"name": None, "params": None},
            "timeout": None,
            "tls": TLS,
            "retry_on_failure": RETRY,
            "sending_queue": QUEUE,
        },
        "prometheus": HTTP_SERVER
        | {
            "namespace": None,
            "const_labels": None,
            "send_timestamps": None,
            "metric_expiration": None,
            "enable_open_metrics": None,
            "translation_strategy": None,
            "without_scope_info": None,
        },
    },
    "connectors": {
        "forward": {},
        "span_metrics": {
            "namespace": None,
            "histogram": {
                "disable": None,
                "unit": None,
                "explicit": {"buckets": None},
                "exponential": {"max_size": None},
                "dimensions": [DIMENSION],
            },
            "dimensions": [DIMENSION],
            "calls_dimensions": [DIMENSION],
            "exclude_dimensions": None,
            "exemplars": {"enabled": None, "max_per_data_point": None},
            "events": {"enabled": None, "dimensions": [DIMENSION]},
            "aggregation_temporality": None,
            "aggregation_cardinality_limit": None,
            "metrics_flush_interval": None,
            "metrics_expiration": None,
            "series_expiration": None,
            "resource_metrics_cache_size": None,
            "resource_metrics_key_attributes": None,
        },
    },
    "extensions": {
        "file_storage": {
            "directory": None,
            "create_directory": None,
            "timeout": None,
            "fsync": None,
            "compaction": {
                "directory": None,
                "on_start": None,
                "on_rebound": None,
                "rebound_needed_threshold_mib": None,
                "rebound_trigger_threshold_mib": None,
                "max_transaction_size": None,
                "check_interval": None,
            },
        },
        "health_check": {"endpoint": None, "path": None},
        "bearertokenauth": {
            "header": None,
            "scheme": None,
            "token": None,
            "tokens": None,
            "filename": None,
            "wait_for_token_file": None,
            "retry_on_failure": {"enabled": None, "max_retries": None, "interval": None},
        },
    },
    "service": SERVICE,
}
"""What otelcol-contrib takes."""

JAEGER: Table = {
    "receivers": RECEIVERS,
    "processors": {},
    "exporters": {"jaeger_storage_exporter": {"trace_storage": None}},
    "connectors": {},
    "extensions": {
        "healthcheckv2": {"use_v2": None, "http": {"endpoint": None, "status": {"enabled": None, "path": None}}},
        "jaeger_storage": {
            # A backend's name is the user's own; "*" stands for it.
            "backends": {
                "*": {
                    "memory": {"max_traces": None},
                    "badger": {
                        "ephemeral": None,
                        "directories": {"keys": None, "values": None},
                        "ttl": {"spans": None},
                        "consistency": None,
                        "maintenance_interval": None,
                        "metrics_update_interval": None,
                        "read_only": None,
                    },
                }
            }
        },
        "jaeger_query": {
            "storage": {"traces": None, "traces_archive": None, "metrics": None},
            "base_path": None,
            "enable_tracing": None,
            "http": HTTP_SERVER,
            "grpc": GRPC_SERVER,
            "max_clock_skew_adjust": None,
            "ui": {"config_file": None, "log_access": None},
        },
    },
    "service": SERVICE,
}
"""What Jaeger takes."""

COMPONENTS = ("receivers", "processors", "exporters", "connectors", "extensions")
"""The sections whose keys are components: a type, and a name of the user's own after a slash."""


def unknown_keys(value: Any, table: Any, where: str = "") -> list[str]:
    """The settings in `value` that `table` does not know, by their paths; a value of the wrong kind counts as unknown."""
    if table is None or value is None:
        return []
    if isinstance(table, list):
        if not isinstance(value, list):
            return [where]
        return [key for number, item in enumerate(value) for key in unknown_keys(item, table[0], f"{where}[{number}]")]
    if not isinstance(value, dict):
        return [where]
    found = []
    for key, setting in value.items():
        path = f"{where}.{key}" if where else str(key)
        name = key.partition("/")[0] if where in COMPONENTS else key
        if name in table or "*" in table:
            found += unknown_keys(setting, table.get(name, table.get("*")), path)
        else:
            found.append(path)
    return found
