"""Values to bytes and back, and the seal that says who wrote them.

Nothing here unpickles anything: what came over a wire is data, never code.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import hmac
import struct
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack
from django.http import HttpResponse
from django.utils.safestring import SafeString, mark_safe

from accesspass.cache.engines.base import Entry
from accesspass.cache.exceptions import ValueRefused

__all__ = ["Codec", "MsgpackCodec", "Opened", "Seal"]


class Codec(Protocol):
    """What ``OPTIONS["CODEC"]`` names by dotted path: a class made without arguments."""

    def encode(self, value: Any) -> bytes:
        """Turn a value into bytes; raises ``ValueRefused`` for what it cannot store."""

    def decode(self, data: bytes | memoryview) -> Any:
        """Make a new value, equal to the one that was encoded.

        Raises ``ValueError`` for bytes that ``encode`` has not made; they then count as absent.
        """


# Numbers of msgpack's extension types. They are a format: none is ever used again.
_TUPLE, _SET, _FROZENSET, _INTEGER, _DECIMAL, _UUID = range(1, 7)
_DATETIME, _DATE, _TIME, _TIMEDELTA, _SAFE_STRING, _RESPONSE = range(7, 13)


class MsgpackCodec:
    """msgpack in strict mode: a value comes back with the type it had, or is refused.

    Beyond msgpack's own types: tuple, set, frozenset, int of any size, Decimal, UUID, datetime,
    date, time, timedelta, SafeString and HttpResponse. Other subclasses of str, int and float
    (enumerations) come back as plain values, bytearray and memoryview as bytes.
    """

    def encode(self, value: Any) -> bytes:
        try:
            return _pack(value)
        except ValueRefused:
            raise
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueRefused(f"the cache cannot store this value: {error}") from error

    def decode(self, data: bytes | memoryview) -> Any:
        try:
            return _unpack(data)
        except Exception as error:
            raise ValueError(f"these bytes are no value: {error}") from error


class _Tag:
    """Stands first in a list that stands for something else.

    Packing the parts by themselves into one extension would be simpler, but unpacking them again
    takes a piece of the C stack at each level, and a few hundred levels end the process.
    """

    __slots__ = ("build",)

    def __init__(self, build: Callable[[list[Any]], Any]) -> None:
        self.build = build


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(
        value, default=_tagged, strict_types=True, unicode_errors="surrogatepass"
    )
    return packed


def _unpack(data: bytes | memoryview) -> Any:
    return msgpack.unpackb(
        data,
        ext_hook=_of_extension,
        list_hook=_of_list,
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )


def _list(number: int, parts: Iterable[Any]) -> list[Any]:
    return [msgpack.ExtType(number, b""), *parts]


def _tagged(value: Any) -> Any:
    kind = type(value)
    if kind is tuple:
        return _list(_TUPLE, value)
    if kind is set:
        return _list(_SET, value)
    if kind is frozenset:
        return _list(_FROZENSET, value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        size = value.bit_length() // 8 + 1
        return msgpack.ExtType(_INTEGER, int(value).to_bytes(size, "big", signed=True))
    if kind is decimal.Decimal:
        return msgpack.ExtType(_DECIMAL, str(value).encode())
    if kind is uuid.UUID:
        return msgpack.ExtType(_UUID, value.bytes)
    if kind is datetime.datetime:
        naive = value.replace(tzinfo=None, fold=0).isoformat()
        return _list(_DATETIME, [naive, value.fold, _zone(value)])
    if kind is datetime.date:
        return msgpack.ExtType(_DATE, value.isoformat().encode())
    if kind is datetime.time:
        naive = value.replace(tzinfo=None, fold=0).isoformat()
        return _list(_TIME, [naive, value.fold, _zone(value)])
    if kind is datetime.timedelta:
        return _list(_TIMEDELTA, [value.days, value.seconds, value.microseconds])
    if kind is SafeString:
        return msgpack.ExtType(_SAFE_STRING, value.encode("utf-8", "surrogatepass"))
    if isinstance(value, HttpResponse):
        return _list(_RESPONSE, _response_state(value))
    for base in (str, int, float):
        if isinstance(value, base):
            return base.__str__(value) if base is str else base(value)
    raise ValueRefused(f"the cache cannot store a value of type {kind.__module__}.{kind.__name__}")


def _of_extension(number: int, data: bytes) -> Any:
    if number in _TAGS:
        return _TAGS[number]
    if number == _INTEGER:
        return int.from_bytes(data, "big", signed=True)
    if number == _DECIMAL:
        return decimal.Decimal(data.decode())
    if number == _UUID:
        return uuid.UUID(bytes=data)
    if number == _DATE:
        return datetime.date.fromisoformat(data.decode())
    if number == _SAFE_STRING:
        return mark_safe(data.decode("utf-8", "surrogatepass"))  # noqa: S308 - it was one
    raise ValueError(f"unknown extension {number}")


def _of_list(items: list[Any]) -> Any:
    if items and type(items[0]) is _Tag:
        return items[0].build(items[1:])
    return items


def _datetime_of(parts: list[Any]) -> datetime.datetime:
    naive, fold, zone = parts
    moment = datetime.datetime.fromisoformat(naive)
    return moment.replace(fold=fold, tzinfo=_zone_of(zone))


def _time_of(parts: list[Any]) -> datetime.time:
    naive, fold, zone = parts
    return datetime.time.fromisoformat(naive).replace(fold=fold, tzinfo=_zone_of(zone))


def _timedelta_of(parts: list[Any]) -> datetime.timedelta:
    days, seconds, microseconds = parts
    return datetime.timedelta(days, seconds, microseconds)


def _zone(value: datetime.datetime | datetime.time) -> str | float | None:
    """A zone by its key, any other as its offset in seconds at that moment."""
    if isinstance(value.tzinfo, zoneinfo.ZoneInfo) and value.tzinfo.key:
        return value.tzinfo.key
    offset = value.utcoffset()
    if value.tzinfo is not None and offset is None:
        raise ValueRefused("the cache cannot store a time whose zone has no offset")
    return None if offset is None else offset.total_seconds()


def _zone_of(zone: str | float | None) -> datetime.tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        return zoneinfo.ZoneInfo(zone)
    if zone == 0:
        return datetime.timezone.utc
    return datetime.timezone(datetime.timedelta(seconds=zone))


def _response_state(response: HttpResponse) -> list[Any]:
    if not getattr(response, "is_rendered", True):
        raise ValueRefused("the cache cannot store a response that is not rendered yet")
    return [
        response.status_code,
        response.reason_phrase,
        list(response.items()),
        [
            [morsel.key, morsel.value, morsel.coded_value, dict(morsel)]
            for morsel in response.cookies.values()
        ],
        response.content,
        response.charset,
    ]


def _response_of(state: list[Any]) -> HttpResponse:
    status, reason, headers, cookies, content, charset = state
    response = HttpResponse(
        content, status=status, reason=reason, headers=dict(headers), charset=charset
    )
    if "Content-Type" not in response.headers.keys() & {name for name, _ in headers}:
        del response["Content-Type"]  # the constructor adds one
    for key, value, coded_value, attributes in cookies:
        response.cookies[key] = coded_value
        response.cookies[key].set(key, value, coded_value)
        response.cookies[key].update(attributes)
    return response


_TAGS = {
    _TUPLE: _Tag(tuple),
    _SET: _Tag(set),
    _FROZENSET: _Tag(frozenset),
    _DATETIME: _Tag(_datetime_of),
    _TIME: _Tag(_time_of),
    _TIMEDELTA: _Tag(_timedelta_of),
    _RESPONSE: _Tag(_response_of),
}


class Opened(NamedTuple):
    """An entry whose seal was good. ``marker`` tells that culling must leave it alone."""

    payload: bytes
    marker: bool


# Format 1: format byte, flags byte, HMAC-SHA-256, payload.
_FORMAT = 1
#: The flag of what culling must leave alone.
MARKER = 1
#: Where the payload begins.
PAYLOAD = 2 + hashlib.sha256().digest_size
# What the payload is bound to: format, flags, revision, expiry, and then the key, whose length goes
# before it, so that no two inputs give one message.
_bind = struct.Struct(">BBQdI").pack
_FOREVER = float("inf")
_equal = hmac.compare_digest


class Seal:
    """HMAC-SHA-256 over payload, key, revision and expiry (RFC 2104).

    Whoever can write to the engine can then delete what is there, but not make or change it, nor
    move it to another key or prolong it.

    Args:
        keys: the first one seals, all of them open, so that keys rotate in two steps: first the
            new key as a fallback on every node, then as the first one.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [
            _padded(hmac.digest(key.encode(), b"accesspass.cache entry 1", "sha256"))
            for key in keys
        ]

    def close(
        self, key: bytes, revision: int, expires: float | None, payload: bytes, *, marker: bool
    ) -> bytes:
        """Return the sealed bytes of a payload that is to be stored under ``key``."""
        flags = MARKER if marker else 0
        until = _FOREVER if expires is None else expires
        message = _bind(_FORMAT, flags, revision, until, len(key)) + key + payload
        copy_inner, copy_outer = self._keys[0]
        inner, outer = copy_inner(), copy_outer()
        inner.update(message)
        outer.update(inner.digest())
        mac: bytes = outer.digest()
        return bytes((_FORMAT, flags)) + mac + payload

    def open(self, entry: Entry) -> Opened | None:
        """Return what a key of ours sealed, ``None`` for a deletion and for anything else."""
        key, _, revision, expires, sealed = entry
        flags = self.check(key, revision, expires, sealed)
        if flags is None or sealed is None:
            return None
        return Opened(sealed[PAYLOAD:], flags & MARKER != 0)

    def check(
        self, key: bytes, revision: int, expires: float | None, sealed: bytes | None
    ) -> int | None:
        """Return the flags of what a key of ours sealed, ``None`` for anything else.

        The payload stands in ``sealed`` from ``PAYLOAD`` on. A node that joins does this a million
        times, so nothing is made here that can be done without.
        """
        if type(sealed) is not bytes or len(sealed) < PAYLOAD or sealed[0] != _FORMAT:
            return None
        flags = sealed[1]
        try:
            message = (
                _bind(_FORMAT, flags, revision, _FOREVER if expires is None else expires, len(key))
                + key
                + sealed[PAYLOAD:]
            )
        except (struct.error, TypeError):
            return None  # a key, revision or expiry that no writer of ours could have written
        mac = sealed[2:PAYLOAD]
        for copy_inner, copy_outer in self._keys:
            inner, outer = copy_inner(), copy_outer()
            inner.update(message)
            outer.update(inner.digest())
            if _equal(mac, outer.digest()):
                return flags
        return None


def _padded(key: bytes) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What makes the inner and the outer hash of HMAC-SHA-256, the key in them (RFC 2104 §2).

    With the key hashed once and for all, a short message takes half of the time.
    """
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))
    return inner.copy, outer.copy
