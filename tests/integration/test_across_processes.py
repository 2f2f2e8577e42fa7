"""One process begins what another learns the end of: the account has it once, on the row of the call that began it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

CREATE = """
import sys, openai, otel_llm
with otel_llm.llm_context("reports", user_id="dora"):
    response = openai.OpenAI().responses.create(model="gpt-4o-mini", input="hello there", background=True)
print(response.id, flush=True)
sys.stdin.readline()
"""
RETRIEVE = """
import sys, time, openai
client = openai.OpenAI()
while client.responses.retrieve(sys.argv[1]).status != "completed":
    time.sleep(0.01)
client.responses.retrieve(sys.argv[1])
"""
BATCH = """
import openai
client = openai.OpenAI()
client.batches.retrieve("batch_1")
list(client.batches.list())
"""


@pytest.mark.parametrize("order", ["ended", "killed", "running"])
def test_a_background_response(order, start_instrumented, run_instrumented, rows, openai_server):
    creator = start_instrumented(CREATE)
    response_id = creator.stdout.readline().strip()
    assert response_id.startswith("resp_")
    if order == "killed":
        os.kill(creator.pid, signal.SIGKILL)
    elif order == "ended":
        creator.stdin.close()
    if order != "running":
        creator.wait(timeout=120)
        assert [row["input_tokens"] for row in rows()] == [None]
    run_instrumented(RETRIEVE, response_id)
    if order == "running":
        assert [row["operation"] for row in rows()] == ["retrieve"]  # until the call itself is known
        creator.stdin.close()
        creator.wait(timeout=120)
    for _ in range(2):  # another process asks, and it makes no difference
        (row,) = rows()
        (billed,) = openai_server.ledger
        assert (row["operation"], row["status"], row["user_id"]) == ("chat", "ok", "dora")
        assert (row["response_id"], row["response_model"]) == (billed.response_id, billed.response_model)
        assert (row["input_tokens"], row["output_tokens"]) == (billed.input_tokens, billed.output_tokens)
        assert row["cost_usd"] > 0 and row["usage_source"] == "reported" and row["finish_reasons"] == ["stop"]
        run_instrumented(RETRIEVE, response_id)
    creating, *asking = rows("SELECT operation, span_id FROM spans ORDER BY started_at")
    assert (creating["operation"], creating["span_id"]) == ("chat", row["span_id"])
    assert {span["operation"] for span in asking} == {"retrieve"}


def test_a_response_that_nobody_here_created(run_instrumented, start_instrumented, rows, openai_server, tmp_path):
    creator = start_instrumented(CREATE, env={"OTEL_LLM_STORE": str(tmp_path / "elsewhere.duckdb")})
    response_id = creator.stdout.readline().strip()
    for _ in range(2):
        run_instrumented(RETRIEVE, response_id)
    (row,) = rows()
    assert (row["operation"], row["output_tokens"]) == ("retrieve", openai_server.ledger[0].output_tokens)


class Batches(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        usage = {"input_tokens": 1_000, "output_tokens": 100, "total_tokens": 1_100}
        batch = {"id": "batch_1", "object": "batch", "status": "completed", "model": "gpt-4o-mini", "usage": usage}
        batch |= {"created_at": 1_793_000_000, "completed_at": 1_793_000_060, "endpoint": "/v1/responses"}
        listed = {"object": "list", "data": [batch], "has_more": False, "first_id": None, "last_id": None}
        body = json.dumps(batch if self.path.endswith("batch_1") else listed).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def batches() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Batches)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_batch_that_two_see_completed(run_instrumented, rows, batches):
    for _ in range(2):
        run_instrumented(BATCH, env={"OPENAI_BASE_URL": batches})
    (row,) = rows()
    assert (row["operation"], row["response_id"], row["input_tokens"]) == ("batch", "batch_1", 1_000)
    assert len(rows("from spans")) == 2
