from __future__ import annotations

import argparse
import sys

from tests import mutants
from tests.mutants import cache, sessions
from tests.mutants.judge import run
from tests.mutants.mutant import Moved


def main() -> int:
    names = {mutant.name: mutant for mutant in [*cache.MUTANTS, *sessions.MUTANTS]}
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=mutants.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="of one mutant; all by default")
    chosen = parser.parse_args().names
    for name in chosen:
        if name not in names:
            parser.error(f"no mutant {name!r}; there are {', '.join(names)}")
    try:
        return min(1, run([names[name] for name in chosen or names]))
    except Moved as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
