"""The central promise, in process: an authorised request asks neither database nor network.

The requests go through Django's WSGI handler, as a server sends them, over a project whose
database is a SQLite file. A ``Watch`` listens in four places, so that nothing gets past all of
them: Django's own cursors, every statement that SQLite itself runs on any connection of the
process, the interpreter's audit events, and the methods of ``socket.socket``. The last tests of
this file prove that it can hear.
"""

from __future__ import annotations

import _socket
import base64
import functools
import io
import json
import os
import shutil
import socket
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import connections
from django.db.backends.signals import connection_created
from django.db.models import F
from django.db.models.functions import Now
from django.test import override_settings

from accesspass.models import Session
from accesspass.tokens import TokenType, mint

REQUESTS = 1_000
PASSWORD = "correct horse battery staple"
ENGINES = ("memory", "sqlite", "database")

# The detector -----------------------------------------------------------------------------------

_SOCKET_METHODS = ["__init__", "accept", "bind", "connect", "connect_ex", "listen"]
_SOCKET_METHODS += ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"]
_SOCKET_METHODS += ["send", "sendall", "sendfile", "sendmsg", "sendto"]

# An audit hook can never be removed, so there is one for good and it hears only for this one.
_listening: Watch | None = None


class Heard:
    """What was asked of a database or a socket, by any thread."""

    def __init__(self) -> None:
        self.queries: list[str] = []
        """SQL that went through Django's cursors."""
        self.statements: list[tuple[str, str]] = []
        """File and SQL of what SQLite ran, whoever asked for it."""
        self.opened: list[str] = []
        """Files that SQLite opened."""
        self.sockets: list[str] = []
        """Audit events and methods of sockets."""

    def of(self, file: Path) -> list[str]:
        """The statements on one file, without those with which Django sets a connection up."""
        return [
            sql
            for name, sql in self.statements
            if name == str(file)
            and not sql.startswith(("PRAGMA ", "select sqlite_compileoption_used("))
        ]


