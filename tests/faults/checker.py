"""Judges what nodes wrote down, and compares their replicas with the engine.

Each rule reads a history and yields what broke it. A history is a list of ``Op``; an operation
that never returned has an infinite ``ended`` and the outcome ``pending``, and may have happened.

What every value tells is which write stored it: registers never get the same value twice, and a
published value is ``[revision, dead]``.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accesspass.cache.codec import MsgpackCodec, Seal
from accesspass.cache.engines.base import Engine, Entry

__all__ = ["RULES", "Log", "Op", "differences", "lost_writes", "read_history", "violations"]

_WRITES = {"set", "add", "delete", "clear"}


@dataclass(frozen=True)
class Op:
    """One operation on one node. Times are in seconds on a clock that all nodes share."""

    node: str
    op: str
    key: str
    began: float
    ended: float = math.inf
    outcome: str = "done"
    value: Any = None
    result: Any = None
    epoch: str | None = None
    seq: int | None = None
    revision: int = 0
    timeout: float | None = None
    fresh: bool = False

    @property
    def done(self) -> bool:
        return self.outcome == "done"

    @property
    def unknown(self) -> bool:
        return self.outcome in ("uncertain", "pending")

    def __str__(self) -> str:
        return (
            f"{self.node} {self.op} {self.key} {self.value!r} -> {self.outcome} {self.result!r} "
            f"[{self.began:.4f}, {self.ended:.4f}] epoch {self.epoch} seq {self.seq}"
        )


def read_history(paths: Iterable[Path]) -> list[Op]:
    """Read what nodes wrote down, in the order in which they began it."""
    names = set(Op.__dataclass_fields__)
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_bytes().splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            found[said["id"]] = {"outcome": "pending", **said}
    ops = [
        Op(**{name: value for name, value in said.items() if name in names})
        for said in found.values()
    ]
    return sorted(ops, key=lambda op: op.began)


def _by_key(history: Sequence[Op]) -> dict[str, list[Op]]:
    found: dict[str, list[Op]] = defaultdict(list)
    clears = [op for op in history if op.op == "clear"]
    for op in history:
        if op.op != "clear":
            found[op.key].append(op)
    return {key: sorted([*ops, *clears], key=lambda op: op.began) for key, ops in found.items()}


def _registers(history: Sequence[Op]) -> Iterator[tuple[str, list[Op]]]:
    special = {op.key for op in history if op.op in ("incr", "publish", "fill")}
    for key, ops in _by_key(history).items():
        if key not in special:
            yield key, ops


def _published(history: Sequence[Op]) -> Iterator[tuple[str, list[Op]]]:
    special = {op.key for op in history if op.op in ("publish", "fill")}
    for key, ops in _by_key(history).items():
        if key in special:
            yield key, ops


def _hits(ops: Iterable[Op]) -> Iterator[Op]:
    return (op for op in ops if op.op == "get" and op.done and op.result is not None)


# Registers ------------------------------------------------------------------------------------


def nothing_from_nowhere(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """A value was written by somebody, and not after it was read."""
    for _, ops in _registers(history):
        written = {op.value: op for op in ops if op.op in ("set", "add")}
        for hit in _hits(ops):
            write = written.get(hit.result)
            if write is None or write.outcome in ("refused", "unavailable"):
                yield f"nobody wrote it: {hit}"
            elif write.began > hit.ended:
                yield f"it was read before it was written: {hit}"
    for _, ops in _published(history):
        said = {op.revision: op.began for op in reversed(ops) if op.op in ("publish", "fill")}
        for hit in _hits(ops):
            if said.get(hit.result[0], math.inf) > hit.ended:
                yield f"nobody published it: {hit}"


def no_stale_hit(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """S4: what was overwritten is not read ``max_staleness`` after that was acknowledged."""
    for _, ops in _registers(history):
        writes = [op for op in ops if op.op in _WRITES]
        happened = {id(write): write.ended if write.done else math.inf for write in writes}
        of_value = {write.value: write for write in writes if write.value is not None}
        for hit in _hits(ops):  # to have been read is to have happened
            write = of_value.get(hit.result)
            if write is not None:
                happened[id(write)] = min(happened[id(write)], hit.ended)
        for value, write in of_value.items():
            later = [
                other
                for other in writes
                if other.done and _after(other, write, happened[id(write)])
            ]
            if not later:
                continue
            doom = min(later, key=lambda op: op.ended)
            for hit in _hits(ops):
                if hit.result == value and hit.began > doom.ended + max_staleness:
                    late = hit.began - doom.ended
                    yield f"stale by {late:.3f} s: {hit}, overwritten by {doom}"
    for _, ops in _published(history):
        publications = [op for op in ops if op.op == "publish" and op.done]
        for hit in _hits(ops):
            for other in publications:
                late = hit.began - other.ended
                if other.revision > hit.result[0] and late > max_staleness:
                    yield f"stale by {late:.3f} s: {hit}, after {other}"


def _after(other: Op, write: Op, happened: float) -> bool:
    """Whether ``other`` certainly overwrote ``write``."""
    if other is write:
        return False
    if write.done and None not in (write.seq, other.seq) and write.epoch == other.epoch:
        return (other.seq or 0) > (write.seq or 0)
    return other.began > happened


def _observed(ops: Sequence[Op], what: Callable[[Op], Any]) -> Iterator[tuple[Op, list[Any]]]:
    """Each hit with what the same node had observed before it began."""
    for node in {op.node for op in ops}:
        own = [op for op in ops if op.node == node]
        ended = sorted((op for op in own if op.done), key=lambda op: op.ended)
        known: list[Any] = []
        place = 0
        for hit in _hits(own):
            while place < len(ended) and ended[place].ended <= hit.began:
                found = what(ended[place])
                if found is not None:
                    known.append(found)
                place += 1
            yield hit, known


def never_backwards(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """S2, and half of S3: within an epoch a node never reads what is older than it knew."""
    for _, ops in _registers(history):
        numbers = {
            op.value: (op.epoch, op.seq)
            for op in ops
            if op.op in ("set", "add") and op.done and op.seq is not None
        }

        def number(op: Op, numbers: Mapping[Any, Any] = numbers) -> tuple[str | None, int] | None:
            if op.op == "get":
                found: tuple[str | None, int] | None = numbers.get(op.result)
                return found
            return None if op.op == "clear" or op.seq is None else (op.epoch, op.seq)

        tops: dict[tuple[str, str | None], int] = {}
        consumed: dict[str, int] = defaultdict(int)
        for hit, known in _observed(ops, number):
            for epoch, seq in known[consumed[hit.node] :]:
                tops[hit.node, epoch] = max(tops.get((hit.node, epoch), 0), seq)
            consumed[hit.node] = len(known)
            if hit.result in numbers:
                epoch, seq = numbers[hit.result]
                if seq < tops.get((hit.node, epoch), 0):
                    yield f"back to {seq} from {tops[hit.node, epoch]}: {hit}"


def own_writes_are_read(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """S3: a fresh node that was the last to write a key does not miss it."""
    for _, ops in _registers(history):
        writes = [op for op in ops if op.op in _WRITES and op.outcome != "unavailable"]
        for miss in ops:
            if miss.op != "get" or not miss.done or miss.result is not None or not miss.fresh:
                continue
            own = [w for w in writes if w.node == miss.node and w.done and w.ended <= miss.began]
            if not own:
                continue
            last = own[-1]
            if last.op not in ("set", "add") or last.timeout is not None:
                continue
            if last.epoch != miss.epoch or last.seq is None:
                continue
            overtaken = any(
                other is not last
                and other.began < miss.ended
                and other.outcome != "refused"
                and not (other.done and other.epoch == last.epoch and (other.seq or 0) < last.seq)
                for other in writes
            )
            if not overtaken:
                yield f"its own write is missing: {miss}, after {last}"


# add and incr ----------------------------------------------------------------------------------


def one_winner(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """S1: of all that ``add`` a key that nobody deletes, one wins in each epoch."""
    for key, ops in _by_key(history).items():
        if any(op.op in ("set", "delete") for op in ops):
            continue
        adds = [op for op in ops if op.op == "add"]
        winners: dict[str | None, list[Op]] = defaultdict(list)
        for op in adds:
            if op.done:
                winners[op.epoch].append(op)
        for epoch, won in winners.items():
            if len(won) > 1:
                yield f"{len(won)} winners of {key} in epoch {epoch}: {won[0]}, {won[1]}"
        refused = any(op.outcome == "refused" for op in adds)
        if refused and not winners and not any(op.unknown for op in adds):
            yield f"nobody won {key}"


def exact_counts(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """S1: in each epoch ``incr`` returns each number once, and later ones return greater ones."""
    for _, ops in _by_key(history).items():
        counted = [op for op in ops if op.op == "incr" and op.done]
        for epoch in {op.epoch for op in counted}:
            results: dict[Any, Op] = {}
            within = [op for op in counted if op.epoch == epoch]
            ended = sorted(within, key=lambda op: op.ended)
            place, top = 0, 0
            for op in within:
                while place < len(ended) and ended[place].ended < op.began:
                    top = max(top, ended[place].result)
                    place += 1
                if op.result in results:
                    yield f"the same number twice: {op}, {results[op.result]}"
                if op.result <= top:
                    yield f"not greater than {top}: {op}"
                results[op.result] = op


# Publications ----------------------------------------------------------------------------------


def revisions_only_grow(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """On no node, in no epoch, is a published revision followed by an older one."""
    for _, ops in _published(history):

        def revision(op: Op) -> int | None:
            if op.op == "get":
                return int(op.result[0]) if op.result is not None else None
            return op.revision if op.op in ("publish", "fill") else None

        for hit, known in _observed(ops, revision):
            if known and hit.result[0] < max(known):
                yield f"back from revision {max(known)}: {hit}"


def revoked_stays_revoked(history: Sequence[Op], max_staleness: float) -> Iterator[str]:
    """A node that has seen that something is dead never sees it alive again."""
    for _, ops in _published(history):

        def dead(op: Op) -> bool | None:
            if op.op == "get" and op.result is not None and op.result[1]:
                return True
            return True if op.op == "publish" and op.value[1] else None

        for hit, known in _observed(ops, dead):
            if known and not hit.result[1]:
                yield f"back from the dead: {hit}"


RULES = (
    nothing_from_nowhere,
    no_stale_hit,
    never_backwards,
    own_writes_are_read,
    one_winner,
    exact_counts,
    revisions_only_grow,
    revoked_stays_revoked,
)


def violations(history: Sequence[Op], max_staleness: float) -> list[str]:
    """Return what broke a rule."""
    return [f"{rule.__name__}: {said}" for rule in RULES for said in rule(history, max_staleness)]


# The end ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """What an engine holds: every latest version, by key, and which of them can be read.

    What was dead for long is purged; all of that is numbered up to ``floor``.
    """

    epoch: str
    now: float
    entries: Mapping[str, Entry]
    payloads: Mapping[str, bytes]
    floor: int = 0

    @classmethod
    def of(cls, engine: Engine, keys: Sequence[str]) -> Log:
        seal = Seal(keys)
        entries: dict[str, Entry] = {}
        after, epoch, more = 0, "", True
        while more:
            page = engine.changes(after, engine.page_size)
            if epoch and page.epoch != epoch:
                return cls.of(engine, keys)
            epoch, more = page.epoch, page.more
            entries.update({entry.key.hex(): entry for entry in page.changes})
            after = page.changes[-1].seq if page.more else page.head
        payloads = {}
        for key, entry in entries.items():
            opened = seal.open(entry)
            if opened is not None and (entry.expires is None or entry.expires > page.now):
                payloads[key] = opened.payload
        return cls(epoch, page.now, entries, payloads, page.floor)

    def value(self, key: str) -> Any:
        """What can be read under a key of a cache without prefix, ``None`` if nothing."""
        payload = self.payloads.get(f":1:{key}".encode().hex())
        return None if payload is None else MsgpackCodec().decode(payload)


def differences(log: Log, dump: Mapping[str, Any], *, complete: bool = True) -> list[str]:
    """Say where a replica (``Node.dump``) differs from the engine.

    Args:
        complete: whether the replica must hold all; one that culls may hold less.
    """
    if dump["epoch"] != log.epoch:
        return [f"epoch {dump['epoch']} instead of {log.epoch}"]
    found = []
    for key, (seq, revision, payload, filled) in dump["entries"].items():
        entry = log.entries.get(key)
        name = bytes.fromhex(key).decode(errors="replace")
        if filled:
            # A publication that never reached the engine may have left the row ahead of the log:
            # then the fill is the newer one of the two, and stays.
            if entry is None or entry.seq <= seq:
                continue
            if entry.value is None or entry.revision >= revision:
                found.append(
                    f"{name}: a fill at {seq} of revision {revision} under version {entry.seq} "
                    f"of revision {entry.revision}"
                )
            continue
        if entry is None:
            found.append(f"{name}: held at {seq}, unknown to the engine")
        elif (entry.seq, entry.revision) != (seq, revision):
            found.append(f"{name}: version {seq} instead of {entry.seq}")
        elif log.payloads.get(key) != bytes.fromhex(payload):
            found.append(f"{name}: another payload at {seq}")
    if complete:
        for key in log.payloads.keys() - dump["entries"].keys():
            found.append(f"{bytes.fromhex(key).decode(errors='replace')}: missing")
    return found


def lost_writes(history: Sequence[Op], log: Log) -> list[str]:
    """Say which acknowledged writes of the engine's epoch its end does not show."""
    found = []
    for key, ops in _by_key(history).items():
        entry = log.entries.get(f":1:{key}".encode().hex())
        acknowledged = [
            op
            for op in ops
            if op.done and op.op != "get" and op.op != "fill" and op.epoch == log.epoch
        ]
        numbered = [op for op in acknowledged if op.seq is not None and op.op != "clear"]
        if entry is not None:
            seq = entry.seq
        elif numbered and _may_be_purged(max(numbered, key=lambda op: op.seq or 0), ops):
            seq = log.floor
        else:
            seq = 0
        for op in numbered:
            assert op.seq is not None
            if op.seq > seq and not (op.op == "publish" and _refused(op)):
                found.append(f"lost: {op}; the engine has {seq}")
            elif op.seq == seq and op.op == "set" and op.timeout is None:  # noqa: SIM102
                if log.value(key) != op.value:
                    found.append(f"changed: {op}; the engine has {log.value(key)!r}")
        counted = [op for op in acknowledged if op.op == "incr"]
        if counted:
            maybe = sum(1 for op in ops if op.op == "incr" and op.unknown)
            value = log.value(key)
            if not len(counted) <= value <= len(counted) + maybe:
                found.append(f"{key} is {value} after {len(counted)} and perhaps {maybe} more")
    return found


def _may_be_purged(last: Op, ops: Sequence[Op]) -> bool:
    """Whether a key whose last acknowledged write this is can be dead."""
    return (
        last.op == "delete"
        or last.timeout is not None
        or any(op.unknown and (op.op == "delete" or op.timeout is not None) for op in ops)
    )


def _refused(op: Op) -> bool:
    """A repeated publication is acknowledged with the head of the log, not with its number."""
    return op.result is True and op.op == "publish"
