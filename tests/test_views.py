from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection, connections
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import include, path, re_path, resolve, reverse
from django.utils.log import AdminEmailHandler
from rest_framework.response import Response
from rest_framework.test import APIClient, APIRequestFactory

from accesspass import accounts, hashing, sessions
from accesspass.exceptions import InvalidToken
from accesspass.models import Account, Session
from accesspass.urls import urlpatterns
from accesspass.views import ExchangeView, StrictJSONParser
from tests.conftest import PASSWORD

User: Any = get_user_model()
POSTS = ["register", "login", "refresh", "logout"]
ROUTES = [*POSTS, "check"]
NEW = {"username": "bob", "email": "bob@example.com", "password": PASSWORD}
TOKENS = {"token_type", "access_token", "expires_in", "refresh_token", "refresh_expires_in"}
if User.USERNAME_FIELD == "email":
    del NEW["username"]


def url(name: str) -> str:
    return reverse(f"accesspass:{name}")


def post(api: Client, name: str, body: Any = None, **extra: Any) -> Any:
    return api.post(url(name), json.dumps(body), content_type="application/json", **extra)


def bearer(token: str) -> dict[str, str]:
    return {"HTTP_AUTHORIZATION": f"Bearer {token}"}


def assert_error(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Every error has the one form, whatever went wrong."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert isinstance(body["detail"], str)
    assert body["detail"]
    assert set(body) <= {"detail", "code", "errors"}
    assert ("errors" in body) == (code == "invalid")
    for field, found in body.get("errors", {}).items():
        assert isinstance(field, str)
        assert found
        for problem in found:
            assert set(problem) == {"message", "code"}
            assert all(isinstance(x, str) for x in problem.values())
    assert answer["Content-Type"] == "application/json"
    assert answer["Cache-Control"] == "no-store"
    return body


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    return sessions.start(user)


# Register


@pytest.mark.django_db
def test_a_registration_answers_with_user_and_tokens(api: APIClient) -> None:
    answer = post(api, "register", {**NEW, "password_confirm": PASSWORD, "meta": {"a": [1]}})
    assert answer.status_code == 201
    assert answer["Cache-Control"] == "no-store"
    body = answer.json()
    user = User.objects.get()
    assert set(body) == {"user", *TOKENS}
    assert body["user"] == {
        "id": str(user.pk),
        "username": user.get_username(),
        "email": "bob@example.com",
        "meta": {"a": [1]},
    }
    assert api.get(url("check"), **bearer(body["access_token"])).status_code == 200


@pytest.mark.django_db
def test_a_taken_name_has_its_own_code(api: APIClient) -> None:
    post(api, "register", NEW)
    second = {**NEW, "email": "BOB@example.com"}
    if "username" in NEW:
        assert_error(
            post(api, "register", {**NEW, "email": "x@example.com"}), 400, "username_taken"
        )
        second["username"] = "other"
    assert_error(post(api, "register", second), 400, "email_taken")
    assert User.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"password": None}, "password"),
        ({"password": 12345678901}, "password"),
        ({"password": ["correct horse battery"]}, "password"),
        ({"password": True}, "password"),
        ({"password": ""}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"password": "short"}, "password"),
        ({"password_confirm": PASSWORD + " "}, "password_confirm"),
        ({"email": "nonsense"}, "email"),
        ({"email": ["a@example.com", "b@example.com"]}, "email"),
        ({"email": "a@example.com,b@example.com"}, "email"),
        ({"email": "x" * 300 + "@example.com"}, "email"),
        ({"email": 1}, "email"),
        ({"username": 1}, "username"),
        ({"username": True}, "username"),
        ({"username": {"$ne": 1}}, "username"),
        ({"username": "eve@example.com"}, "username"),
        ({"username": "x" * 256}, "username"),
        ({"meta": "text"}, "meta"),
        ({"meta": None}, "meta"),
        ({"meta": {"a": "x" * 4096}}, "meta"),
    ],
)
def test_a_bad_field_is_named(api: APIClient, changes: dict[str, Any], field: str) -> None:
    body = assert_error(post(api, "register", {**NEW, **changes}), 400, "invalid")
    assert field in body["errors"]
    assert not User.objects.exists()


