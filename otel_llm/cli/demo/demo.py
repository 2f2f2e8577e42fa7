"""`otel-llm demo`: runs the examples under `opentelemetry-instrument` against a local server and shows the account.

No key, no network: the server of `local_openai.py` stands in for OpenAI and keeps a ledger of what it billed, with which
the account is compared at the end. Exit code 0 where the two agree.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from otel_llm.cli.errors import CommandError
from otel_llm.cli.screen.output import printable, write_line

_SERVER: Final = "local_openai"
_EXAMPLES: Final = ("chat.py", "streaming.py", "agent.py")
_NEEDED: Final = ("openai", "uvicorn", "langchain", "langchain_openai")
_FOREIGN: Final = ("OTEL_", "OPENAI_", "LANGSMITH_", "LANGCHAIN_")
_BY_CALL: Final = """
    select module, agent_name, operation, request_model, status, input_tokens, output_tokens, cost_usd
    from llm_usage order by started_at
"""
_SUMS: Final = """
    select count(*) as n, sum(input_tokens) filter (usage_source = 'reported') as input,
           sum(output_tokens) filter (usage_source = 'reported') as output,
           list(response_id) filter (status = 'partial') as left_early
    from llm_usage
"""


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def demo(directory: Path | None) -> int:
    """Run three example programs against a local server, and show the account of them.

    \b
    Examples:
      otel-llm demo
      otel-llm demo tour

    No key and no network: a server on this machine stands in for OpenAI, and what it billed is compared with the account.
    DIRECTORY, which is made, gets the programs and their store, to look at and to change; a temporary one if left out. It needs
    the extra demo: pip install 'otel-llm[demo]'
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise CommandError(f"the demo needs {', '.join(missing)}: pip install 'otel-llm[demo]'")
    home = _programs()
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="otel-llm-demo-"))
    elif directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise CommandError(f"{directory} is there already; name a directory that is not")
    else:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"cannot make {directory}: {error.strerror}") from error
    directory = directory.absolute()
    for example in _EXAMPLES:
        shutil.copy(home / example, directory)
    try:
        return _run(home, directory)
    except subprocess.CalledProcessError as error:
        raise CommandError(
            f"{error.cmd[0]} ended with exit code {error.returncode}; what it said stands above"
        ) from error


def _programs() -> Path:
    """Where the examples and the server are: in a wheel beside this file, in a clone in a folder of their own."""
    here = Path(__file__).resolve().parent
    for home in (here, here.parents[2] / "examples"):
        if (home / f"{_SERVER}.py").is_file():
            return home
    raise CommandError("the programs of the demo are not installed; pip install --force-reinstall 'otel-llm[demo]'")


def _run(home: Path, directory: Path) -> int:
    local_openai = _load(home / f"{_SERVER}.py")
    store = directory / "usage.duckdb"
    with local_openai.LocalOpenAI() as server:
        # Nothing of the user's own settings: the demo shows what happens without any.
        mine = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        environment = {**mine, **server.environment, "OTEL_LLM_STORE": str(store)}
        # Where other distros or instrumentors are installed too: ours, and what the user says not to load.
        environment["OTEL_PYTHON_DISTRO"] = "otel_llm"
        if disabled := os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"):
            environment["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = disabled
        environment["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), environment.get("PATH", "")))

        def run(*command: str) -> None:
            shown = " ".join(f'"{" ".join(part.split())}"' if " " in part else part for part in command)
            write_line(f"\n$ {shown}")
            sys.stdout.flush()
            subprocess.run(_found(command, environment), cwd=directory, env=environment, check=True)

        for example in _EXAMPLES:
            run("opentelemetry-instrument", "python", example)
        run("otel-llm", "show")
        run("otel-llm", "sql", _BY_CALL)
        asked = _found(("otel-llm", "sql", "--format", "json", _SUMS), environment)
        answer = subprocess.run(asked, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        agree = _agree(json.loads(answer.stdout)[0], server.brief_ledger)
        run("otel-llm", "usage", "--by", "module,user,model")
    write_line(f"\nThe programs and their account are in {printable(str(directory))}.")
    return 0 if agree else 1


def _found(command: tuple[str, ...], environment: dict[str, str]) -> list[str]:
    """The command with the path of its program: this environment's, whatever an activated one has."""
    return [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]]


def _load(file: Path) -> Any:
    """The module of a file that is in no package."""
    spec = importlib.util.spec_from_file_location(_SERVER, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SERVER] = module  # as dataclasses need it
    spec.loader.exec_module(module)
    return module


def _agree(account: dict[str, Any], billed: list[Any]) -> bool:
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
    write_line(f"\nThe server billed {ledger['n']} calls; the account has {account['n']}. {verdict}")
    return agree
