"""Keeps the replica of one process current.

There is one follower for each engine and set of options in a process, shared by all threads. It
starts nothing before the first read, and finds out by itself that the process was forked.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import functools
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from django.db import connections

from accesspass.cache.codec import MARKER, PAYLOAD, Opened, Seal
from accesspass.cache.engines.base import Change, Condition, Engine, Entry, Page, Written
from accesspass.cache.exceptions import CacheError, EngineUnavailable, EngineUncertain
from accesspass.cache.replica import Held, Replica, opened

__all__ = ["Follower", "Mark", "Snapshot", "clock"]

logger = logging.getLogger("accesspass.cache")

if hasattr(time, "CLOCK_BOOTTIME"):
    # Seconds on a clock that goes on while the machine is suspended.
    clock: Callable[[], float] = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:  # pragma: no cover - not on Linux
    clock = time.monotonic

_RETRY_FIRST, _RETRY_LAST = 0.05, 1.0
_EXPIRE_EVERY, _EXPIRE_LIMIT = 1.0, 10_000
_PURGE_EVERY, _PURGE_AGAIN, _PURGE_LIMIT = 10.0, 0.1, 1_000
_RESTARTS = 3
# The thread begins no pull sooner after the one before, in seconds, so that under many writes one
# pull brings several of them; after a pause it pulls at once. While news comes that soon after each
# pull, the next breath is twice as long, up to the second number: more pulls than that would only
# take time from the threads that serve.
_BREATH, _LONGEST_BREATH = 0.002, 0.01


class Mark(NamedTuple):
    """Where the log stood when something was read or written elsewhere.

    It is taken before the query, so that whatever is published afterwards is known to be newer.
    """

    epoch: str
    seq: int
    taken: float
    generation: int


class Snapshot(NamedTuple):
    """What was held for a key; ``found`` is the replica's own object."""

    key: bytes
    found: bytes
    expires: float

    @property
    def size(self) -> int:
        """How many bytes are held for the key."""
        return len(self.found)


# Snapshot(*fields), in half of the time.
_snapshot: Callable[[tuple[object, ...]], Snapshot] = functools.partial(tuple.__new__, Snapshot)


class _Ahead(NamedTuple):
    """A page that was asked for: what waits for it; when that was, and what was held then."""

    receive: Callable[[], Page]
    sent: float
    top: int