class Watch:
    """Listens to the whole process from ``start`` on, and writes down while told to."""

    def __init__(self) -> None:
        self._heard: Heard | None = None

    @contextmanager
    def listening(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Hear of every connection that is opened from now on."""
        global _listening
        _install_audit_hook()
        for name in _SOCKET_METHODS:
            patch.setattr(socket.socket, name, self._overheard(name, getattr(socket.socket, name)))
        for module in (sqlite3, sqlite3.dbapi2):
            patch.setattr(module, "connect", self._traced(module.connect))
        connection_created.connect(self._wrap)
        _listening = self
        try:
            yield
        finally:
            _listening = None
            connection_created.disconnect(self._wrap)

    @contextmanager
    def counting(self) -> Iterator[Heard]:
        """Write down what happens inside the block."""
        heard = self._heard = Heard()
        try:
            yield heard
        finally:
            self._heard = None

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        heard = self._heard
        if heard is None:
            return
        if event == "sqlite3.connect":
            heard.opened.append(_file(args[0]))
        elif event.startswith("socket."):
            heard.sockets.append(event)

    def _traced(self, connect: Any) -> Callable[..., Any]:
        @functools.wraps(connect)
        def call(database: Any, *args: Any, **kwargs: Any) -> Any:
            connection = connect(database, *args, **kwargs)
            connection.set_trace_callback(functools.partial(self._statement, _file(database)))
            return connection

        return call

    def _statement(self, file: str, sql: str) -> None:
        if self._heard is not None:
            self._heard.statements.append((file, sql))

    def _wrap(self, *, connection: Any, **_: Any) -> None:
        if self._query not in connection.execute_wrappers:
            connection.execute_wrappers.append(self._query)

    def _query(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if self._heard is not None:
            self._heard.queries.append(sql)
        return execute(sql, params, many, context)

    def _overheard(self, name: str, method: Any) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._heard is not None:
                self._heard.sockets.append(name)
            return method(*args, **kwargs)

        return call


def _file(database: Any) -> str:
    return os.fsdecode(database).removeprefix("file:").partition("?")[0]


@functools.cache
def _install_audit_hook() -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if _listening is not None and event[:7] in ("socket.", "sqlite3"):
            _listening.audit(event, args)

    sys.addaudithook(hook)


# The project ------------------------------------------------------------------------------------


def the_cache() -> Any:
    """The cache of the sessions, as this thread sees it."""
    return caches["accesspass"]


class Site:
    """A project on a SQLite file, asked through its WSGI handler."""

    def __init__(self, database: Path, watch: Watch) -> None:
        self.database = database
        self.counting = watch.counting
        self._handler: Any = WSGIHandler()

    def send(
        self, method: str, path: str, *, header: str | None = None, body: Any = None
    ) -> tuple[int, dict[str, Any]]:
        """Send one request; return the status and the JSON of the answer."""
        content = b"" if body is None else json.dumps(body).encode()
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(content)),
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(content),
            "wsgi.errors": sys.stderr,
        }
        if header is not None:
            environ["HTTP_AUTHORIZATION"] = header
        statuses: list[str] = []
        response = self._handler(environ, lambda status, headers: statuses.append(status))
        try:
            answer = b"".join(response)
        finally:
            response.close()
        return int(statuses[0].partition(" ")[0]), json.loads(answer) if answer else {}

    def get(self, token: str) -> tuple[int, dict[str, Any]]:
        return self.send("GET", "/protected/", header=f"Bearer {token}")

    def register(self) -> str:
        names = {"username": "Ada", "email": "ada@example.com"}
        if get_user_model().USERNAME_FIELD == "email":
            del names["username"]
        status, answer = self.send("POST", "/auth/register/", body={**names, "password": PASSWORD})
        assert status == 201, answer
        return str(answer["access_token"])

    def log_in(self) -> dict[str, Any]:
        credentials = {"username": "ADA@example.com", "password": PASSWORD}
        status, pair = self.send("POST", "/auth/login/", body=credentials)
        assert status == 200, pair
        return pair

    def log_out(self, token: str) -> None:
        status, answer = self.send("POST", "/auth/logout/", header=f"Bearer {token}", body={})
        assert status == 204, answer

    def accepts(self, token: str, times: int = 1) -> None:
        for _ in range(times):
            status, answer = self.get(token)
            assert (status, set(answer)) == (200, {"user", "username"}), answer
            assert answer["username"] in ("Ada", "ada@example.com")

    def refuses(self, token: str, times: int = 1) -> None:
        for _ in range(times):
            status, answer = self.get(token)
            assert (status, answer["code"]) == (401, "invalid_token"), answer


@contextmanager
def database_at(path: Path, blocker: Any) -> Iterator[None]:
    """Make a SQLite file the project's database, on all threads."""
    live, usual = connections.settings["default"], connections["default"]
    before = dict(live)
    live.update(
        ENGINE="django.db.backends.sqlite3",
        NAME=str(path),
        OPTIONS={"transaction_mode": "IMMEDIATE", "timeout": 20},
    )
    connections["default"] = connections.create_connection("default")
    try:
        with blocker.unblock():
            yield
    finally:
        connections["default"].close()
        live.clear()
        live.update(before)
        connections["default"] = usual


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any) -> Path:
    """A SQLite file with the tables and nothing in them, to be copied."""
    path = tmp_path_factory.mktemp("promise") / "migrated.sqlite3"
    with database_at(path, django_db_blocker):
        call_command("migrate", verbosity=0)
    return path


@pytest.fixture
def engine() -> str:
    """The engine behind the cache alias; tests that need no other leave it so."""
    return "database"


@pytest.fixture
def site(
    engine: str,
    migrated: Path,
    tmp_path: Path,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    django_db_blocker: Any,
) -> Iterator[Site]:
    """A project with one user, Ada, who has just registered."""
    database = Path(shutil.copy(migrated, tmp_path / "db.sqlite3"))
    location = {
        "memory": f"memory://{uuid.uuid4()}",
        "sqlite": f"sqlite:///{tmp_path}/cache.sqlite3",
        "database": "database:default",
    }[engine]
    backend = "accesspass.cache.ReplicatedCache"
    watch = Watch()
    with watch.listening(monkeypatch), database_at(database, django_db_blocker):
        settings.CACHES = {
            **settings.CACHES,
            "accesspass": {"BACKEND": backend, "LOCATION": location},
        }
        follower = the_cache()._follower
        site = Site(database, watch)
        site.register()
        yield site
        follower.stop()


def is_silent(heard: Heard) -> bool:
    """Whether nothing but the cache's own file was asked, and nothing was written there."""
    assert (heard.queries, heard.opened, heard.sockets) == ([], [], [])
    assert {name.rpartition("/")[2] for name, _ in heard.statements} <= _CACHE_FILES
    return all(sql.startswith(("SELECT ", "BEGIN", "COMMIT")) for _, sql in heard.statements)


_CACHE_FILES = {"cache.sqlite3", "db.sqlite3.accesspass"}
every_engine = pytest.mark.parametrize("engine", ENGINES)

# The promise ------------------------------------------------------------------------------------


