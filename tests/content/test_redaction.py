"""What never gets as far as a record, although content is captured."""

from __future__ import annotations

import base64
import json
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_llm.content import capture, redaction, secrets
from otel_llm.content.parts import TRUNCATED
from otel_llm.conventions import semconv as s
from otel_llm.settings import reload
from otel_llm.support import faults

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@pytest.fixture(autouse=True)
def _capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CAPTURE, "SPAN_ONLY")
    reload()
    yield
    redaction.use(None)
    redaction._loaded = None
    monkeypatch.undo()
    reload()


def recorded(text: str, **settings: str) -> str | None:
    """What becomes of a text in a user's message; None where the message is not recorded."""
    attributes = capture.on_span({s.INPUT_MESSAGES: [{"role": "user", "parts": [{"type": "text", "content": text}]}]})
    if s.INPUT_MESSAGES not in attributes:
        return None
    return str(json.loads(attributes[s.INPUT_MESSAGES])[-1]["parts"][0]["content"])


# Made of pieces, so that no scanner takes this file for one that holds keys.
KEYS = [
    "sk-" + "proj-Ab12Cd34Ef56Gh78Ij90",
    "sk-" + "ant-api03-Ab12Cd34Ef56Gh78",
    "gh" + "p_Ab12Cd34Ef56Gh78Ij90Kl12Mn34Op56Qr78",
    "github" + "_pat_11ABCDEFG0123456789_abcdefghij",
    "AK" + "IAIOSFODNN7EXAMPLE",
    "AI" + "zaSyA1234567890abcdefghijklmnopqrstuv",
    "xox" + "b-123456789012-abcdefghijkl",
    "h" + "f_abcdefghijklmnopqrstuvwxyz012345",
    "sk" + "_live_4eC39HqLyjWDarjtT1zdp7dc",
    "ey" + "JhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nIBAAKCAQ\n-----END RSA PRIVATE KEY-----",
    "Bearer " + "abcdefgh12345678",
    "bearer " + "abc.def-ghi_jkl=",
    "api_key" + "=abcdef123456",
    '"password": ' + '"correct-horse"',
    "AWS_SECRET_ACCESS_KEY" + "=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
]


@pytest.mark.parametrize("key", KEYS)
def test_keys_are_masked(key: str) -> None:
    told = recorded(f"use {key} and go on")
    assert told is not None
    assert "[redacted: api key]" in told
    assert key[-10:].strip('"') not in told
    assert told.startswith("use ")
    assert told.endswith("and go on")


