"""The example of docs/how-to/social-login.rst, behind a login as allauth makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client, override_settings
from django.urls import include, path

from accesspass.models import Session
from tests.documents import fetched, shown
from tests.social_login import tokens
from tests.suites import run_suite

urlpatterns = [path("auth/", include("accesspass.urls")), path("tokens/", tokens)]


@pytest.fixture(autouse=True)
def _project() -> Iterator[None]:
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=middleware):
        yield


def enter(client: Client, user: Any) -> None:
    """What allauth does when the provider has vouched for somebody."""
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")


def test_a_django_session_is_exchanged_for_tokens_once(client: Client, user: Any) -> None:
    enter(client, user)
    pair = client.post("/tokens/").json()
    bearer = {"Authorization": f"Bearer {pair['access_token']}"}
    checked = client.get("/auth/check/", headers=bearer).json()
    assert checked["user"]["username"] == user.get_username()
    assert client.post("/tokens/").status_code == 401


def test_nobody_gets_tokens_without_a_login(client: Client, db: None) -> None:
    assert client.post("/tokens/").json()["code"] == "not_authenticated"
    assert not Session.objects.exists()


def test_another_site_cannot_make_a_browser_fetch_tokens(user: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    enter(client, user)
    assert client.post("/tokens/").status_code == 403
    assert client.get("/tokens/").status_code == 405
    assert not Session.objects.exists()


def test_the_script_of_the_page_fetches_them(user: Any) -> None:
    (script,) = shown("docs/how-to/social-login.rst", "javascript")
    client = Client(enforce_csrf_checks=True)
    enter(client, user)
    client.cookies["csrftoken"] = "a" * 32
    asked = fetched(script, document={"cookie": f"theme=dark; csrftoken={'a' * 32}"})
    answer = client.generic(asked["method"], asked["url"], headers=asked["headers"])
    assert (answer.status_code, answer.json()["token_type"]) == (200, "Bearer")


@pytest.mark.pipeline
def test_it_works_with_allauth() -> None:
    run_suite("social_suite.py", settings="social")
