"""Profiles as a file or a mapping names them, and every mistake in them at once, a line each."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COOLDOWN = 30.0
"""Seconds for which a deployment that failed is left alone, where neither the profile nor `Retry-After` says."""
DEFAULT_KEY = "OPENAI_API_KEY"


class ProfileError(ValueError):
    """What is wrong with the profiles, or with the use of one. `mistakes` has one line each."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model at one address. Times are in seconds."""

    profile: str
    name: str
    model: str
    base_url: str | None = None
    """None: `OPENAI_BASE_URL`, else OpenAI's own."""
    api_key_env: str = DEFAULT_KEY
    weight: float = 1.0
    """Its share of the calls among the deployments of the profile; 0 is a spare, asked when no other can be."""
    requests_per_minute: int | None = None
    max_concurrency: int | None = None
    """Calls at once, within a process; a stream lasts until it is closed."""
    timeout: float | None = None
    max_retries: int = 0
    """Tries that the OpenAI client adds at this deployment before another is asked."""
    cooldown: float = COOLDOWN
    stream_usage: bool | None = None
    """Whether streams are asked for their usage; None leaves it to the client."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the chat completions API, where the call does not say."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What an app asks for by one name."""

    name: str
    deployments: tuple[Deployment, ...]


def load(path: Path) -> dict[str, Profile]:
    """The profiles of a TOML file, or of a YAML one. Raises ProfileError."""
    language = "YAML" if path.suffix.lower() in (".yaml", ".yml") else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        document = _from_yaml(text, path) if language == "YAML" else tomllib.loads(text)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from None
    except ProfileError:
        raise
    except ValueError as error:  # not of that language, not UTF-8
        raise ProfileError(f"{path}: is not valid {language} ({error}); correct it there") from None
    return parse(document, str(path))


