"""Access tokens in plain and async Django views."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accesspass import resource, sessions
from accesspass.exceptions import InvalidToken, Unavailable
from accesspass.middleware import TokenAuthenticationMiddleware, token_required
from tests.conftest import PASSWORD

OURS = "accesspass.middleware.TokenAuthenticationMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTH = "django.contrib.auth.middleware.AuthenticationMiddleware"
CSRF = "django.middleware.csrf.CsrfViewMiddleware"
WHOLE = [SESSIONS, CSRF, AUTH, OURS]
FORGED = "ap_at_" + "A" * 76


# Views


def told(request: Any) -> JsonResponse:
    return JsonResponse(
        {
            "user": request.user.pk and str(request.user.pk),
            "anonymous": request.user.is_anonymous,
            "session": request.auth and str(request.auth.id),
        }
    )


def plain(request: HttpRequest) -> JsonResponse:
    return told(request)


async def asynchronous(request: Any) -> JsonResponse:
    user = await request.auser()
    return JsonResponse({"user": user.pk and str(user.pk), "anonymous": user.is_anonymous})


@token_required
def guarded(request: HttpRequest) -> JsonResponse:
    return told(request)


@token_required
async def aguarded(request: HttpRequest) -> JsonResponse:
    return told(request)


@method_decorator(token_required, name="dispatch")
class Guarded(View):
    def post(self, request: HttpRequest) -> JsonResponse:
        return told(request)


class ByCookie(APIView):
    authentication_classes = [SessionAuthentication]
    permission_classes = [AllowAny]

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.pk and str(request.user.pk)})


urlpatterns = [
    path("auth/", include("accesspass.urls")),
    path("plain/", plain),
    path("async/", asynchronous),
    path("guarded/", guarded),
    path("aguarded/", aguarded),
    path("class/", Guarded.as_view()),
    path("cookie/", ByCookie.as_view()),
]


class Early:
    """Asks who it is before any view is known, as a middleware that logs does."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        early = [str(request.user.pk), request.auth and str(request.auth.id)]
        response = self.get_response(request)
        response["X-Early"] = json.dumps(early)
        return response


@pytest.fixture(autouse=True)
def stack() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=WHOLE):
        yield


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    made = sessions.start(user)
    sessions.publish_now(made.session_id)
    return made


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def send(path: str, token: str | None = None, *, method: str = "GET", how: str = "wsgi") -> Any:
    """Send a request through all of Django's handler, in a sync or an async stack."""
    headers = {} if token is None else bearer(token)
    if how == "wsgi":
        handler: Any = WSGIHandler()
        return handler.get_response(RequestFactory().generic(method, path, headers=headers))
    handler = ASGIHandler()
    request = AsyncRequestFactory().generic(method, path, headers=headers)
    return async_to_sync(handler.get_response_async)(request)


BOTH = pytest.mark.parametrize("how", ["wsgi", "asgi"])


def body(answer: Any) -> Any:
    return json.loads(answer.content)


# A good token


@BOTH
@pytest.mark.parametrize("path", ["/plain/", "/async/", "/guarded/", "/aguarded/"])
def test_a_token_lets_its_user_in(user: Any, pair: Any, how: str, path: str) -> None:
    found = body(send(path, pair.access_token, how=how))
    assert (found["user"], found["anonymous"]) == (str(user.pk), False)
    assert found.get("session", str(pair.session_id)) == str(pair.session_id)


