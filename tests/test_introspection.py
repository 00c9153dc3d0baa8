"""`introspect/` (RFC 7662) and `revoke/` (RFC 7009), for registered services."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from django.db import OperationalError
from django.test import override_settings
from rest_framework.test import APIClient

from accesspass import checks, sessions
from accesspass.authentication import service_of
from accesspass.tokens import TokenType, mint
from tests.test_session_views import is_good
from tests.test_views import assert_error as assert_any_error
from tests.test_views import url

SECRET = "s3cret / with: +signs%41"
ROUTES = ["introspect", "revoke"]


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture(autouse=True)
def clients() -> Iterator[None]:
    known = {"notes": digest(SECRET), "other service": digest("another").upper()}
    with override_settings(ACCESSPASS={"INTROSPECTION_CLIENTS": known}):
        yield


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    return sessions.start(user, claims={"role": "admin", "scope": "read write"})


def basic(client: str = "notes", secret: str = SECRET) -> str:
    return "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()


def ask(api: APIClient, route: str, token: Any, header: Any = None, **more: Any) -> Any:
    body = urlencode({"token": token, **more})
    return send(api, route, body, basic() if header is None else header)


def send(api: APIClient, route: str, body: Any, header: Any) -> Any:
    return api.generic(
        "POST",
        url(route),
        body,
        content_type="application/x-www-form-urlencoded",
        HTTP_AUTHORIZATION=header,
    )


def assert_error(answer: Any, status: int, code: str, error: str) -> None:
    body = answer.json()
    assert body.pop("error") == error
    assert (answer.status_code, body["code"]) == (status, code)
    assert answer["Cache-Control"] == "no-store"


# Introspect


def test_an_active_token_is_described(api: APIClient, user: Any, pair: Any) -> None:
    answer = ask(api, "introspect", pair.access_token)
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    assert answer["Content-Type"] == "application/json"
    body = answer.json()
    exp = body.pop("exp")
    assert isinstance(exp, int)
    assert body == {
        "active": True,
        "token_type": "Bearer",
        "scope": "read write",
        "sub": str(user.pk),
        "username": user.get_username(),
        "sid": str(pair.session_id),
        "email": "bob@example.com",
        "email_confirmed": False,
        "claims": {"role": "admin", "scope": "read write"},
        "meta": {},
        "session_exp": None,
    }


def test_a_scope_that_is_no_text_stays_a_claim(api: APIClient, user: Any) -> None:
    pair = sessions.start(user, claims={"scope": ["read"], "active": False, "sub": "root"})
    body = ask(api, "introspect", pair.access_token).json()
    assert "scope" not in body
    assert (body["active"], body["sub"]) == (True, str(user.pk))


def test_of_an_inactive_token_nothing_is_told(api: APIClient, user: Any, pair: Any) -> None:
    revoked = sessions.start(user)
    sessions.revoke(revoked.session_id)
    session_id = pair.session_id.bytes
    for token in (
        revoked.access_token,
        pair.refresh_token,
        mint(TokenType.ACCESS, session_id, 1_000_000_000).text,
        mint(TokenType.ACCESS, session_id, 2**32 - 1).text,
        mint(TokenType.EMAIL_KEY, session_id, 2**32 - 1).text,
        "nonsense",
        "ap_at_" + "A" * 76,
        "\u00ff",
        "x" * 100_000,
    ):
        answer = ask(api, "introspect", token)
        assert answer.status_code == 200
        assert answer.content == b'{"active":false}'
    user.is_active = False
    user.save()
    assert ask(api, "introspect", pair.access_token).content == b'{"active":false}'


@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "nonsense", ""])
def test_a_hint_changes_nothing(api: APIClient, pair: Any, hint: str) -> None:
    assert ask(api, "introspect", pair.access_token, token_type_hint=hint).json()["active"]
    assert ask(api, "revoke", pair.access_token, token_type_hint=hint).status_code == 200
    assert not is_good(api, pair)


def test_the_row_decides_and_not_a_memory_that_may_be_old(
    api: APIClient, pair: Any, django_assert_num_queries: Any
) -> None:
    sessions.publish_now(pair.session_id)
    with django_assert_num_queries(1):
        assert ask(api, "introspect", pair.access_token).json()["active"]
    with django_assert_num_queries(0):
        ask(api, "introspect", "ap_at_" + "A" * 76)


def test_a_database_that_is_out_of_reach_is_a_503(
    api: APIClient, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(sessions, "_select", fail)
    answer = ask(api, "introspect", pair.access_token)
    assert_any_error(answer, 503, "unavailable")
    assert "WWW-Authenticate" not in answer


# Revoke


@pytest.mark.parametrize("by", ["access_token", "refresh_token"])
def test_a_token_revokes_its_session(api: APIClient, user: Any, pair: Any, by: str) -> None:
    other = sessions.start(user)
    answer = ask(api, "revoke", getattr(pair, by))
    assert (answer.status_code, answer.json()) == (200, {})
    assert not is_good(api, pair)
    assert is_good(api, other)
    assert ask(api, "revoke", getattr(pair, by)).status_code == 200


def test_a_token_that_is_not_good_is_no_error(api: APIClient, pair: Any) -> None:
    expired = mint(TokenType.ACCESS, pair.session_id.bytes, 1_000_000_000).text
    for token in (expired, "nonsense", "ap_rt_" + "A" * 76, "\u00ff"):
        answer = ask(api, "revoke", token)
        assert (answer.status_code, answer.json()) == (200, {})
    assert is_good(api, pair)


# Who may ask


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic \xff\xfe",
        "Basic \0",
        b"Basic \xff",
        "Basic " + base64.b64encode(b"notes").decode(),
        "Basic " + base64.b64encode(b"notes:").decode(),
        "Basic " + base64.b64encode(b":").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\0").decode(),
        "Basic " + base64.b64encode(b"notes\0:x").decode(),
        "Basic " + base64.b64encode(b"notes:" + b"x" * 100_000).decode(),
        basic("notes", "wrong"),
        basic("nobody", SECRET),
        basic("nobody", ""),
        basic("NOTES", SECRET),
        basic("notes", digest(SECRET)),
        basic("notes", "another"),
        "Bearer x",
    ],
)
def test_only_a_registered_client_is_answered(
    api: APIClient, pair: Any, route: str, header: Any
) -> None:
    answer = ask(api, route, pair.access_token, header)
    assert_error(answer, 401, "invalid_client", "invalid_client")
    assert answer["WWW-Authenticate"].startswith("Basic ")
    assert is_good(api, pair)


@pytest.mark.parametrize("route", ROUTES)
def test_an_access_token_is_no_credential_here(api: APIClient, pair: Any, route: str) -> None:
    answer = ask(api, route, pair.access_token, f"Bearer {pair.access_token}")
    assert_error(answer, 401, "invalid_client", "invalid_client")


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
@pytest.mark.parametrize("encode", [str, quote_plus])
def test_credentials_may_be_form_encoded_or_not(rf: Any, scheme: str, encode: Any) -> None:
    for client, secret in (("notes", SECRET), ("other service", "another")):
        header = basic(encode(client), encode(secret)).replace("Basic", scheme)
        assert service_of(rf.post("/", HTTP_AUTHORIZATION=header)) == client


@pytest.mark.django_db
def test_without_registered_clients_nobody_is_answered(api: APIClient) -> None:
    with override_settings(ACCESSPASS={}):
        answer = ask(api, "introspect", "x")
    assert_error(answer, 401, "invalid_client", "invalid_client")


# What is sent


@pytest.mark.django_db
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "invalid"),
        ("token=", "invalid"),
        ("token_type_hint=access_token", "invalid"),
        ("token=%00", "invalid"),
        ("token=a&token=b", "parse_error"),
        ("&".join(f"x{n}=1" for n in range(2_000)), "parse_error"),
    ],
)
def test_a_form_without_one_token_is_a_400(
    api: APIClient, route: str, body: str, code: str
) -> None:
    assert_error(send(api, route, body, basic()), 400, code, "invalid_request")


@pytest.mark.django_db
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", [b"\xff\xfe\0", b"token=%ff%fe", b"token=\xff", b"=&=&%"])
@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "hex", "rot13", "idna", "nonsense"])
def test_no_body_in_any_charset_is_an_internal_error(
    api: APIClient, route: str, body: bytes, charset: str
) -> None:
    answer = api.generic(
        "POST",
        url(route),
        body,
        content_type=f"application/x-www-form-urlencoded; charset={charset}",
        HTTP_AUTHORIZATION=basic(),
    )
    assert answer.status_code in (200, 400)
    assert answer["Content-Type"] == "application/json"


@pytest.mark.django_db
@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_is_no_form_is_a_415(api: APIClient, route: str) -> None:
    answer = api.post(url(route), {"token": "x"}, format="json", HTTP_AUTHORIZATION=basic())
    assert_any_error(answer, 415, "unsupported_media_type")
    answer = api.get(url(route), {"token": "x"}, HTTP_AUTHORIZATION=basic())
    assert_any_error(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"notes": SECRET},
        {"notes": ""},
        {"no:tes": "0" * 64},
        {"": "0" * 64},
        {"nötes": "0" * 64},
        {5: "0" * 64},
        {"notes": b"0" * 64},
    ],
)
def test_a_client_that_could_not_log_in_is_found_by_the_checks(value: Any) -> None:
    given = {"BASE_URL": "https://x.example.com", "INTROSPECTION_CLIENTS": value}
    with override_settings(ACCESSPASS=given):
        assert [x.id for x in checks.check_options()] == ["accesspass.E002"]
