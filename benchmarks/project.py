"""The one project of the benchmarks, on servers of its own."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from tests import servers

__all__ = ["Project", "open_project"]

# Room for sixteen workers of several variants, and no checkpoint in the middle of a measurement.
_PARAMETERS = {
    "max_connections": 300,
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
}


class Project(NamedTuple):
    """The servers that the project uses, and its one user."""

    postgresql: servers.PostgreSQL
    valkey: servers.Valkey
    user: Any


@contextmanager
def open_project() -> Iterator[Project]:
    """Start PostgreSQL and Valkey, set Django up on them, and make the tables and the user.

    Once for each process. Ends the process where a server or a library is missing.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="accesspass-bench-"))
        try:
            postgresql = stack.enter_context(servers.PostgreSQL(_PARAMETERS, durable=True))
            valkey = stack.enter_context(servers.Valkey())
        except servers.Missing as missing:
            sys.exit(str(missing))
        os.environ["ACCESSPASS_BENCH_FOLDER"] = folder
        os.environ["ACCESSPASS_BENCH_DATABASE"] = postgresql.url()
        os.environ["ACCESSPASS_BENCH_LOG"] = postgresql.url()
        os.environ["ACCESSPASS_BENCH_VALKEY"] = valkey.url().removesuffix("/0")
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
        try:
            import django

            django.setup()
        except ModuleNotFoundError as missing:
            sys.exit(f"{missing}: install the extra, pip install -e '.[bench]'")
        from django.core.cache import caches
        from django.core.management import call_command

        from benchmarks.variants import make_user

        call_command("migrate", verbosity=0)
        try:
            yield Project(postgresql, valkey, make_user())
        finally:
            # Before the servers go, whose ends would be reported.
            logging.disable()
            for alias in ("sqlite", "postgresql", "valkey"):
                caches[alias].leave()  # type: ignore[attr-defined]
