"""What a mutant is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "Moved", "Mutant"]

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """One deliberate breakage.

    ``edits`` maps texts, each of which occurs in ``file`` once, to what replaces them. ``test`` is
    the node id of the test that has to fail.
    """

    name: str
    breaks: str
    file: str
    edits: Mapping[str, str]
    test: str

    def broken(self) -> str:
        """Return the code of ``file`` with this breakage in it.

        Raises:
            Moved: a text is not there, or more than once.
        """
        code = (ROOT / self.file).read_text(encoding="utf-8")
        for old, new in self.edits.items():
            if code.count(old) != 1:
                raise Moved(
                    f"{self.name}: not once but {code.count(old)} times in {self.file}: {old!r}"
                )
            code = code.replace(old, new)
        return code


class Moved(Exception):
    """The code is no longer what a mutant replaces; mend the mutant."""
