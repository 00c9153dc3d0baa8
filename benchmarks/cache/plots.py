"""The measurements as plots, in SVG, for light and dark pages alike."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.plots import write

__all__ = ["COLORS", "draw"]

COLORS = {"memory": "#7f7f7f", "sqlite": "#2a78b5", "postgresql": "#d9731a", "valkey": "#2e9f4f"}


def draw(measured: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write ``cache-*.svg`` into a folder and return their paths."""
    plots = {"writes": _writes, "lag": _lag, "size": _size}
    return write(
        {folder / f"cache-{name}.svg": partial(plot, measured) for name, plot in plots.items()}
    )


def _bars(axes: Any, values: Mapping[str, float], form: str) -> None:
    names = list(values)
    bars = axes.barh(names, list(values.values()), color=[COLORS[name] for name in names])
    axes.bar_label(bars, labels=[form.format(value) for value in values.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.grid(axis="y", visible=False)


def _writes(measured: Mapping[str, Mapping[str, Any]]) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.2), layout="constrained")
    for axes, key, title in (
        (left, "writes_1", "Writes per second, 1 process"),
        (right, "writes_4", "Writes per second, 4 processes"),
    ):
        found = {name: one[key]["per_second"] for name, one in measured.items() if key in one}
        _bars(axes, found, "{:,.0f}")
        axes.set_title(title, loc="left")
    return figure


def _lag(measured: Mapping[str, Mapping[str, Any]]) -> Any:
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    for name, one in measured.items():
        if "lag" not in one:
            continue
        curve = [max(1e-3, seconds * 1000) for seconds in one["lag"]["curve"]]
        shares = [100 * place / (len(curve) - 1) for place in range(len(curve))]
        axes.plot(curve, shares, label=name, color=COLORS[name])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds from the acknowledgement to the other process's replica")
    axes.set_ylabel("% of writes")
    axes.legend(frameon=False)
    return figure


def _size(measured: Mapping[str, Mapping[str, Any]]) -> Any:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.2), layout="constrained")
    _bars(left, {name: one["join"]["seconds"] for name, one in measured.items()}, "{:.1f}")
    left.set_title("Join, seconds", loc="left")
    _bars(
        middle,
        {name: one["catch_up"]["seconds"] for name, one in measured.items() if "catch_up" in one},
        "{:.2f}",
    )
    middle.set_title("Catch-up of 100,000, seconds", loc="left")
    _bars(right, {name: one["big"]["us"] for name, one in measured.items()}, "{:.1f}")
    right.set_title("get() there, µs", loc="left")
    return figure
