"""The engine of docs/how-to/writing-an-engine.rst keeps the contract, and serves a cache."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from accesspass.cache import ReplicatedCache
from accesspass.cache.engines.base import Engine
from tests.cache.conftest import MakeEngine
from tests.cache.test_engine_contract import *  # noqa: F403 - every claim, on this engine
from tests.documents import settings_of, shown

_PATH = Path(__file__).parent.parent.parent / "docs" / "how-to" / "file_engine.py"


@pytest.fixture(scope="module")
def file_engine() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("file_engine", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["file_engine"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["file_engine"]


@pytest.fixture
def make_engine(file_engine: Any, tmp_path: Path) -> MakeEngine:
    def make() -> Engine:
        engine: Engine = file_engine.FileEngine(str(tmp_path / "log"))
        return engine

    return make


def node(folder: Path, retention: int, engine: str = "file_engine.FileEngine") -> ReplicatedCache:
    # Other options, so that each has a replica of its own.
    options = {"ENGINE": engine, "RETENTION": retention}
    return ReplicatedCache(str(folder / "log"), {"OPTIONS": options})


def test_two_nodes_share_a_cache_on_an_engine_of_ones_own(file_engine: Any, tmp_path: Path) -> None:
    one, other = node(tmp_path, 3601), node(tmp_path, 3602)
    one.set("key", {"a": 1})
    assert other.get("key") == {"a": 1}
    other.delete("key")
    assert one.get("key") is None
    assert one.status()["engine"] == "file"


def test_the_settings_of_the_page_take_it(file_engine: Any, tmp_path: Path) -> None:
    (code,) = shown("docs/how-to/writing-an-engine.rst", "python")
    code = code.replace("/var/lib/shop", str(tmp_path)).replace("shop.file_engine", "file_engine")
    with override_settings(**settings_of(code)):
        caches["accesspass"].set("key", "value")
        assert node(tmp_path, 3604).get("key") == "value"


def test_an_engine_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"ENGINE 'nowhere\.Engine'"):
        node(tmp_path, 3603, "nowhere.Engine")
