"""How far the estimated tokens of calls that told no usage are from what is billed.

    python benchmarks/estimates.py                     # the recorded exchanges, the demo, and texts of this repository
    python benchmarks/estimates.py --store my.duckdb   # your own account

Every call that did report its usage is taken as one that did not, and estimated from all others but those of the same length,
which most likely said the same. The texts of this repository stand for longer talks than anybody has recorded: they are put
together at random, and their tokens counted by tiktoken, with the encoding of GPT-4 that LiteLLM brings along, where both are
installed (`pip install litellm`). What is shown is how far that is from the report: per model, the median and the 95th percentile
of the difference, in percent of what was reported. A call that is not estimated has too little like it in the store.

The recordings are not part of this repository. They are found beside it or by OTEL_LLM_RECORDINGS.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = Path(os.environ.get("OTEL_LLM_RECORDINGS", ROOT.parent / "shared" / "recordings"))
EXAMPLES = ("chat.py", "streaming.py", "agent.py")

_RESOURCES: dict[str, Callable[[Any], Any]] = {
    "/chat/completions": lambda client: client.chat.completions,
    "/responses": lambda client: client.responses,
    "/embeddings": lambda client: client.embeddings,
}


class Difference(NamedTuple):
    """What was estimated of a call, and reported."""

    model: str
    side: str
    estimated: int | None
    reported: int

    @property
    def percent(self) -> float | None:
        return None if self.estimated is None else abs(self.estimated - self.reported) / self.reported * 100


# --- traffic ---------------------------------------------------------------------------------------------------------
def record_recordings(store: Path, folder: Path) -> None:
    """Asks every recorded request again, of a transport that answers as it was answered."""
    import yaml

    import otel_llm

    otel_llm.instrument(store=store)
    try:
        for file in sorted(folder.rglob("*.yaml")):
            for interaction in yaml.safe_load(file.read_text())["interactions"]:
                _ask_again(interaction["request"], interaction["response"])
    finally:
        otel_llm.uninstrument()


def _ask_again(request: Any, response: Any) -> None:
    import httpx
    import openai

    address = str(request["uri"]).partition("?")[0]
    path = next((path for path in _RESOURCES if address.endswith(path)), None)
    if path is None or response["status"]["code"] != 200:
        return
    body = response["body"]["string"]
    content = body.encode() if isinstance(body, str) else body
    told = {name.lower(): values for name, values in response["headers"].items()}
    kind = told.get("content-type", ["application/json"])[0]
    headers = {"content-type": kind} | ({"content-encoding": "gzip"} if content.startswith(b"\x1f\x8b") else {})
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=content, headers=headers))
    with openai.OpenAI(
        base_url=address.removesuffix(path), api_key="none", http_client=httpx.Client(transport=answer), max_retries=0
    ) as client:
        create = _RESOURCES[path](client).create
        sent = request["body"]
        asked = json.loads(sent if isinstance(sent, str | bytes) else json.dumps(sent))
        known = inspect.signature(create).parameters
        extra = {name: value for name, value in asked.items() if name not in known}
        result = create(**{name: value for name, value in asked.items() if name in known}, extra_body=extra)
        if asked.get("stream"):
            for _ in result:
                pass


def record_demo(store: Path) -> None:
    """Runs the examples as `make demo` does."""
    sys.path.insert(0, str(ROOT / "examples"))
    from local_openai import LocalOpenAI

    with LocalOpenAI() as server:
        scripts = sysconfig.get_path("scripts")
        environment = {**os.environ, **server.environment, "OTEL_LLM_STORE": str(store)}
        environment["PATH"] = os.pathsep.join((scripts, environment.get("PATH", "")))
        for example in EXAMPLES:
            command = ["opentelemetry-instrument", "python", str(ROOT / "examples" / example)]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def make_up(store: Path, calls: int = 300) -> bool:
    """Makes up calls out of the texts of this repository; False where nothing can count their tokens."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None or importlib.util.find_spec("tiktoken") is None:
        return False
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    import tiktoken  # type: ignore[import-not-found, unused-ignore]

    from otel_llm.store.jobs import exclusive
    from otel_llm.store.paths import StorePaths

    encoding = tiktoken.get_encoding("cl100k_base")
    chance = random.Random(1)
    prose = [part for page in sorted(ROOT.glob("docs/*.md")) for part in page.read_text().split("\n\n")]
    code = [part for file in sorted(ROOT.glob("otel_llm/**/*.py")) for part in file.read_text().split("\n\n\n")]
    kinds = {"prose": prose, "code": code, "both": prose + code}

    def said(kind: str) -> str:
        return chance.choice(kinds[kind])[: chance.choice((15, 40, 150, 600, 2_000))] or "?"

    with exclusive.alone(StorePaths.of(store)) as connection:
        for number in range(calls):
            kind = chance.choice(tuple(kinds))
            asked = [said("prose"), *(said(kind) for _ in range(chance.choice((1, 1, 2, 3, 5, 9))))]
            answer = said(kind)
            # As OpenAI's cookbook counts them: three for each message and one for its role, and three for the answer to begin.
            asked_tokens = 3 + sum(4 + len(encoding.encode(text, disallowed_special=())) for text in asked)
            connection.execute(
                """INSERT INTO llm_usage (started_at, trace_id, span_id, operation, provider, request_model, status,
                    usage_source, input_chars, input_tokens, output_chars, output_tokens)
                VALUES (make_timestamptz(?), ?, ?, 'chat', 'openai', ?, 'ok', 'reported', ?, ?, ?, ?)""",
                [
                    *(number, f"{number:032x}", f"{number:016x}", kind, sum(map(len, asked)), asked_tokens),
                    *(len(answer), len(encoding.encode(answer, disallowed_special=()))),
                ],
            )
    return True


