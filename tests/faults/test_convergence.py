"""Anything at once on four nodes, while some stand still and connections are cut."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.checker import lost_writes
from tests.faults.cluster import Cluster

pytestmark = pytest.mark.fault


def test_nodes_converge_and_keep_every_promise_while_some_stand_still_and_links_are_cut(
    cluster: Cluster, seed: int, repetition: int
) -> None:
    rng = random.Random(seed)
    nodes = cluster.launch(4, RETENTION=0.5)
    seconds = 10.0 if repetition else 2.0
    for node in nodes:
        node.do("start", what="work", seed=rng.randrange(10**9), pause=0.004)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.random() * 0.3)
        happening = rng.random()
        if happening < 0.4:
            victim = rng.choice(nodes)
            victim.stop()
            time.sleep(rng.choice([0.05, 0.2, 0.5, 1.3]))
            victim.go()
        elif happening < 0.6:
            cluster.store.terminate_clients()
        elif happening < 0.7:
            rng.choice(nodes).do("clear")
    counts = [node.do("rest") for node in nodes]
    assert min(counts) > 20, counts
    time.sleep(0.4)  # what expires soon has expired
    log = cluster.converge()
    history = cluster.judge()
    assert lost_writes(history, log) == []
    assert any(op.op == "publish" and op.done and not op.value[1] for op in history)
    assert any(op.op == "get" and op.result for op in history)
