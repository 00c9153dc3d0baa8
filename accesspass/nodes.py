"""What each serving process reports of itself, and what follows from all the reports together.

A replica lives in the memory of its process, so nobody else can look into it: its process says how
it is, by one small UPDATE of its own row every half minute, in the background thread. A process
that ends says nothing of that; it is gone when it was not heard of for two minutes.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from django.core.cache import caches
from django.db import router
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from accesspass import __version__, sessions
from accesspass.conf import conf
from accesspass.models import Node

__all__ = [
    "FRESH",
    "GONE",
    "REPORT_EVERY",
    "STALE",
    "Report",
    "in_state",
    "overview",
    "purge",
    "report",
]

#: How often a process reports, in seconds.
REPORT_EVERY = 30.0
_GONE_AFTER = timedelta(minutes=2)
_KEPT = timedelta(hours=1)

FRESH, STALE, GONE = "fresh", "stale", "gone"


class Report(NamedTuple):
    """What is known of a node.

    ``age`` is that of its last report, in seconds, and ``state`` is ``FRESH``, ``STALE`` (its reads
    miss, and the database is asked) or ``GONE``. ``lag`` is by how many writes it was behind the
    greatest head that anybody had reported by then, and ``in_epoch`` whether it had the epoch that
    a fresh node has reported last; both are None where that is not known.
    """

    node: Node
    age: float
    state: str
    lag: int | None
    in_epoch: bool | None


def report() -> None:
    """Write what this process's replica holds into its row. A cache without a replica has none."""
    cache: Any = caches[conf.CACHE]
    if not hasattr(cache, "status"):
        return
    # A replica that only reads keep current would seem stale for as long as nobody asks it.
    sessions.join()
    status = cache.status()
    resync = status["last_resync"]
    values = {
        **{name: status[name] for name in _REPORTED},
        "role": status["role"] or "",
        "epoch": status["epoch"] or "",
        "last_resync": None if resync is None else Now() - timedelta(seconds=cache.now() - resync),
        "host": socket.gethostname()[:255],
        "pid": os.getpid(),
        "version": __version__,
        "reported_at": Now(),
    }
    rows, pk = _rows(), _own_id(os.getpid())
    if not rows.filter(pk=pk).update(**values):
        rows.create(pk=pk, started_at=Now(), **values)


def purge() -> None:
    """Delete the rows of nodes that were not heard of for an hour."""
    _rows().filter(reported_at__lt=Now() - _KEPT).delete()


def overview() -> list[Report]:
    """Return what is known of each node, by host and process id."""
    rows = list(_rows().annotate(clock=Now()).order_by("reported_at"))
    epoch = _epoch(rows)
    heads: dict[str, int] = {}
    found = []
    for node in rows:
        # Only what was said before it, or every node would seem to lag by what was written since.
        if node.head is not None:
            heads[node.epoch] = max(heads.get(node.epoch, 0), node.head)
        head = heads.get(node.epoch)
        age = node.clock - node.reported_at
        found.append(
            Report(
                node,
                age.total_seconds(),
                GONE if age > _GONE_AFTER else FRESH if node.fresh else STALE,
                None if head is None else max(0, head - node.applied),
                None if epoch is None or not node.epoch else node.epoch == epoch,
            )
        )
    return sorted(found, key=lambda x: (x.node.host, x.node.pid, x.node.started_at))


def in_state(state: str) -> Q:
    """Return the condition on rows of nodes that are in this state."""
    heard = Q(reported_at__gte=Now() - _GONE_AFTER)
    return ~heard if state == GONE else heard & Q(fresh=state == FRESH)


_REPORTED = ("engine", "applied", "head", "staleness", "fresh", "entries", "bytes", "counters")


def _epoch(rows: Iterable[Any]) -> str | None:
    """Return the epoch of the newest report of a fresh node; rows come oldest first."""
    fresh = [x.epoch for x in rows if x.fresh and x.clock - x.reported_at <= _GONE_AFTER]
    return fresh[-1] if fresh else None


def _rows() -> QuerySet[Node]:
    return Node.objects.using(router.db_for_write(Node))


@lru_cache(maxsize=1)
def _own_id(pid: int) -> uuid.UUID:
    """Name this process; another one, forked from it, is given another name."""
    return uuid.uuid4()
