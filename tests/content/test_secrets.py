"""What the built-in patterns take for a secret, in whatever it is wrapped, and what they leave alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_llm.content import ordinary_words, secrets
from otel_llm.content.secrets import API_KEY, scrub_text

RECORDINGS = Path(__file__).resolve().parents[2].parent / "shared" / "recordings"


def nested(value: object, times: int) -> str:
    """JSON inside JSON inside JSON."""
    text = json.dumps(value)
    for _ in range(times):
        text = json.dumps({"status": 200, "body": text})
    return text


WRAPPED: dict[str, Callable[[str], str]] = {
    "as JSON": lambda text: text,
    "in a log line": lambda text: f"12:00 INFO got {text} in 3 ms",
    "cut at its end": lambda text: text[: text.rindex("!") + 1],
}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("times", range(5))
@pytest.mark.parametrize(
    "value",
    [
        {"password": "hunter2!"},
        {"api_key": "abc!"},
        {"token": "ab cd!"},
        {"secret": 'with "quotes"!'},
        {"pwd": "p!"},
        {"passwords": ["one!", "two!"]},
        {"auth": {"clientSecret": "x!"}},
        {"db": {"connection_string": "Server=a;Uid=b!"}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_a_secret_by_its_name_however_deep_it_is_escaped(value: dict[str, Any], times: int, wrap: str) -> None:
    told = scrub_text(WRAPPED[wrap](nested(value, times)))
    assert "!" not in told
    assert API_KEY in told


@pytest.mark.parametrize("times", range(4))
def test_what_is_not_secret_stays_to_the_letter(times: int) -> None:
    text = nested({"max_tokens": 5, "key": "value", "tokens": [1, 2], "next_page_token": "abc12345", "a": "é"}, times)
    assert scrub_text(f" {text}\n") == f" {text}\n"


SAID = [
    # before, secret, after
    ("postgres://app:", "hunter2", "@db.example.com:5432/shop"),
    ("redis://:", "hunter2", "@localhost:6379/0"),
    ("mongodb+srv://u:", "p%40ss", "@cluster0.mongodb.net"),
    (r"amqp:\/\/u:", "hunter2", r"@host\/x"),
    ("jdbc:mysql://h/db?user=a&password=", "hunter2", "&x=1"),
    ("Server=tcp:x;User ID=sa;Password=", "hunter2", ";Encrypt=True"),
    ("User=sa;Pwd=", "hunter2", ";"),
    ("AccountName=a;AccountKey=", "q1w2e3==", ";EndpointSuffix=core.windows.net"),
    ("https://a.blob.core.windows.net/c?se=2030&sig=", "abcdef%2B1234567%3D", "&sp=r"),
    ("https://b.s3.amazonaws.com/k?X-Amz-Signature=", "0123456789abcdef0123", " now"),
    ("curl -u joe:", "hunter2", " https://example.com"),
    ("curl -s --user 'joe:", "hunter2", "' https://example.com"),
    ("mysql -u root --password=", "hunter2", " shop"),
    ("login --token ", "abcd1234", " now"),
    ("export GITHUB_TOKEN=", "abcd1234", "\n"),
    ("DJANGO_SECRET_KEY_BASE=", "abcd1234", "\n"),
    ("Authorization: Basic ", "dXNlcjpwYXNz", "\n"),
    ("authorization: token ", "abcd1234", "\n"),
    ("Cookie: ", "session=abc; csrftoken=def", "\n"),
    ("<password>", "hunter2", "</password>"),
    ("&quot;password&quot;:&quot;", "hunter2", "&quot;"),
    ("%22password%22%3A%22", "hunter2", "%22"),
    (r"\u0022password\u0022:\u0022", "hunter2", r"\u0022"),
    ("{'password': '", "hunter2", "'}"),
    ('password => "', "two words", '"'),
    ("passwords = ['", "hunter2", "']"),
    ("passwords: [", "hunter22", ", x]"),
    ("my password is ", "hunter2", ", do not tell"),
    (r"first line\npassword=", "hunter2", r"\nlast line"),
    # YAML
    ("\npassword: |\n  ", "correct horse", "\nuser: joe"),
    ("\ndb:\n  password: >-\n    ", "correct horse", "\n  user: joe"),
    (r"\n  password: |\n    ", "correct horse", r"\n  user: joe"),
    ("\npassword: !!str ", "hunter22", "\nuser: joe"),
    ("\npassword:\n  ", "hunter22", "\nuser: joe"),
    ("\npasswords:\n  - ", "hunter22", "\nuser: joe"),
    ("- name: DB_PASSWORD\n  value: ", "hunter22", "\n- name: x"),
    ("client-key-data: ", "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQphYmM=", "\nx: y"),
    # shells and programs
    ("setx DB_PASSWORD ", "hunter22", " /m"),
    ("aws configure set aws_secret_access_key ", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", " now"),
    ("sshpass -p ", "hunter2", " ssh host"),
    ("docker login -u joe -p ", "hunter2", " example.com"),
    ("mysql -u root -p", "hunter2", " shop"),
    ("redis-cli -h h -a ", "hunter2", " ping"),
    ("curl -ujoe:", "hunter2", " https://example.com"),
    ("psql 'host=h password=", "hunter2", " dbname=d'"),
    # SQL and files of passwords
    ("CREATE USER u IDENTIFIED BY '", "hunter2", "' ACCOUNT LOCK"),
    ("ALTER USER u IDENTIFIED WITH mysql_native_password BY '", "hunter2", "';"),
    ("create user u with encrypted password '", "correct", "';"),
    ("CREATE SECRET s (TYPE s3, SECRET '", "correct", "')"),
    ("machine h login joe password ", "correct", "\nmachine i"),
    ("\nlocalhost:5432:*:joe:", "hunter2", "\nend"),
    ("joe:", "$6$abcdefgh$abcdefghijklmnopqrstuvwxyz", ":19000:"),
    # headers
    ("Authorization: ", 'Digest username="joe", response="6629fae49393a05397450978507c4ef1"', "\nend"),
    ("Authorization: ApiKey ", "abcd12345", "\nend"),
    ("Ocp-Apim-Subscription-Key: ", "abcd12345", "\nend"),
    ("got Basic ", "am9lOmh1bnRlcjI=", " from it"),
    ('{"auths": {"r": {"auth": "', "am9lOmh1bnRlcjI=", '"}}} and'),
    ('Content-Disposition: form-data; name="password"\r\n\r\n', "hunter2", "\r\n--b"),
    # XML and HTML
    ('<add key="Password" value="', "hunter2", '"/>'),
    ('<property name="db.password">', "hunter2", "</property>"),
    ('<ns:password type="x">', "hunter2", "</ns:password>"),
    ("<key>ApiKey</key>\n<string>", "hunter22", "</string>"),
    ("<b>Password:</b> ", "hunter22", " ok"),
    ("<tr><td>password</td><td>", "hunter22", "</td></tr>"),
    ("&#x22;password&#x22;:&#x22;", "hunter2", "&#x22;"),
    # Markdown
    ("**Password:** ", "hunter22", " ok"),
    ("| password | ", "hunter22", " | x |"),
    ("“password”: “", "hunter2", "” ok"),
    # URLs, escaped more than once
    ("https%3A%2F%2Fjoe%3A", "hunter2", "%40host%2F"),
    ("%257B%2522password%2522%253A%2522", "hunter2", "%2522%257D"),
    ("a%2526password%253D", "hunter2", " ok"),
    ("https://joe:", "p@ss9word", "@host/x"),
    # code
    ("os.environ['DB_PASSWORD'] = '", "correct", "' # x"),
    ("os.environ.setdefault('DB_PASSWORD', '", "hunter22", "')"),
    ("client.setPassword('", "correct", "')"),
    ("password = SecretStr('", "correct", "')"),
    ("password: str = '", "correct", "' # x"),
    ("password = b'", "correct", "' # x"),
    ('password = """', "correct", '""" # x'),
    ("if (password === '", "correct", "') x"),
    ('variable "password" { default = "', "correct", '" }'),
    ('x,"{""password"": ""', "correct", '""}",y'),
]


@pytest.mark.parametrize(("before", "secret", "after"), SAID, ids=[before.strip() for before, _, _ in SAID])
def test_a_secret_by_the_words_before_it(before: str, secret: str, after: str) -> None:
    told = scrub_text(f"see {before}{secret}{after}")
    assert secret not in told
    assert told.startswith(f"see {before}")
    assert after.strip()[-3:] in told


@pytest.mark.parametrize(
    "value",
    [
        {"headers": [{"name": "Authorization", "value": "abcd!"}, {"key": "X-Api-Key", "value": "abcd!"}]},
        {"headers": [["X-Api-Key", "abcd1234!"]], "Key": "password", "Value": "abcd!", "API Key": "abcd!"},
        {"auths": {"registry": {"auth": "am9lOmh1bnRlcjIh!"[:-1], "identitytoken": "abcd!"}}},
        {"password": {"type": "plain", "value": "abcd!"}, "password_hash": "abcd!"},
        {"kty": "RSA", "n": "public", "e": "AQAB", "d": "private!", "p": "private!"},
        {"credentials": {"user": "a!", "value": ["b!"]}},
        {"password": 12345, "x": "Authorization: Basic abcdefgh!"},
    ],
)
def test_a_secret_by_its_place_in_a_structure(value: dict[str, Any]) -> None:
    told = json.dumps(secrets.scrub(json.loads(json.dumps(value)), 1_000, "…"))
    assert "!" not in told
    assert "12345" not in told
    assert scrub_text(json.dumps(value)) == told


def test_the_description_of_a_secret_is_none() -> None:
    """The parameters of a tool."""
    schema = {
        "properties": {
            "password": {"type": "string", "description": "what to log in with"},
            "token": {"$ref": "#/t"},
            "api_key": {"title": "Api Key"},
            "secret": {"const": "a"},
            "pwd": {"type": ["string", "null"]},
            "pass": {"format": "password"},
        },
        "required": ["password", "token"],
    }
    assert secrets.scrub(json.loads(json.dumps(schema)), 1_000, "…") == schema


@pytest.mark.parametrize(("mark", "pattern"), secrets._FORMATS, ids=[mark for mark, _ in secrets._FORMATS])
def test_each_format_is_known_in_whatever_stands_round_it(mark: str, pattern: str) -> None:
    @settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True, alphabet=st.characters(codec="ascii")))
    def known(key: str) -> None:
        assert mark in key
        middle = key[4:-4]
        for text in (
            f"use {key} now",
            f"x={key}",
            f'"{key}"',
            rf"first\n{key}\nlast",
            f"%22{key}%22",
            nested({"a": f"text {key}"}, 2),
        ):
            told = scrub_text(text)
            assert API_KEY in told, text
            assert middle not in told, text

    known()


PRIVATE_KEYS = [
    "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY",
    "PGP PRIVATE KEY BLOCK",
]  # fmt: skip


@pytest.mark.parametrize("kind", PRIVATE_KEYS)
@pytest.mark.parametrize("line", ["\n", r"\n", r"\\n", "\r\n"])
@pytest.mark.parametrize("whole", [True, False])
def test_private_keys_of_every_kind(kind: str, line: str, whole: bool) -> None:
    end = f"{line}-----END {kind}-----" if whole else ""
    told = scrub_text(f"key: -----BEGIN {kind}-----{line}MIIE{line}owIBAAKC{end}")
    assert "MIIE" not in told
    assert "owIBAAKC" not in told


def test_putty_has_a_format_of_its_own() -> None:
    told = scrub_text("PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nAAAAIH\nPrivate-MAC: 00ff\nbye")
    assert told == f"{API_KEY}\nbye"


def test_letters_that_need_not_have_been_escaped() -> None:
    assert scrub_text(r'got {"pass\u0077ord": "hunter2"} so') == f'got {{"password": "{API_KEY}"}} so'


def test_a_long_value_is_masked_to_its_end() -> None:
    assert scrub_text(f"password=a1{'b' * 5_000}END and on") == f"password={API_KEY} and on"


@pytest.mark.parametrize(
    "text",
    [
        "the secret: everything changes",
        "a token of love, and 1234567890 tokens more",
        "token count: 1234567890",
        "the key: value pairs of a dictionary",
        "pass: 12 of 14 tests",
        "my password is wrong",
        "OLDPWD=/home/user1/work",
        "see https://example.org/a/b?x=1&page=2",
        "call_Ab12Cd34Ef56Gh78Ij90Kl12 and chatcmpl-9Ab12Cd34Ef56Gh78Ij90 and resp_68ab12cd34ef56",
        "fc_67ab12cd34ef5678901234567890abcdef and msg_67ab12cd34ef5678",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        '{"tokens": ["a", "b"], "token": "Hello", "logprob": -0.1}',
        "api_key = os.environ['OPENAI_API_KEY'] or os.getenv(\"OPENAI_API_KEY\")",
        "password = get_password() if password == confirm_password else prompt('password')",
        "password: Optional[str] = None; password=$PASSWORD; password=${DB_PASSWORD}; token=<token>",
        '{"required": ["password", "token"], "x": ["token", "name"]} as JSON',
        "password:\n  type: string\n  minLength: 8\n",
        "| token | count |\n|---|---|\n| the | 12 |",
        "CREATE TABLE users (password VARCHAR(255) NOT NULL, token TEXT UNIQUE)",
        "basic understanding of Basic information1, and auth=none",
        "docker run -p 8080:80 nginx; mkdir -p /tmp/a1b2c3; ssh -p 2222 host",
        "2001:4860:4860:0:8888 and a.c:12:5:error:foo",
        r"caf\u00e9 \u0041 and the password",
        "def authorize(password: str, token: str | None = None) -> bool:",
    ],
)
def test_what_only_sounds_like_a_secret_stays(text: str) -> None:
    assert scrub_text(text) == text


IN_PIECES = (
    # text, and what of it must not be recorded
    ("pay with 4111 1111 1111 1111 now", "1111 1111"),
    ("as 4١١١١١١١١١١١١١١١ says", "١١١١"),
    ("run http -a joe:hunter2 example.org now", "hunter2"),
    ("machine h login joe password hunter2x now", "hunter2x"),
    ("create user joe identified by 'hunter' now", "hunter'"),
    ("a line\ndb.example.org:*:db:joe:hunter\nnow", "joe:hunter"),
    ("get ://joe:hunter@example.org now", "hunter@"),
    ("ask joe@example.org now", "joe@"),
    ("set %3A%2F%2Fjoe%3Ahunter%40h now", "hunter"),
    ("see ?sas=abcdefghijkl now", "abcdefghijkl"),
    ("the \u017fecret: hunter2hunter now", "hunter2hunter"),
    ("a Bearer abcdefghijkl now", "abcdefghijkl"),
    ("curl https://h -u joe:hunter now", "joe:hunter"),
    ("AbCdEfGh sk-abcdefghijklmnopqRst now", "sk-abc"),
)
"""Secrets of words that each could stand in any text."""


@pytest.mark.parametrize(("text", "secret"), IN_PIECES)
def test_words_that_are_known_do_not_hide_what_they_say_together(text: str, secret: str) -> None:
    for word in text.split():
        scrub_text(f"{word} or the like")
    long = f"{'it is as it is ' * 30}\n{text}"
    for _ in range(3):
        assert secret not in scrub_text(text)
        assert secret not in scrub_text(long)


def test_of_texts_little_is_remembered_and_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary_words, "_MOST", 100)
    monkeypatch.setattr(secrets, "_MOST_CLEAN", 10)
    letters = "abcdefghij"
    for first in letters:
        for second in letters:
            scrub_text(f"{first}{second}q {second}{first}z my api-key is hunter2 " + "a long text " * 30)
            scrub_text(f"{first}{second}q {second}{first}z " + "a long text " * 30)
    assert 0 < len(ordinary_words._known) <= 100
    assert 0 < len(secrets._clean) <= 10
    assert not [word for word in ordinary_words._known if "hunter2" in word or "key" in word]


def recorded_texts() -> Iterator[tuple[str, str]]:
    """Every body of the recorded exchanges, and every text in one."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)

    for file in sorted(RECORDINGS.glob("*/*.yaml")):
        for exchange in yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))[
            "interactions"
        ]:
            for body in (exchange["request"].get("body"), (exchange["response"].get("body") or {}).get("string")):
                for line in (body, *body.splitlines()) if isinstance(body, str) else ():
                    yield file.name, line
                    try:
                        value = json.loads(line.removeprefix("data: "))
                    except ValueError:
                        continue
                    for text in texts(value):
                        yield file.name, text


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recorded exchanges (../shared/recordings) are not here")
def test_real_exchanges_hold_nothing_that_is_taken_for_a_secret() -> None:
    found = {(name, text[:200]) for name, text in set(recorded_texts()) if scrub_text(text) != text}
    assert not found
