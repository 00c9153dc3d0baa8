"""The example in the documentation does what the documentation says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import override_settings
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice
from rest_framework import serializers
from rest_framework.test import APIClient, APIRequestFactory

from accesspass import mail
from accesspass.email_keys import CONFIRM
from accesspass.models import Account, Session
from accesspass.serializers import LoginSerializer
from accesspass.views import LoginView
from tests.conftest import PASSWORD
from tests.documents import settings_of, shown
from tests.test_mail import key_in


@pytest.fixture
def device(user: Any) -> Any:
    (code,) = shown("docs/how-to/second-factor.rst", "python")
    with override_settings(**settings_of(code.replace("myproject.hooks", "tests.second_factor"))):
        yield TOTPDevice.objects.create(user=user, name="phone", confirmed=True)


def code_of(device: Any) -> str:
    return f"{totp(device.bin_key, device.step, device.t0, device.digits):0{device.digits}}"


def log_in(api: APIClient, user: Any, password: str = PASSWORD, **more: Any) -> Any:
    body = {"username": user.get_username(), "password": password, **more}
    return api.post("/auth/login/", body, format="json")


def test_a_login_needs_the_code(api: APIClient, user: Any, device: Any) -> None:
    answer = log_in(api, user)
    assert (answer.status_code, answer.json()["code"]) == (401, "code_required")
    assert not Session.objects.exists()
    code = code_of(device)
    (body,) = shown("docs/how-to/second-factor.rst", "json")
    assert list(json.loads(body)) == ["username", "password", "code"]
    assert log_in(api, user, "wrong", code=code).json()["code"] == "invalid_credentials"
    assert log_in(api, user, code=code).status_code == 200
    # A code is good once.
    assert log_in(api, user, code=code).json()["code"] == "code_refused"
    assert Session.objects.count() == 1


@pytest.mark.parametrize("code", ["", "12345", "9" * 5000, None, ["123456"], {}, -1, True, 1.5])
def test_no_other_code_is_let_in(api: APIClient, user: Any, device: Any, code: Any) -> None:
    answer = log_in(api, user, code=code)
    assert (answer.status_code, answer.json()["code"]) == (401, "code_refused")


def test_a_code_may_be_a_field_of_the_serializer(user: Any, device: Any) -> None:
    class WithCode(LoginSerializer):
        code = serializers.IntegerField(required=False, min_value=0, max_value=999_999)

    class Login(LoginView):
        serializer_class = WithCode

    def post(**more: Any) -> Any:
        body = {"username": user.get_username(), "password": PASSWORD, **more}
        return Login.as_view()(APIRequestFactory().post("/", body, format="json"))

    assert post().data["code"] == "code_required"
    refused = post(code="twelve").data
    assert (refused["code"], list(refused["errors"])) == ("invalid", ["code"])
    assert post(code=code_of(device)).status_code == 200


def test_codes_cannot_be_guessed(api: APIClient, user: Any, device: Any) -> None:
    answers = [log_in(api, user, code=f"{n:06}").status_code for n in range(12)]
    assert answers == [401] * 10 + [429] * 2


def test_a_confirmation_logs_nobody_in_without_the_code(
    api: APIClient, user: Any, device: Any, mailoutbox: list[Any]
) -> None:
    options = {
        "BASE_URL": "https://app.example.com",
        "CONFIRM_LOGS_IN": True,
        "HOOKS": "tests.second_factor.SecondFactor",
    }
    with override_settings(ACCESSPASS=options):
        for code in (None, code_of(device)):
            Account.objects.update(confirmed_email="")  # or there is nothing to confirm
            mail.notify(CONFIRM, user)
            mail.deliver()
            body = {"key": key_in(mailoutbox.pop())} | ({} if code is None else {"code": code})
            answer = api.post("/auth/confirm/", body, format="json")
            assert answer.status_code == 200
            assert Account.objects.get().is_confirmed(user)
            assert ("access_token" in answer.json()) is (code is not None)
            assert Session.objects.count() == (code is not None)


def test_whoever_has_no_device_needs_no_code(api: APIClient, user: Any, device: Any) -> None:
    device.delete()
    assert log_in(api, user).status_code == 200
