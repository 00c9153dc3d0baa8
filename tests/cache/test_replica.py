"""The replica against a model that is too simple to be wrong."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accesspass.cache.replica import Held, Replica

NEVER = float("inf")
LOG = float("-inf")
KEYS = [b"a", b"b", b"c", b"d"]


class Put(NamedTuple):
    key: bytes
    seq: int
    revision: int
    expires: float | None
    payload: bytes | None
    marker: bool = False


class Fill(NamedTuple):
    key: bytes
    seq: int
    revision: int
    expires: float
    payload: bytes
    marker: bool
    taken: float


class Drop(NamedTuple):
    key: bytes


class Cull(NamedTuple):
    limit: int
    frequency: int


class Expire(NamedTuple):
    now: float


Step = Put | Fill | Drop | Cull | Expire


@dataclasses.dataclass(frozen=True)
class Version:
    seq: int
    revision: int
    expires: float
    taken: float
    payload: bytes | None
    marker: bool

    @property
    def counts(self) -> bool:
        return self.payload is not None and not self.marker


class Model:
    """One dict, and every rule written out as the design says it."""

    def __init__(self) -> None:
        self.held: dict[bytes, Version] = {}
        self.floor = 0
        self.top = 0

    def put(self, step: Put) -> bool:
        old = self.held.get(step.key)
        revision = step.revision
        if old is not None:
            if step.seq < old.seq:
                return False
            if step.payload is None:
                revision = old.revision
            elif step.seq == old.seq or 0 < step.revision < old.revision:
                return False
        expires = NEVER if step.expires is None else step.expires
        self._hold(step.key, Version(step.seq, revision, expires, LOG, step.payload, step.marker))
        return True

    def fill(self, step: Fill) -> bool:
        old = self.held.get(step.key)
        if step.seq < self.floor:
            return False
        if old is not None:
            if old.seq > step.seq or old.revision > step.revision:
                return False
            if old.revision == step.revision and old.payload is not None:
                return False
        new = Version(step.seq, step.revision, step.expires, step.taken, step.payload, step.marker)
        self._hold(step.key, new)
        return True

    def _hold(self, key: bytes, version: Version) -> None:
        self.held[key] = version
        self.top = max(self.top, version.seq)


times = st.sampled_from([0.0, 29.9, 30.0, 59.0, 61.0, 100.0, 500.0])
seqs = st.integers(1, 12)
revisions = st.integers(0, 5)
puts = st.builds(
    Put,
    st.sampled_from(KEYS),
    seqs,
    revisions,
    st.none() | times,
    st.none() | st.binary(max_size=3),
).flatmap(lambda put: st.booleans().map(lambda m: put._replace(marker=m and bool(put.payload))))
fills = st.builds(
    Fill,
    st.sampled_from(KEYS),
    seqs,
    st.integers(1, 5),
    times,
    st.binary(max_size=3),
    st.booleans(),
    st.floats(0, 1000),
)
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        puts,
        puts,
        fills,
        st.builds(Drop, st.sampled_from(KEYS)),
        st.builds(Cull, st.integers(0, 5), st.integers(0, 3)),
        st.builds(Expire, st.sampled_from([0.0, 90.0, 119.0, 120.0, 130.0, 700.0])),
    ),
    max_size=40,
)


def agree(replica: Replica, model: Model) -> None:
    for key in KEYS:
        held, version = replica.get(key), model.held.get(key)
        if version is None:
            assert held is None
        else:
            assert held == Held(
                version.seq,
                version.revision,
                version.expires,
                version.taken,
                version.payload is None,
                version.payload or b"",
            )
    assert replica.total == len(model.held)
    assert replica.live == sum(version.counts for version in model.held.values())
    header = 33
    assert replica.held_bytes == sum(
        len(key) + header + len(version.payload or b"") for key, version in model.held.items()
    )
    assert replica.fill_floor == model.floor
    in_buckets = sorted(key for bucket in replica._buckets.values() for key in bucket)
    assert in_buckets == sorted(key for key, v in model.held.items() if v.expires != NEVER)
    assert all(replica._buckets.values())  # none is kept empty


@settings(max_examples=400, deadline=None)
@given(steps)
def test_a_replica_does_what_the_model_does(story: list[Step]) -> None:
    replica, model = Replica("epoch"), Model()
    for step in story:
        if isinstance(step, Put):
            assert replica.put(
                step.key, step.seq, step.revision, step.expires, step.payload, marker=step.marker
            ) == model.put(step)
        elif isinstance(step, Fill):
            assert replica.fill(
                step.key,
                step.seq,
                step.revision,
                step.expires,
                step.payload,
                marker=step.marker,
                taken=step.taken,
            ) == model.fill(step)
        elif isinstance(step, Drop):
            replica.drop(step.key)
            model.held.pop(step.key, None)
        elif isinstance(step, Cull):
            before = {key for key, version in model.held.items() if version.counts}
            culled = replica.cull(step.limit, step.frequency)
            if len(before) < step.limit or not before:
                assert culled == 0
            else:
                expected = max(1, len(before) // step.frequency) if step.frequency else len(before)
                assert culled == expected
                model.floor = model.top
            # Which ones is its own affair, as long as they are ordinary entries.
            victims = {key for key in before if replica.get(key) is None}
            assert len(victims) == culled
            for key in victims:
                del model.held[key]
        else:
            dead = [
                key
                for key, version in model.held.items()
                if version.expires // 30 < (step.now - 60) // 30
            ]
            assert replica.expire(step.now, 1000) == len(dead)
            for key in dead:
                model.floor = max(model.floor, model.held.pop(key).seq)
        agree(replica, model)


@settings(max_examples=100, deadline=None)
@given(st.permutations([(seq, b"%d" % seq) for seq in range(1, 7)]))
def test_in_whatever_order_versions_come_the_latest_is_held(
    versions: list[tuple[int, bytes]],
) -> None:
    replica = Replica("epoch")
    for seq, payload in versions:
        replica.put(b"key", seq, 0, None, payload)
        replica.put(b"key", seq, 0, None, payload)
    held = replica.get(b"key")
    assert held is not None
    assert (held.seq, held.payload) == (6, b"6")
    assert (replica.total, replica.live) == (1, 1)


def test_expiry_looks_at_no_more_than_its_limit_and_goes_on_later() -> None:
    replica = Replica("epoch")
    for number in range(10):
        replica.put(b"%d" % number, number + 1, 0, float(number), b"v")
    assert replica.expire(10_000.0, 4) == 4
    assert replica.total == 6
    assert replica.expire(10_000.0, 4) == 4
    assert replica.expire(10_000.0, 4) == 2
    assert (replica.total, replica.held_bytes, replica._buckets) == (0, 0, {})


def test_what_just_died_is_kept_so_that_its_revision_is_known() -> None:
    replica = Replica("epoch")
    replica.put(b"key", 1, 5, 100.0, b"v")
    assert replica.expire(150.0, 10) == 0
    assert not replica.fill(b"key", 1, 4, 200.0, b"older", marker=False, taken=0.0)


def test_a_key_written_again_and_again_stands_in_one_bucket() -> None:
    replica = Replica("epoch")
    for seq in range(1, 2000):
        replica.put(b"key", seq, 0, seq * 30.0, b"v")
    assert sum(len(bucket) for bucket in replica._buckets.values()) == 1
    assert len(replica._buckets) == 1


def test_what_never_expires_is_in_no_bucket() -> None:
    replica = Replica("epoch")
    replica.put(b"key", 1, 0, None, b"v")
    assert replica._buckets == {}
    assert replica.expire(1e12, 10) == 0


def test_a_fill_from_before_a_lost_version_is_refused() -> None:
    replica = Replica("epoch")
    replica.put(b"key", 5, 9, 10.0, None)
    assert replica.expire(1_000.0, 10) == 1
    assert not replica.fill(b"key", 4, 1, 2_000.0, b"v", marker=False, taken=0.0)
    assert replica.fill(b"key", 5, 1, 2_000.0, b"v", marker=False, taken=0.0)


def test_generations_differ() -> None:
    assert Replica().generation != Replica().generation


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_payloads_of_any_size_come_back(size: int) -> None:
    replica = Replica("epoch")
    replica.put(b"key", 2**63, 2**63 - 1, 1e300, b"x" * size)
    assert replica.get(b"key") == Held(2**63, 2**63 - 1, 1e300, LOG, False, b"x" * size)


def test_keys_that_expire_together_stand_in_several_small_dicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One dict for all would stall readers each time it grows."""
    monkeypatch.setattr("accesspass.cache.replica._PART", 2)
    replica = Replica("epoch")
    keys = [b"%d" % number for number in range(7)]
    for seq, key in enumerate(keys, 1):
        replica.put(key, seq, 0, 1e300, b"v")
    assert [len(bucket) for bucket in replica._buckets.values()] == [2, 2, 2, 1]
    for key in (b"2", b"3", b"6", b"0"):  # a whole part in the middle, the last one, half of one
        replica.drop(key)
    assert sorted(key for bucket in replica._buckets.values() for key in bucket) == [
        b"1",
        b"4",
        b"5",
    ]
    replica.put(b"2", 8, 0, 1e300, b"v")
    assert replica.expire(1e301, 10) == 4
    assert (replica.total, replica.held_bytes, replica._buckets) == (0, 0, {})
