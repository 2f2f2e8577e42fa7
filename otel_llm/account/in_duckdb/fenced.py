"""The process behind the fence: reads one text of SQL from its stdin, writes its answer to stdout, and ends. See `fence`."""

from __future__ import annotations

import math
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson


def main() -> None:
    # Before the SQL is there: this is what takes time.
    import duckdb

    from otel_llm.store import StoreError, reader

    asked = orjson.loads(sys.stdin.buffer.read())
    if hasattr(signal, "alarm"):  # whoever asked may be killed, and could not stop it then
        signal.alarm(math.ceil(asked["seconds"]) + 1)
    try:
        connection = reader.connect_to_moment(Path(sys.argv[1]))
        answer = _run(connection, asked)
    except (duckdb.Error, StoreError, OSError) as error:
        answer = orjson.dumps({"error": " ".join(str(error).split())[:2000]})
    except MemoryError:
        answer = orjson.dumps({"error": "it took more memory than it may"})
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def _run(connection: Any, asked: dict[str, Any]) -> bytes:
    for setting, value in (
        ("memory_limit", f"'{asked['mb']}MB'"),
        ("max_temp_directory_size", "'1GB'"),
        ("enable_external_access", "false"),
        ("lock_configuration", "true"),
    ):
        connection.execute(f"SET {setting} = {value}")
    if not connection.extract_statements(asked["sql"]):
        return orjson.dumps({"error": "the SQL is empty"})
    result = connection.plain.execute(asked["sql"])
    described = result.description or []
    names = [str(column[0]) for column in described]
    rows: list[Any] = []
    size, cut = 0, False
    while not cut and (some := result.fetchmany(256)):
        for row in some:
            text = orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME)
            size += len(text)
            if len(rows) >= asked["rows"] or size > asked["bytes"]:
                cut = True
                break
            rows.append(orjson.Fragment(text))
    decimals = [at for at, column in enumerate(described) if str(column[1]).upper().startswith("DECIMAL")]
    return orjson.dumps({"names": names, "rows": rows, "cut": cut, "decimals": decimals})


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return str(value)


if __name__ == "__main__":
    main()
