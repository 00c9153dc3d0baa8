"""The plan as plots, in the style of those of the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.cache.plots import COLORS
from benchmarks.plots import write
from benchmarks.scale.parameters import NAMES, assumed
from benchmarks.scale.plan import Cell

__all__ = ["draw"]

_DASHES = ("-", "--", ":", "-.")


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write ``scale-*.svg`` into a folder and return their paths."""
    plots = {"server": _server, "lag": _lag, "memory": _memory}
    return write(
        {folder / f"scale-{name}.svg": partial(plot, cells) for name, plot in plots.items()}
    )


def _lines(axes: Any, cells: Sequence[Cell], value: Callable[[Cell], float]) -> None:
    for name in NAMES:
        sizes = sorted({one.sessions for one in cells if one.limits["writes"] <= 1})
        for sessions, dash in zip(sizes, _DASHES, strict=False):
            here = [
                one
                for one in cells
                if (one.engine, one.sessions) == (name, sessions) and one.limits["writes"] <= 1
            ]
            if not here:
                continue
            axes.plot(
                [one.processes for one in here],
                [value(one) for one in here],
                dash,
                color=COLORS[name],
                marker=".",
                label=f"{name}, {sessions:,} sessions",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("processes")


def _server(cells: Sequence[Cell]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    _lines(axes, cells, lambda one: one.server_cores)
    axes.set_title("Cores of the server that are busy", loc="left")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _lag(cells: Sequence[Cell]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    _lines(axes, cells, lambda one: one.lag_p99 * 1e3)
    axes.set_title("Milliseconds until 99% of the changes are applied", loc="left")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _memory(cells: Sequence[Cell]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    here = [one for one in cells if (one.engine, one.processes) == (NAMES[0], cells[0].processes)]
    sessions = [one.sessions for one in here]
    axes.plot(sessions, [one.process_bytes / 2**30 for one in here], label="a process")
    axes.plot(
        sessions,
        [one.host_bytes / 2**30 for one in here],
        label=f"a host of {assumed('per_host'):.0f} processes",
    )
    axes.axhline(assumed("host_memory") / 2**30, color="#999999", linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("sessions in use")
    axes.set_title("Memory of the replicas, GiB", loc="left")
    axes.legend(frameon=False)
    return figure
