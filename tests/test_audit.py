"""`accesspass.audit`: `tests/audit/suite.py`, with the app installed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import require_postgresql, shared_postgresql


@pytest.mark.parametrize("database", ["", pytest.param("postgresql", marks=pytest.mark.pipeline)])
def test_the_audit_log_on(database: str) -> None:
    url = ""
    if database:
        require_postgresql()
        url = shared_postgresql().url(f"project_{secrets.token_hex(4)}")
    suite = Path(__file__).parent / "audit" / "suite.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "--ds=tests.settings.audited", str(suite)],
        env={
            **os.environ,
            "ACCESSPASS_TEST_DATABASE": url,
            "DJANGO_SETTINGS_MODULE": "tests.settings.audited",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
