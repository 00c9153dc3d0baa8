"""Whether what a view of ours answers is what the OpenAPI description says that it may."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from django.test import Client
from django.urls import path
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.settings import patched_settings
from jsonschema import Draft202012Validator

from accesspass.conf import conf
from accesspass.views import _AuthView

__all__ = ["assert_conforms", "describe", "watch"]

OPTIONS = (
    "ACCESS_TOKEN_HEADER",
    "CONFIRM_LOGS_IN",
    "HOOKS",
    "PASSWORD_MAX_LENGTH",
    "REFRESH_COOKIE",
    "REQUIRE_CONFIRMED_EMAIL",
)
"""What the description depends on."""

_send = Client.request


def watch() -> None:
    """Hold every answer that a test client gets from our views against the description."""

    def request(self: Client, **environ: Any) -> Any:
        answer = _send(self, **environ)
        # Middleware, as that of django-axes, answers in words of its own, without `data`.
        match = answer.resolver_match if hasattr(answer, "data") else None
        view = getattr(match.func, "cls", None) if match else None
        if view is not None and issubclass(view, _AuthView):
            assert_conforms(answer, view, match.route)
        return answer

    Client.request = request  # type: ignore[method-assign]


def assert_conforms(answer: Any, view: Any, route: str) -> None:
    method, status = answer.request["REQUEST_METHOD"], answer.status_code
    if status == 500 or method in ("HEAD", "OPTIONS", "TRACE"):  # 500: a test has broken the view
        return
    if answer.request["QUERY_STRING"] and status in (400, 404):  # no operation takes a query
        return
    schema = describe(view, route, *(getattr(conf, name) for name in OPTIONS))
    (operations,) = schema["paths"].values()
    operation = operations.get(method.lower())
    if operation is None:
        assert status in (401, 405)
        return
    where = f"{method} {route}: {status} {answer.content!r}"
    assert str(status) in operation["responses"], where
    described = operation["responses"][str(status)]
    for header, about in described.get("headers", {}).items():
        assert header in answer.headers or not about.get("required"), f"no {header}: {where}"
    if "content" not in described:
        assert answer.content == b"", where
        return
    assert answer["Content-Type"] in described["content"], where
    body = described["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**body, "components": schema["components"]})
    errors = [x.message for x in validator.iter_errors(json.loads(answer.content))]
    assert errors == [], where


@lru_cache(maxsize=1000)
def describe(view: Any, route: str, *options: Any) -> dict[str, Any]:
    """Return the description of one view under the options at hand, whose values are `options`."""
    with patched_settings({"OAS_VERSION": "3.1.0", "SCHEMA_PATH_PREFIX_INSERT": ""}):
        found: dict[str, Any] = SchemaGenerator(patterns=[path(route, view.as_view())]).get_schema(
            public=True
        )
    return found
