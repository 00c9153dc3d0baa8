"""Plots in SVG, for light and dark pages alike: how they are written, and those of the suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

__all__ = ["draw", "write"]

_STYLE = {
    "svg.hashsalt": "accesspass",
    "svg.fonttype": "none",
    "font.size": 9,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}
_OURS, _OTHERS = "#d9731a", "#7f7f7f"


def write(plots: Mapping[Path, Callable[[], Any]]) -> list[Path]:
    """Write the figure that each function makes, and return the paths."""
    with plt.rc_context(_STYLE):
        for path, plot in plots.items():
            figure = plot()
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Creator": None})
            plt.close(figure)
            # matplotlib leaves blanks at the ends of lines.
            lines = path.read_text(encoding="utf-8").splitlines()
            path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")
    return list(plots)


# The suite beside the peers ----------------------------------------------------------------------


def draw(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the plots of a run of ``python -m benchmarks``; those without numbers are left out."""
    plots = {
        "authenticate": partial(_bars, found["authenticate"], "us", "authenticate(), µs"),
        "requests": partial(_bars, found["requests"], "us", "A whole request in process, µs"),
        "gunicorn": partial(
            _bars,
            found["servers"]["gunicorn, sync"],
            "per_second",
            "Requests per second, gunicorn with one sync worker",
        ),
    }
    if len(found["growth"]) > 1:
        plots["growth"] = partial(_growth, found["growth"])
    if found["processes"]:
        plots["processes"] = partial(_processes, found["processes"])
    return write({folder / f"benchmarks-{name}.svg": plot for name, plot in plots.items()})


def _bars(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    title: str,
) -> Any:
    names = [row["name"] for row in rows]
    values = [row[key]["median"] for row in rows]
    height = 0.5 + 0.22 * len(rows)
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    colors = [_OURS if name.startswith("AccessPass") else _OTHERS for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    axes.set_title(title, loc="left")
    return figure


def _growth(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    sessions = [row["sessions"] for row in rows]
    shown = {"again": "AccessPass, again", "anew": "anew", "miss": "a miss", "knox": "knox"}
    for name, label in shown.items():
        medians = [row[name]["us"]["median"] for row in rows]
        axes.plot(sessions, medians, marker="o", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("live sessions")
    axes.set_ylabel("authenticate(), µs")
    axes.legend(frameon=False)
    return figure


def _processes(rows: Sequence[Mapping[str, Any]]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    for name in dict.fromkeys(row["name"] for row in rows):
        of_it = [row for row in rows if row["name"] == name]
        workers = [row["workers"] for row in of_it]
        axes.plot(workers, [row["per_second"]["median"] for row in of_it], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("workers")
    axes.set_ylabel("requests per second")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
