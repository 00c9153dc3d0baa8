"""Every requirement, advisory and fault that the docs list has tests, and each of them exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "security.rst").read_text(encoding="utf-8")
NAMED = re.compile(r"``(tests/[\w/]+\.py)::(\w+)``")

#: What may not be missing, by the first cell of its row.
REQUIREMENTS = [f"R{n}" for n in range(1, 22)]
FAULTS = [f"A{n}" for n in range(1, 13)]
ADVISORIES = [
    "CVE-2024-21543",
    "djoser: case of addresses",
    "CVE-2024-22513",
    "simplejwt#985",
    "simplejwt#302",
    "simplejwt#927",
    "knox: bytes in the header",
    "knox: cost of a token",
    "dj-rest-auth#754",
    "dj-rest-auth#150",
    "dj-rest-auth#645",
    "allauth 65.8.1",
    "allauth 65.13",
    "allauth 65.14.2",
    "axes#611",
    "supabase/auth#1901",
    "supabase/auth#2398",
    "supabase/auth#368",
    "GHSA-3529-5m8x-rpv3",
    "Hydra, Okta, Cognito: grace",
    "CVE-2026-1035",
    "keycloak#50999",
    "django-oauth-toolkit#1617",
    "CVE-2019-19844",
    "CVE-2024-39329",
    "CVE-2024-45231",
    "CVE-2025-13473",
    "CVE-2026-6873",
    "CVE-2023-7028",
    "GHSA-xv97-c62v-4587",
    "CVE-2025-4754",
    "GHSA-3988-q8q7-p787",
    "CVE-2020-5205",
    "CVE-2024-47070",
    "open-pryv.io#115",
    "CVE-2021-21416",
    "CVE-2025-61765",
    "CVE-2026-27794",
    "CVE-2023-42446",
]


def rows() -> dict[str, str]:
    """Each row of the page's tables, by its first cell."""
    pieces = re.split(r"^   \* - ", PAGE, flags=re.MULTILINE)[1:]
    return {piece.partition("\n")[0].strip(): piece for piece in pieces}


@functools.cache
def names_in(path: str) -> set[str]:
    """The names of the tests that pytest would collect from a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        x.name
        for x in tree.body
        if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef)) and x.name.startswith("test_")
    }


@pytest.mark.parametrize("what", [*REQUIREMENTS, *ADVISORIES, *FAULTS])
def test_everything_in_the_list_has_tests_that_exist(what: str) -> None:
    named = NAMED.findall(rows()[what])
    assert named, "no test is named"
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in names_in(path), f"{path} has no {name}"


def test_the_page_names_nothing_that_is_not_in_a_row() -> None:
    in_rows = {found for what in rows().values() for found in NAMED.findall(what)}
    assert set(NAMED.findall(PAGE)) == in_rows
    listed = {*REQUIREMENTS, *ADVISORIES, *FAULTS}
    assert {x for x in rows() if NAMED.search(rows()[x])} == listed


def test_the_abuse_suite_has_at_least_sixty_named_cases() -> None:
    files = [x for x in (ROOT / "tests" / "abuse").glob("test_*.py") if x != Path(__file__)]
    names = [name for x in files for name in names_in(str(x.relative_to(ROOT)))]
    assert len(names) >= 60
