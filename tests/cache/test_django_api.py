"""Django's documented cache API, on every engine."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import CacheKeyWarning
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from accesspass.cache import ReplicatedCache
from accesspass.cache.backend import OPTIONS
from tests.cache.conftest import MakeNode, eventually, usable
from tests.cache.engines import KINDS, Kind


@pytest.fixture(params=[name for name in KINDS if not name.startswith("database-")])
def kind(request: pytest.FixtureRequest) -> Kind:
    return usable(request.param)


@pytest.fixture
def cache(make_node: MakeNode) -> ReplicatedCache:
    made: ReplicatedCache = make_node()
    return made


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


# Reading and writing -------------------------------------------------------------------------


def test_what_is_set_is_got(cache: ReplicatedCache) -> None:
    cache.set("key", {"a": [1, (2, None)]})
    assert cache.get("key") == {"a": [1, (2, None)]}
    assert cache.get("nothing") is None
    assert cache.get("nothing", "default") == "default"


def test_none_is_a_value(cache: ReplicatedCache) -> None:
    cache.set("key", None)
    assert cache.get("key", "default") is None
    assert cache.has_key("key")
    assert "key" in cache
    assert not cache.add("key", 1)
    assert cache.get_many(["key"]) == {"key": None}
    assert cache.get_or_set("key", 5) is None


def test_values_are_copies(cache: ReplicatedCache) -> None:
    value = {"list": [1]}
    cache.set("key", value)
    value["list"].append(2)
    got = cache.get("key")
    got["list"].append(3)
    assert cache.get("key") == {"list": [1]}


def test_add_stores_only_what_is_not_there(cache: ReplicatedCache) -> None:
    assert cache.add("key", 1) is True
    assert cache.add("key", 2) is False
    assert cache.get("key") == 1


def test_get_or_set_calls_for_its_default_once(cache: ReplicatedCache) -> None:
    calls: list[int] = []

    def default() -> int:
        calls.append(1)
        return 5

    assert cache.get_or_set("key", default) == 5
    assert cache.get_or_set("key", default) == 5
    assert len(calls) == 1
    assert cache.get_or_set("other", 6) == 6
    assert cache.get_or_set("none", lambda: None) is None


def test_incr_and_decr(cache: ReplicatedCache) -> None:
    cache.set("n", 5)
    assert cache.incr("n") == 6
    assert cache.incr("n", 10) == 16
    assert cache.decr("n") == 15
    assert cache.decr("n", 20) == -5
    assert cache.incr("n", 2**70) == 2**70 - 5
    for change in (cache.incr, cache.decr):
        with pytest.raises(ValueError, match="nothing"):
            change("nothing")
    cache.set("none", None)
    cache.set("text", "a")
    for key in ("none", "text"):
        with pytest.raises(TypeError):
            cache.incr(key)


def test_incr_keeps_the_expiry(cache: ReplicatedCache) -> None:
    cache.set("n", 1, 0.5)
    assert cache.incr("n") == 2
    assert eventually(lambda: cache.get("n") is None)
    assert not cache.add("other", 1) or cache.get("other") == 1


def test_touch_prolongs_shortens_and_ends(cache: ReplicatedCache) -> None:
    cache.set("key", "value", 0.3)
    assert cache.touch("key", 60) is True
    time.sleep(0.4)
    assert cache.get("key") == "value"
    assert cache.touch("key", None) is True
    assert cache.touch("key", 0.1) is True
    # Past the end on the engine's clock: a replica may think so earlier, by a slow pull's duration.
    time.sleep(0.2)
    assert cache.get("key") is None
    assert cache.touch("key") is False
    assert cache.touch("nothing") is False
    cache.set("key", "value")
    assert cache.touch("key", 0) is True
    assert cache.get("key") is None
    cache.set("key", "value", 1)
    assert cache.touch("key") is True
    assert cache.get("key") == "value"


def test_delete_tells_whether_it_was_there(cache: ReplicatedCache) -> None:
    cache.set("key", 1)
    assert cache.delete("key") is True
    assert cache.delete("key") is False
    assert cache.get("key") is None


def test_many_at_once(cache: ReplicatedCache) -> None:
    assert cache.set_many({"a": 1, "b": 2, "c": 3}) == []
    assert cache.get_many(["a", "b", "nothing"]) == {"a": 1, "b": 2}
    assert cache.get_many(iter(["c"])) == {"c": 3}
    cache.delete_many(["a", "b", "a", "nothing"])
    assert cache.get_many(["a", "b", "c"]) == {"c": 3}
    assert cache.set_many({}) == []
    cache.delete_many([])
    cache.set_many({"d": 4}, 0)
    assert cache.get("d") is None


def test_clear_empties(cache: ReplicatedCache) -> None:
    cache.set_many({"a": 1, "b": 2})
    cache.clear()
    assert cache.get_many(["a", "b"]) == {}
    cache.set("a", 3)
    assert cache.get("a") == 3


# Timeouts ------------------------------------------------------------------------------------


def test_a_timeout_of_none_is_for_ever_and_of_zero_or_less_is_not_at_all(
    cache: ReplicatedCache,
) -> None:
    cache.set("ever", 1, None)
    for timeout in (0, -1, 0.0, "0"):
        cache.set("never", 1, timeout)
        assert cache.get("never") is None
        assert not cache.has_key("never")
        assert cache.add("never", 1, timeout) is True
        assert cache.get("never") is None
    assert cache.get("ever") == 1


def test_a_timeout_may_be_a_string_or_a_fraction(cache: ReplicatedCache) -> None:
    cache.set("key", 1, "60")
    assert cache.get("key") == 1
    cache.set("key", 1, 0.05)
    assert eventually(lambda: cache.get("key") is None)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), "soon"])
def test_a_timeout_is_a_finite_number(cache: ReplicatedCache, timeout: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: cache.set("key", 1, timeout),
        lambda: cache.fill("key", 1, 1, timeout, cache.mark()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"finite|convert"):
            call()
    assert cache.get("key") is None


def test_the_default_timeout_is_the_aliases(make_node: MakeNode) -> None:
    short = make_node({"TIMEOUT": "1"})
    assert short.default_timeout == 1
    never = make_node({"TIMEOUT": None})
    at_once = make_node({"TIMEOUT": 0})
    short.set("short", 1)
    never.set("never", 1)
    at_once.set("at-once", 1)
    assert at_once.get("at-once") is None
    assert eventually(lambda: short.get("short") is None)
    assert never.get("never") == 1


def test_the_order_of_things_does_not_hang_on_the_wall_clock(
    cache: ReplicatedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set("key", 1)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    cache.set("key", 2)
    assert cache.get("key") == 2


# Versions and keys ---------------------------------------------------------------------------


def test_versions_are_apart(cache: ReplicatedCache) -> None:
    cache.set("key", 1, version=1)
    cache.set("key", 2, version=2)
    assert (cache.get("key"), cache.get("key", version=2)) == (1, 2)
    assert cache.delete("key", version=2)
    assert cache.get("key") == 1
    assert not cache.has_key("key", version=2)
    assert cache.incr("key", version=1) == 2
    assert cache.incr_version("key") == 2
    assert (cache.get("key"), cache.get("key", version=2)) == (None, 2)
    assert cache.decr_version("key", version=2) == 1
    with pytest.raises(ValueError, match="nothing"):
        cache.incr_version("nothing")


def test_aliases_of_one_location_share_data_under_other_names(make_node: MakeNode) -> None:
    plain = make_node()
    prefixed = make_node({"KEY_PREFIX": "site"})
    second = make_node({"VERSION": 2})
    made = make_node({"KEY_FUNCTION": lambda key, prefix, version: f"made-{key}"})
    plain.set("key", "plain")
    prefixed.set("key", "prefixed")
    second.set("key", "second")
    made.set("key", "made")
    assert plain.get("key") == "plain"
    assert prefixed.get("key") == "prefixed"
    assert eventually(lambda: plain.get("key", version=2) == "second")
    plain.clear()
    for cache in (plain, prefixed, second, made):
        assert eventually(lambda cache=cache: cache.get("key") is None)  # type: ignore[misc]


def test_keys_are_what_django_allows(cache: ReplicatedCache) -> None:
    for key in ("é", "\N{SNOWMAN}", "\U0001f511", "a:b:c", "%s", "x" * 240, "'\";--", "\udc80"):
        cache.set(key, key)
        assert cache.get(key) == key
        assert cache.delete(key)


@pytest.mark.parametrize("key", ["with space", "x" * 260, "control\x01", "delete\x7f"])
def test_keys_that_memcached_refuses_warn_and_work(cache: ReplicatedCache, key: str) -> None:
    with pytest.warns(CacheKeyWarning):
        cache.set(key, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheKeyWarning)
        assert cache.get(key) == 1


# Async ---------------------------------------------------------------------------------------


def test_the_async_api_does_the_same(cache: ReplicatedCache) -> None:
    async def story() -> None:
        await cache.aset("key", 1)
        assert await cache.aget("key") == 1
        assert await cache.aget("nothing", "default") == "default"
        assert await cache.ahas_key("key")
        assert await cache.aadd("key", 2) is False
        assert await cache.aadd("new", 2) is True
        assert await cache.aget_or_set("new", 3) == 2
        assert await cache.aincr("key") == 2
        assert await cache.adecr("key", 5) == -3
        assert await cache.atouch("key", 60)
        assert await cache.aset_many({"a": 1, "b": 2}) == []
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        await cache.adelete_many(["a", "b"])
        assert await cache.adelete("key") is True
        assert await cache.aget("key") is None
        assert await cache.aincr_version("new") == 2
        assert await cache.aget("new", version=2) == 2
        await cache.aclear()
        assert await cache.aget("new", version=2) is None

    cache.get("warm")  # on an event loop nothing is joined
    run(story())


def test_the_async_sums_keep_the_timeout(cache: ReplicatedCache) -> None:
    async def story() -> None:
        await cache.aset("n", 1, 0.6)
        assert await cache.aincr("n") == 2
        assert await cache.adecr("n") == 1

    cache.get("warm")
    run(story())
    assert eventually(lambda: cache.get("n") is None)


def test_reads_on_an_event_loop_ask_no_other_thread(
    cache: ReplicatedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set("key", 1)
    assert cache.get("key") == 1
    monkeypatch.setattr("accesspass.cache.backend.sync_to_async", None)
    monkeypatch.setattr("django.core.cache.backends.base.sync_to_async", None)

    async def story() -> tuple[Any, Any, Any]:
        return await cache.aget("key"), await cache.ahas_key("key"), await cache.aget_many(["key"])

    assert run(story()) == (1, True, {"key": 1})


# Room ----------------------------------------------------------------------------------------


def kept(cache: ReplicatedCache) -> int:
    cache.clear()
    for number in range(1, 50):
        cache.set(f"cull{number}", "value", 1000)
    return sum(cache.has_key(f"cull{number}") for number in range(1, 50))


def test_culling_keeps_as_many_as_djangos_own_backends(make_node: MakeNode) -> None:
    assert kept(make_node(MAX_ENTRIES=30)) == 29
    assert kept(make_node(MAX_ENTRIES=30, CULL_FREQUENCY=0)) == 19
    assert kept(make_node({"MAX_ENTRIES": "30"})) == 29
    assert kept(make_node()) == 49


def test_max_entries_is_an_attribute_too(make_node: MakeNode) -> None:
    cache = make_node(MAX_ENTRIES=30)
    assert cache._max_entries == 30
    cache._max_entries = -1
    cache.set("key", 1)
    assert cache.get("key") == 1


# Settings ------------------------------------------------------------------------------------


def test_an_alias_in_settings_is_one_replica_for_all_threads(engine_location: str) -> None:
    backend = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": engine_location}
    with override_settings(CACHES={"default": backend, "other": {**backend, "KEY_PREFIX": "x"}}):
        one, other = caches["default"], caches["other"]
        assert isinstance(one, ReplicatedCache)
        assert isinstance(other, ReplicatedCache)
        assert one._follower is other._follower
        one.set("key", 1)
        assert one.get("key") == 1
        assert other.get("key") is None
        one._follower.stop()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"MAX_STALENES": 5}, "MAX_STALENESS"),
        ({"UNHEARD_OF": 1}, "UNHEARD_OF"),
        ({"MAX_STALENESS": 0}, "MAX_STALENESS"),
        ({"MAX_STALENESS": "x"}, "MAX_STALENESS"),
        ({"MAX_STALENESS": float("nan")}, "MAX_STALENESS"),
        ({"HEARTBEAT": 9}, "HEARTBEAT"),
        ({"HEARTBEAT": None}, "HEARTBEAT"),
        ({"RETENTION": -1}, "RETENTION"),
        ({"MAX_ENTRIES": "many"}, "MAX_ENTRIES"),
        ({"MAX_ENTRIES": 0}, "MAX_ENTRIES"),
        ({"CULL_FREQUENCY": -1}, "CULL_FREQUENCY"),
        ({"SIGNING_KEYS": []}, "SIGNING_KEYS"),
        ({"SIGNING_KEYS": [""]}, "SIGNING_KEYS"),
        ({"SIGNING_KEYS": "one string"}, "SIGNING_KEYS"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_name(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        ReplicatedCache("memory://options", {"OPTIONS": options})


@pytest.mark.parametrize(
    "location",
    ["", "memory:", "memory://", "/path", "sqlite://relative", "sqlite:///relative", "database:x"],
)
def test_a_location_that_means_nothing_is_refused(location: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="LOCATION"):
        ReplicatedCache(location, {})


def test_a_key_is_in_no_message_and_no_repr() -> None:
    cache = ReplicatedCache("memory://options", {"OPTIONS": {"SIGNING_KEYS": ["hunter2"]}})
    for shown in (repr(cache), repr(cache._follower), str(cache.status())):
        assert "hunter2" not in shown


def test_every_option_has_a_default() -> None:
    assert ReplicatedCache("memory://options", {})._options.keys() == OPTIONS.keys()
