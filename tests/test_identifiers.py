from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from accesspass.identifiers import (
    canonical,
    is_plain_text,
    validate_email,
    validate_text,
    validate_username,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bob", "bOB"),
        ("Straße", "STRASSE"),
        ("ﬁona", "FIONA"),
        ("Ⅷ", "viii"),
        ("mike@example.org", "ＭＩＫＥ＠example.org"),
        ("e\u0301va", "ÉVA"),
    ],
)
def test_spellings_of_one_name_are_equal(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


def test_names_that_only_look_alike_differ() -> None:
    assert canonical("mıke") != canonical("mike")
    assert canonical("аlice") != canonical("alice")  # the first letter is Cyrillic


@given(st.text(st.characters(categories=None)))
def test_the_canonical_form_is_stable_and_never_fails(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)
    is_plain_text(text)


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "a\x7fb", "a\u202eb", "a\u200bb", "a\ud800b"])
def test_control_and_format_characters_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        validate_text(text)
    with pytest.raises(ValidationError):
        validate_username(text, "")
    with pytest.raises(ValidationError):
        validate_email(f"{text}@example.com")


def test_the_length_is_that_of_the_canonical_form() -> None:
    validate_text("a" * 255)
    for text in ("a" * 256, "\ufdfa" * 15):  # the latter is 18 characters under NFKC
        with pytest.raises(ValidationError) as error:
            validate_text(text)
        assert error.value.code == "max_length"


@pytest.mark.parametrize("text", ["bob@example.com", "b.o+b@EXAMPLE.com", "bob@bücher.example"])
def test_an_ordinary_address_is_accepted(text: str) -> None:
    validate_email(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bob",
        "bob@",
        "@example.com",
        "bob@example.com,eve@example.com",
        "bob@example.com, eve@example.com",
        "bob@eve@example.com",
        '"bob@eve"@example.com',
        "bob@example.com＠eve.example",
        "böb@example.com",
        "bob@example.com\n",
        "bob <bob@example.com>",
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValidationError):
        validate_email(text)


@pytest.mark.parametrize("name", ["eve@example.com", "eve＠example.com", "@", "a@b"])
def test_a_username_may_not_be_like_an_address(name: str) -> None:
    with pytest.raises(ValidationError):
        validate_username(name, "bob@example.com")


def test_a_username_may_be_the_users_own_address() -> None:
    validate_username("Bob@Example.com", "bob@example.com")


@pytest.mark.parametrize("name", ["", " ", "\u3000"])
def test_a_blank_username_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        validate_username(name, "bob@example.com")
