from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import MD5PasswordHasher
from django.db import connections
from django.test import Client, override_settings

from accesspass.accounts import log_in
from accesspass.backends import IdentifierBackend
from accesspass.exceptions import InvalidCredentials
from accesspass.models import Account
from tests.conftest import PASSWORD, MakeUser

pytestmark = pytest.mark.django_db

with_backend = override_settings(AUTHENTICATION_BACKENDS=["accesspass.backends.IdentifierBackend"])


@pytest.fixture
def known(user: Any) -> Any:
    Account.objects.for_user(user)
    return user


@with_backend
@pytest.mark.parametrize("name", ["bob@example.com", "BOB@example.com"])
def test_authenticate_takes_the_address_in_any_case(known: Any, name: str) -> None:
    assert authenticate(username=name, password=PASSWORD) == known
    assert authenticate(username=name, password="wrong") is None


@with_backend
def test_the_admin_takes_the_address_in_any_case(known: Any) -> None:
    known.is_staff = known.is_superuser = True
    known.save()
    client = Client()
    body = {"username": "BOB@example.com", "password": PASSWORD, "next": "/admin/"}
    assert client.post("/admin/login/", body).status_code == 302
    assert client.get("/admin/").status_code == 200


@with_backend
def test_a_disabled_user_is_refused(known: Any) -> None:
    known.is_active = False
    known.save()
    assert authenticate(username="bob@example.com", password=PASSWORD) is None


@with_backend
@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("bob\0", PASSWORD),
        ("bob\ud800", PASSWORD),
        ("bob@example.com", "\0"),
        ("bob@example.com", "x" * 1025),
        (None, PASSWORD),
    ],
)
def test_what_cannot_be_a_name_or_password_is_refused(
    known: Any, name: str | None, password: str
) -> None:
    assert IdentifierBackend().authenticate(None, name, password) is None


@with_backend
def test_an_unknown_name_hashes_a_password_too(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes: list[str] = []
    encode = MD5PasswordHasher.encode

    def counted(self: Any, password: str, salt: str) -> str:
        hashes.append(password)
        return encode(self, password, salt)

    monkeypatch.setattr(MD5PasswordHasher, "encode", counted)
    assert authenticate(username="nobody", password="wrong") is None
    assert hashes == ["wrong"]


@pytest.mark.django_db(transaction=True)
def test_it_works_on_an_event_loop(make_user: MakeUser) -> None:
    user = make_user()
    Account.objects.for_user(user)

    async def run() -> Any:
        found = await IdentifierBackend().aauthenticate(None, "BOB@example.com", PASSWORD)
        # In the thread that made the query: what it leaves open keeps the database from going.
        await sync_to_async(connections.close_all)()
        return found

    assert asyncio.run(run()) == user


@with_backend
@pytest.mark.parametrize("with_account", [True, False])
@pytest.mark.parametrize("stored", ["bob", "Bob", "strasse"])
def test_it_and_log_in_agree_on_every_name(
    make_user: MakeUser, with_account: bool, stored: str
) -> None:
    user, other = make_user(stored), make_user("eve")
    if with_account:
        Account.objects.for_user(user)
    key = str(user.get_username())
    names = [key, key.upper(), key.lower(), key.title(), user.email, user.email.upper()]
    names += ["eve", other.email, "stra\u00dfe", "\uff22\uff4f\uff42", "", " ", "nobody", key + " "]
    for name in names:
        found = authenticate(username=name, password=PASSWORD)
        try:
            logged_in = log_in(name, PASSWORD)[0]
        except InvalidCredentials:
            logged_in = None
        # The login has made an Account; asked again, both must know it.
        assert found == logged_in, name
        again = authenticate(username=name, password=PASSWORD)
        assert again == logged_in, name
        if not with_account:
            Account.objects.all().delete()
    assert authenticate(username=key, password=PASSWORD) == user
    assert log_in(key, PASSWORD)[0] == user
    if with_account:
        assert authenticate(username=user.email.upper(), password=PASSWORD) == user
