from __future__ import annotations

import base64
import hashlib

import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from accesspass.tokens import Token, TokenType, derive, mint, parse

types = st.sampled_from(TokenType)
ids = st.binary(min_size=16, max_size=16)
numbers = st.integers(min_value=0, max_value=2**32 - 1)
OTHER_KEYS = ["a" * 40]
ID = bytes(range(16))


def is_accepted(type: TokenType, text: object) -> bool:
    token = parse(type, text)
    return token is not None and token.is_authentic()


@given(types, ids, numbers)
def test_a_minted_token_is_parsed_into_the_same_parts(
    type: TokenType, id: bytes, number: int
) -> None:
    minted = mint(type, id, number)
    parsed = parse(type, minted.text)
    assert parsed is not None
    assert parsed.is_authentic()
    assert (parsed.type, parsed.id, parsed.number) == (type, id, number)
    assert (parsed.secret, parsed.text, parsed.digest) == (
        minted.secret,
        minted.text,
        minted.digest,
    )


def test_the_format_is_the_documented_one() -> None:
    token = mint(TokenType.ACCESS, ID, 258)
    assert token.text.startswith("ap_at_")
    assert len(token.text) == len("ap_at_") + 76
    raw = base64.urlsafe_b64decode(token.text[6:])
    assert len(raw) == 57
    assert raw[:16] == ID
    assert raw[16:20] == b"\0\0\1\2"
    assert raw[20:41] == token.secret
    assert token.digest == hashlib.sha256(token.text.encode()).digest()


