"""``ReplicatedCache``: Django's cache API over a follower, and what sessions need beyond it."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache, default_key_func
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.module_loading import import_string

from accesspass.cache import exceptions
from accesspass.cache.codec import Codec, Opened, Seal
from accesspass.cache.engines import database_settings, resolve
from accesspass.cache.engines.base import Change, Condition, Engine, Entry
from accesspass.cache.follower import Follower, Mark, Snapshot

__all__ = ["ReplicatedCache"]

#: Every key of OPTIONS and its default. Durations are in seconds.
OPTIONS: Mapping[str, Any] = {
    "MAX_STALENESS": 5.0,
    "HEARTBEAT": 0.5,
    "RETENTION": 3600.0,
    "MAX_ENTRIES": None,
    "CULL_FREQUENCY": 3,
    "ENGINE": None,
    "CODEC": "accesspass.cache.codec.MsgpackCodec",
    "SIGNING_KEYS": None,
    "MIN_REPLICAS": 0,
    "NAMESPACE": "accesspass",
    "TABLE": "accesspass_cache",
}
_MISSING: Any = object()

_followers: dict[tuple[Any, ...], Follower] = {}
# Which of them a database:ALIAS location has asked for.
_of_databases: set[tuple[Any, ...]] = set()
#: What the receiver is known by that lets go of databases.
LET_GO = "accesspass.cache.let_go"


class ReplicatedCache(BaseCache):
    """A cache whose reads are answered from this process's memory.

    Every write goes to the engine and is ordered there; every process holds a replica. A hit was
    true at most ``MAX_STALENESS`` seconds ago. Objects of this class are thin: the replica is
    shared by all that have the same engine and the same options in a process.

    Args:
        location: see ``accesspass.cache.engines.resolve``.
        params: Django's cache parameters; ``OPTIONS`` as in ``backend.OPTIONS``.

    Raises:
        ImproperlyConfigured: an option or the location means nothing.
    """

    CacheError = exceptions.CacheError
    EngineUnavailable = exceptions.EngineUnavailable
    EngineUncertain = exceptions.EngineUncertain
    ValueRefused = exceptions.ValueRefused

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = _options(params)
        self.max_staleness: float = options["MAX_STALENESS"]
        self._max_entries: int | None = options["MAX_ENTRIES"]  # type: ignore[assignment]
        self._cull_frequency: int = options["CULL_FREQUENCY"]
        self._codec: Codec = import_string(options["CODEC"])()
        self._options = options
        self._location = location
        # A database:ALIAS location follows its database when a test runner renames that.
        self._database = database_settings(location)
        self._database_name: object = _MISSING
        if self._database is None:
            self._resolved = self._resolve()

    @property
    def _follower(self) -> Follower:
        if self._database is not None and (
            self._database["NAME"] != self._database_name or self._resolved.stopped
        ):
            name = self._database["NAME"]
            if self._database_name is not _MISSING:
                _give_up(self._resolved)  # nobody in this process means that database any more
            self._resolved = self._resolve()
            self._database_name = name  # not before: the next call has to fail as this one may
        return self._resolved

    def check_engine(self) -> None:
        """Raise ImproperlyConfigured if no engine can be had for the location. Asks no server."""
        resolve(self._location, self._options)

    def _resolve(self) -> Follower:
        options = self._options
        identity, make_engine = resolve(self._location, options)
        key = (identity, tuple(options.items()))
        found = _followers.get(key)
        if found is not None:
            return found
        made = Follower(
            make_engine(),
            Seal(options["SIGNING_KEYS"]),
            max_staleness=options["MAX_STALENESS"],
            heartbeat=options["HEARTBEAT"],
            retention=options["RETENTION"],
            max_entries=options["MAX_ENTRIES"],
            cull_frequency=options["CULL_FREQUENCY"],
        )
        if self._database is not None:
            _of_databases.add(key)
        # Atomic, and no lock that a fork could leave held. One that lost a race was never used.
        return _followers.setdefault(key, made)

    def validate_key(self, key: str) -> None:
        # It looks at every character by itself, which is slow, and never warns of these.
        if len(key) > 250 or not key.isprintable() or " " in key:
            super().validate_key(key)

    def _key(self, key: str, version: int | None) -> bytes:
        made = self.make_and_validate_key(key, version=version)
        return str(made).encode("utf-8", "surrogatepass")

    def _expiry(self, timeout: Any) -> float | None:
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return self._follower.expiry(None if timeout is None else _seconds(timeout))

    # Django's cache API ----------------------------------------------------------------------

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        held = self._follower.get(self._key(key, version))
        if held is None:
            return default
        try:
            return self._codec.decode(held.payload)
        except ValueError:  # another codec's, of a version that is being rolled out or back
            return default

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self._follower.get(self._key(key, version)) is not None

    def set(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        change = self._change(self._key(key, version), value, self._expiry(timeout))
        self._make_room()
        self._follower.write([change])

    def add(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Store a value if the key is not held; one caller on one node wins.

        Raises:
            EngineUncertain: the answer was lost; the value may be stored.
        """
        change = self._change(self._key(key, version), value, self._expiry(timeout))
        self._make_room()
        condition = Condition(absent=True)
        while True:
            written = self._follower.write([change], condition)
            if written.done:
                return True
            current = written.current
            if current is None or self._follower.is_sealed(current):
                return False
            # What stands there was not sealed by us, so nobody can read it: it is absent.
            condition = Condition(seq=current.seq)

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        expires = self._expiry(timeout)

        def prolong(opened: Opened, entry: Entry) -> Change:
            return self._follower.seal_change(entry.key, opened.payload, expires, 0, marker=False)

        return self._replace(self._key(key, version), prolong) is not None

    def delete(self, key: str, version: int | None = None) -> bool:
        written = self._follower.write([Change(self._key(key, version), None)])
        return written.held > 0

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Add to a number and keep its expiry. Exact across all nodes.

        The sum is made here and stored on condition that nobody was quicker: an engine that does
        not have the signing key cannot make an entry that replicas accept.

        Raises:
            ValueError: the key is not held.
            TypeError: what is held is no number.
            EngineUncertain: the answer was lost; the number may have changed.
        """
        total: Any = None

        def add(opened: Opened, entry: Entry) -> Change:
            nonlocal total
            total = self._codec.decode(opened.payload) + delta
            return self._change(entry.key, total, entry.expires)

        if self._replace(self._key(key, version), add) is None:
            raise ValueError(f"Key {key!r} not found")
        result: int = total
        return result

    def get_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        found = {}
        for key in keys:
            value = self.get(key, _MISSING, version)
            if value is not _MISSING:
                found[key] = value
        return found

    def set_many(
        self,
        data: Mapping[str, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[str]:
        """Store all values, up to 1,000 of them in one write, which is seen whole or not at all.

        Returns the keys that failed: none, or it raises. What earlier writes of a longer call have
        stored then stays.
        """
        expires = self._expiry(timeout)
        values = {self._key(key, version): value for key, value in data.items()}
        changes = [self._change(key, value, expires) for key, value in values.items()]
        if changes:
            self._make_room()
            self._write_all(changes)
        return []

    def delete_many(self, keys: Iterable[str], version: int | None = None) -> None:
        """Delete all keys, up to 1,000 of them in one write."""
        distinct = dict.fromkeys(self._key(key, version) for key in keys)
        self._write_all([Change(key, None) for key in distinct])

    def clear(self) -> None:
        """Begin a new epoch, for every alias that shares this engine."""
        self._follower.clear()

    # A read is a look into memory, so these need no thread.

    async def aget(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return self.get(key, default, version)

    async def aget_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        return self.get_many(keys, version)

    async def ahas_key(self, key: str, version: int | None = None) -> bool:
        return self.has_key(key, version)

    # Django's own would store the sum anew and lose the timeout.

    async def aincr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        return await sync_to_async(self.incr)(key, delta, version)

    async def adecr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        return await sync_to_async(self.incr)(key, -delta, version)

    # What Django's API has no word for -------------------------------------------------------

    def look(self, key: str, version: int | None = None) -> tuple[Any, Snapshot | None] | None:
        """Return what ``get`` returns, and a snapshot of it to ask ``still_holds`` for.

        There is no snapshot where ``KEY_FUNCTION`` is the project's own: it may look at more than
        the key, as at the tenant of a request.
        """
        looked = self._follower.look(self._key(key, version))
        if looked is None:
            return None
        held, snapshot = looked
        try:
            value = self._codec.decode(held.payload)
        except ValueError:  # as in get
            return None
        return value, snapshot if self.key_func is default_key_func else None

    def still_holds(self, snapshot: Snapshot, until: float = math.inf) -> bool:
        """Whether ``look`` would return this very snapshot: nothing was written to the key since.

        It is the cheapest question there is, for who keeps what was made of a value. False where
        the same value was written again, and after a resync.

        Args:
            until: False from then on, in Unix seconds of the engine's clock, which is ``now``.
        """
        return self._follower.still_holds(snapshot, until)

    def publish(
        self,
        key: str,
        value: Any,
        revision: int,
        timeout: Any = DEFAULT_TIMEOUT,
        mark: Mark | None = None,
        version: int | None = None,
    ) -> bool:
        """Store the state that a row of the caller's had at ``revision``.

        Late, repeated, reordered and replayed publications lose: the engine writes, and replicas
        hold, only a greater revision. Never mix it with ``set``, ``add``, ``incr``, ``touch`` or
        ``delete`` on one key.

        Args:
            revision: a positive number that grows with each change of the row.
            timeout: in seconds, from now.
            mark: where the log stood before the row was changed; the engine refuses the
                publication if its history has ended since. Without one it is a *marker*: it is
                written whatever happened, and never culled.

        Returns:
            True if the engine holds this revision now, False if it refused it as too old.

        Raises:
            EngineUnavailable, EngineUncertain: it is not known to be written; call again.
            ValueError: the revision is not positive or has more than 63 bits.
        """
        if not 0 < revision < 2**63:
            raise ValueError("a revision is a positive number of at most 63 bits")
        change = self._change(
            self._key(key, version), value, self._expiry(timeout), revision, marker=mark is None
        )
        condition = Condition(newer=True, epoch=None if mark is None else mark.epoch)
        try:
            written = self._follower.write([change], condition)
        except exceptions.EngineUncertain as uncertain:
            # A publication can be repeated: the second one loses if the first one arrived.
            try:
                written = self._follower.write([change], condition)
            except exceptions.EngineUnavailable:
                raise uncertain from None  # of the first one, nothing more is known
        current = written.current
        while mark is None and current is not None and not self._follower.is_sealed(current):
            # Nobody can read what stands there, but a replica may hold what it read elsewhere, and
            # this must reach it.
            written = self._follower.write([change], Condition(seq=current.seq))
            current = written.current
        return written.done or (current is not None and current.revision == revision)

    def mark(self) -> Mark:
        """Say where the log stands, before a row is changed or read. No I/O once joined.

        Raises:
            EngineUnavailable: this process has not seen the log yet and cannot reach it.
        """
        return self._follower.mark()

    def fill(
        self,
        key: str,
        value: Any,
        revision: int,
        timeout: float,
        mark: Mark,
        version: int | None = None,
        *,
        marker: bool = False,
    ) -> bool:
        """Hold in this process alone what was read from the row after ``mark`` was taken.

        It loses to everything published since, and it answers for ``MAX_STALENESS`` seconds even
        while the engine is out of reach. Returns whether it is held.
        """
        return self._follower.fill(
            self._key(key, version),
            self._codec.encode(value),
            revision,
            _seconds(timeout),
            mark,
            marker=marker,
        )

    def forget(self, key: str, version: int | None = None) -> None:
        """Forget a key in this process alone: reads miss until something newer is said of it."""
        self._follower.forget(self._key(key, version))

    def now(self) -> float:
        """The engine's clock, in seconds since 1970."""
        return self._follower.now()

    def before_fresh(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` run before a replica that fell behind answers again.

        It runs in a thread with database connections of its own; if it raises, the replica goes
        on answering nothing. Giving the same callback twice is giving it once.
        """
        self._follower.before_fresh(callback)

    def status(self) -> dict[str, Any]:
        """Return the state of this process's replica; see the reference for each name."""
        return self._follower.status()

    def schema(self) -> str:
        """Return the SQL that makes what the engine needs; "" if it needs none."""
        return self._follower.engine.schema()

    @property
    def engine(self) -> Engine:
        """The engine itself, for whoever wants to watch what it is asked."""
        return self._follower.engine

    def leave(self) -> None:
        """Give up this process's replica, with its thread and its connections.

        An object that is made afterwards joins anew; this one is of no use any more.
        """
        _give_up(self._follower)

    # ------------------------------------------------------------------------------------------

    def _change(
        self,
        key: bytes,
        value: Any,
        expires: float | None,
        revision: int = 0,
        *,
        marker: bool = False,
    ) -> Change:
        payload = self._codec.encode(value)
        return self._follower.seal_change(key, payload, expires, revision, marker=marker)

    def _write_all(self, changes: Sequence[Change]) -> None:
        """Write in batches, since all that others write waits for one, and it has a deadline."""
        batch: list[Change] = []
        size = 0
        for change in changes:
            batch.append(change)
            size += len(change.key) + len(change.value or b"")
            if len(batch) == _BATCH or size >= _BATCH_BYTES:
                self._follower.write(batch)
                batch, size = [], 0
        if batch:
            self._follower.write(batch)

    def _replace(self, key: bytes, make: Callable[[Opened, Entry], Change]) -> Entry | None:
        """Replace what is held for a key, beginning again whenever somebody was quicker.

        Returns the entry that was replaced, ``None`` if there was none.
        """
        follower = self._follower
        give_up = time.monotonic() + _PATIENCE
        # The replica usually knows; where it does not, the engine decides.
        entry, opened = follower.read_replica(key)
        if entry is None:
            entry, opened = follower.read_engine(key)
        while entry is not None and opened is not None:
            written = follower.write([make(opened, entry)], Condition(seq=entry.seq))
            if written.done:
                return entry
            if time.monotonic() > give_up:
                raise exceptions.EngineUnavailable(f"others changed it for {_PATIENCE} seconds")
            entry = written.current
            opened = None if entry is None else follower.open(entry)
        return None

    def _make_room(self) -> None:
        if self._max_entries is not None:
            self._follower.cull(self._max_entries, self._cull_frequency)


def _let_go(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Give up all followers of a project's databases before one of those is made or dropped.

    PostgreSQL drops and copies only a database that nobody is connected to. Django connects under
    this alias for nothing else; the next read begins again.
    """
    if connection.alias != NO_DB_ALIAS:
        return
    for key in list(_of_databases):
        follower = _followers.get(key)
        if follower is not None and follower.engine.name == connection.vendor:
            _give_up(follower)


def _give_up(follower: Follower) -> None:
    for key, found in list(_followers.items()):
        if found is follower:
            _followers.pop(key, None)
            _of_databases.discard(key)
    if not follower.stopped:
        follower.stop()


connection_created.connect(_let_go, dispatch_uid=LET_GO)


# How much is written at once: so many changes, or so many bytes.
_BATCH, _BATCH_BYTES = 1_000, 4 << 20

# For how long a write that others overtake again and again is tried, in seconds.
_PATIENCE = 10.0


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    given = params.get("OPTIONS") or {}
    for name in given:
        if name not in OPTIONS:
            near = difflib.get_close_matches(str(name).upper(), OPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            _refuse(f"unknown option {name!r}{hint}")
    options = {**OPTIONS, **given}
    for name, least in (("MAX_ENTRIES", 1), ("CULL_FREQUENCY", 0)):
        options[name] = params.get(name, options[name])
        if options[name] is not None:
            options[name] = _number(int, options[name])
            if options[name] is None or options[name] < least:
                _refuse(f"{name} must be a whole number, {least} or more")
    for name in ("MAX_STALENESS", "HEARTBEAT", "RETENTION"):
        options[name] = _number(float, options[name])
        if options[name] is None or not 0 < options[name] < float("inf"):
            _refuse(f"{name} must be a number of seconds above 0")
    if options["HEARTBEAT"] >= options["MAX_STALENESS"]:
        _refuse("HEARTBEAT must be shorter than MAX_STALENESS, or no replica is ever current")
    keys = options["SIGNING_KEYS"]
    if keys is None:
        keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    elif isinstance(keys, str | bytes):
        _refuse("SIGNING_KEYS must be a list of keys, not one key")
    options["SIGNING_KEYS"] = tuple(
        key.decode("latin-1") if isinstance(key, bytes) else str(key) for key in keys
    )
    if not options["SIGNING_KEYS"] or not all(options["SIGNING_KEYS"]):
        _refuse("SIGNING_KEYS must be one or more keys, none of them empty")
    return options


def _number(kind: type[Any], value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds(timeout: Any) -> float:
    seconds = float(timeout)
    if not math.isfinite(seconds):
        raise ValueError("a timeout is a finite number of seconds, or None for never")
    return seconds


def _refuse(message: str) -> NoReturn:
    raise ImproperlyConfigured(f"ReplicatedCache: {message}.")
