"""The engine for many machines and many writes: a Redis or Valkey server.

One hash holds the latest version of each key, one sorted set their numbers, another one the time
at which each of them is dead, and one small hash the epoch. All four share one ``{tag}``, so that
they stand together on one node of a Cluster. Whatever is asked or written is one script, and so
atomic. There is no stream: reading one on from a number that was trimmed away raises no error.

Replication is asynchronous, so a failover can lose the end of the log and give its numbers away
again. Therefore each script compares the server's identity (``run_id`` and ``master_replid``)
with the one noted beside the epoch; where they differ it empties the engine and begins a new
epoch before it does anything else. Asking costs the server 6 µs, so writes ask as well.

redis-py finds the server, opens the connection (TCP, TLS, authentication) and no more: the
exchange is done here, because only then is it known whether a command was sent whole, and because
every call must end in time, whatever the other side does.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote, urlsplit

import msgpack
import redis
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.crc import key_slot
from redis.retry import Retry
from redis.sentinel import Sentinel

from accesspass.cache.engines.base import Change, Condition, Engine, Entry, Page, Written
from accesspass.cache.exceptions import CacheError, EngineUnavailable, EngineUncertain

__all__ = ["SCHEMES", "RedisEngine", "redacted"]

logger = logging.getLogger("accesspass.cache")

#: Every form of a location, by its scheme.
SCHEMES = {
    "redis": "redis://[user:password@]host[:port][/db]",
    "rediss": "rediss://[user:password@]host[:port][/db]",
    "redis+unix": "redis+unix://[user:password@]/path/of/socket[?db=number]",
    "redis+sentinel": "redis+sentinel://[user:password@]host[:port],…/service[/db]",
    "rediss+sentinel": "rediss+sentinel://[user:password@]host[:port],…/service[/db]",
    "redis+cluster": "redis+cluster://[user:password@]host[:port],…",
    "rediss+cluster": "rediss+cluster://[user:password@]host[:port],…",
}
_PORT, _SENTINEL_PORT = 6379, 26379
# Unused connections: how many are kept, and for how long, in seconds.
_IDLE_LIMIT, _IDLE_TIME = 8, 60.0
# A subscription that was silent for so many seconds is asked whether it is alive.
_PING_AFTER = 5.0
# A page ends when its values have so many bytes, however few they are.
_PAGE_BYTES = 8 << 20

# What stands in the hash: revision, expiry, kind, and then the value. The number stands in the
# sorted set alone. Whatever is shorter was not written by us.
_HEADER = struct.Struct(">QdB")
_FOREVER, _MORTAL, _DELETED = range(3)

# Errors that a server answers before a script has changed anything. Redis 6 wraps what a command
# in a script has said into another message.
_NOT_DONE = {
    "NOAUTH": "it wants a password; put it into LOCATION",
    "WRONGPASS": "it refused the user name or password",
    "NOPERM": "the user may not do what the cache needs",
    "LOADING": "it is still loading its data",
    "READONLY": "it is a replica, not the master",
    "MASTERDOWN": "it is a replica whose master is gone",
    "OOM": "its memory is full (maxmemory)",
    "NOREPLICAS": "too few replicas are attached (min-replicas-to-write)",
    "MISCONF": "it refuses writes because it cannot save to disk",
    "BUSY": "it is busy with another script",
    "MOVED": "the slot has moved to another node",
    "ASK": "the slot is moving to another node",
    "TRYAGAIN": "the slot is moving to another node",
    "CLUSTERDOWN": "the cluster is down",
    "NOSCRIPT": "it forgets scripts",
}
_code = re.compile(rf"(?:^|-)({'|'.join(_NOT_DONE)})\b").search
# What our own scripts answer instead.
_REFUSALS = {
    b"replica": "it is a replica, not the master",
    b"identity": "its INFO names no run_id and master_replid, so a failover would go unnoticed",
    b"policy": "its maxmemory-policy is not noeviction, so entries could vanish unnoticed: "
    "set maxmemory-policy to noeviction",
}

_PRELUDE = """
local meta, entries, log, deaths = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local replication = redis.call('INFO', 'replication')
if not string.find(replication, '\\nrole:master', 1, true) then return {'replica'} end
local run = string.match(redis.call('INFO', 'server'), '\\nrun_id:(%w+)')
local history = string.match(replication, '\\nmaster_replid:(%w+)')
if not run or not history then return {'identity'} end
local identity = run .. ' ' .. history
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local state = redis.call('HMGET', meta, 'epoch', 'seq', 'floor', 'identity')
local epoch, seq, floor = state[1], tonumber(state[2]), tonumber(state[3])

