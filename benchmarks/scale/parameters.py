"""What the simulation starts from: measurements, and what is assumed of a deployment.

Measured: ``docs/images/cache-benchmarks.json`` (``make bench-cache``) and the costs that
``benchmarks.scale.costs`` finds (``make bench-scale``). Assumed: ``ASSUMED``, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scale.simulation import Engine

__all__ = [
    "ASSUMED",
    "BENCHMARKS",
    "NAMES",
    "assumed",
    "capacity",
    "engine",
    "entry_bytes",
    "writes",
]

NAMES = ("postgresql", "valkey")
#: What no measurement can say, with the reason for each: change it for a deployment of your own.
ASSUMED: dict[str, tuple[float, str]] = {
    "lifetime": (300, "seconds between two refreshes of a session in use: the default lifetime"),
    "visit": (1_800, "seconds from a login to its logout; each visit ends with one"),
    "pause": (10, "seconds between two requests of a session in use"),
    "network": (0.0005, "seconds there and back within a data centre; measured was loopback"),
    "cores": (8, "processors of PostgreSQL's machine; Valkey runs commands on one"),
    "per_host": (16, "processes on a host"),
    "host_memory": (32 * 2**30, "bytes of a host that replicas may take"),
    "link": (1.25e9, "bytes per second of the server's network: 10 Gbit/s"),
    "stale": (0.1, "seconds that 99% of the changes may take to be applied"),
    "retention": (3_600, "seconds for which the log keeps what is dead: the default RETENTION"),
}
_DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
BENCHMARKS: dict[str, Any] = json.loads(
    (_DOCS / "images" / "cache-benchmarks.json").read_text(encoding="utf-8")
)["engines"]


def assumed(name: str) -> float:
    return ASSUMED[name][0]


def engine(name: str, costs: Mapping[str, Any]) -> Engine:
    """Return what things cost on an engine, from its measurements."""
    cost, bench = costs[name], BENCHMARKS[name]
    own_row = bench["catch_up"]["cpu"] / bench["catch_up"]["changes"]
    row = cost["row_server_cpu"]
    usual, long = cost["live"]
    write, pull, hint = _server(usual, long, cost["untold"], row)
    own_pull, own_hint = _own(usual, long, cost["untold"], own_row)
    oversleep = min(1 / one["pulls_per_second"] - one["breath"] for one in cost["live"])
    # Of the lag on an idle machine, what is neither telling nor pulling nor applying.
    lag = bench["lag"]["p50"]
    wake = lag - hint - cost["pull"]["seconds"] - row - own_row
    return Engine(
        cores=1 if name == "valkey" else int(assumed("cores")),
        write=write,
        hold=0.0 if name == "valkey" else 1 / capacity(name),
        pull=pull,
        row=row,
        hint=hint,
        own_pull=own_pull,
        own_row=own_row,
        own_hint=own_hint,
        own_write=cost["write"]["client_cpu"],
        oversleep=max(0.0, oversleep),
        wake=max(0.0, wake),
        busy_lags=tuple(max(0.0, late - lag) for late in cost["busy_lag"]["curve"]),
    )


_Live = Mapping[str, float]


def _server(usual: _Live, long: _Live, untold: _Live, row: float) -> tuple[float, float, float]:
    """Return what a write, a pull and a hint cost the server, from three runs of followers.

    Two of them differ in the hints alone; the others in how many pulls there were for each write.
    """
    count = usual["followers"]

    def spent(live: _Live) -> float:
        return live["server_cpu"] - count * live["writes_per_second"] * row

    hint = max(0.0, _for_each(long, spent(long)) - _for_each(untold, spent(untold))) / count
    (p, q), (v, w) = (
        (live["writes_per_second"], count * live["pulls_per_second"]) for live in (usual, untold)
    )
    first, second = spent(usual) - count * p * hint, spent(untold)
    determinant = p * w - q * v
    write, pull = (first * w - q * second) / determinant, (p * second - v * first) / determinant
    return write, pull, hint


def _own(usual: _Live, long: _Live, untold: _Live, row: float) -> tuple[float, float]:
    """Return what a pull and a hint cost a follower, from the same runs."""

    def spent(live: _Live) -> float:
        return live["client_cpu"] - live["writes_per_second"] * row

    hint = max(0.0, _for_each(long, spent(long)) - _for_each(untold, spent(untold)))
    pulls = usual["pulls_per_second"] + untold["pulls_per_second"]
    hints = usual["writes_per_second"] * hint
    return (spent(usual) - hints + spent(untold)) / pulls, hint


def _for_each(live: _Live, spent: float) -> float:
    return spent / live["writes_per_second"]


def capacity(name: str) -> float:
    """The most writes a second that the log takes."""
    found: float = BENCHMARKS[name]["writes_4"]["per_second"]
    return found


def writes(sessions: float) -> float:
    """Writes a second by so many sessions in use: refreshes, logins and logouts."""
    return sessions * (1 / assumed("lifetime") + 2 / assumed("visit"))


def entry_bytes(name: str) -> float:
    """Memory of a process for each entry of its replica."""
    join = BENCHMARKS[name]["join"]
    return float(join["size_per_entry"] + join["resident_per_entry"])
