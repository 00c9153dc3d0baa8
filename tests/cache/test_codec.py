from __future__ import annotations

import collections
import contextlib
import copy
import datetime
import decimal
import enum
import hmac
import math
import pickle
import struct
import uuid
import zoneinfo
from typing import Any

import msgpack
import pytest
from django.http import (
    FileResponse,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.test import RequestFactory
from django.utils.functional import lazystr
from django.utils.safestring import SafeString, mark_safe
from hypothesis import given, settings
from hypothesis import strategies as st

from accesspass.cache.codec import MsgpackCodec, Seal
from accesspass.cache.engines.base import Entry
from accesspass.cache.exceptions import ValueRefused

codec = MsgpackCodec()

_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
_zones = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati"])
_timezones = st.one_of(
    st.none(),
    st.just(datetime.timezone.utc),
    _zones.map(zoneinfo.ZoneInfo),
    st.integers(-86_399, 86_399).map(lambda s: datetime.timezone(datetime.timedelta(seconds=s))),
)
_hashable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    _text,
    st.binary(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.datetimes(timezones=_timezones),
    st.dates(),
    st.times(timezones=st.sampled_from([None, datetime.timezone.utc])),
    st.timedeltas(),
    st.text(max_size=5).map(mark_safe),
)
_hashable = st.recursive(
    _hashable_leaves,
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)),
    max_leaves=5,
)
_values = st.recursive(
    _hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(_hashable, inner, max_size=4),
        st.tuples(inner, inner),
        st.sets(_hashable, max_size=4),
    ),
    max_leaves=15,
)


def alike(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return alike(list(one.items()), list(other.items()))
    if isinstance(one, datetime.datetime | datetime.time):
        return (
            one.replace(tzinfo=None) == other.replace(tzinfo=None)
            and one.fold == other.fold
            and one.utcoffset() == other.utcoffset()
            and getattr(one.tzinfo, "key", None) == getattr(other.tzinfo, "key", None)
        )
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


@settings(max_examples=200, deadline=None)
@given(_values)
def test_a_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    assert alike(codec.decode(codec.encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**400,
        -(10**400),
        float("inf"),
        decimal.Decimal("1.10"),
        decimal.Decimal("-0"),
        decimal.Decimal("NaN"),
        decimal.Decimal("sNaN123"),
        decimal.Decimal("1E+999999"),
        datetime.timedelta.min,
        datetime.timedelta.max,
        datetime.datetime(1, 1, 1),  # noqa: DTZ001 - naive ones are values too
        datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, datetime.timezone.utc),
        datetime.time(1, 2, 3, 4, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
        "\ud800 lone",
        "\0",
        b"\xff\0",
        "",
        (),
        [],
        {},
        set(),
        frozenset(),
        {(1, "a"): {2: (None,)}},
        {1: "int", "1": "str", b"1": "bytes", None: "none", 1.5: "float"},
    ],
    ids=repr,
)
def test_edges_come_back(value: Any) -> None:
    back = codec.decode(codec.encode(value))
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_not_a_number_comes_back() -> None:
    assert math.isnan(codec.decode(codec.encode(float("nan"))))


def test_the_hour_that_comes_twice_keeps_its_side() -> None:
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    for fold in (0, 1):
        moment = datetime.datetime(2025, 10, 26, 2, 30, tzinfo=zone, fold=fold)
        back = codec.decode(codec.encode(moment))
        assert (back.fold, back.utcoffset()) == (fold, moment.utcoffset())
        assert back.tzinfo.key == "Europe/Berlin"


class Colour(enum.IntEnum):
    RED = 3


class Letter(enum.Enum):
    A = 1


class Word(str, enum.Enum):
    ONE = "one"


class Text(str):
    __slots__ = ()


class Big(int):
    pass


class Ratio(float):
    pass


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, 3),
        (Word.ONE, "one"),
        (Text("é"), "é"),
        (Big(2**70), 2**70),
        (Big(7), 7),
        (Ratio(0.5), 0.5),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
        ({Text("key"): Big(-(2**70))}, {"key": -(2**70)}),
    ],
)
def test_subclasses_of_plain_types_come_back_plain(value: Any, plain: Any) -> None:
    back = codec.decode(codec.encode(value))
    assert back == plain
    assert type(back) is type(plain)


def test_safe_strings_stay_safe_and_others_stay_unsafe() -> None:
    assert type(codec.decode(codec.encode(mark_safe("<b>")))) is SafeString
    assert type(codec.decode(codec.encode("<b>"))) is str


class Plain:
    def __reduce__(self) -> Any:
        raise AssertionError("nothing may be pickled")


Point = collections.namedtuple("Point", "x y")


def _deep() -> Any:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    return value


def _deep_tuples() -> Any:
    value: Any = 1
    for _ in range(5000):
        value = (value,)
    return value


