"""The tests of sessions once more, with the project's database on PostgreSQL."""

from __future__ import annotations

import pytest

from tests.suites import run_suite

FILES = [
    "test_background.py",
    "test_receivers.py",
    "test_records.py",
    "test_sessions.py",
    "test_sessions_upkeep.py",
    "test_triggers.py",
]


@pytest.mark.pipeline
@pytest.mark.parametrize("file", FILES)
def test_it_holds_on_postgresql_too(file: str) -> None:
    run_suite(file, database="postgresql")
