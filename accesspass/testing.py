"""For the tests of a project that uses AccessPass.

With pytest, put `pytest_plugins = ["accesspass.testing"]` into the top `conftest.py`; with Django's
own runner, subclass it together with `MemoryCacheMixin`. Either puts `memory://` under the cache
alias, so that tests share nothing with a running server and with each other's processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.test import Client
from django.test.utils import override_settings

from accesspass import sessions
from accesspass.conf import conf

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from accesspass.sessions import TokenPair

__all__ = ["MemoryCacheMixin", "login", "logout", "memory_cache"]


def login(client: Client, user: AbstractBaseUser, **options: Any) -> TokenPair:
    """Start a session and let `client` send its access token from now on.

    `client` is Django's Client or DRF's APIClient; `options` go to `sessions.start` (claims,
    lifetime, name). The session is published at once, though a TestCase never commits, so requests
    make no query. Returns the tokens.
    """
    pair = sessions.start(user, **options)
    sessions.publish_now(pair.session_id)
    bare = conf.ACCESS_TOKEN_HEADER.lower() != "authorization"
    client.defaults[_environ_key()] = pair.access_token if bare else f"Bearer {pair.access_token}"
    return pair


def logout(client: Client) -> None:
    """Let `client` send no access token any more. The session goes on."""
    client.defaults.pop(_environ_key(), None)


def memory_cache() -> override_settings:
    """Return a decorator and context manager under which the cache alias is `memory://`."""
    replaced = {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": "memory://accesspass-testing",
    }
    return override_settings(CACHES={**settings.CACHES, conf.CACHE: replaced})


class MemoryCacheMixin:
    """For a test runner: `class Runner(MemoryCacheMixin, DiscoverRunner)`."""

    _memory_cache: override_settings

    def setup_test_environment(self, **kwargs: Any) -> None:
        super().setup_test_environment(**kwargs)  # type: ignore[misc]
        self._memory_cache = memory_cache()
        self._memory_cache.enable()

    def teardown_test_environment(self, **kwargs: Any) -> None:
        self._memory_cache.disable()
        super().teardown_test_environment(**kwargs)  # type: ignore[misc]


# Hooks of pytest, found by their names when this module is a plugin.

_for_session: list[override_settings] = []


def pytest_sessionstart() -> None:
    _for_session.append(memory_cache())
    _for_session[-1].enable()


def pytest_sessionfinish() -> None:
    while _for_session:
        _for_session.pop().disable()


def _environ_key() -> str:
    return "HTTP_" + conf.ACCESS_TOKEN_HEADER.upper().replace("-", "_")
