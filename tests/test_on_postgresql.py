"""The tests of sessions once more, with the project's database on PostgreSQL."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import require_postgresql, shared_postgresql

#: What every run has of which file; the pipeline has all of them.
SHORT = {"test_sessions.py": "refresh or rotation or reuse or thread or limit or overtaken"}
LONG = [
    "test_background.py",
    "test_receivers.py",
    "test_records.py",
    "test_sessions.py",
    "test_sessions_upkeep.py",
    "test_triggers.py",
]
RUNS = [
    *SHORT.items(),
    *(pytest.param(file, "", marks=pytest.mark.pipeline) for file in LONG),
]


@pytest.mark.parametrize(("file", "chosen"), RUNS)
def test_it_holds_on_postgresql_too(file: str, chosen: str) -> None:
    require_postgresql()
    name = f"project_{secrets.token_hex(4)}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-k", chosen, Path(__file__).parent / file],
        env={**os.environ, "ACCESSPASS_TEST_DATABASE": shared_postgresql().url(name)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
