"""Runs projects that are made of the examples in the documentation (tests/documents.py)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.documents import ROOT

__all__ = ["Project", "typed"]


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


def typed(commands: Iterable[str]) -> str:
    """Return Python that runs commands of manage.py, in one process that ends if one fails."""
    lines = ["from django.core.management import execute_from_command_line"]
    for command in commands:
        python, *arguments = shlex.split(command)
        assert (python, arguments[0]) == ("python", "manage.py"), command
        lines.append(f"execute_from_command_line({arguments})")
    return "\n".join([*lines, ""])
