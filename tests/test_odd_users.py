"""User models unlike any of ours: `tests/oddusers/suite.py` once for each of them."""

from __future__ import annotations

import pytest

from tests.suites import run_suite


@pytest.mark.parametrize(
    ("model", "database"),
    [
        ("Number", ""),
        pytest.param("Stubborn", "", marks=pytest.mark.pipeline),
        pytest.param("Member", "postgresql", marks=pytest.mark.pipeline),
        pytest.param("Member", "", marks=pytest.mark.pipeline),
    ],
)
def test_it_works_with_a_user_model_like(model: str, database: str) -> None:
    run_suite("oddusers/suite.py", settings="odd_user", database=database, user=model)
