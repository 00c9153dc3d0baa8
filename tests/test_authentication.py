from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError
from django.test import override_settings
from django.urls import path
from django.views.decorators.cache import cache_page, never_cache
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from accesspass import sessions
from accesspass.conf import conf
from accesspass.testing import login
from accesspass.tokens import TokenType, mint

BEARER = "Bearer"
REFUSED = 'Bearer error="invalid_token"'
FORGED = "ap_at_" + "A" * 76


def get(api: APIClient, header: Any, path: str = "/protected/") -> Any:
    return api.get(path, HTTP_AUTHORIZATION=header)


def test_a_token_lets_its_user_in(api: APIClient, user: Any) -> None:
    login(api, user)
    answer = api.get("/protected/")
    assert answer.status_code == 200
    assert answer.json() == {"user": str(user.pk), "username": user.get_username()}


def test_an_authorised_request_makes_no_query(
    api: APIClient, user: Any, django_assert_num_queries: Any
) -> None:
    login(api, user)
    with django_assert_num_queries(0):
        for path in ("/protected/", "/auth/check/", "/open/"):
            assert api.get(path).status_code == 200


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "BeArEr"])
def test_the_scheme_is_read_in_any_case(api: APIClient, user: Any, scheme: str) -> None:
    pair = sessions.start(user)
    assert get(api, f"{scheme} {pair.access_token}").status_code == 200


@pytest.mark.parametrize("header", [None, "", "Basic Ym9iOnB3", "Token abc", "Bearerabc"])
def test_without_credentials_the_challenge_names_no_error(
    api: APIClient, db: None, header: str | None
) -> None:
    answer = api.get("/protected/", **({} if header is None else {"HTTP_AUTHORIZATION": header}))
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"] == BEARER
    assert get(api, header or "", "/open/").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer  " + FORGED,
        f"Bearer {FORGED} {FORGED}",
        "Bearer " + FORGED,
        "Bearer \0",
        "Bearer " + "\0" * 82,
        "Bearer \xff\xfe",
        "Bearer ap_at_" + "\xff" * 76,
        "Bearer ap_at_" + "\ud800" * 76,
        "Bearer " + "x" * 100_000,
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        b"Bearer \xff\xfe\0",
        b"Bearer ap_at_" + b"\xff" * 76,
    ],
)
@pytest.mark.parametrize("path", ["/protected/", "/open/", "/auth/check/"])
def test_a_malformed_token_is_refused_without_a_query(
    api: APIClient, db: None, header: Any, path: str, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0):
        answer = get(api, header, path)
    assert answer.status_code == 401
    assert answer.json()["code"] == "invalid_token"
    assert answer["WWW-Authenticate"] == REFUSED


def test_a_forged_token_is_refused_without_a_query(
    api: APIClient, user: Any, django_assert_num_queries: Any
) -> None:
    token = sessions.start(user).access_token
    with override_settings(ACCESSPASS={"TOKEN_KEYS": ["f" * 40]}):
        forged = mint(TokenType.ACCESS, b"i" * 16, 2**32 - 1).text
    flipped = token[:20] + ("A" if token[20] != "A" else "B") + token[21:]
    with django_assert_num_queries(0):
        for text in (forged, flipped):
            assert get(api, f"Bearer {text}").status_code == 401


def test_an_expired_token_is_refused_without_a_query(
    api: APIClient, db: None, django_assert_num_queries: Any
) -> None:
    expired = mint(TokenType.ACCESS, b"i" * 16, 1_000_000_000).text
    with django_assert_num_queries(0):
        assert get(api, f"Bearer {expired}").status_code == 401


def test_an_authentic_token_that_is_not_on_record_is_refused(api: APIClient, user: Any) -> None:
    pair = sessions.start(user)
    other = mint(TokenType.ACCESS, pair.session_id.bytes, 2**32 - 1).text
    assert get(api, f"Bearer {other}").status_code == 401
    assert get(api, f"Bearer {pair.access_token}").status_code == 200


def test_a_refresh_token_is_no_access_token(api: APIClient, user: Any) -> None:
    pair = sessions.start(user)
    assert get(api, f"Bearer {pair.refresh_token}").status_code == 401


def test_a_token_in_the_query_or_a_cookie_is_not_looked_at(api: APIClient, user: Any) -> None:
    token = sessions.start(user).access_token
    api.cookies["Authorization"] = f"Bearer {token}"
    assert api.get(f"/protected/?access_token={token}").status_code == 401


def test_another_header_carries_the_bare_token(api: APIClient, user: Any) -> None:
    token = sessions.start(user).access_token
    with override_settings(ACCESSPASS={"ACCESS_TOKEN_HEADER": "X-Access-Token"}):
        assert api.get("/protected/", HTTP_X_ACCESS_TOKEN=token).status_code == 200
        assert api.get("/protected/", HTTP_X_ACCESS_TOKEN=f"Bearer {token}").status_code == 401
        answer = get(api, f"Bearer {token}")
        assert answer.status_code == 401
        assert answer["WWW-Authenticate"] == BEARER


def test_a_foreign_bearer_value_is_left_to_the_next_class_if_so_asked(
    api: APIClient, user: Any
) -> None:
    token = sessions.start(user).access_token
    assert get(api, f"Bearer {token}", "/side-by-side/").status_code == 200
    foreign = get(api, "Bearer eyJhbGciOi", "/side-by-side/")
    assert foreign["WWW-Authenticate"] == BEARER
    ours = get(api, f"Bearer {FORGED}", "/side-by-side/")
    assert ours["WWW-Authenticate"] == REFUSED


def test_a_database_that_is_out_of_reach_is_a_503_and_never_a_401(
    api: APIClient, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = sessions.start(user).access_token

    def fail(*args: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(sessions, "_select", fail)
    for where in ("/protected/", "/auth/check/"):
        answer = get(api, f"Bearer {token}", where)
        assert answer.status_code == 503
        assert answer.json()["code"] == "unavailable"
        assert int(answer["Retry-After"]) >= 1
        assert "WWW-Authenticate" not in answer


def test_request_user_is_a_user_instance_with_a_session_record(user: Any) -> None:
    found, record = sessions.authenticate(sessions.start(user, claims={"a": 1}).access_token)
    assert type(found) is type(user)
    assert found == user
    assert record.claims == {"a": 1}
    assert conf.USER_FROM_RECORD


class _Hello(APIView):
    permission_classes = [IsAuthenticated]

    def get(self, request: Any) -> Response:
        return Response({"user": str(request.user.pk)})


@pytest.mark.parametrize(
    ("view", "status"), [(_Hello.as_view(), 200), (never_cache(_Hello.as_view()), 401)]
)
def test_what_django_has_cached_is_given_after_a_logout_too(
    user: Any, view: Any, status: int
) -> None:
    """As the guide for existing projects warns."""
    cached = cache_page(60, key_prefix=uuid.uuid4().hex)(view)
    locmem = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "cached"}
    with override_settings(
        CACHES={**settings.CACHES, "default": locmem}, ROOT_URLCONF=(path("hello/", cached),)
    ):
        api = APIClient()
        pair = login(api, user)
        assert api.get("/hello/").status_code == 200
        sessions.revoke(pair.session_id)
        assert api.get("/hello/").status_code == status
