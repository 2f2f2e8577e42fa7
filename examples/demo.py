"""`make demo`: runs the examples under `opentelemetry-instrument` against a local server and shows the account.

No key, no network: the server of `local_openai.py` stands in for OpenAI and keeps a ledger of what it billed, with which
the account is compared at the end. Exit code 0 where the two agree.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from local_openai import Call, LocalOpenAI

HERE = Path(__file__).resolve().parent
SCRIPTS = sysconfig.get_path("scripts")
DIRECTORY = Path(".demo")
EXAMPLES = ("chat.py", "streaming.py", "agent.py")
FOREIGN = ("OTEL_", "OPENAI_", "LANGSMITH_", "LANGCHAIN_")
BY_CALL = """
    select module, agent_name, operation, request_model, status, input_tokens, output_tokens, cost_usd
    from llm_usage order by started_at
"""


def main() -> int:
    """Runs everything; returns the exit code."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    store = DIRECTORY / "usage.duckdb"
    with LocalOpenAI() as server:
        # Nothing of the user's own settings: the demo shows what happens without any.
        mine = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment = {**mine, **server.environment, "OTEL_LLM_STORE": str(store)}
        # Where other distros or instrumentors are installed too: ours, and what the user says not to load.
        environment["OTEL_PYTHON_DISTRO"] = "otel_llm"
        if disabled := os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"):
            environment["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = disabled
        environment["PATH"] = os.pathsep.join((SCRIPTS, environment.get("PATH", "")))

        def run(command: list[str]) -> None:
            shown = " ".join(f'"{" ".join(part.split())}"' if " " in part else part for part in command)
            print(f"\n$ {shown}", flush=True)
            subprocess.run(command, env=environment, check=True)

        for example in EXAMPLES:
            run(["opentelemetry-instrument", "python", os.path.relpath(HERE / example)])
        run(["otel-llm", "show"])
        print(f"\nThe account is in {store}:", flush=True)
        run(["otel-llm", "sql", BY_CALL])
        query = """
            select count(*) as n, sum(input_tokens) filter (usage_source = 'reported') as input,
                   sum(output_tokens) filter (usage_source = 'reported') as output,
                   list(response_id) filter (status = 'partial') as left_early
            from llm_usage
        """
        command = ["otel-llm", "sql", "--format", "json", query]
        answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        agree = compare(json.loads(answer.stdout)[0], server.brief_ledger)
        run(["otel-llm", "usage", "--by", "module,user,model"])
    return 0 if agree else 1


def compare(account: dict[str, Any], billed: list[Call]) -> bool:
    """Says whether the account has what the server billed."""
    # What the server did not report, or the app did not stay to hear (the stream that it left), cannot be in the account.
    left_early = account.pop("left_early") or ()
    reported = [call for call in billed if call.reported and call.response_id not in left_early]
    ledger = {
        "n": len(billed),
        "input": sum(call.input_tokens or 0 for call in reported),
        "output": sum(call.output_tokens or 0 for call in reported),
    }
    agree = account == ledger
    verdict = "Every token agrees." if agree else f"They differ: billed {ledger}, recorded {account}."
    print(f"\nThe server billed {ledger['n']} calls; the account has {account['n']}. {verdict}")
    return agree


if __name__ == "__main__":
    sys.exit(main())