@every_engine
def test_a_thousand_authorised_requests_ask_neither_database_nor_network(
    site: Site, engine: str
) -> None:
    token = site.log_in()["access_token"]
    began = time.monotonic()
    with site.counting() as heard:
        site.accepts(token, REQUESTS)
    assert is_silent(heard)
    # The SQLite engine has asked its own file after the login, which shows that we would hear, and
    # from then on twice a second.
    asked, seconds = len(heard.statements), time.monotonic() - began
    assert asked == 0 if engine == "memory" else 1 <= asked <= 10 + 4 * seconds


@every_engine
def test_requests_on_threads_that_are_new_ask_neither_database_nor_network(site: Site) -> None:
    token = site.log_in()["access_token"]
    failures: list[BaseException] = []

    def client() -> None:
        try:
            site.accepts(token, REQUESTS // 4)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(4)]
    with site.counting() as heard:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert heard.of(site.database) == []
    assert (heard.queries, heard.sockets) == ([], [])


@every_engine
def test_the_tokens_of_registration_and_refresh_are_checked_without_a_query(site: Site) -> None:
    pair = site.log_in()
    for _ in range(3):
        refresh = {"refresh_token": pair["refresh_token"]}
        status, pair = site.send("POST", "/auth/refresh/", body=refresh)
        assert status == 200, pair
        with site.counting() as heard:
            site.accepts(pair["access_token"], 10)
        assert is_silent(heard)


@every_engine
def test_every_token_that_was_not_made_here_is_refused_without_a_query(site: Site) -> None:
    pair = site.log_in()
    token = pair["access_token"]
    head, body = token[:6], token[6:]
    session = base64.urlsafe_b64decode(body)[:16]
    later = int(time.time()) + 300
    with override_settings(ACCESSPASS={"TOKEN_KEYS": ["somebody else's key, of 32 or more"]}):
        foreign = mint(TokenType.ACCESS, session, later).text
    bad = [head + body[:n] + ("A" if body[n] != "A" else "B") + body[n + 1 :] for n in range(76)]
    bad += ["", " ", "ap_at_", token[:-1], token + "A", token + "=", " " + token, token + " "]
    bad += [body, token.upper(), token.replace("ap_", "xx_"), "é" * 82, "\0" * 82, "A" * 20_000]
    bad += [head + "!" * 76, head + "\xff" * 76, f"{token},{token}", "null", "{}", "../../etc"]
    bad += [
        foreign,
        pair["refresh_token"],
        head + pair["refresh_token"][6:],
        "ap_rt_" + body,
        mint(TokenType.EMAIL_KEY, session, later).text,
        mint(TokenType.ACCESS, session, int(time.time()) - 1).text,
        mint(TokenType.ACCESS, uuid.uuid4().bytes, 0).text,
    ]
    with site.counting() as heard:
        for forged in bad:
            site.refuses(forged)
        for header in ("Bearer", "Basic YTpi", "Token " + token, token, "Bearer\t" + token, "\0"):
            status, answer = site.send("GET", "/protected/", header=header)
            assert status == 401, answer
    assert is_silent(heard)
    site.accepts(token)


def test_a_token_that_has_expired_is_refused_without_a_query(site: Site, settings: Any) -> None:
    settings.ACCESSPASS = {**settings.ACCESSPASS, "ACCESS_TOKEN_LIFETIME": 1}
    token = site.log_in()["access_token"]
    site.accepts(token)
    expires = int.from_bytes(base64.urlsafe_b64decode(token[6:])[16:20], "big")
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    with site.counting() as heard:
        site.refuses(token, 100)
    assert is_silent(heard)


@every_engine
def test_an_unknown_token_made_under_our_key_costs_one_query_and_none_when_repeated(
    site: Site,
) -> None:
    session = base64.urlsafe_b64decode(site.log_in()["access_token"][6:])[:16]
    later = int(time.time()) + 300
    # Of a session that there is not, and of one whose record holds another token.
    for token_of in (uuid.uuid4().bytes, session):
        token = mint(TokenType.ACCESS, token_of, later).text
        with site.counting() as heard:
            site.refuses(token)
        assert len(heard.queries) == len(heard.of(site.database)) == 1
        assert heard.sockets == []
        with site.counting() as heard:
            site.refuses(token, 20)
        assert is_silent(heard)
    time.sleep(1.05)
    # It might have been a login that was not committed yet, so it is not refused for ever.
    with site.counting() as heard:
        site.refuses(token)
    assert len(heard.queries) == 1


@every_engine
def test_a_session_that_this_process_does_not_hold_costs_one_query_once(site: Site) -> None:
    token = site.log_in()["access_token"]
    session = base64.urlsafe_b64decode(token[6:])[:16]
    the_cache().forget("session:" + session.hex())
    with site.counting() as heard:
        site.accepts(token)
    assert len(heard.queries) == len(heard.of(site.database)) == 1
    with site.counting() as heard:
        site.accepts(token, 100)
    assert is_silent(heard)


@every_engine
def test_a_process_that_joins_asks_once_what_was_revoked_meanwhile(
    site: Site, settings: Any
) -> None:
    token = site.log_in()["access_token"]
    # Other options make another replica of the same log, empty as that of a new process.
    alias = {**settings.CACHES["accesspass"], "OPTIONS": {"HEARTBEAT": 0.4}}
    settings.CACHES = {**settings.CACHES, "accesspass": alias}
    with site.counting() as heard:
        site.accepts(token)
    assert len(heard.queries) == len(heard.of(site.database)) == 1
    assert "publication_pending" in heard.queries[0]
    with site.counting() as heard:
        site.accepts(token, 100)
    assert is_silent(heard)
    the_cache()._follower.stop()


@every_engine
def test_a_session_that_was_logged_out_is_refused_without_a_query(site: Site) -> None:
    token = site.log_in()["access_token"]
    site.accepts(token)
    site.log_out(token)
    with site.counting() as heard:
        site.refuses(token, REQUESTS)
    assert is_silent(heard)


@every_engine
def test_a_session_found_to_be_revoked_in_the_database_is_asked_for_once(site: Site) -> None:
    token = site.log_in()["access_token"]
    session = uuid.UUID(bytes=base64.urlsafe_b64decode(token[6:])[:16])
    Session.objects.filter(pk=session).update(revoked_at=Now(), revision=F("revision") + 1)
    connections["default"].close()
    the_cache().forget("session:" + session.hex)
    with site.counting() as heard:
        site.refuses(token)
    assert len(heard.queries) == 1
    with site.counting() as heard:
        site.refuses(token, 100)
    assert is_silent(heard)


# The detector can hear --------------------------------------------------------------------------


def test_the_watch_hears_one_query_in_each_request_that_makes_one(
    site: Site, settings: Any
) -> None:
    token = site.log_in()["access_token"]
    settings.ACCESSPASS = {**settings.ACCESSPASS, "USER_FROM_RECORD": False}
    with site.counting() as heard:
        site.accepts(token, 10)
    assert len(heard.queries) == len(heard.of(site.database)) == 10
    # Django has closed the connection after each of them, and opened another.
    assert heard.opened == [str(site.database)] * 10


def test_the_watch_hears_a_query_on_another_thread(site: Site) -> None:
    def ask() -> None:
        Session.objects.exists()
        connections["default"].close()

    with site.counting() as heard:
        on_another_thread(ask)
    assert len(heard.queries) == len(heard.of(site.database)) == len(heard.opened) == 1


def test_the_watch_hears_a_query_that_bypasses_django(site: Site) -> None:
    def ask() -> None:
        connection = sqlite3.connect(f"file:{site.database}?mode=ro", uri=True)
        connection.execute("SELECT count(*) FROM accesspass_session").fetchone()
        connection.close()

    with site.counting() as heard:
        on_another_thread(ask)
    assert heard.queries == []
    assert heard.opened == [str(site.database)]
    assert heard.of(site.database) == ["SELECT count(*) FROM accesspass_session"]


def test_the_watch_hears_bytes_on_a_socket_that_was_open_already(site: Site) -> None:
    here, there = socket.socketpair()
    with here, there, site.counting() as heard:
        here.sendall(b"x")
        assert there.recv(1) == b"x"
    assert heard.sockets == ["sendall", "recv"]


def test_the_watch_hears_a_socket_made_below_the_socket_module(site: Site) -> None:
    def connect() -> None:
        bare = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        try:
            bare.bind(("127.0.0.1", 0))
            bare.connect_ex(bare.getsockname())
        finally:
            bare.close()

    with site.counting() as heard:
        on_another_thread(connect)
    assert heard.sockets == ["socket.__new__", "socket.bind", "socket.connect"]


def test_the_watch_hears_nothing_outside_of_counting(site: Site) -> None:
    with site.counting() as heard:
        pass
    Session.objects.exists()
    assert (heard.queries, heard.statements, heard.opened, heard.sockets) == ([], [], [], [])


def on_another_thread(what: Callable[[], None]) -> None:
    thread = threading.Thread(target=what)
    thread.start()
    thread.join()
