"""S1: writes are linearizable, whoever races and whatever answer is lost."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from accesspass.cache.follower import clock
from tests.faults.checker import lost_writes
from tests.faults.cluster import Cluster, Node, on_servers

pytestmark = pytest.mark.fault


def lose_the_answer(cluster: Cluster, node: Node, do: str, **arguments: Any) -> None:
    """Have a node write something that is carried out and never answered."""
    for _ in range(10):
        node.write("set", "warm", 1)  # so that there is a connection, unless a pull has taken it
        cluster.store.proxy.black_hole(to_server=False)
        began = time.monotonic()
        outcome = node.do(do, **arguments)["outcome"]
        assert time.monotonic() - began < 3
        cluster.store.proxy.drop()
        cluster.store.proxy.heal()
        if outcome != "unavailable":
            break
    assert outcome == "uncertain"


def race(nodes: list[Node], operations: list[list[list[object]]]) -> None:
    """Have each node do its operations, all beginning at the same time."""
    start = clock() + 0.5
    for node, own in zip(nodes, operations, strict=True):
        node.do("start", what="take_part", start=start, operations=own)
    for node in nodes:
        node.send("finish")
    for node in nodes:
        node.answer()


def test_of_eight_processes_that_add_the_same_keys_one_wins_each(
    cluster: Cluster, seed: int, repetition: int
) -> None:
    rng = random.Random(seed)
    count = 500 if repetition else 120
    # SQLite's lock is not fair: under a race of eight some wait longer than two seconds.
    nodes = cluster.launch(8, deadline=20.0)
    # On a busy machine one of them may be done before the others get a processor: then once more.
    for attempt in range(5):
        keys = [f"key-{attempt}-{number}" for number in range(count)]
        # Not in one order, or whoever is ahead once wins all the rest; and not in any order at all,
        # or nobody meets.
        operations = []
        for node in nodes:
            places = {key: number + rng.random() * 20 for number, key in enumerate(keys)}
            own = sorted(keys, key=places.__getitem__)
            operations.append([["add", key, f"{node.name}:{key}"] for key in own])
        race(nodes, operations)
        adds = [op for op in cluster.judge() if op.op == "add" and op.key in set(keys)]
        assert len(adds) == 8 * count
        winners = {op.key: op for op in adds if op.done}
        assert sorted(winners) == sorted(keys)
        assert sum(op.done for op in adds) == count
        assert {op.outcome for op in adds} == {"done", "refused"}
        if len({op.node for op in winners.values()}) > 1:
            return
    pytest.fail("there was no race")
    log = cluster.converge()
    assert {key: log.value(key) for key in keys} == {key: op.value for key, op in winners.items()}


def test_incr_is_exact_under_four_processes(cluster: Cluster, repetition: int) -> None:
    count = 200 if repetition else 60
    nodes = cluster.launch(4, deadline=20.0)
    nodes[0].write("set", "counter", 0)
    for node in nodes:
        node.sees("counter", 0)
    race(nodes, [[["incr", "counter", None]] * count for _ in nodes])
    counted = [op for op in cluster.history() if op.op == "incr"]
    assert {op.outcome for op in counted} == {"done"}
    assert sorted(op.result for op in counted) == list(range(1, 4 * count + 1))
    assert cluster.converge().value("counter") == 4 * count
    for node in nodes:
        assert node.get("counter") == 4 * count


@on_servers
@pytest.mark.parametrize("op", ["add", "incr"])
def test_a_lost_answer_is_reported_and_what_was_asked_happens_once(
    cluster: Cluster, op: str
) -> None:
    near, far = cluster.one(), cluster.one(proxied=True, deadline=0.5)
    near.write("set", "key", 5)
    far.sees("key", 5)
    epoch = cluster.converge().epoch
    key = "other" if op == "add" else "key"
    lose_the_answer(cluster, far, op, key=key, value=None if op == "incr" else 7)
    near.sees(key, 6 if op == "incr" else 7)
    far.sees(key, 6 if op == "incr" else 7)
    after = cluster.converge()
    assert after.epoch == epoch
    warm, written = (after.entries[f":1:{name}".encode().hex()].seq for name in ("warm", key))
    assert written == warm + 1
    assert lost_writes(cluster.judge(), after) == []


@on_servers
def test_a_publication_whose_answer_is_lost_is_repeated_and_counts_once(cluster: Cluster) -> None:
    near, far = cluster.one(), cluster.one(proxied=True, deadline=0.5)
    assert far.do("mark", name="m")
    row = {"key": "row", "value": [1, False], "revision": 1, "mark": "m"}
    lose_the_answer(cluster, far, "publish", **row)
    near.sees("row", [1, False])
    written = cluster.converge().entries[b":1:row".hex()]
    again = far.do("publish", **row)
    assert again["result"] is True
    assert cluster.converge().entries[b":1:row".hex()] == written
    cluster.judge()
