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
    row, write = cost["row_server_cpu"], cost["write"]["server_cpu"]
    for_followers = [
        (one["server_cpu"] - one["writes_per_second"] * write) / one["followers"]
        for one in cost["live"]
    ]
    pull, hint = _split(cost["live"], for_followers, row)
    own_pull, own_hint = _split(cost["live"], [one["client_cpu"] for one in cost["live"]], own_row)
    oversleep = min(1 / one["pulls_per_second"] - one["breath"] for one in cost["live"])
    # Of the lag on an idle machine, what is neither telling nor pulling nor applying.
    wake = bench["lag"]["p50"] - hint - cost["pull"]["seconds"] - row - own_row
    usual = bench["lag"]["p50"]
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
        busy_lags=tuple(max(0.0, lag - usual) for lag in cost["busy_lag"]["curve"]),
    )


def _split(live: Any, spent: list[float], row: float) -> tuple[float, float]:
    """Return what a pull costs and what a hint costs, from two runs with different pauses."""
    (p, q), (v, w) = ((one["pulls_per_second"], one["writes_per_second"]) for one in live)
    first, second = spent[0] - q * row, spent[1] - w * row
    determinant = p * w - q * v
    pull, hint = (first * w - q * second) / determinant, (p * second - v * first) / determinant
    # Noise may make one of them negative: then the other one is all there is.
    if hint < 0:
        return (first + second) / (p + v), 0.0
    if pull < 0:
        return 0.0, (first + second) / (q + w)
    return pull, hint


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
