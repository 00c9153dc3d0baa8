"""A resource server, against an authorization server that says what it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import caches
from django.test import RequestFactory, override_settings
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accesspass import checks, resource, sessions
from accesspass.exceptions import InvalidToken, Unavailable
from accesspass.permissions import HasClaim
from accesspass.resource.introspection import IntrospectionFailed
from accesspass.session_cache import key
from accesspass.tokens import TokenType, mint
from tests.servers import (
    free_port,
)

SECRET = "a secret"
ACTIVE = {
    "active": True,
    "sub": "17",
    "username": "ada",
    "email": "ada@example.org",
    "email_confirmed": True,
    "claims": {"role": "admin"},
    "meta": {},
    "session_exp": None,
}


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is what some tests are about."""


class Authority:
    """An authorization server. ``answer`` is what it says: a status and a body."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, json.dumps(ACTIVE).encode())
        self.asked: list[dict[str, list[str]]] = []
        self.before: Callable[[], None] = lambda: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.asked.append(parse_qs(content))
                outer.before()
                status, body = outer.answer
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere/")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/auth/introspect/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def say(self, **changes: Any) -> None:
        self.answer = (200, json.dumps({**ACTIVE, **changes}).encode())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def authority() -> Iterator[Authority]:
    made = Authority()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def resource_server(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(resource, "_answers", resource._Answers())
    given = {
        "INTROSPECTION_URL": authority.url,
        "INTROSPECTION_ID": "notes",
        "INTROSPECTION_SECRET": SECRET,
    }
    with override_settings(ACCESSPASS=given):
        yield


def token(expires_in: float = 300) -> str:
    """A token that was made under our keys, of a session that this process does not hold."""
    return mint(TokenType.ACCESS, b"unknown session!", int(time.time() + expires_in)).text


def no_network(*args: Any) -> None:
    raise AssertionError("a connection was opened")


# From memory


def test_a_held_session_needs_neither_network_nor_database(
    user: Any, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    pair = sessions.start(user, claims={"role": "admin"})
    sessions.publish_now(pair.session_id)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    with django_assert_num_queries(0):
        principal, record = resource.authenticate(pair.access_token)
        again, _ = async_to_sync(resource.aauthenticate)(pair.access_token)
    assert (principal.id, principal.pk) == (str(user.pk), str(user.pk))
    assert principal.username == principal.get_username() == str(principal) == user.get_username()
    assert principal.email == "bob@example.com"
    assert principal.claims == record.claims == {"role": "admin"}
    assert record.id == pair.session_id
    assert again == principal
    assert hash(again) == hash(principal)
    assert principal.is_authenticated
    assert principal.is_active
    assert not principal.is_anonymous


def test_a_revoked_session_is_refused_from_memory(
    user: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = sessions.start(user)
    sessions.publish_now(pair.session_id)
    resource.authenticate(pair.access_token)
    revoked = mint(TokenType.ACCESS, pair.session_id.bytes, int(time.time() + 300)).text
    caches["accesspass"].publish(key(pair.session_id.bytes), "dead", 10, 300)
    for text in (pair.access_token, revoked):
        with pytest.raises(InvalidToken):
            resource.authenticate(text)
    assert authority.asked == []


@pytest.mark.parametrize(
    "text", ["", "nonsense", "ap_at_" + "A" * 76, "ap_at_" + "\xff" * 76, None, 5]
)
def test_a_malformed_or_forged_token_asks_nobody(text: Any, authority: Authority) -> None:
    for call in (resource.authenticate, async_to_sync(resource.aauthenticate)):
        with pytest.raises(InvalidToken):
            call(text)
    assert authority.asked == []


def test_an_expired_token_asks_nobody(authority: Authority) -> None:
    with pytest.raises(InvalidToken):
        resource.authenticate(token(-1))
    assert authority.asked == []


# From the authorization server


def test_a_miss_asks_the_authorization_server_once(authority: Authority) -> None:
    text = token()
    principal, record = resource.authenticate(text)
    assert (principal.id, principal.username, principal.email) == ("17", "ada", "ada@example.org")
    assert principal.claims == {"role": "admin"}
    assert record.email_confirmed
    assert record.expires_at is None
    assert 298 <= record.expires_in <= 300
    principal.claims["role"] = "changed by a view"
    assert resource.authenticate(text)[0].claims == {"role": "admin"}
    assert async_to_sync(resource.aauthenticate)(text)[0] == principal
    assert authority.asked == [{"token": [text], "token_type_hint": ["access_token"]}]


def test_a_miss_on_an_event_loop_asks_in_a_thread(authority: Authority) -> None:
    loop = []
    authority.before = lambda: loop.append(threading.current_thread())
    principal, _ = async_to_sync(resource.aauthenticate)(token())
    assert principal.id == "17"
    assert len(authority.asked) == 1


def test_an_answer_is_kept_no_longer_than_max_staleness_from_the_question(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(resource, "_clock", lambda: now)

    def slow() -> None:
        nonlocal now
        now += 2.0

    authority.before = slow
    text, staleness = token(), caches["accesspass"].max_staleness
    resource.authenticate(text)
    now = 1_000.0 + staleness - 0.01
    resource.authenticate(text)
    assert len(authority.asked) == 1
    now = 1_000.0 + staleness
    resource.authenticate(text)
    assert len(authority.asked) == 2


def test_a_revocation_that_arrives_beats_an_answer_that_is_kept(authority: Authority) -> None:
    text = token()
    resource.authenticate(text)
    caches["accesspass"].publish(key(b"unknown session!"), "dead", 10, 300)
    try:
        with pytest.raises(InvalidToken):
            resource.authenticate(text)
    finally:
        caches["accesspass"].clear()


def test_a_revocation_that_overtakes_the_answer_holds(authority: Authority) -> None:
    """The authorization server says yes, and the revocation arrives before its answer does."""
    text = token()
    authority.before = lambda: caches["accesspass"].publish(
        key(b"unknown session!"), "dead", 11, 300
    )
    try:
        resource.authenticate(text)  # true when it was asked
        with pytest.raises(InvalidToken):
            resource.authenticate(text)
        assert len(authority.asked) == 1
    finally:
        caches["accesspass"].clear()


def test_an_inactive_token_is_refused_and_asked_about_once_a_second(authority: Authority) -> None:
    authority.answer = (200, b'{"active": false}')
    text = token()
    for _ in range(2):
        with pytest.raises(InvalidToken):
            resource.authenticate(text)
    assert len(authority.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (200, b"[]"),
        (200, b"null"),
        (200, b"not json"),
        (200, b"[" * 100_000),
        (200, b"{}"),
        (200, b'{"active": true}'),
        (200, b'{"active": "true"}'),
        (200, b'{"active": 1}'),
        (200, json.dumps({**ACTIVE, "sub": 17}).encode()),
        (200, json.dumps({**ACTIVE, "claims": [1]}).encode()),
        (200, b" " * ((1 << 20) + 1)),
        (302, b""),
        (400, b'{"active": false}'),
        (401, b'{"active": false}'),
        (404, b""),
        (500, b'{"active": false}'),
        (503, b""),
    ],
)
def test_an_answer_that_says_neither_yes_nor_no_is_a_503(
    authority: Authority, answer: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    authority.answer = answer
    text = token()
    with pytest.raises(Unavailable):
        resource.authenticate(text)
    assert len(authority.asked) == 1
    assert "resource.introspection_failed" in caplog.text
    assert text not in caplog.text
    assert SECRET not in caplog.text


def test_a_server_that_is_down_is_left_alone_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(resource, "_clock", lambda: now)
    down = f"http://127.0.0.1:{free_port()}/introspect/"
    given = {
        "INTROSPECTION_URL": down,
        "INTROSPECTION_ID": "notes",
        "INTROSPECTION_SECRET": SECRET,
    }
    with override_settings(ACCESSPASS=given):
        with pytest.raises(Unavailable):
            resource.authenticate(token())
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", no_network)
            with pytest.raises(Unavailable):
                resource.authenticate(token())
        now += 1.0
        with pytest.raises(Unavailable):
            resource.authenticate(token())


def test_a_server_that_took_long_to_fail_is_left_alone_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000.0

    def ask(*_: Any) -> None:
        nonlocal now
        now += 2.0
        raise IntrospectionFailed

    monkeypatch.setattr(resource, "_clock", lambda: now)
    monkeypatch.setattr(resource.Introspection, "ask", ask)
    given = {
        "INTROSPECTION_URL": "http://127.0.0.1/introspect/",
        "INTROSPECTION_ID": "notes",
        "INTROSPECTION_SECRET": SECRET,
    }
    with override_settings(ACCESSPASS=given):
        for _ in range(2):
            with pytest.raises(Unavailable):
                resource.authenticate(token())
    assert now == 1_002.0


def test_a_server_that_does_not_answer_is_a_503_in_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    authority.before = lambda: answered.wait(30) and None
    monkeypatch.setattr("accesspass.resource.introspection._TIMEOUT", 0.2)
    try:
        with pytest.raises(Unavailable):
            resource.authenticate(token())
    finally:
        answered.set()


def test_without_an_introspection_url_a_miss_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    with override_settings(ACCESSPASS={}), pytest.raises(Unavailable):
        resource.authenticate(token())
    assert "INTROSPECTION_URL" in caplog.text


# Django REST framework


class Notes(APIView):
    authentication_classes = [resource.ResourceServerAuthentication]
    permission_classes: Any = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response({"owner": request.user.pk})


class Admins(Notes):
    permission_classes = [HasClaim(role="admin")]


def get(view: type[APIView], text: str | None) -> Any:
    headers = {} if text is None else {"authorization": f"Bearer {text}"}
    return view.as_view()(RequestFactory().get("/", headers=headers))


def test_the_authentication_class_answers_as_that_of_a_node_does(authority: Authority) -> None:
    answer = get(Notes, token())
    assert (answer.status_code, answer.data) == (200, {"owner": "17"})
    assert get(Admins, token(200)).status_code == 200
    answer = get(Notes, None)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    answer = get(Notes, "nonsense")
    assert (answer.status_code, answer.data["code"]) == (401, "invalid_token")
    assert answer["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    authority.say(claims={"role": "reader"})
    assert get(Admins, token(100)).status_code == 403
    authority.answer = (500, b"")
    answer = get(Notes, token(50))
    assert (answer.status_code, answer.data["code"]) == (503, "unavailable")
    assert int(answer["Retry-After"]) >= 1


# Checks


def found_by_checks(given: Any, **options: Any) -> set[str]:
    cache = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": "memory://x", **options}
    with override_settings(ACCESSPASS=given, CACHES={"accesspass": cache}):
        return {str(message.id) for message in checks.check_resource_server()}


def test_the_checks_name_what_a_resource_server_lacks() -> None:
    keys = ["k" * 40]
    whole = {
        "TOKEN_KEYS": keys,
        "INTROSPECTION_URL": "https://auth.example.com/auth/introspect/",
        "INTROSPECTION_ID": "notes",
        "INTROSPECTION_SECRET": SECRET,
    }
    signed = {"OPTIONS": {"SIGNING_KEYS": keys}}
    assert found_by_checks(whole, **signed) == set()
    assert found_by_checks(whole) == {"accesspass.W020"}
    assert found_by_checks({**whole, "TOKEN_KEYS": None}, **signed) == {"accesspass.W020"}
    for name in ("INTROSPECTION_URL", "INTROSPECTION_ID", "INTROSPECTION_SECRET"):
        less = {x: y for x, y in whole.items() if x != name}
        assert found_by_checks(less, **signed) == {"accesspass.E020"}
    assert found_by_checks([]) == {"accesspass.E001"}


@pytest.mark.parametrize(
    "url",
    [
        "http://auth.example.com/introspect/",
        "ftp://auth.example.com/",
        "https://user:password@auth.example.com/",
        "https://auth.example.com/?x=1",
        "https://auth.example.com:x/",
        "https:///introspect/",
        "introspect/",
        5,
        b"https://auth.example.com/",
    ],
)
def test_an_introspection_url_that_would_leak_is_refused(url: Any) -> None:
    assert "accesspass.E002" in found_by_checks({"INTROSPECTION_URL": url})
