"""django-axes, and with it whatever listens to Django's signals, works with our login."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axes.handlers.proxy import AxesProxyHandler
from axes.models import AccessAttempt, AccessLog
from django.conf import settings
from django.test import override_settings
from rest_framework.test import APIClient

from accesspass.models import Session
from tests.conftest import PASSWORD, MakeUser

LIMIT = 3
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def axes() -> Iterator[None]:
    """The settings that its documentation asks for."""
    with override_settings(
        AXES_ENABLED=True,
        AXES_FAILURE_LIMIT=LIMIT,
        AXES_LOCKOUT_PARAMETERS=["username"],
        AUTHENTICATION_BACKENDS=[
            "axes.backends.AxesStandaloneBackend",
            "accesspass.backends.IdentifierBackend",
        ],
        MIDDLEWARE=[*settings.MIDDLEWARE, "axes.middleware.AxesMiddleware"],
    ):
        AxesProxyHandler.get_implementation(force=True)
        yield


def log_in(api: APIClient, user: Any, password: str) -> Any:
    body = {"username": user.get_username(), "password": password}
    return api.post("/auth/login/", body, format="json")


def test_it_locks_a_user_out_of_our_login(api: APIClient, user: Any, make_user: MakeUser) -> None:
    for _ in range(LIMIT - 1):
        answer = log_in(api, user, "wrong")
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credentials")
    # Its middleware replaces the answer that reaches the limit.
    assert log_in(api, user, "wrong").status_code == 429
    assert log_in(api, user, PASSWORD).status_code == 429
    assert not Session.objects.exists()
    attempt = AccessAttempt.objects.get()
    assert attempt.username == user.get_username()
    assert attempt.failures_since_start >= LIMIT
    assert attempt.ip_address == "127.0.0.1"
    assert attempt.path_info == "/auth/login/"
    assert log_in(api, make_user("eve"), PASSWORD).status_code == 200
    AxesProxyHandler.reset_attempts(username=user.get_username())
    assert log_in(api, user, PASSWORD).status_code == 200


def test_it_locks_without_its_middleware_too(api: APIClient, user: Any) -> None:
    with override_settings(MIDDLEWARE=settings.MIDDLEWARE[:-1]):
        answers = [log_in(api, user, "wrong") for _ in range(LIMIT)]
        answers.append(log_in(api, user, PASSWORD))
    assert [x.status_code for x in answers] == [401] * (LIMIT + 1)
    assert {x.json()["code"] for x in answers} == {"invalid_credentials"}


def test_it_logs_logins_and_logouts_once(api: APIClient, user: Any) -> None:
    token = log_in(api, user, PASSWORD).json()["access_token"]
    log = AccessLog.objects.get()
    assert log.username == user.get_username()
    assert log.logout_time is None
    for _ in range(2):
        answer = api.post("/auth/logout/", HTTP_AUTHORIZATION=f"Bearer {token}")
        assert answer.status_code == 204
    assert AccessLog.objects.get().logout_time is not None
