"""What the tests of sessions share."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.db import connection
from django.db.models.functions import Now
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from accesspass import sessions
from accesspass.cache import ReplicatedCache
from accesspass.exceptions import InvalidToken
from accesspass.models import Node


def cache_settings(location: str, **options: Any) -> Any:
    alias = {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": location,
        "OPTIONS": options,
    }
    return override_settings(CACHES={**settings.CACHES, "accesspass": alias})


def options(**changes: Any) -> Any:
    return override_settings(ACCESSPASS={**settings.ACCESSPASS, **changes})


@pytest.fixture(autouse=True)
def replicated() -> Iterator[None]:
    """An engine that no other test has."""
    with cache_settings(f"memory://{uuid.uuid4()}"):
        yield


@pytest.fixture
def plain() -> Iterator[None]:
    alias = {
        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
        "LOCATION": str(uuid.uuid4()),
    }
    with override_settings(CACHES={**settings.CACHES, "accesspass": alias}):
        yield


@contextlib.contextmanager
def engine_out_of_reach() -> Iterator[None]:
    """Let nothing of this process arrive at the engine."""

    def fail(*_: Any, **__: Any) -> None:
        raise ReplicatedCache.EngineUnavailable("the engine is out of reach")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicatedCache, "publish", fail)
        yield


@pytest.fixture
def user() -> Any:
    return make_user("ann")


def make_user(name: str) -> Any:
    model = get_user_model()
    fields = {"email": f"{name}@example.com", "password": "correct horse"}
    if model.USERNAME_FIELD == "username":
        fields["username"] = name
    return model.objects.create_user(**fields)


@contextlib.contextmanager
def queries(expected: int) -> Iterator[None]:
    with CaptureQueriesContext(connection) as captured:
        yield
    statements = [q["sql"] for q in captured if q["sql"] not in ("BEGIN", "COMMIT")]
    assert len(statements) == expected, statements


def is_refused(access_token: str) -> bool:
    try:
        sessions.authenticate(access_token)
    except InvalidToken:
        return True
    return False


def forget(pair: sessions.TokenPair) -> None:
    caches["accesspass"].forget(f"session:{pair.session_id.hex}")


def is_in_memory() -> bool:
    """Whether the database is one that no other thread or process can see."""
    return connection.vendor == "sqlite" and connection.is_in_memory_db()  # type: ignore[attr-defined]


def make_node(seconds_ago: float = 0, **fields: Any) -> Node:
    """Insert what a made-up node reported so long ago."""
    made_up = {
        "host": "web-1",
        "pid": Node.objects.count() + 1,
        "version": "0.1",
        "engine": "redis",
        "role": "primary",
        "epoch": "one",
        "applied": 10,
        "head": 10,
        "staleness": 0.1,
        "fresh": True,
        "entries": 3,
        "bytes": 300,
    }
    at = Now() - timedelta(seconds=seconds_ago)
    return Node.objects.create(**{**made_up, **fields}, started_at=at, reported_at=at)


real_database = pytest.mark.skipif(
    is_in_memory(), reason="an in-memory SQLite database has one process and one thread"
)
