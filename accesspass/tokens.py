"""The format of tokens: mint, derive, parse. No I/O and no models.

A token is `<prefix>_<type>_` and 76 characters of unpadded base64url (RFC 4648 §5) of 57 bytes:

    id (16) ‖ number (4, big-endian) ‖ secret (21) ‖ mac (16)

`id` is the session's or key's, `number` is the expiry in Unix seconds for access tokens and e-mail
keys, and the generation for refresh tokens. 57 bytes leave no spare bit in base64, so a token has
one spelling. `mac` is a truncated HMAC-SHA-256 over prefix and payload. It is a filter that lets
forged tokens be refused without I/O; what makes a token valid is that its SHA-256 is on record.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import os
from base64 import urlsafe_b64encode
from enum import Enum
from functools import lru_cache

from django.views.decorators.debug import sensitive_variables

from accesspass.conf import conf

__all__ = ["Token", "TokenType", "derive", "mint", "parse"]

_PAYLOAD_BYTES = 16 + 4 + 21
_RAW_BYTES = _PAYLOAD_BYTES + 16
_TEXT_LENGTH = 76
_FROM_URLSAFE = bytes.maketrans(b"-_+/", b"+/!!")  # the standard alphabet's own two are junk here


class TokenType(str, Enum):
    """What a token is for. The value is a part of its text, and keys are derived per type."""

    ACCESS = "at"
    REFRESH = "rt"
    EMAIL_KEY = "ek"


class Token:
    """A token in its parts. Its repr shows neither secret nor text.

    `type`, `id` (16 bytes), `number` (unsigned, 32 bits), `secret` (21 bytes), `text` (what the
    client holds) and `digest` (SHA-256 of the text, 32 bytes: what is put on record).
    """

    __slots__ = ("_raw", "digest", "id", "number", "secret", "text", "type")

    def __init__(self, type: TokenType, raw: bytes, text: str) -> None:
        self._raw = raw
        self.type = type
        self.id = raw[:16]
        self.number = int.from_bytes(raw[16:20], "big")
        self.secret = raw[20:41]
        self.text = text
        self.digest = hashlib.sha256(text.encode("ascii")).digest()

    def __repr__(self) -> str:
        return f"<Token {self.type.name} id={self.id.hex()} number={self.number}>"

    def is_authentic(self) -> bool:
        """Tell whether the token was made under one of `TOKEN_KEYS`. Takes no I/O."""
        prefix = self.text[:-_TEXT_LENGTH]
        payload, mac = self._raw[:_PAYLOAD_BYTES], self._raw[_PAYLOAD_BYTES:]
        return any(
            hmac.compare_digest(mac, _mac(key, self.type, prefix, payload))
            for key in conf.TOKEN_KEYS
        )


@sensitive_variables()
def mint(type: TokenType, id: bytes, number: int) -> Token:
    """Make a token with 168 random bits, under the primary key.

    `id` is 16 bytes, `number` an unsigned 32-bit integer. Raises ValueError for others.
    """
    return _build(type, id, number, os.urandom(21), conf.TOKEN_KEYS[0])


@sensitive_variables()
def derive(old: Token, nonce: bytes, type: TokenType, number: int, key: str | None = None) -> Token:
    """Make the one successor of `old` for this `nonce`, of the given type and number.

    The same arguments give the same token, so a successor can be given again without having been
    stored. `key` is one of `TOKEN_KEYS`, the primary by default. Raises ValueError as `mint` does.
    """
    key = conf.TOKEN_KEYS[0] if key is None else key
    message = b"".join((type.encode("ascii"), old.secret, nonce, old.id, _four_bytes(old.number)))
    secret = hmac.digest(_derived_key(key, "derive"), message, "sha256")[:21]
    return _build(type, old.id, number, secret, key)


def parse(type: TokenType, text: object) -> Token | None:
    """Return the token of that type which `text` spells, or None. Never raises.

    Only the shape is looked at: ask `is_authentic()` whether the token was made here.
    """
    prefix = _prefix(type)
    if (
        not isinstance(text, str)
        or len(text) != len(prefix) + _TEXT_LENGTH
        or not text.startswith(prefix)
        or not text.isascii()
    ):
        return None
    body = text[len(prefix) :].encode("ascii")
    try:
        raw = binascii.a2b_base64(body.translate(_FROM_URLSAFE))
    except binascii.Error:
        return None
    # The decoder skips what is not base64 and takes padding, so only the one canonical spelling
    # of the right length is let through.
    if len(raw) != _RAW_BYTES or urlsafe_b64encode(raw) != body:
        return None
    return Token(type, raw, text)


def _prefix(type: TokenType) -> str:
    return conf.TOKEN_PREFIX + "_" + type + "_"


@sensitive_variables()
def _build(type: TokenType, id: bytes, number: int, secret: bytes, key: str) -> Token:
    if len(id) != 16:
        raise ValueError("the id of a token has 16 bytes")
    prefix = _prefix(type)
    payload = id + _four_bytes(number) + secret
    raw = payload + _mac(key, type, prefix, payload)
    return Token(type, raw, prefix + urlsafe_b64encode(raw).decode("ascii"))


def _four_bytes(number: int) -> bytes:
    if not 0 <= number < 1 << 32:
        raise ValueError("the number of a token is an unsigned 32-bit integer")
    return number.to_bytes(4, "big")


@sensitive_variables()
def _mac(key: str, type: TokenType, prefix: str, payload: bytes) -> bytes:
    message = prefix.encode("ascii") + payload
    return hmac.digest(_derived_key(key, "mac." + type), message, "sha256")[:16]


@lru_cache(maxsize=64)
def _derived_key(key: str, purpose: str) -> bytes:
    secret = key.encode("utf-8", "surrogateescape")
    return hmac.digest(secret, b"accesspass.token." + purpose.encode("ascii"), "sha256")
