"""allauth's own login, and what comes after it. tests/test_social_login.py runs this file."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import Client

from accesspass.models import Account
from tests.documents import module_of, settings_of, shown

SETUP, URLS = shown("docs/how-to/social-login.rst", "python")
urlpatterns: list[Any] = module_of(
    URLS.replace("shop.views", "tests.social_login"), urlpatterns=[]
).urlpatterns


def test_the_settings_are_those_of_the_page() -> None:
    made = settings_of(SETUP)
    assert len(made) == 4
    assert {name: getattr(settings, name) for name in made} == made


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


def test_an_address_that_allauth_has_confirmed_is_taken_over(client: Client, db: None) -> None:
    (code,) = shown("docs/how-to/migrate/dj-rest-auth.rst", "python")
    for number, name, verified in ((1, "ada", "on"), (2, "bob", "")):
        provider = client.post("/accounts/dummy/login/").headers["Location"]
        person = {"id": number, "username": name, "email": f"{name}@example.org"}
        client.post(provider, {**person, "email_verified": verified})
        client.logout()
    module_of(code)
    assert [x.user.username for x in Account.objects.exclude(confirmed_at=None)] == ["ada"]
    (account,) = Account.objects.filter(user__username="ada")
    assert account.is_confirmed(account.user)
