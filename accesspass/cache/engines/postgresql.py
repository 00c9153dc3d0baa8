"""The engine for many machines that share a PostgreSQL database (14 or newer).

**Writing.** A write is one call of one function in the database, on a connection of our own in
autocommit mode, so it is one round trip and one transaction. The function takes a lock first,
which puts writers into one order until they have committed, and each statement after that sees all
that was committed before; then it checks the condition, numbers and stores the changes, and
notifies. The last number is the greatest one in the table, and the lock an advisory one: a row that
holds the number, or is locked, doubles the time between one writer and the next, and leaves a dead
version behind at each write, which pile up while somebody else's long transaction is open.

**Following.** A pull is one statement too, so one snapshot; while one page of many is applied, the
server sends the next. Notifications have no payload, they only say "look". Behind a pooler nobody
listens: there LISTEN succeeds, what it asks for goes to a connection that is lent to others in the
next moment, and the heartbeat is what is left.

**Which server.** What identifies a server is the system identifier of its cluster, its timeline,
which a promotion changes, and the file of the table, which restoring a dump and TRUNCATE change.
The meta table remembers where the log was written. If that is another place, the end of the log may
be lost, so whoever notices first, reader or writer, empties the log and begins an epoch, under the
same lock, before it does anything else. A server in recovery (a standby) answers nothing here.

Emptying moves a mark, ``start``, to the last number: what is not above it does not exist. It takes
no longer with a million entries, and purging removes them little by little.

**Deadlines.** The connections are libpq's, asynchronous, with every wait bounded. A server that is
frozen, a network that swallows everything, a commit that waits for a missing standby: none of them
ever ends by itself, and no timeout of the server's helps, so at the deadline the socket is shut
down.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import ipaddress
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, overload

import psycopg
import psycopg.abc
from django.core.exceptions import ImproperlyConfigured
from django.views.decorators.debug import sensitive_variables
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.conninfo import make_conninfo

from accesspass.cache.engines.base import Change, Condition, Engine, Entry, Page, Written
from accesspass.cache.exceptions import EngineUnavailable, EngineUncertain

__all__ = ["DEFAULT_TABLE", "PostgreSQLEngine", "schema"]

DEFAULT_TABLE = "accesspass_cache"

# Changes with whatever changes below, so that two releases can run side by side.
_VERSION = 1
# How many connections a process uses at most beside the one that follows. Writers queue at the
# lock anyway, so a second one only fills the gaps that the network leaves.
_WRITERS = 2
_IDLE = 60.0
# How often a page is asked for again if the server it came from changed meanwhile.
_CLAIMS = 3

# How many rows are turned into entries at a time: fewer than the garbage collector waits for, and
# no other thread runs meanwhile.
_SLICE = 500

_NO_SCHEMA = frozenset({"42P01", "42883", "3F000"})  # table, function, schema missing
_NOT_PREPARED = frozenset({"26000", "42P05"})  # a pooler gave us another server connection

# The shortest wait for a lock that leaves time to say so before the client's deadline: the answer
# "nothing happened" is better than none. It also ends what a client left behind in the queue.
_LOCK_TIMEOUT = "1500ms"

# A plan that was made when the table was nearly empty is kept while it grows, so it must use the
# indexes from the beginning; and what that costs on paper must not set off the compiler.
_OPTIONS = "SET enable_seqscan = off SET jit = off"

# Half of the advisory lock's number, the table being the other half; an arbitrary number of ours.
_LOCK = 1633907045

_NOW = "extract(epoch FROM clock_timestamp())::float8"
# The server reads the first part from a file. A session never sees another cluster, so it keeps it.
_SERVER = (
    "coalesce(nullif(current_setting('accesspass.cluster', true), ''), set_config("
    "'accesspass.cluster', (pg_control_system()).system_identifier::text, false)) || '/' || "
    "left(pg_walfile_name(pg_current_wal_lsn()), 8) || '/' || pg_relation_filepath('{entries}')"
)

# Puts all writers into one order; then reads where the log ends, and whether it was written
# elsewhere. Written into each function that writes often, because calling another one costs more.
_LOCKED = """\
    -- In any other one, what is read below is what stood here before the lock was waited for.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE feature_not_supported USING MESSAGE =
            'default_transaction_isolation is not "read committed" (set it for the role)';
    END IF;
    IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    PERFORM pg_advisory_xact_lock({lock}, '{meta}'::regclass::oid::int);
    SELECT m.epoch, m.start, greatest(m.floor, (SELECT max(e.seq) FROM {entries} e)),
           m.server <> {server}
        INTO epoch, start, head, moved FROM {meta} m WHERE m.single;
    IF NOT FOUND THEN
        RAISE undefined_table USING MESSAGE = 'the meta table is empty';
    END IF;
