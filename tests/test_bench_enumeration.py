"""The statistics by which the benchmark says that time tells, or does not."""

from __future__ import annotations

import random

import pytest

from benchmarks.enumeration import compare

SEED = 7


def test_it_agrees_with_a_textbook() -> None:
    """U = 1 of 25 by hand: of all pairs only (6, 5) has the first one greater."""
    found = compare([1, 2, 3, 4, 6], [5, 7, 8, 9, 10])
    assert found.effect == pytest.approx(1 / 25)
    assert found.p == pytest.approx(0.0163, abs=0.0005)


def test_equal_values_are_no_difference() -> None:
    assert compare([3.0] * 30, [3.0] * 30) == (0.5, 1.0)


def test_a_shift_is_found_and_noise_is_not() -> None:
    random_ = random.Random(SEED)
    base = [random_.lognormvariate(0, 0.3) for _ in range(300)]
    other = [random_.lognormvariate(0, 0.3) for _ in range(300)]
    assert not compare(base, other).tells, SEED
    assert compare([x * 1.3 for x in base], other).tells, SEED