# --- what is estimated of it -----------------------------------------------------------------------------------------
def differences(store: Path) -> Iterator[Difference]:
    """Of every call in a store that reported its usage, what would be estimated of it."""
    from otel_llm.store import connect
    from otel_llm.store.merge import batch, estimates

    with connect(store) as connection:
        batch.prepare(connection)
        # The stored calls as they are: `batch` beside them is to have one that tells nothing.
        calls = connection.execute(
            """SELECT trace_id, span_id, request_model, input_chars, output_chars, input_tokens, output_tokens
            FROM llm_usage WHERE usage_source = 'reported' AND status = 'ok' AND input_chars > 0
            ORDER BY started_at"""
        ).fetchall()
        for trace_id, span_id, model, *told in calls:
            lengths, reported = told[:2], told[2:]
            for side, length, tokens in zip(("input", "output"), lengths, reported, strict=True):
                if not tokens or not length:
                    continue
                connection.execute("TRUNCATE batch")
                connection.execute(
                    """INSERT INTO batch BY NAME SELECT trace_id, span_id, started_at, provider, request_model, operation,
                        input_chars, output_chars, reasoning_chars, 'partial' AS status, true AS model_call,
                        false AS cache_hit, false AS refused
                    FROM llm_usage WHERE trace_id = ? AND span_id = ?""",
                    [trace_id, span_id],
                )
                others = f"FROM llm_usage WHERE {side}_chars IS DISTINCT FROM {length}"
                estimates.fill(connection, others, beside=False)
                (estimated,) = connection.execute(f"SELECT {side}_tokens FROM batch").fetchall()[0]
                yield Difference(model, side, estimated, tokens)


def table(found: list[Difference]) -> str:
    """Markdown: a row for each model."""
    lines = ["| model | calls | estimated | input: median | 95 % | output: median | 95 % |", "|---|" + "---:|" * 6]
    for model in sorted({one.model for one in found}):
        of_model = [one for one in found if one.model == model]
        inputs = [one for one in of_model if one.side == "input"]
        told = [one for one in inputs if one.percent is not None]
        cells = [figure for side in ("input", "output") for figure in _figures(of_model, side)]
        lines.append(f"| `{model}` | {len(inputs)} | {len(told)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(of_model: list[Difference], side: str) -> tuple[str, str]:
    percents = sorted(one.percent for one in of_model if one.side == side and one.percent is not None)
    if not percents:
        return "–", "–"
    high = percents[min(round(len(percents) * 0.95), len(percents) - 1)]
    return f"{statistics.median(percents):.0f} %", f"{high:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a store to look at, instead of the recordings and the demo")
    arguments = parser.parse_args()
    if arguments.store is not None:
        print(table(list(differences(arguments.store))))
        return
    with tempfile.TemporaryDirectory() as folder:
        recorded, demo = Path(folder) / "recordings.duckdb", Path(folder) / "demo.duckdb"
        if RECORDINGS.is_dir() and importlib.util.find_spec("yaml") is not None:
            record_recordings(recorded, RECORDINGS)
            print("the recordings", table(list(differences(recorded))), sep="\n\n")
        record_demo(demo)
        print("\nthe demo", table(list(differences(demo))), sep="\n\n")
        made_up = Path(folder) / "texts.duckdb"
        if make_up(made_up):
            print("\ntexts of this repository", table(list(differences(made_up))), sep="\n\n")


if __name__ == "__main__":
    main()
