"""The example in the reference of the cache, run as it stands there."""

from __future__ import annotations

import logging
import runpy
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.cache import caches
from django.db import DatabaseError, connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext, isolate_apps

EXAMPLE = Path(__file__).parents[2] / "docs" / "reference" / "rates.py"


@pytest.fixture
def example(transactional_db: None) -> Iterator[Any]:
    alias = {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": f"memory://{uuid.uuid4()}",
    }
    with override_settings(CACHES={"shop": alias}), isolate_apps("accesspass"):
        found = SimpleNamespace(**runpy.run_path(str(EXAMPLE), run_name="accesspass.rates"))
        with connection.schema_editor() as editor:
            editor.create_model(found.Rate)
        yield found
        with connection.schema_editor() as editor:
            editor.delete_model(found.Rate)


def test_a_rate_is_read_from_memory_and_changed_in_one_place(example: Any) -> None:
    example.Rate.objects.create(currency="EUR", value=Decimal("1.1"))
    assert example.rate("EUR") == Decimal("1.1")
    with CaptureQueriesContext(connection) as queries:
        assert example.rate("EUR") == Decimal("1.1")
    assert len(queries) == 0
    example.change_rate("EUR", Decimal("1.2"))
    with CaptureQueriesContext(connection) as queries:
        assert example.rate("EUR") == Decimal("1.2")
    assert len(queries) == 0


def test_what_a_slow_process_publishes_late_loses(example: Any) -> None:
    row = example.Rate.objects.create(currency="EUR", value=Decimal("1.1"))
    mark = caches["shop"].mark()
    example.change_rate("EUR", Decimal("1.2"))
    example.publish(row, mark)
    assert example.rate("EUR") == Decimal("1.2")


def test_without_the_engine_the_rows_answer(
    example: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    row = example.Rate.objects.create(currency="EUR", value=Decimal("1.1"))
    cache = caches["shop"]

    def fail(*_: object) -> None:
        raise cache.EngineUnavailable("out of reach")

    mark = cache.mark()
    for name in ("changes", "write"):
        monkeypatch.setattr(cache._follower.engine, name, fail)
    with caplog.at_level(logging.ERROR):
        example.publish(row, mark)
    assert "EUR is not published" in caplog.text
    assert example.rate("EUR") == Decimal("1.1")


def test_a_change_that_rolls_back_is_not_published(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.Rate.objects.create(currency="EUR", value=Decimal("1.1"))

    def fail(**_: object) -> None:
        raise DatabaseError

    monkeypatch.setattr(example.Rate.objects, "get", fail)
    with pytest.raises(DatabaseError):
        example.change_rate("EUR", Decimal("1.2"))
    monkeypatch.undo()
    assert caches["shop"].get("rate-EUR") is None
    assert example.rate("EUR") == Decimal("1.1")
