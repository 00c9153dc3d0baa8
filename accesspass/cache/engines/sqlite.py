"""The engine for one machine with many processes: a SQLite file of its own.

Its own file, because a writer on a second connection to the project's file, inside an outer
transaction, would wait for itself. Write-ahead logging lets readers go on while somebody writes;
``synchronous=FULL`` makes an acknowledged write survive a power cut.

Whether anything is new is found out at each read, so there is no thread and no lag. Beside the log
lies a stamp of eight bytes, which every process has mapped into its memory, and which a writer
replaces by random ones after it has committed and before it acknowledges. While the stamp is the
one that was there before the file was last asked, nobody has written since, and the file need not
be asked. Mapped memory is what write-ahead logging needs as well.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import secrets
import sqlite3
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from accesspass.cache.engines.base import (
    Change,
    Condition,
    Engine,
    Entry,
    Page,
    Written,
    is_live,
)
from accesspass.cache.exceptions import CacheError, EngineUnavailable

__all__ = ["SQLiteEngine"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    epoch TEXT NOT NULL, seq INTEGER NOT NULL, floor INTEGER NOT NULL
);
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE CHECK (typeof(key) = 'blob'),
    revision INTEGER NOT NULL CHECK (typeof(revision) = 'integer'),
    expires REAL CHECK (typeof(expires) IN ('real', 'null')),
    value BLOB CHECK (typeof(value) IN ('blob', 'null'))
);
CREATE INDEX entries_expires ON entries (expires) WHERE expires IS NOT NULL;
"""
_META = "SELECT epoch, seq, floor FROM meta"
_ENTRY = "SELECT key, seq, revision, expires, value FROM entries "
_UPSERT = (
    "INSERT INTO entries (key, seq, revision, expires, value) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET seq = excluded.seq, revision = excluded.revision, "
    "expires = excluded.expires, value = excluded.value"
)
# How long to wait between two tries to get the write lock, in seconds.
_TRY_EVERY = (0.0002, 0.002)
# How often it is checked that the paths still name the files that are open, in seconds. Just as
# often the file is asked whatever the stamp: a writer may be killed between commit and stamp.
_CHECK_PATH_EVERY = 0.5
_STAMP_SIZE = 8
# Bound here, so that tests which replace time.time() do not move the order of expiries.
_wall_clock = time.time

# No connection may be open while a process forks. SQLite keeps in memory which locks the process
# holds, so a child would believe that it holds them too: forked in the middle of a write, it would
# wait for ever for a connection that nobody has; and once the parent has gone, another process may
# delete the log that the child still writes to.
_engines: weakref.WeakSet[SQLiteEngine] = weakref.WeakSet()
_opening = threading.Lock()


def _before_fork() -> None:
    _opening.acquire()
    for engine in list(_engines):
        engine.drain()


def _after_fork_in_parent() -> None:
    _opening.release()


def _after_fork_in_child() -> None:
    # Not released: a server that forks without Python has not taken it, or not in this thread.
    global _opening
    _opening = threading.Lock()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


class _Stamp(NamedTuple):
    """The memory that tells of writes, and which file it is. One object, so that no thread ever
    sees the one of an old file with the other of a new one."""

    memory: mmap.mmap
    file: tuple[int, int]