@pytest.mark.django_db
def test_missing_fields_are_named(api: APIClient) -> None:
    body = assert_error(post(api, "register", {}), 400, "invalid")
    assert body["errors"]["password"] == [
        {"message": "This field is required.", "code": "required"}
    ]
    body = assert_error(post(api, "register", {"password": PASSWORD}), 400, "invalid")
    assert body["errors"]["email"][0]["code"] == "required"


@pytest.mark.django_db
def test_what_a_client_may_not_set_is_ignored(api: APIClient) -> None:
    body = {
        **NEW,
        "id": "mine",
        "is_staff": True,
        "is_superuser": True,
        "claims": {"role": "admin"},
        "confirmed_at": "2020-01-01",
        "confirmed_email": "bob@example.com",
        "meta": {"role": "admin", "confirmed": True},
    }
    answer = post(api, "register", body).json()
    user, account = User.objects.get(), Account.objects.get()
    assert str(user.pk) != "mine"
    assert not user.is_staff
    assert not user.is_superuser
    assert account.claims == {}
    assert account.confirmed_at is None
    checked = api.get(url("check"), **bearer(answer["access_token"])).json()
    assert checked["claims"] == {}
    assert checked["email_confirmed"] is False


# Log in


def test_a_login_answers_with_tokens_alone(api: APIClient, user: Any) -> None:
    answer = post(api, "login", {"username": user.get_username(), "password": PASSWORD})
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    body = answer.json()
    assert set(body) == TOKENS
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == 300
    assert body["refresh_expires_in"] is None


def test_each_login_is_a_session_of_its_own(api: APIClient, user: Any) -> None:
    body = {"username": user.get_username(), "password": PASSWORD}
    first, second = (post(api, "login", body).json() for _ in range(2))
    post(api, "logout", {}, **bearer(first["access_token"]))
    assert api.get(url("check"), **bearer(first["access_token"])).status_code == 401
    assert api.get(url("check"), **bearer(second["access_token"])).status_code == 200


