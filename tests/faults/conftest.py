from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache.conftest import make_node_at
from tests.faults.cluster import STORES, Cluster, cluster_on

__all__ = ["make_node_at"]

#: How often the pipeline repeats what is random.
LONG = 20


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of everything random in a test; ``ACCESSPASS_SEED`` repeats a run."""
    given = os.environ.get("ACCESSPASS_SEED")
    chosen = random.randrange(10**9) if given is None else int(given)
    print(f"ACCESSPASS_SEED={chosen}")  # noqa: T201 - pytest shows it with a failure
    return chosen


@pytest.fixture(params=STORES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A store that nobody else uses, and no node yet. ``on_servers`` leaves SQLite out.

    Its server is not to be harmed.
    """
    with cluster_on(request.param, tmp_path, private=False) as made:
        yield made


@pytest.fixture
def private_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """The same on a server that the test may harm; it goes with ``on_private_servers``."""
    with cluster_on(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.pipeline)])
def full(request: pytest.FixtureRequest) -> bool:
    """Whether numbers are as big as they get, or as small as a quick run needs."""
    return bool(request.param)


@pytest.fixture
def repetition(request: pytest.FixtureRequest) -> int:
    """Which of the long run's repetitions this is."""
    number: int = request.param
    return number


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "repetition" in metafunc.fixturenames:
        long = [pytest.param(n, marks=pytest.mark.pipeline) for n in range(1, LONG + 1)]
        metafunc.parametrize("repetition", [0, *long], indirect=True)
