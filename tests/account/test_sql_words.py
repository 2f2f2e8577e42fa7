"""Names of dimensions in a condition become columns, and nothing else does."""

from __future__ import annotations

import pytest

from otel_llm.account.sql_words import with_columns, without_end

COLUMNS = {"user": "user_id", "model": "coalesce(request_model, response_model)"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("user = 'alice'", "user_id = 'alice'"),
        ("USER IN ('a') AND module = 'user'", "user_id IN ('a') AND module = 'user'"),
        ("'user' = \"user\"", "'user' = \"user\""),
        ("user() = 'x' OR t.user = 1 OR user.name = 2", "user() = 'x' OR t.user = 1 OR user.name = 2"),
        ("user -- the user\n= 'it''s user'", "user_id -- the user\n= 'it''s user'"),
        ("/* user */ tags['user'] = user", "/* user */ tags['user'] = user_id"),
        ("user_id = 1 AND superuser = 2 AND user2 = 3", "user_id = 1 AND superuser = 2 AND user2 = 3"),
        ("$$user$$ = user AND $t$ user $x$ $t$ = 1", "$$user$$ = user_id AND $t$ user $x$ $t$ = 1"),
        ("model LIKE 'gpt%'", "coalesce(request_model, response_model) LIKE 'gpt%'"),
        ("started_at > now() - interval 1 user AND user = 1", "started_at > now() - interval 1 user AND user_id = 1"),
        ("interval '1' user > interval (x) user", "interval '1' user > interval (x) user"),
        ("extract(user from started_at) = 1", "extract(user from started_at) = 1"),
        ("(user) = 'a' and not user", "(user_id) = 'a' and not user_id"),
        ("1e5user = 'unclosed user", "1e5user = 'unclosed user_id"),
    ],
)
def test_names(written: str, meant: str) -> None:
    assert with_columns(written, COLUMNS.get) == meant


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        (" select 1; -- x", " select 1"),
        ("select ';' ;;", "select ';'"),
        ("select 1 /* ; */", "select 1"),
        ("-- x", ""),
        ("", ""),
    ],
)
def test_the_end_of_a_statement(statement: str, without: str) -> None:
    assert without_end(statement) == without