@pytest.mark.parametrize("known", [True, False])
def test_a_refused_login_tells_nothing(api: APIClient, user: Any, known: bool) -> None:
    name = user.get_username() if known else "nobody"
    answer = post(api, "login", {"username": name, "password": "wrong"})
    body = assert_error(answer, 401, "invalid_credentials")
    assert body["detail"] == "Wrong username or password."
    assert answer["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("stale", ["Bearer nonsense", "Bearer ", "Basic ::", "Token x"])
def test_a_stale_header_breaks_no_public_view(api: APIClient, user: Any, stale: str) -> None:
    body = {"username": user.get_username(), "password": PASSWORD}
    answer = post(api, "login", body, HTTP_AUTHORIZATION=stale)
    assert answer.status_code == 200
    refresh = {"refresh_token": answer.json()["refresh_token"]}
    assert post(api, "refresh", refresh, HTTP_AUTHORIZATION=stale).status_code == 200


def test_beyond_the_limit_of_hashing_a_login_is_a_503(
    api: APIClient, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WAIT", 0.01)
    body = {"username": user.get_username(), "password": PASSWORD}
    with override_settings(ACCESSPASS={"HASHING_CONCURRENCY": 1}), hashing.slot(None):
        answer = post(api, "login", body)
    assert_error(answer, 503, "busy")
    assert int(answer["Retry-After"]) >= 1


# Refresh


def test_a_refresh_answers_with_a_new_pair(api: APIClient, pair: sessions.TokenPair) -> None:
    answer = post(api, "refresh", {"refresh_token": pair.refresh_token})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == TOKENS
    assert body["refresh_token"] != pair.refresh_token
    assert body["access_token"] != pair.access_token
    assert api.get(url("check"), **bearer(body["access_token"])).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["nonsense", "ap_rt_" + "A" * 76, "\u00ff" * 82])
def test_a_refused_refresh_token_is_a_401(api: APIClient, text: str) -> None:
    answer = post(api, "refresh", {"refresh_token": text})
    assert_error(answer, 401, "invalid_token")
    assert answer["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.django_db
@pytest.mark.parametrize("body", [{}, {"refresh_token": None}, {"refresh_token": 5}])
def test_a_refresh_without_a_token_is_a_400(api: APIClient, body: Any) -> None:
    assert "refresh_token" in assert_error(post(api, "refresh", body), 400, "invalid")["errors"]


def test_an_access_token_refreshes_nothing(api: APIClient, pair: sessions.TokenPair) -> None:
    answer = post(api, "refresh", {"refresh_token": pair.access_token})
    assert_error(answer, 401, "invalid_token")


# Check


def test_check_shows_user_claims_and_confirmation(api: APIClient, user: Any) -> None:
    pair = sessions.start(user, claims={"role": "admin"})
    answer = api.get(url("check"), **bearer(pair.access_token))
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    body = answer.json()
    assert 290 <= body.pop("expires_in") <= 300
    assert body == {
        "user": {
            "id": str(user.pk),
            "username": user.get_username(),
            "email": "bob@example.com",
            "meta": {},
        },
        "claims": {"role": "admin"},
        "email_confirmed": False,
    }


@pytest.mark.django_db
def test_check_without_a_token_is_a_401_with_a_bare_challenge(api: APIClient) -> None:
    answer = api.get(url("check"))
    assert_error(answer, 401, "token_required")
    assert answer["WWW-Authenticate"] == "Bearer"


@pytest.mark.django_db
def test_check_with_a_refused_token_names_the_error(api: APIClient) -> None:
    answer = api.get(url("check"), **bearer("nonsense"))
    assert_error(answer, 401, "invalid_token")
    assert answer["WWW-Authenticate"] == 'Bearer error="invalid_token"'


# Log out


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("by", ["access", "refresh"])
def test_a_logout_ends_the_session(api: APIClient, user: Any, by: str) -> None:
    pair = sessions.start(user)
    if by == "access":
        answer = post(api, "logout", {}, **bearer(pair.access_token))
    else:
        answer = post(api, "logout", {"refresh_token": pair.refresh_token})
    assert answer.status_code == 204
    assert answer.content == b""
    assert api.get(url("check"), **bearer(pair.access_token)).status_code == 401
    assert post(api, "refresh", {"refresh_token": pair.refresh_token}).status_code == 401
    assert Session.objects.get().revoked_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_logout_is_idempotent_and_tells_nothing(api: APIClient, user: Any) -> None:
    pair = sessions.start(user)
    for token in (pair.access_token, pair.access_token, "ap_at_" + "A" * 76, "\xff"):
        assert post(api, "logout", {}, **bearer(token)).status_code == 204
    for token in (
        pair.refresh_token,
        "ap_rt_" + "A" * 76,
        "nonsense",
        "x" * 300,
        None,
        7,
        ["x"],
        {},
    ):
        assert post(api, "logout", {"refresh_token": token}).status_code == 204


@pytest.mark.django_db
def test_a_logout_needs_no_body_but_a_token(api: APIClient, pair: sessions.TokenPair) -> None:
    assert_error(api.post(url("logout")), 400, "token_required")
    assert_error(post(api, "logout", {}), 400, "token_required")
    assert api.post(url("logout"), **bearer(pair.access_token)).status_code == 204


def test_an_expired_access_token_is_a_401_since_the_session_lives(
    api: APIClient, pair: sessions.TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = sessions._cache()
    later = cache.now() + 1_000
    monkeypatch.setattr(type(cache), "now", lambda self: later)
    assert_error(post(api, "logout", {}, **bearer(pair.access_token)), 401, "invalid_token")
    assert Session.objects.get().revoked_at is None


def test_logout_inside_a_test_case_is_a_204_and_holds_at_once(
    api: APIClient, pair: sessions.TokenPair
) -> None:
    assert post(api, "logout", {}, **bearer(pair.access_token)).status_code == 204
    assert api.get(url("check"), **bearer(pair.access_token)).status_code == 401


@pytest.mark.django_db(transaction=True)
def test_a_revocation_that_is_not_acknowledged_is_a_202(
    api: APIClient, pair: sessions.TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "revoke", lambda *args, **kwargs: False)
    answer = post(api, "logout", {}, **bearer(pair.access_token))
    assert answer.status_code == 202
    assert answer.json() == {"sessions_ended": "pending"}


# Bad requests of every kind, at every endpoint

DEEP = 100_000
BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "nothing that is JSON": (b"nonsense", "parse_error"),
    "cut off": (b'{"username": "bob', "parse_error"),
    "form data": (b"username=bob&password=x", "parse_error"),
    "not UTF-8": (b'{"username": "\xff\xfe"}', "parse_error"),
    "UTF-16": ('{"username": "bob"}'.encode("utf-16"), "parse_error"),
    "a list": (b'[{"username": "bob"}]', "invalid"),
    "a text": (b'"username"', "invalid"),
    "a number": (b"12", "invalid"),
    "null": (b"null", "invalid"),
    "true": (b"true", "invalid"),
    "a raw NUL": (b'{"username": "b\0b"}', "parse_error"),
    "an escaped NUL": (b'{"username": "b\\u0000b", "password": "x"}', "parse_error"),
    "a NUL in a key": (b'{"user\\u0000name": "bob"}', "parse_error"),
    "a NUL in a password": (b'{"username": "bob", "password": "x\\u0000"}', "parse_error"),
    "a NUL in a token": (b'{"refresh_token": "ap_rt_\\u0000"}', "parse_error"),
    "a NUL deep in meta": (b'{"meta": {"a": [{"b": "\\u0000"}]}}', "parse_error"),
    "a lone surrogate": (b'{"username": "\\ud800", "password": "x"}', "parse_error"),
    "a lone surrogate in meta": (b'{"meta": {"a": "\\udfff"}}', "parse_error"),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, "parse_error"),
    "deep objects": (b'{"meta":' * DEEP + b"1" + b"}" * DEEP, "parse_error"),
    "deep enough for a database": (
        b'{"meta":' + b"[" * 500 + b"]" * 500 + b"}",
        "parse_error",
    ),
    "NaN": (b'{"meta": {"a": NaN}}', "parse_error"),
    "Infinity": (b'{"meta": {"a": -Infinity}}', "parse_error"),
    "a number out of range": (b'{"meta": {"a": 1e999}}', "parse_error"),
    "a number of 5,000 digits": (b'{"meta": {"a": ' + b"9" * 5000 + b"}}", "parse_error"),
}


@pytest.mark.django_db
@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_bad_body_is_a_400(api: APIClient, name: str, kind: str) -> None:
    body, code = BAD_BODIES[kind]
    assert_error(api.post(url(name), body, content_type="application/json"), 400, code)


@pytest.mark.django_db
@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize("field", ["username", "password", "email", "refresh_token"])
@pytest.mark.parametrize(
    "value", [None, 0, 1.5, True, False, [], ["x"], {}, {"x": "y"}, 10**400, "x" * 100_000]
)
def test_no_value_of_any_type_is_an_internal_error(
    api: APIClient, name: str, field: str, value: Any
) -> None:
    body = {**NEW, "refresh_token": "x", "username": "bob", field: value}
    answer = post(api, name, body)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.json()["code"] in ("invalid", "invalid_token", "invalid_credentials")


@pytest.mark.django_db
@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize(
    "header",
    ["Bearer \0", "Bearer \xff\xfe", b"\xff\xfe\0", "\0", "Bearer", "Bearer " + "a" * 100_000],
)
def test_no_header_is_an_internal_error(api: APIClient, name: str, header: Any) -> None:
    send = api.get if name == "check" else api.post
    answer = send(url(name), HTTP_AUTHORIZATION=header)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.json()["code"]


@pytest.mark.django_db
@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize(
    "query", ["?page=" + "9" * 5000, "?a=%00", "?a=%ff%fe", "?a=%ed%a0%80", "?" + "a&" * 2000]
)
def test_no_query_is_an_internal_error(api: APIClient, name: str, query: str) -> None:
    send = api.get if name == "check" else api.post
    assert send(url(name) + query).status_code < 500


@pytest.mark.django_db
@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "nonsense",
        "application/json/x",
        "\xff\xfe",
    ],
)
def test_another_media_type_is_a_415(api: APIClient, name: str, media_type: str) -> None:
    answer = api.generic("POST", url(name), b"{}", content_type=media_type)
    assert_error(answer, 415, "unsupported_media_type")


