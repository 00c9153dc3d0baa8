"""allauth's own login, and what comes after it. tests/test_social_login.py runs this file."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import include, path

from tests.social_login import tokens

urlpatterns = [
    path("accounts/", include("allauth.urls")),
    path("auth/", include("accesspass.urls")),
    path("tokens/", tokens),
]


def test_whoever_a_provider_vouches_for_gets_tokens(client: Client, db: None) -> None:
    provider = client.post("/accounts/dummy/login/").headers["Location"]
    person = {"id": "7", "username": "ada", "email": "ada@example.org", "email_verified": "on"}
    assert client.post(provider, person).headers["Location"] == "/signed-in/"
    pair = client.post("/tokens/").json()
    bearer = {"Authorization": f"Bearer {pair['access_token']}"}
    checked = client.get("/auth/check/", headers=bearer).json()
    assert checked["user"]["username"] == "ada"
    assert not checked["email_confirmed"]
    assert not get_user_model().objects.get().has_usable_password()