"""

_REPLACING = """\
ON CONFLICT (sha256(key)) DO UPDATE SET
                seq = excluded.seq, revision = excluded.revision, expires = excluded.expires,
                value = excluded.value,
                replaced = e.value IS NOT NULL AND e.seq > start
                    AND (e.expires IS NULL OR e.expires > moment)"""

_SCHEMA = """\
CREATE TABLE IF NOT EXISTS {meta} (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch text NOT NULL DEFAULT gen_random_uuid(),
    server text NOT NULL,   -- where the log was written
    start bigint NOT NULL DEFAULT 0,    -- entries numbered up to here belong to earlier epochs
    floor bigint NOT NULL DEFAULT 0     -- the greatest number that was purged
);
CREATE TABLE IF NOT EXISTS {entries} (
    key bytea NOT NULL,
    seq bigint NOT NULL PRIMARY KEY,
    revision bigint NOT NULL,
    expires float8,     -- seconds since 1970; null: never
    value bytea,        -- null: deleted
    replaced boolean NOT NULL DEFAULT false     -- whether there was a live version before this one
);
-- Of a hash, because an index takes no long keys.
CREATE UNIQUE INDEX IF NOT EXISTS {prefix}_key ON {entries} (sha256(key));
CREATE INDEX IF NOT EXISTS {prefix}_expires ON {entries} (expires) WHERE expires IS NOT NULL;

-- Locks the log. Empties it if asked to, or if it was written elsewhere.
CREATE OR REPLACE FUNCTION {begin}(
    empty boolean, OUT epoch text, OUT head bigint, OUT start bigint
) LANGUAGE plpgsql {options} SET lock_timeout = '{lock_timeout}' AS $body$
DECLARE
    moved boolean;
    fresh text;
BEGIN
{locked}\
    IF empty OR moved THEN
        fresh := gen_random_uuid();
        UPDATE {meta} SET epoch = fresh, server = {server}, start = head, floor = head
            WHERE single;
        epoch := fresh;
        start := head;
        PERFORM pg_notify('{channel}', '');
    END IF;
END $body$;

-- Stores all changes, or none if the condition refuses the only one. A change without a key is
-- one that a later change of the same call replaces; it has a number all the same.
CREATE OR REPLACE FUNCTION {write}(
    keys bytea[], vals bytea[], expiries float8[], revisions bigint[],
    conditional boolean, if_absent boolean, if_seq bigint, if_newer boolean, if_epoch text,
    OUT epoch text, OUT seq bigint, OUT done boolean, OUT held bigint,
    OUT old_seq bigint, OUT old_revision bigint, OUT old_expires float8, OUT old_value bytea
) LANGUAGE plpgsql {options} SET lock_timeout = '{lock_timeout}' AS $body$
DECLARE
    moved boolean;
    start bigint;
    head bigint;
    moment float8;
BEGIN
{locked}\
    IF moved THEN
        SELECT b.* INTO epoch, head, start FROM {begin}(false) b;
    END IF;
    moment := {now};
    seq := head;
    done := true;
    IF conditional THEN
        SELECT e.seq, e.revision, e.expires, e.value
            INTO old_seq, old_revision, old_expires, old_value
            FROM {entries} e WHERE sha256(e.key) = sha256(keys[1]) AND e.seq > start;
        held := (old_value IS NOT NULL AND (old_expires IS NULL OR old_expires > moment))::int;
        done := (if_epoch IS NULL OR if_epoch = epoch)
            AND NOT (if_absent AND held = 1)
            AND (if_seq IS NULL OR if_seq = coalesce(old_seq, 0))
            AND NOT (if_newer AND old_seq IS NOT NULL AND old_revision >= revisions[1]);
    END IF;
    IF done THEN
        IF cardinality(keys) = 1 THEN   -- the same with less ado
            INSERT INTO {entries} AS e (key, seq, revision, expires, value)
            VALUES (keys[1], head + 1, revisions[1],
                    CASE WHEN vals[1] IS NULL THEN moment ELSE expiries[1] END, vals[1])
            {replacing}
            RETURNING e.replaced::int INTO held;
        ELSE
            WITH stored AS (
                INSERT INTO {entries} AS e (key, seq, revision, expires, value)
                SELECT c.key, head + c.place, c.revision,
                       CASE WHEN c.value IS NULL THEN moment ELSE c.expires END, c.value
                FROM unnest(keys, vals, expiries, revisions)
                    WITH ORDINALITY AS c (key, value, expires, revision, place)
                WHERE c.key IS NOT NULL
                {replacing}
                RETURNING e.replaced
            )
            SELECT count(*) FILTER (WHERE stored.replaced) INTO held FROM stored;
        END IF;
        seq := head + cardinality(keys);
        PERFORM pg_notify('{channel}', '');
    END IF;
END $body$;