BEGINNINGS = [
    *("sk-", "rk-", "sk_live_", "rk_test_", "whsec_", "wh_live_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    *("github_pat_", "glpat-", "AIza", "ya29.", "xoxb-", "xoxp-", "hf_", "hf-", "gsk_", "gsk-", "npm_", "npm-"),
    *("r8_", "r8-", "dop_v1_", "dop_v1-", "lsv2_pt_", "lsv2_sk-", "xai-", "xai_", "pplx-", "pplx_", "pypi-"),
]
NAMES = [
    *("Bearer ", "AUTHORIZATION: Basic ", "api_key=", "API-KEY: ", "apikey: ", "Secret-Key=", "secretAccessKey: "),
    *(
        "client_secret=",
        "Password: ",
        "PASSWD=",
        "access_token=",
        "Refresh-Token: ",
        "authToken: ",
        "pa\u017f\u017fword=",
    ),
]


@pytest.mark.parametrize("before", [*BEGINNINGS, "AKIA", "ASIA", "ABIA", "ACCA", *NAMES])
def test_each_kind_of_key_is_masked(before: str) -> None:
    secret = "0123456789ABCDEF" if before in ("AKIA", "ASIA", "ABIA", "ACCA") else "0123456789abcdefGHIJ0123456789"
    assert secrets.scrub_text(f"use {before}{secret} and go on").endswith(" and go on")
    assert secret not in secrets.scrub_text(f"use {before}{secret} and go on")


@pytest.mark.parametrize("text", ["ann@example.org", "first.last+tag@mail.example.co.uk", "jürgen@müller.example"])
def test_addresses_are_masked(text: str) -> None:
    assert recorded(f"write to {text}, please") == "write to [redacted: email], please"


@pytest.mark.parametrize("card", ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009"])
def test_cards_are_masked(card: str) -> None:
    assert recorded(f"pay with {card}.") == "pay with [redacted: card number]."


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112 is no card: the digits do not add up",
        "1763640000000000000 nanoseconds",
        "call +49 30 123456",
        "0.4111111111111111",
        "a task-force of risk-averse desk-bound people",
        "The bearer of this letter is known to me",
        "user@host",
        "the password is wrong",
        "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert recorded(text) == text


def test_what_is_inside_tool_arguments_is_masked() -> None:
    arguments = {"api_key": "short", "to": ["ann@example.org"], "card": 4111111111111111, "n": 3, "ok": True}
    attributes = capture.on_span({s.TOOL_CALL_ARGUMENTS: arguments})
    assert json.loads(attributes[s.TOOL_CALL_ARGUMENTS]) == {
        "api_key": "[redacted: api key]",
        "to": ["[redacted: email]"],
        "card": "[redacted: card number]",
        "n": 3,
        "ok": True,
    }
    assert arguments["api_key"] == "short"  # the app's own object


def test_the_patterns_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_REDACT_BUILTIN", "off")
    reload()
    assert recorded("write to ann@example.org") == "write to ann@example.org"


def test_a_hostile_text_takes_no_time() -> None:
    """Patterns that go back over a text again and again would take minutes here."""
    for text in (
        "a." * 8_000,
        "a@" * 8_000,
        "1 " * 8_000,
        "4-" * 8_000,
        "x" * 16_000 + "@",
        "bearer " * 2_000,
        "eyJ" * 5_000,
    ):
        secrets.scrub_text(text)


# --- the app's function -----------------------------------------------------------------------------------------------
def test_the_function_sees_every_message_and_what_it_returns_is_recorded() -> None:
    seen: list[dict[str, Any]] = []

    def redact(message: dict[str, Any]) -> dict[str, Any]:
        seen.append(json.loads(json.dumps(message)))
        for part in message["parts"]:
            if "content" in part:
                part["content"] = part["content"].replace("Ann", "X")
        return message

    redaction.use(redact)
    messages = [
        {"role": "user", "parts": [{"type": "text", "content": "I am Ann"}]},
        {"role": "assistant", "parts": [{"type": "text", "content": "Hello Ann"}]},
    ]
    told = capture.on_span(
        {
            s.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "Ann is a user"}],
            s.INPUT_MESSAGES: messages,
            s.TOOL_CALL_ARGUMENTS: {"a": 1},
            s.TOOL_CALL_RESULT: "done",
            s.TOOL_DEFINITIONS: [{"type": "function", "name": "f"}],
        }
    )
    assert "Ann" not in repr(told)
    assert "Hello X" in told[s.INPUT_MESSAGES]
    assert messages[0]["parts"][0]["content"] == "I am Ann"
    assert [message["role"] for message in seen] == ["system", "assistant", "user", "assistant", "tool", "system"]
    assert seen[3]["parts"] == [{"type": "tool_call", "arguments": {"a": 1}}]


def test_the_patterns_clean_what_the_function_returns() -> None:
    redaction.use(lambda message: {**message, "parts": [{"type": "text", "content": "ann@example.org"}]})
    assert recorded("x") == "[redacted: email]"


def test_none_drops_the_message() -> None:
    redaction.use(lambda message: None)
    assert recorded("x") is None


def raises(message: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"cannot read {message['parts'][0]['content']}")