local function begin()
  redis.call('PUBLISH', ARGV[2], '')
  redis.call('UNLINK', entries, log, deaths)
  seq = seq or 0
  epoch, floor = ARGV[1], seq
  redis.call('HSET', meta, 'epoch', epoch, 'seq', seq, 'floor', floor, 'identity', identity)
end

-- A key of ours that was evicted or deleted by hand is a lost history, too.
local count = redis.call('ZCARD', log)
if state[4] ~= identity or not (epoch and seq and floor)
    or redis.call('HLEN', entries) ~= count or (count == 0 and seq > floor) then
  begin()
end
-- Something that replicas have to acknowledge, or WAIT would be content with what they had.
if ARGV[3] == '1' then redis.call('HSET', meta, 'beat', time[1]) end
"""

_CHANGES = f"""
if not string.find(redis.call('INFO', 'memory'), '\\nmaxmemory_policy:noeviction', 1, true) then
  return {{'policy'}}
end
local limit = tonumber(ARGV[5])
local found = redis.call('ZRANGEBYSCORE', log, '(' .. ARGV[4], '+inf', 'WITHSCORES',
                         'LIMIT', 0, limit + 1)
local more = #found > 2 * limit
if more then found[#found] = nil; found[#found] = nil end
local values, wanted, bytes = {{}}, {{}}, 0
local last = #found
for i = 1, last, 2 do
  wanted[#wanted + 1] = found[i]
  if #wanted == 100 or i + 1 == last then
    for _, value in ipairs(redis.call('HMGET', entries, unpack(wanted))) do
      values[#values + 1] = value
      bytes = bytes + (value and #value or 0)
    end
    wanted = {{}}
    if bytes > {_PAGE_BYTES} and i + 1 < last then
      more = true
      for surplus = last, i + 2, -1 do found[surplus] = nil end
      break
    end
  end
end
return {{'ok', epoch, seq, floor, time[1], time[2], more and 1 or 0,
        cmsgpack.pack(found), cmsgpack.pack(values)}}
"""

_READ = """
return {'ok', redis.call('ZSCORE', log, ARGV[4]), redis.call('HGET', entries, ARGV[4])}
"""

# Arguments: absent, seq, newer and epoch of the condition (all empty without one), then pairs of
# key and body. Publishing comes first: if that is not allowed, nothing has been written yet, and
# nobody gets to ask before the script has ended.
_WRITE = f"""
local absent, at, newer, within = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local function kind(body) return body and string.byte(body, {_HEADER.size}) end
local function expiry(body) return (struct.unpack('>d', body, 9)) end
local function alive(body)
  return kind(body) == {_FOREVER} or (kind(body) == {_MORTAL} and expiry(body) > now)
end

if absent == '1' or at ~= '' or newer == '1' or within ~= '' then
  local old = redis.call('HGET', entries, ARGV[8])
  local number = redis.call('ZSCORE', log, ARGV[8])
  local refused = (within ~= '' and within ~= epoch) or (absent == '1' and alive(old))
      or (at ~= '' and tonumber(at) ~= tonumber(number or 0))
  if newer == '1' and kind(old) then
    -- In halves, because a double holds 53 bits.
    local old_high, old_low = struct.unpack('>I4I4', old)
    local high, low = struct.unpack('>I4I4', ARGV[9])
    refused = refused or old_high > high or (old_high == high and old_low >= low)
  end
  if refused then return {{'ok', epoch, seq, 0, alive(old) and 1 or 0, number, old}} end
end

redis.call('PUBLISH', ARGV[2], '')
redis.call('HSET', meta, 'seq', seq + (#ARGV - 7) / 2)
local held = 0
for i = 8, #ARGV, 2 do
  local key, body = ARGV[i], ARGV[i + 1]
  local old = redis.call('HGET', entries, key)
  if alive(old) then held = held + 1 end
  if kind(body) == {_DELETED} then
    body = string.sub(body, 1, 8) .. struct.pack('>d', now) .. string.sub(body, {_HEADER.size})
  end
  seq = seq + 1
  redis.call('HSET', entries, key, body)
  redis.call('ZADD', log, seq, key)
  if kind(body) ~= {_FOREVER} then
    redis.call('ZADD', deaths, expiry(body), key)
  elseif old and kind(old) ~= {_FOREVER} then
    redis.call('ZREM', deaths, key)
  end
end
return {{'ok', epoch, seq, 1, held}}
"""

_CLEAR = """
begin()
return {'ok'}
"""

# What frees memory comes first: after a first change, a full server lets the rest pass.
_PURGE = """
local dead = redis.call('ZRANGEBYSCORE', deaths, '-inf', ARGV[4], 'LIMIT', 0, ARGV[5])
if #dead == 0 then return {'ok', 0} end
for _, key in ipairs(dead) do
  floor = math.max(floor, tonumber(redis.call('ZSCORE', log, key) or 0))
  redis.call('HDEL', entries, key)
  redis.call('ZREM', log, key)
  redis.call('ZREM', deaths, key)
end
redis.call('HSET', meta, 'floor', floor)
return {'ok', #dead}
"""


class _Script:
    """A script, and what EVALSHA calls it."""

    def __init__(self, body: str) -> None:
        self.text = (_PRELUDE + body).encode()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


_changes, _read, _write, _clear, _purge = map(_Script, (_CHANGES, _READ, _WRITE, _CLEAR, _PURGE))


class _ServerError(Exception):
    """What the server answered with a minus sign."""


class _Address(NamedTuple):
    """A location, taken apart. ``kind`` is "", "unix", "sentinel" or "cluster"."""

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    settings: dict[str, Any]
    sentinel: dict[str, Any]

    def __repr__(self) -> str:
        return "<address>"  # there are passwords in it


class RedisEngine(Engine):
    """A log in Redis (6.2 or newer) or Valkey.

    Args:
        location: one of ``SCHEMES``; the port is 6379 (26379 of a Sentinel) and the database 0 if
            left out. A query passes settings on to redis-py's ``Connection``, above all
            ``ssl_ca_certs`` and the like; ``sentinel_username`` and ``sentinel_password`` are for
            the Sentinels. A name or password with special characters is percent-encoded.
        namespace: projects that share a server and a database have different ones.
        min_replicas: how many replicas have to acknowledge each write, and each pull before it
            counts, 0 for none. With R replicas in all, ``2 * min_replicas + 1 > R`` makes sure
            that two masters are never obeyed at a time.
        deadline: after so many seconds every call has ended.

    Raises:
        ImproperlyConfigured: an argument means nothing.
    """

    name: ClassVar[str] = "redis"
    page_size: ClassVar[int] = 1_000

    def __init__(
        self,
        location: str,
        *,
        namespace: str = "accesspass",
        min_replicas: int = 0,
        deadline: float = 2.0,
    ) -> None:
        super().__init__(deadline=deadline)
        if not re.fullmatch(r"[^\s{}]+", namespace):
            raise ImproperlyConfigured("NAMESPACE must be a word without braces.")
        if min_replicas < 0:
            raise ImproperlyConfigured("MIN_REPLICAS must not be below 0.")
        self._address = _parse(location)
        self._shown = redacted(location)
        self._min_replicas = min_replicas
        self._tag = namespace.encode()
        self._channel = b"{%b}:changed" % self._tag
        names = (b"meta", b"entries", b"log", b"deaths")
        self._keys = [b"{%b}:%b" % (self._tag, name) for name in names]
        self._inherited: list[object] = []
        self._begin_process()
        self._connection(*self._address.hosts[0], timeout=deadline)  # tells whether it could

    def _begin_process(self) -> None:
        self._pid = os.getpid()
        # Idle connections. list.append and list.pop are atomic, so no lock is needed.
        self._idle: list[_Link] = []
        self._subscription: _Link | None = None
        self._interrupt = threading.Event()

    # Reading ---------------------------------------------------------------------------------

    def changes(self, after: int, limit: int) -> Page:
        reply = self._call(_changes, [b"%d" % after, b"%d" % limit], acknowledged=True)
        _, epoch, head, floor, seconds, micros, more, found, values = reply
        found, values = msgpack.unpackb(found, raw=True), msgpack.unpackb(values, raw=True)
        entries = (
            [
                _entry(key, number, value)
                for key, number, value in zip(found[::2], found[1::2], values, strict=True)
            ]
            if found
            else []
        )
        now = int(seconds) + int(micros) / 1_000_000
        return Page(epoch.decode(), head, floor, now, entries, bool(more))

    def read(self, key: bytes) -> Entry | None:
        _, number, body = self._call(_read, [key])
        return None if number is None else _entry(key, number, body)

    # Writing ---------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        condition = condition or Condition()
        if condition != Condition():
            (_,) = changes
        arguments = [
            b"1" if condition.absent else b"",
            b"" if condition.seq is None else b"%d" % condition.seq,
            b"1" if condition.newer else b"",
            b"" if condition.epoch is None else condition.epoch.encode(),
        ]
        for change in changes:
            arguments += (change.key, _body(change))
        reply = self._call(_write, arguments, writes=True, acknowledged=True)
        _, epoch, seq, done, held, *current = reply
        refused_by = None
        if not done and current[0] is not None:
            refused_by = _entry(changes[0].key, *current)
        return Written(epoch.decode(), seq, bool(done), held, refused_by)

    def clear(self) -> None:
        self._call(_clear, [], writes=True, acknowledged=True)

    def purge(self, before: float, limit: int) -> int:
        arguments = [b"%.17g" % before, b"%d" % limit]
        purged: int = self._call(_purge, arguments, writes=True)[1]
        return purged

    # The exchange ----------------------------------------------------------------------------

    def _call(
        self,
        script: _Script,
        arguments: Sequence[bytes],
        *,
        writes: bool = False,
        acknowledged: bool = False,
    ) -> list[Any]:
        """Run a script once and return its answer.

        Args:
            writes: once it was sent whole, a lost answer is ``EngineUncertain``.
            acknowledged: so many replicas as were asked for must have followed in time.
        """
        until = time.monotonic() + self.deadline
        acknowledged = acknowledged and self._min_replicas > 0
        tail = [
            b"%d" % len(self._keys),
            *self._keys,
            secrets.token_hex(8).encode(),
            self._channel,
            b"1" if acknowledged else b"",
            *arguments,
        ]
        uncertain: type[CacheError] = EngineUncertain if writes else EngineUnavailable
        pool = self._own_pool()
        link = self._borrow(pool, until)
        # What to raise if the next step fails.
        failure: type[CacheError] = EngineUnavailable
        try:
            link.send([b"EVALSHA", script.digest, *tail], until)
            failure = uncertain
            reply: Any = link.receive(until)
            if isinstance(reply, _ServerError) and str(reply).startswith("NOSCRIPT"):
                failure = EngineUnavailable
                link.send([b"EVAL", script.text, *tail], until)
                failure = uncertain
                reply = link.receive(until)
            if isinstance(reply, _ServerError):
                code = _code(str(reply))
                if code:
                    failure, reply = EngineUnavailable, _ServerError(_NOT_DONE[code[1]])
                raise reply
            if script is _changes:
                self.role = "replica" if reply[0] == b"replica" else "primary"
            if reply[0] != b"ok":
                failure = EngineUnavailable
                raise _ServerError(_REFUSALS[reply[0]])
            if script is _write and not reply[3]:
                failure = EngineUnavailable  # the condition has refused it
            # Of pages, only the last one tells how current a replica is.
            if acknowledged and not (script is _changes and reply[6]):
                self._await_replicas(link, until)
        except (OSError, _ServerError) as error:
            link.close()
            self._reset()
            raise failure(self._explain(error)) from None
        except BaseException:
            link.close()  # its answer would be taken for that to the next command
            raise
        self._give_back(pool, link)
        answer: list[Any] = reply
        return answer

    def _await_replicas(self, link: _Link, until: float) -> None:
        """Wait until enough replicas have what this connection has written."""
        # The server gives up earlier than we do, so that its answer is still heard; it looks at
        # its clock every 0.1 seconds.
        left = until - time.monotonic()
        patience = max(1, int(1000 * (left - max(left / 5, 0.2))))
        reached = link.ask([b"WAIT", b"%d" % self._min_replicas, b"%d" % patience], until)
        if reached < self._min_replicas:
            raise _ServerError(
                f"{reached} of {self._min_replicas} replicas (MIN_REPLICAS) followed in time"
            )

    def _explain(self, error: object) -> str:
        """Return a message that shows no password and no argument of a command."""
        text = str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            text = f"no answer within {self.deadline} seconds"
        text = text.splitlines()[0].partition(", with args")[0]
        for secret in (
            self._address.settings.get("password"),
            self._address.sentinel.get("password"),
        ):
            if secret:
                text = text.replace(secret, "***")
        return f"{self._shown}: {text[:300]}"

    # Connections -----------------------------------------------------------------------------

    def _own_pool(self) -> list[_Link]:
        if self._pid != os.getpid():  # forked by something that runs no hooks of Python's
            self.forget_connections()
        return self._idle

    def _borrow(self, pool: list[_Link], until: float) -> _Link:
        while pool:
            try:
                link = pool.pop()
            except IndexError:
                break
            if link.is_usable():
                return link
            link.close()
        return self._open(until)

    def _give_back(self, pool: list[_Link], link: _Link) -> None:
        # Another pool means that the servers were found wanting meanwhile, or that we are a fork.
        if pool is self._idle and len(pool) < _IDLE_LIMIT:
            link.used = time.monotonic()
            pool.append(link)
        else:
            link.close()

    def _reset(self) -> None:
        """Let go of every connection: the next call looks for the server again."""
        pool, self._idle = self._idle, []
        while pool:
            pool.pop().close()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.interrupt()  # it may be in use; whoever uses it closes it

    def _open(self, until: float) -> _Link:
        """Open a connection in a thread, because no name server can be told to be quick."""
        outcome: queue.SimpleQueue[_Link | EngineUnavailable] = queue.SimpleQueue()
        given_up = threading.Event()
        timeout = max(0.001, until - time.monotonic())

        def run() -> None:
            opened: _Link | EngineUnavailable
            try:
                opened = self._connect(timeout)
            except redis.AuthenticationError:
                opened = EngineUnavailable(self._explain(_NOT_DONE["WRONGPASS"]))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not open
                code = _code(str(error))
                opened = EngineUnavailable(self._explain(_NOT_DONE[code[1]] if code else error))
            outcome.put(opened)
            if given_up.is_set():
                discard()

        def discard() -> None:
            with contextlib.suppress(queue.Empty):
                late = outcome.get_nowait()
                if isinstance(late, _Link):
                    late.close()

        try:
            threading.Thread(target=run, name="accesspass-connect", daemon=True).start()
            opened = outcome.get(timeout=timeout)
        except queue.Empty:
            given_up.set()
            discard()
            raise EngineUnavailable(self._explain(TimeoutError())) from None
        except RuntimeError as error:  # the interpreter is about to end
            raise EngineUnavailable(self._explain(error)) from None
        if isinstance(opened, EngineUnavailable):
            raise opened
        return opened

    def _connect(self, timeout: float) -> _Link:
        return self._dial(*self._locate(timeout), timeout=timeout)

    def _dial(self, host: str, port: int, *, timeout: float) -> _Link:
        """Open a connection to a server that is found to be in order."""
        until = time.monotonic() + timeout
        link = _Link(self._connection(host, port, timeout=timeout))
        try:
            link.ask([b"PING"], until)
        except BaseException:
            link.close()
            raise
        return link

    def _connection(self, host: str, port: int, *, timeout: float) -> redis.Connection:
        settings: dict[str, Any] = {
            **self._address.settings,
            **({} if self._address.kind == "unix" else {"host": host, "port": port}),
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        kind: type[redis.Connection] = settings.pop("connection_class", redis.Connection)
        try:
            return kind(**settings)
        except (TypeError, ValueError, redis.RedisError) as error:
            raise ImproperlyConfigured(f"LOCATION: {error}") from None

    def _locate(self, timeout: float) -> tuple[str, int]:
        """Say where the master is just now."""
        address = self._address
        # Each that is asked leaves time for the next one, and for the master itself.
        timeout /= len(address.hosts) + 1
        if address.kind == "sentinel":
            return self._ask_sentinels(timeout)
        if address.kind == "cluster":
            return self._ask_cluster(timeout)
        return address.hosts[0]

    def _ask_sentinels(self, timeout: float) -> tuple[str, int]:
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            self._address.hosts,
            sentinel_kwargs={
                **self._address.sentinel,
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
            },
        )
        try:
            found = sentinels.discover_master(self._address.service)  # type: ignore[no-untyped-call]
        finally:
            for sentinel in sentinels.sentinels:
                sentinel.close()
        return str(found[0]), int(found[1])

    def _ask_cluster(self, timeout: float) -> tuple[str, int]:
        slot = key_slot(self._tag)
        failure: Exception = EngineUnavailable(f"nobody serves slot {slot}")
        for host, port in self._address.hosts:
            try:
                link = self._dial(host, port, timeout=timeout)
            except (redis.RedisError, OSError, _ServerError) as error:
                failure = error
                continue
            try:
                slots = link.ask([b"CLUSTER", b"SLOTS"], time.monotonic() + timeout)
                for first, last, master, *_ in slots:
                    if first <= slot <= last:
                        # A node that does not know its own address means the one we called.
                        return (master[0] or host.encode()).decode(), master[1]
            except (OSError, _ServerError) as error:
                failure = error
            finally:
                link.close()
        raise failure

    # Hints -----------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Sleep until somebody has written, at most ``timeout`` seconds. It never fails.

        What wakes it is a hint: while there is no subscription, it sleeps for the whole time.
        """
        until = time.monotonic() + timeout
        self._own_pool()
        interrupt = self._interrupt
        link = self._subscription
        try:
            if link is None:
                self._subscribe(timeout)
                return  # what was written meanwhile came with no hint
            link.listen(until, self.deadline)
        except (CacheError, OSError, _ServerError) as error:
            explained = self._explain(error)
            logger.debug("cache.no_hints: %s", explained, extra={"event": "cache.no_hints"})
            if link is not None:
                link.close()
                if link is not self._subscription:
                    return  # it was interrupted
                self._subscription = None
            interrupt.wait(max(0.0, until - time.monotonic()))
            interrupt.clear()

    def drop_hints(self) -> None:
        link = self._subscription
        if link is not None:
            link.drop_hints()

    def _subscribe(self, timeout: float) -> None:
        until = time.monotonic() + min(self.deadline, max(timeout, 0.5))
        link = self._open(until)
        try:
            link.ask([b"SUBSCRIBE", self._channel], until)
        except BaseException:
            link.close()
            raise
        self._subscription = link

    def forget_connections(self) -> None:
        # Kept, because whatever is dropped is closed.
        self._inherited += [self._idle, self._subscription]
        self._begin_process()

    def close(self) -> None:
        self._reset()
        self._interrupt.set()


class _Link:
    """A connection that redis-py opens, and RESP2 over its socket. What fails is an ``OSError``."""

    def __init__(self, connection: redis.Connection) -> None:
        connection.connect()  # type: ignore[no-untyped-call]
        self._connection = connection
        self._socket: socket.socket = connection._sock  # type: ignore[assignment]
        self._buffer = bytearray()
        self._read = 0
        self.used = self._heard = time.monotonic()
        self._pinged = 0.0

    def is_usable(self) -> bool:
        """Whether an idle connection is worth being used: not closed, and not forgotten."""
        if time.monotonic() - self.used > _IDLE_TIME:
            return False
        try:
            self._socket.settimeout(0)
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False  # closed by the other side, or talking without being asked

    def send(self, command: Sequence[bytes], until: float) -> None:
        """Send a command. If it raises, the command was not sent whole and is never obeyed."""
        parts = [b"*%d\r\n" % len(command)]
        for part in command:
            parts.append(b"$%d\r\n%b\r\n" % (len(part), part))
        rest = memoryview(b"".join(parts))
        while rest:
            self._socket.settimeout(_left(until))
            rest = rest[self._socket.send(rest) :]

    def ask(self, command: Sequence[bytes], until: float) -> Any:
        """Send a command and return its answer; an error of the server's is raised."""
        self.send(command, until)
        answer = self.receive(until)
        if isinstance(answer, _ServerError):
            raise answer
        return answer

    def receive(self, until: float) -> Any:
        """Receive one answer; an error of the server's is returned."""
        end = self._buffer.find(b"\r\n", self._read)
        while end < 0:
            self._fill(until)
            end = self._buffer.find(b"\r\n", self._read)
        kind, line = self._buffer[self._read], bytes(self._buffer[self._read + 1 : end])
        self._read = end + 2
        if kind == 0x3A:  # ":"
            return int(line)
        if kind == 0x24:  # "$"
            return None if line == b"-1" else self._bulk(int(line), until)
        if kind == 0x2A:  # "*"
            return None if line == b"-1" else [self.receive(until) for _ in range(int(line))]
        if kind == 0x2B:  # "+"
            return line
        if kind == 0x2D:  # "-"
            return _ServerError(line.decode(errors="replace"))
        raise OSError("the server does not speak RESP2")

    def _bulk(self, size: int, until: float) -> bytes:
        end = self._read + size
        while len(self._buffer) < end + 2:
            self._fill(until)
        found = bytes(self._buffer[self._read : end])
        self._read = end + 2
        return found

    def _fill(self, until: float) -> None:
        if self._read == len(self._buffer):
            del self._buffer[:]
            self._read = 0
        self._socket.settimeout(_left(until))
        received = self._socket.recv(1 << 18)
        if not received:
            raise ConnectionResetError("the connection was closed by the other side")
        self._buffer += received

    def listen(self, until: float, deadline: float) -> None:
        """Wait for a hint, and take in all that are there; their text means nothing."""
        now = time.monotonic()
        if self._pinged > self._heard:
            if now - self._pinged > deadline:
                raise TimeoutError
        elif now - self._heard > _PING_AFTER:
            self.send([b"PING"], now + deadline)
            self._pinged = now
        with contextlib.suppress(TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            self._socket.settimeout(_left(until))
            while self._socket.recv(1 << 16):
                self._heard = time.monotonic()
                self._socket.settimeout(0)
            raise ConnectionResetError("the connection was closed by the other side")

    def drop_hints(self) -> None:
        """Take in the hints that are there. That the connection has ended, ``listen`` finds too."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(0)
            while self._socket.recv(1 << 16):
                self._heard = time.monotonic()

    def interrupt(self) -> None:
        """Have whoever waits for this connection give up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.disconnect()  # type: ignore[no-untyped-call]


def _left(until: float) -> float:
    """How many seconds there are until then; at least some, since 0 would mean not to wait."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _body(change: Change) -> bytes:
    """Return what is stored for a change; the time of a deletion is filled in by the script."""
    if change.value is None:
        return _HEADER.pack(change.revision, 0.0, _DELETED)
    if change.expires is None:
        return _HEADER.pack(change.revision, 0.0, _FOREVER) + change.value
    if change.expires != change.expires:
        raise ValueError("an expiry must be a number")
    return _HEADER.pack(change.revision, change.expires, _MORTAL) + change.value


def _entry(key: bytes, number: bytes, body: bytes | None) -> Entry:
    """Return the entry that was found. What we have not written keeps its bytes: no seal fits."""
    seq = int(float(number))
    if body and len(body) >= _HEADER.size:
        revision, expires, kind = _HEADER.unpack_from(body)
        if kind == _FOREVER:
            return Entry(key, seq, revision, None, body[_HEADER.size :])
        if kind == _MORTAL:
            return Entry(key, seq, revision, expires, body[_HEADER.size :])
        if kind == _DELETED:
            return Entry(key, seq, revision, expires, None)
    return Entry(key, seq, 0, None, body or b"")


def redacted(location: str) -> str:
    """Return a location without user, password and query."""
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _parse(location: str) -> _Address:
    """Take a location apart. Its parts are in no message: any of them may hold a password."""
    form = SCHEMES.get(location.partition("://")[0])
    if form is None:
        raise ImproperlyConfigured(f"LOCATION must be one of {', '.join(SCHEMES.values())}.")
    wrong = f"LOCATION must be {form}, with special characters percent-encoded."
    try:
        parts = urlsplit(location)
    except ValueError:
        raise ImproperlyConfigured(wrong) from None
    scheme, _, kind = parts.scheme.partition("+")
    credentials, at, hosts = parts.netloc.rpartition("@")
    if kind == "unix":
        if hosts or len(parts.path) < 2:
            raise ImproperlyConfigured(wrong)
        return _Address(kind, ((unquote(parts.path), 0),), "", _settings(location, wrong), {})
    port = _SENTINEL_PORT if kind == "sentinel" else _PORT
    path = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    service = unquote(path.pop(0)) if kind == "sentinel" and path else ""
    found = [
        re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", each)
        for each in hosts.split(",")
    ]
    database = path.pop() if path else "0"
    if (
        not all(found)
        or path
        or not (database.isascii() and database.isdigit())
        or (kind == "sentinel") != bool(service)
        or (kind == "cluster" and database != "0")
        or (not kind and len(found) != 1)
    ):
        raise ImproperlyConfigured(wrong)
    settings = _settings(f"{scheme}://{credentials}{at}host/{database}?{parts.query}", wrong)
    sentinel: dict[str, Any] = {}
    for name in ("username", "password"):
        if f"sentinel_{name}" in settings:
            sentinel[name] = settings.pop(f"sentinel_{name}")
    if scheme == "rediss":
        sentinel["ssl"] = True
        sentinel |= {name: settings[name] for name in settings if name.startswith("ssl_")}
    return _Address(
        kind,
        tuple((each[1].strip("[]"), int(each[2] or port)) for each in found if each),
        service,
        settings,
        sentinel,
    )


def _settings(url: str, wrong: str) -> dict[str, Any]:
    """What redis-py reads in one of its own URLs."""
    try:
        found: dict[str, Any] = parse_url(  # type: ignore[no-untyped-call]
            url.removeprefix("redis+")
        )
    except ValueError:
        raise ImproperlyConfigured(wrong) from None
    return found
