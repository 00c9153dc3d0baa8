"""The three measurements. Each returns rows for a table, whose numbers are not rounded yet.

Django must be set up before this module is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.conf import settings
from django.core.cache import caches
from django.db import connection

from accesspass import sessions
from benchmarks.timing import Call, Result, interleave, sample
from benchmarks.variants import BASE, Server, Variant

__all__ = ["Effort", "Row", "authenticators", "changes", "requests"]


class Effort(NamedTuple):
    """How long to measure: rounds of batches of so many seconds, and single calls."""

    rounds: int
    batch_seconds: float
    singles: int


class Row(NamedTuple):
    """One line of a table; ``ratio`` is None where there is nothing to compare with."""

    name: str
    result: Result
    ratio: float | None
    queries: int


def requests(variants: list[Variant], effort: Effort, user: Any) -> list[Row]:
    """Whole requests through Django's WSGI handler, against the view without authentication."""
    server = Server()
    queries = {}
    for variant in variants:
        variant.select()
        server.send(variant)
        with _count_queries() as counted:
            answer = json.loads(server.send(variant))
        # What is timed does what it says: it knows the user, or nobody where nobody is asked.
        assert answer == {"user": user.pk if variant.authenticators else None}, variant.name
        queries[variant.name] = len(counted)
    calls = {v.name: Call(_bind(server.send, v), v.select) for v in variants}
    samples = interleave(calls, rounds=effort.rounds, batch_seconds=effort.batch_seconds)
    return _rows(samples, queries, BASE)


def authenticators(variants: list[Variant], effort: Effort, user: Any) -> list[Row]:
    """``authenticate()`` alone, repeated on one request, against AccessPass in memory."""
    calls, queries = {}, {}
    for variant in variants:
        for authenticator in variant.authenticators:
            run = _bind(authenticator().authenticate, variant.request())
            variant.select()
            run()
            with _count_queries() as counted:
                found, _ = run()
            assert found.pk == user.pk, variant.name
            calls[variant.name] = Call(run, variant.select)
            queries[variant.name] = len(counted)
    samples = interleave(calls, rounds=effort.rounds, batch_seconds=effort.batch_seconds)
    return _rows(samples, queries, next(iter(calls)))


def changes(effort: Effort, user: Any) -> list[Row]:
    """What is done once a session, or once in five minutes: it writes, so it costs."""
    settings.ACCESSPASS["CACHE"] = "database"
    cache: Any = caches["database"]
    pair = sessions.start(user)

    def refresh() -> None:
        nonlocal pair
        pair = sessions.refresh(pair.refresh_token)

    def miss() -> None:
        cache.forget(f"session:{pair.session_id.hex}")
        sessions.authenticate(pair.access_token)

    def revoke() -> None:
        assert sessions.revoke(started.pop().session_id)

    runs: dict[str, Callable[[], object]] = {
        "login, without hashing the password": lambda: started.append(sessions.start(user)),
        "logout": revoke,
        "refresh": refresh,
        "a request whose session this process does not hold": miss,
    }
    started: list[sessions.TokenPair] = []
    rows = []
    for name, run in runs.items():
        started.extend(sessions.start(user) for _ in range(2))
        run()
        with _count_queries() as counted:
            run()
        # Never more than SESSIONS_PER_USER, or a login would revoke the oldest as well.
        samples: list[float] = []
        while len(samples) < effort.singles:
            while len(started) < 20 and run is revoke:
                started.append(sessions.start(user))
            samples += sample(run, 20)
            while started and run is not revoke:
                sessions.revoke(started.pop().session_id)
        rows.append(Row(name, Result.of(samples), None, len(counted)))
    return rows


def _bind(run: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: run(argument)


def _rows(samples: dict[str, list[float]], queries: dict[str, int], base: str) -> list[Row]:
    rows = []
    for name, measured in samples.items():
        # Of each round, since both were measured in the same moments.
        ratios = [one / other for one, other in zip(measured, samples[base], strict=True)]
        rows.append(Row(name, Result.of(measured), Result.of(ratios).median, queries[name]))
    return rows


@contextmanager
def _count_queries() -> Iterator[list[str]]:
    """Collect SQL statements, without those that only begin a transaction or a savepoint."""
    seen: list[str] = []

    def collect(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith(("BEGIN", "SAVEPOINT", "RELEASE")):
            seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(collect):
        yield seen
