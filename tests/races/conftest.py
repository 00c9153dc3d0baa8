from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.races.nodes import KINDS, Node, Store

MakeStore = Callable[..., Store]


@pytest.fixture(scope="session", params=KINDS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A database that many tests share, each with users of its own."""
    made = Store(request.param)
    yield made
    made.close()


@pytest.fixture(scope="session")
def near(store: Store) -> Node:
    """A node on it that many tests share. They leave it as it was."""
    return store.node()


@pytest.fixture(scope="session")
def far(store: Store) -> Node:
    """Another one."""
    return store.node()


@pytest.fixture(params=KINDS)
def make_store(request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Makes databases that the test alone has."""
    made = []

    def make(**options: Any) -> Store:
        made.append(Store(request.param, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