-- Forgets what died before a time, and what is left of earlier epochs.
CREATE OR REPLACE FUNCTION {purge}(before float8, most bigint, OUT gone bigint)
LANGUAGE plpgsql {options} AS $body$
DECLARE
    log record;
    expired bigint;
    reached bigint;
BEGIN
    SELECT * INTO log FROM {begin}(false);
    DELETE FROM {entries} e WHERE e.seq = ANY (ARRAY(
        SELECT o.seq FROM {entries} o WHERE o.seq <= log.start ORDER BY o.seq LIMIT most));
    GET DIAGNOSTICS gone = ROW_COUNT;
    WITH dead AS (
        DELETE FROM {entries} e WHERE e.seq = ANY (ARRAY(
            SELECT o.seq FROM {entries} o
            WHERE o.expires <= before ORDER BY o.expires LIMIT most - gone))
        RETURNING e.seq
    )
    SELECT count(*), max(dead.seq) INTO expired, reached FROM dead;
    IF expired > 0 THEN
        UPDATE {meta} m SET floor = greatest(m.floor, reached) WHERE m.single;
    END IF;
    gone := gone + expired;
END $body$;

INSERT INTO {meta} (server) VALUES ({server}) ON CONFLICT DO NOTHING;
"""

# After the lock, because CREATE ... IF NOT EXISTS fails when many processes do it at once. The
# number of the advisory lock is made from the name of the table.
_CREATE = """\
DO $create$ BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('accesspass {entries}', {lock}));
    IF to_regproc('{purge}') IS NULL OR to_regclass('{expires}') IS NULL THEN
{schema}
    END IF;
    INSERT INTO {meta} (server) VALUES ({server}) ON CONFLICT DO NOTHING;
END $create$
"""

# A first row for the log itself, told by its negative number, then entries in order.
_READ = """\
SELECT convert_to(m.epoch, 'UTF8') AS key,
       -1 - greatest(m.floor, (SELECT max(seq) FROM {entries})) AS seq,
       m.floor AS revision,
       {now} AS expires,
       CASE WHEN pg_is_in_recovery() THEN 'standby' WHEN m.server = {server} THEN 'same'
            ELSE 'changed' END::bytea AS value
FROM {meta} m
UNION ALL
(SELECT key, seq, revision, expires, value FROM {entries}
 WHERE {which} AND seq > (SELECT start FROM {meta}) ORDER BY seq LIMIT $2)
ORDER BY seq
"""


def _names(table: str) -> dict[str, Any]:
    if not re.fullmatch(r"([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_]{0,39}", table):
        raise ImproperlyConfigured(
            f"TABLE {table!r}: use lower-case letters, digits and underscores, at most 40 "
            "characters, with the name of a schema and a dot before it if need be."
        )
    quoted = ".".join(f'"{part}"' for part in table.split("."))
    names = {
        "entries": quoted,
        "meta": f'{quoted[:-1]}_meta"',
        "begin": f'{quoted[:-1]}_begin_{_VERSION}"',
        "write": f'{quoted[:-1]}_write_{_VERSION}"',
        "purge": f'{quoted[:-1]}_purge_{_VERSION}"',
        "expires": f'{quoted[:-1]}_expires"',
        "prefix": table.rpartition(".")[2],
        "channel": table[:63],
        "server": _SERVER.format(entries=quoted),
        "now": _NOW,
        "lock": _LOCK,
        "options": _OPTIONS,
        "lock_timeout": _LOCK_TIMEOUT,
        "replacing": _REPLACING,
    }
    return {**names, "locked": _LOCKED.format_map(names)}


def schema(table: str = DEFAULT_TABLE) -> str:
    """Return the SQL that makes what the engine needs, for an administrator to run.

    The engine runs it itself at first use if its role may. Otherwise the role that the project
    connects as needs, beside this, SELECT, INSERT, UPDATE and DELETE on both tables.

    Args:
        table: ``OPTIONS["TABLE"]``, with its schema and a dot before it if need be.

    Raises:
        ImproperlyConfigured: the name cannot be used.
    """
    return _SCHEMA.format_map(_names(table))


class _Statement(NamedTuple):
    """A statement that is prepared at its first use on a connection.

    Its name is made from its text: behind a pooler another project may have prepared something.
    """

    name: bytes
    sql: bytes
    types: tuple[int, ...]

    @classmethod
    def of(cls, sql: str, *types: int) -> _Statement:
        text = sql.encode()
        return cls(b"accesspass_" + hashlib.sha256(text).hexdigest()[:16].encode(), text, types)


_BOOL, _BYTEA, _INT8, _TEXT, _FLOAT8 = 16, 17, 20, 25, 701
_INT8S, _BYTEAS, _FLOAT8S = 1016, 1001, 1022
_int8 = struct.Struct(">q").pack
_float8 = struct.Struct(">d").pack
_int4 = struct.Struct(">i").pack
_true, _false = b"\1", b"\0"
# Entry(*row), in two thirds of the time.
_entry: Callable[[Sequence[Any]], Entry] = functools.partial(tuple.__new__, Entry)


def _array(kind: int, items: Sequence[bytes | None]) -> bytes:
    """PostgreSQL's binary format of an array with one dimension."""
    parts = [struct.pack(">iiiii", 1, None in items, kind, len(items), 1)]
    for item in items:
        if item is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts += (_int4(len(item)), item)
    return b"".join(parts)


