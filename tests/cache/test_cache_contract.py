"""What the replicated cache promises, on every engine, to two nodes and more.

Each node here is a replica of its own with an engine object of its own, as in two processes.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

from accesspass.cache import ReplicatedCache
from accesspass.cache.engines.base import Change, Condition, Engine, Entry, Page, Written
from accesspass.cache.exceptions import EngineUnavailable, EngineUncertain
from tests.cache.conftest import MakeEngine, MakeNode, eventually, usable
from tests.cache.engines import KINDS, Kind
from tests.cache.test_engine_contract import together


@pytest.fixture(params=[name for name in KINDS if not name.startswith("database-")])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each engine once: ``database:ALIAS`` is one of the others by another name."""
    return usable(request.param)


LIVE, DEAD = {"user": 1}, "dead"


def key_of(node: ReplicatedCache, key: str) -> bytes:
    return node._key(key, None)


def engine_of(node: ReplicatedCache) -> Engine:
    return node._follower.engine


def counters(node: ReplicatedCache) -> dict[str, int]:
    found: dict[str, int] = node.status()["counters"]
    return found


def sees(node: ReplicatedCache, key: str, value: Any) -> bool:
    return eventually(lambda: bool(node.get(key) == value))


def catch_up(*nodes: ReplicatedCache) -> None:
    for node in nodes:
        node._follower.pull()


@contextlib.contextmanager
def cut_off(node: ReplicatedCache, *names: str) -> Iterator[None]:
    """Let calls of this node to its engine fail as if it were out of reach."""
    with contextlib.ExitStack() as stack:
        for name in names or ("changes", "read", "write", "clear", "purge"):
            failing = mock.Mock(side_effect=EngineUnavailable("cut off by the test"))
            stack.enter_context(mock.patch.object(engine_of(node), name, failing))
        yield


@contextlib.contextmanager
def after_page(
    node: ReplicatedCache,
    act: Callable[[], None],
    when: Callable[[int, Page], bool] = lambda after, page: True,
) -> Iterator[None]:
    """Do something once, when a page has been read and is not applied yet."""
    real = engine_of(node).changes
    done = False

    def changes(after: int, limit: int) -> Page:
        nonlocal done
        page = real(after, limit)
        if limit and not done and when(after, page):
            done = True
            act()
        return page

    with mock.patch.object(engine_of(node), "changes", changes):
        yield


# S1: writes are linearizable -----------------------------------------------------------------


def test_s1_add_has_one_winner_on_all_nodes(make_node: MakeNode) -> None:
    nodes = [make_node(), make_node()]
    winners: list[tuple[str, int]] = []

    def work(number: int) -> None:
        for i in range(10):
            if nodes[number % 2].add(f"key-{i}", number):
                winners.append((f"key-{i}", number))

    together(8, work)
    assert sorted(key for key, _ in winners) == sorted(f"key-{i}" for i in range(10))
    for key, number in winners:
        assert all(sees(node, key, number) for node in nodes)


def test_s1_incr_is_exact_on_all_nodes(make_node: MakeNode) -> None:
    nodes = [make_node(), make_node()]
    nodes[0].set("sum", 0)

    def work(number: int) -> None:
        for _ in range(10):
            nodes[number % 2].incr("sum")

    together(4, work)
    assert all(sees(node, "sum", 40) for node in nodes)


def test_s1_a_write_of_unknown_outcome_is_said_to_be_so_and_not_repeated(
    make_node: MakeNode,
) -> None:
    node = make_node()
    node.set("sum", 0)
    real = engine_of(node).write
    sent = 0

    def lose_the_answer(*args: Any) -> None:
        nonlocal sent
        sent += 1
        real(*args)
        raise EngineUncertain("the answer was lost")

    calls: list[Callable[[], Any]] = [
        lambda: node.incr("sum"),
        lambda: node.set("key", 1),
        lambda: node.add("other", 1),
        lambda: node.delete("key"),
        lambda: node.touch("sum", 60),
    ]
    with mock.patch.object(engine_of(node), "write", lose_the_answer):
        for call in calls:
            with pytest.raises(node.EngineUncertain):
                call()
    assert sent == len(calls)
    assert sees(node, "sum", 1)


