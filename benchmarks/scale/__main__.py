"""``python -m benchmarks.scale``: how many processes and sessions each engine carries.

What things cost is measured on private servers of this machine; a simulation says what comes of
them at other sizes, and real processes say how far to trust it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.cache.report import facts
from benchmarks.report import markdown, put_between_markers, rst
from benchmarks.scale import check, costs
from benchmarks.scale.plan import PROCESSES, SESSIONS, alternatives, grid, misses
from benchmarks.scale.report import tables

_DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_PAGE = _DOCS / "explanation" / "scale.rst"
_IMAGES = _DOCS / "images"
_NUMBERS = _IMAGES / "scale.json"
_CAPTIONS = {
    "scale-server": "Busy cores of the server, by processes, sessions and engine.",
    "scale-lag": "How long 99% of the changes take to be applied, by processes and sessions.",
    "scale-memory": "Memory of the replicas of a process and of a host, by sessions.",
}
_OTHERS = (
    ("postgresql", 100_000, 100),
    ("postgresql", 300_000, 300),
    ("postgresql", 700_000, 1_000),
    ("valkey", 100_000, 100),
    ("valkey", 300_000, 300),
)


def main() -> int:
    """Parse the command line, measure, simulate, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was measured there")
    parser.add_argument("--docs", action="store_true", help="rewrite the page and plots in docs/")
    parser.add_argument(
        "--again",
        metavar="FILE",
        type=Path,
        help=f"measure nothing, simulate from the numbers of a file such as docs/images/"
        f"{_NUMBERS.name}",
    )
    options = parser.parse_args()
    if options.again is not None:
        found = json.loads(options.again.read_text(encoding="utf-8"))
    else:
        found = {"facts": facts(), "costs": costs.measure(), "check": check.measure()}
        print(file=sys.stderr)
    cells = grid(
        found["costs"],
        SESSIONS[::2] if options.quick else SESSIONS,
        PROCESSES[::2] if options.quick else PROCESSES,
    )
    others = {
        f"{sessions:,} sessions in use, {processes:,} processes, {name}": alternatives(
            name, found["costs"], sessions, processes
        )
        for name, sessions, processes in (_OTHERS[:1] if options.quick else _OTHERS)
    }
    missed = misses((0.1, 0.25, 0.5, 0.75, 0.9), (0.0, 1.0))
    shown = tables(found, cells, others, missed)
    said = ", ".join(f"{name} {value}" for name, value in found["facts"].items()) + "."
    print(said)
    for table in shown:
        print(f"\n## {table.title}\n\n{markdown(table.rows)}")
    if options.json is not None:
        _save(found, options.json)
    if options.docs:
        from benchmarks.scale.plots import draw

        _IMAGES.mkdir(exist_ok=True)
        _save(found, _NUMBERS)
        parts = [said]
        for table in shown:
            parts += [table.title + "\n" + "-" * len(table.title), rst(table.rows)]
        for path in draw(cells, _IMAGES):
            parts.append(f".. image:: /images/{path.name}\n   :alt: {_CAPTIONS[path.stem]}")
        put_between_markers(_PAGE, "scale", "\n\n".join(parts))
    return 0


def _save(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
