"""What a file may say, and that every mistake in it is told at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from otel_llm import LLMProvider
from otel_llm.routing import ProfileError
from otel_llm.routing.profiles import COOLDOWN, Deployment, load, parse
from otel_llm.settings import reload

GOOD = """
[profiles.fast]
timeout = 20
parameters = { temperature = 0.2, seed = 1 }

[profiles.fast.deployments.eu]
model = "gpt-4o-mini"
base_url = "https://eu.example.com/v1"
api_key_env = "EU_KEY"
weight = 3
limits = { requests_per_minute = 600 }
parameters = { seed = 2 }

[profiles.fast.deployments.us]
model = "gpt-4.1-mini"
timeout = 5

[profiles.normal.deployments.main]
model = "gpt-4o"
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def mistakes(document: object) -> list[str]:
    with pytest.raises(ProfileError) as caught:
        parse({"profiles": {"fast": {"deployments": {"eu": document}}}}, "llm.toml")
    assert str(caught.value).splitlines() == list(caught.value.mistakes)
    return [line.removeprefix("llm.toml, profile 'fast', deployment 'eu': ") for line in caught.value.mistakes]


def test_a_file_is_read_with_defaults_from_its_profiles(tmp_path: Path) -> None:
    profiles = load(written(tmp_path / "llm.toml", GOOD))
    assert list(profiles) == ["fast", "normal"]
    assert profiles["fast"].deployments == (
        Deployment(
            profile="fast",
            name="eu",
            model="gpt-4o-mini",
            base_url="https://eu.example.com/v1",
            api_key_env="EU_KEY",
            weight=3,
            requests_per_minute=600,
            timeout=20,
            parameters={"temperature": 0.2, "seed": 2},
        ),
        Deployment(
            profile="fast",
            name="us",
            model="gpt-4.1-mini",
            timeout=5,
            parameters={"temperature": 0.2, "seed": 1},
        ),
    )
    (alone,) = profiles["normal"].deployments
    # Alone, it has only the client's own retries.
    assert (alone.max_retries, alone.cooldown, alone.base_url) == (2, COOLDOWN, None)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path / "llm.toml",
        """
        default = "fast"
        [profiles.fast]
        colour = 1
        timeout = "long"
        [profiles.fast.deployments.eu]
        modle = "gpt-4o"
        api_key = "sk-secret"
        weight = -1
        [profiles.slow]
        """,
    )
    with pytest.raises(ProfileError) as caught:
        LLMProvider.from_file(path)
    eu = f"{path}, profile 'fast', deployment 'eu': "
    assert caught.value.mistakes == (
        f"{path}: unknown key 'default'; only [profiles.NAME] is read here",
        f"{path}, profile 'fast': unknown key 'colour'; known are api_key_env, base_url, cooldown, deployments, limits, "
        "max_retries, model_names, parameters, stream_usage, timeout, weight",
        f"{path}, profile 'fast': timeout = 'long' is not a number of seconds; write e.g. timeout = 20",
        f"{eu}unknown key 'modle'; did you mean model?",
        f"{eu}unknown key 'api_key'; a key does not belong in a file; name its variable in api_key_env",
        f"{eu}weight = -1 is not a number, 0 or more; write e.g. weight = 1",
        f'{eu}no model; add model = "gpt-4o-mini"',
        f"{path}, profile 'slow': no deployments; add [profiles.slow.deployments.main] with model = \"gpt-4o-mini\", "
        'or model_names = ["gpt-4o-mini"]',
    )
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model", "", "model = '' is not the name of a model"),
        ("base_url", "localhost:8000", "base_url = 'localhost:8000' is not an http or https URL"),
        ("api_key_env", "sk-abc", "api_key_env = 'sk-abc' is not the name of an environment variable"),
        ("weight", True, "weight = True is not a number"),
        ("weight", float("nan"), "weight = nan is not a number"),
        ("weight", 10**400, "weight = 1000000"),
        ("timeout", 0, "timeout = 0 is not a number of seconds"),
        ("max_retries", 1.5, "max_retries = 1.5 is not a whole number"),
        ("cooldown", -1, "cooldown = -1 is not a number of seconds"),
        ("stream_usage", "yes", "stream_usage = 'yes' is not true or false"),
        ("limits", 5, "limits = 5 is not a table"),
        ("limits", {"requests_per_minute": 0}, "limits.requests_per_minute = 0 is not a whole number, 1 or more"),
        ("limits", {"tokens": 1}, "unknown key 'limits.tokens'; known are requests_per_minute, max_concurrency"),
        (
            "limits",
            {"max_concurrency": 0},
            "limits.max_concurrency = 0 is not a whole number, 1 or more; write e.g. limits",
        ),
        ("limits", {"max_concurrency": 2.5}, "limits.max_concurrency = 2.5 is not a whole number"),
        ("max_concurrency", 5, "unknown key 'max_concurrency'; write limits = { max_concurrency = 8 }"),
        ("parameters", {"stream": True}, "parameters.stream cannot be set"),
        ("parameters", [], "parameters = [] is not a table"),
        ("requests_per_minute", 5, "unknown key 'requests_per_minute'; write limits"),
        ("temperature", 1, "unknown key 'temperature'; write parameters = { temperature = 0.2 }"),
    ],
)
def test_each_mistake_is_one_line_with_a_remedy(key: str, value: object, told: str) -> None:
    (line,) = mistakes({"model": "m", key: value})
    assert line.startswith(told)
    assert "; " in line


