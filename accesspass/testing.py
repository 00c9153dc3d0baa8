"""For the tests of a project that uses AccessPass. Import it once Django is set up.

Django's own runner takes `TEST_RUNNER = "accesspass.testing.Runner"`, pytest the plugin
`accesspass.pytest_plugin`. Either puts an engine in memory under the cache alias, a new one for
each test, so that no test sees a session of another one, of another process or of a running server.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import re
import threading
import time
import unittest
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from unittest import mock

from django.conf import settings
from django.core import mail as django_mail
from django.core.cache import caches
from django.core.cache.backends.locmem import LocMemCache
from django.core.signals import setting_changed
from django.db import router
from django.db.backends.utils import CursorWrapper
from django.db.models import F
from django.test import AsyncRequestFactory, RequestFactory
from django.test.runner import DiscoverRunner
from django.test.utils import (  # type: ignore[attr-defined]
    iter_test_cases,
    override_settings,
)

from accesspass import mail, records, sessions
from accesspass.conf import Conf, conf
from accesspass.exceptions import InvalidToken
from accesspass.models import Session
from accesspass.sessions import TokenPair

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = [
    "MemoryCacheMixin",
    "Runner",
    "age",
    "assert_no_queries",
    "assert_refused",
    "authorization",
    "fresh_cache",
    "login",
    "logout",
    "mailed_key",
    "memory_cache",
    "other_node",
    "override_accesspass",
]

# Clients --------------------------------------------------------------------------------------


def login(client: Any, user: AbstractBaseUser, **options: Any) -> TokenPair:
    """Start a session and let `client` send its access token from now on.

    `client` is Django's Client or AsyncClient, DRF's APIClient, or anything with a dict of
    `headers`, as RequestsClient, `requests.Session` and `httpx.Client` have. `options` go to
    `sessions.start` (claims, lifetime, name). The session is published at once, though a TestCase
    never commits, so requests make no query. Returns the tokens.
    """
    pair = sessions.start(user, **options)
    sessions.publish_now(pair.session_id)
    sessions.join()  # which may cost a query; the first request is to cost none
    headers, (name, value) = _headers_of(client), *authorization(pair).items()
    headers[_name_in(client, name)] = value
    return pair


def logout(client: Any) -> None:
    """Let `client` send no access token any more. The session goes on."""
    _headers_of(client).pop(_name_in(client, conf.ACCESS_TOKEN_HEADER), None)


def authorization(token: TokenPair | str) -> dict[str, str]:
    """Return the header that carries an access token, for one request of whatever client."""
    text = token.access_token if isinstance(token, TokenPair) else token
    name = conf.ACCESS_TOKEN_HEADER
    return {name: text if name.lower() != "authorization" else f"Bearer {text}"}


def _headers_of(client: Any) -> Any:
    return client.defaults if isinstance(client, RequestFactory) else client.headers


def _name_in(client: Any, name: str) -> str:
    if isinstance(client, AsyncRequestFactory):
        return name.lower()
    if isinstance(client, RequestFactory):
        return "HTTP_" + name.upper().replace("-", "_")
    return name


# The cache ------------------------------------------------------------------------------------

_LOCATION = "memory://accesspass-testing-"
_numbers = itertools.count(1)
_other_nodes: list[Any] = []


def memory_cache() -> override_settings:
    """Return a decorator and context manager under which the cache alias is in memory, and empty.

    It is for a test that does not run under `Runner` or the plugin, or for a class of tests, which
    then share it.
    """
    replaced = {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": f"{_LOCATION}{next(_numbers)}",
    }
    return override_settings(CACHES={**settings.CACHES, conf.CACHE: replaced})


def fresh_cache() -> None:
    """Let the cache alias be empty from now on, in all threads of this process.

    Does nothing where a project has put something else under the alias than `memory_cache`.
    """
    alias = settings.CACHES.get(conf.CACHE, {})
    if not str(alias.get("LOCATION", "")).startswith(_LOCATION):
        return
    old = [caches[conf.CACHE], *_other_nodes]
    _other_nodes.clear()
    del caches[conf.CACHE]  # asgiref would keep it as long as this thread lives
    # In place, so that it holds under whatever a test class has overridden meanwhile.
    alias["LOCATION"] = f"{_LOCATION}{next(_numbers)}"
    setting_changed.send(sender=type(settings), setting="CACHES", value=settings.CACHES, enter=True)
    for cache in old:
        cache.leave()


@contextlib.contextmanager
def other_node() -> Iterator[None]:
    """Have another replica of the same engine inside, as another process has.

    Within a test it is the same one each time. What was revoked outside is refused inside as soon
    as the engine has told this replica, at once if it is in memory: see `assert_refused`.
    """
    alias: dict[str, Any] = settings.CACHES[conf.CACHE]
    options: dict[str, Any] = alias.get("OPTIONS", {})
    # Other options make another replica of the same log.
    options = {**options, "RETENTION": float(options.get("RETENTION", 3600)) + 1}
    with override_settings(CACHES={**settings.CACHES, conf.CACHE: {**alias, "OPTIONS": options}}):
        _other_nodes.append(caches[conf.CACHE])
        yield


class MemoryCacheMixin:
    """For a test runner: `class Runner(MemoryCacheMixin, DiscoverRunner)`.

    Where `--parallel` spawns processes instead of forking them, as on macOS, they have the
    project's own alias.
    """

    _memory_cache: override_settings

    def setup_test_environment(self, **kwargs: Any) -> None:
        super().setup_test_environment(**kwargs)  # type: ignore[misc]
        self._memory_cache = memory_cache()
        self._memory_cache.enable()

    def teardown_test_environment(self, **kwargs: Any) -> None:
        self._memory_cache.disable()
        super().teardown_test_environment(**kwargs)  # type: ignore[misc]

    def build_suite(self, *args: Any, **kwargs: Any) -> unittest.TestSuite:
        suite: unittest.TestSuite = super().build_suite(*args, **kwargs)  # type: ignore[misc]
        for test in iter_test_cases(suite):
            test.addCleanup(fresh_cache)
        return suite


class Runner(MemoryCacheMixin, DiscoverRunner):
    """Django's runner with a cache per test: `TEST_RUNNER = "accesspass.testing.Runner"`."""


