"""``python -m benchmarks.sessions``: what sessions cost on PostgreSQL, beside the peers.

Rows, the cache's log and the peers' tables are on one private PostgreSQL with fsync on. The first
table counts statements and round trips, and needs no quiet machine; the second times operations in
rounds that interleave the libraries, so trust its ratios.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.operations import CountingProxy
from benchmarks.project import Project, open_project

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "session-costs.rst"
_PASSWORD = "correct horse battery staple"


class _Operation(NamedTuple):
    """What is measured: ``prepare`` runs before each call of ``run`` and hands it something."""

    name: str
    run: Callable[[Any], object]
    prepare: Callable[[], Any]


def main() -> int:
    """Parse the command line, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, with more noise")
    parser.add_argument("--docs", action="store_true", help="rewrite the tables in docs/")
    options = parser.parse_args()
    with open_project() as project:
        _run(project, quick=options.quick, docs=options.docs)
    return 0


def _run(project: Project, *, quick: bool, docs: bool) -> None:
    from django.conf import settings

    from benchmarks.report import facts, markdown, put_between_markers, rst

    settings.ACCESSPASS["CACHE"] = "postgresql"
    with CountingProxy(project.postgresql.port) as proxy:
        _connect(proxy.port)
        counted = _count(project.user, proxy)
    # Without the proxy, which costs time of its own.
    _connect(project.postgresql.port)
    timed = _time(project.user, 30 if quick else 200)
    said = ", ".join(f"{name} {value}" for name, value in facts().items()) + "."
    print(said)
    for title, rows in (("Statements and round trips", counted), ("Beside the peers", timed)):
        print(f"\n## {title}\n\n{markdown(rows)}")
    if docs:
        put_between_markers(_PAGE, "counts", rst(counted))
        put_between_markers(_PAGE, "times", f"{said}\n\n{rst(timed)}")


def _connect(port: int) -> None:
    """Reach the database by that port from now on; the log keeps the connections it has."""
    from django.db import connection

    connection.close()
    connection.settings_dict["PORT"] = str(port)


# Counting ----------------------------------------------------------------------------------------


def _count(user: Any, proxy: CountingProxy) -> list[dict[str, str]]:
    rows = []
    for operation in _operations(user):
        operation.run(operation.prepare())  # connects, and prepares statements
        argument = operation.prepare()
        with _watch(proxy) as seen:
            operation.run(argument)
        rows.append(
            {
                "": operation.name,
                "SQL statements": str(seen["statements"]),
                "round trips to the database": str(seen["round trips"]),
                "round trips to the log": str(seen["log"]),
            }
        )
    return rows


def _operations(user: Any) -> list[_Operation]:
    from django.core.cache import caches
    from django.core.handlers.wsgi import WSGIRequest

    from accesspass import accounts, sessions
    from accesspass.exceptions import InvalidToken
    from benchmarks.variants import environ_of

    cache: Any = caches["postgresql"]

    def start() -> sessions.TokenPair:
        return sessions.start(user)

    def ended() -> sessions.TokenPair:
        pair = start()
        assert sessions.revoke(pair.session_id)
        return pair

    def used() -> sessions.TokenPair:
        pair = start()
        sessions.refresh(pair.refresh_token)
        return pair

    def known() -> sessions.TokenPair:
        pair = start()
        sessions.authenticate(pair.access_token)
        return pair

    def forgotten(pair: sessions.TokenPair) -> sessions.TokenPair:
        cache.forget(f"session:{pair.session_id.hex}")
        return pair

    def refused(pair: sessions.TokenPair) -> None:
        try:
            sessions.authenticate(pair.access_token)
        except InvalidToken:
            return
        raise AssertionError("it was accepted")

    def login(request: Any) -> object:
        return accounts.log_in("ada", _PASSWORD, request=request)

    return [
        _Operation("login", login, lambda: WSGIRequest(environ_of("/"))),
        _Operation("refresh", lambda pair: sessions.refresh(pair.refresh_token), start),
        _Operation(
            "the same refresh token again, within the grace",
            lambda pair: sessions.refresh(pair.refresh_token),
            used,
        ),
        _Operation(
            "an authorised request (a hit), or check",
            lambda pair: sessions.authenticate(pair.access_token),
            known,
        ),
        _Operation(
            "the same where the process does not hold the session (a miss)",
            lambda pair: sessions.authenticate(pair.access_token),
            lambda: forgotten(known()),
        ),
        _Operation("logout", lambda pair: sessions.logout(access_token=pair.access_token), start),
        _Operation("a request with the token of a session that has ended", refused, ended),
        _Operation(
            "the same where the process does not hold the marker",
            refused,
            lambda: forgotten(ended()),
        ),
    ]


@contextmanager
def _watch(proxy: CountingProxy) -> Iterator[Counter[str]]:
    """Count what the calling thread asks the database and the log.

    The follower has a thread of its own; nobody waits for what it asks.
    """
    from django.core.cache import caches
    from django.db import connection

    seen: Counter[str] = Counter()
    cache: Any = caches["postgresql"]
    engine, thread = cache._follower.engine, threading.current_thread()

    def counted(call: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            if threading.current_thread() is thread:
                seen["log"] += 1
            return call(*arguments)

        return ask

    def collect(execute: Any, *arguments: Any) -> Any:
        seen["statements"] += 1
        return execute(*arguments)

    names = ("write", "changes", "read")
    for name in names:
        setattr(engine, name, counted(getattr(engine, name)))
    before = proxy.round_trips
    try:
        with connection.execute_wrapper(collect):
            yield seen
    finally:
        seen["round trips"] = proxy.round_trips - before
        for name in names:
            delattr(engine, name)


# Timing ------------------------------------------------------------------------------------------


def _time(user: Any, rounds: int) -> list[dict[str, str]]:
    from accesspass import sessions
    from benchmarks.measure import miss_of, refresh_jwt_of, refresh_of
    from benchmarks.report import microseconds, spread
    from benchmarks.timing import Result, sample
    from benchmarks.variants import named

    variant, other = named("AccessPass, PostgreSQL", "knox")
    pair, knox = sessions.start(user), other.authenticate(other.log_in(user))
    pairs: list[tuple[str, Callable[[], object], str, Callable[[], object]]] = [
        (
            "refresh",
            refresh_of(user),
            "simplejwt: rotation with blacklist",
            refresh_jwt_of(user),
        ),
        ("a hit", lambda: sessions.authenticate(pair.access_token), "knox", knox),
        ("a miss", miss_of(variant, user), "knox", knox),
    ]
    rows = []
    for name, ours, peer, theirs in pairs:
        for run in (ours, theirs):
            sample(run, 20)
        samples: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            samples["ours"] += sample(ours, 5)
            samples["theirs"] += sample(theirs, 5)
        one, peers = Result.of(samples["ours"]), Result.of(samples["theirs"])
        rows.append(
            {
                "": name,
                "µs": microseconds(one.median),
                "quartiles": spread(one),
                "against": peer,
                "its µs": microseconds(peers.median),
                "its quartiles": spread(peers),
                "ratio": f"{one.median / peers.median:.3f}",
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
