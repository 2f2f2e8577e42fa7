"""Every variable that we or OpenTelemetry read, with nonsense in it: the app is what it is without us, and the call is recorded.

`make test` gives each variable two kinds of nonsense, one in each way of starting, to several at a time where they have nothing to
do with each other; with `OTEL_LLM_TEST_EVERY_KIND=1` it gets every value of every kind in both, alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from local_openai import LocalOpenAI

from otel_llm.store.reader import connect
from tests.conftest import OTHER_INSTRUMENTORS
from tests.integration.otlp_receiver import OtlpReceiver

ASK = """
from openai import OpenAI

client = OpenAI(max_retries=0)
question = [{"role": "user", "content": "Hello"}]
print(client.chat.completions.create(model="MODEL", messages=question).choices[0].message.content)
"""
TELL = """
from otel_llm.settings import settings
with open(PLACE, "w") as file:
    file.write(str(settings().store))
"""
WAYS = {
    "code": "import otel_llm\notel_llm.instrument()\n",
    # As in `sitecustomize`, of which Python says in one line that it has failed.
    "launch": """
try:
    from opentelemetry.instrumentation.auto_instrumentation import initialize
    initialize()
except Exception as error:
    import sys
    sys.stderr.write(f"Error in sitecustomize: {error}")
""",
}
KINDS: dict[str, tuple[str, ...]] = {
    "nothing": ("", " ", "\t "),
    "a word": ("nonsense", "none", "a,b,,c", "a=b;c"),
    "a number": ("-1", "99999999999999999999", "1e999", "nan", "0"),
    "a bad URL": ("http://[::1:4317", "http://localhost:$PORT", "http://localhost:99999999", "://", "https://", "//@:"),
    "characters": ("\x01\x1b[31m\n\r", "\udcff\udcfe\udced", "💥\u202e", "x" * 100_000, "%", "\\", "%s{}"),
    "a path": ("{dir}", "{dir}/file/below", "/dev/null", "{dir}/secret", "~nobody-of-that-name/x"),
}
NO_DATABASE = "secret"
"""A text file."""
PARTS = 2
"""For several workers."""
TOGETHER = 12
"""Variables that are wrong at once; each alone where something then is."""
EVERY_KIND = bool(os.environ.get("OTEL_LLM_TEST_EVERY_KIND"))
_OTHERS = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "TZ", "COLUMNS", "TERM", "NO_COLOR", "LANG")
"""What is read besides, by us or by what we stand on."""
_IN_SITECUSTOMIZE = "OTEL_PROPAGATORS"
"""With a wrong one, OpenTelemetry's own launcher cannot be imported, whatever is installed beside it: nothing of ours is run."""


