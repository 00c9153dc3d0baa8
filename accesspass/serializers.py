"""The shapes of request bodies. What the values mean is decided in `accounts`.

The docstrings of serializers are read by clients: they stand in the OpenAPI description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import IO, Any, NoReturn

from django.core.exceptions import TooManyFieldsSent
from django.http import QueryDict
from django.utils.translation import gettext_lazy as _
from rest_framework import parsers, serializers
from rest_framework.exceptions import ParseError

from accesspass import accounts
from accesspass.accounts import json_problem, username_is_email
from accesspass.conf import conf
from accesspass.devices import device_name
from accesspass.models import Session, email_field, in_utc

__all__ = [
    "AccountDeleteSerializer",
    "AccountSerializer",
    "EmailChangeSerializer",
    "KeySerializer",
    "LoginSerializer",
    "LogoutSerializer",
    "PasswordChangeSerializer",
    "PasswordResetSerializer",
    "RefreshSerializer",
    "RegisterSerializer",
    "ServiceTokenSerializer",
    "SessionSerializer",
    "StrictFormParser",
    "StrictJSONParser",
    "UsernameForgotSerializer",
    "UsernameSerializer",
]


class StrictJSONParser(parsers.JSONParser):
    """JSON in UTF-8 (RFC 8259), an object, of nothing that a database could not store.

    NUL, lone surrogates, NaN, numbers out of range and deep nesting are a ParseError here, since
    each of them is an internal error somewhere below.
    """

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        try:
            data = json.loads(stream.read().decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ParseError(_("The body is not valid JSON.")) from None
        if not isinstance(data, dict):
            raise serializers.ValidationError({"non_field_errors": [_("Send a JSON object.")]})
        if problem := json_problem(data):
            raise ParseError(problem)
        return data


class StrictFormParser(parsers.FormParser):
    """A form in UTF-8, whatever charset the request names, with each parameter once (RFC 6749
    §3.2)."""

    def parse(  # type: ignore[override] # the stubs name a class that is only theirs
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> QueryDict:
        try:
            data = QueryDict(stream.read(), encoding="utf-8")
        except TooManyFieldsSent:
            raise ParseError(_("The form has too many fields.")) from None
        if any(len(values) > 1 for _name, values in data.lists()):
            raise ParseError(_("The form has a parameter twice."))
        return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


class _TextField(serializers.CharField):
    """Text and nothing that could be turned into it: 1 and true are no usernames."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        text: str = super().to_internal_value(data)
        return text


class _PasswordField(_TextField):
    """A password exactly as it was typed, spaces included."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, write_only=True, **kwargs)

    def run_validation(self, data: Any = serializers.empty) -> Any:
        # Read at each request, so that a changed setting is obeyed. Longer ones are never hashed.
        if isinstance(data, str) and len(data) > conf.PASSWORD_MAX_LENGTH:
            raise serializers.ValidationError(
                _("This has more than %(limit)d characters.") % {"limit": conf.PASSWORD_MAX_LENGTH},
                code="max_length",
            )
        return super().run_validation(data)


class _MetaField(serializers.JSONField):
    """What a client says of itself; that it is an object and not too large is seen to later."""


class _Instant(serializers.Field[Any, Any, str, Any]):
    """A time in UTC (RFC 3339), whatever format and time zone the project's own API has."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(read_only=True, **kwargs)

    def to_representation(self, value: datetime) -> str:
        return in_utc(value).replace(microsecond=0).isoformat().replace("+00:00", "Z")


class RegisterSerializer(serializers.Serializer[Any]):
    """`username` may be left out where the user model's username is the e-mail address, and `email`
    too if `username` holds that address."""

    # A subclass may declare more fields: those that the user model has are put into the new user,
    # and all of them reach `Hooks.prepare_user` and `create_user`.

    username = _TextField(required=False, max_length=255)
    email = _TextField(required=False, max_length=254)
    password = _PasswordField()
    password_confirm = _PasswordField(required=False)
    meta = _MetaField(required=False)

    def get_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = super().get_fields()
        fields["username"].required = not username_is_email()
        fields["email"].required = email_field() is not None and not username_is_email()
        return fields

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if username_is_email():
            attrs.setdefault("email", attrs.get("username", ""))
            attrs.setdefault("username", "")
            if not attrs["email"]:
                message = self.fields["email"].error_messages["required"]
                raise serializers.ValidationError({"email": message}, code="required")
        if email_field() is None:
            attrs["email"] = ""
        attrs.setdefault("email", "")
        _compare_passwords(attrs, "password")
        return attrs


