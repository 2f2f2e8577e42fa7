"""A real OpenTelemetry Collector for tests, with the files of `collector-config/`, on free ports of loopback.

    with Collector(tmp_path, "gateway.yaml", "account.yaml", JAEGER_ENDPOINT=...) as gateway:
        ...  # something that sends to gateway.endpoint("grpc")

`OTELCOL_BIN` names the program (`eval "$(.ci/tools)"` builds it); a test that takes one is skipped without.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.conftest import ROOT
from tests.integration.otlp_receiver import Protocol
from tests.integration.ports import free_ports

DIRECTORY = ROOT / "collector-config"
PATIENCE = 120

needs_collector = pytest.mark.skipif(
    "OTELCOL_BIN" not in os.environ, reason="NOT SEEN IN A COLLECTOR: OTELCOL_BIN does not name one"
)


def eventually(condition: Callable[[], object], what: str) -> None:
    """Waits until `condition` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Collector:
    """A Collector that runs while the `with` does. Its queues stay in `directory`, for the next one there."""

    def __init__(self, directory: Path, *files: str | Path, changes: tuple[str, ...] = (), **environment: str) -> None:
        """`changes` are settings, each as `path::to::it: value`; `environment` is what the files read."""
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._grpc, self._http, self._health, self.own_port, self.metrics_port = free_ports(5)
        self._files = [DIRECTORY / file for file in files]
        self._changes = [
            f"receivers::otlp::protocols::grpc::endpoint: localhost:{self._grpc}",
            f"receivers::otlp::protocols::http::endpoint: localhost:{self._http}",
            *changes,
        ]
        names = {file.name for file in self._files}
        if not names <= {"dev.yaml"}:
            self._changes += [
                f"extensions::health_check::endpoint: localhost:{self._health}",
                "service::telemetry::metrics::readers: [{pull: {exporter: {prometheus: "
                f"{{host: localhost, port: {self.own_port}}}}}}}}}]",
            ]
        if "gateway.yaml" in names:
            self._changes.append(f"exporters::prometheus::endpoint: localhost:{self.metrics_port}")
        self._has_health = not names <= {"dev.yaml"}
        # Nothing of what a developer has set, and no proxy between the parts of a test.
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def endpoint(self, protocol: Protocol) -> str:
        """What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to."""
        return f"http://localhost:{self._grpc if protocol == 'grpc' else self._http}"

    def start(self) -> None:
        """Starts it and waits until its pipelines run; a test fails with its log where they do not."""
        self.launch()
        eventually(self.is_up, "the Collector does not come up")

    def launch(self) -> None:
        """Starts it, and waits for nothing."""
        self._log = (self.directory / "collector.log").open("ab")
        arguments = [
            *(f"--config={file}" for file in self._files),
            *(f"--config=yaml:{change}" for change in self._changes),
        ]
        self._process = subprocess.Popen(
            [os.environ["OTELCOL_BIN"], *arguments],
            cwd=self.directory,
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )

    def is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"the Collector ended with {self._process.returncode}:\n{self.log()[-4000:]}")
        if not self._has_health:
            return "Everything is ready" in self.log()
        try:
            with urllib.request.urlopen(f"http://localhost:{self._health}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def log(self) -> str:
        return (self.directory / "collector.log").read_text("utf-8", "replace")

    def scrape(self) -> str:
        """The metrics that Prometheus would read."""
        try:
            with urllib.request.urlopen(f"http://localhost:{self.metrics_port}/metrics", timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, ConnectionError):
            return ""

    def kill(self) -> None:
        """Ends it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._log.close()

    def wait(self) -> int:
        """Its exit code."""
        assert self._process is not None
        code = self._process.wait(PATIENCE)
        self._log.close()
        return code

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
