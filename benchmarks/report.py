"""Numbers as tables: Markdown for the terminal, reStructuredText for the documentation."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.timing import Result
from tests import servers

__all__ = [
    "Table",
    "facts",
    "markdown",
    "microseconds",
    "put_between_markers",
    "rst",
    "spread",
    "tables",
]

_PACKAGES = (
    "Django",
    "djangorestframework",
    "django-rest-knox",
    "django-rest-durin",
    "djangorestframework_simplejwt",
    "django-redis",
    "redis",
    "psycopg",
    "gunicorn",
    "granian",
    "uvicorn",
    "django-accesspass",
)
_ENGINES = ("SQLite", "PostgreSQL", "Valkey")
_NONE = "–"  # noqa: RUF001 - the dash of an empty cell


class Table(NamedTuple):
    """Rows with the same keys; the first column is text."""

    title: str
    rows: list[dict[str, str]]


def facts(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """What the numbers depend on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cores": str(cores),
        "memory": f"{memory:.0f} GiB",
        "machine": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": _said([servers.postgresql_binaries() / "postgres", "--version"])[2],
        "Valkey": _said([servers.valkey_binary(), "--version"])[2].removeprefix("v="),
    }
    found.update({package: version(package) for package in packages})
    return found


def _said(command: Sequence[str | Path]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


# The suite beside the peers ----------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a run of ``python -m benchmarks``."""
    base = "no authentication"
    shown = [
        Table("Goals", _goals(found)),
        Table("A whole request in process", _timed(found["requests"], base)),
        Table("authenticate() alone, warm", _timed(found["authenticate"], "knox")),
        Table("What a request asks of servers", [_asks(row) for row in found["operations"]]),
        Table("Login, logout, refresh, in µs", [_changes(row) for row in found["changes"]]),
    ]
    for server, rows in found["servers"].items():
        shown.append(Table(f"Under {server}, one worker", [_served(row) for row in rows]))
    shown += [
        Table("Logged out here, refused there", [_revoked(row) for row in found["revocations"]]),
        Table("More live sessions", [_grown(row) for row in found["growth"]]),
        Table("More workers, under gunicorn", [_workers(row) for row in found["processes"]]),
    ]
    return [table for table in shown if table.rows]


def _timed(rows: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, str]]:
    return [
        {
            "": row["name"],
            f"× {base}": _ratio(row["ratio"]["median"]),  # noqa: RUF001
            "its quartiles": _quartiles(row["ratio"]),
            "µs": microseconds(row["us"]["median"]),
            "their quartiles": spread(Result(**row["us"])),
        }
        for row in rows
    ]


def _served(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": row["name"],
        "× no authentication": _ratio(row["ratio"]["median"]),  # noqa: RUF001
        "its quartiles": _quartiles(row["ratio"]),
        "requests/s": f"{row['per_second']['median']:,.0f}",
        "processor a request": microseconds(row["processor"]["median"]) + " µs",
        "× no authentication ": _ratio(row["processor_ratio"]["median"]),  # noqa: RUF001
        **{name: f"{row[name] * 1000:.2f} ms" for name in ("p50", "p95", "p99")},
        "memory of the worker": f"{row['memory'] / 2**20:.0f} MiB",
    }


def _asks(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": row["name"],
        "SQL statements": f"{row['statements']:.1f}",
        "round trips to PostgreSQL": f"{row['database']:.1f}",
        "round trips to Valkey": f"{row['valkey']:.1f}",
    }


def _changes(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": row["name"],
        **{
            kind: microseconds(row[kind]["median"]) if kind in row else _NONE
            for kind in ("login", "logout", "refresh", "request that misses")
        },
    }


def _revoked(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": row["name"],
        **{
            name: ("> " if row["given_up"] else "") + f"{row[name] * 1000:,.1f} ms"
            for name in ("p50", "p90", "longest")
        },
        "sent after it and accepted": f"{row['accepted']} of {row['of']} logouts",
    }


