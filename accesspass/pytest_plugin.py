"""For pytest: put `pytest_plugins = ["accesspass.pytest_plugin"]` into the top `conftest.py`.

It puts an engine in memory under the cache alias, a new one for each test. pytest imports plugins
before Django is set up, so what needs Django is imported by the fixtures. It is no entry point:
installing a package should not change what the tests of a project run on.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.apps import apps

__all__: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _accesspass_memory_cache() -> Iterator[None]:
    if not apps.ready:  # a run without settings
        yield
        return
    from accesspass.testing import memory_cache

    with memory_cache():
        yield


@pytest.fixture(autouse=True)
def _accesspass_fresh_cache(_accesspass_memory_cache: None) -> None:
    if apps.ready:
        from accesspass.testing import fresh_cache

        fresh_cache()