class Follower:
    """The replica of this process, and the only way to the engine.

    Args:
        engine: where the log lives; nobody else uses this object.
        seal: proves which entries are ours.
        max_staleness: for how long a replica may answer after it last proved itself current, in
            seconds.
        heartbeat: how often the thread asks for changes without being woken, in seconds.
        retention: how long the engine keeps what is dead, in seconds.
        max_entries, cull_frequency: as ``Replica.cull``; ``None`` for no limit.
    """

    def __init__(
        self,
        engine: Engine,
        seal: Seal,
        *,
        max_staleness: float,
        heartbeat: float,
        retention: float,
        max_entries: int | None,
        cull_frequency: int,
    ) -> None:
        self.engine = engine
        self.max_staleness = max_staleness
        self._seal = seal
        self._heartbeat = heartbeat
        self._sync_on_read = engine.sync_on_read
        # A replica that proved itself within this time is being followed; nobody needs to look.
        self._followed_within = min(heartbeat, max_staleness)
        self._retention = retention
        self._max_entries = max_entries
        self._cull_frequency = cull_frequency
        self._replica = Replica()
        self._callbacks: dict[Callable[[], None], None] = {}
        self._counters: collections.Counter[str] = collections.Counter()
        # Raised whenever a reason appears to run the callbacks before anything is vouched for.
        self._doubts = 0
        self._expire_at = self._purge_at = 0.0
        # The engine's clock less ours, and the number of its last write, when last heard of.
        self._offset: float | None = None
        self._head: int | None = None
        # When the replica was last built anew, by the engine's clock.
        self._resynced_at: float | None = None
        # Which thread of a process was the first to see that it is another one.
        self._entering: dict[int, int] = {}
        self._begin_process()
        self._pid = os.getpid()
        _followers.add(self)

    def _begin_process(self) -> None:
        # Whoever writes to the replica holds this one; readers hold none.
        self._lock = threading.Lock()
        # One pull at a time.
        self._pulling = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._callback_thread: threading.Thread | None = None
        # Own writes while a pull is under way, whose pages may be older; None otherwise.
        self._carry: list[tuple[str, Entry]] | None = None
        self._retry_at = 0.0
        self._retry_after = _RETRY_FIRST
        # The engine answers somebody again, so the thread need not wait any longer to try.
        self._answered = threading.Event()

    def after_fork(self) -> None:
        """In the child: keep the entries, trust nothing, touch nothing of the parent's. No I/O."""
        if self._lock.locked():
            self._replica = Replica()  # a thread that is not here was in the middle of a change
        self._begin_process()
        self._replica.fresh_at = float("-inf")
        self._replica.vouched = False
        # Another object, because gevent copies the thread of the parent into the child: it goes on
        # with what it had in its hands, until it finds out.
        self.engine = copy.copy(self.engine)
        self.engine.forget_connections()
        self._pid = os.getpid()  # the last, since others wait for it

    def _enter(self) -> None:
        """Do the same where the process was forked without Python being told, as by uWSGI.

        Of several threads that come here first, one does it and the others wait.
        """
        pid, thread = os.getpid(), threading.get_ident()
        if self._entering.setdefault(pid, thread) == thread:
            self.after_fork()
        while self._pid != pid:
            time.sleep(0.001)

    # Reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> Held | None:
        """Return what is held for a key if the replica can vouch for it, else ``None``."""
        looked = self.look(key)
        return None if looked is None else looked[0]

    def look(self, key: bytes) -> tuple[Held, Snapshot] | None:
        """Return the same with what ``still_holds`` asks for."""
        replica = self.current()
        # Freshness first, then the value, and the clock last: a process may be stopped anywhere in
        # between, and another of its threads may pull before this one goes on.
        fresh_at = replica.fresh_at
        found = replica.find(key)
        if found is None:
            return None
        held = opened(found)
        _, _, expires, taken, absent, _ = held
        now = clock()
        if absent or expires <= now + (self._offset or 0.0):
            return None
        if now - fresh_at > self.max_staleness and now - taken > self.max_staleness:
            return None
        return held, _snapshot((key, found, expires))

    def still_holds(self, snapshot: Snapshot, until: float) -> bool:
        """Whether ``look`` would return this very snapshot, and the engine's clock is not at
        ``until``. False as well where ``look`` has to see to something first, which may take time:
        after a fork, when nobody follows, or when the replica cannot vouch for itself any more.

        Nothing is unpacked or copied: whatever replaces an entry is another object.
        """
        if self._pid != os.getpid():
            return False
        replica = self.current() if self._sync_on_read else self._replica
        fresh_at = replica.fresh_at  # in the same order
        key, found, expires = snapshot
        if replica.find(key) is not found:
            return False
        now = clock()
        if now - fresh_at > self._followed_within and self._must_look(now, fresh_at):
            return False
        now += self._offset or 0.0
        return now < expires and now < until

    def _must_look(self, now: float, fresh_at: float) -> bool:
        """Whether ``look`` has to pull, or to have somebody follow."""
        if now - fresh_at > self.max_staleness:
            return True
        return not self._sync_on_read and (self._thread is None or not self._thread.is_alive())

    def current(self) -> Replica:
        """Return the replica, brought up to date as far as the caller may wait for it."""
        if self._pid != os.getpid():
            self._enter()
        replica = self._replica
        if self._sync_on_read:
            return self._sync(replica)
        now = clock()
        if self._thread is not None and now - replica.fresh_at <= self._followed_within:
            return replica
        oldest = now - self.max_staleness
        if replica.fresh_at < oldest and not _on_event_loop():
            # Whoever joins waits for the pull that is under way; whoever fell behind does not: the
            # database answers sooner.
            self._pull_once(oldest, wait=self.engine.deadline if replica.epoch is None else 0)
        if self._thread is None or not self._thread.is_alive():
            self._start()
        return self._replica

    def _sync(self, replica: Replica) -> Replica:
        """Ask an engine that answers in microseconds whether there is anything new."""
        sent = clock()
        stamp = self.engine.stamp()
        if stamp is not None and stamp == replica.stamp and replica.vouched:
            replica.fresh_at = sent
            return replica
        if sent < self._retry_at:
            return replica
        if self._retry_at:
            # It failed the last time: one thread tries, the others do not wait with it.
            self._retry_at = sent + self.engine.deadline
        try:
            top = replica.top
            page = self.engine.changes(replica.applied, 0)
        except CacheError as error:
            self._failed(error)
            return replica
        self._retry_at = 0.0
        if page.more or not replica.vouched or self._must_restart(replica, page, top):
            self._pull_once(sent, wait=self.engine.deadline)
            return self._replica
        self._hear(page, sent)
        replica.stamp = stamp
        replica.fresh_at = sent
        return replica

    def _pull_once(self, since: float, wait: float) -> None:
        """Pull, unless the replica is as of ``since`` already or the last try failed just now."""
        if clock() < self._retry_at or threading.current_thread() is self._callback_thread:
            return  # the pull that waits for a callback must not be waited for by it
        if not self._pulling.acquire(timeout=wait):
            return
        try:
            if self._replica.fresh_at < since and clock() >= self._retry_at:
                self._pull()
        except CacheError as error:
            self._failed(error)
        finally:
            self._pulling.release()

    def _failed(self, error: Exception) -> None:
        """Put the next try off, a little longer each time, and not in step with other nodes."""
        self._replica.vouched = False
        self._counters["failures"] += 1
        if self._retry_after == _RETRY_FIRST:
            extra = {"event": "cache.unreachable", "engine": self.engine.name}
            logger.warning("cache.unreachable: %s", error, extra=extra)
        self._retry_at = clock() + self._retry_after * random.uniform(0.5, 1.0)  # noqa: S311
        self._retry_after = min(self._retry_after * 2, _RETRY_LAST)

    # Pulling ---------------------------------------------------------------------------------

    def pull(self) -> None:
        """Bring the replica to the head of the log and let it vouch for itself.

        Raises:
            CacheError: the engine did not answer, or a callback failed; the replica grows stale.
        """
        with self._pulling:
            self._pull()

    def _pull(self) -> None:
        try:
            replica, sent = self._catch_up()
        finally:
            with self._lock:
                self._carry = None
        self._vouch(replica, sent)
        failed = self._retry_after != _RETRY_FIRST
        self._retry_at, self._retry_after = 0.0, _RETRY_FIRST
        if failed:
            self._answered.set()
            self._counters["reconnects"] += 1
            extra = {"event": "cache.reconnected", "engine": self.engine.name}
            logger.info("cache.reconnected: %s", self.engine.name, extra=extra)

    def _catch_up(self) -> tuple[Replica, float]:
        """Apply pages up to the head, to a new replica if the old one's history is over.

        Returns the replica and when the request for its last page was sent.
        """
        with self._lock:
            old = replica = self._replica
            self._carry = []
        pid, restarts = self._pid, 0
        ahead: _Ahead | None = None
        while True:
            if ahead is None:
                sent, top = clock(), replica.top
                page = self.engine.changes(replica.applied, self.engine.page_size)
            else:
                receive, sent, top = ahead
                page = receive()
            if pid != os.getpid():
                raise EngineUnavailable("the process was forked meanwhile")
            ahead = self._ask_ahead(replica, page)
            with self._lock:
                self._hear(page, sent)
                if self._replica is not old:  # a write was answered out of another history
                    old = replica = self._replica
                elif self._must_restart(replica, page, top):
                    replica = Replica(page.epoch, page.head)
                else:
                    self._apply_page(replica, page)
                    if page.more:
                        continue
                    self._take_over(replica)
                    if restarts:
                        self._resynced_at = self.now()
                    return replica, sent
            ahead = None
            if restarts == _RESTARTS:
                raise EngineUnavailable("the log was cut again and again while it was read")
            restarts += 1
            self._counters["resyncs"] += 1
            extra = {"event": "cache.resync", "epoch": page.epoch, "head": page.head}
            logger.info("cache.resync: epoch %s, head %d", page.epoch, page.head, extra=extra)

    def _ask_ahead(self, replica: Replica, page: Page) -> _Ahead | None:
        """Have the next page come while this one is applied, if there is one and the engine can."""
        sent, top = clock(), replica.top
        if not page.more:
            return None
        receive = self.engine.ask_ahead(page.changes[-1].seq, self.engine.page_size)
        return None if receive is None else _Ahead(receive, sent, top)

    def _hear(self, page: Page, sent: float) -> None:
        """Note what a page says of the engine. One that took too long says little of its clock."""
        self._head = page.head
        if self._offset is None or clock() - sent <= self.engine.deadline:
            self._offset = page.now - sent

    @staticmethod
    def _must_restart(replica: Replica, page: Page, top: int) -> bool:
        """Whether what this replica holds cannot become what the log says by going on.

        ``top`` is the greatest number that it held when the page was asked for: an own write that
        the log no longer has shows as well as an applied one that its end is lost.
        """
        return replica.epoch is not None and (
            page.epoch != replica.epoch
            or page.head < max(replica.applied, top)
            or page.floor > max(replica.applied, replica.began)
        )

    def _apply_page(self, replica: Replica, page: Page) -> None:
        if replica.epoch is None:
            replica.epoch, replica.began = page.epoch, page.head
        self._apply(replica, page.changes)
        # What was written again since stands further up, so the last numbers below the head may
        # be missing.
        replica.applied = page.changes[-1].seq if page.more else page.head
        self._tidy_replica(replica)

    def _apply(self, replica: Replica, entries: Sequence[Entry]) -> None:
        """Hold entries; one whose seal is broken as an absence."""
        self._counters["applied"] += len(entries)
        # A node that joins does this a million times.
        check, put = self._seal.check, replica.put
        for key, seq, revision, expires, value in entries:
            flags = check(key, revision, expires, value)
            if flags is not None and value is not None:
                put(key, seq, revision, expires, value[PAYLOAD:], marker=flags & MARKER != 0)
                continue
            if value is not None:
                self._counters["refused"] += 1
            if type(key) is not bytes:
                continue  # no writer of ours has such a key, so nobody asks for it
            # Also for a broken seal: passing it over would leave the older version alive.
            put(key, seq, 0, clock() + (self._offset or 0.0), None)

    def _tidy_replica(self, replica: Replica) -> None:
        now = clock()
        while self._max_entries is not None and replica.live > self._max_entries:
            replica.cull(self._max_entries, self._cull_frequency)
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_EVERY
            replica.expire(now + (self._offset or 0.0), _EXPIRE_LIMIT)

    def _take_over(self, replica: Replica) -> None:
        """Answer from this replica from now on, with our own writes that its pages do not have."""
        newer = [
            entry
            for epoch, entry in self._carry or ()
            if epoch == replica.epoch and entry.seq > replica.applied
        ]
        self._apply(replica, newer)
        self._replica = replica

    def _vouch(self, replica: Replica, sent: float) -> None:
        """Let a replica that has caught up answer, after the callbacks if it could not before."""
        while True:
            doubts = self._doubts
            stale = clock() - replica.fresh_at > self.max_staleness
            if not replica.vouched or (stale and not self._sync_on_read):
                self._run_callbacks()
            with self._lock:
                if doubts == self._doubts:
                    replica.vouched = True
                    replica.fresh_at = sent
                    return

    def _run_callbacks(self) -> None:
        """Run the callbacks in a thread, where they cannot meet the caller's transactions."""
        if not self._callbacks:
            return
        if self._callback_thread is not None and self._callback_thread.is_alive():
            raise EngineUnavailable("an earlier before_fresh callback has not returned yet")
        failures: list[BaseException] = []

        def run() -> None:
            try:
                for callback in list(self._callbacks):
                    callback()
            except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may be fresh
                failures.append(error)
            finally:
                connections.close_all()

        thread = threading.Thread(target=run, name="accesspass-before-fresh", daemon=True)
        self._callback_thread = thread
        try:
            thread.start()
        except RuntimeError as error:
            self._callback_thread = None
            raise EngineUnavailable(f"a before_fresh callback has no thread: {error}") from error
        thread.join(self.engine.deadline)
        if thread.is_alive():
            raise EngineUnavailable("a before_fresh callback did not return in time")
        self._callback_thread = None
        if failures:
            raise EngineUnavailable(f"a before_fresh callback failed: {failures[0]}")

    # Writing ---------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        """Write to the engine, then hold the result here at once."""
        if self._pid != os.getpid():
            self._enter()
        try:
            written = self.engine.write(changes, condition)
        except CacheError as error:
            uncertain = isinstance(error, EngineUncertain)
            self._count("writes_uncertain" if uncertain else "writes_unavailable")
            raise
        self._count("writes_done" if written.done else "writes_refused")
        if self._retry_at:
            self._retry_at = 0.0
            self._answered.set()
        if written.done:
            first = written.seq - len(changes) + 1
            entries = [
                Entry(change.key, seq, change.revision, change.expires, change.value)
                for seq, change in enumerate(changes, first)
            ]
        else:
            entries = [] if written.current is None else [written.current]
        self._apply_own(written.epoch, entries)
        self._purge_if_due()
        return written

    def _count(self, name: str) -> None:
        with self._lock:  # any thread may write
            self._counters[name] += 1

    def _apply_own(self, epoch: str, entries: Sequence[Entry]) -> None:
        """Hold what the engine has answered to a write. It never moves ``applied``."""
        with self._lock:
            replica = self._replica
            if self._carry is not None:
                self._carry += [(epoch, entry) for entry in entries]
            if replica.epoch is None:
                return  # the next pull, or the one under way, brings it
            if replica.epoch != epoch:
                self._replica = Replica()  # what was held is of another history
                return
            # What is not above ``applied`` was seen already, or something newer was.
            self._apply(replica, [entry for entry in entries if entry.seq > replica.applied])
            self._tidy_replica(replica)

    def seal_change(
        self, key: bytes, payload: bytes, expires: float | None, revision: int, *, marker: bool
    ) -> Change:
        """Return the change that stores a payload."""
        sealed = self._seal.close(key, revision, expires, payload, marker=marker)
        return Change(key, sealed, expires, revision)

    def is_sealed(self, entry: Entry) -> bool:
        """Whether one of our keys sealed an entry: nobody can read any other."""
        return self._seal.open(entry) is not None

    def open(self, entry: Entry) -> Opened | None:
        """Return what an entry holds just now, ``None`` if that is nothing."""
        if entry.expires is not None and entry.expires <= self.now():
            return None
        return self._seal.open(entry)

    def read_engine(self, key: bytes) -> tuple[Entry | None, Opened | None]:
        """Read the latest version of a key at the engine, and open it."""
        if self._pid != os.getpid():
            self._enter()
        entry = self.engine.read(key)
        return entry, None if entry is None else self.open(entry)

    def read_replica(self, key: bytes) -> tuple[Entry | None, Opened | None]:
        """The same from this process's memory; nothing if it cannot vouch for it."""
        held = self.get(key)
        if held is None:
            return None, None
        expires = None if held.expires == float("inf") else held.expires
        entry = Entry(key, held.seq, held.revision, expires, None)
        return entry, Opened(held.payload, False)

    def clear(self) -> None:
        """Throw everything away, on every node."""
        if self._pid != os.getpid():
            self._enter()
        self.engine.clear()
        with self._lock:
            self._replica = Replica()
        self._pull_once(clock(), wait=self.engine.deadline)

    def _purge_if_due(self) -> None:
        """Let writers keep the log short: each now and then, more often while it is long."""
        if clock() < self._purge_at or self._offset is None:
            return
        self._purge_at = clock() + _PURGE_EVERY
        try:
            if self.engine.purge(self.now() - self._retention, _PURGE_LIMIT) == _PURGE_LIMIT:
                self._purge_at = clock() + _PURGE_AGAIN
        except CacheError as error:
            extra = {"event": "cache.purge_failed", "engine": self.engine.name}
            logger.warning("cache.purge_failed: %s", error, extra=extra)

    # What publications need ------------------------------------------------------------------

    def mark(self) -> Mark:
        """Say where the log stands for this process; I/O only if nothing was pulled yet.

        Raises:
            EngineUnavailable: nothing was pulled yet, and nothing can be.
        """
        if self._pid != os.getpid():
            self._enter()
        while True:
            replica = self._replica
            if replica.epoch is not None:
                return Mark(replica.epoch, replica.applied, clock(), replica.generation)
            self._meet()

    def _meet(self) -> None:
        """Learn the epoch and the engine's clock without pulling anything."""
        sent = clock()
        page = self.engine.changes(0, 0)
        with self._lock:
            self._hear(page, sent)
            if self._replica.epoch is None:
                self._replica.epoch, self._replica.began = page.epoch, page.head

    def fill(
        self, key: bytes, payload: bytes, revision: int, timeout: float, mark: Mark, *, marker: bool
    ) -> bool:
        """Hold in this process alone what was read elsewhere after ``mark`` was taken."""
        with self._lock:
            replica = self._replica
            if (
                mark.generation != replica.generation
                or mark.epoch != replica.epoch
                or clock() - mark.taken > self.max_staleness
            ):
                return False
            expires = mark.taken + (self._offset or 0.0) + timeout
            filled = replica.fill(
                key, mark.seq, revision, expires, payload, marker=marker, taken=mark.taken
            )
            self._tidy_replica(replica)
            return filled

    def forget(self, key: bytes) -> None:
        """Forget what this process holds for a key, until something newer is said of it."""
        with self._lock:
            held = self._replica.get(key)
            if held is not None and not held.absent:
                self._replica.put(key, held.seq, 0, self.now(), None)

    def cull(self, limit: int, frequency: int) -> None:
        """Make room as ``Replica.cull`` does."""
        if self._replica.live < limit:
            return
        # Own writes that the log has not shown yet would come back with it after they were culled.
        self._pull_once(clock(), wait=self.engine.deadline)
        with self._lock:
            self._replica.cull(limit, frequency)

    def now(self) -> float:
        """The engine's clock, in seconds since 1970; the system's before the first page."""
        return time.time() if self._offset is None else clock() + self._offset

    def expiry(self, timeout: float | None) -> float | None:
        """The engine's clock in ``timeout`` seconds, asking the engine once if need be."""
        if timeout is None:
            return None
        if self._offset is None:
            self.mark()
        if timeout <= 0:
            # Dead at once, also for a node whose reckoning of that clock is behind ours.
            timeout = min(timeout, -self.engine.deadline)
        return self.now() + timeout

    def before_fresh(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` each time before a stale replica vouches for itself again."""
        if callback not in self._callbacks:
            self._callbacks[callback] = None
            # What it would have said is missing here, so it is asked before the next answer.
            with self._lock:
                self._doubts += 1
                self._replica.vouched = False
                self._replica.fresh_at = float("-inf")

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to know, without asking the engine."""
        replica = self._replica
        staleness = clock() - replica.fresh_at
        return {
            "engine": self.engine.name,
            "role": self.engine.role,
            "pid": self._pid,
            "epoch": replica.epoch,
            "applied": replica.applied,
            "head": self._head,
            "staleness": None if staleness == float("inf") else staleness,
            "fresh": staleness <= self.max_staleness,
            "entries": replica.total,
            "bytes": replica.held_bytes,
            "last_resync": self._resynced_at,
            "counters": {name: self._counters[name] for name in _COUNTERS},
        }

    # The thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._starting:
            if self._stopping or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(target=self._follow, name="accesspass-follower", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads; the reads pull
                thread.start()
                self._thread = thread

    def _follow(self) -> None:
        pid = self._pid

        def is_over() -> bool:
            # Under gevent a fork copies this thread, and the child starts one of its own.
            return self._stopping or pid != os.getpid()

        breath = _BREATH
        while not is_over():
            failure: Exception | None = None
            try:
                began = time.monotonic()
                self.engine.drop_hints()
                self.pull()
                pulled = time.monotonic()
                self.engine.wait(self._heartbeat)
                now = time.monotonic()
                if now < began + breath:
                    time.sleep(began + breath - now)
                breath = min(2 * breath, _LONGEST_BREATH) if now < pulled + _BREATH else _BREATH
            except Exception as error:  # noqa: BLE001 - the thread must not end with it
                failure = error
            if failure is not None and not is_over():
                if not isinstance(failure, CacheError):
                    extra = {"event": "cache.follower_error", "engine": self.engine.name}
                    logger.error("cache.follower_error", exc_info=failure, extra=extra)
                self._failed(failure)
                self._answered.clear()
                self._answered.wait(max(0.0, self._retry_at - clock()))

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called: it follows nothing any more, in this process."""
        return self._stopping

    def stop(self) -> None:
        """End the thread and give back what the engine holds open."""
        self._stopping = True
        self._answered.set()
        self.engine.close()  # wakes the thread
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(self.engine.deadline)
            self.engine.close()


_COUNTERS = (
    "applied",
    "refused",
    "resyncs",
    "failures",
    "reconnects",
    "writes_done",
    "writes_refused",
    "writes_unavailable",
    "writes_uncertain",
)
_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _after_fork_in_child() -> None:
    for follower in list(_followers):
        follower.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
