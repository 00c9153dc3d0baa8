"""The one thread of a serving process for recurring work.

It is started by the first authenticated request or auth view, never at import, so commands and
tests do not have it. It is a daemon and holds no database connection while it sleeps.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from django.core import mail
from django.db import connections

from accesspass import sessions
from accesspass.models import Throttle

__all__ = ["JOBS", "run_due", "start"]

logger = logging.getLogger("accesspass.background")

#: What is done, and how many seconds after it was last done.
JOBS: Sequence[tuple[float, Callable[[], object]]] = (
    (5.0, sessions.tidy),
    (60.0, sessions.purge),
    (600.0, Throttle.objects.purge),
)

_lock = threading.Lock()
_pid = 0
_last: dict[int, float] = {}


def start() -> None:
    """Start the thread of this process if it has none yet. Cheap enough for each request."""
    if _pid != os.getpid():
        _start()


def _start() -> None:
    global _pid
    # Django's test runners give mail an outbox. What a test writes is in a transaction that no
    # other thread can see, and a connection of ours would keep its database from being dropped.
    if hasattr(mail, "outbox"):
        return
    with _lock:
        if _pid == os.getpid():
            return
        _pid = os.getpid()
        _last.clear()
        threading.Thread(target=_run, name="accesspass-background", daemon=True).start()


def _run() -> None:
    while True:
        run_due()
        time.sleep(1.0)


def run_due() -> None:
    """Do the jobs whose time has come. A job that fails is logged and done again later."""
    for number, (interval, job) in enumerate(JOBS):
        if time.monotonic() - _last.get(number, float("-inf")) < interval:
            continue
        _last[number] = time.monotonic()
        try:
            job()
        except Exception:
            logger.exception("background.failed: %s", job.__name__)
        finally:
            connections.close_all()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
