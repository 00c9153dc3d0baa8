from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from accesspass.cache import ReplicatedCache
from accesspass.cache.backend import OPTIONS
from accesspass.cache.engines import resolve
from accesspass.cache.engines.base import Engine
from tests.cache.engines import KINDS, Kind

MakeEngine = Callable[[], Engine]
MakeNode = Callable[..., ReplicatedCache]

_numbers = itertools.count(1)


def eventually(claim: Callable[[], bool], *, seconds: float = 5.0) -> bool:
    """Whether a claim becomes true. Engines without a thread need the first try only."""
    end = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def _known_key() -> Iterator[None]:
    with override_settings(SECRET_KEY="cache-tests", SECRET_KEY_FALLBACKS=[]):
        yield


def usable(name: str) -> Kind:
    """The kind of that name, or a skip."""
    reason = KINDS[name].why_not()
    if reason is not None:
        pytest.skip(reason)
    return KINDS[name]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return usable(request.param)


@pytest.fixture
def engine_location(kind: Kind, tmp_path: Path) -> Iterator[str]:
    """The LOCATION of an empty log, one for each engine."""
    with kind.fresh(tmp_path) as location:
        yield location


@pytest.fixture
def make_engine(engine_location: str) -> Iterator[MakeEngine]:
    """Makes engines on one log that know nothing of each other, as those of two nodes."""
    made = []

    def make() -> Engine:
        engine = resolve(engine_location, OPTIONS).make()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def make_node_at() -> Iterator[MakeNode]:
    """Makes caches on any log, each with a replica of its own."""
    made = []

    def make(location: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
        # Whoever has other options has another replica.
        options.setdefault("RETENTION", 3600 + next(_numbers))
        node = ReplicatedCache(location, {**(params or {}), "OPTIONS": options})
        made.append(node._follower)
        return node

    yield make
    for follower in made:
        follower._stopping = True  # all at once, so that it takes one heartbeat
    for follower in made:
        follower.stop()


@pytest.fixture
def make_node(engine_location: str, make_node_at: MakeNode) -> MakeNode:
    """Makes caches on one log, each with a replica of its own."""

    def make(params: dict[str, Any] | None = None, **options: Any) -> ReplicatedCache:
        made: ReplicatedCache = make_node_at(engine_location, params, **options)
        return made

    return make
