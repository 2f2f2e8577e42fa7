"""What `deploy/` has: manifests that Kubernetes' types take and whose parts agree, images that hold what they say, recipes.

No cluster and no container engine runs any of it here. `MANIFESTS_BIN` names the program that knows Kubernetes' types (`.ci/tools`
builds it), and `OTEL_LLM_TEST_IMAGE` has the packages of the injected image fetched and used, which takes a minute.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from otel_llm import __version__
from otel_llm.cli import app
from tests.conftest import ROOT, LocalOpenAI, Rows, Run
from tests.integration.otlp_receiver import OtlpReceiver
from tests.integration.ports import free_ports

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OURS = "otel-llm"


def documents() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text("utf-8"))]


def workloads() -> list[dict[str, Any]]:
    return [document for document in documents() if "template" in document["spec"]]


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    pod = workload["spec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


def values(of: Any, key: str) -> Iterator[Any]:
    if isinstance(of, dict):
        for name, value in of.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(of, list):
        for item in of:
            yield from values(item, key)


# --- manifests -------------------------------------------------------------------------------------------------------


def test_kubernetes_knows_every_field() -> None:
    """All but the operator's own resource, whose types cannot be had."""
    if "MANIFESTS_BIN" not in os.environ:
        pytest.skip("NOT READ INTO KUBERNETES' TYPES: MANIFESTS_BIN does not name the program")
    files = [str(path) for path in MANIFESTS if path.name != "instrumentation.yaml"]
    result = subprocess.run([os.environ["MANIFESTS_BIN"], *files], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(documents()) - 1


def test_the_manifests_find_one_another() -> None:
    services = {it["metadata"]["name"]: it for it in documents() if it["kind"] == "Service"}
    for service in services.values():
        (workload,) = (it for it in workloads() if it["metadata"]["name"] == service["metadata"]["name"])
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        ports = {port["name"] for container in containers(workload) for port in container.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for workload in workloads():
        spec = workload["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        volumes = {volume["name"] for volume in spec["template"]["spec"].get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        mounted = {mount["name"] for it in containers(workload) for mount in it.get("volumeMounts", ())}
        assert mounted == volumes
        for container in containers(workload):
            ports = {port["name"] for port in container.get("ports", ())}
            assert {probe["port"] for probe in values(container, "httpGet")} <= ports
    # Whatever one is told to send to is a service with that port.
    text = "\n".join(path.read_text("utf-8") for path in MANIFESTS)
    for name, port in re.findall(r"\b(otel-llm-(?:serve|gateway)):(\d+)", text):
        assert int(port) in {each["port"] for each in services[name]["spec"]["ports"]}
    # One secret, made by the command that stands in serve.yaml, and none in a file.
    assert {it["name"] for it in values(documents(), "secretKeyRef")} == {OURS}
    assert {it["key"] for it in values(documents(), "secretKeyRef")} == {"token"}
    assert "kubectl create secret generic otel-llm --from-literal=token=" in text
    assert "Secret" not in {it["kind"] for it in documents()}


def test_the_gateway_of_the_cluster_is_that_of_the_files() -> None:
    (gateway,) = (it for it in workloads() if it["metadata"]["name"] == "otel-llm-gateway")
    (container,) = containers(gateway)
    files = [argument.removeprefix("--config=/etc/otelcol/") for argument in container["args"]]
    read: set[str] = set()
    for file in files:
        read.update(re.findall(r"\$\{env:(\w+)", (ROOT / "collector-config" / file).read_text("utf-8")))
        assert f"--from-file=collector-config/{file}" in (DEPLOY / "kubernetes" / "gateway.yaml").read_text("utf-8")
    assert {variable["name"] for variable in container["env"]} <= read
    compose = yaml.safe_load((ROOT / "collector-config" / "compose.yaml").read_text("utf-8"))
    assert container["image"] == compose["services"]["gateway"]["image"]


def test_who_shares_a_store_is_one_user_with_time_to_end() -> None:
    for workload in workloads():
        pod = workload["spec"]["template"]["spec"]
        of_the_pod = pod.get("securityContext", {}).get("runAsUser")
        sharing = [
            it for it in containers(workload) if "OTEL_LLM_STORE" in {each["name"] for each in it.get("env", ())}
        ]
        users = {it.get("securityContext", {}).get("runAsUser", of_the_pod) for it in sharing}
        assert users <= {10001}, workload["metadata"]["name"]
        for container in sharing:
            arguments = container.get("args", [])
            if "--grace" in arguments:
                grace = int(arguments[arguments.index("--grace") + 1])
                assert grace < pod["terminationGracePeriodSeconds"]


def test_commands_and_settings_are_ours() -> None:
    known = set(re.findall(r"OTEL_LLM_\w+", (ROOT / "otel_llm" / "settings.py").read_text("utf-8")))
    found = 0
    for container in (it for workload in workloads() for it in containers(workload)):
        if container["image"].startswith(f"{OURS}:"):
            name, *arguments = container["args"]
            command = app.otel_llm.get_command(click.Context(app.otel_llm), name)
            assert command is not None, name
            command.make_context(name, arguments)  # exits where an option is none of its own
            found += 1
        names = {variable["name"] for variable in container.get("env", ())}
        assert {name for name in names if name.startswith("OTEL_LLM_")} <= known
    assert found == 3


def test_images_are_named_without_a_place_and_hold_no_version_of_yesterday() -> None:
    ours = {image for image in values(documents(), "image") if str(image).startswith(OURS)}
    assert ours == {f"{OURS}:{__version__}", f"{OURS}-autoinstrumentation:{__version__}"}


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["Dockerfile", "autoinstrumentation/Dockerfile"])
def test_what_an_image_is_built_of_is_in_its_context(file: str) -> None:
    ignored = (DEPLOY / f"{file}.dockerignore").read_text("utf-8").split()
    assert ignored[0] == "*"
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    # What the build of a wheel reads.
    assert {"otel_llm", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= set(kept)
    assert f"docker build -f deploy/{file} " in (DEPLOY / file).read_text("utf-8")


def test_the_injected_image_has_every_python_that_is_supported() -> None:
    supported = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text("utf-8")
    )
    lines = re.findall(r"/packages \S+ (gnu|musl) ([\d. ]+)", (DEPLOY / "autoinstrumentation/Dockerfile").read_text())
    assert [libc for libc, _ in lines] == ["gnu", "musl"]
    for _, versions in lines:
        assert set(supported) <= set(versions.split())


INJECTED = """
import openai, sys
openai.OpenAI().chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}])
assert "duckdb" not in sys.modules and "pydantic" in sys.modules
print(sys.modules["otel_llm"].__file__, sys.modules["pydantic"].__file__, sep="\\n")
"""


@pytest.mark.skipif("OTEL_LLM_TEST_IMAGE" not in os.environ, reason="NOT TESTED: the packages of the injected image")
@pytest.mark.timeout(900)
def test_an_app_is_instrumented_by_what_the_operator_injects(
    tmp_path: Path, environment: dict[str, str], openai_server: LocalOpenAI, store_path: Path, rows: Rows
) -> None:
    """As the operator does it: an image that knows nothing of us, our folder on PYTHONPATH, and some variables."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    uv = tmp_path / "uv"
    subprocess.run([sys.executable, "-m", "venv", str(uv)], check=True, timeout=300)
    subprocess.run([str(uv / "bin/pip"), "install", "--quiet", "uv"], check=True, timeout=300)
    path = {**os.environ, "PATH": f"{uv / 'bin'}:{os.environ['PATH']}"}
    injected = tmp_path / "injected"
    other = "3.12" if version != "3.12" else "3.13"
    script = DEPLOY / "autoinstrumentation" / "packages"
    subprocess.run([str(script), str(injected), "gnu", version, other], check=True, timeout=600, env=path)
    subprocess.run([str(script), str(tmp_path / "musl"), "musl", version, other], check=True, timeout=600, env=path)
    # What is compiled is there for each, for the C library that is asked for, and nothing is there that could hide the app's.
    for folder, libc in ((injected, "gnu"), (tmp_path / "musl", "musl")):
        compiled = {file.name for file in folder.rglob("orjson*.so")}
        tags = {f"cpython-{each.replace('.', '')}" for each in (version, other)}
        assert {name.split(".")[1] for name in compiled} == {f"{tag}-x86_64-linux-{libc}" for tag in tags}
        assert not {"duckdb", "pydantic", "click", "rich", "httpx"} & {each.name for each in folder.iterdir()}

    app = tmp_path / "app"
    subprocess.run([sys.executable, "-m", "venv", str(app)], check=True, timeout=300)
    constraints = ROOT / "constraints.txt"
    subprocess.run(
        [str(app / "bin/pip"), "install", "--quiet", "-c", str(constraints), "openai"], check=True, timeout=600
    )
    instrumentation = yaml.safe_load((DEPLOY / "kubernetes" / "instrumentation.yaml").read_text("utf-8"))
    with OtlpReceiver(all_signals=True) as receiver:
        variables = {
            **{name: value for name, value in environment.items() if name.startswith(("OPENAI_", "OTEL_LLM_"))},
            "PATH": os.environ["PATH"],
            # The operator's.
            "PYTHONPATH": f"{injected}/opentelemetry/instrumentation/auto_instrumentation:{injected}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint("http/protobuf"),
            "OTEL_SERVICE_NAME": "injected",
            # The resource's.
            **{variable["name"]: variable["value"] for variable in instrumentation["spec"]["python"]["env"]},
        }
        result = subprocess.run(
            [str(app / "bin/python"), "-c", INJECTED], env=variables, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        ours, theirs = result.stdout.split()
        assert ours.startswith(str(injected))
        assert theirs.startswith(str(app))
        assert [span.name for span in receiver.spans] == ["chat gpt-4o-mini"]
        assert "gen_ai.client.inference.usage.input_tokens" in receiver.metrics
    # `otel-llm ship` beside it makes the row.
    (row,) = rows()
    (billed,) = openai_server.ledger
    assert (row["service_name"], row["input_tokens"]) == ("injected", billed.input_tokens)


# --- recipes ---------------------------------------------------------------------------------------------------------

FROZEN = """
import os, sys
sys.path.insert(0, sys.argv[1])
import lambda_handler
try:
    print(lambda_handler.handler({"user": "dora", "text": sys.argv[2]}, None))
finally:
    sys.stdout.flush()
    os._exit(0)  # frozen, and never woken
"""


@pytest.mark.parametrize("answers", [True, False])
def test_a_function_has_sent_its_call_when_it_answers(answers: bool, run_instrumented: Run, store_path: Path) -> None:
    with OtlpReceiver() as receiver:
        environment = receiver.environment("http/protobuf") | {
            "OTEL_LLM_STORE": "none",
            "OTEL_SERVICE_NAME": "summaries",
        }
        if not answers:
            environment["OPENAI_BASE_URL"] = f"http://127.0.0.1:{free_ports(1)[0]}/v1"
        run_instrumented(FROZEN, str(DEPLOY / "recipes"), "hello", env=environment, instrument=False)
        (span,) = receiver.spans
    assert span.attributes["user.id"] == "dora"
    assert span.attributes["otel_llm.module"] == "summaries"
    assert span.resource["service.name"] == "summaries"
    assert span.status_code == ("UNSET" if answers else "ERROR")
    assert not store_path.exists()
