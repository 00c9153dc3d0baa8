"""Processes and messages that stand still, and what has happened meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from accesspass.cache.follower import clock
from tests.faults.checker import differences
from tests.faults.cluster import MAX_STALENESS, Cluster, Node, cluster_on, on_servers

pytestmark = pytest.mark.fault
#: How much longer than ``MAX_STALENESS`` something is held up.
MORE = 0.3


def resyncs(node: Node) -> int:
    return int(node.do("status")["counters"]["resyncs"])


def stop_between_pulls(node: Node) -> None:
    """Stop it, and let the server answer what it had asked, before anything else is written."""
    node.stop()
    time.sleep(0.2)


@pytest.mark.parametrize("seconds", [2.5, pytest.param(10.0, marks=pytest.mark.pipeline)])
def test_a_node_that_stood_still_serves_nothing_old(cluster: Cluster, seconds: float) -> None:
    near, far = cluster.launch(2)
    near.write("set", "key", "old")
    near.write("publish", "row", [1, True], revision=1)
    far.sees("key", "old")
    far.do("start", what="watch", keys=["key", "row"], every=0.001)
    time.sleep(0.2)
    far.stop()
    near.write("set", "key", "new")
    near.write("publish", "row", [2, True], revision=2)
    time.sleep(seconds)
    gone_on = clock()
    far.go()
    far.sees("key", "new")
    far.do("rest")
    history = cluster.judge()
    reads = [op for op in history if op.node == far.name and op.op == "get"]
    assert any(op.result == "old" for op in reads)
    assert {op.result for op in reads if op.key == "key" and op.began > gone_on} <= {"new", None}
    cluster.converge()


def test_a_node_that_stood_still_in_the_middle_of_a_read_serves_nothing_old(
    cluster: Cluster,
) -> None:
    near, far = cluster.launch(2)
    for place in ("before", "after"):  # the value was taken
        near.write("set", "key", place)
        far.sees("key", place)
        far.do("stop_at", place=place)
        far.send("get", key="key")
        far.wait_stopped()
        near.write("delete", "key")
        time.sleep(MAX_STALENESS + MORE)
        far.go()
        assert far.answer()["result"] is None, place
    # Stopped for a moment only, the same read hits.
    near.write("set", "key", "again")
    far.sees("key", "again")
    far.do("stop_at", place="after")
    far.send("get", key="key")
    far.wait_stopped()
    far.go()
    assert far.answer()["result"] == "again"
    cluster.judge()


def test_a_follower_behind_the_floor_starts_again_exactly_once(cluster: Cluster) -> None:
    near, far = cluster.launch(2)
    for number in range(20):
        near.write("set", f"key-{number}", f"value-{number}")
    far.sees("key-19", "value-19")
    before = resyncs(far)
    stop_between_pulls(far)
    for number in range(10):
        near.write("delete", f"key-{number}")
    engine = cluster.store.engine()
    assert engine.purge(engine.changes(0, 0).now + 10, 1000) == 10
    near.write("set", "later", "value")
    far.go()
    far.sees("later", "value")
    log = cluster.converge()
    assert len(log.payloads) == 11
    assert all(far.get(f"key-{number}") is None for number in range(10))
    for number in range(5):
        near.write("set", "later", number)
        far.sees("later", number)
    assert resyncs(far) == before + 1
    assert resyncs(near) == 0
    cluster.judge()


@on_servers
@pytest.mark.parametrize("op", ["set", "publish"])
def test_a_write_frozen_on_the_wire_lands_late_and_only_a_publication_loses(
    cluster: Cluster, op: str
) -> None:
    near, far = cluster.one(), cluster.one(proxied=True, deadline=0.5)
    proxy, outcome = cluster.store.proxy, ""
    late: dict[str, Any] = {"key": "key", "value": [1, False]}
    if op == "publish":
        assert far.do("mark", name="m")
        late |= {"revision": 1, "mark": "m"}
    for _ in range(10):
        far.write("set", "warm", 1)  # so that there is a connection, unless a pull has taken it
        proxy.black_hole(to_client=False)
        outcome = far.do(op, **late)["outcome"]
        if outcome != "unavailable":
            break
        proxy.drop()
        proxy.heal()
    assert outcome == "uncertain"
    if op == "publish":
        near.write("publish", "key", [2, True], revision=2)
    else:
        near.write("set", "key", [2, True])
    proxy.heal()
    # The set shows that it lands: a plain write cannot know that it is late.
    expected = [2, True] if op == "publish" else [1, False]
    near.sees("key", expected)
    far.sees("key", expected)
    time.sleep(0.5)
    assert near.get("key") == far.get("key") == expected
    if op == "publish":
        assert far.do(op, **late)["result"] is False
        log = cluster.converge()
        assert log.entries[b":1:key".hex()].revision == 2
        cluster.judge()


def test_the_deletion_of_an_absent_key_beats_a_fill_that_was_read_before(
    cluster: Cluster,
) -> None:
    near, far = cluster.launch(2)
    fill = {"key": "key", "value": [1, False], "revision": 1, "mark": "m"}
    far.get("key")
    assert far.do("mark", name="m")
    near.write("delete", "key")
    near.write("set", "told", 1)
    far.sees("told", 1)
    assert far.do("fill", **fill)["result"] is False
    assert far.get("key") is None
    # And the other way about: filled first, deleted then.
    assert far.do("mark", name="m")
    assert far.do("fill", **fill)["result"] is True
    assert far.get("key") == [1, False]
    near.write("delete", "key")
    far.sees("key", None)
    cluster.converge()


def test_a_publication_of_before_an_emptying_is_refused_by_its_mark(
    cluster: Cluster,
) -> None:
    near, far = cluster.launch(2)
    near.write("set", "before", 1)
    far.sees("before", 1)
    assert far.do("mark", name="m")
    # Its row is committed here.
    far.stop()
    near.write("publish", "row", [2, True], revision=2)  # another one revokes it
    near.write("clear", "")  # and the marker is lost
    near.write("set", "after", 1)
    far.go()
    done = far.do("publish", key="row", value=[1, False], revision=1, mark="m")
    assert done["result"] is False
    fill = {"key": "row", "value": [1, False], "revision": 1, "mark": "m"}
    assert far.do("fill", **fill)["result"] is False
    far.sees("after", 1)
    assert near.get("row") is None
    assert far.get("row") is None
    assert far.do("fill", **fill)["result"] is False
    assert cluster.converge().value("row") is None
    # And nodes that were current, whose floor says nothing.
    near.write("set", "current", 1)
    far.sees("current", 1)
    near.write("clear", "")
    far.sees("current", None)
    assert cluster.converge().payloads == {}
    cluster.judge()


def test_a_fill_from_before_a_swap_is_refused(cluster: Cluster) -> None:
    """The same epoch, but a replica begun anew: it may have missed a deletion in between."""
    near, far = cluster.launch(2)
    near.write("set", "key", 1)
    far.sees("key", 1)
    assert far.do("mark", name="m")
    before = resyncs(far)
    stop_between_pulls(far)
    near.write("delete", "row")
    engine = cluster.store.engine()
    assert engine.purge(engine.changes(0, 0).now + 10, 1000) == 1
    near.write("set", "key", 2)
    far.go()
    far.sees("key", 2)
    assert resyncs(far) == before + 1
    fill = {"key": "row", "value": [1, False], "revision": 1, "mark": "m"}
    assert far.do("fill", **fill)["result"] is False
    assert far.get("row") is None


def test_who_joins_under_fire_holds_everything_and_its_own_writes(
    cluster: Cluster, seed: int, full: bool
) -> None:
    count = 100_000 if full else 5_000
    writers = cluster.launch(2)
    writers[0].do("preload", count=count)
    for writer in writers:
        writer.do("start", what="work", seed=seed, pause=0.003)
    joiner = cluster.one()
    own = [
        [op, f"mine-{number}", f"mine-{number}" if op == "set" else None]
        for number in range(200)
        for op in ("set", "get")
    ]
    # Its first read joins, while it writes already.
    joiner.do("start", what="watch", keys=["mine-0"], every=0.001)
    joiner.do("take_part", start=clock(), operations=own)
    # On a slow machine it has written everything before it has joined, and misses until then.
    joiner.sees("mine-199", "mine-199")
    joiner.do("rest")
    for writer in writers:
        writer.do("rest")
    time.sleep(0.4)
    log = cluster.converge(within=20.0)
    assert len(log.payloads) >= count
    cluster.judge()


def test_a_node_that_culls_holds_less_and_nothing_older(tmp_path: Path, seed: int) -> None:
    with cluster_on("sqlite", tmp_path) as cluster:
        whole, small = cluster.one(), cluster.one(MAX_ENTRIES=20)
        whole.do("preload", count=100)  # so that there is something to cull at any pace
        for node in (whole, small):
            node.do("start", what="work", seed=seed, pause=0.001)
        time.sleep(1.0)
        for node in (whole, small):
            node.do("rest")
        time.sleep(0.4)
        log = cluster.converge(nodes=[whole])
        dump = small.do("dump")
        assert differences(log, dump, complete=False) == []
        assert 0 < len(dump["entries"]) < len(log.payloads)
