"""``python -m benchmarks``: what authentication costs, beside no authentication and the peers.

All variants run in one project, in rounds that interleave them: trust the ratios, not the
microseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.project import Project, open_project
from benchmarks.report import facts, markdown, put_between_markers, rst, tables
from benchmarks.timing import Effort

QUICK = Effort(
    rounds=5,
    batch_seconds=0.02,
    singles=30,
    server_rounds=3,
    server_seconds=0.3,
    servers=("gunicorn, sync",),
    revocations=5,
    sessions=(1_000, 10_000),
    processes=(),
    patience=0.0,
)
FULL = Effort(
    rounds=30,
    batch_seconds=0.05,
    singles=200,
    server_rounds=5,
    server_seconds=0.8,
    servers=("gunicorn, sync", "gunicorn, gthread", "granian", "uvicorn"),
    revocations=50,
    sessions=(1_000, 10_000, 100_000, 1_000_000),
    processes=(1, 2, 4, 8, 16),
    patience=20.0,
)

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_PAGE = _DOCS / "explanation" / "benchmarks.rst"
_IMAGES = _DOCS / "images"
_NUMBERS = _IMAGES / "benchmarks.json"
_CAPTIONS = {
    "authenticate": "Microseconds of authenticate() alone, by variant.",
    "requests": "Microseconds of a whole request in process, by variant.",
    "gunicorn": "Requests per second under gunicorn with one sync worker, by variant.",
    "growth": "Microseconds of authenticate() from the fewest to the most live sessions.",
    "processes": "Requests per second by number of workers under gunicorn.",
}


def main() -> int:
    """Parse the command line, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, with more noise")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there as well")
    parser.add_argument("--docs", action="store_true", help="rewrite the page and plots in docs/")
    parser.add_argument(
        "--again", metavar="FILE", type=Path, help="measure nothing, show the numbers of a file"
    )
    options = parser.parse_args()
    if options.again is not None:
        found = json.loads(options.again.read_text(encoding="utf-8"))
    else:
        with open_project() as project:
            found = run(project, QUICK if options.quick else FULL)
    print(said_of(found))
    for table in tables(found):
        print(f"\n## {table.title}\n\n{markdown(table.rows)}")
    if options.json is not None:
        save(found, options.json)
    if options.docs:
        write_docs(found)
    return 0


def run(project: Project, effort: Effort) -> dict[str, Any]:
    """Measure everything; return the unrounded numbers."""
    from benchmarks import deployments, measure
    from benchmarks.cache.measure import wait_for_calm
    from benchmarks.growth import growth
    from benchmarks.operations import count

    began = time.monotonic()
    user = project.user
    found: dict[str, Any] = {
        "facts": facts(),
        "others": wait_for_calm(effort.patience),
        "effort": effort._asdict(),
    }
    # The last two change what the others would find: a full replica, and a busy machine.
    for name, part in (
        ("requests", lambda: measure.requests(effort, user)),
        ("authenticate", lambda: measure.authenticators(effort, user)),
        ("changes", lambda: measure.changes(effort, user)),
        ("operations", lambda: count(project)),
        ("servers", lambda: deployments.throughput(effort, user)),
        ("revocations", lambda: deployments.revocations(effort, user)),
        ("processes", lambda: deployments.processes(effort, user)),
        ("growth", lambda: growth(effort, user)),
    ):
        since = time.monotonic()
        found[name] = part()
        print(f"{name}: {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    found["seconds"] = round(time.monotonic() - began)
    return found


def said_of(found: Mapping[str, Any]) -> str:
    """One paragraph on where and how it was measured."""
    effort = found["effort"]
    return (
        ", ".join(f"{name} {value}" for name, value in found["facts"].items())
        + f". Medians and quartiles of {effort['rounds']} rounds in process and of "
        f"{effort['server_rounds']} rounds of {effort['server_seconds']:g} s under servers, in "
        f"{found['seconds']} s altogether. Before it, other processes used {found['others']:.0%} "
        "of the machine."
    )


def save(found: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_docs(found: Mapping[str, Any]) -> None:
    """Save the numbers and the plots, and put the tables into the page."""
    from benchmarks.plots import draw

    save(found, _NUMBERS)
    parts = [said_of(found)]
    for table in tables(found):
        parts += [table.title + "\n" + "-" * len(table.title), rst(table.rows)]
    for path in draw(found, _IMAGES):
        name = path.stem.removeprefix("benchmarks-")
        parts.append(f".. image:: /images/{path.name}\n   :alt: {_CAPTIONS[name]}")
    put_between_markers(_PAGE, "benchmarks", "\n\n".join(parts))


if __name__ == "__main__":
    sys.exit(main())
