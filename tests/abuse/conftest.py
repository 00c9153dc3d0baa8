from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.abuse.site import Person, Site
from tests.servers import require_postgresql


@pytest.fixture(scope="session")
def _running() -> Iterator[Site]:
    require_postgresql()
    with Site() as site:
        yield site


@pytest.fixture
def site(_running: Site) -> Iterator[Site]:
    """The site, with no e-mail waiting. Whatever a test does to it, no view may fail."""
    _running.mail()
    before = len(_running.log)
    yield _running
    said = _running.log[before:]
    assert "Traceback" not in said, said[-5000:]


@pytest.fixture
def person(site: Site) -> Person:
    return site.person()
