"""Servers that die, freeze, are cut off, replaced or restored."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from accesspass.cache import ReplicatedCache
from accesspass.cache.follower import clock
from tests.faults.checker import Op, lost_writes
from tests.faults.cluster import (
    MAX_STALENESS,
    Cluster,
    Node,
    cluster_on,
    on_private_servers,
    on_servers,
)
from tests.servers import HOST, PostgreSQL, Proxy, Valkey, wait_until

pytestmark = pytest.mark.fault
#: Within how many seconds a node answers again after its server does.
HEALED = 2.0
#: What it adds if a call is under way that has to end first.
DEADLINE = 0.5


def all_fresh(nodes: list[Node], within: float) -> None:
    give_up = time.monotonic() + within
    waiting = list(nodes)
    while waiting:
        waiting = [node for node in waiting if not node.is_fresh()]
        assert time.monotonic() < give_up, f"not fresh: {[node.name for node in waiting]}"
        time.sleep(0.01)


@contextlib.contextmanager
def at_work(nodes: list[Node], seed: int) -> Iterator[None]:
    rng = random.Random(seed)
    for node in nodes:
        node.do("start", what="work", seed=rng.randrange(10**9), pause=0.003)
    yield
    for node in nodes:
        node.do("rest")


def acknowledged(cluster: Cluster) -> int:
    return sum(op.done and op.seq is not None for op in cluster.history())


def hits(history: list[Op], node: Node, since: float) -> list[Op]:
    found = [op for op in history if op.node == node.name and op.op == "get"]
    return [op for op in found if op.result is not None and op.began > since]


@on_private_servers
def test_a_server_killed_and_started_again_under_load_has_lost_nothing(
    private_cluster: Cluster, seed: int, repetition: int
) -> None:
    """PostgreSQL goes on; Valkey, which has no identity of its own, begins an epoch instead."""
    cluster = private_cluster
    server = cluster.store.server
    assert server is not None
    nodes = cluster.launch(3)
    nodes[0].write("set", "first", 1)
    first = cluster.converge()
    with at_work(nodes, seed):
        for _ in range(5 if repetition else 2):
            before = acknowledged(cluster)
            wait_until(lambda before=before: acknowledged(cluster) > before + 60, every=0.1)
            server.kill()
            time.sleep(0.1)
            server.start()
            all_fresh(nodes, HEALED)
    log = cluster.converge()
    history = cluster.judge()
    assert lost_writes(history, log) == []
    if isinstance(server, PostgreSQL):
        assert log.epoch == first.epoch
        assert {op.epoch for op in history if op.done and op.seq is not None} == {first.epoch}
        assert log.value("first") == 1
    else:
        assert log.epoch != first.epoch
        assert log.value("first") is None


@on_private_servers
@pytest.mark.parametrize(
    "fault", ["black hole", pytest.param("frozen server", marks=pytest.mark.pipeline)]
)
def test_a_deleted_key_is_never_hit_after_max_staleness_and_the_node_heals(
    private_cluster: Cluster, fault: str
) -> None:
    cluster = private_cluster
    server, proxy = cluster.store.server, cluster.store.proxy
    assert server is not None
    near, far = cluster.one(deadline=DEADLINE), cluster.one(proxied=True, deadline=DEADLINE)
    near.write("set", "key", "old")
    far.sees("key", "old")
    far.do("start", what="watch", keys=["key"], every=0.002)
    if fault == "black hole":
        proxy.black_hole()
        cut = clock()
        near.write("delete", "key")
    else:
        server.freeze()
        cut = clock()
        assert near.do("delete", key="key")["outcome"] in ("unavailable", "uncertain")
    time.sleep(MAX_STALENESS + 0.7)
    if fault == "black hole":
        proxy.heal()
    else:
        server.thaw()
        near.write("delete", "key")
    healed = clock()
    all_fresh([near, far], HEALED + DEADLINE)
    near.write("set", "key", "new")
    far.sees("key", "new", within=HEALED)
    far.do("rest")
    history = cluster.judge()
    old = [op for op in hits(history, far, cut) if op.result == "old" and op.began < healed]
    assert old, "it was cut off from its memory too"
    # Not as of the deletion, which came later, but as of the moment that nothing came through.
    assert max(op.began for op in old) <= cut + MAX_STALENESS
    misses = [
        op
        for op in history
        if op.node == far.name and op.op == "get" and op.result is None and op.began < healed
    ]
    assert misses, "it never gave up"


@on_servers
def test_a_link_that_flaps_every_200_ms_ends_in_the_right_state(
    cluster: Cluster, seed: int
) -> None:
    near, far = cluster.one(deadline=DEADLINE), cluster.one(proxied=True, deadline=DEADLINE)
    proxy = cluster.store.proxy
    with at_work([near, far], seed):
        for number in range(8):
            time.sleep(0.2)
            proxy.drop(refuse=number % 2 == 0, reset=number % 4 < 2)
            time.sleep(0.2)
            proxy.heal()
    all_fresh([near, far], HEALED + DEADLINE)
    log = cluster.converge()
    history = cluster.judge()
    assert lost_writes(history, log) == []
    through = [op for op in history if op.node == far.name and op.done and op.seq is not None]
    assert len(through) > 10, "nothing came through"


@on_servers
@pytest.mark.pipeline
def test_a_slow_link_breaks_no_promise(cluster: Cluster, seed: int) -> None:
    near, far = cluster.one(), cluster.one(proxied=True)
    cluster.store.proxy.delay = 0.02
    far.do("start", what="watch", keys=["own-n2-0", "own-n2-1", "register-0"], every=0.001)
    with at_work([near, far], seed):
        time.sleep(1.2)
    cluster.store.proxy.delay = 0.0
    log = cluster.converge()
    assert lost_writes(cluster.judge(), log) == []


@on_servers
def test_a_page_that_was_long_under_way_is_as_old_as_its_request(cluster: Cluster) -> None:
    near, far = cluster.one(), cluster.one(proxied=True, deadline=4.0)
    near.write("set", "key", "old")
    far.sees("key", "old")
    far.do("start", what="watch", keys=["key"], every=0.002)
    time.sleep(0.1)
    cluster.store.proxy.black_hole(to_server=False)
    time.sleep(0.3)  # a heartbeat: a page is on its way back
    near.write("delete", "key")
    deleted = clock()
    time.sleep(0.6)
    # It arrives, and the next request does not.
    cluster.store.proxy.heal()
    cluster.store.proxy.black_hole(to_client=False)
    time.sleep(0.7)
    cluster.store.proxy.heal()
    far.do("rest")
    history = cluster.judge()
    assert hits(history, far, deleted), "it gave up before the page came"
    far.sees("key", None)


def prepare_postgresql(cluster: Cluster, stack: ExitStack) -> tuple[Any, Callable[[], None]]:
    primary = cluster.store.server
    assert isinstance(primary, PostgreSQL)
    standby = primary.standby()
    stack.callback(standby.close)
    primary.wait_for_standby(standby)
    standby.stop()  # so that what follows is lost
    return standby, standby.start


def prepare_valkey(cluster: Cluster, stack: ExitStack) -> tuple[Any, Callable[[], None]]:
    primary = cluster.store.server
    assert isinstance(primary, Valkey)
    between = stack.enter_context(Proxy(primary.port))
    replica = stack.enter_context(Valkey({"replicaof": f"{HOST} {between.port}"}))
    replica.wait_linked()
    primary.wait_for_replica(replica)
    between.black_hole()
    return replica, lambda: between.drop(refuse=True)


@on_private_servers
def test_a_failover_that_loses_acknowledged_writes_shows_nobody_the_past(
    private_cluster: Cluster, seed: int
) -> None:
    cluster = private_cluster
    primary, proxy = cluster.store.server, cluster.store.proxy
    assert primary is not None
    nodes = cluster.launch(3, proxied=True, deadline=DEADLINE)
    nodes[0].write("set", "key", "old")
    before = cluster.converge()
    prepare = prepare_postgresql if isinstance(primary, PostgreSQL) else prepare_valkey
    with ExitStack() as stack:
        with at_work(nodes, seed):
            other, revive = prepare(cluster, stack)
            nodes[1].send("set", key="key", value="new")
            assert nodes[1].answer()["outcome"] == "done"
            enough = acknowledged(cluster) + 60
            wait_until(lambda: acknowledged(cluster) > enough, every=0.1)
            primary.kill()
            proxy.target = other.port
            proxy.drop()
            revive()
            time.sleep(MAX_STALENESS)
            # What is no primary answers, and nobody is fresh by it.
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                assert not any(node.do("status")["fresh"] for node in nodes)
                time.sleep(0.02)
            other.promote()
            all_fresh(nodes, HEALED + DEADLINE)
            time.sleep(0.3)
        cluster.store.server = other
        log = cluster.converge()
        assert log.epoch != before.epoch
        assert log.value("key") is None
        assert lost_writes(cluster.judge(), log) == []


@pytest.mark.pipeline
def test_a_missing_synchronous_standby_stops_the_writer_in_time_and_nobody_else(
    tmp_path: Path,
) -> None:
    with cluster_on("postgresql", tmp_path) as cluster:
        server = cluster.store.server
        assert isinstance(server, PostgreSQL)
        writer, reader = cluster.launch(2, deadline=DEADLINE)
        writer.write("set", "key", "old")
        reader.sees("key", "old")
        server.set("synchronous_standby_names", "absent")
        began = time.monotonic()
        assert writer.do("set", key="key", value="new")["outcome"] == "uncertain"
        assert time.monotonic() - began < DEADLINE + 1
        until = time.monotonic() + 2 * MAX_STALENESS
        while time.monotonic() < until:
            assert reader.get("key") in ("old", "new")
            assert reader.do("status")["fresh"]
            time.sleep(0.02)
        server.set("synchronous_standby_names", "")
        writer.write("set", "key", "newer")
        reader.sees("key", "newer")
        cluster.converge()
        cluster.judge()


@pytest.mark.pipeline
def test_postgresql_restored_from_an_older_copy_is_followed_as_it_is_and_clearing_ends_it(
    tmp_path: Path,
) -> None:
    """A cold copy has the identity of the original: only a head that fell shows it."""
    with cluster_on("postgresql", tmp_path) as cluster:
        server = cluster.store.server
        assert isinstance(server, PostgreSQL)
        nodes = cluster.launch(2, deadline=DEADLINE)
        nodes[0].write("set", "key", "old")
        cluster.converge()
        server.stop()
        copy = server.folder / "copy"
        shutil.copytree(server.data, copy)
        own = server.data.stat()
        server.start()
        all_fresh(nodes, HEALED + DEADLINE)
        for number in range(20):
            nodes[0].write("set", f"later-{number}", number)
        nodes[0].write("set", "key", "new")
        nodes[1].sees("key", "new")
        server.stop()
        shutil.rmtree(server.data)
        copy.rename(server.data)
        for path in [server.data, *server.data.rglob("*")]:
            shutil.chown(path, own.st_uid, own.st_gid)
        server.data.chmod(0o700)
        server.start()
        all_fresh(nodes, HEALED + DEADLINE)
        log = cluster.converge()
        assert log.value("later-0") is None
        assert [node.get("later-0") for node in nodes] == [None, None]
        assert all(node.do("status")["counters"]["resyncs"] == 1 for node in nodes)
        nodes[1].write("clear", "")
        cluster.converge()
        assert [node.get("key") for node in nodes] == [None, None]


def test_an_own_write_that_the_log_lost_is_not_held_though_it_was_never_applied(
    make_node_at: Callable[..., ReplicatedCache], tmp_path: Path
) -> None:
    """Its number stands above the head, as that of an applied one would."""
    path = tmp_path / "log.accesspass"
    node = make_node_at(f"sqlite:///{path}")
    node.set("key", "old")
    assert node.get("key") == "old"
    node._follower.engine.close()
    older = path.read_bytes()
    node.set("key", "new")
    node._follower.engine.close()
    path.write_bytes(older)  # the same file, so nothing but its contents tells
    assert node.get("key") == "old"


def test_valkey_restored_from_an_older_snapshot_is_emptied(tmp_path: Path) -> None:
    with cluster_on("valkey", tmp_path, save="", dbfilename="dump.rdb") as cluster:
        server = cluster.store.server
        assert isinstance(server, Valkey)
        nodes = cluster.launch(2, deadline=DEADLINE)
        nodes[0].write("set", "key", "old")
        before = cluster.converge()
        server.execute("SAVE")
        nodes[0].write("set", "key", "new")
        nodes[1].sees("key", "new")
        server.kill()
        server.start()
        held = server.execute("HLEN", "{accesspass}:entries")
        all_fresh(nodes, HEALED + DEADLINE)
        log = cluster.converge()
        assert held in (0, 1)
        assert log.epoch != before.epoch
        assert log.value("key") is None
        assert [node.get("key") for node in nodes] == [None, None]
        cluster.judge()
