"""The measurements as tables, for the terminal (Markdown) and for the documentation (RST)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks import report
from benchmarks.cache.places import fsync_seconds
from benchmarks.report import Table

__all__ = ["facts", "tables"]

_PACKAGES = ("Django", "msgpack", "psycopg", "redis", "django-accesspass")
_NONE = "–"  # noqa: RUF001 - the dash of an empty cell


def facts() -> dict[str, str]:
    """What the numbers depend on."""
    return {"fdatasync of 8 KiB": _ms(fsync_seconds()), **report.facts(_PACKAGES)}


def tables(measured: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return the tables of a run; ``measured`` has one entry for each engine."""
    entries = next(iter(measured.values()))["join"]["entries"]
    many = f"{round(entries, -3):,}"
    return [
        Table("Goals", _goals(measured)),
        Table("Writes", [_writes(name, found) for name, found in measured.items()]),
        Table(
            "Another process",
            [_elsewhere(name, found) for name, found in measured.items() if "lag" in found],
        ),
        Table(
            f"A log of {many} entries",
            [_big(name, found) for name, found in measured.items()],
        ),
        Table(
            "Reading, and what an entry takes",
            [_entry(name, found, many) for name, found in measured.items()],
        ),
    ]


def _writes(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    row = {"engine": name}
    for writers in (1, 4):
        one = found.get(f"writes_{writers}")
        label = "1 writer" if writers == 1 else f"{writers} writers"
        row[f"{label}, writes/s"] = _count(one, "per_second")
        row[f"{label}, p50"] = _ms_of(one, "p50")
        row[f"{label}, p99"] = _ms_of(one, "p99")
        row[f"{label}, refused"] = _count(one, "failed")
    row["4 that follow as well, writes/s"] = _count(found.get("writes_4_following"), "per_second")
    return row


def _elsewhere(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    return {
        "engine": name,
        "written → applied, p50": _ms_of(found["lag"], "p50"),
        "p99": _ms_of(found["lag"], "p99"),
        "longest": _ms_of(found["lag"], "longest"),
        "processor at 1,000 changes/s": (
            f"{found['follower']['cpu_share']:.1%}"
            if found["follower"]["changes_per_second"]
            else "none: asks when read"
        ),
        "changes/s meanwhile": _count(found["follower"], "changes_per_second"),
        "longest pause of a reader, at 1,000 changes/s": _pause(found["churn"]),
        "the same without changes": _pause(found["alone"]),
    }


def _big(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    join, catch_up = found["join"], found.get("catch_up")
    return {
        "engine": name,
        "join": _seconds(join["seconds"]),
        "its processor time": _seconds(join["cpu"]),
        "catch-up of 100,000": _NONE if catch_up is None else _seconds(catch_up["seconds"]),
        "filled at, entries/s": _count(found.get("populate"), "per_second"),
        "longest pause of a reader meanwhile": _pause(found.get("growth")),
    }


def _entry(name: str, found: Mapping[str, Any], many: str) -> dict[str, str]:
    small, big = found["small"]["us"], found["big"]["us"]
    return {
        "engine": name,
        "get at 1,000": f"{small:.2f} µs",
        f"get at {many}": f"{big:.2f} µs",
        "ratio": f"{big / small:.2f}",
        # Of the memory engine the same process holds the log.
        "memory beyond key and value": (
            f"{found['join']['resident_per_entry']:.0f} B" if "lag" in found else _NONE
        ),
        "of it, counted by status()": f"{found['join']['held_per_entry']:.0f} B",
        "key and value": f"{found['join']['size_per_entry']:.0f} B",
    }


class _Goal(NamedTuple):
    """``value`` of an engine's measurements is compared with ``limit``; more is better if so."""

    what: str
    engine: str
    limit: float
    value: Callable[[Mapping[str, Any]], float]
    show: Callable[[float], str]
    more: bool = False


def _goals(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for goal in _GOALS:
        if goal.engine not in measured:
            continue
        value = goal.value(measured[goal.engine])
        reached = value >= goal.limit if goal.more else value <= goal.limit
        rows.append(
            {
                "": f"{goal.engine}: {goal.what}",
                "goal": ("≥ " if goal.more else "≤ ") + goal.show(goal.limit),
                "measured": goal.show(value),
                "reached": "yes" if reached else "no",
            }
        )
    return rows


def _per_second(value: float) -> str:
    return f"{value:,.0f}/s"


def _per_entry(found: Mapping[str, Any], key: str, entries: int) -> float:
    """Seconds for so many entries, in proportion to what was measured."""
    measured = found[key]
    seconds: float = measured["seconds"] * entries / measured.get("entries", entries)
    return seconds


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _ms_of(found: Mapping[str, Any] | None, key: str) -> str:
    return _NONE if found is None else _ms(found[key])


def _count(found: Mapping[str, Any] | None, key: str) -> str:
    return _NONE if found is None else f"{found[key]:,.0f}"


def _pause(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return _NONE
    return f"{_ms(found['longest_own'])} ({_ms(found['longest'])})"


_GOALS = (
    _Goal(
        "durable writes from 4 processes",
        "postgresql",
        2_500,
        lambda f: f["writes_4"]["per_second"],
        _per_second,
        more=True,
    ),
    _Goal("written → applied elsewhere, p99", "postgresql", 0.005, lambda f: f["lag"]["p99"], _ms),
    _Goal(
        "catch-up of 100,000",
        "postgresql",
        0.6,
        lambda f: _per_entry(f, "catch_up", 100_000),
        _seconds,
    ),
    _Goal(
        "join, for 1,000,000",
        "postgresql",
        4.0,
        lambda f: _per_entry(f, "join", 1_000_000),
        _seconds,
    ),
    _Goal(
        "memory of an entry beyond key and value",
        "postgresql",
        350,
        lambda f: f["join"]["resident_per_entry"],
        lambda value: f"{value:.0f} B",
    ),
    _Goal(
        "get at many against 1,000",
        "postgresql",
        1.2,
        lambda f: f["big"]["us"] / f["small"]["us"],
        lambda value: f"{value:.2f} ×",  # noqa: RUF001
    ),
    _Goal(
        "pause of a reader at 1,000 changes/s",
        "postgresql",
        0.010,
        lambda f: f["churn"]["longest_own"],
        _ms,
    ),
    _Goal(
        "pause of a reader while it grows",
        "postgresql",
        0.010,
        lambda f: f["growth"]["longest_own"],
        _ms,
    ),
    _Goal(
        "writes from 4 processes",
        "valkey",
        6_000,
        lambda f: f["writes_4"]["per_second"],
        _per_second,
        more=True,
    ),
    _Goal("written → applied elsewhere, p99", "valkey", 0.003, lambda f: f["lag"]["p99"], _ms),
)
