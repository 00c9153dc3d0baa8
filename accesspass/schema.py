"""The OpenAPI description of the views, for projects that have drf-spectacular.

It is made from what the views themselves go by: a body from its serializer, the need for a token
from the authenticators, the status and code of an error from the exception. `_operations` says what
no other place does: how an operation is called, how it answers, and what it may refuse beyond what
every view of its kind does. All of it follows the settings at hand: with REFRESH_COOKIE there is no
`refresh_token` in any body.

Names of components begin with `Auth`, so that they stay clear of the project's own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import wraps
from http import HTTPStatus
from typing import Any, NamedTuple

from django.core.exceptions import RequestDataTooBig
from drf_spectacular.extensions import OpenApiSerializerFieldExtension, OpenApiViewExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent, append_meta
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework import exceptions as drf

from accesspass import serializers, views
from accesspass.conf import conf
from accesspass.exceptions import (
    Busy,
    EmailTaken,
    Invalid,
    InvalidClient,
    InvalidCredentials,
    InvalidKey,
    InvalidToken,
    NotFound,
    OriginNotAllowed,
    Throttled,
    TokenRequired,
    Unavailable,
    UsernameTaken,
)
from accesspass.security_scheme import TokenScheme

__all__ = ["AuthSchema"]

_Schema = dict[str, Any]


class _Operation(NamedTuple):
    id: str
    answers: Mapping[int, str | None]
    """The name of the body, of those in `_bodies`, by status; None for no body."""
    errors: Sequence[type[Exception]] = ()


def _operations() -> dict[type[Any], dict[str, _Operation]]:
    ended = {204: None, 202: "Pending"}
    on_its_way = {202: "OnItsWay"}
    tokens = {200: "TokenPair"}
    password = [InvalidCredentials, Throttled, Busy]  # `accounts._checked` has been asked
    if conf.REQUIRE_CONFIRMED_EMAIL:
        register = _Operation("register", on_its_way, [Throttled, Busy])
    else:
        taken = [UsernameTaken, EmailTaken]
        register = _Operation("register", {201: "Registration"}, [*taken, Throttled, Busy])
    confirmed = {200: "Confirmation" if conf.CONFIRM_LOGS_IN else "Nothing"}
    refused = [InvalidToken] if conf.REFRESH_COOKIE is None else [InvalidToken, TokenRequired]
    logout = [InvalidToken, TokenRequired]
    return {
        views.RegisterView: {"POST": register},
        views.LoginView: {"POST": _Operation("login", tokens, password)},
        views.RefreshView: {"POST": _Operation("refreshToken", tokens, refused)},
        views.ExchangeView: {"POST": _Operation("exchangeToken", tokens, [InvalidToken])},
        views.CheckView: {"GET": _Operation("checkToken", {200: "Check"})},
        views.LogoutView: {"POST": _Operation("logout", ended, logout)},
        views.LogoutAllView: {"POST": _Operation("logoutEverywhere", ended, logout)},
        views.SessionListView: {"GET": _Operation("listSessions", {200: "Sessions"})},
        views.SessionDetailView: {"DELETE": _Operation("endSession", ended, [NotFound])},
        views.IntrospectView: {"POST": _Operation("introspectToken", {200: "Introspection"})},
        views.RevokeView: {"POST": _Operation("revokeToken", {200: "Revocation"})},
        views.ConfirmView: {"POST": _Operation("confirmEmail", confirmed, [InvalidKey])},
        views.ConfirmResendView: {
            "POST": _Operation("resendConfirmation", on_its_way, [Throttled])
        },
        views.PasswordResetView: {
            "POST": _Operation("requestPasswordReset", on_its_way, [Throttled])
        },
        views.PasswordResetConfirmView: {
            "POST": _Operation("resetPassword", ended, [InvalidKey, Busy])
        },
        views.PasswordChangeView: {"POST": _Operation("changePassword", ended, password)},
        views.UsernameForgotView: {"POST": _Operation("requestUsername", on_its_way, [Throttled])},
        views.EmailChangeView: {
            "POST": _Operation("requestEmailChange", on_its_way, [*password, NotFound])
        },
        views.EmailChangeConfirmView: {
            "POST": _Operation("confirmEmailChange", {204: None}, [InvalidKey, EmailTaken])
        },
        views.AccountView: {
            "GET": _Operation("getAccount", {200: "AccountAnswer"}),
            "PATCH": _Operation(
                "updateAccount", {200: "AccountAnswer"}, [*password, UsernameTaken]
            ),
        },
        views.AccountDeleteView: {"POST": _Operation("deleteAccount", ended, password)},
    }


def _object(needed: _Schema, further: _Schema | None = None, about: str = "") -> _Schema:
    schema: _Schema = {"type": "object", "properties": {**needed, **(further or {})}}
    if needed:
        schema["required"] = list(needed)
    if about:
        schema["description"] = about
    return schema


def _refer(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _enum(values: Iterable[str]) -> _Schema:
    return {"type": "string", "enum": list(values)}


def _or_null(schema: _Schema, about: str) -> _Schema:
    found: _Schema = append_meta(dict(schema), {"nullable": True, "description": about})
    return found


def _listed(codes: Mapping[str, str]) -> str:
    return "\n".join(f"* `{code}`: {said}" for code, said in codes.items())


_TEXT: _Schema = {"type": "string"}
_COUNT: _Schema = {"type": "integer"}
_FLAG: _Schema = {"type": "boolean"}
_JSON: _Schema = {"type": "object", "additionalProperties": True}
_USER = {"id": _TEXT, "username": _TEXT, "email": _TEXT, "meta": _JSON}
_WITH_TOKENS = {"TokenPair", "Registration", "Confirmation"}
_MORE = "What `Hooks.login_response` adds is here too."


def _bodies() -> dict[str, _Schema]:
    """Return what the views answer with, and what that is made of."""
    tokens: _Schema = {
        "token_type": _refer("AuthTokenType"),
        "access_token": _TEXT,
        "expires_in": {**_COUNT, "description": "In seconds."},
        "refresh_token": _TEXT,
        "refresh_expires_in": _or_null(_COUNT, "In seconds; null is never."),
    }
    if conf.REFRESH_COOKIE is not None:
        del tokens["refresh_token"]
    user = {"user": _refer("AuthUser")}
    return {
        "User": _object(_USER, about="`meta` is what the client said of itself."),
        "TokenType": _enum(["Bearer"]),
        "TokenPair": _object(tokens, about=_MORE),
        "Registration": _object({**user, **tokens}, about=_MORE),
        "Confirmation": _object({}, tokens, f"Empty where `Hooks.may_login` refuses. {_MORE}"),
        "Nothing": {"type": "object", "description": "An empty object."},
        "OnItsWay": _object({"detail": _TEXT}, about="The same whoever was named."),
        "Pending": _object(
            {"sessions_ended": _refer("AuthSessionsEnded")},
            about="Recorded, and not yet acknowledged by the engine that tells every node.",
        ),
        "SessionsEnded": _enum(["pending"]),
        "Check": _object({**user, "claims": _JSON, "email_confirmed": _FLAG, "expires_in": _COUNT}),
        "Sessions": {"type": "array", "items": _refer("AuthSession")},
        "Introspection": _object(
            {"active": _FLAG},
            {
                "token_type": _refer("AuthTokenType"),
                "sub": _TEXT,
                "username": _TEXT,
                "exp": _COUNT,
                "sid": {**_TEXT, "format": "uuid"},
                "email": _TEXT,
                "email_confirmed": _FLAG,
                "claims": _JSON,
                "meta": _JSON,
                "session_exp": _or_null({"type": "number"}, "In Unix seconds; null is never."),
                "scope": _TEXT,
            },
            "Of a token that is not active there is nothing else (RFC 7662 §2.2).",
        ),
        "Revocation": _object({}, {"sessions_ended": _refer("AuthSessionsEnded")}),
        "AccountAnswer": _object({"user": _refer("AuthAccountUser")}),
        "FieldErrors": {
            "type": "object",
            "description": "What is wrong with each field. It is there if `code` is `invalid`.",
            "additionalProperties": {"type": "array", "items": _refer("AuthFieldError")},
        },
        "FieldError": _object({"message": _TEXT, "code": _TEXT}),
    }


# What the errors of several operations are called, by their status and their codes in the order of
# the alphabet. Others have the name of their operation.
_ERROR_NAMES = {
    (400, "invalid parse_error"): "BadRequest",
    (400, "invalid invalid_key parse_error"): "BadKey",
    (400, "invalid parse_error token_required"): "NoToken",
    (401, "invalid_client"): "UnknownClient",
    (401, "invalid_credentials invalid_token token_required"): "AccountUnauthorized",
    (401, "invalid_token"): "InvalidToken",
    (401, "invalid_token token_required"): "Unauthorized",
    (403, "origin_not_allowed"): "ForeignOrigin",
    (404, "not_found"): "NotFound",
    (406, "not_acceptable"): "NotAcceptable",
    (413, "parse_error"): "TooLarge",
    (415, "unsupported_media_type"): "UnsupportedMediaType",
    (429, "throttled"): "Throttled",
    (503, "busy unavailable"): "BusyOrUnavailable",
    (503, "unavailable"): "Unavailable",
}


class AuthSchema(AutoSchema):
    """The operations of our views, and of subclasses of them.

    ``extend_schema`` and a project's own class in ``DEFAULT_SCHEMA_CLASS`` come before it.
    """

    view: Any

    @property
    def _operation(self) -> _Operation | None:
        """Our entry for the operation; None for a method that a subclass has added."""
        known = _operations()
        ours = next((known[x] for x in type(self.view).__mro__ if x in known), {})
        return ours.get(self.method)

    def get_operation(self, *args: Any, **kwargs: Any) -> _Schema | None:
        found: _Schema | None = super().get_operation(*args, **kwargs)
        if found is not None:
            found.setdefault("security", [])  # or what holds for the whole document would hold here
        return found

    def get_operation_id(self) -> str:
        ours = self._operation
        return super().get_operation_id() if ours is None else ours.id

    def get_tags(self) -> list[str]:
        return ["auth"]

    def _paragraphs(self) -> tuple[str, str]:
        """Return what the docstring of the view says of this method, and the rest of it."""
        first, _, rest = (inspect.getdoc(type(self.view)) or "").partition("\n\n")
        found = re.search(rf"\b{self.method}: (.+?\.)(?: [A-Z]+: |$)", first, re.DOTALL)
        text = " ".join((found[1] if found else first).split())
        return text[:1].upper() + text[1:], rest

    def get_summary(self) -> str:
        return self._paragraphs()[0].removesuffix(".")

    def get_description(self) -> str:  # type: ignore[override] # of DRF's own, by path and method
        return self._paragraphs()[1]

    # What it takes

    @property
    def _takes_a_body(self) -> bool:
        return self.method in ("POST", "PATCH") and hasattr(self.view, "serializer_class")

    def get_request_serializer(self) -> Any:
        if self._operation is None:
            return super().get_request_serializer()
        if not self._takes_a_body or self._token_is_in_the_cookie:
            return None
        if self.method == "PATCH":
            # The view asks for what the serializer requires, which is not partial.
            body = self.resolve_serializer(self.view.serializer_class, "request").ref
            return dict.fromkeys(self.map_parsers(), body)
        return self.view.serializer_class

    def get_serializer_name(self, serializer: Any, direction: Any) -> str:
        return "Auth" + type(serializer).__name__

    @property
    def _token_is_in_the_cookie(self) -> bool:
        takes = issubclass(
            getattr(self.view, "serializer_class", object),
            (serializers.RefreshSerializer, serializers.LogoutSerializer),
        )
        return takes and conf.REFRESH_COOKIE is not None

    def get_auth(self) -> list[_Schema]:
        if isinstance(self.view, views._ServiceView):
            return [self._scheme("clientSecret", {"type": "http", "scheme": "basic"})]
        if self.view.authentication_classes:
            found: list[_Schema] = super().get_auth()
            return found
        found = []
        if isinstance(self.view, views.LogoutView):
            scheme = TokenScheme(self.view).get_security_definition(self)  # type: ignore[no-untyped-call]
            found = [self._scheme(TokenScheme.name, scheme)]
        if self._token_is_in_the_cookie:
            cookie = {"type": "apiKey", "in": "cookie", "name": conf.REFRESH_COOKIE}
            found.append(self._scheme("refreshCookie", cookie))
        elif found:
            found.append({})  # the token may be in the body instead
        return found

    def _scheme(self, name: str, definition: _Schema) -> _Schema:
        self._register(name, definition, ResolvedComponent.SECURITY_SCHEMA)
        return {name: []}

    # How it answers

    def get_response_serializers(self) -> Any:
        ours = self._operation
        if ours is None:
            return super().get_response_serializers()
        answers = {
            status: OpenApiResponse(name and self._body(name), HTTPStatus(status).phrase)
            for status, name in ours.answers.items()
        }
        refusals = {
            status: OpenApiResponse(self._error(status, codes), _listed(codes))
            for status, codes in self._refusals(ours).items()
        }
        return {**answers, **refusals}

    def _refusals(self, ours: _Operation) -> dict[int, dict[str, str]]:
        """Return the codes that the operation may refuse with, and what is said, by status."""
        own = conf.hooks().refusals.get(ours.id, ())
        errors: list[Exception] = [error() for error in (*ours.errors, *own)]
        errors += [drf.NotAcceptable(), Unavailable()]
        if self._takes_a_body:
            errors += [Invalid(), drf.ParseError(), RequestDataTooBig()]
            errors.append(drf.UnsupportedMediaType("text/plain"))
        if isinstance(self.view, views._ServiceView):
            errors.append(InvalidClient())
        elif self.view.authentication_classes:
            errors += [drf.NotAuthenticated(), InvalidToken()]
        if conf.REFRESH_COOKIE is not None and self.method == "POST":
            errors.append(OriginNotAllowed())
        found: dict[int, dict[str, str]] = {}
        for error in errors:
            said = views.translated(error)
            assert said is not None  # noqa: S101 - each of them is one of ours
            status, code, detail, _, _ = said
            found.setdefault(status, {}).setdefault(code, detail)
        return {status: dict(sorted(found[status].items())) for status in sorted(found)}

    def _error(self, status: int, codes: Iterable[str]) -> _Schema:
        codes = list(codes)
        of_a_service = isinstance(self.view, views._ServiceView) and status in (400, 401)
        usual = _ERROR_NAMES.get((status, " ".join(codes)))
        name = self.get_operation_id() + str(status) if usual is None else usual
        name = f"Auth{'Service' if of_a_service else ''}{name[0].upper()}{name[1:]}Error"
        # Not in the place where it is used: drf-spectacular would give a name of its own to it, and
        # to every other `code` of the project that has choices.
        self._register(f"{name}Code", _enum(codes))
        needed = {"detail": _TEXT, "code": _refer(f"{name}Code")}
        if of_a_service:
            needed["error"] = {**_TEXT, "description": "As RFC 6749 §5.2 names it."}
        errors = {"errors": self._body("FieldErrors")} if Invalid.code in codes else {}
        return self._register(name, _object(needed, errors))

    def get_override_parameters(self) -> list[Any]:
        ours = self._operation
        if ours is None:
            found: list[Any] = super().get_override_parameters()
            return found
        refusals = self._refusals(ours)

        def header(name: str, type: Any, about: str, on: Iterable[int], **more: Any) -> Any:
            on = [status for status in on if status in refusals or status in ours.answers]
            more = {"required": True, "description": about, "response": on, **more}
            return [OpenApiParameter(name, type, "header", **more)] if on else []

        scheme = "Basic" if isinstance(self.view, views._ServiceView) else "Bearer"
        found = [
            *header("Retry-After", int, "In seconds.", (429, 503)),
            *header("WWW-Authenticate", str, f"The scheme is {scheme}.", (401,)),
            *header("Cache-Control", str, "no-store, as on every answer.", ours.answers),
        ]
        gives = not _WITH_TOKENS.isdisjoint(ours.answers.values())
        if conf.REFRESH_COOKIE is not None and (gives or self._token_is_in_the_cookie):
            about = f"The cookie {conf.REFRESH_COOKIE} with the refresh token, or its end."
            found += header("Set-Cookie", str, about, ours.answers, required=False)
        if isinstance(self.view, views.SessionDetailView):
            about = "As in the list of sessions."
            found.append(
                OpenApiParameter(
                    "session_id", OpenApiTypes.UUID, OpenApiParameter.PATH, description=about
                )
            )
        return found

    def _body(self, name: str) -> _Schema:
        """Put a body of ours, and what it refers to, among the components."""
        if name == "AccountUser":
            return self._register("AuthAccountUser", self._account_user())
        if name == "Session":
            ref: _Schema = self.resolve_serializer(serializers.SessionSerializer, "response").ref
            return ref
        schema = _bodies()[name]
        for inner in re.findall(r"#/components/schemas/Auth(\w+)", str(schema)):
            self._body(inner)
        return self._register(f"Auth{name}", schema)

    def _account_user(self) -> _Schema:
        """What `AccountSerializer` shows: the user, with what a project has added."""
        further = {
            name: self._map_serializer_field(field, "response")  # type: ignore[no-untyped-call]
            for name, field in self.view.serializer_class().fields.items()
            if not field.write_only
        }
        return _object({**_USER, **further})

    def _register(
        self, name: str, schema: _Schema, kind: str = ResolvedComponent.SCHEMA
    ) -> _Schema:
        component = ResolvedComponent(name, kind, schema, AuthSchema)
        self.registry.register_on_missing(component)
        ref: _Schema = component.ref
        return ref


class _Views(OpenApiViewExtension):
    target_class = views._AuthView
    match_subclasses = True

    def view_replacement(self) -> Any:
        described: dict[str, Any] = {"schema": _over_ours(type(self.target.schema))()}
        for name in self.target.http_method_names:
            method = getattr(self.target, name, None)
            # Where `extend_schema` has left what it was told.
            more = getattr(method, "kwargs", {})
            if method is not None and "schema" in more:
                described[name] = _copy(method)
                described[name].kwargs = {**more, "schema": _over_ours(more["schema"])}
        return type(self.target.__name__, (self.target,), described)


def _over_ours(found: type[Any]) -> type[Any]:
    """Return what a project has said of an operation, over what is said here."""
    if not issubclass(found, AutoSchema) or found is AutoSchema:
        return AuthSchema
    return type("ProjectAuthSchema", (found, AuthSchema), {})


def _copy(method: Any) -> Any:
    @wraps(method)
    def copy(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return copy


class _Password(OpenApiSerializerFieldExtension):
    target_class = serializers._PasswordField

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> _Schema:
        return {**_TEXT, "format": "password", "maxLength": conf.PASSWORD_MAX_LENGTH}


class _Meta(OpenApiSerializerFieldExtension):
    target_class = serializers._MetaField

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> _Schema:
        return dict(_JSON)


class _Any(OpenApiSerializerFieldExtension):
    target_class = serializers._AnyField

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> _Schema:
        return dict(_TEXT)  # what is none is let through, but nobody is to send it


class _Instant(OpenApiSerializerFieldExtension):
    target_class = serializers._Instant

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> _Schema:
        return {**_TEXT, "format": "date-time"}
