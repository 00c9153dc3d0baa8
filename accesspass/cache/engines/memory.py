"""The engine for tests and for one process: the same contract, in memory."""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from typing import ClassVar

from accesspass.cache.engines.base import (
    Change,
    Condition,
    Engine,
    Entry,
    Page,
    Written,
    is_live,
)

__all__ = ["MemoryEngine"]


class _Log:
    """What all engines of one name share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset(seq=0)

    def reset(self, seq: int) -> None:
        self.epoch = secrets.token_hex(8)
        self.seq = self.floor = seq
        self.entries: dict[bytes, Entry] = {}
        # Numbers only grow, so the order of insertion is the order of numbers.
        self.order: dict[int, bytes] = {}

    def put(self, change: Change, now: float) -> bool:
        held = self.entries.get(change.key)
        self.seq += 1
        expires = now if change.value is None else change.expires
        self.entries[change.key] = Entry(
            change.key, self.seq, change.revision, expires, change.value
        )
        if held is not None:
            del self.order[held.seq]
        self.order[self.seq] = change.key
        return is_live(held, now)


# A log lives as long as an engine has it.
_logs: weakref.WeakValueDictionary[str, _Log] = weakref.WeakValueDictionary()
# Bound here, so that tests which replace time.time() do not move the order of expiries.
_wall_clock = time.time


class MemoryEngine(Engine):
    """Entries in a dict of this process. After a fork each process goes its own way.

    Args:
        name: engines of one name share one log.
    """

    name: ClassVar[str] = "memory"
    sync_on_read: ClassVar[bool] = True

    def __init__(self, name: str, *, deadline: float = 2.0) -> None:
        super().__init__(deadline=deadline)
        self.role = "primary"  # there is no other
        self._log = _logs.setdefault(name, _Log())

    def changes(self, after: int, limit: int) -> Page:
        log = self._log
        with log.lock:
            # The usual answer, and the only one on the path of an authorised request.
            if log.seq <= after or limit == 0:
                return Page(log.epoch, log.seq, log.floor, _wall_clock(), (), log.seq > after)
            newer = []
            for seq in reversed(log.order):
                if seq <= after:
                    break
                newer.append(seq)
            newer.reverse()
            entries = [log.entries[log.order[seq]] for seq in newer[:limit]]
            return Page(log.epoch, log.seq, log.floor, _wall_clock(), entries, len(newer) > limit)

    def read(self, key: bytes) -> Entry | None:
        with self._log.lock:
            return self._log.entries.get(key)

    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        log = self._log
        with log.lock:
            now = _wall_clock()
            if condition is not None:
                (change,) = changes
                current = log.entries.get(change.key)
                if not condition.allows(change.revision, current, log.epoch, now):
                    return Written(log.epoch, log.seq, False, is_live(current, now), current)
            held = sum([log.put(change, now) for change in changes])
            return Written(log.epoch, log.seq, True, held, None)

    def clear(self) -> None:
        with self._log.lock:
            self._log.reset(self._log.seq)

    def purge(self, before: float, limit: int) -> int:
        log = self._log
        with log.lock:
            dead = [
                entry
                for entry in log.entries.values()
                if entry.expires is not None and entry.expires <= before
            ][:limit]
            for entry in dead:
                del log.entries[entry.key]
                del log.order[entry.seq]
                log.floor = max(log.floor, entry.seq)
            return len(dead)

    def forget_connections(self) -> None:
        log = self._log
        if log.lock.locked():
            log.reset(log.seq)  # a thread that is not here was in the middle of a change
        log.lock = threading.Lock()
