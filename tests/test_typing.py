"""The types of a project without django-stubs. With it, `make types` checks tests/typed.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.pipeline
def test_without_stubs_our_own_types_are_there(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    shutil.copy(ROOT / "tests" / "typed_without_stubs.py", tmp_path)
    # Nothing that is installed is seen: Django, which has no types, looks alike then.
    options = ["--strict", "--config-file=", "--no-site-packages", "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--follow-imports=silent", "."],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