# Settings and time ----------------------------------------------------------------------------


class override_accesspass(override_settings):
    """Change some options of ACCESSPASS and keep the others, which `override_settings` drops.

    A decorator of test classes and functions, and a context manager:
    `@override_accesspass(ACCESS_TOKEN_LIFETIME=60)`.

    Raises:
        ValueError: there is no such option, or it cannot have that value.
    """

    def __init__(self, **given: Any) -> None:
        for name, value in given.items():
            if name not in Conf.options:
                near = get_close_matches(name, Conf.options, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"ACCESSPASS has no option {name}{hint}")
            if (problem := Conf.options[name].problem(value)) is not None:
                raise ValueError(f"ACCESSPASS[{name!r}] {problem}")
        self._given = given
        super().__init__(ACCESSPASS=given)

    def enable(self) -> None:
        self.options = {"ACCESSPASS": {**getattr(settings, "ACCESSPASS", {}), **self._given}}
        super().enable()

    def save_options(self, test_func: Any) -> None:
        inherited = (test_func._overridden_settings or {}).get("ACCESSPASS")
        if inherited is None:
            inherited = getattr(settings, "ACCESSPASS", {})
        self.options = {"ACCESSPASS": {**inherited, **self._given}}
        super().save_options(test_func)


_aged: dict[str, float] = collections.defaultdict(float)


