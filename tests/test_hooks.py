from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.http import HttpRequest
from django.test import override_settings
from rest_framework.test import APIClient

from accesspass import sessions
from accesspass.exceptions import AccessPassError, Invalid
from accesspass.hooks import Hooks
from accesspass.models import Account, Session
from tests.conftest import PASSWORD

BODY = {
    "username": "bob",
    "email": "bob@example.com",
    "password": PASSWORD,
    "password_confirm": PASSWORD,
    "invitation": "from eve",
}


class Recording(Hooks):
    seen: dict[str, Any] = {}

    def prepare_user(self, user: Any, data: Mapping[str, Any]) -> None:
        self.seen = {**data}
        Recording.seen = self.seen
        user.is_staff = data.get("invitation") == "from eve"

    def claims(
        self, user: Any, account: Account, session_claims: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"tenant": 7, **super().claims(user, account, session_claims)}

    def login_response(self, user: Any, pair: Mapping[str, Any], request: Any) -> dict[str, Any]:
        return {"greeting": f"hello {user.email}", "had": sorted(pair)}


class Refusing(Hooks):
    def prepare_user(self, user: Any, data: Mapping[str, Any]) -> None:
        if "invitation" not in data:
            raise Invalid({"invitation": [{"message": "By invitation only.", "code": "required"}]})


class SecondFactorRequired(AccessPassError):
    code = "second_factor_required"
    status = 401
    default_detail = "Send the code."


class Vetoing(Hooks):
    refusals = {"login": [SecondFactorRequired]}
    seen: list[Any] = []

    def may_login(self, user: Any, data: Mapping[str, Any], request: Any) -> None:
        Vetoing.seen.append((user, dict(data), request))
        if data.get("code") != "123456":
            raise SecondFactorRequired


class Answering(Hooks):
    def unauthenticated(self, error: AccessPassError, request: Any) -> Mapping[str, Any]:
        return {"detail": "Who are you?", "code": error.code, "login": request.path}

    def unconfirmed(self, error: AccessPassError, request: Any) -> Mapping[str, Any]:
        return {"detail": "Look into your mail.", "code": error.code, "resend": "/resend/"}


class Substituting(Hooks):
    """Inserts in a way of its own."""

    def create_user(self, user: Any, data: Mapping[str, Any]) -> Any:
        user.is_superuser = True
        return super().create_user(user, data)


def hooks(name: str) -> Any:
    return override_settings(ACCESSPASS={"HOOKS": f"tests.test_hooks.{name}"})


@pytest.fixture
def register(api: APIClient, transactional_db: None, username_is_email: bool) -> Any:
    def post(**changes: Any) -> Any:
        body = {k: v for k, v in {**BODY, **changes}.items() if v is not None}
        if username_is_email:
            body.pop("username", None)
        return api.post("/auth/register/", body, format="json")

    return post


@hooks("Recording")
def test_prepare_user_sees_the_body_without_passwords_and_changes_the_user(register: Any) -> None:
    assert register().status_code == 201
    assert Recording.seen["invitation"] == "from eve"
    assert Recording.seen.keys().isdisjoint({"password", "password_confirm"})
    assert PASSWORD not in str(Recording.seen)
    assert get_user_model()._default_manager.get().is_staff


@hooks("Recording")
def test_login_response_adds_to_the_tokens(register: Any, api: APIClient) -> None:
    first = register().json()
    body = {"username": "bob@example.com", "password": PASSWORD}
    second = api.post("/auth/login/", body, format="json").json()
    for answer in (first, second):
        assert answer["greeting"] == "hello bob@example.com"
        assert "access_token" in answer["had"]
        assert "access_token" in answer


@hooks("Recording")
def test_claims_reach_the_request(register: Any, api: APIClient) -> None:
    token = register().json()["access_token"]
    answer = api.get("/auth/check/", HTTP_AUTHORIZATION=f"Bearer {token}")
    assert answer.json()["claims"] == {"tenant": 7}


@hooks("Refusing")
def test_a_hook_may_refuse_with_an_error_of_ours(register: Any) -> None:
    answer = register(invitation=None)
    assert answer.status_code == 400
    assert answer.json()["errors"] == {
        "invitation": [{"message": "By invitation only.", "code": "required"}]
    }
    assert register().status_code == 201


@hooks("Substituting")
def test_create_user_is_the_insert_itself(register: Any) -> None:
    assert register().status_code == 201
    assert get_user_model()._default_manager.get().is_superuser


@pytest.fixture
def vetoing() -> Any:
    Vetoing.seen = []
    with hooks("Vetoing"):
        yield Vetoing.seen


def test_may_login_vetoes_with_an_error_of_its_own(user: Any, api: APIClient, vetoing: Any) -> None:
    body = {"username": user.get_username(), "password": PASSWORD}
    answer = api.post("/auth/login/", body, format="json")
    assert answer.status_code == 401
    assert answer.json() == {"detail": "Send the code.", "code": "second_factor_required"}
    assert not Session.objects.exists()
    user.refresh_from_db()
    assert user.last_login is None
    answer = api.post("/auth/login/", {**body, "code": "123456"}, format="json")
    assert answer.status_code == 200
    seen_user, data, request = vetoing[-1]
    assert seen_user == user
    assert data == {"username": user.get_username(), "code": "123456"}
    assert isinstance(request, HttpRequest)


def test_may_login_is_asked_after_the_password_was_checked(
    user: Any, api: APIClient, vetoing: Any
) -> None:
    body = {"username": user.get_username(), "password": "wrong", "code": "123456"}
    answer = api.post("/auth/login/", body, format="json")
    assert answer.json()["code"] == "invalid_credentials"
    assert vetoing == []


@hooks("Answering")
def test_the_answer_to_a_refused_token_can_be_replaced(api: APIClient, db: None) -> None:
    for path in ("/protected/", "/auth/check/"):
        answer = api.get(path, HTTP_AUTHORIZATION="Bearer nonsense")
        assert answer.status_code == 401
        assert answer.json() == {
            "detail": "Who are you?",
            "code": "invalid_token",
            "login": path,
        }
        assert answer["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@hooks("Answering")
def test_the_answer_to_an_unconfirmed_user_can_be_replaced(user: Any, api: APIClient) -> None:
    pair = sessions.start(user)
    answer = api.get("/confirmed/", HTTP_AUTHORIZATION=f"Bearer {pair.access_token}")
    assert answer.status_code == 403
    assert answer.json() == {
        "detail": "Look into your mail.",
        "code": "email_not_confirmed",
        "resend": "/resend/",
    }