@pytest.mark.parametrize(
    "redactor",
    [raises, lambda m: "text", lambda m: {"role": 3, "parts": []}, lambda m: {"role": "user", "parts": "text"}, lambda: None],
    ids=["raises", "text", "role", "parts", "arguments"],
)  # fmt: skip
def test_a_function_that_fails_records_nothing(redactor: Any, caplog: pytest.LogCaptureFixture) -> None:
    before = faults.counts.total()
    redaction.use(redactor)
    with caplog.at_level(logging.DEBUG, "otel_llm"):
        assert recorded("my secret") is None
    assert faults.counts.total() == before + 1
    assert "my secret" not in caplog.text


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="redact must be a function"):
        redaction.use("module:function")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["json", "no.such.module:f", "json:nothing", "json:__doc__", ":f", "json:", "ends:f"])
def test_a_name_that_is_wrong_records_nothing_and_says_so_once(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")  # a script that ends itself, which must not end the app
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OTEL_LLM_REDACT", name)
    reload()
    assert recorded("x") is None
    assert recorded("y") is None
    (line,) = caplog.messages
    assert line.startswith(f"OTEL_LLM_REDACT={name} ")
    assert line.endswith("no content is recorded. Give module:function, importable.")


def test_the_name_of_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mine")
    module.redact = lambda message: {**message, "parts": [{"type": "text", "content": "masked"}]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setenv("OTEL_LLM_REDACT", "mine:redact")
    reload()
    assert recorded("x") == "masked"
    redaction.use(lambda message: message)  # from code, which counts
    assert recorded("x") == "x"


# --- bounds -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LLM_CONTENT_LIMIT", "100")
    reload()


@pytest.mark.usefixtures("_short")
def test_a_long_text_is_cut_and_says_so() -> None:
    assert recorded("word " * 2_000_000) == "word " * 20 + TRUNCATED
    assert recorded("word " * 20) == "word " * 20


@pytest.mark.usefixtures("_short")
def test_a_key_across_the_cut_is_masked() -> None:
    key = KEYS[0]
    told = recorded("." * (100 - 8) + " " + key + "." * 10_000)
    assert told is not None
    assert key[:7] not in told


@pytest.mark.usefixtures("_short")
def test_of_a_long_conversation_the_newest_is_kept() -> None:
    messages = [{"role": "user", "parts": [{"type": "text", "content": f"{n} " + "x" * 80}]} for n in range(1_000)]
    told = json.loads(capture.on_span({s.INPUT_MESSAGES: messages})[s.INPUT_MESSAGES])
    assert len(told) < 20
    assert told[-1]["parts"][0]["content"].startswith("999 ")
    (left_out,) = told[0]["parts"]
    assert left_out == {"type": "omitted", "messages": 1_000 - (len(told) - 1)}


CODED = base64.b64encode(bytes(range(256)) * 300).decode()  # 102,400 characters


@pytest.mark.parametrize(
    "text",
    [CODED, f"see {CODED}", f'{{"image": "{CODED}"}}', f'{{"image": "{CODED}', f"data:image/png;base64,{CODED} and on"],
    ids=["alone", "in a sentence", "in JSON", "in JSON that was cut", "in an address"],
)
@pytest.mark.parametrize("as_it_came", [True, False], ids=["whole", "cut where a stream is"])
def test_binary_data_is_not_text(text: str, as_it_came: bool) -> None:
    told = recorded(text if as_it_came else text[:21_000])
    assert told is not None
    assert len(told) < 100
    assert CODED[:40] not in told


@pytest.mark.parametrize("text", ["-" * 2_000, "ACGT" * 500, "a/path/" * 200])
def test_a_long_line_is_no_data(text: str) -> None:
    assert recorded(f"see {text}!") == f"see {text}!"


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    "value",
    [
        [["x" * 90] * 1_000] * 1_000,
        [[0.25] * 1_000] * 1_000,
        {f"k{n}": {"a": ["x" * 90] * 1_000} for n in range(1_000)},
        [[[[]] * 1_000] * 1_000] * 1_000,
    ],
    ids=["texts", "numbers", "objects", "nothing"],
)
def test_an_attribute_is_bounded_whatever_is_in_it(value: Any) -> None:
    """16 texts of 100 characters, and what is looked at beyond."""
    told = capture.on_span({s.TOOL_CALL_RESULT: value})[s.TOOL_CALL_RESULT]
    assert len(told) < 50_000
    assert "omitted" in told


@pytest.mark.usefixtures("_short")
def test_of_a_long_message_the_first_parts_are_kept() -> None:
    parts = [{"type": "text", "content": f"{number} " + "x" * 80} for number in range(1_000)]
    (told,) = json.loads(capture.on_span({s.INPUT_MESSAGES: [{"role": "user", "parts": parts}]})[s.INPUT_MESSAGES])
    assert told["role"] == "user"
    kept, rest = told["parts"][:-1], told["parts"][-1]
    assert 10 < len(kept) < 100
    assert [part["content"].split()[0] for part in kept[:-1]] == [str(number) for number in range(len(kept) - 1)]
    assert kept[-1]["content"] in (parts[len(kept) - 1]["content"], TRUNCATED)
    assert rest == {"type": "omitted", "items": 1_000 - len(kept)}


SECRET = {"password": "correct-horse", "mail": "ann@example.org"}
MASKED = '{"password":"[redacted: api key]","mail":"[redacted: email]"}'


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("ann@example.org", "[redacted: email]"),
        (("ann@example.org", "x"), ["[redacted: email]", "x"]),
        (SECRET, MASKED),
        ((SECRET, SECRET), f"[{MASKED},{MASKED}]"),
        (b"ann@example.org", '{"type":"blob","size":15}'),
        (7, 7),
    ],
)
def test_what_others_captured_in_whatever_form(value: Any, told: Any) -> None:
    """Attributes can be structured since OpenTelemetry 1.40."""
    assert capture.foreign(value) == told
    redaction.use(lambda message: None)
    assert capture.foreign(value) == ([] if isinstance(told, list) else 7 if told == 7 else None)


