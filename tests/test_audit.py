"""`accesspass.audit`: `tests/audit/suite.py`, with the app installed."""

from __future__ import annotations

import pytest

from tests.suites import run_suite


@pytest.mark.parametrize("database", ["", pytest.param("postgresql", marks=pytest.mark.pipeline)])
def test_the_audit_log_on(database: str) -> None:
    run_suite("audit/suite.py", settings="audited", database=database)
