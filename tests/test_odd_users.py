"""User models unlike any of ours: `tests/oddusers/suite.py` once for each of them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import require_postgresql, shared_postgresql


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
    url = ""
    if database:
        require_postgresql()
        url = shared_postgresql().url(f"project_{secrets.token_hex(4)}")
    suite = Path(__file__).parent / "oddusers" / "suite.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "--ds=tests.settings.odd_user", str(suite)],
        env={
            **os.environ,
            "ACCESSPASS_TEST_USER": model,
            "ACCESSPASS_TEST_DATABASE": url,
            "DJANGO_SETTINGS_MODULE": "tests.settings.odd_user",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