class SQLiteEngine(Engine):
    """A log in a SQLite file, made at first use.

    Args:
        path: absolute path of the file.
        like: a file whose owner and mode it gets (the project's database); without one it is
            readable and writable by its owner alone.
        deadline: how long a call waits for another process's write, in seconds.
    """

    name: ClassVar[str] = "sqlite"
    sync_on_read: ClassVar[bool] = True

    def __init__(self, path: str, *, like: str | None = None, deadline: float = 2.0) -> None:
        super().__init__(deadline=deadline)
        self.role = "primary"  # there is no other
        self.path = path
        self._like = like
        # Idle connections, and all that are open. What is done to them is atomic, so no lock is
        # needed.
        self._pool: list[sqlite3.Connection] = []
        self._live: set[sqlite3.Connection] = set()
        self._inherited: list[sqlite3.Connection] = []
        # The threads of a process queue here, which is cheaper than to wait for the file.
        self._writing = threading.Lock()
        self._file: tuple[int, int] | None = None
        # None where it cannot be written: then reads ask the file, and writes are refused.
        self._stamp: _Stamp | None = None
        # When the paths were last looked at, and when the file was last asked for changes.
        self._checked = self._asked = 0.0
        _engines.add(self)

    # Reading ---------------------------------------------------------------------------------

    def changes(self, after: int, limit: int) -> Page:
        self._asked = time.monotonic()
        with self._connection() as connection:
            epoch, head, floor = _meta(connection)
            # The usual answer, and the only one on the path of an authorised request.
            if head <= after or limit == 0:
                return Page(epoch, head, floor, _wall_clock(), (), head > after)
            connection.execute("BEGIN")
            epoch, head, floor = _meta(connection)
            rows = connection.execute(
                _ENTRY + "WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit + 1)
            ).fetchall()
            connection.execute("COMMIT")
        entries = [Entry(*row) for row in rows[:limit]]
        return Page(epoch, head, floor, _wall_clock(), entries, len(rows) > limit)

    def stamp(self) -> bytes | None:
        stamp, oldest = self._stamp, time.monotonic() - _CHECK_PATH_EVERY
        # Somebody else's read or write looks at the paths too, and asks for no changes.
        if stamp is None or self._checked < oldest or self._asked < oldest:
            return None
        return stamp.memory[:]

    def read(self, key: bytes) -> Entry | None:
        with self._connection() as connection:
            return _read(connection, key)

    # Writing ---------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        with self._transaction() as connection:
            epoch, seq, _ = _meta(connection)
            now = _wall_clock()
            current = [_read(connection, change.key) for change in changes]
            held = sum([is_live(entry, now) for entry in current])
            if condition is not None:
                (change,) = changes
                if not condition.allows(change.revision, current[0], epoch, now):
                    return Written(epoch, seq, False, held, current[0])
            rows = []
            for seq, change in enumerate(changes, seq + 1):  # noqa: B020 - goes on
                expires = now if change.value is None else change.expires
                rows.append((change.key, seq, change.revision, expires, change.value))
            connection.executemany(_UPSERT, rows)
            connection.execute("UPDATE meta SET seq = ?", (seq,))
        return Written(epoch, seq, True, held, None)

    def clear(self) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM entries")
            connection.execute("UPDATE meta SET epoch = ?, floor = seq", (secrets.token_hex(8),))

    def purge(self, before: float, limit: int) -> int:
        with self._transaction() as connection:
            dead = connection.execute(
                "SELECT seq FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?",
                (before, limit),
            ).fetchall()
            if dead:
                connection.executemany("DELETE FROM entries WHERE seq = ?", dead)
                connection.execute("UPDATE meta SET floor = max(floor, ?)", max(dead))
        return len(dead)

    # Connections -----------------------------------------------------------------------------

    def _connection(self) -> _Borrowed:
        """An idle connection, given back afterwards unless something failed."""
        try:
            if self._file is None or time.monotonic() - self._checked > _CHECK_PATH_EVERY:
                self._check_path()
            pool = self._pool
            try:
                return _Borrowed(self, pool, pool.pop())
            except IndexError:
                self._check_path()  # the one that is opened has to be the one that is there
                return _Borrowed(self, self._pool, self._open())
        except (sqlite3.Error, OSError) as error:
            self._checked = 0.0  # the file may have gone, so the next one looks again
            raise self.unavailable(error) from error

    def give_back(self, pool: list[sqlite3.Connection], connection: sqlite3.Connection) -> None:
        """Take a connection back, unless the file it belongs to is gone."""
        if pool is self._pool:
            pool.append(connection)
        else:
            self.discard(connection)

    def discard(self, connection: sqlite3.Connection) -> None:
        """Close a connection."""
        connection.close()
        self._live.discard(connection)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that has the write lock from its first statement.

        SQLite's commit is a local call whose outcome is always known: an error means that nothing
        was written, so this engine never raises ``EngineUncertain``.
        """
        # A write to a file that was deleted or replaced meanwhile would be lost in silence.
        self._checked = 0.0
        give_up = time.monotonic() + self.deadline
        if not self._writing.acquire(timeout=self.deadline):
            raise EngineUnavailable(f"{self.path}: other threads of this process are writing")
        try:
            with self._connection() as connection:
                # A write that the others are not told of may not be.
                memory = self._writable_stamp(give_up).memory
                self._take_write_lock(connection, give_up)
                # Random, so that no writer has to know of another one.
                stamp = os.urandom(_STAMP_SIZE)
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                memory[:] = stamp
        finally:
            self._writing.release()

    def _take_write_lock(self, connection: sqlite3.Connection, give_up: float) -> None:
        """Begin to write. SQLite's own waiting sleeps so long between its tries that one busy
        process shuts out the others for seconds."""
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or time.monotonic() > give_up:
                        raise
                time.sleep(random.uniform(*_TRY_EVERY))  # noqa: S311
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self.deadline * 1000)}")

    def _check_path(self) -> None:
        """Let go of files that the paths no longer name, and make them where there are none."""
        # SQLite's own files lie beside what a link names, so that all who have the log share them.
        path = os.path.realpath(self.path)
        try:
            found = _identity(path)
        except FileNotFoundError:
            self._create(path)
            found = _identity(path)
        if found != self._file:
            self._close_connections()
            self._file = found
        try:
            self._map_stamp(path, wait=0)
        except OSError:  # it may be another user's, or the disk full: what can be read is read
            self._stamp = None
        self._checked = time.monotonic()

    def _writable_stamp(self, give_up: float) -> _Stamp:
        try:
            return self._stamp or self._map_stamp(
                os.path.realpath(self.path), wait=give_up - time.monotonic()
            )
        except OSError as error:
            raise self.unavailable(error) from error

    def _map_stamp(self, log: str, wait: float) -> _Stamp:
        """Map the stamp beside the log, which is made if need be; wait so long for who does it."""
        path, stamp = f"{log}-stamp", self._stamp
        with contextlib.suppress(FileNotFoundError):
            if stamp is not None and _identity(path) == stamp.file:
                return stamp
            if os.path.getsize(path) == _STAMP_SIZE:
                return self._map(path)
        with _locked(os.path.dirname(path), wait):
            if not os.path.exists(path) or os.path.getsize(path) != _STAMP_SIZE:
                # Whose the log is has to be able to write it, whoever comes first.
                content = os.urandom(_STAMP_SIZE)
                with self._temporary(path, os.stat(log), content) as temporary:
                    os.rename(temporary, path)
            return self._map(path)

    def _map(self, path: str) -> _Stamp:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            stamp = self._stamp = _Stamp(mmap.mmap(file, _STAMP_SIZE), _identity(file))
        finally:
            os.close(file)
        return stamp

    def _open(self) -> sqlite3.Connection:
        with _opening:
            connection = sqlite3.connect(
                # Without this mode SQLite would make an empty file in place of a deleted one.
                f"file://{quote(os.fsencode(os.path.realpath(self.path)))}?mode=rw",
                uri=True,
                timeout=self.deadline,
                isolation_level=None,
                check_same_thread=False,
            )
            self._live.add(connection)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA_VERSION:
                raise EngineUnavailable(
                    f"{self.path} is not a cache file of this version of accesspass "
                    f"(found {version}, need {_SCHEMA_VERSION}); stop the project and delete it, "
                    "it holds nothing that cannot be made again"
                )
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self.discard(connection)
            raise
        return connection

    def _create(self, path: str) -> None:
        """Make the file complete under another name, then give it its own: nobody sees half."""
        model = None
        if self._like is not None:
            with contextlib.suppress(FileNotFoundError):
                model = os.stat(self._like)
        with self._temporary(path, model) as temporary:
            with (
                _opening,
                contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection,
            ):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
                connection.execute("INSERT INTO meta VALUES (1, ?, 0, 0)", (secrets.token_hex(8),))
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            with _locked(os.path.dirname(path), self.deadline):
                if os.path.exists(path):
                    return  # another process was quicker
                # A log left behind by a file that was deleted would be read as if it were of this
                # one.
                for suffix in ("-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path + suffix)
                os.rename(temporary, path)

    @contextlib.contextmanager
    def _temporary(
        self, path: str, model: os.stat_result | None, content: bytes = b""
    ) -> Iterator[str]:
        """A new file in the same folder, with the owner and mode that the model has.

        It is closed: to close a file that SQLite has open as well would end SQLite's locks.
        """
        handle, temporary = tempfile.mkstemp(prefix=".accesspass-", dir=os.path.dirname(path))
        try:
            try:
                if model is not None:
                    os.fchmod(handle, model.st_mode & 0o666)
                    if os.geteuid() == 0:
                        os.fchown(handle, model.st_uid, model.st_gid)
                if content:
                    # By its descriptor: root must not open what others can put there by that name.
                    os.write(handle, content)
                    os.fsync(handle)
            finally:
                os.close(handle)
            yield temporary
        finally:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary + suffix)

    def unavailable(self, error: BaseException) -> CacheError:
        """Return the error that says that the file could not be used."""
        return EngineUnavailable(f"{self.path}: {error}")

    def forget_connections(self) -> None:
        # There are some only if they were in use for so long that the fork did not wait for them,
        # or if nobody told Python of the fork. SQLite forbids any use of them, closing included; a
        # reference keeps them open.
        _engines.add(self)  # it may be a copy
        self._inherited += self._live
        self._live, self._pool = set(), []
        self._writing = threading.Lock()

    def close(self) -> None:
        self._close_connections()
        self._stamp = None  # unmapped once no thread has it in its hands

    def _close_connections(self) -> None:
        pool, self._pool = self._pool, []
        while pool:
            self.discard(pool.pop())

    def drain(self) -> None:
        """Close all connections, those in use as soon as they are given back."""
        self._close_connections()
        give_up = time.monotonic() + 2 * self.deadline
        while self._live and time.monotonic() < give_up:
            time.sleep(0.0005)


class _Borrowed:
    """A connection out of the pool. A class, because a generator costs as much as the query."""

    __slots__ = ("_connection", "_engine", "_pool")

    def __init__(
        self, engine: SQLiteEngine, pool: list[sqlite3.Connection], connection: sqlite3.Connection
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if kind is None:
            self._engine.give_back(self._pool, self._connection)
            return
        self._engine.discard(self._connection)
        if isinstance(error, sqlite3.Error):
            raise self._engine.unavailable(error) from error


@contextlib.contextmanager
def _locked(folder: str, wait: float) -> Iterator[None]:
    """Whoever gives a file its name in a folder does it alone."""
    give_up = time.monotonic() + wait
    lock = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise TimeoutError(errno.ETIMEDOUT, "somebody locks it", folder) from None
            time.sleep(0.001)
        yield
    finally:
        # Not by closing it alone: a child that was forked meanwhile has it open as well.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _identity(file: str | int) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_dev, found.st_ino


def _meta(connection: sqlite3.Connection) -> tuple[str, int, int]:
    """The epoch, the number of the last write, and the floor."""
    meta: tuple[str, int, int] | None = connection.execute(_META).fetchone()
    if meta is None:
        raise sqlite3.DatabaseError("the record of its state is gone")
    return meta


def _read(connection: sqlite3.Connection, key: bytes) -> Entry | None:
    row: tuple[Any, ...] | None = connection.execute(_ENTRY + "WHERE key = ?", (key,)).fetchone()
    return None if row is None else Entry(*row)
