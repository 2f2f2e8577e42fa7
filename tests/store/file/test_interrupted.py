"""What a killed process leaves of the call it was making."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from otel_llm.store import connect

STREAM = """
    import os, signal, sys
    import openai, otel_llm
    from otel_llm import llm_context

    otel_llm.instrument(store=sys.argv[1])
    client = openai.OpenAI(base_url=sys.argv[2], api_key="local")
    with llm_context("kitchen", user_id="u-1"):
        stream = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello."}], stream=True
        )
    next(stream)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stream_killed_after_its_first_chunk_keeps_the_time_to_it(store_path: Path, openai_server: Any) -> None:
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STREAM), str(store_path), openai_server.base_url], timeout=120
    )
    with connect(store_path) as connection:
        (row,) = connection.execute(
            """select status, request_model, module, user_id, stream, time_to_first_chunk_ms > 0, duration_ms, input_tokens
            from llm_usage"""
        ).fetchall()
    assert row == ("interrupted", "gpt-4o-mini", "kitchen", "u-1", True, True, None, None)
