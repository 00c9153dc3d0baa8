from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.abuse.site import Person, Site
from tests.servers import require_postgresql

# What Django and gunicorn say of an exception that nobody has turned into an answer.
_FAILED = re.compile("Internal Server Error|Error handling request|Exception in worker")


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
    assert not _FAILED.search(said), said[-5000:]


@pytest.fixture
def person(site: Site) -> Person:
    return site.person()
