"""``python -m benchmarks.cache``: what the replicated cache costs, engine by engine.

Each engine is measured on a private server of this machine, the best of several runs, because
whatever else the machine does only ever makes it slower.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cache.measure import Effort, measure
from benchmarks.cache.places import PLACES
from benchmarks.cache.report import facts, tables
from benchmarks.report import markdown, put_between_markers, rst

QUICK = Effort(seconds=3.0, rounds=1, entries=100_000)
FULL = Effort(seconds=4.0, rounds=2, entries=1_000_000)

_DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_PAGE = _DOCS / "explanation" / "cache-benchmarks.rst"
_IMAGES = _DOCS / "images"
_NUMBERS = _IMAGES / "cache-benchmarks.json"
_CAPTIONS = {
    "cache-writes": "Writes per second, by engine and number of writers.",
    "cache-lag": "How long after its acknowledgement a write is in another process's replica.",
    "cache-size": "Joining, catching up and reading with many entries, by engine.",
}


def main() -> int:
    """Parse the command line, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 entries, one run of each")
    parser.add_argument("--engines", default=",".join(PLACES), help="default: %(default)s")
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=20.0,
        help="how long to wait before each run for other processes to be quiet (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there as well")
    parser.add_argument("--docs", action="store_true", help="rewrite the page and plots in docs/")
    parser.add_argument(
        "--again", metavar="FILE", type=Path, help="measure nothing, show the numbers of a file"
    )
    options = parser.parse_args()
    unknown = set(options.engines.split(",")) - set(PLACES)
    if unknown:
        parser.error(f"unknown engines: {', '.join(sorted(unknown))}")
    if options.again is not None:
        found = json.loads(options.again.read_text(encoding="utf-8"))
    else:
        effort = QUICK if options.quick else FULL
        effort = effort._replace(patience=options.patience)
        found = run(options.engines.split(","), effort)
    shown = tables(found["engines"])
    print(", ".join(f"{name} {value}" for name, value in found["facts"].items()) + ".")
    print(said_of(found))
    for table in shown:
        print(f"\n## {table.title}\n\n{markdown(table.rows)}")
    if options.json is not None:
        save(found, options.json)
    if options.docs:
        write_docs(found)
    return 0


def run(engines: list[str], effort: Effort) -> dict[str, Any]:
    """Measure some engines, one after the other; return the unrounded numbers."""
    began = time.monotonic()
    found: dict[str, Any] = {"facts": facts(), "effort": effort._asdict(), "engines": {}}
    for name in engines:
        print(f"{name} ", end="", file=sys.stderr, flush=True)
        found["engines"][name] = measure(PLACES[name], effort)
        print(file=sys.stderr)
    found["seconds"] = round(time.monotonic() - began)
    return found


def said_of(found: dict[str, Any]) -> str:
    """One paragraph on how it was measured, with how busy the machine was."""
    busy = [
        one["others"]
        for engine in found["engines"].values()
        for one in engine.values()
        if isinstance(one, dict) and "others" in one
    ]
    return (
        f"The best of {found['effort']['rounds']} runs, each of {found['effort']['seconds']:g} s "
        f"or a little more, in {found['seconds'] / 60:.0f} minutes altogether. Just "
        f"before the runs shown here, other processes used {min(busy, default=0):.0%} to "
        f"{max(busy, default=0):.0%} of the machine, "
        f"{sorted(busy or [0])[len(busy) // 2]:.0%} in the median."
    )


def save(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_docs(found: dict[str, Any]) -> None:
    """Save the numbers and the plots, and put the tables into the page."""
    from benchmarks.cache.plots import draw

    _IMAGES.mkdir(exist_ok=True)
    save(found, _NUMBERS)
    parts = [
        ", ".join(f"{name} {value}" for name, value in found["facts"].items()) + ".",
        said_of(found),
        "How much an acknowledged write survives: "
        + "; ".join(f"{name}: {one['durability']}" for name, one in found["engines"].items())
        + ".",
    ]
    for table in tables(found["engines"]):
        parts += [table.title + "\n" + "-" * len(table.title), rst(table.rows)]
    for path in draw(found["engines"], _IMAGES):
        parts.append(f".. image:: /images/{path.name}\n   :alt: {_CAPTIONS[path.stem]}")
    put_between_markers(_PAGE, "benchmarks", "\n\n".join(parts))


if __name__ == "__main__":
    sys.exit(main())
