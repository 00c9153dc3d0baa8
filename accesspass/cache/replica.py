"""The process-local store. No I/O, no threads, no locks.

Readers call ``get`` from any thread at any time. Whoever writes holds the follower's lock.

An entry is one ``bytes`` object: a fixed header and the payload. Bytes are invisible to the
garbage collector, which otherwise spends most of a second on a million of anything else; and the
entries are spread over many dicts, because one dict stalls its readers when it grows.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Held", "Replica", "opened"]

_SHARDS = 256
# seq, revision, expires, taken, flags
_HEADER = struct.Struct("<QQddB")
_pack, _unpack_from, _SIZE = _HEADER.pack, _HEADER.unpack_from, _HEADER.size
_ABSENT = 1
_MARKER = 2
# How long what is dead is kept here, in seconds, so that few fills are refused for its loss.
_KEEP_DEAD = 60.0
# Expiries are collected in buckets of this many seconds, in parts of so many keys: a dict that
# grows further stalls its readers.
_BUCKET = 30.0
_PART = 40_000
_NEVER = float("inf")
_EMPTY: dict[bytes, None] = {}
_generations = itertools.count(1)


class Held(NamedTuple):
    """One entry as the replica holds it.

    ``expires`` is in seconds of the engine's clock, infinite for never. ``taken`` is minus
    infinity for what came through the log; for a local fill it is the time on the follower's clock
    at which its mark was taken. ``absent`` is a deletion, or an entry whose seal was broken.
    """

    seq: int
    revision: int
    expires: float
    taken: float
    absent: bool
    payload: bytes


# Held(*fields), in half of the time.
_held: Callable[[tuple[object, ...]], Held] = functools.partial(tuple.__new__, Held)


def opened(found: bytes) -> Held:
    """Return what the object says that stands for a key."""
    seq, revision, expires, taken, flags = _unpack_from(found)
    return _held((seq, revision, expires, taken, flags & _ABSENT != 0, found[_SIZE:]))


class Replica:
    """A prefix of one epoch's log, plus this process's own acknowledged writes and fills.

    Args:
        epoch: the epoch it belongs to, ``None`` until a page was seen.
        began: the head of the log when it began.
    """

    __slots__ = (
        "_buckets",
        "_open",
        "_shards",
        "applied",
        "began",
        "epoch",
        "fill_floor",
        "fresh_at",
        "generation",
        "held_bytes",
        "live",
        "stamp",
        "top",
        "vouched",
    )

    def __init__(self, epoch: str | None = None, began: int = 0) -> None:
        self.epoch = epoch
        self.began = began
        #: Tells this replica from every other one of this process.
        self.generation = next(_generations)
        #: The number up to which the log was applied whole.
        self.applied = 0
        #: When the last complete pull was sent, on the follower's clock.
        self.fresh_at = -_NEVER
        #: The engine's stamp from before a question that told nothing new; None if there was none.
        self.stamp: bytes | None = None
        #: Whether the follower's callbacks have run since this replica joined or failed.
        self.vouched = False
        #: How many entries culling counts, and the bytes of all.
        self.live = self.held_bytes = 0
        #: The greatest number held, own writes included.
        self.top = 0
        #: No fill whose mark is older than this: what it would lose to may have been dropped.
        self.fill_floor = 0
        self._shards: tuple[dict[bytes, bytes], ...] = tuple({} for _ in range(_SHARDS))
        self._buckets: dict[tuple[float, int], dict[bytes, None]] = {}
        # Of each bucket the part that the next key goes to.
        self._open: dict[float, dict[bytes, None]] = {}

    # Reading ---------------------------------------------------------------------------------

    def find(self, key: bytes) -> bytes | None:
        """Return the object that stands for a key here until another version replaces it."""
        return self._shards[hash(key) % _SHARDS].get(key)

    def get(self, key: bytes) -> Held | None:
        """Return what is held for a key, dead or alive."""
        found = self.find(key)
        return None if found is None else opened(found)

    @property
    def total(self) -> int:
        """How many entries are held, dead or alive."""
        return sum(map(len, self._shards))

    # Writing ---------------------------------------------------------------------------------

    def put(
        self,
        key: bytes,
        seq: int,
        revision: int,
        expires: float | None,
        payload: bytes | None,
        *,
        marker: bool = False,
        taken: float = -_NEVER,
    ) -> bool:
        """Hold a version unless what is held wins. Returns whether it is held now.

        The greater number wins. Among published versions the greater revision must win too: a
        publication that was replayed gets a new number but keeps its revision. An absence
        (``payload=None``) replaces anything and remembers the revision that it replaced; with the
        number of what is held it makes that forgotten, although the log may deliver it again.
        """
        shard = self._shards[hash(key) % _SHARDS]
        old = shard.get(key)
        if old is not None:
            old_seq, old_revision, _, _, _ = _unpack_from(old)
            again = seq == old_seq and payload is not None and taken == -_NEVER
            if seq < old_seq or again:
                return False
            if payload is None:
                revision = old_revision
            elif revision and revision < old_revision:
                return False
            self._forget(key, old)
        if payload is None:
            flags, payload = _ABSENT, b""
        else:
            flags = _MARKER if marker else 0
        new = _pack(seq, revision, _NEVER if expires is None else expires, taken, flags) + payload
        shard[key] = new
        self.held_bytes += len(key) + len(new)
        if not flags:
            self.live += 1
        if seq > self.top:
            self.top = seq
        if expires is not None and expires != _NEVER:
            bucket = self._open.get(expires // _BUCKET)
            if bucket is None or len(bucket) >= _PART:
                bucket = self._open_part(expires // _BUCKET)
            bucket[key] = None
        return True

    def _open_part(self, number: float) -> dict[bytes, None]:
        """Return a part of a bucket that has room."""
        part = 0
        while len(self._buckets.get((number, part), _EMPTY)) >= _PART:
            part += 1
        bucket = self._open[number] = self._buckets.setdefault((number, part), {})
        return bucket

    def fill(
        self,
        key: bytes,
        seq: int,
        revision: int,
        expires: float,
        payload: bytes,
        *,
        marker: bool,
        taken: float,
    ) -> bool:
        """Hold what was read elsewhere while the log stood at ``seq``. Returns whether it is held.

        It loses to everything that the log has said of the key since, and to every revision that
        is not smaller than its own.
        """
        if seq < self.fill_floor:
            return False
        held = self.get(key)
        if held is not None and (
            held.seq > seq
            or held.revision > revision
            or (held.revision == revision and not held.absent)
        ):
            return False
        return self.put(key, seq, revision, expires, payload, marker=marker, taken=taken)

    def drop(self, key: bytes) -> None:
        """Let go of a key, as if it had never been seen."""
        old = self._shards[hash(key) % _SHARDS].pop(key, None)
        if old is not None:
            self._forget(key, old)

    def cull(self, limit: int, frequency: int) -> int:
        """Make room where ``limit`` entries are held: drop one in ``frequency``, all of them at 0.

        Absences and markers are neither counted nor dropped. Returns how many were dropped.
        """
        if self.live < limit or not self.live:
            return 0
        wanted = self.live if frequency == 0 else max(1, self.live // frequency)
        self.fill_floor = self.top
        victims = list(itertools.islice(self._ordinary_keys(), wanted))
        for key in victims:
            self.drop(key)
        return len(victims)

    def expire(self, now: float, limit: int) -> int:
        """Drop at most ``limit`` entries of those that have been dead for a while.

        Args:
            now: the engine's clock, in seconds.
        """
        due = (now - _KEEP_DEAD) // _BUCKET
        overdue = sorted(place for place in self._buckets if place[0] < due)
        keys = itertools.chain.from_iterable(self._buckets[place] for place in overdue)
        victims = list(itertools.islice(keys, limit))
        for key in victims:
            held = self.get(key)
            if held is not None:
                self.fill_floor = max(self.fill_floor, held.seq)
            self.drop(key)
        return len(victims)

    def _ordinary_keys(self) -> Iterable[bytes]:
        for shard in self._shards:
            for key, held in shard.items():
                if not held[_SIZE - 1]:
                    yield key

    def _forget(self, key: bytes, old: bytes) -> None:
        _, _, until, _, flags = _unpack_from(old)
        self.held_bytes -= len(key) + len(old)
        self.live -= not flags
        if until != _NEVER:
            number, part = until // _BUCKET, 0
            # A part before the one that has it may be gone.
            while key not in (bucket := self._buckets.get((number, part), _EMPTY)):
                part += 1
            del bucket[key]
            if not bucket:
                del self._buckets[number, part]
                if self._open.get(number) is bucket:
                    del self._open[number]
