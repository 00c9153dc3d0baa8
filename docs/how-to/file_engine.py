"""An engine that keeps its log in one file: small enough to read, and right."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import msgpack

from accesspass.cache.engines.base import Change, Condition, Engine, Entry, Page, Written, is_live
from accesspass.cache.exceptions import EngineUnavailable


class _Log:
    def __init__(self, epoch: str, seq: int, floor: int, entries: Sequence[Sequence]) -> None:
        self.epoch, self.seq, self.floor = epoch, seq, floor
        # The latest version of each key, in the order of their numbers.
        self.entries = {entry[0]: Entry(*entry) for entry in entries}


class FileEngine(Engine):
    name: ClassVar[str] = "file"
    sync_on_read: ClassVar[bool] = True  # a question is cheap, so no thread has to follow

    def __init__(self, location: str, *, deadline: float = 2.0) -> None:
        super().__init__(deadline=deadline)
        self.role = "primary"  # a file has no standby
        self._path = location

    def changes(self, after: int, limit: int) -> Page:
        with self._locked() as log:
            newer = [entry for entry in log.entries.values() if entry.seq > after]
        page = newer[:limit]
        return Page(log.epoch, log.seq, log.floor, time.time(), page, len(newer) > limit)

    def read(self, key: bytes) -> Entry | None:
        with self._locked() as log:
            return log.entries.get(key)

    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        with self._locked() as log:
            now = time.time()
            if condition is not None:
                (change,) = changes
                current = log.entries.get(change.key)
                if not condition.allows(change.revision, current, log.epoch, now):
                    return Written(log.epoch, log.seq, False, is_live(current, now), current)
            held = 0
            for key, value, expires, revision in changes:
                held += is_live(log.entries.pop(key, None), now)
                log.seq += 1
                # A deletion is a version too, and says when it happened.
                expires = now if value is None else expires
                log.entries[key] = Entry(key, log.seq, revision, expires, value)
            self._save(log)
            return Written(log.epoch, log.seq, True, held, None)

    def clear(self) -> None:
        with self._locked() as log:
            # Numbers go on, so that none is ever given twice.
            self._save(_Log(secrets.token_hex(8), log.seq, log.seq, ()))

    def purge(self, before: float, limit: int) -> int:
        with self._locked() as log:
            dead = [
                entry
                for entry in log.entries.values()
                if entry.expires is not None and entry.expires <= before
            ][:limit]
            for entry in dead:
                del log.entries[entry.key]
                log.floor = max(log.floor, entry.seq)
            if dead:
                self._save(log)
            return len(dead)

    @contextmanager
    def _locked(self) -> Iterator[_Log]:
        """Give the log as it is, while no other thread or process can touch it."""
        end = time.monotonic() + self.deadline
        try:
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EngineUnavailable(f"{self._path}: {error.strerror}") from None
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise EngineUnavailable(f"{self._path} is locked") from None
                    time.sleep(0.001)
            yield self._load()
        finally:
            os.close(lock)  # which unlocks it

    def _load(self) -> _Log:
        try:
            with open(self._path, "rb") as file:
                return _Log(*msgpack.unpackb(file.read()))
        except FileNotFoundError:
            log = _Log(secrets.token_hex(8), 0, 0, ())
            self._save(log)  # the epoch has to be the same for the next one who asks
            return log
        except (OSError, ValueError, TypeError) as error:
            raise EngineUnavailable(f"{self._path} cannot be read: {error}") from None

    def _save(self, log: _Log) -> None:
        new = f"{self._path}.new"
        try:
            with open(new, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                entries = list(log.entries.values())
                file.write(msgpack.packb([log.epoch, log.seq, log.floor, entries]))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._path)  # all of it, or nothing
        except OSError as error:
            raise EngineUnavailable(f"{self._path}: {error.strerror}") from None
