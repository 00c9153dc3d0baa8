"""Every engine that the contract suite runs against.

To add one: an entry in ``KINDS``. Nothing else knows the engines by name.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from django.db import connections

from tests import servers

__all__ = ["KINDS", "Kind"]


def _no_reason() -> str | None:
    return None


class Kind(NamedTuple):
    """One way to keep a log.

    ``fresh`` is entered with an empty folder and gives a LOCATION whose log nobody has used;
    ``resolve(LOCATION, OPTIONS).make()`` then makes independent engines on it, one a node.
    ``why_not`` says why it cannot be run here, ``None`` if it can; it may start a private server
    that stays for the run. ``shared`` tells whether other processes of this machine see the log.
    """

    fresh: Callable[[Path], AbstractContextManager[str]]
    why_not: Callable[[], str | None] = _no_reason
    shared: bool = True


@contextlib.contextmanager
def _memory(folder: Path) -> Iterator[str]:
    yield f"memory://{secrets.token_hex(8)}"


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/log.accesspass"


@contextlib.contextmanager
def _database_on_sqlite(folder: Path) -> Iterator[str]:
    alias = f"contract_{secrets.token_hex(4)}"
    connections.settings[alias] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "project.sqlite3"),
    }
    try:
        yield f"database:{alias}"
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def _no_postgresql() -> str | None:
    try:
        servers.postgresql_binaries()
    except servers.Missing as error:
        return f"needs PostgreSQL: {error}"
    return None


@contextlib.contextmanager
def _postgresql_schema() -> Iterator[str]:
    """An empty schema on the server that the tests of this process share."""
    name = f"contract_{secrets.token_hex(4)}"
    server = servers.shared_postgresql()
    server.execute(f"CREATE SCHEMA {name}")
    try:
        yield name
    finally:
        server.execute(f"DROP SCHEMA {name} CASCADE")


@contextlib.contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    with _postgresql_schema() as name:
        yield f"{servers.shared_postgresql().url()}?options=-csearch_path%3D{name}"


@contextlib.contextmanager
def _database_on_postgresql(folder: Path) -> Iterator[str]:
    alias = f"contract_{secrets.token_hex(4)}"
    server = servers.shared_postgresql()
    with _postgresql_schema() as name:
        connections.settings[alias] = {
            **connections.settings["default"],
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "PASSWORD": "",
            "HOST": server.host,
            "PORT": server.port,
            "OPTIONS": {"options": f"-csearch_path={name}"},
        }
        try:
            yield f"database:{alias}"
        finally:
            connections[alias].close()
            del connections[alias]
            del connections.settings[alias]


def _no_valkey() -> str | None:
    try:
        servers.valkey_binary()
    except servers.Missing as error:
        return f"needs Valkey or Redis: {error}"
    return None


# Database 0 is left to tests of the engine itself.
_redis_databases = itertools.cycle(range(1, 16))


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    server, database = servers.shared_valkey(), next(_redis_databases)
    server.execute("SWAPDB", 0, database)
    server.execute("FLUSHDB")
    server.execute("SWAPDB", 0, database)
    yield server.url(database)


KINDS: dict[str, Kind] = {
    "memory": Kind(_memory, shared=False),
    "sqlite": Kind(_sqlite),
    "database-sqlite": Kind(_database_on_sqlite),
    "postgresql": Kind(_postgresql, _no_postgresql),
    "database-postgresql": Kind(_database_on_postgresql, _no_postgresql),
    "redis": Kind(_redis, _no_valkey),
}
