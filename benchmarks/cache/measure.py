"""The measurements of one engine. They return numbers that are not rounded yet.

Durations are in seconds, except where the name says ``us``.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.cache.places import Place, Process

__all__ = ["Effort", "measure", "percentile", "wait_for_calm"]

# Below this share of the processors' time, what other processes use does not matter.
_CALM = 0.15
_LAG_RATE = 100.0
_CHURN_RATE = 1_000.0
# What a replica that asks on each read is read with, while it is watched: seconds between reads.
_READ_EVERY = 0.0005


class Effort(NamedTuple):
    """How much is measured: seconds of each run, how often it is run, and how many entries.

    ``patience``: how long to wait before each run for other processes to be quiet, in seconds.
    """

    seconds: float
    rounds: int
    entries: int
    missed: int = 100_000
    patience: float = 20.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below ``share`` of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(place: Place, effort: Effort) -> dict[str, Any]:
    """Measure everything that makes sense for an engine, each time on an empty log."""
    found: dict[str, Any] = {"durability": place.durability}
    with place.open() as location:
        for writers in (1, 4) if place.shared else (1,):
            found[f"writes_{writers}"] = _best(
                lambda: _writes(location, writers, effort),  # noqa: B023 - called at once
                effort,
                lambda one: -one["per_second"],
            )
        if place.shared:
            found["writes_4_following"] = _best(
                lambda: _writes(location, 4, effort, follow=True),
                effort,
                lambda one: -one["per_second"],
            )
            found["lag"] = _best(
                lambda: _lag(location, place, effort), effort, lambda one: one["p99"]
            )
            found["churn"] = _best(
                lambda: _churn(location, effort), effort, lambda one: one["longest_own"]
            )
            found["alone"] = _best(
                lambda: _churn(location, effort, writers=0),
                effort._replace(rounds=1),
                lambda one: one["longest_own"],
            )
            found["follower"] = _best(
                lambda: _follower_cpu(location, effort), effort, lambda one: one["cpu_share"]
            )
    with place.open() as location:
        found["small"] = _reads(location, 1_000, effort)
    with place.open() as location:
        found.update(_big(location, place, effort))
    return found


def _best(
    run: Callable[[], dict[str, Any]], effort: Effort, order: Callable[[dict[str, Any]], float]
) -> dict[str, Any]:
    """The best of some runs: what disturbs the machine only ever makes it slower."""
    runs = []
    for _ in range(effort.rounds):
        busy = wait_for_calm(effort.patience)
        runs.append({**run(), "others": busy})
    print(".", end="", file=sys.stderr, flush=True)
    return {**min(runs, key=order), "of": len(runs)}


def wait_for_calm(patience: float) -> float:
    """Wait until other processes leave the machine alone, or ``patience`` seconds.

    Returns the share of all processors that they used at last.
    """
    give_up = time.monotonic() + patience
    while True:
        before = _processors()
        time.sleep(0.5)
        total, idle = (now - then for now, then in zip(_processors(), before, strict=True))
        busy = 1 - idle / max(1, total)
        if busy < _CALM or time.monotonic() > give_up:
            return busy


def _processors() -> tuple[int, int]:
    """The time that all processors had, and the idle part of it, since the machine started."""
    with open("/proc/stat") as stat:
        ticks = [int(tick) for tick in stat.readline().split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def _first(_numbers: list[int] = [1]) -> int:  # noqa: B006 - counts
    """The first of ten million numbers that nobody has used for a key."""
    _numbers[0] += 10_000_000
    return _numbers[0]


@contextlib.contextmanager
def _nodes(location: str, count: int) -> Iterator[list[Process]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Process(location)) for _ in range(count)]


def _writes(location: str, writers: int, effort: Effort, *, follow: bool = False) -> dict[str, Any]:
    with _nodes(location, writers) as nodes:
        for node in nodes:
            node.ask("write", seconds=0.0, first=_first(), follow=follow)  # connects
        for node in nodes:
            node.send("write", seconds=effort.seconds, first=_first(), follow=follow)
        done = [node.receive() for node in nodes]
    took = [second for one in done for second in one["took"]]
    # Only while all of them write.
    per_second = sum(len(one["took"]) / (one["ended"] - one["began"]) for one in done)
    return {
        "per_second": per_second,
        "p50": percentile(took, 0.50),
        "p99": percentile(took, 0.99),
        "failed": sum(one["failed"] for one in done),
    }


def _lag(location: str, place: Place, effort: Effort) -> dict[str, Any]:
    with _nodes(location, 2) as (writer, watcher):
        writer.ask("write", seconds=0.0, first=_first())
        every = _READ_EVERY if place.name == "sqlite" else None
        assert watcher.ask("watch", every=every) == {"watching": True}
        time.sleep(0.3)
        wrote = writer.ask(
            "write", seconds=max(5.0, effort.seconds), first=_first(), rate=_LAG_RATE
        )
        time.sleep(0.7)
        watched = watcher.ask("stop watching")
    applied = dict(map(tuple, watched["applied"]))
    # Before it was acknowledged counts as nothing: both answers are sent at the same moment.
    lags = [max(0.0, applied[number] - moment) for number, moment in wrote["acknowledged"]]
    return {
        "samples": len(lags),
        "p50": percentile(lags, 0.50),
        "p99": percentile(lags, 0.99),
        "longest": max(lags),
        "curve": [percentile(lags, share / 200) for share in range(200)] + [max(lags)],
    }


def _churn(location: str, effort: Effort, writers: int = 2) -> dict[str, Any]:
    """One thread reads without a pause while others change a thousand entries a second."""
    with _nodes(location, writers + 1) as (watcher, *nodes):
        for node in nodes:
            node.ask("write", seconds=0.0, first=_first())
        watcher.ask("watch", every=0)
        seconds = max(5.0, effort.seconds)
        for node in nodes:
            node.send("write", seconds=seconds, first=_first(), rate=_CHURN_RATE / writers)
        for node in nodes:
            node.receive()
        if not nodes:
            time.sleep(seconds)
        watched = watcher.ask("stop watching")
    return _pauses(watched)


def _pauses(watched: dict[str, Any]) -> dict[str, Any]:
    pauses = watched["pauses"] or [[0.0, 0.0]]
    own = [max(0.0, pause - waited) for pause, waited in pauses]
    return {
        "longest": max(pause for pause, _ in pauses),
        "longest_own": max(own),
        "over_5ms": sum(pause > 0.005 for pause in own),
        "over_10ms": sum(pause > 0.010 for pause in own),
        "seconds": watched["seconds"],
        "changes_per_second": watched["changes"] / watched["seconds"],
    }


def _follower_cpu(location: str, effort: Effort) -> dict[str, Any]:
    with _nodes(location, 3) as (idler, *writers):
        for node in writers:
            node.ask("write", seconds=0.0, first=_first())
        idler.ask("idle", seconds=0.5)
        seconds = max(5.0, effort.seconds)
        for node in writers:
            node.send("write", seconds=seconds, first=_first(), rate=_CHURN_RATE / len(writers))
        idle = idler.ask("idle", seconds=seconds - 0.5)
        for node in writers:
            node.receive()
    return {
        "cpu_share": idle["cpu"] / idle["seconds"],
        "changes_per_second": idle["changes"] / idle["seconds"],
    }


def _reads(location: str, entries: int, effort: Effort) -> dict[str, Any]:
    with _nodes(location, 1) as (node,):
        first = _first()
        node.ask("populate", first=first, count=entries)
        return _get(node, first, entries, effort)


def _get(node: Process, first: int, entries: int, effort: Effort) -> dict[str, Any]:
    samples = node.ask("get", first=first, count=entries, times=10 * effort.rounds)["samples"]
    return {"us": min(samples), "median_us": statistics.median(samples), "entries": entries}


def _big(location: str, place: Place, effort: Effort) -> dict[str, Any]:
    """All that is done with a big log, so that it is made only once."""
    found: dict[str, Any] = {}
    first = _first()
    if not place.shared:
        with _nodes(location, 1) as (node,):
            size = node.ask("populate", first=first, count=effort.entries)["bytes"]
            node.ask("renew")
            found["join"] = _join(node, size)
            found["big"] = _get(node, first, effort.entries, effort)
        return found
    with _nodes(location, 2) as (watcher, writer):
        # The reader's pauses while its replica grows from nothing.
        writer.ask("populate", first=_first(), count=1)
        watcher.ask("watch", every=0)
        began = time.perf_counter()
        size = writer.ask("populate", first=first, count=effort.entries)["bytes"]
        found["populate"] = {"per_second": effort.entries / (time.perf_counter() - began)}
        time.sleep(1.0)
        found["growth"] = _pauses(watcher.ask("stop watching"))
    joins = []
    for last in range(effort.rounds)[::-1]:
        with _nodes(location, 1) as (node,):
            busy = wait_for_calm(effort.patience)
            joins.append({**_join(node, size), "others": busy})
            if not last:
                found["big"] = _get(node, first, effort.entries, effort)
    found["join"] = {**min(joins, key=lambda one: one["seconds"]), "of": len(joins)}
    found["catch_up"] = _best(
        lambda: _catch_up(location, effort), effort, lambda one: one["seconds"]
    )
    return found


def _join(node: Process, size: int) -> dict[str, Any]:
    joined = node.ask("pull")
    entries = joined["entries"]
    return {
        "seconds": joined["seconds"],
        "cpu": joined["cpu"],
        "entries": entries,
        "resident_per_entry": (joined["resident"] - size) / entries,
        "held_per_entry": (joined["bytes"] - size) / entries,
        "size_per_entry": size / entries,
    }


def _catch_up(location: str, effort: Effort) -> dict[str, Any]:
    """A node that holds everything misses many changes, then asks for them."""
    with _nodes(location, 2) as (node, writer):
        before = node.ask("pull")["applied"]
        writer.ask("populate", first=_first(), count=effort.missed)
        after = node.ask("pull")
        assert after["applied"] - before == effort.missed
        return {"seconds": after["seconds"], "changes": effort.missed, "cpu": after["cpu"]}