def _from_yaml(text: str, path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError:
        raise ProfileError(f"{path}: YAML needs PyYAML; pip install 'otel-llm[yaml]', or write TOML") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return document if isinstance(document, Mapping) else {}


def parse(document: Mapping[str, Any], source: str) -> dict[str, Profile]:
    """The profiles of a mapping; `source` names it in the mistakes. Raises ProfileError."""
    reader = _Reader(source)
    profiles = reader.document(document)
    if reader.mistakes:
        raise ProfileError(*reader.mistakes)
    return profiles


@dataclass(frozen=True, slots=True)
class _Key:
    accepts: Callable[[Any], bool]
    expected: str
    example: str


def _is_number(value: object) -> bool:
    # Not beyond 64 bits: a number that is no float cannot be reckoned with.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_url(value: object) -> bool:
    try:
        return isinstance(value, str) and urlsplit(value).scheme in ("http", "https") and bool(urlsplit(value).hostname)
    except ValueError:
        return False


def _is_variable(value: object) -> bool:
    return isinstance(value, str) and value.isidentifier()


_KEYS: dict[str, _Key] = {
    "model": _Key(_is_text, "the name of a model", 'model = "gpt-4o-mini"'),
    "base_url": _Key(_is_url, "an http or https URL", 'base_url = "https://api.openai.com/v1"'),
    "api_key_env": _Key(_is_variable, "the name of an environment variable", 'api_key_env = "OPENAI_API_KEY"'),
    "weight": _Key(lambda value: _is_number(value) and value >= 0, "a number, 0 or more", "weight = 1"),
    "limits": _Key(lambda value: isinstance(value, Mapping), "a table", "limits = { requests_per_minute = 600 }"),
    "timeout": _Key(lambda value: _is_number(value) and value > 0, "a number of seconds", "timeout = 20"),
    "max_retries": _Key(lambda value: _is_count(value) and value >= 0, "a whole number", "max_retries = 1"),
    "cooldown": _Key(lambda value: _is_number(value) and value >= 0, "a number of seconds", "cooldown = 30"),
    "stream_usage": _Key(lambda value: isinstance(value, bool), "true or false", "stream_usage = true"),
    "parameters": _Key(lambda value: isinstance(value, Mapping), "a table", "parameters = { temperature = 0.2 }"),
}
_PROFILE_KEYS = {"deployments", "model_names", *_KEYS} - {"model"}
_NO_PARAMETERS = {
    # what the call says itself, or a key of the deployment
    "messages": "it comes with each call: take it out",
    "stream": "it comes with each call: take it out",
    "tools": "they come with each call: take them out",
    "metadata": "it comes with each call: take it out",
    "stream_options": "write stream_usage = true in the deployment instead",
    **dict.fromkeys(("model", "base_url", "timeout", "max_retries"), "write it in the deployment itself"),
    "api_key": "name its variable in api_key_env",
}
_LIMITS = {
    "requests_per_minute": "limits = { requests_per_minute = 600 }",
    "max_concurrency": "limits = { max_concurrency = 8 }",
}
_USUAL_PARAMETERS = {"temperature": 0.2, "top_p": 0.9, "seed": 1, "max_tokens": 500, "max_completion_tokens": 500}
"""Those that are looked for beside `model_names`, with an example each."""
_REMEDIES = {
    "api_key": "a key does not belong in a file; name its variable in api_key_env",
    **{name: f"write {example}" for name, example in _LIMITS.items()},
    **{name: f"write parameters = {{ {name} = {example} }}" for name, example in _USUAL_PARAMETERS.items()},
}


class _Reader:
    """Reads a document and collects the mistakes."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.mistakes: list[str] = []

    def document(self, document: Mapping[str, Any]) -> dict[str, Profile]:
        for key in document:
            if key != "profiles":
                self._add((), f"unknown key {key!r}", "only [profiles.NAME] is read here")
        profiles = document.get("profiles")
        if not isinstance(profiles, Mapping) or not profiles:
            self._add((), "no profiles", 'add [profiles.fast.deployments.main] with model = "gpt-4o-mini"')
            return {}
        return {name: self._profile(name, table) for name, table in profiles.items()}

    def _profile(self, name: str, table: Any) -> Profile:
        where = (f"profile {name!r}",)
        if not isinstance(table, Mapping):
            self._add(where, "is not a table", f"write [profiles.{name}]")
            return Profile(name, ())
        self._unknown(where, table, _PROFILE_KEYS)
        common = self._values(where, {key: value for key, value in table.items() if key in _PROFILE_KEYS})
        common.update(self._limits(where, common.pop("limits", {})))
        deployments = self._deployments(where, table)
        if not deployments:
            remedy = (
                f'add [profiles.{name}.deployments.main] with model = "gpt-4o-mini", or model_names = ["gpt-4o-mini"]'
            )
            self._add(where, "no deployments", remedy)
            return Profile(name, ())
        # Waiting for a deployment that fails helps only where there is no other.
        common.setdefault("max_retries", 0 if len(deployments) > 1 else 2)
        return Profile(name, tuple(self._deployment(name, *item, common) for item in deployments.items()))

    def _deployments(self, where: tuple[str, ...], table: Mapping[str, Any]) -> dict[str, Any]:
        """Those that have a table, and one by the name of each model in `model_names`."""
        tables = table.get("deployments", {})
        if not isinstance(tables, Mapping):
            self._add(where, "deployments is not a table", "write [profiles.NAME.deployments.main]")
            tables = {}
        names = table.get("model_names", [])
        if not isinstance(names, list) or not all(map(_is_text, names)):
            problem = f"model_names = {_shown(names)} is not a list of names of models"
            self._add(where, problem, 'write e.g. model_names = ["gpt-4o-mini", "gpt-4.1-mini"]')
            names = []
        for name in dict.fromkeys(names):
            if names.count(name) > 1 or name in tables:
                remedy = "name each deployment once; one with a larger share has a table of its own, with weight = 2"
                self._add(where, f"{name!r} stands there twice", remedy)
        return {**{name: {"model": name} for name in names}, **tables}

    def _deployment(self, profile: str, name: str, table: Any, common: dict[str, Any]) -> Deployment:
        where = (f"profile {profile!r}", f"deployment {name!r}")
        if not isinstance(table, Mapping):
            self._add(where, "is not a table", f"write [profiles.{profile}.deployments.{name}]")
            return Deployment(profile, name, "")
        self._unknown(where, table, set(_KEYS))
        values = self._values(where, table)
        if "model" not in table:
            self._add(where, "no model", f"add {_KEYS['model'].example}")
        values["parameters"] = {**common.get("parameters", {}), **values.get("parameters", {})}
        limits = self._limits(where, values.pop("limits", {}))
        values = {"model": "", **common, **values, **limits}
        return Deployment(profile, name, **values)

    def _values(self, where: tuple[str, ...], table: Mapping[str, Any]) -> dict[str, Any]:
        """The values of known keys that are as they should be."""
        good = {}
        for name, value in table.items():
            key = _KEYS.get(name)
            if key is None:
                continue
            if not key.accepts(value):
                self._add(where, f"{name} = {_shown(value)} is not {key.expected}", f"write e.g. {key.example}")
            else:
                good[name] = value
        for name in good.get("parameters", {}):
            if name in _NO_PARAMETERS:
                self._add(where, f"parameters.{name} cannot be set", _NO_PARAMETERS[name])
        return good

    def _limits(self, where: tuple[str, ...], limits: Mapping[str, Any]) -> dict[str, Any]:
        good = {}
        for name, value in limits.items():
            if name not in _LIMITS:
                self._add(where, f"unknown key 'limits.{name}'", f"known are {', '.join(_LIMITS)}")
            elif not _is_count(value) or value < 1:
                problem = f"limits.{name} = {_shown(value)} is not a whole number, 1 or more"
                self._add(where, problem, f"write e.g. {_LIMITS[name]}")
            else:
                good[name] = value
        return good

    def _unknown(self, where: tuple[str, ...], table: Mapping[str, Any], known: set[str]) -> None:
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
                self._add(where, f"unknown key {name!r}", _REMEDIES.get(name, remedy))

    def _add(self, where: tuple[str, ...], problem: str, remedy: str) -> None:
        self.mistakes.append(f"{', '.join((self._source, *where))}: {problem}; {remedy}")


def _shown(value: object) -> str:
    return repr(value)[:60]