@pytest.mark.parametrize("path", ["/plain/", "/async/"])
def test_a_hit_makes_no_query(pair: Any, path: str, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert body(send(path, pair.access_token))["anonymous"] is False


@pytest.mark.django_db(transaction=True)
def test_on_an_event_loop_a_hit_goes_to_no_thread_and_a_miss_does(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = sessions.start(user)
    hops = []
    submit, in_executor = ThreadPoolExecutor.submit, asyncio.BaseEventLoop.run_in_executor

    def heard(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            hops.append(args)
            return original(*args, **kwargs)

        return call

    with override_settings(MIDDLEWARE=[OURS]):
        handler: Any = ASGIHandler()
    # Django's own handlers of sync middleware go to threads, so here is ours alone.
    monkeypatch.setattr(ThreadPoolExecutor, "submit", heard(submit))
    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", heard(in_executor))

    async def ask(token: str | None) -> Any:
        headers = {} if token is None else bearer(token)
        return await handler.get_response_async(
            AsyncRequestFactory().get("/async/", headers=headers)
        )

    async def run() -> tuple[list[Any], list[int]]:
        answers, counts = [], []
        for token in (pair.access_token, None, pair.access_token):
            hops.clear()
            answers.append(body(await ask(token))["user"])
            counts.append(len(hops))
        sessions._cache().forget(f"session:{pair.session_id.hex}")
        hops.clear()
        answers.append(body(await ask(pair.access_token))["user"])
        counts.append(len(hops))
        return answers, counts

    answers, counts = asyncio.run(run())
    assert answers == [str(user.pk), None, str(user.pk), str(user.pk)]
    assert counts[:3] == [0, 0, 0]
    assert counts[3] > 0


def test_a_middleware_that_asks_early_is_told(user: Any, pair: Any) -> None:
    with override_settings(MIDDLEWARE=[*WHOLE, f"{__name__}.Early"]):
        answer = send("/plain/", pair.access_token)
        assert json.loads(answer["X-Early"]) == [str(user.pk), str(pair.session_id)]
        assert json.loads(send("/plain/")["X-Early"]) == ["None", None]
        refused = send("/plain/", FORGED)
        assert refused.status_code == 401
        assert json.loads(refused["X-Early"])[0] == "None"


# A refused one


@BOTH
@pytest.mark.parametrize("path", ["/plain/", "/async/", "/guarded/", "/aguarded/", "/class/"])
def test_a_refused_token_never_becomes_anonymous(pair: Any, how: str, path: str) -> None:
    sessions.revoke(pair.session_id)
    for token in (pair.access_token, FORGED, "ap_at_\xff", pair.refresh_token):
        answer = send(path, token, how=how)
        assert (answer.status_code, body(answer)["code"]) == (401, "invalid_token")
        assert answer["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert answer["Cache-Control"] == "no-store"
        assert answer["Content-Type"] == "application/json"


@BOTH
@pytest.mark.parametrize("path", ["/plain/", "/async/"])
def test_where_nothing_can_be_said_of_a_token_the_answer_is_a_503(
    pair: Any, how: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Unavailable(wait=3)

    async def afail(*_: Any) -> None:
        fail()

    monkeypatch.setattr(sessions, "authenticate", fail)
    monkeypatch.setattr(sessions, "aauthenticate", afail)
    answer = send(path, pair.access_token, how=how)
    assert (answer.status_code, body(answer)["code"]) == (503, "unavailable")
    assert answer["Retry-After"] == "3"
    assert "WWW-Authenticate" not in answer


def test_a_stale_token_breaks_no_login(client: Any, user: Any) -> None:
    credentials = {"username": user.get_username(), "password": PASSWORD}
    answer = client.post("/auth/login/", credentials, "application/json", headers=bearer(FORGED))
    assert answer.status_code == 200


def test_views_of_rest_framework_decide_for_themselves(user: Any, pair: Any) -> None:
    assert send("/auth/check/", pair.access_token).status_code == 200
    assert send("/auth/check/", FORGED).status_code == 401
    assert send("/auth/check/").status_code == 401


# No token


@BOTH
@pytest.mark.parametrize("middleware", [WHOLE, [OURS]])
@pytest.mark.parametrize("path", ["/plain/", "/async/"])
def test_without_a_token_the_request_is_anonymous(
    db: None, how: str, path: str, middleware: list[str]
) -> None:
    with override_settings(MIDDLEWARE=middleware):
        found = body(send(path, how=how))
    assert (found["user"], found["anonymous"]) == (None, True)
    assert found.get("session") is None


def test_the_token_of_another_service_is_left_alone_unless_a_subclass_says_so(db: None) -> None:
    assert body(send("/plain/", "eyJhbGciOi.e30.x"))["anonymous"] is True
    with override_settings(MIDDLEWARE=[f"{__name__}.Strict"]):
        assert send("/plain/", "eyJhbGciOi.e30.x").status_code == 401


class Strict(TokenAuthenticationMiddleware):
    pass_foreign = False


def test_it_works_beside_django_s_sessions(
    client: Any, user: Any, pair: Any, make_user: Any
) -> None:
    eve = make_user("eve")
    client.force_login(eve)
    assert client.get("/plain/").json()["user"] == str(eve.pk)
    both = client.get("/plain/", headers=bearer(pair.access_token)).json()
    assert (both["user"], both["session"]) == (str(user.pk), str(pair.session_id))
    assert client.get("/plain/", headers=bearer(FORGED)).status_code == 401
    assert client.get("/plain/").json()["session"] is None


# token_required


@BOTH
@pytest.mark.parametrize("path", ["/guarded/", "/aguarded/"])
def test_a_view_that_requires_a_token_refuses_without_one(db: None, how: str, path: str) -> None:
    answer = send(path, how=how)
    assert (answer.status_code, body(answer)["code"]) == (401, "token_required")
    assert answer["WWW-Authenticate"] == "Bearer"


def test_a_cookie_does_not_stand_in_for_a_token(client: Any, user: Any) -> None:
    client.force_login(user)
    assert client.get("/guarded/").status_code == 401


def test_a_view_that_requires_a_token_needs_no_csrf_token(user: Any, pair: Any) -> None:
    for route in ("/guarded/", "/class/"):
        answer = send(route, pair.access_token, method="POST")
        assert (answer.status_code, body(answer)["user"]) == (200, str(user.pk))
        assert send(route, method="POST").status_code == 401
    # Others do, whoever asks: a cookie might have come along.
    assert send("/plain/", pair.access_token, method="POST").status_code == 403


def test_a_login_page_is_no_answer_to_a_client(db: None, pair: Any) -> None:
    login_required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    with override_settings(MIDDLEWARE=[*WHOLE, login_required]):
        assert send("/guarded/").status_code == 401
        assert send("/plain/").status_code == 302
        assert send("/plain/", pair.access_token).status_code == 200
        assert send("/plain/", FORGED).status_code == 401


def test_the_decorator_keeps_the_kind_and_name_of_a_view(rf: Any) -> None:
    assert iscoroutinefunction(aguarded)
    assert not iscoroutinefunction(guarded)
    assert guarded.__name__ == "guarded"
    with pytest.raises(ImproperlyConfigured):
        guarded(rf.get("/"))


# A resource server


@BOTH
@pytest.mark.parametrize("path", ["/plain/", "/async/", "/guarded/", "/aguarded/"])
def test_the_middleware_of_a_resource_server_gives_a_principal(
    user: Any, pair: Any, how: str, path: str
) -> None:
    with override_settings(MIDDLEWARE=["accesspass.resource.ResourceServerMiddleware"]):
        assert body(send(path, pair.access_token, how=how))["user"] == str(user.pk)
        assert send(path, FORGED, how=how).status_code == 401
        if "guarded" not in path:
            assert body(send(path, how=how))["anonymous"] is True


def test_a_principal_that_is_nobody_has_nothing() -> None:
    nobody = resource.AnonymousPrincipal()
    assert (nobody.id, nobody.pk, nobody.username, nobody.claims) == (None, None, "", {})
    assert not nobody.is_authenticated
    with pytest.raises(InvalidToken):
        resource.authenticate(None)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["wsgi", "asgi"])
@pytest.mark.parametrize("path", ["/plain/", "/async/"])
def test_before_the_middleware_of_django_ours_says_the_same(
    user: Any, pair: sessions.TokenPair, path: str, how: str
) -> None:
    with override_settings(MIDDLEWARE=[OURS, SESSIONS, CSRF, AUTH]):
        answer = json.loads(send(path, pair.access_token, how=how).content)
    assert (answer["user"], answer["anonymous"]) == (str(user.pk), False)
