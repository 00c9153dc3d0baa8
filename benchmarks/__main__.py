"""``python -m benchmarks``: what authentication costs, as Markdown tables.

Everything is measured in one process, in rounds that interleave the variants: trust the ratios,
not the microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> int:
    """Parse the command line, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, with more noise")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="accesspass-bench-") as folder:
        os.environ["ACCESSPASS_BENCH_FOLDER"] = folder
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
        tables = run(quick=options.quick)
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    return 0


def run(*, quick: bool) -> dict[str, Any]:
    """Measure everything and print it as it comes; return the unrounded numbers."""
    try:
        import knox  # noqa: F401
        import rest_framework_simplejwt  # noqa: F401
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing}: install the extra, pip install -e '.[bench]'")
    import django

    django.setup()
    from django.core.management import call_command

    from benchmarks import measure, report
    from benchmarks.variants import BASE, make_user, make_variants

    call_command("migrate", verbosity=0)
    user = make_user()
    variants = make_variants(user)
    effort = measure.Effort(15, 0.03, 100) if quick else measure.Effort(60, 0.1, 1_000)
    began = time.monotonic()
    facts = report.facts()
    say("# Benchmarks", "")
    say(", ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    say(
        f"Median and quartiles of {effort.rounds} interleaved rounds of {effort.batch_seconds} s, "
        "in one process, on a SQLite database."
    )

    def table(title: str, rows: Sequence[measure.Row], against: str) -> list[dict[str, Any]]:
        shown = []
        for row in rows:
            line: dict[str, Any] = {"": row.name}
            if row.ratio is not None:
                line[f"× {against}"] = f"{row.ratio:.2f}"  # noqa: RUF001
            line["µs"] = report.microseconds(row.result.median)
            line["quartiles, µs"] = report.spread(row.result)
            line["SQL statements"] = row.queries
            shown.append(line)
        say("", f"## {title}", "", report.markdown(shown))
        return [
            {
                "name": row.name,
                "ratio": row.ratio,
                "queries": row.queries,
                **{f"{key}_us": value for key, value in row.result._asdict().items()},
            }
            for row in rows
        ]

    tables: dict[str, Any] = {"facts": facts, "effort": effort._asdict()}
    tables["requests"] = table(
        "A whole request through Django and DRF",
        measure.requests(variants, effort, user),
        BASE,
    )
    tables["authenticate"] = table(
        "authenticate() alone, warm",
        measure.authenticators(variants, effort, user),
        "AccessPass in memory",
    )
    tables["changes"] = table(
        f"AccessPass on SQLite: what writes, and what misses ({effort.singles} calls each)",
        measure.changes(effort, user),
        "",
    )
    tables["seconds"] = round(time.monotonic() - began, 1)
    say("", f"Took {tables['seconds']} s.")
    return tables


def say(*lines: str) -> None:
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
