"""What nodes report of themselves, and what is made of it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.db import DatabaseError
from django.db.models.functions import Now

import accesspass
from accesspass import background, nodes
from accesspass.models import Node
from accesspass.testing import other_node
from tests.cluster import Cluster
from tests.servers import wait_until
from tests.sessions import make_node, plain, queries, replicated

__all__ = ["plain", "replicated"]

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.django_db


def found() -> dict[int, nodes.Report]:
    return {report.node.pid: report for report in nodes.overview()}


def test_a_process_reports_what_the_cache_says_of_its_replica() -> None:
    cache = caches["accesspass"]
    cache.set("key", "value")
    nodes.report()
    row, status = Node.objects.get(), cache.status()
    assert (row.host, row.pid) == (socket.gethostname(), os.getpid())
    assert row.version == accesspass.__version__
    for name in ("engine", "role", "epoch", "applied", "head", "fresh", "entries", "bytes"):
        assert getattr(row, name) == status[name], name
    assert row.counters == status["counters"]
    assert row.entries == 1
    assert row.fresh
    assert row.last_resync is None


def test_the_second_report_is_one_update_of_the_same_row() -> None:
    nodes.report()
    first = Node.objects.get()
    caches["accesspass"].set("key", "value")
    with queries(1):
        nodes.report()
    second = Node.objects.get()
    assert (second.pk, second.started_at) == (first.pk, first.started_at)
    assert (first.entries, second.entries) == (0, 1)


def test_a_replica_that_nobody_reads_is_reported_as_current() -> None:
    with other_node():
        caches["accesspass"].set("key", "value")
    nodes.report()
    row = Node.objects.get()
    assert row.fresh
    assert row.staleness is not None
    assert row.staleness < 1
    assert row.applied == 1


def test_the_last_resync_is_reported_on_the_databases_clock() -> None:
    cache = caches["accesspass"]
    assert cache.get("key") is None
    follower = cache._follower
    with follower._lock:
        follower._replica.epoch = "another one"
    follower.pull()
    nodes.report()
    row = Node.objects.annotate(clock=Now()).get()
    assert row.last_resync is not None
    assert abs((row.clock - row.last_resync).total_seconds()) < 5


def test_a_cache_without_a_replica_reports_nothing(plain: None) -> None:
    nodes.report()
    assert not Node.objects.exists()


def test_a_forked_process_has_a_name_of_its_own() -> None:
    mine = nodes._own_id(os.getpid())
    assert nodes._own_id(os.getpid()) == mine
    assert nodes._own_id(os.getpid() + 1) != mine


def test_reporting_is_a_job_of_every_process_and_forgetting_of_one() -> None:
    jobs = {job.name: (job.every(), job.run, job.leased) for job in background.JOBS}
    assert jobs["report"] == (30.0, nodes.report, False)
    assert jobs["nodes"] == (600.0, nodes.purge, True)


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_costs_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise DatabaseError("no such table")

    monkeypatch.setattr(background, "_last", {})
    monkeypatch.setattr(nodes, "_rows", fail)
    with caplog.at_level(logging.INFO):
        background.run_due(["report"])
    assert [record.getMessage() for record in caplog.records] == ["background.failed: report"]


def test_a_node_is_gone_after_two_minutes_and_forgotten_after_an_hour() -> None:
    make_node(110)
    make_node(110, fresh=False)
    make_node(130)
    make_node(3_700)
    states = {pid: report.state for pid, report in found().items()}
    assert states == {1: nodes.FRESH, 2: nodes.STALE, 3: nodes.GONE, 4: nodes.GONE}
    for state in (nodes.FRESH, nodes.STALE, nodes.GONE):
        rows = Node.objects.filter(nodes.in_state(state))
        assert {row.pid for row in rows} == {pid for pid, x in states.items() if x == state}
    assert 129 < found()[3].age < 200
    nodes.purge()
    assert set(found()) == {1, 2, 3}


def test_a_node_lags_behind_what_others_had_seen_before_it_reported() -> None:
    make_node(29, applied=100, head=120)
    make_node(20, applied=90, head=90, fresh=False)  # cut off: it has not heard of the last thirty
    make_node(1, applied=5_000, head=5_000)  # what was written since is nobody's lag
    make_node(1, applied=0, head=None, epoch="")
    assert {pid: report.lag for pid, report in found().items()} == {1: 20, 2: 30, 3: 0, 4: None}


def test_numbers_of_another_epoch_are_not_compared() -> None:
    make_node(20, epoch="old", applied=900, head=900)
    make_node(10, epoch="new", applied=3, head=4)
    assert {pid: report.lag for pid, report in found().items()} == {1: 0, 2: 1}


def test_the_present_epoch_is_what_a_fresh_node_has_said_last() -> None:
    make_node(20, epoch="old")
    make_node(10, epoch="new")
    make_node(5, epoch="old", fresh=False)  # cut off with a history that is over
    make_node(1, epoch="", applied=0, head=None, fresh=False)
    assert {pid: x.in_epoch for pid, x in found().items()} == {1: False, 2: True, 3: False, 4: None}


def test_without_a_fresh_node_nobody_knows_the_epoch() -> None:
    make_node(10, fresh=False)
    make_node(300)
    assert {report.in_epoch for report in nodes.overview()} == {None}


def test_an_overview_is_one_query_however_many_nodes_there_are() -> None:
    for _ in range(3):
        make_node()
    with queries(1):
        assert len(nodes.overview()) == 3


class Reporting(Cluster):
    """A cluster whose workers report every second."""

    application = "reporting:application"

    def __init__(self) -> None:
        super().__init__(workers=3)
        (self.folder / "reporting.py").write_text(
            "from example_project.wsgi import application\n"
            "from accesspass import nodes\n"
            "nodes.REPORT_EVERY = 1.0\n"
        )

    def status(self) -> Any:
        command = [sys.executable, "manage.py", "accesspass_status", "--json"]
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, check=True
        )
        return json.loads(done.stdout)


@pytest.mark.pipeline
@pytest.mark.fault
def test_each_worker_has_a_row_and_one_that_was_killed_is_gone() -> None:
    with Reporting() as cluster, closing(sqlite3.connect(cluster.folder / "db.sqlite3")) as rows:
        workers: set[int] = set()

        def let_all_work() -> bool:
            workers.update(x.worker for x in cluster.at_once(6, "GET", "/auth/check/"))
            return len(workers) == 3

        def reported(since: str = "-1 day") -> set[int]:
            recent = "SELECT pid FROM accesspass_node WHERE reported_at > datetime('now', ?)"
            return {pid for (pid,) in rows.execute(recent, [since])}

        wait_until(let_all_work, 30)
        wait_until(lambda: reported() == workers, 30)
        killed = workers.pop()
        os.kill(killed, signal.SIGKILL)
        # Instead of waiting for two minutes; who lives reports again.
        rows.execute(
            "UPDATE accesspass_node SET reported_at = datetime(reported_at, '-150 seconds')"
        )
        rows.commit()
        wait_until(lambda: workers <= reported("-60 seconds"), 30)
        found = {node["pid"]: node for node in cluster.status()["nodes"]}
        assert found.pop(killed)["state"] == "gone"
        assert {pid: found[pid]["state"] for pid in workers} == dict.fromkeys(workers, "fresh")
        assert {node["in_epoch"] for node in found.values()} == {True}
        assert {node["role"] for node in found.values()} == {"primary"}
