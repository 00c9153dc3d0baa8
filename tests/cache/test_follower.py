"""Races, failures and processes that a test must arrange by hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from accesspass.cache import follower as follower_module
from accesspass.cache.codec import Seal
from accesspass.cache.engines.base import Change, Page
from accesspass.cache.engines.memory import MemoryEngine
from accesspass.cache.exceptions import EngineUnavailable
from accesspass.cache.follower import Follower, Snapshot
from accesspass.cache.replica import Replica
from tests.cache.conftest import eventually

KEY = b"key"


class PushingEngine(MemoryEngine):
    """The memory engine as one that is followed by a thread: a write wakes whoever waits."""

    sync_on_read = False

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._wake = threading.Event()
        self.waits = 0

    def wait(self, timeout: float) -> None:
        self.waits += 1
        if self._wake.wait(timeout):
            self._wake.clear()  # a hint that came while nobody waited counts

    def close(self) -> None:
        self._wake.set()


MakeFollower = Callable[..., Follower]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.nodeid)


@pytest.fixture
def make_follower(name: str) -> Iterator[MakeFollower]:
    made: list[Follower] = []

    def make(engine: type[MemoryEngine] = MemoryEngine, **options: Any) -> Follower:
        defaults: dict[str, Any] = {
            "max_staleness": 5.0,
            "heartbeat": 0.05,
            "retention": 3600.0,
            "max_entries": None,
            "cull_frequency": 3,
        }
        made.append(Follower(engine(name), Seal(["key"]), **{**defaults, **options}))
        return made[-1]

    yield make
    for follower in made:
        follower.stop()
    assert not threads_called("accesspass-follower")


def put(follower: Follower, value: bytes, key: bytes = KEY, timeout: float | None = None) -> None:
    expires = follower.expiry(timeout)
    follower.write([follower.seal_change(key, value, expires, 0, marker=False)])


def got(follower: Follower, key: bytes = KEY) -> bytes | None:
    held = follower.get(key)
    return None if held is None else held.payload


# Those that other tests of this process have left running.
_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def other_threads() -> None:
    _others.clear()
    _others.update(threading.enumerate())


def threads_called(start: str) -> list[threading.Thread]:
    running = set(threading.enumerate()) - _others
    return [thread for thread in running if thread.name.startswith(start)]


@contextlib.contextmanager
def down(follower: Follower, seconds: float = 0.0) -> Iterator[mock.Mock]:
    """The engine does not answer, and each call takes that long to find out."""

    def fail(*args: Any) -> Page:
        time.sleep(seconds)
        raise EngineUnavailable("down")

    failing = mock.Mock(side_effect=fail)
    with mock.patch.object(follower.engine, "changes", failing):
        yield failing


# A hit was true at most MAX_STALENESS ago ----------------------------------------------------


def snapshot_of(follower: Follower, payload: bytes = b"old") -> Snapshot:
    looked = follower.look(KEY)
    assert looked is not None
    held, snapshot = looked
    assert held.payload == payload
    return snapshot


def by_get(follower: Follower) -> Callable[[], object]:
    return lambda: got(follower)


def by_snapshot(follower: Follower) -> Callable[[], object]:
    snapshot = snapshot_of(follower)
    return lambda: follower.still_holds(snapshot, math.inf) or None


Ask = Callable[[Follower], Callable[[], object]]
either_way = pytest.mark.parametrize("ask", [by_get, by_snapshot])


@either_way
def test_a_process_stopped_after_it_took_the_value_does_not_serve_it(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    follower = make_follower()
    put(follower, b"old")
    asked = ask(follower)
    assert asked()
    real_find, real_clock = Replica.find, follower_module.clock

    def stopped(replica: Replica, key: bytes) -> bytes | None:
        found = real_find(replica, key)
        monkeypatch.setattr(follower_module, "clock", lambda: real_clock() + 6)
        return found

    monkeypatch.setattr(Replica, "find", stopped)
    assert asked() is None


@either_way
def test_nor_if_another_thread_pulls_before_it_goes_on(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    follower, other = make_follower(), make_follower()
    put(follower, b"old")
    asked = ask(follower)
    assert asked()
    real_find, real_clock = Replica.find, follower_module.clock

    def stopped(replica: Replica, key: bytes) -> bytes | None:
        found = real_find(replica, key)
        monkeypatch.setattr(Replica, "find", real_find)
        monkeypatch.setattr(follower_module, "clock", lambda: real_clock() + 6)
        put(other, b"new")
        follower.pull()
        return found

    monkeypatch.setattr(Replica, "find", stopped)
    assert asked() is None
    assert got(follower) == b"new"


def test_a_snapshot_holds_until_anything_is_written_to_its_key(
    make_follower: MakeFollower,
) -> None:
    follower, other = make_follower(), make_follower()
    for change in (b"other", b"old"):
        put(follower, b"old")
        snapshot = snapshot_of(follower)
        assert follower.still_holds(snapshot, follower.now() + 1)
        assert not follower.still_holds(snapshot, follower.now())
        put(other, change)
        follower.pull()
        assert not follower.still_holds(snapshot, math.inf)
    put(follower, b"old")
    snapshot = snapshot_of(follower)
    follower.forget(KEY)
    assert not follower.still_holds(snapshot, math.inf)


def test_a_snapshot_holds_no_longer_than_its_entry(make_follower: MakeFollower) -> None:
    follower = make_follower()
    put(follower, b"old", timeout=0.2)
    snapshot = snapshot_of(follower)
    assert follower.still_holds(snapshot, math.inf)
    time.sleep(0.25)
    assert not follower.still_holds(snapshot, math.inf)


def test_no_snapshot_holds_while_looking_may_find_another(make_follower: MakeFollower) -> None:
    """A fill on a stale replica vouches for itself, but a pull is due, which may replace it."""
    follower, other = make_follower(PushingEngine, max_staleness=1.0), make_follower()
    with mock.patch.object(Follower, "_start"):  # no more threads
        put(other, b"other")
        follower.pull()
        time.sleep(1.1)
        assert follower.fill(b"filled", b"old", 1, 60, follower.mark(), marker=False)
        with down(follower):
            looked = follower.look(b"filled")
        assert looked is not None
        follower._retry_at = 0.0
        put(other, b"dead", b"filled")
        assert not follower.still_holds(looked[1], math.inf)
        assert got(follower, b"filled") == b"dead"


def test_a_snapshot_does_not_hold_where_nobody_follows(make_follower: MakeFollower) -> None:
    follower = make_follower(PushingEngine, heartbeat=0.1)
    put(follower, b"old")
    with mock.patch.object(Follower, "_start"):
        snapshot = snapshot_of(follower)
        assert follower.still_holds(snapshot, math.inf)
        time.sleep(0.15)
        assert not follower.still_holds(snapshot, math.inf)
    assert follower.look(KEY) is not None
    assert eventually(lambda: follower.still_holds(snapshot, math.inf))


def test_freshness_is_when_the_page_was_asked_for_not_when_it_came(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = make_follower()
    put(follower, b"old")
    real_changes, real_clock = follower.engine.changes, follower_module.clock

    def slow(after: int, limit: int) -> Page:
        page = real_changes(after, limit)
        monkeypatch.setattr(follower_module, "clock", lambda: real_clock() + 6)
        return page

    with mock.patch.object(follower.engine, "changes", slow):
        follower.pull()
    with down(follower):
        assert got(follower) is None


class AheadEngine(MemoryEngine):
    """Takes the next page when it is asked ahead, and then calls ``meanwhile``."""

    page_size = 2
    meanwhile: list[Callable[[], None]] = []

    def ask_ahead(self, after: int, limit: int) -> Callable[[], Page]:
        page = self.changes(after, limit)
        for each in self.meanwhile:
            each()
        return lambda: page


def test_of_a_page_asked_ahead_that_is_when_it_was_asked_ahead(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = make_follower(AheadEngine)
    for number in range(3):
        put(follower, b"old", b"%d" % number)
    real_clock = follower_module.clock

    def later() -> None:
        monkeypatch.setattr(follower_module, "clock", lambda: real_clock() + 6)

    monkeypatch.setattr(AheadEngine, "meanwhile", [later])
    follower.pull()
    with down(follower):
        assert got(follower, b"2") is None


def test_an_own_write_after_a_page_was_asked_ahead_begins_nothing_anew(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = make_follower(AheadEngine)
    follower.pull()
    for number in range(5):
        put(follower, b"old", b"%d" % number)
    joining = make_follower(AheadEngine)
    monkeypatch.setattr(AheadEngine, "meanwhile", [lambda: put(joining, b"new", b"own")])
    joining.pull()
    assert joining.status()["counters"]["resyncs"] == 0
    assert [got(joining, key) for key in (b"0", b"4", b"own")] == [b"old", b"old", b"new"]


def test_the_clock_of_a_page_that_took_too_long_is_not_believed(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = make_follower()
    follower.pull()
    real_changes, real_clock = follower.engine.changes, follower_module.clock
    expected = follower.now()

    def late(after: int, limit: int) -> Page:
        page = real_changes(after, limit)
        monkeypatch.setattr(follower_module, "clock", lambda: real_clock() + 100)
        return page._replace(now=page.now + 100)

    with mock.patch.object(follower.engine, "changes", late):
        follower.pull()
    monkeypatch.setattr(follower_module, "clock", real_clock)
    assert follower.now() == pytest.approx(expected, abs=5)


# Starting again ------------------------------------------------------------------------------


def test_a_head_below_what_was_applied_starts_again(make_follower: MakeFollower) -> None:
    follower, other = make_follower(), make_follower()
    put(other, b"kept", b"kept")
    put(other, b"lost", b"lost")
    assert got(follower, b"lost") == b"lost"
    assert follower.status()["last_resync"] is None
    engine = other.engine
    assert isinstance(engine, MemoryEngine)
    log = engine._log
    with log.lock:  # the engine went back to an older state of itself
        lost = log.entries.pop(b"lost")
        del log.order[lost.seq]
        log.seq = lost.seq - 1
    assert got(follower, b"lost") is None
    assert got(follower, b"kept") == b"kept"
    assert follower.status()["counters"]["resyncs"] == 1
    assert 0 <= follower.now() - follower.status()["last_resync"] < 60


def test_a_log_that_is_cut_again_and_again_is_given_up_for_now(
    make_follower: MakeFollower,
) -> None:
    follower = make_follower()
    put(follower, b"value")
    follower.pull()
    real = follower.engine.changes

    def cut(after: int, limit: int) -> Page:
        follower.engine.clear()
        return real(after, limit)

    with (
        mock.patch.object(follower.engine, "changes", cut),
        pytest.raises(EngineUnavailable, match="again and again"),
    ):
        follower.pull()
    assert eventually(lambda: got(follower) is None)
    put(follower, b"new")
    assert got(follower) == b"new"


def test_the_old_replica_answers_while_a_new_one_is_built(make_follower: MakeFollower) -> None:
    follower, other = make_follower(), make_follower()
    put(other, b"value")
    assert got(follower) == b"value"
    other.engine.clear()
    put(other, b"again")
    seen: list[bytes | None] = []
    real = follower.engine.changes

    def changes(after: int, limit: int) -> Page:
        page = real(after, limit)
        held = follower._replica.get(KEY)
        seen.append(None if held is None else held.payload)
        return page

    with mock.patch.object(follower.engine, "changes", changes):
        follower.pull()
    assert seen == [b"value", b"value"]  # one page to find out, one of the new history
    assert got(follower) == b"again"


def test_an_own_write_of_a_lost_history_is_not_carried_into_the_next_one(
    make_follower: MakeFollower,
) -> None:
    """The next one may count from 0 again, so the number of that write says nothing."""
    follower = make_follower()
    put(follower, b"before")
    follower.pull()
    engine = follower.engine
    assert isinstance(engine, MemoryEngine)
    real, log, lost = engine.changes, engine._log, False

    def changes(after: int, limit: int) -> Page:
        nonlocal lost
        if not lost:
            lost = True
            put(follower, b"during", b"another key")
            with log.lock:
                log.reset(0)
        return real(after, limit)

    with mock.patch.object(engine, "changes", changes):
        follower.pull()
    with down(follower):
        assert follower.status()["fresh"]
        assert got(follower) is None
        assert got(follower, b"another key") is None


# Failures ------------------------------------------------------------------------------------


def test_an_engine_that_is_down_is_asked_ever_more_rarely(make_follower: MakeFollower) -> None:
    follower = make_follower()
    put(follower, b"value")
    assert got(follower) == b"value"
    with down(follower) as asked:
        end = time.monotonic() + 0.6
        reads = 0
        while time.monotonic() < end:
            assert got(follower) == b"value"
            reads += 1
        assert 2 <= asked.call_count <= 15 < reads
    assert eventually(lambda: follower.status()["counters"]["failures"] > 0)


def test_a_write_that_succeeds_ends_the_waiting(make_follower: MakeFollower) -> None:
    follower, other = make_follower(), make_follower()
    put(other, b"old")
    assert got(follower) == b"old"
    with down(follower):
        got(follower)
    follower._retry_at = follower_module.clock() + 60
    put(other, b"new")
    assert got(follower) == b"old"
    put(follower, b"value", b"another key")
    assert got(follower) == b"new"


def test_one_thread_tries_an_engine_that_hangs_and_the_others_do_not_wait(
    make_follower: MakeFollower,
) -> None:
    follower = make_follower()
    put(follower, b"value")
    assert got(follower) == b"value"
    with down(follower, seconds=0.4):
        got(follower)
        follower._retry_at = follower_module.clock()  # the next try is due
        times: list[float] = []

        def read() -> None:
            begun = time.monotonic()
            assert got(follower) == b"value"
            times.append(time.monotonic() - begun)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(taken > 0.35 for taken in times) == 1
    assert len(times) == 8


def test_threads_that_find_something_new_pull_once(make_follower: MakeFollower) -> None:
    follower, other = make_follower(), make_follower()
    put(other, b"old")
    assert got(follower) == b"old"
    put(other, b"new")
    real, pulls = follower.engine.changes, []

    def slow(after: int, limit: int) -> Page:
        page = real(after, limit)
        if limit:
            pulls.append(after)
            time.sleep(0.1)
        return page

    with mock.patch.object(follower.engine, "changes", slow):
        values: list[bytes | None] = []
        threads = [threading.Thread(target=lambda: values.append(got(follower))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert values == [b"new"] * 8
    assert len(pulls) <= 3


def test_a_warning_says_that_the_engine_is_out_of_reach_once(
    make_follower: MakeFollower, caplog: pytest.LogCaptureFixture
) -> None:
    follower = make_follower()
    got(follower)
    with caplog.at_level(logging.INFO, "accesspass.cache"), down(follower):
        for _ in range(4):
            follower._retry_at = 0.0
            got(follower)
    assert [record.message for record in caplog.records] == ["cache.unreachable: down"]


# Callbacks -----------------------------------------------------------------------------------


def test_a_callback_that_hangs_keeps_nobody_longer_than_the_deadline(
    make_follower: MakeFollower,
) -> None:
    follower = make_follower()
    follower.engine.deadline = 0.2
    release = threading.Event()

    def hang() -> None:
        release.wait()

    follower.before_fresh(hang)
    put(follower, b"value")
    begun = time.monotonic()
    threads = [threading.Thread(target=lambda: got(follower)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 1.5
    assert got(follower) is None
    assert len(threads_called("accesspass-before-fresh")) == 1
    release.set()
    assert eventually(lambda: got(follower) == b"value")
    assert not threads_called("accesspass-before-fresh")


def test_a_callback_may_use_the_cache_that_waits_for_it(make_follower: MakeFollower) -> None:
    follower = make_follower()
    seen: list[Any] = []

    def callback() -> None:
        seen.append(got(follower))
        follower.mark()
        put(follower, b"from the callback")

    follower.before_fresh(callback)
    begun = time.monotonic()
    assert got(follower) is None or seen
    assert time.monotonic() - begun < 1
    assert got(follower) == b"from the callback"
    assert seen[0] is None


def test_the_same_callback_twice_is_one(make_follower: MakeFollower) -> None:
    follower = make_follower()
    ran: list[int] = []

    class Owner:
        def callback(self) -> None:
            ran.append(1)

    owner = Owner()
    follower.before_fresh(owner.callback)
    follower.before_fresh(owner.callback)
    follower.pull()
    follower.pull()
    assert ran == [1]


def test_a_replica_that_grew_stale_during_a_slow_pull_runs_the_callbacks(
    make_follower: MakeFollower,
) -> None:
    follower = make_follower(PushingEngine, max_staleness=0.2)
    ran: list[int] = []
    follower.before_fresh(lambda: ran.append(1))
    follower.pull()
    assert ran == [1]
    follower.pull()
    assert ran == [1]
    real = follower.engine.changes

    def slow(after: int, limit: int) -> Page:
        time.sleep(0.3)
        return real(after, limit)

    with mock.patch.object(follower.engine, "changes", slow):
        follower.pull()
    assert ran == [1, 1]


# The thread ----------------------------------------------------------------------------------


def test_only_a_read_starts_the_thread(make_follower: MakeFollower) -> None:
    follower = make_follower(PushingEngine)
    put(follower, b"value")
    follower.mark()
    follower.status()
    assert not threads_called("accesspass-follower")
    assert got(follower) == b"value"
    assert len(threads_called("accesspass-follower")) == 1
    assert got(follower) == b"value"
    assert len(threads_called("accesspass-follower")) == 1


def test_a_thread_that_waits_to_try_again_is_told_that_the_engine_answers_somebody(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_RETRY_FIRST", 600.0)
    monkeypatch.setattr(follower_module, "_RETRY_LAST", 600.0)
    follower = make_follower(PushingEngine)
    engine: Any = follower.engine
    put(follower, b"old")
    assert got(follower) == b"old"
    assert eventually(lambda: engine.waits > 0)
    with down(follower):
        assert eventually(lambda: follower.status()["counters"]["failures"] > 0)
    put(follower, b"new")
    before = engine.waits
    assert eventually(lambda: engine.waits > before)


@pytest.mark.parametrize(
    ("pull", "pauses"),
    [(0.0, [0.002, 0.004, 0.008, 0.01, 0.01, 0.002]), (0.005, [0.003, 0.005, 0.005, 0.003])],
    ids=["quick", "slow"],
)
def test_pulls_become_fewer_while_news_has_no_end_and_after_a_pause_one_comes_at_once(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch, pull: float, pauses: list[float]
) -> None:
    follower = make_follower(PushingEngine)
    now, slept = 100.0, []
    waits = iter([0.0] * 5 + [0.05] + [0.0] * (1 if pull == 0 else 3))
    real_pull = follower.pull

    def pulled() -> None:
        nonlocal now
        now += pull
        real_pull()

    def wait(timeout: float) -> None:
        nonlocal now
        waited = next(waits, None)
        if waited is None:
            follower._stopping = True
        else:
            now += waited

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(round(seconds, 4))

    faked = {**vars(time), "monotonic": lambda: now, "sleep": sleep}
    monkeypatch.setattr(follower_module, "time", types.SimpleNamespace(**faked))
    monkeypatch.setattr(follower.engine, "wait", wait)
    monkeypatch.setattr(follower, "pull", pulled)
    follower._follow()
    monkeypatch.undo()
    assert slept[: len(pauses)] == pauses


def test_an_engine_that_is_read_in_microseconds_has_no_thread(make_follower: MakeFollower) -> None:
    follower = make_follower()
    put(follower, b"value")
    assert got(follower) == b"value"
    assert not threads_called("accesspass-")


def test_a_wake_up_brings_what_is_new_long_before_the_heartbeat(
    make_follower: MakeFollower,
) -> None:
    follower = make_follower(PushingEngine, heartbeat=3.0)
    other = make_follower(PushingEngine)
    put(other, b"old")
    assert got(follower) == b"old"
    engine = follower.engine
    assert isinstance(engine, PushingEngine)
    assert eventually(lambda: engine.waits > 0)
    put(other, b"new")
    engine._wake.set()
    assert eventually(lambda: got(follower) == b"new", seconds=1.5)


def test_without_a_wake_up_it_takes_a_heartbeat(make_follower: MakeFollower) -> None:
    follower, other = make_follower(PushingEngine), make_follower(PushingEngine)
    put(other, b"old")
    assert got(follower) == b"old"
    put(other, b"new")
    assert eventually(lambda: got(follower) == b"new", seconds=2)


def test_a_replica_that_fell_behind_is_pulled_by_its_reader(make_follower: MakeFollower) -> None:
    follower = make_follower(PushingEngine, max_staleness=0.2, heartbeat=60.0)
    other = make_follower(PushingEngine)
    put(other, b"old")
    assert got(follower) == b"old"
    put(other, b"new")
    time.sleep(0.25)
    assert got(follower) == b"new"


def test_on_an_event_loop_a_stale_replica_misses_until_the_thread_has_pulled(
    make_follower: MakeFollower,
) -> None:
    follower = make_follower(PushingEngine)
    put(make_follower(PushingEngine), b"value")
    pulled_by: list[str] = []
    real = follower.engine.changes

    def changes(after: int, limit: int) -> Page:
        pulled_by.append(threading.current_thread().name)
        time.sleep(0.1)
        return real(after, limit)

    async def story() -> list[bytes | None]:
        first = got(follower)
        await asyncio.sleep(0.5)
        return [first, got(follower)]

    with mock.patch.object(follower.engine, "changes", changes):
        assert asyncio.run(story()) == [None, b"value"]
    assert set(pulled_by) == {"accesspass-follower"}


def test_who_joins_waits_for_the_pull_under_way(make_follower: MakeFollower) -> None:
    follower = make_follower(PushingEngine)
    put(make_follower(PushingEngine), b"value")
    real, pulls = follower.engine.changes, []

    def slow(after: int, limit: int) -> Page:
        pulls.append(threading.current_thread().name)
        time.sleep(0.2)
        return real(after, limit)

    with mock.patch.object(follower.engine, "changes", slow):
        values: list[bytes | None] = []
        threads = [threading.Thread(target=lambda: values.append(got(follower))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert values == [b"value"] * 6
    assert len([by for by in pulls if by != "accesspass-follower"]) <= 1


def test_the_thread_outlives_an_engine_that_fails_or_breaks(
    make_follower: MakeFollower, caplog: pytest.LogCaptureFixture
) -> None:
    follower, other = make_follower(PushingEngine), make_follower(PushingEngine)
    put(other, b"old")
    assert got(follower) == b"old"
    (thread,) = threads_called("accesspass-follower")
    for error in (EngineUnavailable("down"), ZeroDivisionError("a bug")):
        failing = mock.Mock(side_effect=error)
        with mock.patch.object(follower.engine, "changes", failing):
            assert eventually(lambda failing=failing: failing.called)  # type: ignore[misc]
    put(other, b"new")
    assert eventually(lambda: got(follower) == b"new")
    assert threads_called("accesspass-follower") == [thread]
    assert "cache.follower_error" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_started_again_by_a_read(make_follower: MakeFollower) -> None:
    follower, other = make_follower(PushingEngine), make_follower(PushingEngine)
    put(other, b"old")
    with mock.patch.object(follower.engine, "wait", mock.Mock(side_effect=SystemExit)):
        assert got(follower) == b"old"
        assert eventually(lambda: not threads_called("accesspass-follower"))
    put(other, b"new")
    assert eventually(lambda: got(follower) == b"new")


def test_stop_ends_the_thread_and_says_nothing(
    make_follower: MakeFollower, caplog: pytest.LogCaptureFixture
) -> None:
    follower = make_follower(PushingEngine)
    put(follower, b"value")
    got(follower)
    assert threads_called("accesspass-follower")
    with caplog.at_level(logging.DEBUG):
        follower.stop()
        assert not threads_called("accesspass-follower")
        follower.stop()
    assert not caplog.records
    assert got(follower) == b"value"  # still a cache; it is pulled by its readers alone
    assert not threads_called("accesspass-follower")


def test_without_threads_to_be_had_readers_pull(
    make_follower: MakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = make_follower(PushingEngine, max_staleness=0.1)
    put(follower, b"value")
    full = mock.Mock(side_effect=RuntimeError("can't start new thread"))
    monkeypatch.setattr(threading.Thread, "start", full)
    assert got(follower) == b"value"
    follower.before_fresh(lambda: None)
    assert got(follower) is None  # and nobody vouches where a callback could not run


# Forks ---------------------------------------------------------------------------------------


def in_child(claim: Callable[[], object]) -> None:
    """Fork, and fail if the claim does not hold in the child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads, which is the point
        pid = os.fork()
    if pid == 0:
        try:
            assert claim()
            os.write(writer, b"ok")
        except BaseException:  # noqa: BLE001 - it is told to the parent
            os.write(writer, traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said == b"ok", said.decode()


@pytest.mark.parametrize("engine", [MemoryEngine, PushingEngine])
def test_a_child_starts_warm_trusts_nothing_and_the_parent_goes_on(
    make_follower: MakeFollower, engine: type[MemoryEngine]
) -> None:
    follower = make_follower(engine)
    put(follower, b"value")
    assert got(follower) == b"value"

    def child() -> bool:
        assert not threads_called("accesspass-")
        assert not follower.status()["fresh"]
        assert follower.status()["entries"] == 1
        assert follower.status()["pid"] == os.getpid()
        with down(follower):
            assert got(follower) is None
        assert eventually(lambda: got(follower) == b"value")
        assert bool(threads_called("accesspass-follower")) == (engine is PushingEngine)
        put(follower, b"child")
        return got(follower) == b"child"

    in_child(child)
    assert got(follower) == b"value"
    put(follower, b"parent")
    assert got(follower) == b"parent"


def test_a_child_runs_the_callbacks_before_it_answers(make_follower: MakeFollower) -> None:
    follower = make_follower()
    ran: list[int] = []
    follower.before_fresh(lambda: ran.append(os.getpid()))
    put(follower, b"value")
    assert got(follower) == b"value"
    in_child(lambda: got(follower) == b"value" and ran[-1] == os.getpid())
    assert set(ran) == {os.getpid()}


@pytest.mark.parametrize("engine", [MemoryEngine, PushingEngine])
def test_locks_held_at_the_fork_do_not_stop_the_child(
    make_follower: MakeFollower, engine: type[MemoryEngine]
) -> None:
    follower = make_follower(engine)
    put(follower, b"value")
    assert got(follower) == b"value"
    locks = [follower._lock, follower._pulling, follower._starting, follower.engine._log.lock]  # type: ignore[attr-defined]
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()

    def child() -> bool:
        # Somebody may have been in the middle of a change, so nothing is kept.
        assert follower.status()["entries"] == 0
        assert eventually(lambda: got(follower) is None and follower.status()["fresh"])
        put(follower, b"child")
        return got(follower) == b"child"

    in_child(child)
    release.set()
    holder.join()
    assert got(follower) == b"value"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(got, id="get"),
        pytest.param(lambda follower: put(follower, b"value"), id="write"),
        pytest.param(lambda follower: follower.read_engine(KEY), id="read_engine"),
        pytest.param(Follower.mark, id="mark"),
        pytest.param(Follower.clear, id="clear"),
    ],
)
def test_a_fork_that_ran_no_hooks_is_noticed_whatever_is_called_first(
    make_follower: MakeFollower, call: Callable[[Follower], object]
) -> None:
    follower = make_follower()
    put(follower, b"value")
    assert got(follower) == b"value"
    inherited, follower._pid = follower.engine, 0  # as in a child of that process
    call(follower)
    assert follower.engine is not inherited
    assert follower.status()["pid"] == os.getpid()


def test_no_snapshot_holds_in_a_fork_that_ran_no_hooks(make_follower: MakeFollower) -> None:
    follower = make_follower()
    put(follower, b"old")
    snapshot = snapshot_of(follower)
    follower._pid = 0
    assert not follower.still_holds(snapshot, math.inf)
    assert got(follower) == b"old"
    assert follower.still_holds(snapshot, math.inf)


def test_forks_in_the_middle_of_everything_leave_working_children(
    make_follower: MakeFollower,
) -> None:
    follower, other = make_follower(PushingEngine), make_follower(PushingEngine)
    stop = threading.Event()

    def busy(mine: Follower) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            put(mine, b"%d" % number, b"busy-%d" % (number % 50))
            mine.get(b"busy-1")
            mine.write([Change(b"busy-%d" % (number % 7), None)])

    threads = [threading.Thread(target=busy, args=(mine,)) for mine in (follower, other)]
    for thread in threads:
        thread.start()
    try:

        def child() -> bool:
            put(follower, b"child")
            assert eventually(lambda: got(follower) == b"child")
            put(follower, b"again", b"busy-3")
            return eventually(lambda: got(follower, b"busy-3") == b"again")

        for _ in range(10):
            in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
