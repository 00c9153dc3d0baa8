"""What is compared: one view under one URL pattern, with one authenticator or another.

This module is the project's URLconf too.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.backends.cached_db import SessionStore
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.cache import caches
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpRequest, HttpResponseBase
from django.urls import path
from durin.auth import CachedTokenAuthentication
from durin.models import AuthToken as DurinToken
from durin.models import Client
from knox.auth import TokenAuthentication as KnoxAuthentication
from knox.models import get_token_model
from rest_framework import authentication
from rest_framework.authtoken.models import Token
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny, IsAuthenticated
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

__all__ = [
    "BASE",
    "VARIANTS",
    "Login",
    "Server",
    "Variant",
    "add_view",
    "environ_of",
    "make_user",
    "named",
]

#: The variant that all others are compared with.
BASE = "no authentication"


class Login(NamedTuple):
    """The header that a client sends (name and value), and what ends it, if anything can."""

    header: tuple[str, str] | None
    log_out: Callable[[], object] | None = None


class Variant(NamedTuple):
    """One way to authenticate. ``alias`` is the cache that AccessPass uses; others use none."""

    name: str
    authenticators: list[type[Any]]
    log_in: Callable[[Any], Login]
    alias: str = ""

    @property
    def path(self) -> str:
        return "/" + "".join(c if c.isalnum() else "-" for c in self.name) + "/"

    def select(self) -> None:
        """Make the project use this variant's cache from now on."""
        if self.alias:
            settings.ACCESSPASS["CACHE"] = self.alias

    def check(self, ask: Callable[[Login], tuple[int, bytes]], login: Login, user: Any) -> None:
        """Make sure, before it is timed, that it lets the user in and nobody else.

        ``ask`` sends a request and returns status and body of the answer.
        """
        expected = user.pk if self.authenticators else None
        status, body = ask(login)
        assert (status, json.loads(body)) == (200, {"user": expected}), (self.name, status, body)
        if self.authenticators:
            # Where there is no challenge to send, as for sessions, DRF says 403 instead of 401.
            refused = 403 if authentication.SessionAuthentication in self.authenticators else 401
            status, body = ask(Login(None))
            assert status == refused, (self.name, status, body)

    def environ(self, login: Login) -> dict[str, Any]:
        """Return a WSGI environ for a new request to this variant's view."""
        return environ_of(self.path, login.header)

    def authenticate(self, login: Login) -> Callable[[], Any]:
        """Return what authenticates one and the same request again and again."""
        (authenticator,) = self.authenticators
        request = Request(WSGIRequest(self.environ(login)))
        if authenticator is not authentication.SessionAuthentication:
            return lambda: authenticator().authenticate(request)
        # What finds the user is the middleware, which remembers whom it found.
        session, user = SessionMiddleware(_no_view), AuthenticationMiddleware(_no_view)

        def authenticate() -> Any:
            plain = WSGIRequest(self.environ(login))
            session.process_request(plain)
            user.process_request(plain)
            return authenticator().authenticate(Request(plain))

        return authenticate


def _no_view(request: HttpRequest) -> HttpResponseBase:
    raise NotImplementedError


def environ_of(path: str, header: tuple[str, str] | None = None) -> dict[str, Any]:
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
    if header is not None:
        environ[f"HTTP_{header[0].upper()}"] = header[1]
    return environ


# A token in Redis, as a project writes it by hand ------------------------------------------------


class _CachedTokens(authentication.TokenAuthentication):
    """A random token, under whose SHA-256 a cache holds what a request needs of the user."""

    alias = ""

    def authenticate_credentials(self, key: str) -> tuple[Any, str]:
        fields = caches[self.alias].get(self.key_of(key))
        if fields is None:
            raise AuthenticationFailed
        return get_user_model()(**fields), key

    @staticmethod
    def key_of(token: str) -> str:
        return "token:" + hashlib.sha256(token.encode()).hexdigest()


class _InDjangoRedis(_CachedTokens):
    alias = "django_redis"


class _InRedisCache(_CachedTokens):
    alias = "default"


_FIELDS = ("pk", "username", "email", "is_active", "is_staff", "is_superuser")


# Logging in, without hashing a password ----------------------------------------------------------


def _nobody(user: Any) -> Login:
    return Login(None)


def _accesspass(alias: str, user: Any) -> Login:
    settings.ACCESSPASS["CACHE"] = alias
    pair = sessions.start(user)
    return Login(
        ("Authorization", f"Bearer {pair.access_token}"), partial(sessions.revoke, pair.session_id)
    )