@given(types, ids, numbers)
def test_every_flipped_bit_is_refused(type: TokenType, id: bytes, number: int) -> None:
    text = mint(type, id, number).text
    prefix, raw = text[:6], base64.urlsafe_b64decode(text[6:])
    for bit in range(57 * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        forged = prefix + base64.urlsafe_b64encode(changed).decode()
        assert not is_accepted(type, forged), bit


@given(types, st.integers(0, 81), st.characters())
def test_every_changed_character_is_refused(type: TokenType, at: int, other: str) -> None:
    text = mint(type, ID, 7).text
    changed = text[:at] + other + text[at + 1 :]
    assert is_accepted(type, changed) == (changed == text)


def test_each_character_has_no_second_spelling() -> None:
    # Junk that lenient decoders skip, the standard alphabet, and padding.
    text = mint(TokenType.ACCESS, b"\xff" * 16, 2**32 - 1).text
    for at in range(6, len(text)):
        for other in "+/=\n\r\t !.\0":
            assert parse(TokenType.ACCESS, text[:at] + other + text[at + 1 :]) is None


@given(
    types,
    st.one_of(
        st.text(st.characters(categories=None), max_size=100),
        st.text("abcXYZ019-_+/=\n", min_size=70, max_size=80).map(lambda x: "ap_at_" + x),
        st.binary(max_size=100),
        st.none(),
        st.integers(),
        st.floats(),
        st.lists(st.text(max_size=2)),
        st.dictionaries(st.text(max_size=2), st.none()),
    ),
)
def test_no_input_raises(type: TokenType, text: object) -> None:
    assert not is_accepted(type, text)


@pytest.mark.parametrize(
    "junk",
    ["ap_at_" + "\ud800" * 76, "ap_at_" + "é" * 76, "ap_at_" + "\0" * 76, "ap_at_" + "=" * 76],
)
def test_junk_of_the_right_length_is_refused(junk: str) -> None:
    assert parse(TokenType.ACCESS, junk) is None


@pytest.mark.parametrize("length", [54, 55, 56])
def test_fewer_bytes_padded_to_the_right_length_are_refused(length: int) -> None:
    text = base64.urlsafe_b64encode(bytes(length)).decode().ljust(76, "=")
    assert len(text) == 76
    assert parse(TokenType.ACCESS, "ap_at_" + text) is None


def test_the_text_as_bytes_is_refused() -> None:
    assert parse(TokenType.ACCESS, mint(TokenType.ACCESS, ID, 1).text.encode()) is None


@pytest.mark.parametrize("made", TokenType)
@pytest.mark.parametrize("asked", TokenType)
def test_a_token_is_good_for_its_own_type_alone(made: TokenType, asked: TokenType) -> None:
    text = mint(made, ID, 1).text
    assert is_accepted(asked, text) == (made is asked)
    renamed = f"ap_{asked.value}_{text[6:]}"
    assert is_accepted(asked, renamed) == (made is asked)


def test_a_token_under_a_retired_key_is_good_while_the_key_is_a_fallback() -> None:
    with override_settings(ACCESSPASS={"TOKEN_KEYS": OTHER_KEYS}):
        text = mint(TokenType.ACCESS, ID, 1).text
        assert is_accepted(TokenType.ACCESS, text)
    assert not is_accepted(TokenType.ACCESS, text)
    with override_settings(ACCESSPASS={"TOKEN_KEYS": ["b" * 40, *OTHER_KEYS]}):
        assert is_accepted(TokenType.ACCESS, text)


def test_the_secret_key_and_its_fallbacks_are_the_default_keys() -> None:
    with override_settings(SECRET_KEY="old" * 20):
        text = mint(TokenType.ACCESS, ID, 1).text
    assert not is_accepted(TokenType.ACCESS, text)
    with override_settings(SECRET_KEY_FALLBACKS=["old" * 20]):
        assert is_accepted(TokenType.ACCESS, text)


def test_another_prefix_is_refused_even_under_the_same_key() -> None:
    text = mint(TokenType.ACCESS, ID, 1).text
    with override_settings(ACCESSPASS={"TOKEN_PREFIX": "zz"}):
        assert parse(TokenType.ACCESS, text) is None
        assert not is_accepted(TokenType.ACCESS, "zz" + text[2:])
        assert mint(TokenType.ACCESS, ID, 1).text.startswith("zz_at_")


def test_two_minted_tokens_differ() -> None:
    assert mint(TokenType.ACCESS, ID, 1).secret != mint(TokenType.ACCESS, ID, 1).secret


@given(st.binary(max_size=64), numbers)
def test_a_derived_token_is_good_and_always_the_same(nonce: bytes, number: int) -> None:
    old = mint(TokenType.REFRESH, ID, 3)
    new = derive(old, nonce, TokenType.REFRESH, number)
    assert new.is_authentic()
    assert (new.id, new.number) == (ID, number)
    assert derive(old, nonce, TokenType.REFRESH, number).text == new.text
    assert new.secret != old.secret


def test_a_derived_token_depends_on_each_of_its_sources() -> None:
    old = mint(TokenType.REFRESH, ID, 3)
    secrets = {
        derive(old, b"n", TokenType.REFRESH, 4).secret,
        derive(old, b"m", TokenType.REFRESH, 4).secret,
        derive(old, b"n", TokenType.ACCESS, 4).secret,
        derive(mint(TokenType.REFRESH, ID, 3), b"n", TokenType.REFRESH, 4).secret,
        derive(old, b"n", TokenType.REFRESH, 4, key="k" * 40).secret,
    }
    assert len(secrets) == 5


def test_a_token_derived_under_a_given_key_is_good_under_that_key() -> None:
    new = derive(mint(TokenType.REFRESH, ID, 3), b"n", TokenType.ACCESS, 4, key=OTHER_KEYS[0])
    assert not new.is_authentic()
    with override_settings(ACCESSPASS={"TOKEN_KEYS": OTHER_KEYS}):
        assert new.is_authentic()


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_number_out_of_range_is_an_error(number: int) -> None:
    with pytest.raises(ValueError, match="32-bit"):
        mint(TokenType.ACCESS, ID, number)


def test_an_id_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        mint(TokenType.ACCESS, b"short", 1)


def test_the_repr_shows_no_secret() -> None:
    token = mint(TokenType.ACCESS, ID, 1)
    shown = f"{token!r} {token!s} {[token]}"
    assert isinstance(token, Token)
    for secret in (token.text, token.text[6:], token.secret.hex(), token.digest.hex()):
        assert secret not in shown
