"""Makes `docs/columns.md` from the comments of a new store.

    python docs/columns.py     # writes the page

The texts are in `otel_llm/store/file/schema/comments.sql`; tests/test_docs.py holds the page to them.
"""

from __future__ import annotations

from pathlib import Path

from otel_llm.store.file import database

PAGE = Path(__file__).with_name("columns.md")
INSIDES = (
    "commit_numbers",
    "journal_segments",
    "maintenance",
    "pending_exports",
    "received_rows",
    "replayed",
    "retracted_calls",
    "schema_version",
    "shipments",
)
HEAD = """# Tables, views and their columns

Any DuckDB client shows these texts: `SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'llm_usage'`. What you
may rely on stands in [stability](stability.md#tables-and-views). Unknown is NULL, never 0. (Made by `docs/columns.py` from the
comments in the store.)
"""


def page() -> str:
    """The text of the page."""
    with database.open_in_memory() as connection:
        database.migrate(connection)
        relations = connection.execute(
            """SELECT table_name, 'table', comment FROM duckdb_tables()
            UNION ALL SELECT view_name, 'view', comment FROM duckdb_views() WHERE NOT internal"""
        ).fetchall()
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal ORDER BY column_index"
        ).fetchall()
    order = (
        "llm_usage",
        "spans",
        "llm_events",
        "llm_runs",
        "llm_tool_calls",
        "llm_conversations",
        "llm_daily",
        "llm_scores",
        *INSIDES,
    )
    parts = [HEAD]
    for name, kind, comment in sorted(relations, key=lambda relation: order.index(relation[0])):
        comment = comment.partition(" otel-llm views ")[0]
        inside = " An inside: it may change with any version." if name in INSIDES else ""
        rows = [f"| `{column}` | {kind} | {text} |" for table, column, kind, text in columns if table == name]
        parts.append(
            "\n".join(
                [
                    f"## {name}",
                    "",
                    f"A {kind}. {comment}{inside}",
                    "",
                    "| column | type | |",
                    "|---|---|---|",
                    *rows,
                    "",
                ]
            )
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