def _compare_passwords(attrs: dict[str, Any], field: str) -> None:
    if attrs.pop("password_confirm", attrs[field]) != attrs[field]:
        raise serializers.ValidationError(
            {"password_confirm": _("The passwords differ.")}, code="password_mismatch"
        )


class LoginSerializer(serializers.Serializer[Any]):
    username = _TextField(max_length=255)
    password = _PasswordField()


class RefreshSerializer(serializers.Serializer[Any]):
    refresh_token = _TextField(max_length=255, trim_whitespace=False)


class _AnyField(serializers.Field[Any, Any, Any, Any]):
    """Whatever was sent: what is no token is treated like one that is unknown (RFC 7009 §2.2)."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        return "" if data is None else super().run_validation(data)

    def to_internal_value(self, data: Any) -> Any:
        return data


class LogoutSerializer(serializers.Serializer[Any]):
    refresh_token = _AnyField(required=False)


class ServiceTokenSerializer(serializers.Serializer[Any]):
    """Of RFC 7662 and RFC 7009. `token_type_hint` is not needed: a token says what it is."""

    token = _TextField(trim_whitespace=False)


class SessionSerializer(serializers.Serializer[Session]):
    """A session as its user sees it. `current` marks the one of the request itself."""

    # `context["current"]` is the id of that one.

    id = serializers.UUIDField()
    device = serializers.SerializerMethodField()
    ip = serializers.IPAddressField(allow_null=True)
    created_at = _Instant()
    last_used_at = _Instant()
    expires_at = _Instant(allow_null=True)
    current = serializers.SerializerMethodField()

    def get_device(self, session: Session) -> str:
        return session.name or device_name(session.user_agent)

    def get_current(self, session: Session) -> bool:
        return bool(session.pk == self.context["current"])


class UsernameSerializer(serializers.Serializer[Any]):
    """Whose e-mail it is: the username or the address, in any case."""

    username = _TextField(max_length=255)


class UsernameForgotSerializer(serializers.Serializer[Any]):
    email = _TextField(max_length=254)


class KeySerializer(serializers.Serializer[Any]):
    """A one-time key from an e-mail."""

    key = _TextField(max_length=255, trim_whitespace=False, write_only=True)


class _NewPasswordSerializer(serializers.Serializer[Any]):
    new_password = _PasswordField()
    password_confirm = _PasswordField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        _compare_passwords(attrs, "new_password")
        return attrs


class PasswordResetSerializer(KeySerializer, _NewPasswordSerializer):
    pass


class PasswordChangeSerializer(_NewPasswordSerializer):
    current_password = _PasswordField()


class EmailChangeSerializer(serializers.Serializer[Any]):
    current_password = _PasswordField()
    email = _TextField(max_length=254)


class AccountDeleteSerializer(serializers.Serializer[Any]):
    current_password = _PasswordField()


class AccountSerializer(serializers.Serializer[Any]):
    """What a user may change of the own account. A new username needs the present password.

    The address and the password have routes of their own.
    """

    # A subclass may declare more fields of the user model: they are shown under `user` and may be
    # changed, unless they are read-only.

    username = _TextField(required=False, max_length=255, write_only=True)
    meta = _MetaField(required=False, write_only=True)
    current_password = _PasswordField(required=False)

    def to_representation(self, instance: Any) -> dict[str, Any]:
        """Return the user as answers show it, with the further fields. `meta` is in the context."""
        shown = accounts.describe(instance, self.context["meta"])
        return {**shown, **super().to_representation(instance)}