class _LostError(Exception):
    """The connection is of no use any more.

    ``sent`` tells whether the server may have got the statement.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class _RefusedError(Exception):
    """The server answered with an error, so nothing happened."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PostgreSQLEngine(Engine):
    """A log in two tables of a PostgreSQL database, made at first use.

    Args:
        parameters: returns libpq's connection parameters; called for each new connection, since a
            password may be good for minutes only.
        table: name of the table of entries; everything else is named after it.
        role: whom to become after connecting, as with Django's ``assume_role``.
        deadline: after how long a call gives up, connecting included, in seconds.

    Raises:
        ImproperlyConfigured: the table cannot be named so.
    """

    name: ClassVar[str] = "postgresql"

    def __init__(
        self,
        parameters: Callable[[], Mapping[str, Any]],
        *,
        table: str = DEFAULT_TABLE,
        role: str | None = None,
        deadline: float = 2.0,
    ) -> None:
        super().__init__(deadline=deadline)
        names = _names(table)
        self._parameters = parameters
        self._role = role
        self._table = table
        self._create = _CREATE.format_map({**names, "schema": schema(table)})
        self._channel = names["channel"]
        self._changes = _Statement.of(
            _READ.format_map({**names, "which": "seq > $1"}), _INT8, _INT8
        )
        self._read = _Statement.of(
            _READ.format_map({**names, "which": "sha256(key) = sha256($1)"}), _BYTEA, _INT8
        )
        self._begin = _Statement.of("SELECT epoch FROM {begin}($1)".format_map(names), _BOOL)
        self._purge = _Statement.of("SELECT {purge}($1, $2)".format_map(names), _FLOAT8, _INT8)
        self._write = _Statement.of(
            "SELECT * FROM {write}($1, $2, $3, $4, $5, $6, $7, $8, $9)".format_map(names),
            *(_BYTEAS, _BYTEAS, _FLOAT8S, _INT8S, _BOOL, _BOOL, _INT8, _BOOL, _TEXT),
        )
        self._prepare = True
        # What a fork left behind. Held, because letting go of a connection may close it.
        self._inherited: list[_Connection] = []
        self._begin_process()

    def _begin_process(self) -> None:
        self._slots = threading.BoundedSemaphore(_WRITERS)
        self._pool_lock = threading.Lock()
        self._pool: list[_Connection] = []
        # Whoever holds it may use the connection that follows.
        self._following = threading.Lock()
        self._follower: _Connection | None = None
        self._waker: tuple[socket.socket, socket.socket] | None = None

    # Reading ---------------------------------------------------------------------------------

    def changes(self, after: int, limit: int) -> Page:
        return self._page(after, limit, ahead=False)

    def ask_ahead(self, after: int, limit: int) -> Callable[[], Page] | None:
        if not limit or not self._following.acquire(blocking=False):
            return None
        try:
            connection = self._follower
            parameters = [_int8(after), _int8(limit + 1)]
            if connection is None or not connection.send_ahead(self._changes, parameters):
                return None
        finally:
            self._following.release()
        return functools.partial(self._page, after, limit, ahead=True)

    def _page(self, after: int, limit: int, *, ahead: bool) -> Page:
        parameters = [_int8(after), _int8(limit + 1 if limit else 0)]
        page, rows = self._select(self._changes, parameters, follow=True, ahead=ahead)
        if not limit:
            return page._replace(more=page.head > after)
        return page._replace(changes=rows[:limit], more=len(rows) > limit)

    def read(self, key: bytes) -> Entry | None:
        _, rows = self._select(self._read, [key, _int8(1)], follow=False)
        return rows[0] if rows else None

    def _select(
        self,
        statement: _Statement,
        parameters: Sequence[bytes | None],
        *,
        follow: bool,
        ahead: bool = False,
    ) -> tuple[Page, _Rows]:
        """Read the log of a server that is known to be the one the log was written on."""
        until = time.monotonic() + self.deadline
        for _ in range(_CLAIMS):
            result = self._run(statement, parameters, until, follow=follow, ahead=ahead)
            if not result.ntuples:
                with self._unavailable(), self._writer(until) as connection:
                    self._make_schema(connection, until)
                continue
            loader = Transformer()
            loader.set_pgresult(result)
            first: tuple[Any, ...] = loader.load_rows(0, 1, tuple)[0]
            epoch, head, floor, now, server = first
            self.role = "replica" if server == b"standby" else "primary"
            if server == b"standby":
                # The next connection may find the primary.
                self.close()
                raise EngineUnavailable("PostgreSQL: the server is a standby")
            if server == b"changed":
                self._run(self._begin, [_false], until, follow=False)
                continue
            rows = _Rows(loader, range(1, result.ntuples))
            return Page(epoch.decode(), -1 - head, floor, now, (), False), rows
        raise EngineUnavailable("PostgreSQL: the server changed again and again")

    # Writing ---------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        last = {change.key: place for place, change in enumerate(changes)}
        keys = [
            change.key if last[change.key] == place else None
            for place, change in enumerate(changes)
        ]
        asked = Condition() if condition is None else condition
        parameters = [
            _array(_BYTEA, keys),
            _array(_BYTEA, [change.value for change in changes]),
            _array(
                _FLOAT8,
                [None if change.expires is None else _float8(change.expires) for change in changes],
            ),
            _array(_INT8, [_int8(change.revision) for change in changes]),
            _true if condition is not None else _false,
            _true if asked.absent else _false,
            None if asked.seq is None else _int8(asked.seq),
            _true if asked.newer else _false,
            None if asked.epoch is None else asked.epoch.encode(),
        ]
        until = time.monotonic() + self.deadline
        result = self._run(self._write, parameters, until, follow=False, writes=True)
        epoch, seq, done, held, *old = _only_row(result)
        if done or old[0] is None:
            return Written(epoch, seq, done, held, None)
        return Written(epoch, seq, done, held, Entry(changes[0].key, *old))

    def clear(self) -> None:
        until = time.monotonic() + self.deadline
        self._run(self._begin, [_true], until, follow=False, writes=True)

    def purge(self, before: float, limit: int) -> int:
        until = time.monotonic() + self.deadline
        parameters = [_float8(before), _int8(limit)]
        (gone,) = _only_row(self._run(self._purge, parameters, until, follow=False, writes=True))
        return int(gone)

    def schema(self) -> str:
        return schema(self._table)

    # Waiting ---------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Sleep until a notification comes, ``close`` is called, or ``timeout`` seconds are over.

        Raises:
            EngineUnavailable: the connection that follows is lost.
        """
        until = time.monotonic() + timeout
        self._close_idle()
        with self._following, self._unavailable():
            connection = self._follower
            if connection is None:
                return  # the next pull connects, or says why it cannot
            if self._waker is None:
                self._waker = socket.socketpair()
            try:
                if not connection.listening:
                    # What was committed between the last pull and now has notified nobody.
                    connection.listen(self._channel, time.monotonic() + self.deadline)
                    return
                while not connection.notified:
                    files = [connection.fileno(), self._waker[0].fileno()]
                    ready = _poll(files, select.POLLIN, until)
                    if not ready:
                        return
                    if self._waker[0].fileno() in ready:
                        self._waker[0].recv(64)
                        return
                    connection.receive()
                connection.notified = False
            except _LostError:
                self._drop_follower()
                raise
            except _RefusedError:
                # We are not let. The heartbeat is left.
                connection.listening = True

    def close(self) -> None:
        """End all connections that are not in use just now, and whoever waits."""
        waker = self._waker
        if waker is not None:
            with contextlib.suppress(OSError):
                waker[1].send(b"\0")
        if self._following.acquire(timeout=self.deadline):
            try:
                self._drop_follower()
                if self._waker is not None:
                    for end in self._waker:
                        end.close()
                    self._waker = None
            finally:
                self._following.release()
        with self._pool_lock:
            pool, self._pool = self._pool, []
        for connection in pool:
            connection.close()

    def forget_connections(self) -> None:
        self._inherited += self._pool
        if self._follower is not None:
            self._inherited.append(self._follower)
        self._begin_process()

    # Connections -----------------------------------------------------------------------------

    def _run(
        self,
        statement: _Statement,
        parameters: Sequence[bytes | None],
        until: float,
        *,
        follow: bool,
        ahead: bool = False,
        writes: bool = False,
    ) -> pq.abc.PGresult:
        """Run a statement; after making the tables, if they are not there.

        ``ahead`` takes the answer to what was sent ahead, if that is still to come.

        Raises:
            EngineUnavailable: nothing happened.
            EngineUncertain: it ``writes`` and its answer was lost.
        """
        made = False
        with self._unavailable(writes=writes):
            while True:
                prepared = self._prepare
                with self._follow(until) if follow else self._writer(until) as connection:
                    try:
                        result = connection.run(
                            statement, parameters, until, prepared=prepared, ahead=ahead
                        )
                        if writes and connection.warning:
                            # Of what is run here the server warns only when it gave up waiting
                            # for a standby: the commit is done, but on this server alone.
                            raise _LostError(connection.warning, sent=True)
                        return result
                    except _RefusedError as error:
                        if error.code in _NOT_PREPARED and prepared:
                            self._prepare = False
                        elif error.code in _NO_SCHEMA and not made:
                            made = True
                            self._make_schema(connection, until)
                        else:
                            raise

    @contextlib.contextmanager
    def _unavailable(self, *, writes: bool = False) -> Iterator[None]:
        try:
            yield
        except _LostError as error:
            if writes and error.sent:
                raise EngineUncertain(f"PostgreSQL: no answer to a write: {error}") from None
            raise EngineUnavailable(f"PostgreSQL: {error}") from None
        except _RefusedError as error:
            raise EngineUnavailable(f"PostgreSQL: {error} ({error.code})") from None

    def _make_schema(self, connection: _Connection, until: float) -> None:
        try:
            connection.execute(self._create, until)
        except _RefusedError as error:
            raise _RefusedError(
                error.code,
                f"the tables of {self._table} are not there and could not be made; "
                f"accesspass_status --schema prints them for whoever may: {error}",
            ) from None
        except _LostError as error:
            raise _LostError(str(error), sent=False) from None

    @contextlib.contextmanager
    def _writer(self, until: float) -> Iterator[_Connection]:
        """A connection out of the pool, given back unless it was lost."""
        if not self._slots.acquire(timeout=max(0.0, until - time.monotonic())):
            raise _LostError("all connections are busy", sent=False)
        try:
            connection = self._idle_connection() or self._connect(until)
            try:
                yield connection
            except _RefusedError:
                self._give_back(connection)
                raise
            except BaseException:
                connection.abandon()
                raise
            self._give_back(connection)
        finally:
            self._slots.release()

    def _idle_connection(self) -> _Connection | None:
        self._close_idle()
        while True:
            with self._pool_lock:
                if not self._pool:
                    return None
                connection = self._pool.pop()
            if connection.is_alive():
                return connection
            connection.abandon()

    def _give_back(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._pool_lock:
            self._pool.append(connection)

    def _close_idle(self) -> None:
        since = time.monotonic() - _IDLE
        with self._pool_lock:
            old = [connection for connection in self._pool if connection.idle_since < since]
            self._pool = [connection for connection in self._pool if connection not in old]
        for connection in old:
            connection.close()

    @contextlib.contextmanager
    def _follow(self, until: float) -> Iterator[_Connection]:
        """The connection that follows; one out of the pool if somebody waits on that."""
        if not self._following.acquire(blocking=False):
            with self._writer(until) as connection:
                yield connection
            return
        try:
            if self._follower is not None and not self._follower.is_alive():
                self._drop_follower()
            if self._follower is None:
                self._follower = self._connect(until)
            if self._follower.ahead is None:
                # Whatever was notified up to now is in what is asked for from now on.
                self._follower.notified = False
            try:
                yield self._follower
            except _RefusedError:
                raise
            except BaseException:
                self._drop_follower()
                raise
        finally:
            self._following.release()

    def _drop_follower(self) -> None:
        if self._follower is not None:
            self._follower.abandon()
            self._follower = None

    @sensitive_variables()
    def _connect(self, until: float) -> _Connection:
        places = _places(self._parameters(), until)
        while True:
            place = places.pop(0)
            # A place that does not answer must leave time for the others.
            now = time.monotonic()
            give_up = now + (until - now) / (len(places) + 1)
            try:
                connection = _Connection.open(make_conninfo("", **place), give_up)
                break
            except _LostError:
                if not places:
                    raise
        # Only where the default is another one: a pooler would pass it on to other clients.
        setup = (
            "SELECT set_config('default_transaction_isolation', 'read committed', false) "
            "WHERE current_setting('default_transaction_isolation') <> 'read committed'"
        )
        if self._role is not None:
            role = self._role.replace('"', '""')
            setup += f'; SET ROLE "{role}"'
        try:
            connection.execute(setup, until)
        except (_LostError, _RefusedError) as error:
            connection.abandon()
            raise _LostError(str(error), sent=False) from None
        return connection


class _Connection:
    """A libpq connection, every wait on which has an end.

    libpq is used without psycopg's layer above it: that one has no deadlines, and costs as much
    as the statement itself.
    """

    def __init__(self, connection: pq.abc.PGconn) -> None:
        self._libpq = connection
        self._pid = os.getpid()
        self._prepared: set[bytes] = set()
        # Whether the server has said that it ends the connection; the end itself comes later.
        self._ended = False
        #: What the server warned of during the last statement.
        self.warning = ""
        self.listening = False
        #: Whether a notification came that nobody has looked into yet.
        self.notified = False
        self.idle_since = 0.0
        #: What was sent before anybody wanted its answer: the statement's name, its parameters.
        self.ahead: tuple[bytes, Sequence[bytes | None]] | None = None
        connection.notice_handler = self._notice

    @classmethod
    @sensitive_variables()
    def open(cls, conninfo: str, until: float) -> _Connection:
        """Connect.

        Raises:
            _LostError: it could not, or not in time.
        """
        libpq = pq.PGconn.connect_start(conninfo.encode())
        connection = cls(libpq)
        while True:
            state = libpq.connect_poll() if libpq.status != pq.ConnStatus.BAD else None
            if state == pq.PollingStatus.OK:
                libpq.nonblocking = 1
                return connection
            if state is None or state == pq.PollingStatus.FAILED:
                message = _said(libpq.get_error_message())
                connection.abandon()
                raise _LostError(f"cannot connect: {message}", sent=False)
            event = select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
            if not _poll([libpq.socket], event, until):
                connection.abandon()
                raise _LostError("cannot connect in time", sent=False)

    def fileno(self) -> int:
        return self._libpq.socket

    def run(
        self,
        statement: _Statement,
        parameters: Sequence[bytes | None],
        until: float,
        *,
        prepared: bool,
        ahead: bool = False,
    ) -> pq.abc.PGresult:
        """Run a statement, with parameters and results in binary format."""
        formats = [1] * len(parameters)
        if not prepared:
            return self._exchange(
                until,
                lambda: self._libpq.send_query_params(
                    statement.sql, parameters, statement.types, formats, 1
                ),
            )
        name = statement.name
        if ahead and self.ahead == (name, parameters):
            self.ahead = None
            return self._answer(until)
        if name not in self._prepared:
            try:
                self._exchange(
                    until, lambda: self._libpq.send_prepare(name, statement.sql, statement.types)
                )
            except _LostError as error:
                raise _LostError(str(error), sent=False) from None
            self._prepared.add(name)
        return self._exchange(
            until, lambda: self._libpq.send_query_prepared(name, parameters, formats, 1)
        )

    def send_ahead(self, statement: _Statement, parameters: Sequence[bytes | None]) -> bool:
        """Send a prepared statement that ``run`` will be called for next. No waiting."""
        if statement.name not in self._prepared or self.ahead is not None or self._ended:
            return False
        try:
            formats = [1] * len(parameters)
            self._libpq.send_query_prepared(statement.name, parameters, formats, 1)
            self._libpq.flush()
        except psycopg.Error:
            return False  # the next call finds out what is wrong
        self.ahead = statement.name, parameters
        return True

    def execute(self, sql: str, until: float) -> None:
        """Run statements without parameters, in one transaction."""
        self._exchange(until, lambda: self._libpq.send_query(sql.encode()))

    def listen(self, channel: str, until: float) -> None:
        """Have notifications come, unless the process that answers is not the one we called."""
        called = self._libpq.backend_pid
        self.execute(
            f"DO $listen$ BEGIN IF pg_backend_pid() = {called} THEN "
            f'LISTEN "{channel}"; END IF; END $listen$',
            until,
        )
        self.listening = True

    def is_alive(self) -> bool:
        """Whether the server has not ended it, as far as is known here. No waiting."""
        try:
            while _poll([self._libpq.socket], select.POLLIN, 0.0):
                self.receive()
        except _LostError:
            return False
        return not self._ended

    def receive(self) -> None:
        """Take in what has arrived."""
        try:
            self._libpq.consume_input()
        except psycopg.Error as error:
            raise _LostError(_said(str(error)), sent=True) from None
        while self._libpq.notifies():
            self.notified = True

    def close(self) -> None:
        """End it in good order."""
        if self._pid == os.getpid():
            self._libpq.finish()

    def abandon(self) -> None:
        """End it though the server may not answer."""
        if self._pid != os.getpid():
            return  # the socket is the parent's too
        with (
            contextlib.suppress(psycopg.Error, OSError),
            socket.socket(fileno=os.dup(self._libpq.socket)) as other,
        ):
            other.shutdown(socket.SHUT_RDWR)
        self._libpq.finish()

    def _notice(self, result: pq.abc.PGresult) -> None:
        severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
        if severity == b"WARNING":
            self.warning = _said(result.get_error_message())
        elif severity in (b"FATAL", b"PANIC"):
            self._ended = True

    def _exchange(self, until: float, send: Callable[[], None]) -> pq.abc.PGresult:
        """Send something and return the last result; raises as ``_answer``."""
        if self.ahead is not None:  # nobody wants the answer that comes first any more
            self.ahead = None
            with contextlib.suppress(_RefusedError):
                self._answer(until)
        self.warning = ""
        try:
            send()
        except psycopg.Error as error:
            raise _LostError(_said(str(error)), sent=True) from None
        return self._answer(until)

    def _answer(self, until: float) -> pq.abc.PGresult:
        """Return the last result of what was sent.

        Raises:
            _LostError: no answer, or not in time.
            _RefusedError: the answer is an error.
        """
        libpq = self._libpq
        try:
            while libpq.flush():
                ready = _poll([libpq.socket], select.POLLIN | select.POLLOUT, until)
                if not ready:
                    raise _LostError("no answer in time", sent=True)
                if ready[libpq.socket] & ~select.POLLOUT:
                    libpq.consume_input()
            last = None
            while True:
                while libpq.is_busy():
                    if not _poll([libpq.socket], select.POLLIN, until):
                        raise _LostError("no answer in time", sent=True)
                    libpq.consume_input()
                result = libpq.get_result()
                if result is None:
                    break
                if last is None or last.status != pq.ExecStatus.FATAL_ERROR:
                    last = result
        except psycopg.Error as error:
            raise _LostError(_said(str(error)), sent=True) from None
        while libpq.notifies():
            self.notified = True
        if last is None:
            raise _LostError(_said(libpq.get_error_message()), sent=True)
        if last.status == pq.ExecStatus.FATAL_ERROR:
            code = last.error_field(pq.DiagnosticField.SQLSTATE)
            severity = last.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
            message = _said(last.get_error_message())
            if severity != b"ERROR" or code is None:
                raise _LostError(message, sent=True)
            raise _RefusedError(code.decode(), message)
        return last


class _Rows(Sequence[Entry]):
    """Rows of a result, made into entries when they are asked for.

    As many as a page has, all at once, would be gone through by the garbage collector again and
    again. Slices are without a step.
    """

    def __init__(self, loader: psycopg.abc.Transformer, rows: range) -> None:
        self._loader = loader
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Entry: ...

    @overload
    def __getitem__(self, place: slice) -> _Rows: ...

    def __getitem__(self, place: int | slice) -> Entry | _Rows:
        if isinstance(place, slice):
            return _Rows(self._loader, self._rows[place])
        row = self._rows[place]
        return self._loader.load_rows(row, row + 1, _entry)[0]

    def __iter__(self) -> Iterator[Entry]:
        for begin in self._rows[::_SLICE]:
            yield from self._loader.load_rows(begin, min(begin + _SLICE, self._rows.stop), _entry)


def _only_row(result: pq.abc.PGresult) -> tuple[Any, ...]:
    loader = Transformer()
    loader.set_pgresult(result)
    row: tuple[Any, ...] = loader.load_rows(0, 1, tuple)[0]
    return row


def _said(message: str) -> str:
    """A message of libpq on one line."""
    return " ".join(message.split()) or "the connection is closed"


def _poll(files: Sequence[int], events: int, until: float) -> dict[int, int]:
    """Wait for files until a time of the monotonic clock; what has passed means no waiting."""
    # Made anew each time, because gevent puts another select.poll in place of the usual one.
    poll = select.poll()
    for file in files:
        poll.register(file, events)
    return dict(poll.poll(max(0.0, (until - time.monotonic()) * 1000)))


@sensitive_variables()
def _places(parameters: Mapping[str, Any], until: float) -> list[dict[str, Any]]:
    """Where to connect, in order: one set of parameters for each host and address.

    libpq would go through the hosts by itself, but not past one that does not answer, and it would
    look up their names for as long as the system's resolver likes.
    """
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given = {
        name: value
        for name, value in parameters.items()
        if name in known and value is not None and value != ""
    }
    given.setdefault("fallback_application_name", "accesspass")
    hosts = str(given.pop("host", "")).split(",")
    addresses = str(given.pop("hostaddr", "")).split(",")
    ports = str(given.pop("port", "")).split(",")
    places = []
    for number in range(max(len(hosts), len(addresses))):
        host = hosts[number] if number < len(hosts) else ""
        port = ports[number] if len(ports) > 1 and number < len(ports) else ports[0]
        if number < len(addresses) and addresses[number]:
            found = [addresses[number]]
        elif host and not host.startswith(("/", "@")):
            found = _addresses(host, until)
        else:
            found = [""]
        for address in found:
            own = {"host": host, "hostaddr": address, "port": port}
            places.append({**given, **{name: value for name, value in own.items() if value}})
    if not places:
        raise _LostError(f"nobody knows the address of {', '.join(hosts)}", sent=False)
    return places


def _addresses(host: str, until: float) -> list[str]:
    """The addresses of a host; none if they cannot be found in time."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    found: dict[str, None] = {}

    def look_up() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                found[str(address[0])] = None

    thread = threading.Thread(target=look_up, name="accesspass-resolver", daemon=True)
    thread.start()
    thread.join(max(0.0, until - time.monotonic()))
    return list(found)