def variables() -> list[str]:
    """Every name of a variable in the sources of OpenTelemetry and in ours."""
    found = set(_OTHERS)
    for package in ("opentelemetry", "otel_llm"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        for place in spec.submodule_search_locations:
            for file in Path(place).rglob("*.py"):
                if "semconv" not in file.parts:
                    found.update(re.findall(r"""["'`](_?OTEL_[A-Z][A-Z0-9_]*[A-Z0-9])["'`=]""", file.read_text()))
    return sorted(found)


VARIABLES = variables()


class ForkServer:
    """See fork_server.py."""

    def __init__(self, env: dict[str, str], *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py"), *arguments],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.read_at_import: list[str] = json.loads(self._answer())

    def run(self, code: str, env: dict[str, str | None], out: Path) -> int:
        """Runs an app; returns its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"env": env, "code": code, "out": str(out)}) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server has ended"
        return line


class Apps:
    """Runs apps in either server: where the variable is read as OpenTelemetry is imported, in the one that has not done so."""

    def __init__(self, env: dict[str, str], directory: Path) -> None:
        self.directory = directory
        self.runs = 0
        self._cold, self._warm = ForkServer(env, "cold"), ForkServer(env)
        self.read_at_import = self._warm.read_at_import
        self.answer = self.run(ASK, {})[1]
        """What the app prints without us."""
        assert self.answer

    def run(self, code: str, env: dict[str, str | None]) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of an app."""
        self.runs += 1
        out = self.directory / f"run{self.runs}"
        server = self._cold if set(env) & set(self.read_at_import) else self._warm
        code_ = server.run(code, env, out)
        texts = [Path(f"{out}.{name}").read_text(errors="backslashreplace") for name in ("stdout", "stderr")]
        return code_, texts[0], texts[1]

    def close(self) -> None:
        self._cold.close()
        self._warm.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver(all_signals=True) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def apps(
    _openai_process: LocalOpenAI, receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Apps]:
    directory = tmp_path_factory.mktemp("hostile")
    home = directory / "home"
    home.mkdir()
    (directory / "file").touch()
    (directory / NO_DATABASE).write_text("no key, and no certificate")
    foreign = ("OTEL_", "_OTEL_", "OPENAI_", "LANG", "XDG_", "PYTHON", "TMPDIR")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        **_openai_process.environment,
        "HOME": str(home),
        "OTEL_PYTHON_DISTRO": "otel_llm",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(OTHER_INSTRUMENTORS),
        # All that can be set up is, so that every variable is read.
        **receiver.environment("http/protobuf"),
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_TRACES_EXPORTER": "otlp,duckdb",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
    }
    apps = Apps(env, directory)
    yield apps
    apps.close()


def check(apps: Apps, way: str, given: dict[str, str | None]) -> list[str]:
    """What is wrong with a run."""
    number = apps.runs + 1
    place = apps.directory / f"place{number}"
    own_store = (
        {} if set(given) & {"XDG_DATA_HOME", "TMPDIR"} else {"OTEL_LLM_STORE": f"{apps.directory}/{number}.duckdb"}
    )
    env = {**own_store, **given}
    # Of this run alone: where nothing else can be written the store is among the temporary files, where it stays.
    model = f"model-{uuid4().hex}"
    ask = ASK.replace("MODEL", model)
    code, stdout, stderr = apps.run(WAYS[way] + ask + TELL.replace("PLACE", repr(str(place))), env)
    wrong = []
    if code != 0:
        wrong.append(f"exit code {code}")
    if stdout != apps.answer and stdout != apps.run(ask, env)[1]:
        wrong.append(f"printed {stdout!r}")
    if "/otel_llm/" in stderr:
        wrong.append("a traceback of ours")
    if not wrong and not (way == "launch" and "Error in sitecustomize" in stderr and _IN_SITECUSTOMIZE in given):
        where = place.read_text()
        if where == "None":
            if "no account is kept" not in stderr and "none" not in given.values():
                wrong.append("no account, and no word about it")
        elif (
            (count := calls(where, model)) != 1
            and not (
                "OTEL_LLM_STORE" in given and "1 calls that had ended are lost" in stderr  # where a file cannot be made
            )
            and given.get("OTEL_TRACES_EXPORTER") != "none"
        ):
            wrong.append(f"{count} rows in {where[:80]!r}")
    return [f"{problem}\n{stderr[-1500:]}" for problem in wrong]


def calls(store: str, model: str) -> int | str:
    """How many calls of a model are recorded."""
    try:
        if Path(store).name == NO_DATABASE:  # it stays as it is, and the account in the journal beside it
            return sum(f'"{model}"' in file.read_text() for file in Path(f"{store}.journal").glob("*.jsonl"))
        with connect(store) as connection:
            return int(
                connection.execute("SELECT count(*) FROM llm_usage WHERE request_model = ?", [model]).fetchall()[0][0]
            )
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def cases(index: int, way: str) -> Iterator[str]:
    """The values that a variable gets."""
    turn = index + 3 * list(WAYS).index(way)
    for number, values in enumerate(KINDS.values()):
        if EVERY_KIND:
            yield from values
        elif number == turn % len(KINDS):
            yield values[turn // len(KINDS) % len(values)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(3600 if EVERY_KIND else 240)
def test_nonsense_in_every_variable(part: int, way: str, apps: Apps, receiver: OtlpReceiver) -> None:
    wrong = []
    for number, names in enumerate(groups()):
        if number % PARTS == part:
            wrong += tried(apps, receiver, way, names, number)
    assert not wrong, "\n".join(wrong)


ALONE = {"OTEL_LLM_STORE", "OTEL_SDK_DISABLED", "OTEL_PYTHON_DISTRO", "OTEL_TRACES_EXPORTER", "TMPDIR", "XDG_DATA_HOME",
         "OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE", _IN_SITECUSTOMIZE}  # fmt: skip
"""What decides whether others are read, or where the account is."""


def groups() -> list[list[str]]:
    """The variables, as they are tried together."""
    others = [name for name in VARIABLES if name not in ALONE]
    width = 1 if EVERY_KIND else TOGETHER
    # From all over the alphabet: those of one kind have one prefix, and the first that is wrong may be the last that is read.
    count = -(-len(others) // width)
    return [[name] for name in VARIABLES if name in ALONE] + [others[first::count] for first in range(count)]


def tried(apps: Apps, receiver: OtlpReceiver, way: str, names: list[str], turn: int) -> list[str]:
    """What is wrong where these variables are."""
    wrong = []
    values = {name: list(cases(VARIABLES.index(name), way)) for name in names}
    for number in range(len(values[names[0]])):
        given: dict[str, str | None] = {
            name: values[name][number].replace("{dir}", str(apps.directory)) for name in names
        }
        if (turn + number) % 2:
            grpc = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint("grpc")}
            given = {**grpc, **given}
        problems = check(apps, way, given)
        if problems and len(names) > 1:
            alone = [problem for name in names for problem in tried(apps, receiver, way, [name], turn)]
            return alone or [f"{names} together: {problem}" for problem in problems]
        wrong += [f"{names[0]}={values[names[0]][number][:60]!r}: {problem}" for problem in problems]
    return wrong


@pytest.mark.parametrize("way", WAYS)
def test_nonsense_everywhere_at_once(way: str, apps: Apps) -> None:
    spared = {_IN_SITECUSTOMIZE, "OTEL_LLM_STORE", "OTEL_SDK_DISABLED", "OTEL_PYTHON_DISTRO", "TMPDIR", "XDG_DATA_HOME"}
    for turn, values in enumerate(KINDS.values()):
        if not EVERY_KIND and turn % len(WAYS) != list(WAYS).index(way):
            continue
        nonsense = values[0].replace("{dir}", str(apps.directory))
        given: dict[str, str | None] = {name: nonsense for name in VARIABLES if name not in spared}
        assert check(apps, way, given) == []


def test_every_variable_that_is_read_is_tried(apps: Apps) -> None:
    assert {"OTEL_PROPAGATORS", "OTEL_PYTHON_CONTEXT"} <= set(apps.read_at_import) <= {*VARIABLES, *apps.read_at_import}
    read = {name for name in apps.read_at_import if name.startswith(("OTEL_", "_OTEL_"))}
    assert read <= set(VARIABLES)
    documented = (Path(__file__).parents[2] / "docs").glob("*.md")
    named = {name for page in documented for name in re.findall(r"\bOTEL_LLM_[A-Z_]+[A-Z]\b", page.read_text())}
    assert {name for name in named if name not in VARIABLES} <= {"OTEL_LLM_TEST_EVERY_KIND"}


# --- platforms, libraries and homes -------------------------------------------------------------------------------------

BREAK = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == NAME or name.startswith(NAME + "."):
            raise ERROR
for name in list(sys.modules):
    if name == NAME or name.startswith(NAME + "."):
        del sys.modules[name]
sys.meta_path.insert(0, Finder())
"""
USES = """
import otel_llm
from otel_llm import llm_context, subscribe
subscription = subscribe(lambda event: None)
with llm_context("module", user_id="user"):
    pass
"""
FLUSH = "\notel_llm.flush()\n"
NO_ACCOUNT = "no call is recorded in a store"
WINDOWS = """
import os, sys
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
for name in ("register_at_fork", "fork", "getuid", "geteuid", "getgid", "fchmod", "fchown", "chown"):
    if hasattr(os, name):
        delattr(os, name)
"""


def run_broken(
    apps: Apps, preamble: str, way: str, env: dict[str, str | None] | None = None
) -> tuple[int | str, list[str]]:
    """How many calls are recorded, and what was said of it, where the app is what it is without us."""
    number = apps.runs + 1
    store = f"{apps.directory}/{number}.duckdb"
    model = f"model-{uuid4().hex}"
    code = preamble + WAYS[way] + USES + ASK.replace("MODEL", model) + FLUSH
    # In the server that has imported nothing of ours.
    exit_code, stdout, stderr = apps.run(code, {"OTEL_LLM_STORE": store, "OTEL_PROPAGATORS": None, **(env or {})})
    assert (exit_code, stdout) == (0, apps.answer), stderr
    assert "Traceback" not in stderr, stderr
    return calls(store, model), [line for line in stderr.splitlines() if line.strip()]


MISSING = "ModuleNotFoundError(f'No module named {name!r}', name=name)"
BROKEN = "RuntimeError('broken')"
EXITS = "SystemExit(3)"


@pytest.mark.parametrize(
    ("way", "error"),
    [
        ("code", MISSING),
        ("launch", BROKEN),
        ("code", EXITS),
        *([("code", BROKEN), ("launch", MISSING)] if EVERY_KIND else []),
    ],
)
@pytest.mark.parametrize("module", ["fcntl", "orjson", "platformdirs", "genai_prices", "rich", "click"])
def test_a_library_is_missing_or_broken(module: str, error: str, way: str, apps: Apps) -> None:
    preamble = BREAK.replace("NAME", repr(module)).replace("ERROR", error)
    recorded, said = run_broken(apps, preamble, way, {"OTEL_TRACES_EXPORTER": None})
    if module in ("fcntl", "orjson"):
        (line,) = said
        assert NO_ACCOUNT in line and recorded != 1
    else:
        assert recorded == 1
        assert not any(NO_ACCOUNT in line for line in said)


@pytest.mark.parametrize("way", WAYS)
def test_without_duckdb_the_journal_has_it(way: str, apps: Apps) -> None:
    preamble = BREAK.replace("NAME", "'duckdb'").replace("ERROR", "ModuleNotFoundError('No module named duckdb')")
    recorded, said = run_broken(apps, preamble, way)
    assert recorded == 1
    (line,) = said
    assert "No module named duckdb" in line and "journal" in line


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("exporters", [None, "otlp,duckdb"])
def test_another_platform(exporters: str | None, way: str, apps: Apps, receiver: OtlpReceiver) -> None:
    """Without what only POSIX has there is no account, which is said; what OTLP carries arrives."""
    before = len(receiver.spans)
    recorded, said = run_broken(apps, WINDOWS, way, {"OTEL_TRACES_EXPORTER": exporters})
    assert recorded != 1
    assert any(NO_ACCOUNT in line for line in said)
    assert not any("all the same" in line for line in said)
    assert len(receiver.spans) - before == 1


NO_HOME = """
import os, pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
"""


HOMES = [None, "{dir}/file", "{dir}/file/below", "relative"]
TMPS = ["{dir}/tmp", "{dir}/file"]


@pytest.mark.parametrize(
    ("home", "tmp", "way"),
    [
        (home, tmp, way)
        for h, home in enumerate(HOMES)
        for t, tmp in enumerate(TMPS)
        for w, way in enumerate(WAYS)
        if EVERY_KIND or (h + t + w) % 2 == 0
    ],
)
def test_no_home_directory(tmp: str, home: str | None, way: str, apps: Apps) -> None:
    (apps.directory / "tmp").mkdir(exist_ok=True)
    env: dict[str, str | None] = {
        "HOME": home and home.replace("{dir}", str(apps.directory)),
        "TMPDIR": tmp.replace("{dir}", str(apps.directory)),
        "XDG_DATA_HOME": None,
        "OTEL_LLM_STORE": None,
        "OTEL_PROPAGATORS": None,
    }
    none = "import tempfile\ntempfile._candidate_tempdir_list = lambda: []\n" if tmp.endswith("file") else ""
    place = apps.directory / f"place{apps.runs + 1}"
    model = f"model-{uuid4().hex}"
    code = NO_HOME + none + WAYS[way] + USES + ASK.replace("MODEL", model) + TELL.replace("PLACE", repr(str(place)))
    exit_code, stdout, stderr = apps.run(code, env)
    assert (exit_code, stdout) == (0, apps.answer), stderr
    (line,) = stderr.splitlines()
    assert "OTEL_LLM_STORE" in line
    where = place.read_text()
    if none:
        assert where == "None" and "no account is kept" in line
    else:
        assert where in line and where.startswith(str(apps.directory / "tmp"))
        assert calls(where, model) == 1
        assert Path(where).parent.stat().st_mode & 0o077 == 0


def test_a_store_that_is_named_needs_no_home_directory(apps: Apps) -> None:
    store = str(apps.directory / "named.duckdb")
    code = NO_HOME + f"import otel_llm\notel_llm.instrument(store={store!r})\n" + ASK
    env: dict[str, str | None] = dict.fromkeys(("HOME", "XDG_DATA_HOME", "OTEL_LLM_STORE", "OTEL_PROPAGATORS"))
    assert apps.run(code, env) == (0, apps.answer, "")
    assert calls(store, "MODEL") == 1
