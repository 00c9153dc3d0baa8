"""The plan as tables, for the terminal (Markdown) and for the documentation (RST)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.report import Table
from benchmarks.scale.check import breaths, compare
from benchmarks.scale.parameters import ASSUMED, NAMES, assumed, engine
from benchmarks.scale.plan import Cell

__all__ = ["tables"]

_FEW = 100_000


def tables(
    found: Mapping[str, Any],
    cells: Sequence[Cell],
    others: Mapping[str, Sequence[tuple[str, Cell]]],
    missed: Iterable[tuple[float, float, float]],
) -> list[Table]:
    """Return the tables of a run: ``found`` has the costs and what real processes did."""
    costs = found["costs"]
    return [
        Table("Sizing", _sizing(cells)),
        Table("What breaks first", _breaks(cells)),
        Table("What a size takes", [_takes(one) for one in cells if one.limits["writes"] <= 1]),
        *(
            Table(f"Alternatives: {title}", [_other(what, one) for what, one in rows])
            for title, rows in others.items()
        ),
        Table("Reads that MAX_ENTRIES sends to the database", _misses(missed)),
        Table("Simulated / measured", compare(costs, found["check"])),
        Table("Four followers of a busy log, simulated / measured", breaths(costs)),
        Table("What things cost", [_cost(name, costs) for name in NAMES]),
        Table("Looking an entry up without a replica of one's own", _local(costs["local"])),
        Table(
            "Assumed",
            [
                {"": f"{name}: {why}", "value": f"{value:,g}" if value < 1e6 else _bytes(value)}
                for name, (value, why) in ASSUMED.items()
            ],
        ),
    ]


def _sizing(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """For so many sessions: how many processes each engine carries, and the settings for that."""
    rows = []
    for sessions in sorted({one.sessions for one in cells}):
        here = [one for one in cells if one.sessions == sessions]
        row = {
            "sessions in use": f"{sessions:,}",
            "writes/s": f"{here[0].writes:,.0f}",
            "a process": _bytes(here[0].process_bytes),
            f"a host of {assumed('per_host'):.0f}": _bytes(here[0].host_bytes),
            "the log": _bytes(here[0].log_bytes),
        }
        for name in NAMES:
            held = [one for one in here if one.engine == name and not one.breaks]
            row[name] = (
                f"to {held[-1].processes:,} processes" if held else f"no: {_least(here, name)}"
            )
        postgresql = [one for one in here if one.engine == "postgresql" and not one.breaks]
        most = assumed("host_memory") / assumed("per_host") / here[0].process_bytes * sessions
        row["MAX_ENTRIES"] = "none" if sessions < most else f"{most:,.0f}"
        row["max_connections above"] = f"{postgresql[-1].connections:,}" if postgresql else "–"  # noqa: RUF001
        rows.append(row)
    return rows


def _least(cells: Sequence[Cell], name: str) -> str:
    return next(one.breaks for one in cells if one.engine == name)


def _breaks(cells: Sequence[Cell]) -> list[dict[str, str]]:
    counts = sorted({one.processes for one in cells})
    rows = []
    for name in NAMES:
        for sessions in sorted({one.sessions for one in cells}):
            row = {"engine": name, "sessions in use": f"{sessions:,}"}
            for one in cells:
                if (one.engine, one.sessions) == (name, sessions):
                    nearest = max(one.limits, key=one.limits.__getitem__)
                    row[f"{one.processes:,} processes"] = (
                        f"**{one.breaks}**"
                        if one.breaks
                        else f"holds ({nearest} {one.limits[nearest]:.0%})"
                    )
            assert len(row) == len(counts) + 2
            rows.append(row)
    return rows


def _takes(one: Cell) -> dict[str, str]:
    return {
        "engine": one.engine,
        "sessions in use": f"{one.sessions:,}",
        "processes": f"{one.processes:,}",
        "pulls/s of each": f"{one.pulls:,.0f}",
        "applied after, p50": _ms(one.lag_p50),
        "p99": _ms(one.lag_p99),
        "p99 beside a thread that computes": _ms(one.busy_p99),
        "write, p99": _ms(one.write_p99),
        "cores of the server": f"{one.server_cores:.2f}",
        "core of each process": f"{one.own_cpu:.1%}",
        "network": f"{one.bytes_per_second / 1e6:,.1f} MB/s",
        "connections": f"{one.connections:,}",
    }


def _other(what: str, one: Cell) -> dict[str, str]:
    return {
        "": what,
        "pulls/s of each": f"{one.pulls:,.0f}",
        "applied after, p50": _ms(one.lag_p50),
        "p99": _ms(one.lag_p99),
        "cores of the server": f"{one.server_cores:.2f}",
        "core of each follower": f"{one.own_cpu:.1%}",
        "network": f"{one.bytes_per_second / 1e6:,.1f} MB/s",
        "memory of a host": _bytes(one.host_bytes),
        "what breaks": one.breaks or "nothing",
    }


def _misses(missed: Iterable[tuple[float, float, float]]) -> list[dict[str, str]]:
    rows: dict[float, dict[str, str]] = {}
    for share, skew, part in missed:
        row = rows.setdefault(share, {"MAX_ENTRIES / sessions in use": f"{share:.0%}"})
        title = "all sessions alike" if skew == 0 else f"Zipf, exponent {skew:g}"
        row[title] = f"{part:.0%}"
        row[f"{title}: queries/s of {_FEW:,} sessions"] = f"{part * _FEW / assumed('pause'):,.0f}"
    return list(rows.values())


def _cost(name: str, costs: Mapping[str, Any]) -> dict[str, str]:
    here, bytes_ = engine(name, costs), costs[name]["bytes"]
    connections = costs[name]["connections"]
    return {
        "engine": name,
        "write": _us(here.write),
        "pull": _us(here.pull),
        "row": _us(here.row),
        "notification": _us(here.hint),
        "pull, in the process": _us(here.own_pull),
        "row, in the process": _us(here.own_row),
        "notification, in the process": _us(here.own_hint),
        "bytes of a write, pull, row, notification": ", ".join(
            f"{bytes_[what]:.0f}" for what in ("write", "pull", "row", "hint")
        ),
        "connections of a process": f"{connections['each_process']}",
        "the server's memory for each": _bytes(connections["bytes"]),
    }


def _local(local: Mapping[str, float]) -> list[dict[str, str]]:
    return [
        {"": "a hash table in shared memory, in Python", "µs": f"{local['shared_memory_us']:.1f}"},
        {"": "a question by unix socket", "µs": f"{local['socket_us']:.1f}"},
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"
