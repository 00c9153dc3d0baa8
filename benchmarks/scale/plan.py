"""From so many sessions and processes to what they take, and to what breaks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.cache.measure import percentile
from benchmarks.scale.parameters import (
    NAMES,
    assumed,
    capacity,
    engine,
    entry_bytes,
    writes,
)
from benchmarks.scale.simulation import Setup, read_through, simulate

__all__ = ["PROCESSES", "SESSIONS", "Cell", "alternatives", "cell", "grid", "misses"]

SESSIONS = (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 100_000_000)
PROCESSES = (10, 30, 100, 300, 1_000)
_SEED = 1
# How much is simulated: about so many tellings and pulls.
_EVENTS = 300_000
# Seconds in which a server that is full has come to what it does all the time.
_SHORTEST = 0.5
_PROCESSOR = 0.9


class Cell(NamedTuple):
    """What a size takes. ``limits`` has for each limit the part of it that is used."""

    engine: str
    sessions: int
    processes: int
    writes: float
    pulls: float
    lag_p50: float
    lag_p99: float
    busy_p99: float
    write_p99: float
    server_cores: float
    own_cpu: float
    bytes_per_second: float
    process_bytes: float
    host_bytes: float
    log_bytes: float
    connections: int
    limits: dict[str, float]

    @property
    def breaks(self) -> str:
        """The limit that is exceeded the most, or nothing; without its writes nothing works."""
        if self.limits["writes"] > 1:
            return "writes"
        worst = max(self.limits, key=self.limits.__getitem__)
        return worst if self.limits[worst] > 1 else ""


def cell(
    name: str,
    costs: Mapping[str, Any],
    sessions: int,
    processes: int,
    *,
    per_host: float | None = None,
    busy: bool = True,
    **options: Any,
) -> Cell:
    """Simulate a size. ``options`` are those of ``Setup``; ``per_host``: replicas on a host."""
    rate, costs_, here = writes(sessions), costs[name], engine(name, costs)
    room = capacity(name)
    # Beyond what the log takes it is as busy as at that.
    setup = _setup(here, processes, min(rate, room * 0.95), **options)
    result = simulate(setup)
    computing = simulate(setup._replace(busy=1.0)) if busy else result
    size = costs_["bytes"]
    traffic = setup.rate * size["write"] + processes * (
        result.pulls * size["pull"] + result.hints * size["hint"] + setup.rate * size["row"]
    )
    here_per_host = assumed("per_host") if per_host is None else per_host
    held = sessions * entry_bytes(name)
    lag_p99 = percentile(result.lags, 0.99)
    return Cell(
        engine=name,
        sessions=sessions,
        processes=processes,
        writes=rate,
        pulls=result.pulls,
        lag_p50=percentile(result.lags, 0.5),
        lag_p99=lag_p99,
        busy_p99=percentile(computing.lags, 0.99),
        write_p99=percentile(result.write_delays, 0.99),
        server_cores=result.server_cores,
        own_cpu=result.own_cpu,
        bytes_per_second=traffic,
        process_bytes=held,
        host_bytes=held * here_per_host,
        # Of each visit one entry stays until it has been dead for the retention.
        log_bytes=costs_["log_bytes"] * sessions * (1 + assumed("retention") / assumed("visit")),
        connections=int(processes * costs_["connections"]["each_process"]),
        limits={
            "writes": rate / room,
            "processor": result.server_cores / here.cores / _PROCESSOR,
            "staleness": lag_p99 / assumed("stale"),
            "memory": held * here_per_host / assumed("host_memory"),
            "network": traffic / assumed("link"),
        },
    )


def _setup(here: Any, processes: int, rate: float, **options: Any) -> Setup:
    pulls = min(rate, 500.0)
    seconds = min(10.0, max(_SHORTEST, _EVENTS / (processes * (rate + 2 * pulls))))
    named = {"network": assumed("network"), "seed": _SEED, **options}
    return Setup(here, processes, rate, seconds, **named)


def grid(costs: Mapping[str, Any], sessions: Sequence[int], processes: Sequence[int]) -> list[Cell]:
    """Simulate every size on both engines."""
    return [
        cell(name, costs, many, count) for name in NAMES for many in sessions for count in processes
    ]


def misses(shares: Sequence[float], skews: Sequence[float]) -> list[tuple[float, float, float]]:
    """For parts of the sessions that a replica has room for: which part of its reads misses."""
    sessions = 2_000
    return [
        (
            share,
            skew,
            read_through(
                sessions,
                int(sessions * share),
                processes=100,
                requests=assumed("lifetime") / assumed("pause"),
                skew=skew,
                seed=_SEED,
            ),
        )
        for share in shares
        for skew in skews
    ]


def alternatives(
    name: str, costs: Mapping[str, Any], sessions: int, processes: int
) -> list[tuple[str, Cell]]:
    """The same size, as it is and in other ways."""
    hosts = max(1, round(processes / assumed("per_host")))

    def said(what: str, sessions: int = sessions, count: int = processes, **named: Any) -> Any:
        return what, cell(name, costs, sessions, count, busy=False, **named)

    return [
        said("as it is"),
        said("the breath stays at 2 ms", longest=0.002),
        said("it grows to 10 ms, and nobody is told", polls=True),
        said("the same, but to 50 ms", longest=0.050, polls=True),
        said("one follower on each host", count=hosts, per_host=1),
        said("that, not told", count=hosts, per_host=1, polls=True),
        said("four logs, by user (each of them)", sessions // 4),
    ]
