"""Timing of several calls against each other, in rounds, so that a slow moment hits them all."""

from __future__ import annotations

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.servers import Server, family

__all__ = ["Call", "Effort", "Result", "interleave", "processor_time", "sample"]


class Effort(NamedTuple):
    """How much is measured.

    ``rounds`` of batches of ``batch_seconds`` in process, ``singles`` calls of what writes,
    ``server_rounds`` of ``server_seconds`` of load on each of ``servers``, ``revocations`` of each
    kind; among so many ``sessions``, and by so many ``processes``. ``patience`` is for how many
    seconds to wait for other processes to be quiet before it begins.
    """

    rounds: int
    batch_seconds: float
    singles: int
    server_rounds: int
    server_seconds: float
    servers: tuple[str, ...]
    revocations: int
    sessions: tuple[int, ...]
    processes: tuple[int, ...]
    patience: float


class Result(NamedTuple):
    """Microseconds per call: the median of the rounds and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Result:
        low, _, high = statistics.quantiles(samples, n=4)
        return cls(statistics.median(samples), low, high)


class Call(NamedTuple):
    """What is timed: ``prepare`` runs before each batch and is not."""

    run: Callable[[], object]
    prepare: Callable[[], None]


def interleave(
    calls: Mapping[str, Call], *, rounds: int, batch_seconds: float
) -> dict[str, list[float]]:
    """Time all calls in every round, in a new order each; return µs per call and round.

    Each call is repeated for about ``batch_seconds`` in a round.
    """
    repeats = {}
    for name, call in calls.items():
        call.prepare()
        _time(call.run, 20)  # warm
        repeats[name] = max(1, round(batch_seconds / _time(call.run, 20)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    # What is there already need not be looked through before each batch.
    gc.freeze()
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            calls[name].prepare()
            gc.collect()
            samples[name].append(_time(calls[name].run, repeats[name]) * 1e6)
    gc.unfreeze()
    return samples


def sample(run: Callable[[], object], times: int) -> list[float]:
    """Time a call by itself, for those too slow to need a batch; return µs of each."""
    return [_time(run, 1) * 1e6 for _ in range(times)]


def processor_time(server: Server) -> float:
    """The processor time of a server's processes that are alive, in seconds."""
    total = 0
    for pid in family(server.pid):
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1e9


def _time(run: Callable[[], object], repeat: int) -> float:
    """Return seconds per call."""
    repeats = range(repeat)
    began = time.perf_counter()
    for _ in repeats:
        run()
    return (time.perf_counter() - began) / repeat
