"""The example of docs/how-to/second-factor.rst."""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest
from django_otp import match_token, user_has_device

from accesspass.exceptions import AccessPassError
from accesspass.hooks import Hooks


class CodeRequired(AccessPassError):
    code = "code_required"
    status = 401
    default_detail = "Send the code that your app shows."


class CodeRefused(AccessPassError):
    code = "code_refused"
    status = 401
    default_detail = "This code is wrong, or was used before."


class SecondFactor(Hooks):
    refusals = {"login": [CodeRequired, CodeRefused]}  # for the OpenAPI description

    def may_login(
        self, user: AbstractBaseUser, data: Mapping[str, Any], request: HttpRequest | None
    ) -> None:
        if not user_has_device(user):
            return
        if "code" not in data:
            raise CodeRequired
        if match_token(user, str(data["code"])) is None:
            raise CodeRefused
