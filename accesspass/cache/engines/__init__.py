"""Picks the engine that a ``LOCATION`` names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import import_string

from accesspass.cache.engines.base import Engine
from accesspass.cache.engines.memory import MemoryEngine
from accesspass.cache.engines.sqlite import SQLiteEngine

__all__ = ["Resolved", "resolve"]

_ALTERNATIVES = (
    "use database:ALIAS (an alias of DATABASES on PostgreSQL or SQLite), "
    "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, sqlite:////absolute/path, "
    "redis://HOST:PORT/DATABASE (or rediss://, redis+unix://, redis+sentinel://, redis+cluster://) "
    "or memory://NAME"
)


class Resolved(NamedTuple):
    """An engine not made yet. Equal identities share one engine and one replica per process.

    Every option of a project goes into the identity: it decides who shares a replica.
    """

    identity: tuple[str, ...]
    make: Callable[[], Engine]


def resolve(location: str, options: Mapping[str, Any]) -> Resolved:
    """Say which engine a ``LOCATION`` means just now.

    Args:
        location: ``memory://NAME``, ``sqlite:////absolute/path``, ``database:ALIAS``,
            ``postgresql://[user:password@]host[:port]/database`` (as libpq has it), or Redis or
            Valkey as ``redis://[user:password@]host[:port][/database]``, on this machine as
            ``redis+unix://[user:password@]/path/of/socket[?db=number]``, through Sentinels as
            ``redis+sentinel://[user:password@]host:port,host:port/service[/database]``, or in a
            Cluster as ``redis+cluster://[user:password@]host:port,host:port``; over TLS with
            ``rediss`` in place of ``redis``. ``database:ALIAS`` follows its database
            when that is renamed, as test runners do.
        options: the cache's ``OPTIONS``, completed by their defaults. Where ``ENGINE`` is set, the
            class that it names is made with the location, which may be any text.

    Raises:
        ImproperlyConfigured: no engine is meant by it; the message names what can be used.
    """
    if options["ENGINE"] is not None:
        return _foreign(str(options["ENGINE"]), location)
    if location.startswith("database:"):
        return _of_database(location.removeprefix("database:"), options)
    if location.startswith(("postgresql:", "postgres:")):
        return _of_url(location, options)
    if location.startswith(("redis:", "rediss:", "redis+", "rediss+")):
        return _redis(location, options)
    parts = urlsplit(location)
    if parts.scheme == "memory" and parts.netloc and not parts.path:
        return _memory(parts.netloc)
    if parts.scheme == "sqlite" and not parts.netloc and parts.path.startswith("//"):
        return _sqlite(parts.path[1:])
    # The scheme alone: there may be a password in the rest.
    raise ImproperlyConfigured(
        f"LOCATION (a {parts.scheme or 'word'!r}) names no engine: {_ALTERNATIVES}."
    )


def database_settings(location: str) -> Mapping[str, Any] | None:
    """Return the live settings of the database that a ``database:ALIAS`` location follows."""
    if not location.startswith("database:"):
        return None
    alias = location.removeprefix("database:")
    try:
        found: Mapping[str, Any] = connections.settings[alias]
    except KeyError:
        raise ImproperlyConfigured(
            f"LOCATION {location!r}: DATABASES has no alias {alias!r}."
        ) from None
    return found


def _of_database(alias: str, options: Mapping[str, Any]) -> Resolved:
    settings = database_settings(f"database:{alias}")
    assert settings is not None  # noqa: S101 - for the type checker
    vendor, name = connections[alias].vendor, str(settings["NAME"])
    if vendor == "sqlite":
        if name == ":memory:" or "mode=memory" in name:
            return _memory(f"database:{alias}:{name}")
        path = os.path.realpath(name)
        return _sqlite(f"{path}.accesspass", like=path)
    if vendor == "postgresql":
        own: Mapping[str, Any] = settings["OPTIONS"]
        host = {key.lower(): settings[key] for key in ("HOST", "PORT", "USER")}

        def parameters() -> Mapping[str, Any]:
            found: Mapping[str, Any] = connections[alias].get_connection_params()
            # By the time of a later connection the alias may stand for another database.
            return {**found, "dbname": name} if name else found

        return _postgresql(
            {**own, **host, "dbname": name}, parameters, options, role=own.get("assume_role")
        )
    raise ImproperlyConfigured(
        f"LOCATION 'database:{alias}': there is no engine for {vendor} yet; {_ALTERNATIVES}."
    )


def _of_url(location: str, options: Mapping[str, Any]) -> Resolved:
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError as error:
        raise _no_psycopg(error) from None
    try:
        parameters = conninfo_to_dict(location)
    except psycopg.ProgrammingError:
        # libpq's message quotes what it did not understand, and that may be the password.
        raise ImproperlyConfigured(
            "LOCATION postgresql://… is not understood: a URL needs percent-encoding for whatever "
            "is special in user, password or database, and libpq's parameters after a '?'."
        ) from None
    return _postgresql(parameters, lambda: parameters, options, role=None)


def _postgresql(
    named: Mapping[str, Any],
    parameters: Callable[[], Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    role: str | None,
) -> Resolved:
    try:
        from accesspass.cache.engines.postgresql import PostgreSQLEngine
    except ImportError as error:
        raise _no_psycopg(error) from None
    table = str(options["TABLE"])
    # Passwords change, and must not lie about.
    known = sorted(f"{key}={named[key]}" for key in named if "password" not in key)
    return Resolved(
        ("postgresql", table, *known),
        lambda: PostgreSQLEngine(parameters, table=table, role=role),
    )


def _no_psycopg(error: ImportError) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"LOCATION is on PostgreSQL, but psycopg 3 cannot be imported ({error}): "
        "pip install 'django-accesspass[postgres]'."
    )


def _foreign(path: str, location: str) -> Resolved:
    try:
        engine: Callable[[str], Engine] = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"ENGINE {path!r} cannot be imported: {error}.") from None
    # There may be a password in the location, so the identity has its digest.
    digest = hashlib.sha256(location.encode()).hexdigest()
    return Resolved(("foreign", path, digest), lambda: engine(location))


def _memory(name: str) -> Resolved:
    return Resolved(("memory", name), lambda: MemoryEngine(name))


def _sqlite(path: str, like: str | None = None) -> Resolved:
    return Resolved(("sqlite", path), lambda: SQLiteEngine(path, like=like))


def _redis(location: str, options: Mapping[str, Any]) -> Resolved:
    try:
        from accesspass.cache.engines.redis import RedisEngine, redacted
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise ImproperlyConfigured(
            "LOCATION is a Redis server, but redis-py is not installed: "
            "pip install 'django-accesspass[redis]'."
        ) from None
    namespace, min_replicas = str(options["NAMESPACE"]), int(options["MIN_REPLICAS"])

    def make() -> Engine:
        return RedisEngine(location, namespace=namespace, min_replicas=min_replicas)

    make()  # finds out now whether the location is right; it opens no connection
    # The password is in the identity as a digest only.
    digest = hashlib.sha256(location.encode()).hexdigest()
    identity = ("redis", redacted(location), digest, namespace, str(min_replicas))
    return Resolved(identity, make)
