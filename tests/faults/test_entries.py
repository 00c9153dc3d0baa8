"""What somebody else writes straight into the engine, and keys that change under way."""

from __future__ import annotations

import os
import pickle
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from accesspass.cache import ReplicatedCache
from accesspass.cache.codec import MsgpackCodec, Seal
from tests.faults.cluster import KEYS, Cluster, Node, Store
from tests.servers import PostgreSQL, Valkey, wait_until

pytestmark = pytest.mark.fault
MakeNode = Callable[..., ReplicatedCache]


def write_raw(store: Store, key: str, value: bytes, revision: int = 0) -> None:
    """Store bytes as the latest version of a key, past every engine of ours."""
    name = f":1:{key}".encode()
    if isinstance(store.server, PostgreSQL):
        store.server.execute(
            "INSERT INTO accesspass_cache (key, seq, revision, value) VALUES (%s, (SELECT "
            "greatest(max(seq), (SELECT floor FROM accesspass_cache_meta)) + 1 "
            "FROM accesspass_cache), %s, %s) ON CONFLICT (sha256(key)) DO UPDATE SET "
            "seq = excluded.seq, revision = excluded.revision, value = excluded.value",
            [name, revision, value],
            database=store.database,
        )
    elif isinstance(store.server, Valkey):
        body = struct.pack(">QdB", revision, 0.0, 0) + value
        script = (
            "local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1) "
            "redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) "
            "redis.call('ZADD', KEYS[3], seq, ARGV[1])"
        )
        keys = [f"{{accesspass}}:{part}" for part in ("meta", "entries", "log")]
        store.server.execute("EVAL", script, 3, *keys, name, body)
    else:
        path = store.location().removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
            connection.execute("UPDATE meta SET seq = seq + 1")
            connection.execute(
                "INSERT INTO entries SELECT seq, ?, ?, NULL, ? FROM meta WHERE true "
                "ON CONFLICT (key) DO UPDATE SET seq = excluded.seq, "
                "revision = excluded.revision, value = excluded.value",
                (name, revision, value),
            )


def sealed(key: str, value: object, revision: int = 0, *, by: str = KEYS[0]) -> bytes:
    """As a node would have stored it for ever."""
    payload = MsgpackCodec().encode(value)
    return Seal([by]).close(f":1:{key}".encode(), revision, None, payload, marker=False)


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def refused(node: Node) -> int:
    return int(node.do("status")["counters"]["refused"])


def test_bad_entries_are_absent_and_counted_and_kill_nobody(
    cluster: Cluster, tmp_path: Path
) -> None:
    trap = tmp_path / "unpickled"
    bad = {
        "empty": b"",
        "garbage": os.urandom(100),
        "truncated": sealed("key", "evil")[:-1],
        "cut within the seal": sealed("key", "evil")[:20],
        "lengthened": sealed("key", "evil") + b"\0",
        "forged": sealed("key", "evil", by="another key"),
        "of another key": sealed("other", "evil"),
        "of another revision": sealed("key", "evil", 7),
        "10 MB": b"\x01" * 10_000_000,
        "of an unknown format": b"\x63" + sealed("key", "evil")[1:],
        "a pickle": pickle.dumps(_Trap(trap)),
        "a pickle in our format": sealed("key", "evil")[:34] + pickle.dumps(_Trap(trap)),
    }
    near, far = cluster.launch(2, deadline=10.0)
    for number, (what, value) in enumerate(bad.items()):
        near.write("set", "key", number)
        far.sees("key", number)
        before = refused(near), refused(far)
        write_raw(cluster.store, "key", value)
        for node, count in zip((near, far), before, strict=True):
            # A replica that grew stale misses too, so it is the counter that tells.
            wait_until(
                lambda node=node, count=count: node.get("key") is None and refused(node) > count
            )
            assert node.get("key") is None, what
        near.write("set", "after", number)
        far.sees("after", number)
    # What nobody can read does not stand in the way of an add.
    near.write("add", "key", "added")
    far.sees("key", "added")
    joiner = cluster.one()
    cluster.converge(nodes=[near, far, joiner])
    assert not trap.exists()


def test_sealed_bytes_of_a_node_are_good_only_as_they_were(cluster: Cluster) -> None:
    """What the other tests write raw is refused for its contents, not for how it came."""
    near, far = cluster.launch(2)
    near.write("set", "key", 1)
    far.sees("key", 1)
    write_raw(cluster.store, "key", sealed("key", "good"))
    for node in (near, far):
        node.sees("key", "good")


def test_a_replayed_publication_brings_nothing_back(cluster: Cluster) -> None:
    """On no node that saw the newer one; who can write to the engine can deceive a new node."""
    near, far = cluster.launch(2)
    near.write("publish", "row", [1, False], revision=1)
    far.sees("row", [1, False])
    near.write("publish", "row", [2, True], revision=2)
    for node in (near, far):
        node.sees("row", [2, True])
    write_raw(cluster.store, "row", sealed("row", [1, False], 1), revision=1)
    near.write("set", "after", 1)
    far.sees("after", 1)
    for node in (near, far):
        assert node.get("row") == [2, True]
    cluster.judge()


def test_a_new_signing_key_is_rolled_out_over_three_nodes_without_a_miss(
    make_node_at: MakeNode, tmp_path: Path
) -> None:
    """Fallback everywhere, then primary everywhere, then the old one goes."""

    def start(keys: list[str]) -> ReplicatedCache:
        node: ReplicatedCache = make_node_at(f"sqlite:///{tmp_path}/log", SIGNING_KEYS=keys)
        return node

    def publish(node: ReplicatedCache, revision: int) -> None:
        assert node.publish("row", revision, revision, 300, node.mark())

    nodes = [start(["old"]) for _ in range(3)]
    revision = 1
    publish(nodes[0], revision)
    nodes[0].set("everlasting", 1)
    for keys in (["old", "new"], ["new", "old"], ["new"]):
        if keys == ["new"]:
            nodes[0].set("everlasting", 2)  # as all that lives on has been by then
        for place in range(3):
            nodes[place] = start(keys)
            for writer in nodes:
                revision += 1
                publish(writer, revision)
                assert [node.get("row") for node in nodes] == [revision] * 3
                assert None not in [node.get("everlasting") for node in nodes]
    assert [node.status()["counters"]["refused"] for node in nodes] == [0, 0, 0]


def test_a_key_that_is_changed_at_once_makes_misses_and_shows_nobody_the_past(
    make_node_at: MakeNode, tmp_path: Path
) -> None:
    old, new = (
        make_node_at(f"sqlite:///{tmp_path}/log", SIGNING_KEYS=[key]) for key in ("old", "new")
    )
    assert old.publish("row", "live", 1, 300, old.mark())
    assert (old.get("row"), new.get("row")) == ("live", None)
    assert new.publish("row", "dead", 2, 300)
    assert (old.get("row"), new.get("row")) == (None, "dead")
    assert old.status()["counters"]["refused"] == 1