def _grown(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "live sessions": f"{row['sessions']:,}",
        "AccessPass, again": microseconds(row["again"]["us"]["median"]) + " µs",
        "× at the fewest": _ratio(row["again_growth"]),  # noqa: RUF001
        "anew": microseconds(row["anew"]["us"]["median"]) + " µs",
        "× at the fewest ": _ratio(row["anew_growth"]),  # noqa: RUF001
        "a miss": microseconds(row["miss"]["us"]["median"]) + " µs",
        "knox": microseconds(row["knox"]["us"]["median"]) + " µs",
        "memory of the process": f"{row['memory'] / 2**20:,.0f} MiB",
    }


def _workers(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "": row["name"],
        "workers": str(row["workers"]),
        "× no authentication": _ratio(row["ratio"]["median"]),  # noqa: RUF001
        "requests/s": f"{row['per_second']['median']:,.0f}",
        "memory of each worker": f"{row['memory'] / 2**20:.0f} MiB",
        "processor of all, idle": f"{row['idle']:.1%}",
    }


def _goals(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was asked for, and what each of the engines that are for servers reaches."""
    engines = [f"AccessPass, {name}" for name in _ENGINES]

    def of(rows: Sequence[Mapping[str, Any]], value: str = "ratio") -> dict[str, float]:
        return {row["name"]: row[value]["median"] for row in rows}

    alone = of(found["authenticate"], "us")
    whole = of(found["requests"])
    stateless, header = alone["simplejwt, stateless"], whole["no authentication, header sent"]
    goals = [
        ("authenticate() against knox's", "≤", 1 / 50, alone, alone["knox"]),
        ("authenticate() against stateless JWT's", "≤", 1 / 3, alone, stateless),
        ("a whole request in process against none authenticated", "≤", 1.05, whole, 1.0),
        ("the same against none authenticated that sends the header", "≤", 1.05, whole, header),
    ]
    for server, rows in found["servers"].items():
        goals.append(
            (f"requests/s under {server} against none authenticated", "≥", 0.98, of(rows), 1.0)
        )
    rows = [
        _goal(what, sign, limit, {name: all_[name] / base for name in engines if name in all_})
        for what, sign, limit, all_, base in goals
    ]
    if len(found["growth"]) > 1:
        for what in ("again", "anew"):
            growth = {"AccessPass, PostgreSQL": found["growth"][-1][f"{what}_growth"]}
            title = f"authenticate() {what} at most sessions against fewest"
            rows.append(_goal(title, "≤", 1.2, growth))
    return rows


def _goal(what: str, sign: str, limit: float, measured: Mapping[str, float]) -> dict[str, str]:
    """Compare each engine with a goal, which is reached if all of them do."""
    values = measured.values()
    reached = max(values) <= limit if sign == "≤" else min(values) >= limit
    return {
        "": what,
        "goal": f"{sign} {limit:.3g}",
        **{
            name: f"{measured[f'AccessPass, {name}']:.3g}"
            if f"AccessPass, {name}" in measured
            else _NONE
            for name in _ENGINES
        },
        "reached": "yes" if reached else "no",
    }


# Cells and tables --------------------------------------------------------------------------------


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _quartiles(result: Mapping[str, float]) -> str:
    return f"{_ratio(result['low'])} to {_ratio(result['high'])}"


def microseconds(value: float) -> str:
    """Three significant digits are more than such a measurement has."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def spread(result: Result) -> str:
    return f"{microseconds(result.low)} to {microseconds(result.high)}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table of rows that have the same keys; the first column is text."""
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(names))]
    lines = [_line(line, widths) for line in cells]
    rule = [("-" * (width - 1) + ":") if n else "-" * width for n, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = (
        cell.rjust(width) if n else cell.ljust(width)
        for n, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(aligned) + " |"


def rst(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows as a list-table of reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for cells in [list(rows[0]), *(list(row.values()) for row in rows)]:
        for place, cell in enumerate(cells):
            # A cell may begin like an item of a list, as "+ a step", and is none.
            plain = re.sub(r"^(?=[+*-] )", r"\\", cell)
            lines.append(f"   {'*' if place == 0 else ' '} - {plain}".rstrip())
    return "\n".join(lines)


def put_between_markers(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two comments ``NAME begins`` and ``NAME ends`` of a page.

    Raises:
        ValueError: the page does not have these two comments.
    """
    begin, end = f".. {name} begins\n", f".. {name} ends\n"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"{page.name} has no comments for {name}")
    page.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