def test_s1_a_publication_of_unknown_outcome_is_repeated_once(make_node: MakeNode) -> None:
    node = make_node()
    real = engine_of(node).write
    lost = iter([True, False])

    def write(*args: Any) -> Any:
        written = real(*args)
        if next(lost):
            raise EngineUncertain("the answer was lost")
        return written

    with mock.patch.object(engine_of(node), "write", write):
        assert node.publish("key", LIVE, 1, 60, node.mark())
    assert node.get("key") == LIVE


# S2: a prefix of the log, and never backwards ------------------------------------------------


def test_s2_values_never_go_backwards_on_another_node(make_node: MakeNode) -> None:
    writer, reader = make_node(), make_node()
    writer.set("n", 0)
    assert sees(reader, "n", 0)
    done = threading.Event()
    backwards: list[bool] = []

    def read() -> None:
        last = 0
        while not done.is_set():
            n = reader.get("n")
            backwards.append(n < last)
            last = n
            time.sleep(0.0005)

    watchers = [threading.Thread(target=read) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    for n in range(1, 50):
        writer.set("n", n)
    assert sees(reader, "n", 49)
    done.set()
    for watcher in watchers:
        watcher.join()
    assert backwards
    assert not any(backwards)


def test_s2_what_was_written_together_is_seen_together(make_node: MakeNode) -> None:
    writer, reader = make_node(), make_node()
    for n in range(20):
        writer.set_many({"a": n, "b": n})
        assert sees(reader, "b", n)
        assert reader.get("a") == n


def test_s2_a_deletion_reaches_the_other_nodes(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    node.set_many({"key": 1, "kept": 1})
    assert sees(other, "key", 1)
    node.delete("key")
    node.set("kept", 2)
    assert sees(other, "kept", 2)
    assert other.get("key") is None


def test_writes_of_many_are_cut_into_batches_that_leave_time_for_others(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make_node(), make_node()
    sizes = []
    write = engine_of(one).write

    def counted(changes: Sequence[Change], condition: Condition | None = None) -> Written:
        sizes.append(len(changes))
        return write(changes, condition)

    monkeypatch.setattr(engine_of(one), "write", counted)
    many = {f"key-{number}": number for number in range(2_500)}
    assert one.set_many(many) == []
    assert sizes == [1_000, 1_000, 500]
    assert one.get_many(many) == many
    assert eventually(lambda: two.get_many(many) == many)
    one.delete_many(many)
    assert sizes[3:] == [1_000, 1_000, 500]
    assert one.get_many(many) == {}
    assert eventually(lambda: two.get_many(many) == {})
    one.set_many({f"big-{number}": "x" * (3 << 20) for number in range(3)})
    assert sizes[6:] == [2, 1]


def test_s2_own_writes_never_move_what_was_applied(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    catch_up(node)
    with cut_off(node, "changes"):
        other.set("theirs", 1)
        before = node.status()["applied"]
        node.set("ours", 2)
        assert node.status()["applied"] == before
    assert sees(node, "theirs", 1)  # it would be jumped over otherwise
    assert node.get("ours") == 2


def test_s2_pages_are_followed_to_the_head(make_node: MakeNode) -> None:
    writer, reader = make_node(), make_node()
    engine_of(reader).page_size = 3  # type: ignore[misc]
    writer.set_many({f"key-{i}": i for i in range(20)})
    writer.delete_many([f"key-{i}" for i in range(0, 20, 2)])
    assert sees(reader, "key-19", 19)
    found = reader.get_many([f"key-{i}" for i in range(20)])
    assert found == {f"key-{i}": i for i in range(1, 20, 2)}


# S3: a writer reads its own write ------------------------------------------------------------


def test_s3_a_writer_reads_its_own_write_at_once(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    node.set("key", 1)
    assert node.get("key") == 1
    assert sees(other, "key", 1)
    assert other.incr("key") == 2
    assert other.get("key") == 2
    assert sees(node, "key", 2)
    assert node.delete("key")
    assert node.get("key") is None
    assert not node.has_key("key")
    assert node.add("key", 3)
    assert node.get("key") == 3
    node.set_many({"a": 1, "b": 2})
    assert node.get_many(["a", "b"]) == {"a": 1, "b": 2}
    node.delete_many(["a", "b"])
    assert node.get_many(["a", "b"]) == {}
    assert node.publish("published", LIVE, 1, 60, node.mark())
    assert node.get("published") == LIVE


def test_s3_a_refused_add_reads_what_stood_in_the_way(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    catch_up(node)
    with cut_off(node, "changes"):
        other.set("key", "theirs")
        assert not node.add("key", "ours")
        assert node.get("key") == "theirs"


def test_s3_holds_for_a_write_made_while_the_first_pull_is_under_way(make_node: MakeNode) -> None:
    node = make_node()
    make_node().set("key", "old")
    with after_page(node, lambda: node.set("key", "new")):
        catch_up(node)
    with cut_off(node, "changes"):
        assert node.get("key") == "new"


def test_s3_an_older_page_does_not_undo_an_own_write(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    catch_up(node)
    other.set("key", "old")
    with after_page(node, lambda: node.set("key", "new")):
        catch_up(node)
    with cut_off(node, "changes"):
        assert node.get("key") == "new"
    assert sees(node, "key", "new")


# S4: a hit was true at most MAX_STALENESS ago ------------------------------------------------


def test_s4_a_node_cut_off_answers_for_max_staleness_then_misses_then_heals(
    make_node: MakeNode,
) -> None:
    node, other = make_node(MAX_STALENESS=0.5, HEARTBEAT=0.05), make_node()
    other.set("key", "old")
    assert sees(node, "key", "old")
    catch_up(node)
    with cut_off(node):
        assert node.get("key") == "old"
        other.set("key", "new")
        time.sleep(0.55)
        assert {node.get("key") for _ in range(10)} == {None}
        assert not node.status()["fresh"]
        with pytest.raises(node.EngineUnavailable):
            node.set("key", "x")
    assert sees(node, "key", "new")
    assert node.status()["fresh"]
    assert counters(node)["resyncs"] == 0


# S5: an entry may be absent, never older -----------------------------------------------------


def test_s5_a_new_epoch_empties_every_node(make_node: MakeNode, make_engine: MakeEngine) -> None:
    node, other = make_node(), make_node()
    node.set("key", 1)
    assert sees(other, "key", 1)
    make_engine().clear()
    for cache in (node, other):
        assert sees(cache, "key", None)
        assert counters(cache)["resyncs"] == 1
    assert node.status()["epoch"] == other.status()["epoch"]
    other.set("key", 2)
    assert sees(node, "key", 2)
    assert counters(node)["resyncs"] == 1


def test_clear_on_one_node_clears_all(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    node.set("key", 1)
    assert sees(other, "key", 1)
    other.clear()
    assert other.get("key") is None
    assert sees(node, "key", None)
    other.set("key", 2)
    assert other.get("key") == 2
    assert sees(node, "key", 2)


def test_a_write_answered_from_another_epoch_forces_a_pull(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node = make_node()
    node.set_many({"key": 1, "other": 1})
    assert node.get("other") == 1
    with cut_off(node, "changes"):
        make_engine().clear()
        node.set("key", 2)
        assert node.get("other") is None
        assert node.get("key") in (None, 2)
    assert sees(node, "key", 2)
    assert node.get("other") is None


# Starting again ------------------------------------------------------------------------------


def fall_below_the_floor(node: ReplicatedCache, other: ReplicatedCache) -> None:
    other.set("gone", 1)
    assert sees(node, "gone", 1)
    with node._follower._pulling:  # no pull is under way, and none begins
        other.set("kept", 2)
        other.delete("gone")
        other.set("late", 3)
        engine = engine_of(other)
        assert engine.purge(engine.changes(0, 0).now + 1, 100) >= 1


def test_a_replica_below_the_floor_starts_again_exactly_once(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    fall_below_the_floor(node, other)
    assert sees(node, "late", 3)
    assert (node.get("gone"), node.get("kept")) == (None, 2)
    for _ in range(3):
        catch_up(node)
    assert counters(node)["resyncs"] == 1


def test_a_replica_that_saw_what_was_purged_does_not_start_again(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    other.set("key", 1)
    other.delete("key")
    other.set("late", 2)
    assert sees(node, "late", 2)
    engine = engine_of(other)
    assert engine.purge(engine.changes(0, 0).now + 1, 100) == 1
    catch_up(node)
    joined_late = make_node()
    assert sees(joined_late, "late", 2)
    assert counters(node)["resyncs"] == counters(joined_late)["resyncs"] == 0


def test_an_own_write_during_a_resync_survives_the_swap(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()

    def write() -> None:
        node.set("kept", "ours")
        node.set("new", "ours")

    def is_of_new_replica(after: int, page: Page) -> bool:
        return after == 0 and page.floor > 0

    with after_page(node, write, is_of_new_replica):
        fall_below_the_floor(node, other)
        catch_up(node)
    with cut_off(node, "changes"):
        assert (node.get("kept"), node.get("new")) == ("ours", "ours")
        assert (node.get("gone"), node.get("late")) == (None, 3)
    assert sees(node, "kept", "ours")
    assert counters(node)["resyncs"] == 1


def test_an_own_write_of_an_ended_epoch_does_not_survive_the_swap(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node, ending = make_node(), make_engine()
    node.set("before", 1)
    catch_up(node)
    real = engine_of(node).changes
    begun = False

    def changes(after: int, limit: int) -> Page:
        nonlocal begun
        if limit and not begun:
            begun = True
            node.set("during", 1)
            ending.clear()
        return real(after, limit)

    with mock.patch.object(engine_of(node), "changes", changes):
        catch_up(node)
    with cut_off(node, "changes"):
        assert node.status()["fresh"]
        assert (node.get("before"), node.get("during")) == (None, None)


def test_a_page_of_an_ended_epoch_is_thrown_away_if_a_write_tells_of_the_end(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node, ending = make_node(), make_engine()
    node.set("before", 1)
    catch_up(node)

    def write() -> None:
        ending.clear()
        node.set("after", 2)

    with after_page(node, write):
        catch_up(node)
    with cut_off(node, "changes"):
        assert node.status()["fresh"]
        assert (node.get("before"), node.get("after")) == (None, 2)


# publish -------------------------------------------------------------------------------------


def test_a_late_publication_loses(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    mark = other.mark()
    assert node.publish("key", DEAD, 2, 60)
    assert not other.publish("key", LIVE, 1, 60, mark)
    assert node.get("key") == other.get("key") == DEAD


def test_a_repeated_publication_is_acknowledged_and_changes_nothing(make_node: MakeNode) -> None:
    node = make_node()
    mark = node.mark()
    assert node.publish("key", LIVE, 1, 60, mark)
    head = engine_of(node).changes(0, 0).head
    assert node.publish("key", LIVE, 1, 60, mark)
    assert engine_of(node).changes(0, 0).head == head


def test_reordered_publications_end_at_the_greatest_revision(make_node: MakeNode) -> None:
    nodes = [make_node(), make_node()]
    marks = [node.mark() for node in nodes]
    for turn, revision in enumerate((3, 1, 5, 2, 4)):
        node = nodes[turn % 2]
        assert node.publish("key", revision, revision, 60, marks[turn % 2]) == (revision in (3, 5))
    assert all(sees(node, "key", 5) for node in nodes)


def test_a_replayed_publication_loses_on_every_node_that_saw_a_newer_one(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node, other = make_node(), make_node()
    engine = make_engine()
    node.publish("key", LIVE, 1, 60, node.mark())
    captured = engine.read(key_of(node, "key"))
    assert captured is not None
    node.publish("key", DEAD, 2, 60)
    assert sees(other, "key", DEAD)
    # Somebody who can write to the engine puts the older bytes back, with a new number.
    engine.write([Change(captured.key, captured.value, captured.expires, captured.revision)])
    catch_up(node, other)
    assert node.get("key") == other.get("key") == DEAD


def test_revisions_are_compared_with_expired_entries_too(make_node: MakeNode) -> None:
    node = make_node()
    mark = node.mark()
    node.publish("key", DEAD, 2, 0)
    assert node.get("key") is None
    assert not node.publish("key", LIVE, 1, 60, mark)
    assert not node.fill("key", LIVE, 1, 60, node.mark())
    assert node.get("key") is None


def test_a_live_record_with_an_old_mark_is_refused_in_a_new_epoch(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node = make_node()
    mark = node.mark()
    make_engine().clear()
    assert not node.publish("key", LIVE, 1, 60, mark)
    assert sees(node, "key", None)
    assert node.publish("key", LIVE, 1, 60, node.mark())


def test_a_marker_without_a_mark_is_written_in_a_new_epoch(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node, other = make_node(), make_node()
    catch_up(node, other)
    make_engine().clear()
    assert node.publish("key", DEAD, 2, 60)
    assert sees(node, "key", DEAD)
    assert sees(other, "key", DEAD)


def test_a_marker_replaces_what_nobody_can_read_whatever_its_revision(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node, other = make_node(), make_node()
    other.fill("key", LIVE, 1, 60, other.mark())
    make_engine().write([Change(key_of(node, "key"), b"rubbish", None, 2**62)])
    assert not node.publish("key", LIVE, 3, 60, node.mark())
    assert node.publish("key", DEAD, 3, 60)
    assert sees(node, "key", DEAD)
    assert sees(other, "key", DEAD)


@pytest.mark.parametrize("revision", [0, -1, 2**63])
def test_a_revision_is_a_positive_number(make_node: MakeNode, revision: int) -> None:
    node = make_node()
    with pytest.raises(ValueError, match="positive"):
        node.publish("key", LIVE, revision, 60)


# fill ----------------------------------------------------------------------------------------


def test_a_fill_stays_in_its_process(make_node: MakeNode, make_engine: MakeEngine) -> None:
    node, other = make_node(), make_node()
    assert node.fill("key", LIVE, 1, 60, node.mark())
    assert node.get("key") == LIVE
    assert other.get("key") is None
    assert make_engine().read(key_of(node, "key")) is None


def test_a_fill_is_refused_after_a_newer_number(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    catch_up(node)
    mark = node.mark()
    other.publish("key", DEAD, 1, 60)
    assert sees(node, "key", DEAD)
    assert not node.fill("key", LIVE, 9, 60, mark)
    assert node.get("key") == DEAD


def test_a_fill_is_refused_after_a_newer_deletion(make_node: MakeNode) -> None:
    node = make_node()
    catch_up(node)
    mark = node.mark()
    node.delete("key")
    assert not node.fill("key", LIVE, 9, 60, mark)
    catch_up(node)
    assert node.fill("key", LIVE, 9, 60, node.mark())


@pytest.mark.parametrize("revision", [1, 2])
def test_a_fill_is_refused_if_its_revision_is_not_greater(
    make_node: MakeNode, revision: int
) -> None:
    node = make_node()
    node.publish("key", DEAD, 2, 60)
    catch_up(node)
    assert not node.fill("key", LIVE, revision, 60, node.mark())
    assert node.get("key") == DEAD


def test_a_fill_of_a_greater_revision_wins_until_the_log_says_more(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    node.publish("key", 1, 1, 60, node.mark())
    catch_up(node)
    assert node.fill("key", 3, 3, 60, node.mark())
    other.publish("key", 2, 2, 60, other.mark())
    catch_up(node)
    assert node.get("key") == 3
    other.publish("key", 4, 4, 60, other.mark())
    assert sees(node, "key", 4)


def test_a_fill_is_refused_in_another_epoch(make_node: MakeNode, make_engine: MakeEngine) -> None:
    node = make_node()
    catch_up(node)
    mark = node.mark()
    make_engine().clear()
    catch_up(node)
    assert not node.fill("key", LIVE, 1, 60, mark)
    assert node.fill("key", LIVE, 1, 60, node.mark())


def test_a_fill_is_refused_if_its_mark_is_from_before_a_swap(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    catch_up(node)
    mark = node.mark()
    fall_below_the_floor(node, other)
    assert sees(node, "late", 3)
    assert node.mark().epoch == mark.epoch
    assert not node.fill("key", LIVE, 1, 60, mark)


def test_a_fill_is_refused_with_an_old_mark(make_node: MakeNode) -> None:
    node = make_node(MAX_STALENESS=0.2, HEARTBEAT=0.1)
    mark = node.mark()
    time.sleep(0.25)
    assert not node.fill("key", LIVE, 1, 60, mark)


def test_a_fill_answers_for_max_staleness_while_the_engine_is_out_of_reach(
    make_node: MakeNode,
) -> None:
    node = make_node(MAX_STALENESS=0.3, HEARTBEAT=0.1)
    catch_up(node)
    with cut_off(node):
        time.sleep(0.35)
        assert node.get("key") is None
        assert node.fill("key", LIVE, 1, 60, node.mark())
        assert node.get("key") == LIVE
        time.sleep(0.35)
        assert node.get("key") is None


def test_a_fill_expires(make_node: MakeNode) -> None:
    node = make_node()
    catch_up(node)
    assert node.fill("key", LIVE, 1, 0.1, node.mark())
    assert sees(node, "key", None)
    assert not node.fill("key", LIVE, 1, 60, node.mark())


def test_a_local_marker_keeps_out_what_is_older(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    other.publish("key", LIVE, 1, 60, other.mark())
    assert sees(node, "key", LIVE)
    assert node.fill("key", DEAD, 2, 60, node.mark(), marker=True)
    assert node.get("key") == DEAD
    other.publish("key", LIVE, 1, 60, other.mark())
    catch_up(node)
    assert node.get("key") == DEAD


def test_what_was_forgotten_is_a_miss_until_it_is_written(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    node.publish("key", 1, 1, 60, node.mark())
    assert sees(other, "key", 1)
    other.forget("key")
    catch_up(other)
    assert other.get("key") is None
    assert node.get("key") == 1
    node.publish("key", 2, 2, 60, node.mark())
    assert sees(other, "key", 2)


def test_marks_need_no_engine_once_it_was_met(make_node: MakeNode) -> None:
    node = make_node()
    with cut_off(node), pytest.raises(node.EngineUnavailable):
        node.mark()
    first = node.mark()
    with cut_off(node):
        assert node.mark().epoch == first.epoch


# What cannot be read -------------------------------------------------------------------------


def sealed(node: ReplicatedCache, engine: Engine, key: str, value: Any) -> Entry:
    node.set(key, value, 60)
    entry = engine.read(key_of(node, key))
    assert entry is not None
    return entry


BAD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda value: b"",
    "garbage": lambda value: b"\xff" * 100,
    "pickle": lambda value: pickle.dumps({"a": 1}),
    "truncated": lambda value: value[:-1],
    "cut within the seal": lambda value: value[:20],
    "longer": lambda value: value + b"\0",
    "another format": lambda value: b"\x02" + value[1:],
    "a flag set": lambda value: value[:1] + bytes([value[1] ^ 1]) + value[2:],
    "a bit flipped": lambda value: value[:-1] + bytes([value[-1] ^ 1]),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=list(BAD))
def test_what_no_key_of_ours_sealed_is_an_absence_at_its_number(
    make_node: MakeNode, make_engine: MakeEngine, spoil: Callable[[bytes], bytes]
) -> None:
    node, engine = make_node(), make_engine()
    entry = sealed(node, engine, "key", "good")
    assert node.get("key") == "good"
    refused = counters(node)["refused"]
    assert entry.value is not None
    engine.write([Change(entry.key, spoil(entry.value), entry.expires)])
    assert sees(node, "key", None)
    assert counters(node)["refused"] > refused
    # The follower is alive, and the key can be written again.
    make_node().set("next", 1)
    assert sees(node, "next", 1)
    assert node.add("key", "again")
    assert node.get("key") == "again"


def test_an_entry_moved_prolonged_or_of_another_revision_is_refused(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node, engine = make_node(), make_engine()
    entry = sealed(node, engine, "key", "good")
    assert entry.expires is not None
    engine.write([Change(key_of(node, "moved"), entry.value, entry.expires)])
    engine.write([Change(entry.key, entry.value, entry.expires + 1)])
    assert sees(node, "key", None)
    assert node.get("moved") is None
    engine.write([Change(entry.key, entry.value, None)])
    catch_up(node)
    assert node.get("key") is None
    engine.write([Change(entry.key, entry.value, entry.expires, 1)])
    catch_up(node)
    assert node.get("key") is None
    engine.write([Change(entry.key, entry.value, entry.expires)])
    assert sees(node, "key", "good")


def test_keys_rotate_in_two_steps(make_node: MakeNode) -> None:
    old = make_node(SIGNING_KEYS=["old"])
    prepared = make_node(SIGNING_KEYS=["old", "new"])
    switched = make_node(SIGNING_KEYS=["new", "old"])
    old.set("a", 1)
    assert sees(prepared, "a", 1)
    assert sees(switched, "a", 1)
    switched.set("b", 2)
    assert sees(prepared, "b", 2)
    prepared.set("c", 3)
    assert sees(switched, "c", 3)
    finished = make_node(SIGNING_KEYS=["new"])
    assert sees(finished, "b", 2)
    assert finished.get("a") is None


def test_in_a_key_change_without_the_first_step_the_older_value_does_not_live_on(
    make_node: MakeNode,
) -> None:
    old, new = make_node(SIGNING_KEYS=["old"]), make_node(SIGNING_KEYS=["new"])
    old.publish("key", LIVE, 1, 60, old.mark())
    assert old.get("key") == LIVE
    assert new.publish("key", DEAD, 2, 60)
    assert sees(old, "key", None)


def test_bytes_of_another_codec_are_a_miss(make_node: MakeNode) -> None:
    writer = make_node(CODEC="tests.cache.test_cache_contract.OtherCodec")
    reader = make_node()
    writer.set("key", "value")
    assert writer.get("key") == "value"
    assert reader.get("key", "missing") == "missing"
    with pytest.raises(ValueError, match="no value"):
        reader.incr("key")
    reader.set("key", 1)
    assert reader.get("key") == 1


class OtherCodec:
    def encode(self, value: Any) -> bytes:
        return b"\xc1" + str(value).encode()

    def decode(self, data: bytes) -> Any:
        if data[:1] != b"\xc1":
            raise ValueError("not of this codec")
        return data[1:].decode()


# before_fresh --------------------------------------------------------------------------------


def test_callbacks_run_before_a_replica_answers_for_the_first_time(make_node: MakeNode) -> None:
    node = make_node()
    make_node().publish("key", LIVE, 1, 60)
    seen: list[Any] = []

    def callback() -> None:
        seen.append((node.get("key"), threading.current_thread()))
        node.fill("key", DEAD, 2, 60, node.mark(), marker=True)

    node.before_fresh(callback)
    assert sees(node, "key", DEAD)
    assert len(seen) == 1
    assert seen[0][0] is None  # nothing was vouched for while it ran
    assert seen[0][1] is not threading.current_thread()


def test_a_failing_callback_leaves_the_replica_stale(make_node: MakeNode) -> None:
    node = make_node()
    node.set("key", 1)
    assert node.get("key") == 1
    failing = True

    def callback() -> None:
        if failing:
            raise OSError("no database")

    node.before_fresh(callback)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert node.get("key") is None
        time.sleep(0.01)
    assert 0 < counters(node)["failures"] < 20  # it is not tried at each read
    failing = False
    assert sees(node, "key", 1)


def test_a_callback_that_ends_its_thread_leaves_the_replica_stale(make_node: MakeNode) -> None:
    node = make_node()

    def callback() -> None:
        raise SystemExit

    node.before_fresh(callback)
    node.set("key", 1)
    assert node.get("key") is None


def test_a_callback_given_while_a_pull_ends_is_not_passed_over(make_node: MakeNode) -> None:
    node = make_node()
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        node.before_fresh(second)

    def second() -> None:
        ran.append("second")

    node.before_fresh(first)
    catch_up(node)
    assert ran == ["first", "first", "second"]
    node.set("key", 1)
    assert node.get("key") == 1


def test_callbacks_run_again_after_the_engine_was_out_of_reach(make_node: MakeNode) -> None:
    node = make_node(MAX_STALENESS=0.2, HEARTBEAT=0.05)
    ran: list[int] = []
    node.before_fresh(lambda: ran.append(1))
    node.set("key", 1)
    assert sees(node, "key", 1)
    count = len(ran)
    assert count >= 1
    with cut_off(node):
        time.sleep(0.3)
        assert node.get("key") is None
    assert sees(node, "key", 1)
    assert len(ran) > count


# Expiry, room and memory ---------------------------------------------------------------------


def test_expiry_is_checked_at_each_read(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    catch_up(node, other)
    node.set("key", 1, 0.5)
    catch_up(other)
    assert other.get("key") == 1
    for cache in (node, other):
        assert sees(cache, "key", None)
        # Each page sets the engine's clock anew, and by as much as it was under way back.
        assert eventually(lambda: not cache.has_key("key"))  # noqa: B023 - called here
    with pytest.raises(ValueError, match="not found"):
        other.incr("key")
    assert not other.touch("key", 60)
    assert not other.delete("key")


def test_an_expired_entry_can_be_added(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    node.set("key", 1, 0.05)
    time.sleep(0.6)
    assert other.add("key", 2)
    assert sees(node, "key", 2)


def test_each_node_culls_by_itself_and_markers_stay(make_node: MakeNode) -> None:
    node, other = make_node(MAX_ENTRIES=10), make_node()
    for i in range(5):
        node.publish(f"marker-{i}", DEAD, 1, 60)
    node.set_many({f"key-{i}": i for i in range(50)})
    assert sees(other, "key-49", 49)
    assert len(other.get_many([f"key-{i}" for i in range(50)])) == 50
    kept = [i for i in range(50) if node.has_key(f"key-{i}")]
    assert 0 < len(kept) <= 10
    assert all(node.get(f"marker-{i}") == DEAD for i in range(5))


def test_fills_are_culled_too(make_node: MakeNode) -> None:
    node = make_node(MAX_ENTRIES=10)
    catch_up(node)
    for i in range(50):
        node.fill(f"key-{i}", i, 1, 60, node.mark())
    assert node.status()["entries"] <= 10


def test_a_fill_that_might_lose_to_what_was_culled_is_refused(make_node: MakeNode) -> None:
    node = make_node(MAX_ENTRIES=2, CULL_FREQUENCY=0)
    catch_up(node)
    mark = node.mark()
    node.publish("key", "newer", 5, 60, mark)
    for i in range(4):
        node.set(f"filler-{i}", i)
    assert node.get("key") is None
    assert not node.fill("key", "older", 4, 60, mark)


def test_the_engine_forgets_what_has_been_dead_for_the_retention(
    make_node: MakeNode, make_engine: MakeEngine
) -> None:
    node = make_node(RETENTION=0.05)
    node.set("key", 1)
    node.delete("key")
    time.sleep(0.1)
    node._follower._purge_at = 0.0
    node.set("other", 1)
    assert [entry.key for entry in make_engine().changes(0, 10).changes] == [key_of(node, "other")]


def test_status_tells_what_is_held(make_node: MakeNode) -> None:
    node = make_node()
    node.set("key", "value")
    assert sees(node, "key", "value")
    catch_up(node)
    status = node.status()
    assert status["engine"] == engine_of(node).name
    assert status["role"] == "primary"
    assert status["entries"] == 1
    assert status["bytes"] > 0
    assert status["applied"] == status["head"] == 1
    assert status["fresh"]
    assert 0 <= status["staleness"] < 5
    assert status["epoch"] == engine_of(node).changes(0, 0).epoch


def test_status_counts_failures_and_returns(make_node: MakeNode) -> None:
    node = make_node(MAX_STALENESS=0.3, HEARTBEAT=0.1)
    node.set("key", "value")
    assert sees(node, "key", "value")
    for returns in (1, 2):
        with cut_off(node, "changes"):
            assert eventually(lambda: node.get("key") is None)
        assert sees(node, "key", "value")
        found = counters(node)
        assert found["failures"] >= found["reconnects"] == returns
    assert found["writes_done"] == 1


def test_status_counts_writes_by_what_came_of_them(make_node: MakeNode) -> None:
    node = make_node()
    node.set("key", "value")
    assert not node.add("key", "another")
    with cut_off(node, "write"), pytest.raises(node.EngineUnavailable):
        node.set("key", "another")
    lost = mock.Mock(side_effect=EngineUncertain("the answer was lost"))
    with mock.patch.object(engine_of(node), "write", lost), pytest.raises(node.EngineUncertain):
        node.set("key", "another")
    writes = {name: n for name, n in counters(node).items() if name.startswith("writes_")}
    assert writes == {
        "writes_done": 1,
        "writes_refused": 1,
        "writes_unavailable": 1,
        "writes_uncertain": 1,
    }


def test_now_is_the_engines_clock(make_node: MakeNode) -> None:
    node = make_node()
    assert abs(node.now() - time.time()) < 1
    catch_up(node)
    assert abs(node.now() - engine_of(node).changes(0, 0).now) < 1