def _itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        Plain(),
        Plain,
        len,
        lambda: 1,
        object(),
        1 + 2j,
        range(3),
        iter([]),
        (n for n in range(3)),
        Point(1, 2),
        collections.OrderedDict(a=1),
        collections.defaultdict(int),
        collections.Counter(),
        collections.deque(),
        Exception("x"),
        lazystr("x"),
        Letter.A,
        [1, {"a": Plain()}],
        {Plain(): 1},
        StreamingHttpResponse([b"x"]),
        _deep(),
        _deep_tuples(),
        _itself(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_come_back_is_refused_as_a_pickle_error_too(value: Any) -> None:
    with pytest.raises(ValueRefused) as refused:
        codec.encode(value)
    assert isinstance(refused.value, pickle.PickleError)


def test_a_refusal_does_not_show_the_value() -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    with pytest.raises(ValueRefused) as refused:
        codec.encode({"password": Secret()})
    assert "hunter2" not in str(refused.value)


def test_what_comes_back_is_a_copy() -> None:
    value = {"list": [1, {2, 3}], "nested": {"a": []}}
    before = copy.deepcopy(value)
    data = codec.encode(value)
    first, second = codec.decode(data), codec.decode(data)
    first["list"].append(4)
    first["nested"]["a"].append(5)
    assert value == second == before


# Responses -----------------------------------------------------------------------------------


def test_a_response_comes_back_with_its_cookies() -> None:
    response = HttpResponse(
        "body é\0", status=418, reason="Teapot", headers={"X-One": "1", "Vary": "Cookie"}
    )
    response.set_cookie("plain", "value")
    response.set_cookie(
        "odd", 'a;b "c" é,', max_age=5, path="/x", domain="example.com", secure=True,
        httponly=True, samesite="Strict",
    )  # fmt: skip
    response.delete_cookie("gone")
    back = codec.decode(codec.encode(response))
    assert type(back) is HttpResponse
    assert (back.status_code, back.reason_phrase) == (418, "Teapot")
    assert back.content == response.content
    assert back.headers == response.headers
    assert back.charset == response.charset
    assert back.cookies.output() == response.cookies.output()
    assert back.cookies["odd"].value == 'a;b "c" é,'
    assert back.serialize() == response.serialize()


def test_a_response_keeps_its_charset_and_lack_of_a_type() -> None:
    response = HttpResponse("é", content_type="text/plain; charset=latin-1")
    back = codec.decode(codec.encode(response))
    assert (back.content, back.charset) == (b"\xe9", "latin-1")
    del response["Content-Type"]
    assert "Content-Type" not in codec.decode(codec.encode(response))


def test_subclasses_of_responses_come_back_as_responses() -> None:
    redirect = codec.decode(codec.encode(HttpResponseRedirect("/there")))
    assert (redirect.status_code, redirect["Location"]) == (302, "/there")
    assert codec.decode(codec.encode(JsonResponse({"a": 1}))).content == b'{"a": 1}'


def test_a_response_that_is_not_rendered_or_streams_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueRefused):
        codec.encode(TemplateResponse(RequestFactory().get("/"), "none.html"))
    path = tmp_path / "file"
    path.write_bytes(b"x")
    # Closing the response would tell Django that a request is over, which looks at its databases.
    with path.open("rb") as file, pytest.raises(ValueRefused):
        codec.encode(FileResponse(file))


# Hostile bytes -------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_valueerror(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        codec.decode(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(-128, 127), st.one_of(st.binary(max_size=50), _values.map(codec.encode)))
def test_no_tag_with_whatever_in_it_does_more_than_raise_valueerror(tag: int, data: bytes) -> None:
    size = len(data).to_bytes(4, "big")
    with contextlib.suppress(ValueError):
        codec.decode(b"\xc9" + size + tag.to_bytes(1, "big", signed=True) + data)


class Boom:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_not_loaded(protocol: int) -> None:
    data = pickle.dumps(Boom(), protocol)
    for tag in range(128):
        packed = msgpack.packb(msgpack.ExtType(tag, data))
        with contextlib.suppress(ValueError):
            codec.decode(packed)
    with contextlib.suppress(ValueError):
        codec.decode(data)


@pytest.mark.parametrize("nest", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}])
def test_deep_values_come_back_or_are_refused_and_harm_nobody(nest: Any) -> None:
    came_back = []
    value: Any = 1
    for depth in range(1, 1201):
        value = nest(value)
        if depth % 100 == 0:
            with contextlib.suppress(ValueRefused):
                codec.decode(codec.encode(value))
                came_back.append(depth)
    assert came_back == list(range(100, 1001, 100))


def test_deep_nesting_of_hostile_bytes_raises_valueerror() -> None:
    for opening in (b"\x91", b"\x92\xc7\x00\x01", b"\x81\x01"):
        with pytest.raises(ValueError, match="no value"):
            codec.decode(opening * 100_000 + b"\x01")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "Nowhere/None", "\0", ""])
