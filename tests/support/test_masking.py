from __future__ import annotations

import pytest

from otel_llm.support import masking

SECRET = "S3CRET"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"http://joe:{SECRET}@127.0.0.1:9/v1?key={SECRET}", "http://127.0.0.1:9/v1?***"),
        (f"http://joe:{SECRET}/{SECRET}@host:9/p", "http://host:9/p"),
        (f"http://{SECRET}@host", "http://host"),
        (f"http://p@{SECRET}:w@host/x", "http://host/x"),
        (f"http://joe:p?{SECRET}@host/x", "http://host/x"),
        (f"http://[::1]:4317/x#{SECRET}", "http://[::1]:4317/x"),
        (f"clickhouse://user:{SECRET}@host:8123/db", "clickhouse://host:8123/db"),
        (f"cannot reach 'https://u:{SECRET}@host/a', sorry", "cannot reach 'https://host/a', sorry"),
        (f"Failed to export traces to joe:{SECRET}@127.0.0.1:9, error", "Failed to export traces to ***@127.0.0.1:9, error"),
        (f"errors resolving joe%3A{SECRET}%40host: x", "errors resolving ***@host: x"),
        (f"dns:///joe:{SECRET}@1.2.3.4:9", "dns://1.2.3.4:9"),
        (f"{SECRET}@host:4317 refused", "***@host:4317 refused"),
        (f"api_key={SECRET}; x", "api_key=***; x"),
        (f'{{"authorization": "Bearer {SECRET}"}}', '{"authorization": ***"}'),
        (f"password: '{SECRET}'", "password: ***'"),
        # What is no secret stays.
        ("http://localhost:$PORT", "http://localhost:$PORT"),
        ("http://[::1:4317", "http://[::1:4317"),
        ("http://host:4317/a@b", "http://host:4317/a@b"),
        ("/home/joe@corp.com/usage.duckdb", "/home/joe@corp.com/usage.duckdb"),
        ("nothing answers at localhost:4317 (Connection refused)", "nothing answers at localhost:4317 (Connection refused)"),
        # Nothing steers a terminal.
        ("a\x1b[31mb\nc\u202ed\udcff", "a\\x1b[31mb\\nc\\u202ed\\udcff"),
    ],
)  # fmt: skip
def test_what_is_said(said: str, expected: str) -> None:
    assert masking.text(said) == expected
    assert SECRET not in masking.text(said)


def test_it_is_not_long() -> None:
    assert len(masking.text("x" * 100_000)) == masking.LONGEST


@pytest.mark.parametrize(
    ("name", "value", "quoted"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://joe:{SECRET}@127.0.0.1:9", SECRET),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:9/?sig={SECRET}%2Fx", f"{SECRET}/x"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"authorization=Basic%20{SECRET},a=b", f"Basic {SECRET}"),
        ("HTTPS_PROXY", f"http://joe:{SECRET}@proxy:80", SECRET),
    ],
)
def test_what_the_environment_holds_is_not_told_however_it_is_quoted(
    name: str, value: str, quoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert masking.text(f"unexpected {quoted} in there") == "unexpected *** in there"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OTEL_RESOURCE_ATTRIBUTES", f"token={SECRET},service.name=shop, a={SECRET}=b", "token=***,service.name=shop, a=***"),
        ("OTEL_EXPORTER_OTLP_HEADERS", SECRET, "(set)"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", SECRET, "(set)"),
        ("OTEL_TRACES_EXPORTER", "otlp,duckdb", "otlp,duckdb"),
    ],
)  # fmt: skip
def test_settings(name: str, value: str, expected: str) -> None:
    assert masking.setting(name, value) == expected
