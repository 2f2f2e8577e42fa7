"""Who may see the page, and what a browser is told of it."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from otel_llm.ui.gate import Gate

TOKEN = "a-token-of-some-length"


def client(token: str | None = TOKEN, hosts: tuple[str, ...] = ("127.0.0.1:8765", "localhost:8765")) -> TestClient:
    def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"in with {dict(request.query_params)}")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    return TestClient(Gate(app, token=token, hosts=hosts, cookie="otel_llm"), base_url="http://127.0.0.1:8765")


def test_nobody_gets_in_without_the_token() -> None:
    for path in ("/", "/?token=", "/?token=a-token", "/calls.json", "/static/page.css", "/live"):
        answer = client().get(path)
        assert (answer.status_code, "token" in answer.text) == (401, True)


def test_the_token_is_taken_out_of_the_address_and_kept_in_a_cookie() -> None:
    browser = client()
    first = browser.get(f"/calls?user=alice&token={TOKEN}", follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/calls?user=alice")
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert browser.get("/calls").text == "in with {}"


@pytest.mark.parametrize(
    "cookie", ["otel_llm=wrong", "otel_llm=", "other=1", "otel_llm=é", "\x00;;=", f"x_otel_llm={TOKEN}"]
)
def test_another_cookie_is_none(cookie: str) -> None:
    assert client().get("/", headers={"cookie": cookie.encode()}).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:80", "localhost.evil.example:8765", ""]
)
def test_a_name_that_somebody_has_pointed_here_is_refused(host: str) -> None:
    answer = client().get(f"/?token={TOKEN}", headers={"host": host})
    assert answer.status_code == 421
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ],
)
def test_another_site_writes_nothing(headers: dict[str, str]) -> None:
    answer = client().post("/", headers={"cookie": f"otel_llm={TOKEN}", **headers})
    assert answer.status_code == 403


def test_a_form_of_the_page_itself_is_taken() -> None:
    headers = {"cookie": f"otel_llm={TOKEN}", "origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    assert client().post("/", headers=headers).status_code == 200


def test_a_link_from_elsewhere_is_asked_for_again_by_the_page_itself() -> None:
    answer = client().get("/traces/0", headers={"sec-fetch-site": "cross-site"})
    assert (answer.status_code, 'http-equiv="refresh"' in answer.text) == (200, True)


def test_without_a_token_whoever_comes_is_let_in() -> None:
    assert client(token=None).get("/").status_code == 200


def test_every_answer_says_what_it_may_do() -> None:
    for answer in (client().get("/"), client(token=None).get("/"), client().get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