@pytest.mark.django_db
@pytest.mark.parametrize("charset", ["utf-8", "nonsense", "utf-16", "utf-7", "rot13", "\xff"])
def test_json_is_utf_8_whatever_charset_is_named(api: APIClient, charset: str) -> None:
    answer = api.generic(
        "POST", url("login"), b"{}", content_type=f"application/json; charset={charset}"
    )
    assert_error(answer, 400, "invalid")


@pytest.mark.django_db
@pytest.mark.parametrize("name", ROUTES)
def test_another_method_is_a_405(api: APIClient, name: str) -> None:
    wrong = ["PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "TRACE"]
    for method in [*wrong, "POST" if name == "check" else "GET"]:
        answer = api.generic(method, url(name), b"", content_type="application/json")
        if name == "check":
            assert_error(answer, 401, "token_required")
        else:
            assert_error(answer, 405, "method_not_allowed")
            assert "POST" in answer["Allow"]


def test_another_method_with_a_token_is_a_405(api: APIClient, pair: sessions.TokenPair) -> None:
    answer = post(api, "check", {}, **bearer(pair.access_token))
    assert_error(answer, 405, "method_not_allowed")


@pytest.mark.django_db
@pytest.mark.parametrize("name", ROUTES)
def test_an_answer_that_cannot_be_had_is_a_406(api: APIClient, name: str) -> None:
    send = api.get if name == "check" else api.post
    answer = send(url(name), HTTP_ACCEPT="text/html")
    assert_error(answer, 406, "not_acceptable")
    assert_error(send(url(name) + "?format=xml"), 404, "not_found")


@pytest.mark.django_db
def test_a_huge_body_is_a_413(api: APIClient, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert_error(post(api, "login", {"username": "x" * 200}), 413, "parse_error")


@pytest.mark.django_db
@pytest.mark.parametrize("name", POSTS)
def test_a_database_that_is_out_of_reach_is_a_503(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OperationalError("connection to server at 10.0.0.1 failed")

    for module, function in (
        (accounts, "register"),
        (accounts, "log_in"),
        (sessions, "refresh"),
        (sessions, "logout"),
    ):
        monkeypatch.setattr(module, function, fail)
    body = {**NEW, "username": "bob", "refresh_token": "x"}
    if User.USERNAME_FIELD == "email":
        body["username"] = body["email"]
    answer = post(APIClient(), name, body)
    found = assert_error(answer, 503, "unavailable")
    assert int(answer["Retry-After"]) >= 1
    assert "10.0.0.1" not in str(found)


def _own_handler(exc: Exception, context: Any) -> Response:
    return Response({"mine": True}, status=418)


@pytest.mark.django_db
def test_the_form_of_errors_is_ours_whatever_the_project_has_set(api: APIClient) -> None:
    hostile = {
        "EXCEPTION_HANDLER": "tests.test_views._own_handler",
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.FormParser"],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.StaticHTMLRenderer"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_THROTTLE_CLASSES": ["rest_framework.throttling.AnonRateThrottle"],
        "DEFAULT_THROTTLE_RATES": {"anon": "1/day"},
        "DEFAULT_VERSIONING_CLASS": "rest_framework.versioning.AcceptHeaderVersioning",
        "DEFAULT_METADATA_CLASS": None,
        "STRICT_JSON": False,
    }
    with override_settings(REST_FRAMEWORK=hostile):
        for _ in range(2):
            assert_error(post(api, "login", {}), 400, "invalid")
        assert_error(api.get(url("check")), 401, "token_required")
        assert post(api, "register", NEW).status_code == 201


@pytest.mark.parametrize("name", ROUTES)
def test_every_view_says_what_it_takes(name: str) -> None:
    view = resolve(url(name)).func.cls
    assert [x.__name__ for x in view.parser_classes] == ["StrictJSONParser"]
    assert [x.__name__ for x in view.renderer_classes] == ["JSONRenderer"]
    wanted = ["TokenAuthentication"] if name == "check" else []
    assert [x.__name__ for x in view.authentication_classes] == wanted
    assert len(view.permission_classes) == 1


@pytest.mark.parametrize("name", ROUTES)
def test_every_view_runs_outside_of_atomic_requests(name: str) -> None:
    assert resolve(url(name)).func._non_atomic_requests >= set(connections)


@pytest.mark.parametrize("name", ["login", "register"])
def test_an_unexpected_error_shows_no_password(
    user: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mailoutbox: list[Any],
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sessions, "start", fail)
    client = APIClient(raise_request_exception=False)
    secret = "very secret phrase"
    if name == "login":
        user.set_password(secret)
        user.save()
        body = {"username": user.get_username(), "password": secret}
    else:
        body = {"username": "eve", "email": "eve@example.com", "password": secret}
        if "username" not in NEW:
            del body["username"]
    # The most talkative report that Django makes.
    handler, logger = AdminEmailHandler(include_html=True), logging.getLogger("django.request")
    logger.addHandler(handler)
    try:
        with override_settings(ADMINS=[("root", "root@example.com")]), caplog.at_level("DEBUG"):
            answer = post(client, name, body)
    finally:
        logger.removeHandler(handler)
    assert answer.status_code == 500
    reports = [x for mail in mailoutbox for x in (mail.body, *(str(y) for y in mail.alternatives))]
    assert any("Traceback" in x and "a bug" in x for x in reports)
    assert any("<html" in x for x in reports)
    for text in (*reports, caplog.text):
        assert secret not in text


# Exchange


class Exchange(ExchangeView):
    """Takes the name of a user for a token of another package."""

    def exchange(self, request: Any) -> Any:
        found = User.objects.filter(email=request.data.get("was")).first()
        if found is None:
            raise InvalidToken
        found.email = "used@example.com"
        found.save()
        return found


def exchange(**body: Any) -> Any:
    request = APIRequestFactory().post("/auth/exchange/", body, format="json")
    answer: Any = Exchange.as_view()(request)
    answer.json = lambda: json.loads(answer.rendered_content)
    return answer


@pytest.mark.django_db
def test_what_a_client_had_is_exchanged_for_tokens(user: Any) -> None:
    answer = exchange(was=user.email)
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    assert set(answer.data) == TOKENS
    assert sessions.authenticate(answer.data["access_token"])[0] == user


@pytest.mark.django_db
def test_an_exchange_writes_before_it_reads_so_that_it_can_wait_on_sqlite(user: Any) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert exchange(was=user.email).status_code == 200
    first = next(x["sql"] for x in captured if x["sql"].split()[0] not in ("BEGIN", "SAVEPOINT"))
    assert first.startswith("UPDATE")


@pytest.mark.django_db
def test_a_refused_exchange_is_a_401_and_undoes_what_was_used_up(user: Any) -> None:
    answer = exchange(was="nobody")
    answer.render()
    assert_error(answer, 401, "invalid_token")
    User.objects.update(is_active=False)
    answer = exchange(was=user.email)
    answer.render()
    assert_error(answer, 401, "invalid_credentials")
    user.refresh_from_db()
    assert user.email != "used@example.com"
    assert not Session.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_body_that_comes_slowly_holds_no_transaction_open(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    parse = StrictJSONParser.parse

    def parsed(*args: Any, **named: Any) -> Any:
        seen.append(connection.in_atomic_block)
        return parse(*args, **named)

    monkeypatch.setattr(StrictJSONParser, "parse", parsed)
    assert exchange(was=user.email).status_code == 200
    assert seen == [False]


# The project's paths


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("prefix", "include_under"),
    [
        ("/v1/acme/", partial(path, "<str:version>/<slug:tenant>/")),
        ("/v1/", partial(re_path, r"^(v\d)/")),
    ],
)
def test_arguments_of_the_path_before_ours_are_passed_by(
    user: Any, prefix: str, include_under: Any
) -> None:
    """As with URLPathVersioning, or a tenant."""
    tried = 0
    with override_settings(ROOT_URLCONF=(include_under(include("accesspass.urls")),)):
        for route in urlpatterns:
            view = route.callback.view_class
            for method in ("get", "post", "patch", "delete"):
                if hasattr(view, method):
                    pair = sessions.start(user)
                    where = prefix + str(route.pattern).replace(
                        "<str:session_id>", str(pair.session_id)
                    )
                    headers = bearer(pair.access_token)
                    answer = APIClient(**headers).generic(method, where, "{}", "application/json")
                    assert answer["Cache-Control"] == "no-store", where
                    tried += 1
    assert tried == len(urlpatterns) + 1, "account/ has two methods"


def test_a_post_without_the_last_slash_is_redirected_and_becomes_a_get(api: APIClient) -> None:
    path = url("login").rstrip("/")
    answer = api.post(path, {}, format="json")
    assert (answer.status_code, answer["Location"]) == (301, f"{path}/")
    assert_error(api.post(path, {}, format="json", follow=True), 405, "method_not_allowed")
