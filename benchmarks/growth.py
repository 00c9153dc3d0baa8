"""``authenticate()`` among more and more live sessions, on PostgreSQL's rows and log.

The sessions are somebody else's: rows that SQL copies from one session and one token of knox, and
records that are published with a token each. A hit asks for one of many of these in turn: *again*
for tokens that the process remembers, *anew* for those that it does not. A miss and knox ask the
database for one row among all.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.handlers.wsgi import WSGIRequest
from django.db import connection, models
from knox.models import get_token_model
from rest_framework.request import Request

from accesspass import recent, session_cache, sessions, tokens
from accesspass.models import Session
from benchmarks.measure import miss_of, row_of
from benchmarks.timing import Call, Effort, interleave
from benchmarks.variants import named
from tests.servers import wait_until

__all__ = ["growth"]

_BATCH = 5_000
_LIFETIME = 7_200
# As many are asked for in turn: more than a processor's cache holds the records of.
_ASKED = 20_000
# As many are asked for again: all of them are remembered.
_AGAIN = 1_000


def growth(effort: Effort, user: Any) -> list[dict[str, Any]]:
    """Return a row for each number of sessions in ``effort.sessions``."""
    ours, knox = named("AccessPass, PostgreSQL", "knox")
    ours.select()
    manager: Any = get_user_model()._default_manager
    crowd = manager.create_user("crowd", "crowd@example.com", None)
    pair = sessions.start(crowd)
    record = caches[ours.alias].get(session_cache.key(pair.session_id.bytes))
    get_token_model().objects.create(user=crowd)
    authenticator = ours.authenticators[0]()
    theirs = knox.authenticate(knox.log_in(user))
    headers: list[str] = []
    rows: list[dict[str, Any]] = []
    before = _resident()
    for count in effort.sessions:
        missing = count - (rows[-1]["sessions"] if rows else 0)
        _copy(Session, crowd, missing, id="gen_random_uuid()")
        _copy(get_token_model(), crowd, missing, digest="gen_random_uuid()::text")
        headers += _publish(caches[ours.alias], record, missing)
        memory = _resident() - before
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
        request = Request(WSGIRequest(ours.environ(ours.log_in(user))))
        few, many = (headers[:: max(1, len(headers) // number)] for number in (_AGAIN, _ASKED))

        def hit(turn: Iterator[str]) -> None:
            request.META["HTTP_AUTHORIZATION"] = next(turn)  # noqa: B023 - called at once
            authenticator.authenticate(request)  # noqa: B023

        def anew(turn: Iterator[str]) -> None:
            recent.forget_all()
            hit(turn)

        def remember() -> None:
            ours.select()
            for header in 2 * few:  # noqa: B023 - called at once
                hit(iter([header]))

        calls = {
            "again": Call(partial(hit, cycle(few)), remember),
            "anew": Call(partial(anew, cycle(many)), ours.select),
            "miss": Call(miss_of(ours, user), ours.select),
            "knox": Call(theirs, ours.select),
        }
        samples = interleave(calls, rounds=effort.rounds, batch_seconds=effort.batch_seconds)
        measured = {name: row_of(name, samples[name], samples["knox"]) for name in calls}
        fewest = rows[0] if rows else measured
        growths = {
            f"{name}_growth": measured[name]["us"]["median"] / fewest[name]["us"]["median"]
            for name in ("again", "anew")
        }
        rows.append({"sessions": count, **measured, **growths, "memory": memory})
    return rows


def _copy(model: type[models.Model], crowd: Any, count: int, **fresh: str) -> None:
    """Insert so many copies of one of the crowd's rows; ``fresh`` is SQL for their own columns."""
    names = [field.column for field in model._meta.concrete_fields]
    values = ", ".join(fresh.get(name, f'one."{name}"') for name in names)
    columns = ", ".join(f'"{name}"' for name in names)
    table = model._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f'INSERT INTO "{table}" ({columns}) SELECT {values} FROM '  # noqa: S608 - our names
            f'(SELECT * FROM "{table}" WHERE user_id = %s LIMIT 1) one, generate_series(1, %s)',
            [crowd.pk, count],
        )


def _publish(cache: Any, record: list[Any], count: int) -> list[str]:
    """Put so many records like that one into the cache; return a header for each."""
    headers = []
    for start in range(0, count, _BATCH):
        batch = {}
        for _ in range(min(_BATCH, count - start)):
            id = uuid.uuid4().bytes
            expires = int(cache.now()) + _LIFETIME
            token = tokens.mint(tokens.TokenType.ACCESS, id, expires)
            batch[session_cache.key(id)] = [
                record[0],
                [[token.digest, expires]],
                *record[2:],
            ]
            headers.append(f"Bearer {token.text}")
        cache.set_many(batch, _LIFETIME)
    wait_until(lambda: cache.get(next(reversed(batch))) is not None, timeout=60)
    return headers


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
