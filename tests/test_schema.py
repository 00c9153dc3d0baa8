"""The OpenAPI description. That no other answer is ever given is watched by `tests.conformance`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
import yaml
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import OperationalError
from django.test import override_settings
from django.urls import include, path
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.settings import patched_settings
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework.test import APIClient

from accesspass import accounts, hashing, sessions, views
from accesspass.authentication import TokenAuthentication
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET, mint
from accesspass.exceptions import InvalidCredentials
from accesspass.models import Account
from accesspass.resource import ResourceServerAuthentication
from accesspass.tokens import TokenType
from accesspass.tokens import mint as mint_token
from tests import customise, second_factor
from tests.conftest import PASSWORD, MakeUser
from tests.test_introspection import SECRET, basic, digest
from tests.test_views import NEW

CHECKED_IN = Path(__file__).parent.parent / "docs" / "reference" / "openapi.yaml"
SCHEMA = yaml.safe_load(CHECKED_IN.read_text(encoding="utf-8"))
OPERATIONS = {
    operation["operationId"]: (method.upper(), route, operation)
    for route, methods in SCHEMA["paths"].items()
    for method, operation in methods.items()
}
OTHER = "another horse battery"
FORM = "application/x-www-form-urlencoded"


def generate(patterns: Any = None, **settings: Any) -> Any:
    if patterns is None:
        patterns = [path("auth/", include("accesspass.urls"))]
    options = {"BASE_URL": "https://app.example.com", **settings}
    without_prefix = patched_settings({"SCHEMA_PATH_PREFIX_INSERT": ""})
    with override_settings(ACCESSPASS=options), without_prefix:
        return SchemaGenerator(patterns=patterns).get_schema(public=True)


def body_of(operation: Any, schema: Any = SCHEMA, status: str = "") -> Any:
    """Return the schema of the body that an operation takes, or answers with."""
    where = operation["responses"][status] if status else operation["requestBody"]
    ((_, content),) = where["content"].items()
    return schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]


def codes_of(operation: Any, status: str, schema: Any = SCHEMA) -> list[str]:
    code = body_of(operation, schema, status)["properties"]["code"]["$ref"].rpartition("/")[2]
    found: list[str] = schema["components"]["schemas"][code]["enum"]
    return found


def test_the_one_that_is_checked_in_is_the_one_of_today(tmp_path: Path) -> None:
    written = tmp_path / "openapi.yaml"
    options: dict[str, Any] = {"urlconf": "accesspass.urls", "file": str(written)}
    call_command("spectacular", fail_on_warn=True, **options)
    assert written.read_text("utf-8") == CHECKED_IN.read_text("utf-8"), "run `make schema`"


@pytest.mark.pipeline  # to validate takes seconds
@pytest.mark.parametrize("version", ["3.0.3", "3.1.0"])
@pytest.mark.parametrize(
    "options",
    [
        {"REFRESH_COOKIE": "refresh", "ACCESS_TOKEN_HEADER": "X-Access"},
        {"REQUIRE_CONFIRMED_EMAIL": True, "CONFIRM_LOGS_IN": True},
        {"HOOKS": "tests.second_factor.SecondFactor"},
    ],
)
def test_no_settings_make_it_warn_or_invalid(options: Any, version: str, tmp_path: Path) -> None:
    settings = {"BASE_URL": "https://app.example.com", **options}
    file = str(tmp_path / "openapi.yaml")
    changes = {"OAS_VERSION": version, "COMPONENT_SPLIT_REQUEST": version == "3.1.0"}
    with override_settings(ACCESSPASS=settings), patched_settings(changes):
        options = {"urlconf": "accesspass.urls", "file": file}
        call_command("spectacular", fail_on_warn=True, validate=True, **options)


def test_every_route_is_described_under_a_name_of_its_own() -> None:
    from accesspass.urls import urlpatterns

    assert {
        f"/auth/{x.pattern}".replace("<str:session_id>", "{session_id}") for x in urlpatterns
    } == set(SCHEMA["paths"])
    assert len(OPERATIONS) == len(urlpatterns) + 1  # `account/` has two
    assert all(operation["summary"] for _, _, operation in OPERATIONS.values())


# Every refusal that is named can be had


class Asker:
    """Sends an operation what it takes, or something else instead."""

    def __init__(self, user: Any, operation: str) -> None:
        self.user = user
        self.id = operation
        self.method, self.route, self.operation = OPERATIONS[operation]
        self.pair = sessions.start(user)
        Account.objects.for_user(user)
        self.is_form = self.id in ("introspectToken", "revokeToken")

    def good(self) -> dict[str, Any]:
        password = {"current_password": PASSWORD}
        bodies: dict[str, Callable[[], dict[str, Any]]] = {
            "register": lambda: {**NEW, "username": "alice", "email": "alice@example.com"},
            "login": lambda: {"username": self.user.get_username(), "password": PASSWORD},
            "refreshToken": lambda: {"refresh_token": self.pair.refresh_token},
            "introspectToken": lambda: {"token": self.pair.access_token},
            "revokeToken": lambda: {"token": self.pair.access_token},
            "confirmEmail": lambda: {"key": self.key(CONFIRM)},
            "resendConfirmation": lambda: {"username": "nobody"},
            "requestPasswordReset": lambda: {"username": "nobody"},
            "resetPassword": lambda: {"key": self.key(PASSWORD_RESET), "new_password": OTHER},
            "changePassword": lambda: {**password, "new_password": OTHER},
            "requestUsername": lambda: {"email": "nobody@example.com"},
            "requestEmailChange": lambda: {**password, "email": "new@example.com"},
            "confirmEmailChange": lambda: {"key": self.key(EMAIL_CHANGE)},
            "updateAccount": lambda: {**password, "username": "robert"},
            "deleteAccount": lambda: password,
        }
        return bodies.get(self.id, dict)()

    def key(self, purpose: str) -> str:
        change = purpose == EMAIL_CHANGE
        return mint(self.user, purpose, "new@example.com" if change else self.user.email)

    def send(self, changes: Any = None, *, authorization: str | None = None, **more: Any) -> Any:
        body = more.pop("body", None)
        if body is None:
            values = {**self.good(), **(changes or {})}
            body = urlencode(values) if self.is_form else json.dumps(values)
        if authorization is None:
            signed_in = {"accessToken": []} in self.operation["security"]
            token = f"Bearer {self.pair.access_token}" if signed_in else ""
            authorization = basic() if self.is_form else token
        if authorization:
            more["HTTP_AUTHORIZATION"] = authorization
        more.setdefault("content_type", FORM if self.is_form else "application/json")
        route = self.route.replace("{session_id}", str(more.pop("session_id", uuid4())))
        return APIClient().generic(self.method, route, body, **more)


def refusals() -> list[Any]:
    return [
        pytest.param(name, int(status), code, id=f"{name}-{status}-{code}")
        for name, (_, _, operation) in OPERATIONS.items()
        for status in operation["responses"]
        if status >= "400"
        for code in codes_of(operation, status)
    ]


@pytest.mark.django_db
@pytest.mark.parametrize(("operation", "status", "code"), refusals())
def test_every_refusal_that_is_named_can_be_had(
    operation: str,
    status: int,
    code: str,
    user: Any,
    make_user: MakeUser,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"INTROSPECTION_CLIENTS": {"notes": digest(SECRET)}}
    settings.ACCESSPASS = {"BASE_URL": "https://app.example.com", **options}
    ask = Asker(user, operation)

    def fail_with(error: Exception) -> Callable[..., Any]:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise error

        return fail

    def throttled() -> Any:
        scope = {"register": "register", "requestEmailChange": "mail"}.get(operation, "login")
        scope = "mail" if operation.startswith(("resend", "request")) else scope
        limits = {"THROTTLES": {scope: {"account_network": "1/day"}}}
        settings.ACCESSPASS = {**settings.ACCESSPASS, **limits}
        wrong = {"current_password": "wrong"}
        ask.send(wrong if "current_password" in ask.good() else {})
        return ask.send()

    def busy() -> Any:
        monkeypatch.setattr(hashing, "_WAIT", 0)
        settings.ACCESSPASS = {**settings.ACCESSPASS, "HASHING_CONCURRENCY": 1}
        with ExitStack() as stack:
            stack.enter_context(hashing.slot(None))
            return ask.send()

    def unavailable() -> Any:
        monkeypatch.setattr(sessions, "join", fail_with(OperationalError("gone")))
        return ask.send()

    def too_large() -> Any:
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1
        return ask.send(body="x=" * 100)

    def gone() -> Any:
        if operation == "login":
            return ask.send({"password": "wrong"})
        # As if another request had just deleted the user.
        monkeypatch.setattr(accounts, "_stored", fail_with(InvalidCredentials()))
        return ask.send()

    def not_found() -> Any:
        if operation == "requestEmailChange":  # the user model has no such field
            monkeypatch.setattr(get_user_model(), "get_email_field_name", lambda: "nothing")
        return ask.send()

    def bad_token() -> Any:
        if operation == "refreshToken":
            return ask.send({"refresh_token": "nonsense"})
        expired = mint_token(TokenType.ACCESS, ask.pair.session_id.bytes, 1_000_000_000).text
        return ask.send(authorization=f"Bearer {expired}")

    def email_taken() -> Any:
        if operation == "register":
            return ask.send({"email": user.email})
        key = ask.good()
        make_user("carol", "new@example.com")
        return ask.send(key)

    def username_taken() -> Any:
        make_user("carol")
        return ask.send({"username": "carol"})

    provoke: dict[tuple[int, str], Callable[[], Any]] = {
        (400, "invalid"): lambda: ask.send(body="{}" if ask.is_form else "[]"),
        (400, "parse_error"): lambda: ask.send(body="token=a&token=b" if ask.is_form else "{"),
        (400, "invalid_key"): lambda: ask.send({"key": "nonsense"}),
        (400, "email_taken"): email_taken,
        (400, "username_taken"): username_taken,
        (400, "token_required"): lambda: ask.send(authorization="Basic nonsense"),
        (401, "token_required"): lambda: ask.send(authorization="Basic nonsense"),
        (401, "invalid_token"): bad_token,
        (401, "invalid_client"): lambda: ask.send(authorization="Basic nonsense"),
        (401, "invalid_credentials"): gone,
        (404, "not_found"): not_found,
        (406, "not_acceptable"): lambda: ask.send(HTTP_ACCEPT="text/html"),
        (413, "parse_error"): too_large,
        (415, "unsupported_media_type"): lambda: ask.send(content_type="text/plain"),
        (429, "throttled"): throttled,
        (503, "busy"): busy,
        (503, "unavailable"): unavailable,
    }
    answer = provoke[status, code]()
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.content


# How it follows the project


def test_without_the_option_there_is_no_cookie_in_it() -> None:
    assert "Cookie" not in CHECKED_IN.read_text("utf-8")


def test_with_the_cookie_no_body_has_a_refresh_token() -> None:
    schema = generate(REFRESH_COOKIE="__Secure-refresh")
    assert "refresh_token" not in json.dumps(schema["components"]["schemas"])
    refresh = schema["paths"]["/auth/refresh/"]["post"]
    assert "requestBody" not in refresh
    assert refresh["security"] == [{"refreshCookie": []}]
    assert schema["components"]["securitySchemes"]["refreshCookie"] == {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Secure-refresh",
    }
    for route, status in [("login", "200"), ("register", "201"), ("refresh", "200")]:
        answer = schema["paths"][f"/auth/{route}/"]["post"]["responses"][status]
        assert "Set-Cookie" in answer["headers"], route
    logout = schema["paths"]["/auth/logout/"]["post"]
    assert logout["security"] == [{"accessToken": []}, {"refreshCookie": []}]
    assert codes_of(logout, "403", schema) == ["origin_not_allowed"]


def test_with_required_confirmation_a_registration_tells_nothing() -> None:
    register = generate(REQUIRE_CONFIRMED_EMAIL=True)["paths"]["/auth/register/"]["post"]
    assert {x for x in register["responses"] if x < "300"} == {"202"}


def test_public_operations_say_that_they_need_no_token() -> None:
    assert OPERATIONS["login"][2]["security"] == []
    assert OPERATIONS["logout"][2]["security"] == [{"accessToken": []}, {}]
    assert OPERATIONS["introspectToken"][2]["security"] == [{"clientSecret": []}]
    assert list(OPERATIONS["introspectToken"][2]["requestBody"]["content"]) == [FORM]


def test_the_username_is_optional_where_it_is_the_address(monkeypatch: Any) -> None:
    assert body_of(OPERATIONS["register"][2])["required"] == ["email", "password", "username"]
    monkeypatch.setattr("accesspass.serializers.username_is_email", lambda: True)
    schema = generate()
    register = schema["paths"]["/auth/register/"]["post"]
    assert body_of(register, schema)["required"] == ["password"]


def test_what_a_project_adds_is_in_it() -> None:
    schema = generate(customise.urlpatterns, HOOKS="tests.customise.ShopHooks")
    register = schema["paths"]["/auth/register/"]["post"]
    assert {"first_name", "invitation"} <= set(body_of(register, schema)["required"])
    assert codes_of(register, "403", schema) == [customise.ByInvitation.code]
    account = schema["paths"]["/auth/account/"]
    assert "first_name" in body_of(account["patch"], schema)["properties"]
    shown = schema["components"]["schemas"]["AuthAccountUser"]["properties"]
    assert set(shown) == {"id", "username", "email", "meta", "first_name", "last_login"}


def test_the_codes_of_a_second_factor_are_in_it() -> None:
    schema = generate(HOOKS="tests.second_factor.SecondFactor")
    login = schema["paths"]["/auth/login/"]["post"]
    ours = [second_factor.CodeRefused.code, second_factor.CodeRequired.code]
    assert codes_of(login, "401", schema) == [*ours, "invalid_credentials"]


def test_the_projects_own_annotations_come_first() -> None:
    @extend_schema(tags=["people"])
    class Login(views.LoginView):
        """POST: come in."""

    @extend_schema_view(post=extend_schema(operation_id="comeIn"))
    class Other(views.LoginView):
        pass

    class Lenient(TokenAuthentication):
        pass_foreign = True

    class Check(views.CheckView):
        authentication_classes = [Lenient]

        @extend_schema(request=None, responses=None)
        def put(self, request: Any) -> None:
            """Something of the project's own."""

    patterns = [path(x.__name__, x.as_view()) for x in (Login, Other, Check)]
    found = generate(patterns)["paths"]
    assert found["/Login"]["post"]["tags"] == ["people"]
    assert found["/Login"]["post"]["summary"] == "Come in"
    assert found["/Login"]["post"]["operationId"] == "login"
    assert found["/Other"]["post"]["operationId"] == "comeIn"
    assert "429" in found["/Other"]["post"]["responses"]
    assert found["/Check"]["get"]["security"] == [{"accessToken": []}]
    assert found["/Check"]["put"]["responses"] == {"200": {"description": "No response body"}}
    assert not GENERATOR_STATS  # no warning, no error


def test_a_resource_server_has_the_scheme_too() -> None:
    scheme = OpenApiAuthenticationExtension.get_match(ResourceServerAuthentication())
    assert scheme is not None
    assert scheme.name == "accessToken"
