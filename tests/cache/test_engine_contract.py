"""What every engine promises. Each claim is tried on every engine of ``tests.cache.engines``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from accesspass.cache.engines.base import Change, Condition, Engine, Entry, Page
from tests.cache.conftest import MakeEngine, eventually

ABSENT = Condition(absent=True)
NEWER = Condition(newer=True)


def everything(engine: Engine) -> list[Entry]:
    return list(engine.changes(0, 10_000).changes)


def state(page: Page) -> tuple[str, int, int]:
    return page.epoch, page.head, page.floor


def together(count: int, work: Callable[[int], None]) -> None:
    """Run ``work`` in that many threads which begin at the same moment."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# Reading -------------------------------------------------------------------------------------


def test_a_new_log_is_empty_and_has_an_epoch(make_engine: MakeEngine) -> None:
    page = make_engine().changes(0, 10)
    assert page.epoch
    assert (page.head, page.floor, list(page.changes), page.more) == (0, 0, [], False)
    assert abs(page.now - time.time()) < 60


def test_two_nodes_see_one_log(make_engine: MakeEngine) -> None:
    one, other = make_engine(), make_engine()
    written = one.write([Change(b"key", b"value", 4e9, 7)])
    page = other.changes(0, 10)
    assert list(page.changes) == [Entry(b"key", written.seq, 7, 4e9, b"value")]
    assert (page.epoch, page.head) == (written.epoch, written.seq)
    assert other.read(b"key") == page.changes[0]


def test_a_log_opened_again_is_the_same_log(make_engine: MakeEngine) -> None:
    engine = make_engine()
    written = engine.write([Change(b"key", b"value")])
    engine.close()
    assert engine.read(b"key") == Entry(b"key", written.seq, 0, None, b"value")
    assert make_engine().changes(0, 0).epoch == written.epoch


def test_a_key_never_written_is_not_there(make_engine: MakeEngine) -> None:
    assert make_engine().read(b"nothing") is None