def test_what_json_cannot_say() -> None:
    loop: list[Any] = []
    loop.append(loop)
    value = {
        "bytes": b"\xff",
        "big": 2**70,
        "nan": float("nan"),
        "lone": "\ud800",
        "loop": loop,
        "set": {1},
        "object": object(),
    }
    told = json.loads(capture.on_span({s.TOOL_CALL_ARGUMENTS: value})[s.TOOL_CALL_ARGUMENTS])
    assert (told["bytes"], told["big"], told["nan"], told["lone"], told["set"]) == (
        {"type": "blob", "size": 1}, str(2**70), None, "?", [1],
    )  # fmt: skip


TEXTS = (
    "hi",
    "key sk-proj-abcdefghijklmnopqrstuvwx1234 and a@b.example",
    "x" * 9_000,
    "é" * 300,
    "\ud800 a",
    "{" * 20,
    "",
)
LAST = ("stop", "sk-proj-abcdefghijklmnopqrstuvwx1234", 3, None)


@pytest.mark.parametrize("limit", ["4000", "20"])
@pytest.mark.parametrize("builtin", ["true", "false"])
def test_a_message_of_one_text_is_cleaned_as_any_other(
    limit: str, builtin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_LLM_CONTENT_LIMIT", limit)
    monkeypatch.setenv("OTEL_LLM_REDACT_BUILTIN", builtin)
    reload()

    def messages() -> list[dict[str, Any]]:
        asked = [
            {"role": role, "parts": [{"type": "text", "content": text}]}
            for role in ("user", "system", "an a@b.example", 1)
            for text in (*TEXTS, None, 5, ["a"])
        ]
        answered = [{**asked[0], "finish_reason": reason} for reason in LAST]
        others = [{"role": "user", "parts": []}, {**asked[0], "name": "a@b.example"}, {"role": "user", "parts": "a"}]
        return [*asked, *answered, *others, *answered]  # as an app may use an object twice

    given = messages()
    ours = capture.clean_messages(given)
    assert given == messages()  # none of the app's is changed
    monkeypatch.setattr(capture, "_only_text", lambda message: None)
    assert ours == capture.clean_messages(messages())
