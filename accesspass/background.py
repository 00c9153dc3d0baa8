"""The one thread of a serving process for recurring work.

It is started by the first authenticated request or auth view, never at import, so commands and
tests do not have it. It is a daemon, and holds no database connection while it sleeps but the one
that listens to PostgreSQL's triggers, in one process of all (see ``triggers``).

Where threads do not run, ``accesspass_purge --loop`` does the same.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

from django.core import mail as django_mail
from django.db import connections, router

from accesspass import mail, metrics, nodes, sessions, triggers
from accesspass.conf import conf
from accesspass.models import Lease, Session, Throttle

__all__ = ["JOBS", "Job", "run", "run_due", "start"]

logger = logging.getLogger("accesspass.background")


class Job(NamedTuple):
    """Something that is done again and again.

    ``every`` says how many seconds after it was last done. A leased job is done by one process of
    all, whichever is first; the lease is not given back, so a process that dies, or a job that
    fails, only means that the next one is late. A job may run twice at a time all the same, if it
    takes longer than its lease, and must stand that.
    """

    name: str
    every: Callable[[], float]
    run: Callable[[], object]
    leased: bool = True


def _flush_metrics() -> None:
    if metrics.is_on():
        sessions.join()  # a replica that nobody reads is not stale for that
        metrics.flush()


def _count_queues() -> None:
    if metrics.is_on():
        metrics.SESSIONS_PENDING.set(sessions.pending())
        waiting, given_up = mail.queue()
        metrics.MAILS_WAITING.set(waiting)
        metrics.MAILS_GIVEN_UP.set(given_up)


#: All that is done, one line each.
JOBS = [
    Job("tidy", lambda: 5.0, sessions.tidy, leased=False),
    Job("sweep", lambda: conf.SWEEP_INTERVAL, sessions.sweep),
    Job("purge", lambda: 60.0, sessions.purge),
    # Each request has a lease of its own, so that several processes may send at once.
    Job("mail", lambda: 2.0, mail.deliver_due, leased=False),
    Job("mail purge", lambda: 3600.0, mail.purge),
    Job("throttles", lambda: 600.0, Throttle.objects.purge),
    Job("report", lambda: nodes.REPORT_EVERY, nodes.report, leased=False),
    Job("nodes", lambda: 600.0, nodes.purge),
    # Each process has numbers of its own.
    Job("queues", lambda: 15.0, _count_queues, leased=False),
    Job("metrics", lambda: 1.0, _flush_metrics, leased=False),
]

_TICK = 1.0
# For how long the process that listens has the right to, how often it sees to that, and how often
# the others look whether there are triggers at all, in seconds.
_LISTEN, _LISTEN_EVERY, _LOOK_EVERY = 15.0, 5.0, 60.0

_pid = 0
# Which thread of a process was the first to start ours. No lock, which a fork could leave held.
_started: dict[int, object] = {}
_last: dict[str, float] = {}


def start() -> None:
    """Start the thread of this process if it has none yet. Cheap enough for each request."""
    if _pid != os.getpid():
        _start()


def _start() -> None:
    global _pid
    # Django's test runners give mail an outbox. What a test writes is in a transaction that no
    # other thread can see, and a connection of ours would keep its database from being dropped.
    if hasattr(django_mail, "outbox"):
        return
    pid, mine = os.getpid(), object()
    if _started.setdefault(pid, mine) is not mine:
        return
    for other in [found for found in _started if found != pid]:
        _started.pop(other, None)
    _last.clear()
    _pid = pid
    try:
        threading.Thread(target=run, name="accesspass-background", daemon=True).start()
    except RuntimeError:  # no more threads, or the interpreter is ending; another request tries
        _started.pop(pid, None)
        _pid = 0


def run(jobs: Iterable[str] | None = None) -> None:
    """Do the jobs, or those of these names, for as long as this process lives."""
    pid = os.getpid()
    listening = _Listening()
    # Under gevent a fork copies this thread, and the child starts one of its own.
    while pid == os.getpid():
        run_due(jobs)
        listening.wait(_TICK)


def run_due(jobs: Iterable[str] | None = None) -> None:
    """Do the jobs whose time has come. A job that fails is logged and done again later."""
    for job in list(JOBS):
        if jobs is not None and job.name not in jobs:
            continue
        every = job.every()
        if time.monotonic() - _last.get(job.name, float("-inf")) < every:
            continue
        _last[job.name] = time.monotonic()
        try:
            # A little less, or every second turn would come a moment before the lease is over.
            if not job.leased or Lease.objects.take(job.name, every * 0.9):
                job.run()
        except Exception:
            extra = {"event": "background.failed", "job": job.name}
            logger.exception("background.failed: %s", job.name, extra=extra)
        finally:
            connections.close_all()


class _Listening:
    """Hears in one process of all which users' rows plain SQL has changed."""

    def __init__(self) -> None:
        self._holder = str(uuid.uuid4())
        self._listener: triggers.Listener | None = None
        self._look_at = 0.0

    def wait(self, seconds: float) -> None:
        """Sleep, and see to each user that is heard of meanwhile."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + self._begin_or_end()
        if self._listener is None:
            time.sleep(seconds)
            return
        try:
            for key in self._listener.heard(seconds):
                sessions.sync_key(key)
        except Exception:  # the connection, or a hook; the sweep finds what was missed
            extra = {"event": "background.failed", "job": "listen"}
            logger.exception("background.failed: listen", extra=extra)
            self._close()
        finally:
            connections.close_all()

    def _begin_or_end(self) -> float:
        """Listen, if there is something to hear and nobody else does; say when to look again."""
        connection = connections[router.db_for_write(Session)]
        if connection.vendor != "postgresql":
            return float("inf")
        try:
            if self._listener is None and not triggers.are_installed(connection):
                return _LOOK_EVERY
            if not Lease.objects.take("listen", _LISTEN, self._holder):
                self._close()
            elif self._listener is None:
                self._listener = triggers.Listener(connection)
                sessions.sweep()  # what was changed while nobody listened
        except Exception:
            extra = {"event": "background.failed", "job": "listen"}
            logger.exception("background.failed: listen", extra=extra)
            self._close()
        finally:
            connections.close_all()
        return _LISTEN_EVERY

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


os.register_at_fork(after_in_child=_started.clear)
