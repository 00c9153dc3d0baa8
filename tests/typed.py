"""What docs/how-to/typing.rst shows, and what mypy must say of it, in strict mode: `make types`.

It is never run. A wrong use is followed by the error that it has to be; mypy fails on one that
it is not.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, assert_type

from django.contrib.auth.base_user import AbstractBaseUser
from django.core.cache import caches
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from accesspass import accounts, resource, sessions, testing
from accesspass.authentication import AuthenticatedRequest, TokenAuthentication
from accesspass.cache import ReplicatedCache
from accesspass.exceptions import AccessPassError, InvalidToken
from accesspass.hooks import Hooks
from accesspass.middleware import AuthenticatedHttpRequest, token_required
from accesspass.models import Account, User
from accesspass.permissions import HasClaim, IsEmailConfirmed
from accesspass.sessions import SessionRecord, TokenPair
from accesspass.signals import user_registered


# views begin
class ProfileView(APIView):
    permission_classes = [IsAuthenticated, HasClaim(role="admin") | IsEmailConfirmed]

    def get(self, request: AuthenticatedRequest[User]) -> Response:
        seconds = request.auth.expires_in  # int
        return Response({"email": request.user.email, "seconds": seconds})


@token_required
async def profile(request: AuthenticatedHttpRequest[User]) -> JsonResponse:
    return JsonResponse({"email": request.user.email, "claims": request.auth.claims})


# views end


# hooks begin
class CodeRequired(AccessPassError):
    code = "code_required"
    status = 401


class ShopHooks(Hooks[User]):
    refusals = {"login": [CodeRequired]}

    def prepare_user(self, user: User, data: Mapping[str, Any]) -> None:
        user.username = str(data.get("nickname", user.username))

    def may_login(self, user: User, data: Mapping[str, Any], request: HttpRequest | None) -> None:
        if user.is_staff and "code" not in data:
            raise CodeRequired

    def claims(
        self, user: User, account: Account, session_claims: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"shop": 7, **super().claims(user, account, session_claims)}


# hooks end


# signals begin
@receiver(user_registered)
def welcome(
    sender: type[User], user: User, request: HttpRequest | None, **further: Any
) -> None: ...


# signals end


# cache begin
def rates() -> ReplicatedCache:
    cache = caches["rates"]
    assert isinstance(cache, ReplicatedCache)  # Django's type says BaseCache
    return cache


# cache end


class Lenient(TokenAuthentication):
    pass_foreign = True


class Views(APIView):
    authentication_classes = [Lenient]
    permission_classes = [HasClaim(role="admin"), ~HasClaim(level=3), IsEmailConfirmed]

    def get(self, request: AuthenticatedRequest) -> Response:
        assert_type(request.user, AbstractBaseUser)
        assert_type(request.auth, SessionRecord)
        assert_type(request.auth.id, uuid.UUID)
        assert_type(request.auth.claims, dict[str, Any])
        assert_type(request.auth.email_confirmed, bool)
        assert_type(request.auth.expires_at, float | None)
        _ = request.auth.role  # type: ignore[attr-defined]
        return Response()

    def post(self, request: AuthenticatedRequest[User]) -> Response:
        assert_type(request.user, User)
        _ = request.user.nickname  # type: ignore[attr-defined]
        return Response()

    def put(self, request: resource.AuthenticatedRequest[resource.Principal]) -> Response:
        assert_type(request.user, resource.Principal)
        return Response()


@token_required
def plain(request: HttpRequest, page: int) -> HttpResponse:
    return HttpResponse()


def use_views(request: HttpRequest) -> None:
    assert_type(plain(request, 1), HttpResponse)
    plain(request, "1")  # type: ignore[arg-type]


class WrongHooks(Hooks[User]):
    refusals = {"login": [ValueError]}  # type: ignore[list-item]

    def login_response(self, user: User) -> dict[str, Any]:  # type: ignore[override]
        return {}

    def may_reset_password(self, user: User) -> str:  # type: ignore[override]
        return ""


class BareHooks(Hooks):
    def delete_user(self, user: AbstractBaseUser) -> None:
        user.is_active = False
        user.save()


def use_sessions(user: User, request: HttpRequest) -> None:
    pair = sessions.start(user, request=request, claims={"role": "admin"}, lifetime=3600)
    assert_type(pair, TokenPair)
    assert_type(pair.refresh_expires_in, int | None)
    assert_type(sessions.refresh(pair.refresh_token), TokenPair)
    found, record = sessions.authenticate(pair.access_token)
    assert_type(found, AbstractBaseUser)
    assert_type(record, SessionRecord)
    assert_type(sessions.revoke(pair.session_id, reason="stolen"), bool)
    assert_type(sessions.revoke_all(user, except_=pair.session_id), bool)
    assert_type(accounts.log_in("ada", "x", request=request), tuple[AbstractBaseUser, TokenPair])
    assert_type(InvalidToken.code, str)
    sessions.start(user, request)  # type: ignore[call-arg]
    sessions.start(user, lifetime="1 h")  # type: ignore[arg-type]
    sessions.revoke(pair)  # type: ignore[arg-type]


async def use_async_sessions(token: str) -> None:
    assert_type(await sessions.aauthenticate(token), tuple[AbstractBaseUser, SessionRecord])


def use_testing(user: User) -> None:
    assert_type(testing.login(Client(), user, claims={"role": "admin"}), TokenPair)
    testing.login(APIClient(), user)
    testing.logout(APIClient())
    testing.login(user, Client())  # type: ignore[arg-type]


def use_cache() -> None:
    cache = rates()
    mark = cache.mark()
    assert_type(cache.publish("EUR", 1.1, 3, timeout=60, mark=mark), bool)
    assert_type(cache.fill("EUR", 1.1, 3, timeout=60, mark=mark), bool)
    assert_type(cache.now(), float)
    assert_type(cache.status(), dict[str, Any])
    cache.publish("EUR", 1.1, "3")  # type: ignore[arg-type]
    _ = caches["rates"].publish  # type: ignore[attr-defined]