def _header_alone(user: Any) -> Login:
    return Login(_accesspass("memory", user).header)


def _simplejwt(user: Any) -> Login:
    return Login(("Authorization", f"Bearer {AccessToken.for_user(user)}"))


def _knox(user: Any) -> Login:
    row, token = get_token_model().objects.create(user=user)
    return Login(("Authorization", f"Token {token}"), row.delete)


def _authtoken(user: Any) -> Login:
    row, _ = Token.objects.get_or_create(user=user)
    return Login(("Authorization", f"Token {row.key}"), row.delete)


def _durin(user: Any) -> Login:
    client, _ = Client.objects.get_or_create(name="benchmarks")
    DurinToken.objects.filter(user=user, client=client).delete()
    row = DurinToken.objects.create(user, client)
    return Login(("Authorization", f"Token {row.token}"), row.delete)


def _session(user: Any) -> Login:
    request = HttpRequest()
    request.session = SessionStore()
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session.save()
    cookie = f"{settings.SESSION_COOKIE_NAME}={request.session.session_key}"
    return Login(("Cookie", cookie), request.session.flush)


def _cached(kind: type[_CachedTokens], user: Any) -> Login:
    token, cache = secrets.token_urlsafe(32), caches[kind.alias]
    key = kind.key_of(token)
    cache.set(key, {name: getattr(user, name) for name in _FIELDS}, 7_200)
    return Login(("Authorization", f"Token {token}"), partial(cache.delete, key))


def _ours(name: str, alias: str) -> Variant:
    return Variant(f"AccessPass, {name}", [TokenAuthentication], partial(_accesspass, alias), alias)


#: In the order of the tables.
VARIANTS = [
    Variant(BASE, [], _nobody),
    Variant("no authentication, header sent", [], _header_alone),
    _ours("memory", "memory"),
    _ours("SQLite", "sqlite"),
    _ours("PostgreSQL", "postgresql"),
    _ours("Valkey", "valkey"),
    Variant("simplejwt, stateless", [JWTStatelessUserAuthentication], _simplejwt),
    Variant("simplejwt, user from database", [JWTAuthentication], _simplejwt),
    Variant("token by django-redis", [_InDjangoRedis], partial(_cached, _InDjangoRedis)),
    Variant("token by Django's RedisCache", [_InRedisCache], partial(_cached, _InRedisCache)),
    Variant("durin, cached", [CachedTokenAuthentication], _durin),
    Variant("session, cached_db", [authentication.SessionAuthentication], _session),
    Variant("DRF authtoken", [authentication.TokenAuthentication], _authtoken),
    Variant("knox", [KnoxAuthentication], _knox),
]


def named(*names: str) -> list[Variant]:
    """Return the variants of these names, in that order."""
    by_name = {variant.name: variant for variant in VARIANTS}
    return [by_name[name] for name in names]


def make_user() -> Any:
    """Insert the one user of the benchmarks."""
    manager: Any = get_user_model()._default_manager
    return manager.create_user("ada", "ada@example.com", "correct horse battery staple")


# The project -------------------------------------------------------------------------------------


class WhoAmI(APIView):
    """Say who asks."""

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.pk})


_views: dict[str, Any] = {}


def add_view(variant: Variant) -> None:
    """Give a variant its view."""
    _views[variant.path.strip("/")] = WhoAmI.as_view(
        authentication_classes=variant.authenticators,
        permission_classes=[IsAuthenticated if variant.authenticators else AllowAny],
    )


for _variant in VARIANTS:
    add_view(_variant)


def _view(request: HttpRequest, slug: str) -> HttpResponseBase:
    response: HttpResponseBase = _views[slug](request)
    return response


urlpatterns = [path("<slug:slug>/", _view)]


class Server:
    """Django's WSGI handler, called as a server calls it, without the network."""

    def __init__(self) -> None:
        self._handler: Any = WSGIHandler()

    def ask(self, variant: Variant, login: Login) -> tuple[int, bytes]:
        """Send one request and return status and body of the answer."""
        statuses: list[str] = []
        response = self._handler(
            variant.environ(login), lambda status, headers: statuses.append(status)
        )
        body = b"".join(response)
        response.close()
        return int(statuses[0].split()[0]), body

    def send(self, variant: Variant, login: Login) -> None:
        """Send one request that is to succeed."""
        status, _ = self.ask(variant, login)
        assert status == 200, (variant.name, status)
