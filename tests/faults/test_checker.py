"""The checker refuses each kind of bad history, and only for its reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from accesspass.cache.codec import MsgpackCodec, Seal
from accesspass.cache.engines.base import Entry
from tests.faults.checker import Log, Op, differences, lost_writes, read_history, violations

STALENESS = 1.0


def op(node: str, what: str, began: float, ended: float, **more: Any) -> Op:
    return Op(node, what, more.pop("key", "key"), began, ended, **{"epoch": "e", **more})


def write(node: str, at: float, value: str, seq: int, **more: Any) -> Op:
    return op(node, "set", at, at + 0.1, value=value, seq=seq, **more)


def delete(node: str, at: float, seq: int, **more: Any) -> Op:
    return op(node, "delete", at, at + 0.1, seq=seq, **more)


def hit(node: str, at: float, value: Any, **more: Any) -> Op:
    return op(node, "get", at, at + 0.1, result=value, fresh=True, **more)


def publish(node: str, at: float, revision: int, *, dead: bool = False, **more: Any) -> Op:
    value = [revision, dead]
    return op(node, "publish", at, at + 0.1, value=value, revision=revision, **more)


def winner(node: str, at: float, value: str, seq: int) -> Op:
    return op(node, "add", at, at + 0.1, value=value, seq=seq, result=True)


def counted(node: str, began: float, ended: float, result: int) -> Op:
    return op(node, "incr", began, ended, result=result, seq=result)


BAD: dict[str, tuple[str, list[Op]]] = {
    "a value that nobody wrote": ("nothing_from_nowhere", [hit("b", 1, "x")]),
    "a value of a write that was refused": (
        "nothing_from_nowhere",
        [
            write("c", -1, "z", 1),
            op("a", "add", 0, 0.1, value="x", outcome="refused"),
            hit("b", 1, "x"),
        ],
    ),
    "a value read before it was written": (
        "nothing_from_nowhere",
        [hit("b", 1, "x"), write("a", 2, "x", 1)],
    ),
    "a revision that nobody published": (
        "nothing_from_nowhere",
        [publish("a", 0, 1), hit("b", 1, [2, False])],
    ),
    "a hit too long after another value was acknowledged": (
        "no_stale_hit",
        [write("a", 0, "x", 1), write("a", 1, "y", 2), hit("b", 2.2, "x")],
    ),
    "a hit too long after the deletion was acknowledged": (
        "no_stale_hit",
        [write("a", 0, "x", 1), delete("a", 1, 2), hit("b", 2.2, "x")],
    ),
    "a hit too long after everything was cleared": (
        "no_stale_hit",
        [write("a", 0, "x", 1), op("c", "clear", 1, 1.1, key=""), hit("b", 2.2, "x")],
    ),
    "a value of unknown outcome, seen and then overwritten": (
        "no_stale_hit",
        [
            op("a", "set", 0, 0.1, value="x", outcome="uncertain"),
            hit("b", 0.5, "x"),
            write("a", 1, "y", 2),
            hit("b", 2.2, "x"),
        ],
    ),
    "a value that the history before had": (
        "no_stale_hit",
        [write("a", 0, "x", 9), write("a", 1, "y", 1, epoch="f"), hit("b", 2.2, "x")],
    ),
    "a live record too long after it was revoked": (
        "no_stale_hit",
        [publish("a", 0, 1), publish("a", 1, 2, dead=True), hit("b", 2.2, [1, False])],
    ),
    "a value older than one read before": (
        "never_backwards",
        [
            write("a", 0, "x", 1),
            write("c", 0.2, "y", 2),
            hit("b", 0.4, "y"),
            hit("b", 0.6, "x"),
        ],
    ),
    "a value older than one's own write": (
        "never_backwards",
        [write("a", 0, "x", 1), write("b", 0.2, "y", 2), hit("b", 0.4, "x")],
    ),
    "a value that one has deleted oneself": (
        "never_backwards",
        [write("a", 0, "x", 1), delete("b", 0.2, 2), hit("b", 0.4, "x")],
    ),
    "one's own write missing": (
        "own_writes_are_read",
        [write("a", 0, "x", 1), hit("a", 0.2, None)],
    ),
    "two winners": ("one_winner", [winner("a", 0, "x", 1), winner("b", 0.2, "y", 2)]),
    "no winner": ("one_winner", [op("a", "add", 0, 0.1, value="x", outcome="refused")]),
    "a number counted twice": (
        "exact_counts",
        [counted("a", 0, 0.3, 1), counted("b", 0.1, 0.2, 1)],
    ),
    "a later number that is smaller": (
        "exact_counts",
        [counted("a", 0, 0.1, 2), counted("b", 0.2, 0.3, 1)],
    ),
    "an older revision after a newer one": (
        "revisions_only_grow",
        [
            publish("a", 0, 1),
            publish("a", 0.2, 2),
            hit("b", 0.4, [2, False]),
            hit("b", 0.6, [1, False]),
        ],
    ),
    "an older revision than one's own": (
        "revisions_only_grow",
        [publish("a", 0, 1), publish("b", 0.2, 2), hit("b", 0.4, [1, False])],
    ),
    "an older revision in a later epoch": (
        "revisions_only_grow",
        [
            publish("a", 0, 1),
            publish("a", 0.2, 2),
            hit("b", 0.4, [2, False]),
            hit("b", 0.6, [1, False], epoch="f"),
        ],
    ),
    "a record that came back from the dead": (
        "revoked_stays_revoked",
        [
            publish("a", 0, 1),
            publish("a", 0.2, 2, dead=True),
            hit("b", 0.4, [2, True]),
            hit("b", 0.6, [1, False]),
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_refused(name: str) -> None:
    rule, history = BAD[name]
    found = violations(sorted(history, key=lambda op: op.began), STALENESS)
    assert any(said.startswith(f"{rule}: ") for said in found), found


GOOD: dict[str, list[Op]] = {
    "a hit within the staleness": [
        write("a", 0, "x", 1),
        write("a", 1, "y", 2),
        hit("b", 2.05, "x"),
    ],
    "a write that may land at any time": [
        op("a", "set", 0, 0.1, value="x", outcome="uncertain"),
        write("a", 1, "y", 2),
        hit("b", 2.2, "x"),
    ],
    "a value of a write that never returned": [
        Op("a", "set", "key", 0, outcome="pending", value="x"),
        hit("b", 1, "x"),
    ],
    "the later number though it was acknowledged earlier": [
        op("a", "set", 0, 0.5, value="x", seq=2),
        write("b", 0.1, "y", 1),
        hit("c", 3, "x"),
    ],
    "one's own write missing in a later epoch": [
        write("a", 0, "x", 1),
        hit("a", 0.2, None, epoch="f"),
    ],
    "one's own write missing after another's deletion": [
        write("a", 0, "x", 1),
        delete("b", 0.05, 2),
        hit("a", 0.2, None),
    ],
    "a winner in each epoch": [
        winner("a", 0, "x", 1),
        op("b", "add", 1, 1.1, value="y", result=True, epoch="f", seq=1),
    ],
    "older values on another node": [
        write("a", 0, "x", 1),
        write("a", 0.2, "y", 2),
        hit("b", 0.4, "y"),
        hit("c", 0.6, "x"),
    ],
    "numbers counted at once": [counted("a", 0, 0.3, 2), counted("b", 0.1, 0.2, 1)],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_accepted(name: str) -> None:
    assert violations(sorted(GOOD[name], key=lambda op: op.began), STALENESS) == []


# The end ---------------------------------------------------------------------------------------


def log_of(**values: tuple[int, Any]) -> Log:
    seal, codec = Seal(["faults"]), MsgpackCodec()
    entries, payloads = {}, {}
    for name, (seq, value) in values.items():
        key = f":1:{name}".encode()
        if value is None:
            entries[key.hex()] = Entry(key, seq, 0, 0.0, None)
            continue
        payloads[key.hex()] = codec.encode(value)
        sealed = seal.close(key, 0, None, codec.encode(value), marker=False)
        entries[key.hex()] = Entry(key, seq, 0, None, sealed)
    return Log("e", 0.0, entries, payloads)


def dump_of(log: Log) -> dict[str, Any]:
    entries = {
        key: [log.entries[key].seq, 0, payload.hex(), False]
        for key, payload in log.payloads.items()
    }
    return {"epoch": log.epoch, "entries": entries}


LOG = log_of(a=(1, "x"), b=(3, "y"), c=(4, None))


def test_a_replica_that_holds_what_the_engine_holds_has_no_differences() -> None:
    assert differences(LOG, dump_of(LOG)) == []
    assert differences(LOG, dump_of(log_of(a=(1, "x"))), complete=False) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (log_of(a=(1, "x")), "missing"),
        (log_of(a=(1, "x"), b=(2, "y")), "version 2 instead of 3"),
        (log_of(a=(1, "x"), b=(3, "z")), "another payload"),
        (log_of(a=(1, "x"), b=(3, "y"), c=(2, "z")), "version 2 instead of 4"),
        (log_of(a=(1, "x"), b=(3, "y"), d=(5, "z")), "unknown to the engine"),
    ],
    ids=["missing", "older", "other payload", "deleted", "unknown"],
)
def test_a_replica_that_differs_is_refused(other: Log, said: str) -> None:
    found = differences(LOG, dump_of(other))
    assert len(found) >= 1
    assert all("version" in each or said in each or "missing" in each for each in found)
    assert any(said in each for each in found)


def test_a_replica_of_another_epoch_is_refused() -> None:
    assert differences(LOG, {**dump_of(LOG), "epoch": "f"})


def test_a_fill_under_a_newer_version_is_refused() -> None:
    dump = dump_of(LOG)
    dump["entries"][b":1:c".hex()] = [2, 1, "00", True]
    assert "a fill at 2" in differences(LOG, dump)[0]


def test_a_fill_of_a_newer_row_stands_above_a_version_that_came_late() -> None:
    dump = dump_of(LOG)
    dump["entries"][b":1:b".hex()] = [2, 1, "00", True]
    assert differences(LOG, dump) == []
    dump["entries"][b":1:b".hex()] = [2, 0, "00", True]
    assert "a fill at 2" in differences(LOG, dump)[0]


@pytest.mark.parametrize(
    "bad",
    [
        [write("a", 0, "x", 1, key="new")],
        [write("a", 0, "x", 9, key="b")],
        [write("a", 0, "other", 3, key="b")],
        [delete("a", 0, 9, key="b")],
    ],
    ids=["gone", "older", "changed", "undeleted"],
)
def test_an_acknowledged_write_that_is_missing_at_the_end_is_found(bad: list[Op]) -> None:
    assert lost_writes(bad, LOG)
    assert lost_writes([write("a", 0, "x", 1, key="a"), delete("a", 0, 4, key="c")], LOG) == []


@pytest.mark.parametrize(
    ("last", "bad"),
    [
        (delete("a", 1, 5, key="gone"), False),
        (write("a", 1, "y", 5, key="gone", timeout=0.3), False),
        (write("a", 1, "y", 5, key="gone"), True),
        (delete("a", 1, 7, key="gone"), True),
    ],
    ids=["deleted", "expired", "alive", "above the floor"],
)
def test_what_was_purged_was_dead_and_not_above_the_floor(last: Op, bad: bool) -> None:
    log = dataclasses.replace(LOG, floor=6)
    assert bool(lost_writes([write("a", 0, "x", 4, key="gone"), last], log)) is bad


@pytest.mark.parametrize(("value", "bad"), [(1, True), (2, False), (3, False), (4, True)])
def test_a_count_is_exact_but_for_what_is_unknown(value: int, bad: bool) -> None:
    history = [
        counted("a", 0, 0.1, 1),
        counted("a", 0.2, 0.3, 2),
        op("a", "incr", 0.4, 0.5, outcome="uncertain"),
    ]
    assert bool(lost_writes(history, log_of(key=(9, value)))) is bad


def test_a_write_under_way_when_its_process_was_killed_is_pending(tmp_path: Path) -> None:
    path = tmp_path / "history"
    begun = '{"id": "1", "node": "a", "op": "set", "key": "k", "value": "x", "began": 1.0}\n'
    path.write_text(begun + '{"id": "2", "node": "a", "op": "set", "k')
    (found,) = read_history([path])
    assert found.unknown
    path.write_text(begun + begun.replace("}", ', "ended": 2.0, "outcome": "done"}'))
    (found,) = read_history([path])
    assert found.done