MANY = """
[profiles.fast]
model_names = ["a", "b"]
base_url = "http://127.0.0.1:1/v1"
api_key_env = "GATEWAY_KEY"
limits = { requests_per_minute = 60 }
parameters = { temperature = 0.2 }

[profiles.fast.deployments.spare]
model = "c"
weight = 0
limits = { max_concurrency = 1 }
"""
THE_SAME_IN_YAML = """
profiles:
  fast:
    model_names: [a, b]
    base_url: http://127.0.0.1:1/v1
    api_key_env: GATEWAY_KEY
    limits: {requests_per_minute: 60}
    parameters: {temperature: 0.2}
    deployments:
      spare: {model: c, weight: 0, limits: {max_concurrency: 1}}
"""


def test_models_by_their_names_share_what_the_profile_says(tmp_path: Path) -> None:
    toml = load(written(tmp_path / "llm.toml", MANY))
    a, b, spare = toml["fast"].deployments
    assert [(one.name, one.model, one.weight) for one in (a, b, spare)] == [
        ("a", "a", 1),
        ("b", "b", 1),
        ("spare", "c", 0),
    ]
    assert {one.base_url for one in (a, b, spare)} == {"http://127.0.0.1:1/v1"}
    assert {(one.api_key_env, one.requests_per_minute) for one in (a, b, spare)} == {("GATEWAY_KEY", 60)}
    assert spare.max_concurrency == 1 and a.max_concurrency is None and b.parameters == {"temperature": 0.2}
    assert (
        load(written(tmp_path / "llm.yaml", THE_SAME_IN_YAML))
        == load(written(tmp_path / "l.YML", THE_SAME_IN_YAML))
        == toml
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("a", "model_names = 'a' is not a list of names of models; write e.g. model_names = ["),
        (["a", ""], "model_names = ['a', ''] is not a list of names"),
        (["a", "a"], "'a' stands there twice; name each deployment once; one with a larger share has a table"),
        (["main"], "'main' stands there twice"),
    ],
)
def test_names_of_models_that_cannot_be(names: object, told: str) -> None:
    with pytest.raises(ProfileError) as caught:
        LLMProvider.from_dict({"profiles": {"p": {"model_names": names, "deployments": {"main": {"model": "m"}}}}})
    (line,) = caught.value.mistakes
    assert line.startswith(f"the profiles, profile 'p': {told}")


def test_yaml_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match=r"llm\.yaml: is not valid YAML \(.*line"):
        load(written(tmp_path / "llm.yaml", "profiles: [\n"))
    with pytest.raises(ProfileError, match=r"llm\.yaml: no profiles"):
        load(written(tmp_path / "llm.yaml", "- a\n"))
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ProfileError, match=r"YAML needs PyYAML; pip install 'otel-llm\[yaml\]'"):
        load(written(tmp_path / "llm.yaml", THE_SAME_IN_YAML))


@pytest.mark.parametrize("document", [{}, {"profiles": {}}, {"profiles": []}])
def test_no_profiles_at_all(document: dict[str, object]) -> None:
    with pytest.raises(ProfileError, match="the profiles: no profiles; add"):
        LLMProvider.from_dict(document)


def test_a_file_that_cannot_be_read_or_parsed(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        LLMProvider.from_file(tmp_path / "none.toml")
    with pytest.raises(ProfileError, match=r"llm\.toml: is not valid TOML \(.*line 2"):
        LLMProvider.from_file(written(tmp_path / "llm.toml", "[profiles]\nfast\n"))


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_PROFILES", str(written(tmp_path / "llm.toml", GOOD)))
    reload()
    try:
        assert LLMProvider.from_env().profiles == ("fast", "normal")
        monkeypatch.delenv("OTEL_LLM_PROFILES")
        reload()
        with pytest.raises(ProfileError, match="OTEL_LLM_PROFILES is not set"):
            LLMProvider.from_env()
    finally:
        monkeypatch.undo()
        reload()


def test_a_profile_or_key_that_is_missing_is_told_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_NO_KEY", raising=False)
    deployments = {name: {"model": "m", "api_key_env": "TEST_NO_KEY"} for name in ("eu", "us")}
    provider = LLMProvider.from_dict({"profiles": {"fast": {"deployments": deployments}}})
    with pytest.raises(ProfileError, match="there is no profile 'fats'; there is fast"):
        provider.client("fats")
    for make in (provider.client, provider.async_client, provider.create_invoker):
        with pytest.raises(ProfileError) as caught:
            make("fast")
        assert len(caught.value.mistakes) == 2
        assert "deployment 'us': TEST_NO_KEY is not set" in caught.value.mistakes[1]


def test_reading_profiles_imports_no_client_library() -> None:
    script = """
import sys
import otel_llm
otel_llm.LLMProvider.from_dict({"profiles": {"fast": {"deployments": {"main": {"model": "m"}}}}})
print([name for name in ("openai", "langchain_core", "duckdb") if name in sys.modules])
import os
os.environ["OPENAI_API_KEY"] = "x"
otel_llm.LLMProvider.from_dict({"profiles": {"fast": {"deployments": {"main": {"model": "m"}}}}}).client("fast")
print([name for name in ("openai", "langchain_core", "duckdb") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['openai']"]