def test_a_zone_is_a_name_and_no_path(name: str) -> None:
    data = msgpack.packb([msgpack.ExtType(7, b""), "2025-01-01T00:00:00", 0, name])
    with pytest.raises(ValueError, match="no value"):
        codec.decode(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.lists(_values, max_size=7))
def test_no_tag_with_whatever_after_it_does_more_than_raise_valueerror(
    tag: int, parts: list[Any]
) -> None:
    with contextlib.suppress(ValueError):
        codec.decode(codec.encode([msgpack.ExtType(tag, b""), *parts]))


# The seal ------------------------------------------------------------------------------------

_expiries = st.none() | st.floats(0, 1e12)


def entry(seal: Seal, key: bytes, revision: int, expires: float | None, payload: bytes) -> Entry:
    return Entry(
        key, 1, revision, expires, seal.close(key, revision, expires, payload, marker=False)
    )


@settings(deadline=None)
@given(st.binary(), st.integers(0, 2**63 - 1), _expiries, st.binary(), st.booleans())
def test_what_was_sealed_opens(
    key: bytes, revision: int, expires: float | None, payload: bytes, marker: bool
) -> None:
    seal = Seal(["key"])
    value = seal.close(key, revision, expires, payload, marker=marker)
    assert seal.open(Entry(key, 99, revision, expires, value)) == (payload, marker)


def test_any_flipped_bit_is_refused() -> None:
    seal = Seal(["key"])
    good = entry(seal, b"the key", 3, 1e9, b"payload")
    assert seal.open(good) is not None
    assert good.value is not None
    for position in range(len(good.value) * 8):
        spoilt = bytearray(good.value)
        spoilt[position // 8] ^= 1 << position % 8
        assert seal.open(good._replace(value=bytes(spoilt))) is None


def test_any_cut_is_refused() -> None:
    seal = Seal(["key"])
    good = entry(seal, b"the key", 3, 1e9, b"payload")
    assert good.value is not None
    for length in range(len(good.value)):
        assert seal.open(good._replace(value=good.value[:length])) is None


@settings(deadline=None)
@given(st.binary(), st.integers(0, 2**64), _expiries)
def test_a_seal_is_good_for_its_key_revision_and_expiry_alone(
    key: bytes, revision: int, expires: float | None
) -> None:
    seal = Seal(["key"])
    good = entry(seal, b"the key", 3, 1e9, b"payload")
    moved = good._replace(key=key, revision=revision, expires=expires)
    assert (seal.open(moved) is not None) == (moved == good)


def test_bytes_cannot_move_between_key_and_payload() -> None:
    seal = Seal(["key"])
    good = entry(seal, b"key", 0, None, b"+payload")
    assert good.value is not None
    moved = good._replace(key=b"key+", value=good.value[:34] + b"payload")
    assert seal.open(moved) is None


@pytest.mark.parametrize(
    "bad",
    [
        Entry(b"k", 1, -1, None, b"\x01" + b"\0" * 40),
        Entry(b"k", 1, 2**64, None, b"\x01" + b"\0" * 40),
        Entry(b"k", 1, 0, "soon", b"\x01" + b"\0" * 40),  # type: ignore[arg-type]
        Entry("k", 1, 0, None, b"\x01" + b"\0" * 40),  # type: ignore[arg-type]
        Entry(b"k", 1, "x", None, b"\x01" + b"\0" * 40),  # type: ignore[arg-type]
        Entry(b"k", 1, 0, None, "text"),  # type: ignore[arg-type]
        Entry(b"k", 1, 0, None, 5),  # type: ignore[arg-type]
        Entry(b"k", 1, 0, None, None),
        Entry(b"k", 1, 0, None, b""),
    ],
)
def test_no_entry_makes_the_seal_raise(bad: Entry) -> None:
    assert Seal(["key"]).open(bad) is None


def test_all_keys_open_and_the_first_one_seals() -> None:
    both, old, new = Seal(["new", "old"]), Seal(["old"]), Seal(["new"])
    assert both.open(entry(old, b"k", 1, None, b"p")) == (b"p", False)
    assert both.open(entry(new, b"k", 1, None, b"p")) == (b"p", False)
    assert new.open(entry(both, b"k", 1, None, b"p")) == (b"p", False)
    assert old.open(entry(both, b"k", 1, None, b"p")) is None


def test_a_seal_shows_no_key() -> None:
    assert "hunter2" not in repr(vars(Seal(["hunter2"])))


def test_a_uuid_is_a_value_and_a_key() -> None:
    value = {uuid.UUID(int=7): uuid.UUID(int=8)}
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 5_000])
def test_a_seal_is_the_hmac_of_the_standard_library(size: int) -> None:
    payload = bytes(size)
    sealed = Seal(["key"]).close(b"name", 7, 1.5, payload, marker=True)
    derived = hmac.digest(b"key", b"accesspass.cache entry 1", "sha256")
    bound = struct.pack(">BBQdI", 1, 1, 7, 1.5, len(b"name")) + b"name"
    assert sealed == b"\1\1" + hmac.digest(derived, bound + payload, "sha256") + payload
