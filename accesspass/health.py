"""What load balancers ask: `path("health/", include("accesspass.health"))`, wherever it suits.

`health/` says whether this process can tell good tokens from bad ones, `health/live/` that it
answers at all. Both are open to everybody and say nothing more.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.cache import caches
from django.db import connections, router, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_safe

from accesspass import sessions
from accesspass.conf import conf
from accesspass.models import Session

__all__ = ["app_name", "live", "ready", "urlpatterns"]

logger = logging.getLogger("accesspass.health")

_DEADLINE = 2.0  # seconds: shorter than a load balancer's patience
# When a question is asked anew though the thread that asked it has not come back, in seconds: twice
# as late for each thread that is out, up to so many times.
_ABANDONED, _AT_MOST = 30.0, 10
# For how long an answer is good for others too, in seconds: whoever asks without a pause costs no
# connection each time.
_REUSED = 1.0


def ready(request: HttpRequest) -> HttpResponse:
    """200 if the replica of this process is current or the database answers, else 503.

    Either is enough to decide about a token. Whether the replica is current is a look into memory,
    and if it is, nothing else is asked. Otherwise it is brought up to date while the database is
    asked, and whoever does not answer within two seconds counts as silent.
    """
    if _is_current():
        return _answer(True, "current", "unasked")
    questions = [_ask("replica", _catch_up), _ask("database", _ask_database)]
    until, waiting, good = time.monotonic() + _DEADLINE, set(questions), False
    while waiting and not good and (left := until - time.monotonic()) > 0:
        answered, waiting = wait(waiting, left, FIRST_COMPLETED)
        good = any(x.result() for x in answered)
    replica, database = (x.done() and x.result() for x in questions)
    return _answer(
        good,
        "current" if replica else "stale" if _memory_suffices() else "none",
        "answers" if database else "unasked" if good else "silent",
    )


def live(request: HttpRequest) -> HttpResponse:
    """200, whatever else is out of order: a restart of this process would mend nothing."""
    return JsonResponse({"status": "live"}, headers=_HEADERS)


_HEADERS = {"Cache-Control": "no-store"}


def _answer(good: bool, replica: str, database: str) -> HttpResponse:
    if not good:
        extra = {"event": "health.not_ready", "replica": replica, "database": database}
        logger.warning(
            "health.not_ready: the replica is %s, the database %s", replica, database, extra=extra
        )
    body = {
        "status": "ready" if good else "unavailable",
        "replica": replica,
        "database": database,
    }
    return JsonResponse(body, status=200 if good else 503, headers=_HEADERS)


def _memory_suffices() -> bool:
    """Whether a request may be authorised without the database at all."""
    return conf.USER_FROM_RECORD and hasattr(caches[conf.CACHE], "publish")


def _is_current() -> bool:
    cache: Any = caches[conf.CACHE]
    return _memory_suffices() and bool(cache.status()["fresh"])


def _catch_up() -> bool:
    sessions.join()
    return _is_current()


def _ask_database() -> bool:
    """Ask what a check of a token would ask."""
    rows = Session.objects.using(router.db_for_write(Session))
    rows.filter(pk=uuid.UUID(int=0)).exists()
    return True


# What was asked last, and when.
_asked: dict[str, tuple[Future[bool], float]] = {}
# The threads that have not come back.
_out: list[tuple[str, threading.Thread]] = []


def _ask(name: str, question: Callable[[], bool]) -> Future[bool]:
    """Ask in a thread of its own, since who asks a server that is frozen never returns.

    While one thread waits nobody else asks the same: what hangs costs one thread, not one for each
    health check. Only after long is it asked anew, because a connection may be lost that the
    server has forgotten, and ever more rarely, but never so rarely that it would take many minutes
    to find out that the server is back.
    """
    found, since = _asked.get(name, (None, 0.0))
    if found is not None:
        out = sum(asked == name for asked, _ in _out)
        patience = _REUSED if found.done() else _ABANDONED * min(2 ** max(out - 1, 0), _AT_MOST)
        if time.monotonic() - since < patience:
            return found
    answer: Future[bool] = Future()

    def run() -> None:
        good = False
        try:
            good = question()
        except Exception as error:  # noqa: BLE001 - a driver's, whatever it is, is a no
            extra = {"event": "health.failed", "question": name}
            logger.warning("health.failed: %s: %s", name, error, extra=extra)
        finally:
            connections.close_all()
            _out.remove(place)
            answer.set_result(good)

    thread = threading.Thread(target=run, name=f"accesspass-health-{name}", daemon=True)
    place = (name, thread)
    # Two that come at once may each begin one: better than a lock, which a fork could leave held.
    _out.append(place)
    try:
        thread.start()
    except RuntimeError:  # no more threads
        _out.remove(place)
        answer.set_result(False)
        return answer
    _asked[name] = answer, time.monotonic()
    return answer


def _forget() -> None:
    _asked.clear()
    _out.clear()


os.register_at_fork(after_in_child=_forget)


def _open(view: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Let a view be called without credentials, and not inside a transaction (ATOMIC_REQUESTS),
    which nobody can begin whose database is dead."""
    made: Any = require_safe(login_not_required(view))
    for alias in connections:
        made = transaction.non_atomic_requests(alias)(made)
    return made


app_name = "accesspass_health"
urlpatterns = [
    path("", _open(ready), name="ready"),
    path("live/", _open(live), name="live"),
]
