"""Forks, wrong clocks, and transactions that the project rolls back."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from accesspass.cache import ReplicatedCache
from accesspass.cache.follower import clock
from tests.faults.cluster import Cluster
from tests.servers import HOST, require_postgresql, shared_postgresql

pytestmark = pytest.mark.fault


def test_children_are_fresh_within_a_second_and_the_parent_goes_on(cluster: Cluster) -> None:
    near, parent = cluster.launch(2)
    near.write("set", "key", "value")
    parent.sees("key", "value")
    parent.write("set", "own", 1)
    parent.do("start", what="watch", keys=["key", "own"], every=0.002)
    children = parent.do("fork", children=4, key="key")
    parent.do("rest")
    assert len(children) == 4
    assert max(children) < 1.0, children
    log = cluster.converge()
    assert sum(b":1:child-" in bytes.fromhex(key) for key in log.payloads) == 4
    parent.write("set", "own", 2)
    near.sees("own", 2)
    assert parent.do("status")["counters"]["failures"] == 0
    reads = [op for op in cluster.judge() if op.node == parent.name and op.op == "get"]
    assert {op.result for op in reads if op.key == "key" and op.began > reads[1].began} <= {"value"}


def test_a_clock_that_is_an_hour_off_shortens_and_prolongs_nothing(cluster: Cluster) -> None:
    right, behind, ahead = (cluster.one(clock_offset=hour * 3600.0) for hour in (0, -1, 1))
    nodes = (right, behind, ahead)
    began = {}
    for writer in nodes:
        writer.write("set", f"long-{writer.name}", 1, timeout=300)
        began[writer.name] = clock()
        writer.write("set", f"short-{writer.name}", 1, timeout=2.0)
        for reader in nodes:
            reader.sees(f"long-{writer.name}", 1)
            reader.sees(f"short-{writer.name}", 1, within=1.5)
    for writer in nodes:
        for reader in nodes:
            while reader.get(f"short-{writer.name}") is not None:
                time.sleep(0.01)
            assert clock() - began[writer.name] > 1.5
        assert clock() - began[writer.name] < 4.0
    for node in nodes:
        assert abs(node.do("now") - time.time()) < 0.5
        assert [node.get(f"long-{writer.name}") for writer in nodes] == [1, 1, 1]
    ahead.write("publish", "row", [1, False], revision=1, timeout=300)
    behind.write("publish", "row", [2, True], revision=2, timeout=300)
    for node in nodes:
        node.sees("row", [2, True])
    cluster.converge()
    cluster.judge()


@pytest.fixture(params=["sqlite3", "postgresql"])
def alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of a project, known to Django."""
    name = f"faults_{secrets.token_hex(4)}"
    settings: dict[str, Any] = {
        **connections.settings["default"],
        "ENGINE": f"django.db.backends.{request.param}",
        "NAME": str(tmp_path / "project.sqlite3"),
    }
    if request.param == "postgresql":
        require_postgresql()
        server = shared_postgresql()
        server.create_database(name)
        settings |= {"NAME": name, "USER": "postgres", "PASSWORD": "", "HOST": HOST}
        settings |= {"PORT": server.port, "OPTIONS": {}}
    connections.settings[name] = settings
    try:
        yield name
    finally:
        connections[name].close()
        del connections[name]
        del connections.settings[name]


def test_a_write_inside_a_transaction_that_rolls_back_stays_and_is_read_at_once(
    alias: str, make_node_at: Callable[..., ReplicatedCache], django_db_blocker: Any
) -> None:
    """A revocation is no part of the caller's transaction: it holds though that fails."""
    with django_db_blocker.unblock():
        node, other = make_node_at(f"database:{alias}"), make_node_at(f"database:{alias}")
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE project (number integer)")
        with pytest.raises(RuntimeError), transaction.atomic(using=alias):  # noqa: PT012
            with connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO project VALUES (1)")
            began = time.monotonic()
            assert node.publish("row", "dead", 2, 60)
            node.set("key", "value")
            assert time.monotonic() - began < 2, "it waited for itself"
            assert node.get("row") == "dead"
            raise RuntimeError
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM project")
            assert cursor.fetchone() == (0,)
        assert node.get("row") == "dead"
        give_up = time.monotonic() + 5
        while other.get("key") != "value":
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert other.get("row") == "dead"
