"""Real processes beside what the simulation says of them, at sizes that one machine holds."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.cache.measure import percentile
from benchmarks.scale import costs
from benchmarks.scale.parameters import NAMES, engine
from benchmarks.scale.simulation import Setup, simulate
from benchmarks.timing import processor_time

__all__ = ["breaths", "compare", "measure", "predict"]

_PROCESSES = (2, 4, 8, 16)
_RATE = 200.0
_SECONDS = 5.0
_CORES = 2
_numbers = itertools.count(2**40, 10_000_000)


def measure() -> dict[str, list[dict[str, float]]]:
    """Let processes follow a writer, on both engines."""
    found: dict[str, list[dict[str, float]]] = {}
    for name in NAMES:
        with costs.SERVERS[name]() as server:
            found[name] = [_run(server, count) for count in _PROCESSES]
        print(".", end="", file=sys.stderr, flush=True)
    return found


def _run(server: Any, count: int) -> dict[str, float]:
    with costs.nodes(server.url(), count + 1) as (writer, *followers):
        writer.ask("sets", first=next(_numbers), count=100)
        for node in followers:
            node.ask("watch")
        before, began = processor_time(server), time.perf_counter()
        wrote = writer.ask("write", seconds=_SECONDS, first=next(_numbers), rate=_RATE)
        spent, seconds = processor_time(server) - before, time.perf_counter() - began
        time.sleep(0.3)
        done = [node.ask("stop watching") for node in followers]
    lags = []
    for one in done:
        applied = dict(map(tuple, one["applied"]))
        lags += [max(0.0, applied[number] - moment) for number, moment in wrote["acknowledged"]]
    return {
        "processes": count,
        "writes": len(wrote["acknowledged"]) / seconds,
        "lag_p50": percentile(lags, 0.5),
        "lag_p99": percentile(lags, 0.99),
        "pulls": statistics.mean(one["pulls"] for one in done) / seconds,
        "own_cpu": statistics.mean(one["cpu"] for one in done) / seconds,
        "server_cores": spent / seconds,
    }


def predict(name: str, found: Mapping[str, Any], measured: Mapping[str, float]) -> dict[str, float]:
    """What the simulation says of a run, given how many writes a second there were."""
    setup = Setup(
        engine(name, found)._replace(cores=_CORES),
        processes=int(measured["processes"]),
        rate=measured["writes"],
        seconds=_SECONDS,
        shared=True,
        regular=True,
    )
    result = simulate(setup)
    return {
        "processes": measured["processes"],
        "writes": result.committed / (0.8 * _SECONDS),
        "lag_p50": percentile(result.lags, 0.5),
        "lag_p99": percentile(result.lags, 0.99),
        "pulls": result.pulls,
        "own_cpu": result.own_cpu,
        "server_cores": result.server_cores
        - result.own_cpu * setup.processes
        - setup.rate * setup.engine.own_write,
    }


def compare(found: Mapping[str, Any], checked: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each run: simulated, measured, and the error of the simulation."""
    rows = []
    for name, runs in checked.items():
        for measured in runs:
            predicted = predict(name, found, measured)
            row = {"engine": name, "processes": f"{measured['processes']:.0f}"}
            for key, title, form, scale in _SHOWN:
                real, said = measured[key] * scale, predicted[key] * scale
                row[title] = _both(said, real, form)
            rows.append(row)
    return rows


def breaths(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each way in which a few real followers followed a busy log."""
    rows = []
    for name in NAMES:
        for told, live in (
            *((True, one) for one in found[name]["live"]),
            (False, found[name]["untold"]),
        ):
            breath = live["breath"]
            setup = Setup(
                engine(name, found)._replace(cores=_CORES),
                live["followers"],
                live["writes_per_second"],
                _SECONDS,
                breath=0.002,
                longest=breath,
                polls=not told,
                regular=True,
            )
            result = simulate(setup)
            rows.append(
                {
                    "engine": name,
                    "breath": f"{breath * 1e3:.0f} ms, {'told' if told else 'not told'}",
                    "writes/s": f"{live['writes_per_second']:.0f}",
                    "pulls/s of each": _both(result.pulls, live["pulls_per_second"], "{:.0f}"),
                    "% of a core for each": _both(
                        result.own_cpu * 100, live["client_cpu"] * 100, "{:.1f}"
                    ),
                    "cores of the server": _both(result.server_cores, live["server_cpu"], "{:.2f}"),
                }
            )
    return rows


def _both(said: float, real: float, form: str) -> str:
    return f"{form.format(said)} / {form.format(real)} ({said / real - 1:+.0%})"


_SHOWN = (
    ("writes", "writes/s", "{:.0f}", 1),
    ("pulls", "pulls/s of each", "{:.0f}", 1),
    ("lag_p50", "lag p50, ms", "{:.2f}", 1e3),
    ("lag_p99", "lag p99, ms", "{:.2f}", 1e3),
    ("own_cpu", "% of a core for each", "{:.1f}", 1e2),
    ("server_cores", "cores of the server", "{:.2f}", 1),
)
