"""Takes the examples out of the documentation, and runs projects that are made of them.

An example that is run has a caption: the name of its file, or what it is. Several with one caption
follow each other; one with "(first)" behind it begins them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^\.\. code-block:: \w+\n   :caption: (.+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)


def files_of(page: str) -> dict[str, str]:
    """Return the examples of a page of docs/ by their captions."""
    found: dict[str, str] = {}
    for caption, block in _BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        name, first, _ = caption.partition(" (first)")
        code = textwrap.dedent(block).strip("\n") + "\n"
        before = found.get(name, "")
        found[name] = f"{code}\n{before}" if first else f"{before}\n\n{code}" if before else code
    return found


def continued(code: str) -> str:
    """Put the value that a name has already where an example has `NAME = [...,` or `{...,`."""
    code = re.sub(r"^(\w+) = \[(\s*)\.\.\.", r"\1 = [\2*\1", code, flags=re.MULTILINE)
    return re.sub(r"^(\w+) = \{(\s*)\.\.\.", r"\1 = {\2**\1", code, flags=re.MULTILINE)


class Project:
    """A folder with a Django project, whose commands run in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def run(self, *command: str, **environment: str) -> str:
        """Run Python with these arguments, and return what it printed; it has to succeed."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DJANGO_", "PYTEST"))}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output
