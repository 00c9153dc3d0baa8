"""The examples of docs/how-to/customise.rst run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings
from django.urls import NoReverseMatch, reverse
from rest_framework.test import APIClient

from accesspass import mail
from tests.conftest import PASSWORD
from tests.documents import settings_of, shown

pytestmark = [
    pytest.mark.skipif(
        get_user_model()._meta.label != "auth.User", reason="the examples have a first name"
    ),
    pytest.mark.django_db,
]
BODY = {"username": "ada", "email": "ada@example.org", "password": PASSWORD, "first_name": "Ada"}


@pytest.fixture(autouse=True)
def project() -> Iterator[None]:
    (code,) = shown("docs/how-to/customise.rst", "python")
    made = settings_of(code.replace("shop.hooks", "tests.customise"))
    with override_settings(**made, ROOT_URLCONF="tests.customise"):
        yield


def test_hooks_refuse_with_a_code_of_the_projects(api: APIClient) -> None:
    answer = api.post("/auth/register/", {**BODY, "invitation": 1}, format="json")
    assert answer.status_code == 403
    assert answer.json() == {"detail": "Registration is by invitation.", "code": "by_invitation"}


def test_fields_are_added_claims_given_and_mails_changed(
    api: APIClient, mailoutbox: list[Any]
) -> None:
    made = api.post("/auth/register/", {**BODY, "invitation": "1234"}, format="json")
    assert made.status_code == 201
    api.credentials(HTTP_AUTHORIZATION="Bearer " + made.json()["access_token"])
    shown = api.get("/auth/account/").json()["user"]
    assert (shown["first_name"], shown["last_login"]) == ("Ada", None)
    changed = api.patch("/auth/account/", {"first_name": "Augusta"}, format="json")
    assert changed.json()["user"]["first_name"] == "Augusta"
    user = get_user_model().objects.get()
    mail.notify(mail.TOKEN_REUSED, user)
    mail.deliver()
    (message,) = mailoutbox
    assert message.from_email == "Shop <auth@shop.example.com>"
    assert message.subject == "Confirm your e-mail address for The Shop"


def test_what_is_not_routed_is_not_there(api: APIClient) -> None:
    assert reverse("accesspass:login") == "/auth/login/"
    assert api.post("/auth/account/delete/").status_code == 404
    with pytest.raises(NoReverseMatch):
        reverse("accesspass:account-delete")
