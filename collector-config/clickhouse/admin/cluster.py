"""Makes cluster.sql of the files beside this directory: the same tables on every server of a cluster.

`python collector-config/clickhouse/admin/cluster.py > collector-config/clickhouse/admin/cluster.sql`

Each table becomes two: `…_local`, which is replicated, and one of its own name over all shards. What has one identity goes to one
shard, by its trace: only there can a later version take the place of an earlier one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

FILES: Final = sorted(Path(__file__).resolve().parents[1].glob("*.sql"))
_HEAD: Final = """-- Made by cluster.py: the tables on every server of a cluster. Run it once, on any of them, as an administrator.
--
-- {cluster}, {shard} and {replica} are macros of each server's configuration; a Keeper must be there. Roles: roles.sql, with
-- ON CLUSTER after each name.

"""
_ON: Final = "ON CLUSTER '{cluster}'"
_SHARD_BY: Final = {"otel_traces": "TraceId", "otel_logs": "TraceId", "otel_traces_trace_id_ts": "TraceId"}
"""The column of the trace, where it is not `trace_id`."""


def cluster_sql() -> str:
    texts = [re.sub(r"^--.*\n(?=--|\n)", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE) for file in FILES]
    statements = [part.strip() for text in texts for part in re.split(r";[^\S\n]*(?:\n|$)", text) if part.strip()]
    return _HEAD + "\n\n".join(one for statement in statements for one in _on_cluster(_without_remarks(statement)))


def _without_remarks(statement: str) -> str:
    return re.sub(r"^[^\S\n]*--.*\n?", "", statement, flags=re.MULTILINE).strip()


def _on_cluster(statement: str) -> list[str]:
    if not statement:
        return []
    if found := re.match(r"CREATE TABLE IF NOT EXISTS otel\.(\w+)", statement):
        name = found[1]
        local = statement.replace(found[0], f"CREATE TABLE IF NOT EXISTS otel.{name}_local {_ON}")
        local = re.sub(r"ENGINE = (\w*MergeTree)", r"ENGINE = Replicated\1", local)
        column = _SHARD_BY.get(name, "trace_id")
        return [
            f"{local};",
            f"CREATE TABLE IF NOT EXISTS otel.{name} {_ON} AS otel.{name}_local\n"
            f"ENGINE = Distributed('{{cluster}}', otel, {name}_local, cityHash64({column}));",
        ]
    if found := re.match(
        r"CREATE (DATABASE|MATERIALIZED VIEW) IF NOT EXISTS [\w.]+|CREATE OR REPLACE VIEW [\w.]+", statement
    ):
        statement = statement.replace(found[0], f"{found[0]} {_ON}")
        if found[1] == "MATERIALIZED VIEW":  # of what has come to this shard
            statement = re.sub(r"FROM otel\.(\w+)", r"FROM otel.\1_local", statement)
        return [f"{statement};"]
    raise ValueError(f"cluster.py does not know what to make of: {statement[:80]}")


if __name__ == "__main__":
    sys.stdout.write(f"{cluster_sql()}\n")