def age(session: TokenPair | uuid.UUID, seconds: float | timedelta) -> None:
    """Let a session be older by so much, on every node, as if that time had passed.

    Everything that goes by its age follows: its access tokens and the session itself expire, it is
    idle, and the grace of its last refresh ends. What is not over keeps its time: an access token
    that is good for ten seconds more after it still says that it is good for longer.
    """
    delta = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
    pk = session.session_id if isinstance(session, TokenPair) else session
    rows = Session.objects.using(router.db_for_write(Session)).filter(pk=pk)
    row: Any = rows.get()
    names = ("created_at", "last_used_at", "rotated_at", "expires_at", "revoked_at")
    moments = {name: getattr(row, name) for name in names}
    now = records.open_cache().now()
    live = []
    for digest, expires in row.access_tokens:
        # A token says when it expires, so those that go on keep that, and how old they are by now
        # is remembered here.
        _aged[digest] += delta.total_seconds()
        # Expiries are whole seconds, rounded up.
        if expires - _aged[digest] > now + 1:
            live.append([digest, expires])
    rows.update(
        **{name: moment - delta for name, moment in moments.items() if moment is not None},
        access_tokens=live,
        revision=F("revision") + 1,
        publication_pending=True,
    )
    sessions.tidy()  # publishes it, whatever has become of the session


# What is asserted -----------------------------------------------------------------------------


@contextlib.contextmanager
def assert_no_queries() -> Iterator[None]:
    """Fail if anything inside asks a database, or the engine of the sessions cache.

    It sees all threads of this process, so also a live server, and async clients; not the threads
    for housekeeping of AccessPass. That an engine in memory or SQLite is looked at, which is no
    round trip, is not counted.

    Raises:
        AssertionError: with what was asked, without parameters.
    """
    asked: list[str] = []
    with contextlib.ExitStack() as stack:
        for owner, name in _what_asks():
            stack.enter_context(mock.patch.object(owner, name, _recording(owner, name, asked)))
        yield
    if asked:
        raise AssertionError(
            f"{len(asked)} where none was expected:\n" + "\n".join(f"  {line}" for line in asked)
        )


def _what_asks() -> Iterator[tuple[type, str]]:
    for name in ("execute", "executemany", "callproc"):
        yield CursorWrapper, name
    cache: Any = caches[conf.CACHE]
    if hasattr(cache, "engine"):
        names = ["read", "write", "clear", "purge"]
        if not cache.engine.sync_on_read:
            names.append("changes")
        yield from ((type(cache.engine), name) for name in names)
    elif not isinstance(cache, LocMemCache):
        yield from ((type(cache), name) for name in ("get", "set", "add", "touch", "delete"))


def _recording(owner: type, name: str, asked: list[str]) -> Callable[..., Any]:
    original = getattr(owner, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not threading.current_thread().name.startswith("accesspass-"):
            sql = owner is CursorWrapper
            asked.append(str(args[0]) if sql else f"{owner.__name__}.{name}")
        return original(self, *args, **kwargs)

    return call


def assert_refused(access_token: TokenPair | str, within: float = 5.0) -> None:
    """Wait until this node refuses an access token.

    Raises:
        AssertionError: it is still accepted after `within` seconds.
    """
    text = access_token.access_token if isinstance(access_token, TokenPair) else access_token
    give_up = time.monotonic() + within
    while True:
        try:
            sessions.authenticate(text)
        except InvalidToken:
            return
        if time.monotonic() >= give_up:
            raise AssertionError(f"the token is still accepted after {within:g} seconds")
        time.sleep(0.01)


def mailed_key(to: str = "") -> str:
    """Deliver the e-mails that wait, and return the key in the newest one that has one.

    Of those to the address `to`, if it is given.

    Raises:
        AssertionError: there is no such e-mail.
    """
    mail.deliver()
    key = re.compile(rf"\b{re.escape(conf.TOKEN_PREFIX)}_ek_[\w-]+")
    for message in reversed(getattr(django_mail, "outbox", [])):
        found = key.search(str(message.body))
        if found is not None and (not to or to in message.to):
            return found[0]
    raise AssertionError("no e-mail with a key was sent" + (f" to {to}" if to else ""))
