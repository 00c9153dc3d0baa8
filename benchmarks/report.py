"""The measurements as Markdown tables and as JSON."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.timing import Result

__all__ = ["facts", "markdown", "microseconds", "spread"]

_PACKAGES = (
    "Django",
    "djangorestframework",
    "django-rest-knox",
    "djangorestframework_simplejwt",
)


def facts() -> dict[str, str]:
    """What the numbers depend on."""
    found = {"cores": str(_cores()), "machine": f"{platform.system()} {platform.machine()}"}
    found["Python"] = platform.python_version()
    found.update({package: version(package) for package in _PACKAGES})
    found["SQLite"] = sqlite3.sqlite_version
    found["accesspass"] = version("django-accesspass")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def microseconds(value: float) -> str:
    """Three significant digits are more than such a measurement has."""
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def spread(result: Result) -> str:
    return f"{microseconds(result.low)} to {microseconds(result.high)}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
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
