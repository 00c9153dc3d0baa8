"""The tests of sessions once more, with the project's database on PostgreSQL."""

from __future__ import annotations

import pytest

from tests.suites import run_suite

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
    run_suite(file, "-k", chosen, database="postgresql")