def test_only_the_latest_version_of_a_key_is_kept(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.write([Change(b"a", b"1")])
    engine.write([Change(b"b", b"1")])
    last = engine.write([Change(b"a", b"2")])
    assert [(entry.key, entry.value) for entry in everything(engine)] == [
        (b"b", b"1"),
        (b"a", b"2"),
    ]
    assert engine.changes(0, 10).head == last.seq


def test_changes_come_in_the_order_of_their_numbers_after_the_one_given(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    numbers = [engine.write([Change(b"%d" % i, b"v")]).seq for i in range(10)]
    assert numbers == sorted(set(numbers))
    page = engine.changes(numbers[3], 100)
    assert [entry.seq for entry in page.changes] == numbers[4:]
    assert not page.more
    assert list(engine.changes(numbers[-1], 100).changes) == []
    assert list(engine.changes(numbers[-1] + 50, 100).changes) == []


def test_pages_end_at_the_limit_and_say_that_there_is_more(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.write([Change(b"%02d" % i, b"v") for i in range(7)])
    seen: list[bytes] = []
    after = 0
    for expected, more in ((3, True), (3, True), (1, False)):
        page = engine.changes(after, 3)
        assert (len(page.changes), page.more) == (expected, more)
        assert page.head == 7
        seen += [entry.key for entry in page.changes]
        after = page.changes[-1].seq
    assert seen == [b"%02d" % i for i in range(7)]
    exact = engine.changes(4, 3)
    assert (len(exact.changes), exact.more) == (3, False)


def test_what_was_asked_ahead_is_the_page_if_it_is_taken_and_forgotten_if_not(
    make_engine: MakeEngine,
) -> None:
    engine, other = make_engine(), make_engine()
    engine.write([Change(b"%02d" % i, b"v") for i in range(7)])
    page = engine.changes(0, 3)
    receive = engine.ask_ahead(3, 3)
    if receive is not None:
        page = receive()
        assert ([entry.seq for entry in page.changes], page.more) == ([4, 5, 6], True)
    engine.ask_ahead(6, 3)
    other.write([Change(b"new", b"v")])
    assert [entry.seq for entry in engine.changes(6, 3).changes] == [7, 8]
    engine.ask_ahead(6, 3)
    assert engine.read(b"new") == Entry(b"new", 8, 0, None, b"v")
    assert engine.write([Change(b"newer", b"v")]).seq == 9
    assert engine.changes(0, 0).head == 9


def test_a_limit_of_nothing_reads_the_head_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert not engine.changes(0, 0).more
    written = engine.write([Change(b"key", b"value")])
    page = engine.changes(0, 0)
    assert (list(page.changes), page.more, page.head) == ([], True, written.seq)
    assert not engine.changes(written.seq, 0).more


def test_keys_and_values_are_any_bytes(make_engine: MakeEngine) -> None:
    engine = make_engine()
    key, value = bytes(range(256)), bytes(range(255, -1, -1)) * 100
    engine.write([Change(key, value)])
    engine.write([Change(b"", b"")])
    assert [(entry.key, entry.value) for entry in everything(engine)] == [(key, value), (b"", b"")]
    assert engine.read(key) == Entry(key, 1, 0, None, value)


def test_expiries_and_revisions_come_back_exactly(make_engine: MakeEngine) -> None:
    engine = make_engine()
    expires, revision = 1_800_000_000.123456717, 2**63 - 1
    engine.write([Change(b"key", b"v", expires, revision)])
    assert engine.read(b"key") == Entry(b"key", 1, revision, expires, b"v")


# Writing -------------------------------------------------------------------------------------


def test_one_write_of_many_changes_has_consecutive_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.write([Change(b"b", b"old")])
    written = engine.write([Change(b"a", b"1"), Change(b"b", b"2"), Change(b"c", None)])
    assert (written.done, written.seq, written.held, written.current) == (True, 4, 1, None)
    entries = everything(engine)
    assert [(entry.seq, entry.key, entry.value) for entry in entries] == [
        (2, b"a", b"1"),
        (3, b"b", b"2"),
        (4, b"c", None),
    ]


def test_many_changes_are_seen_all_or_none(make_engine: MakeEngine) -> None:
    engine, other = make_engine(), make_engine()
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            page = other.changes(0, 100)
            seen.append(len(page.changes))
            assert page.head == sum(1 for _ in page.changes)

    watcher = threading.Thread(target=look)
    watcher.start()
    for batch in range(5):
        engine.write([Change(b"%d-%d" % (batch, i), b"v") for i in range(10)])
    done.set()
    watcher.join()
    assert {count % 10 for count in seen} <= {0}


def test_a_deletion_is_a_version_with_a_number_and_a_time(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value", revision=4)])
    deleted = engine.write([Change(b"key", None)])
    entry = engine.read(b"key")
    assert entry is not None
    assert (entry.seq, entry.revision, entry.value) == (deleted.seq, 0, None)
    assert entry.expires is not None
    assert abs(entry.expires - engine.changes(0, 0).now) < 5


def test_deleting_an_absent_key_leaves_a_tombstone_too(make_engine: MakeEngine) -> None:
    engine = make_engine()
    deleted = engine.write([Change(b"never", None)])
    assert (deleted.held, deleted.seq) == (0, 1)
    assert [(entry.key, entry.value) for entry in everything(engine)] == [(b"never", None)]


def test_held_counts_what_was_there_just_before(make_engine: MakeEngine) -> None:
    engine = make_engine()
    past = engine.changes(0, 0).now - 1
    assert engine.write([Change(b"live", b"v"), Change(b"dead", b"v", past)]).held == 0
    assert engine.write([Change(b"live", None)]).held == 1
    assert engine.write([Change(b"live", None)]).held == 0
    assert engine.write([Change(b"dead", None)]).held == 0


# Conditions ----------------------------------------------------------------------------------


def test_absent_allows_what_was_never_written_deleted_or_expired(make_engine: MakeEngine) -> None:
    engine = make_engine()
    past = engine.changes(0, 0).now - 1
    assert engine.write([Change(b"key", b"1", past)], ABSENT).done
    assert engine.write([Change(b"key", b"2")], ABSENT).done
    engine.write([Change(b"key", None)])
    assert engine.write([Change(b"key", b"3")], ABSENT).done


def test_absent_refuses_what_is_held_and_shows_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    future = engine.changes(0, 0).now + 60
    first = engine.write([Change(b"key", b"1", future)])
    refused = engine.write([Change(b"key", b"2")], ABSENT)
    assert (refused.done, refused.held, refused.epoch) == (False, 1, first.epoch)
    assert refused.current == Entry(b"key", first.seq, 0, future, b"1")
    assert engine.changes(0, 0).head == first.seq  # a refused write has no number


def test_a_number_as_condition_asks_for_exactly_that_version(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert not engine.write([Change(b"key", b"x")], Condition(seq=1)).done
    assert engine.write([Change(b"key", b"1")], Condition(seq=0)).done
    refused = engine.write([Change(b"key", b"x")], Condition(seq=0))
    assert (refused.done, refused.current) == (False, Entry(b"key", 1, 0, None, b"1"))
    assert engine.write([Change(b"key", b"2")], Condition(seq=1)).done
    engine.write([Change(b"key", None)])
    assert engine.write([Change(b"key", b"3")], Condition(seq=3)).done


def test_newer_asks_for_a_greater_revision(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert engine.write([Change(b"key", b"5", revision=5)], NEWER).done
    for revision in (4, 5):
        refused = engine.write([Change(b"key", b"late", revision=revision)], NEWER)
        assert not refused.done
        assert refused.current == Entry(b"key", 1, 5, None, b"5")
    assert engine.write([Change(b"key", b"6", revision=6)], NEWER).done


def test_newer_compares_with_expired_versions_too(make_engine: MakeEngine) -> None:
    engine = make_engine()
    past = engine.changes(0, 0).now - 60
    engine.write([Change(b"key", b"5", past, 5)])
    assert not engine.write([Change(b"key", b"4", revision=4)], NEWER).done
    assert engine.write([Change(b"key", b"6", revision=6)], NEWER).done


def test_newer_compares_with_deleted_versions_too(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.write([Change(b"key", None, revision=5)])
    assert not engine.write([Change(b"key", b"5", revision=5)], NEWER).done
    assert engine.write([Change(b"key", b"6", revision=6)], NEWER).done


def test_an_epoch_as_condition_ends_with_the_epoch(make_engine: MakeEngine) -> None:
    engine = make_engine()
    before = engine.changes(0, 0).epoch
    assert engine.write([Change(b"key", b"1")], Condition(epoch=before)).done
    engine.clear()
    refused = engine.write([Change(b"key", b"2")], Condition(epoch=before))
    assert (refused.done, refused.current) == (False, None)
    assert refused.epoch == engine.changes(0, 0).epoch != before
    assert engine.write([Change(b"key", b"3")], Condition(epoch=refused.epoch)).done


def test_conditions_go_together(make_engine: MakeEngine) -> None:
    engine = make_engine()
    epoch = engine.changes(0, 0).epoch
    engine.write([Change(b"key", b"1", revision=1)])
    change = Change(b"key", b"2", revision=2)
    assert not engine.write([change], Condition(newer=True, epoch="another")).done
    assert not engine.write([change], Condition(newer=True, seq=9)).done
    assert not engine.write([change], Condition(newer=True, absent=True)).done
    assert engine.write([change], Condition(newer=True, epoch=epoch, seq=1)).done


# Ending histories, and forgetting ------------------------------------------------------------


def test_clear_begins_an_epoch_without_anything(make_engine: MakeEngine) -> None:
    engine, other = make_engine(), make_engine()
    written = engine.write([Change(b"a", b"v"), Change(b"b", None)])
    engine.clear()
    page = other.changes(0, 10)
    assert page.epoch != written.epoch
    assert list(page.changes) == []
    assert other.read(b"a") is None
    assert engine.write([Change(b"a", b"v")]).epoch == page.epoch


def test_two_clears_are_two_epochs(make_engine: MakeEngine) -> None:
    engine = make_engine()
    epochs = {engine.changes(0, 0).epoch}
    for _ in range(2):
        engine.clear()
        epochs.add(engine.changes(0, 0).epoch)
    assert len(epochs) == 3


def test_purge_forgets_what_died_before_and_raises_the_floor(make_engine: MakeEngine) -> None:
    engine = make_engine()
    now = engine.changes(0, 0).now
    engine.write([Change(b"forever", b"v")])
    engine.write([Change(b"expired", b"v", now - 100)])
    engine.write([Change(b"deleted", None)])
    engine.write([Change(b"alive", b"v", now + 100)])
    assert engine.purge(now - 50, 100) == 1
    page = engine.changes(0, 100)
    assert [entry.key for entry in page.changes] == [b"forever", b"deleted", b"alive"]
    assert (page.floor, page.head) == (2, 4)
    assert engine.read(b"expired") is None
    assert engine.purge(now + 50, 100) == 1
    assert [entry.key for entry in everything(engine)] == [b"forever", b"alive"]
    assert engine.changes(0, 0).floor == 3
    assert engine.purge(now + 50, 100) == 0


def test_purge_of_nothing_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"v")])
    before = state(engine.changes(0, 0))
    assert engine.purge(engine.changes(0, 0).now, 100) == 0
    assert state(engine.changes(0, 0)) == before


def test_purge_keeps_to_its_limit_and_never_lowers_the_floor(make_engine: MakeEngine) -> None:
    engine = make_engine()
    now = engine.changes(0, 0).now
    # The last written died first.
    engine.write([Change(b"%d" % i, b"v", now - 100 - i) for i in range(5)])
    floors = []
    for expected in (2, 2, 1, 0):
        assert engine.purge(now, 2) == expected
        page = engine.changes(0, 100)
        floors.append(page.floor)
        assert page.floor <= page.head == 5
    assert floors == sorted(floors)
    assert floors[-1] == 5
    assert everything(engine) == []


def test_no_page_shows_a_purge_without_its_floor(make_engine: MakeEngine) -> None:
    """A follower that was told nothing of either would keep what is gone for ever."""
    engine, other = make_engine(), make_engine()
    deleted = engine.write([Change(b"key", None)]).seq
    engine.write([Change(b"other", b"v")])
    before = engine.changes(0, 0).now + 1
    pages: list[Page] = []

    def is_gone() -> bool:
        pages.append(other.changes(0, 100))
        return pages[-1].changes[0].seq != deleted

    purging = threading.Thread(target=engine.purge, args=(before, 100))
    purging.start()
    assert eventually(is_gone)
    purging.join()
    assert pages[-1].floor == deleted


def test_a_version_written_again_is_not_purged_for_its_past(make_engine: MakeEngine) -> None:
    engine = make_engine()
    now = engine.changes(0, 0).now
    engine.write([Change(b"key", b"old", now - 100)])
    engine.write([Change(b"key", b"new")])
    assert engine.purge(now, 100) == 0
    assert engine.read(b"key") == Entry(b"key", 2, 0, None, b"new")


def test_a_purged_version_no_longer_counts_for_newer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    now = engine.changes(0, 0).now
    engine.write([Change(b"key", b"5", now - 100, 5)])
    assert not engine.write([Change(b"key", b"4", revision=4)], NEWER).done
    engine.purge(now, 100)
    assert engine.write([Change(b"key", b"4", revision=4)], NEWER).done


# Many at once --------------------------------------------------------------------------------


def test_add_has_one_winner_among_threads_and_nodes(make_engine: MakeEngine) -> None:
    engines = [make_engine(), make_engine()]
    keys = [b"key-%d" % i for i in range(20)]
    winners: list[tuple[bytes, int]] = []

    def work(number: int) -> None:
        for key in keys:
            if engines[number % 2].write([Change(key, b"%d" % number)], ABSENT).done:
                winners.append((key, number))

    together(8, work)
    assert sorted(key for key, _ in winners) == sorted(keys)
    for key, number in winners:
        held = engines[0].read(key)
        assert held is not None
        assert held.value == b"%d" % number


def test_compare_and_set_loses_nothing(make_engine: MakeEngine) -> None:
    engines = [make_engine(), make_engine()]
    engines[0].write([Change(b"sum", b"0")])

    def work(number: int) -> None:
        engine = engines[number % 2]
        for _ in range(10):
            current = engine.read(b"sum")
            while current is not None:
                total = int(current.value or b"") + 1
                written = engine.write([Change(b"sum", b"%d" % total)], Condition(seq=current.seq))
                if written.done:
                    break
                current = written.current

    together(6, work)
    final = engines[0].read(b"sum")
    assert final is not None
    assert final.value == b"60"


def test_numbers_are_given_once_and_a_follower_misses_none(make_engine: MakeEngine) -> None:
    engines = [make_engine(), make_engine()]
    follower = make_engine()
    numbers: list[int] = []
    seen: dict[bytes, int] = {}
    writing = threading.Event()
    writing.set()

    def follow() -> None:
        after = 0
        while True:
            last_round = not writing.is_set()
            page = follower.changes(after, 7)
            for entry in page.changes:
                assert entry.seq > after
                after = entry.seq
                seen[entry.key] = entry.seq
            if last_round and not page.more:
                return

    def work(number: int) -> None:
        for i in range(20):
            written = engines[number % 2].write([Change(b"%d-%d" % (number, i), b"v")])
            numbers.append(written.seq)

    watcher = threading.Thread(target=follow)
    watcher.start()
    together(4, work)
    writing.clear()
    watcher.join()
    assert sorted(numbers) == list(range(1, 81))
    assert sorted(seen.values()) == sorted(numbers)
