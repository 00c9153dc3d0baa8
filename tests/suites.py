"""Runs tests once more in a process of its own: under other settings, or on another database."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from tests.servers import require_postgresql, shared_postgresql

__all__ = ["run_suite"]

_HERE = Path(__file__).parent


def run_suite(
    file: str, *options: str, settings: str = "", database: str = "", user: str = ""
) -> None:
    """Run a file of this folder by pytest, and fail with what it printed if it fails.

    ``settings`` is a module of ``tests.settings``, ``database`` "postgresql" or nothing for SQLite,
    ``user`` the user model of ``tests.settings.odd_user``.
    """
    url = ""
    if database:
        require_postgresql()
        url = shared_postgresql().url(f"project_{secrets.token_hex(4)}")
    variables = {"ACCESSPASS_TEST_DATABASE": url, "ACCESSPASS_TEST_USER": user}
    if settings:
        options = (*options, f"--ds=tests.settings.{settings}")
        variables["DJANGO_SETTINGS_MODULE"] = f"tests.settings.{settings}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", *options, _HERE / file],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
