"""What is compared: one view under one URL pattern, with one authenticator or another.

This module is the project's URLconf too.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpRequest, HttpResponseBase
from django.urls import path
from knox.auth import TokenAuthentication as KnoxAuthentication
from knox.models import get_token_model
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import (
    JWTAuthentication,
    JWTStatelessUserAuthentication,
)
from rest_framework_simplejwt.tokens import AccessToken

from accesspass import sessions
from accesspass.authentication import TokenAuthentication

__all__ = ["BASE", "Variant", "environ_of", "make_variants"]

#: The variant that all others are compared with.
BASE = "no authentication"


class Variant(NamedTuple):
    """One way to authenticate. ``alias`` is the cache that AccessPass uses; others use none."""

    name: str
    authenticators: list[type[Any]]
    header: str
    alias: str = ""

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name)

    def select(self) -> None:
        """Make the project use this variant's cache from now on."""
        if self.alias:
            settings.ACCESSPASS["CACHE"] = self.alias

    def environ(self) -> dict[str, Any]:
        """Return a WSGI environ for a new request to this variant's view."""
        return environ_of(f"/{self.slug}/", self.header)

    def request(self) -> Request:
        """Return a request as a view would hand it to its authenticator."""
        return Request(WSGIRequest(self.environ()))


def environ_of(path: str, authorization: str = "") -> dict[str, Any]:
    """Return a WSGI environ of a new GET request."""
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_ACCEPT": "application/json",
        "HTTP_USER_AGENT": "benchmarks",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b""),
    }
    if authorization:
        environ["HTTP_AUTHORIZATION"] = authorization
    return environ


class WhoAmI(APIView):
    """Say who asks."""

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.pk})


_views: dict[str, Any] = {}


def _view(request: HttpRequest, slug: str) -> HttpResponseBase:
    response: HttpResponseBase = _views[slug](request)
    return response


urlpatterns = [path("<slug:slug>/", _view)]


def make_variants(user: Any) -> list[Variant]:
    """Log a user in, in every way there is, and return the variants in the order of the tables."""
    pairs = {}
    for alias in ("memory", "database"):
        settings.ACCESSPASS["CACHE"] = alias
        pairs[alias] = sessions.start(user)
    _, knox_token = get_token_model().objects.create(user=user)
    jwt = f"Bearer {AccessToken.for_user(user)}"
    ours = [TokenAuthentication]
    variants = [
        Variant(BASE, [], ""),
        Variant("no authentication, header sent", [], f"Bearer {pairs['memory'].access_token}"),
        *(
            Variant(f"AccessPass, {engine}", ours, f"Bearer {pairs[alias].access_token}", alias)
            for alias, engine in (("memory", "memory engine"), ("database", "SQLite engine"))
        ),
        Variant("simplejwt, stateless", [JWTStatelessUserAuthentication], jwt),
        Variant("simplejwt, user from database", [JWTAuthentication], jwt),
        Variant("knox", [KnoxAuthentication], f"Token {knox_token}"),
    ]
    for variant in variants:
        _views[variant.slug] = WhoAmI.as_view(authentication_classes=variant.authenticators)
    return variants


def make_user() -> Any:
    """Insert the one user of the benchmarks."""
    manager: Any = get_user_model()._default_manager
    return manager.create_user("ada", "ada@example.com", "correct horse battery staple")


class Server:
    """Django's WSGI handler, called as a server calls it, without the network."""

    def __init__(self) -> None:
        self._handler: Any = WSGIHandler()

    def send(self, variant: Variant) -> bytes:
        """Send one request and return the body of the answer."""
        response = self._handler(variant.environ(), _start_response)
        body = b"".join(response)
        response.close()
        return body


def _start_response(status: str, headers: Any) -> None:
    assert status == "200 OK", status
