"""The housekeeping thread: jobs, leases, forks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from django.db import connection
from django.test import override_settings

from accesspass import background, sessions
from accesspass.background import Job
from accesspass.models import Lease
from tests.sessions import real_database, replicated

__all__ = ["replicated"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def nothing_done_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_last", {})


def forget_when(name: str) -> None:
    """As in another process, which has not done the job."""
    background._last.pop(name, None)


def test_the_jobs_are_these() -> None:
    jobs = {job.name: (job.every(), job.leased) for job in background.JOBS}
    assert jobs["tidy"] == (5.0, False)
    assert jobs["sweep"] == (60.0, True)
    assert jobs["purge"] == (60.0, True)
    with override_settings(ACCESSPASS={"SWEEP_INTERVAL": 7}):
        assert {job.name: job.every() for job in background.JOBS}["sweep"] == 7


def test_all_jobs_of_the_library_run(caplog: pytest.LogCaptureFixture) -> None:
    background.run_due()
    assert not caplog.records
    assert set(Lease.objects.values_list("name", flat=True)) >= {"sweep", "purge"}


def test_a_job_that_fails_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def bad() -> None:
        raise ZeroDivisionError

    jobs = [
        Job("bad", lambda: 60.0, bad),
        Job("good", lambda: 60.0, lambda: done.append("good")),
    ]
    monkeypatch.setattr(background, "JOBS", jobs)
    background.run_due()
    background.run_due()
    assert done == ["good"]
    assert "background.failed: bad" in caplog.text


@pytest.mark.parametrize("leased", [True, False])
def test_a_leased_job_is_done_by_one_process_of_all(
    monkeypatch: pytest.MonkeyPatch, leased: bool
) -> None:
    done: list[int] = []
    job = Job("sweep", lambda: 60.0, lambda: done.append(1), leased)
    monkeypatch.setattr(background, "JOBS", [job])
    for _ in range(3):
        forget_when("sweep")
        background.run_due()
    assert len(done) == (1 if leased else 3)
    # A process that died with the lease is waited for as long as that lasts.
    Lease.objects.update(until=sessions.Now())
    forget_when("sweep")
    background.run_due()
    assert len(done) == (2 if leased else 4)


def test_only_the_jobs_that_were_named_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    jobs = [Job(x, lambda: 60.0, lambda x=x: done.append(x), False) for x in ("a", "b")]  # type: ignore[misc]
    monkeypatch.setattr(background, "JOBS", jobs)
    background.run_due(["b"])
    assert done == ["b"]


def test_a_lease_is_taken_once_and_prolonged_by_its_holder_alone() -> None:
    assert Lease.objects.take("a", 60)
    assert not Lease.objects.take("a", 60)
    assert Lease.objects.take("b", 60, "me")
    assert Lease.objects.take("b", 60, "me")
    assert not Lease.objects.take("b", 60, "you")
    assert not Lease.objects.take("b", 60)
    Lease.objects.update(until=sessions.Now())
    assert Lease.objects.take("b", 60, "you")
    assert not Lease.objects.take("b", 60, "me")


@real_database
def test_of_many_who_take_a_lease_at_once_one_has_it() -> None:
    for _ in range(3):  # when there is no row yet, and when there is
        barrier, got = threading.Barrier(10), []

        def take(barrier: Any = barrier, got: list[bool] = got) -> None:
            try:
                barrier.wait()
                got.append(Lease.objects.take("a", 60))
            finally:
                connection.close()

        threads = [threading.Thread(target=take) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 9 + [True]
        Lease.objects.update(until=sessions.Now())


def test_the_thread_is_not_started_in_a_test_run() -> None:
    background.start()
    assert "accesspass-background" not in {thread.name for thread in threading.enumerate()}


_FORKS = """
import ctypes, os, sys, time
import django
django.setup()
from accesspass import background

beats = []
background.JOBS[:] = [background.Job("beat", lambda: 0.0, lambda: beats.append(os.getpid()), False)]
background._TICK = 0.01

def beating():
    beats.clear()
    end = time.monotonic() + 20
    while os.getpid() not in beats:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True

def threads():
    import threading
    return [x.name for x in threading.enumerate()].count("accesspass-background")

assert threads() == 0, "importing starts nothing"
for _ in range(3):
    background.start()
assert beating() and threads() == 1
# The second as uWSGI does it: nobody tells Python, and locks are as they were. Python's own may be
# held just then, and stay so, where a thread is waking up: ours sleeps meanwhile.
for fork in (os.fork, ctypes.PyDLL(None).fork):
    background._TICK = 1.0
    assert beating()
    time.sleep(0.2)
    child = fork()
    background._TICK = 0.01
    if child == 0:
        background.start()
        os._exit(0 if beating() else 1)
    assert os.waitpid(child, 0)[1] == 0, fork
background.start()
assert beating() and threads() == 1, "the parent goes on"
print("done")
"""


def test_each_process_that_was_forked_has_a_thread_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FORKS)],
        env={**__import__("os").environ, "DJANGO_SETTINGS_MODULE": "tests.settings.own_user"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "done", done.stderr
