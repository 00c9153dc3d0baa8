"""What the Redis engine claims beyond the contract of all engines, on real servers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import select
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from accesspass.cache.backend import ReplicatedCache
from accesspass.cache.engines import resolve
from accesspass.cache.engines.base import Change, Condition, Engine
from accesspass.cache.exceptions import CacheError, EngineUnavailable, EngineUncertain
from tests.documents import shown
from tests.servers import (
    HOST,
    Missing,
    Proxy,
    Server,
    Valkey,
    free_port,
    make_certificate,
    make_folder,
    shared_valkey,
    valkey_binary,
    wait_until,
)

try:
    valkey_binary()
except Missing as _missing:
    pytest.skip(f"needs Valkey or Redis: {_missing}", allow_module_level=True)

from accesspass.cache.engines import redis as module
from accesspass.cache.engines.redis import RedisEngine

MakeEngine = Callable[..., RedisEngine]
MakeNode = Callable[..., ReplicatedCache]
DEADLINE = 0.5
# What a busy machine may add to a deadline, in seconds.
GRACE = 0.4


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """One of this test's own, so that tests may share a server."""
    return hashlib.sha256(f"{request.node.name}-{os.getpid()}".encode()).hexdigest()[:16]


@pytest.fixture
def make_engine(namespace: str) -> Iterator[MakeEngine]:
    made: list[RedisEngine] = []

    def make(location: str, **arguments: Any) -> RedisEngine:
        arguments = {"namespace": namespace, "deadline": DEADLINE, **arguments}
        made.append(RedisEngine(location, **arguments))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make_engine: MakeEngine) -> RedisEngine:
    return make_engine(shared_valkey().url(), deadline=5.0)


@pytest.fixture
def make_node(namespace: str) -> Iterator[MakeNode]:
    """Nodes of one process are apart if their locations or their options differ."""
    made: list[ReplicatedCache] = []

    def make(location: str, **options: Any) -> ReplicatedCache:
        options = {"NAMESPACE": namespace, "HEARTBEAT": 0.1, "MAX_STALENESS": 1.0, **options}
        made.append(ReplicatedCache(location, {"OPTIONS": options}))
        made[-1]._follower.engine.deadline = DEADLINE
        return made[-1]

    yield make
    for node in made:
        node._follower.stop()


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def proxy(server: Valkey) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


class Pair:
    """A primary, a replica that follows it through a proxy, and a proxy for the clients."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.primary: Valkey = stack.enter_context(Valkey())
        self.between = stack.enter_context(Proxy(self.primary.port))
        self.replica: Valkey = stack.enter_context(
            Valkey({"replicaof": f"{HOST} {self.between.port}"})
        )
        self.replica.wait_linked()
        self.front = stack.enter_context(Proxy(self.primary.port))
        self.url = self.primary.url(port=self.front.port)

    def cut(self) -> None:
        """Cut the replica off; nobody is told."""
        self.between.black_hole()

    def fail_over(self) -> None:
        """The primary dies, the replica takes its place with what it has."""
        self.primary.kill()
        self.between.drop(refuse=True)
        self.replica.promote()
        self.front.target = self.replica.port
        self.front.drop()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield Pair(stack)


CALLS: dict[str, Callable[[Engine], object]] = {
    "changes": lambda engine: engine.changes(0, 10),
    "read": lambda engine: engine.read(b"key"),
    "write": lambda engine: engine.write([Change(b"key", b"value")]),
    "clear": lambda engine: engine.clear(),
    "purge": lambda engine: engine.purge(0.0, 10),
}
WRITES = {"write", "clear", "purge"}


def held(engine: Engine) -> dict[bytes, bytes | None]:
    """What a replica would hold that reads everything."""
    found: dict[bytes, bytes | None] = {}
    after, more = 0, True
    while more:
        page = engine.changes(after, engine.page_size)
        found.update({entry.key: entry.value for entry in page.changes})
        after, more = page.changes[-1].seq if page.more else page.head, page.more
    return found


# Numbers ----------------------------------------------------------------------------------------


def test_expiries_come_back_bit_for_bit(engine: RedisEngine) -> None:
    expiries = [0.1 + 0.2, 5e-324, 1.7e308, 1e15 / 3, time.time(), float("inf"), -1.5, 2.0**53]
    engine.write([Change(b"%d" % i, b"v", expiry) for i, expiry in enumerate(expiries)])
    assert [entry.expires for entry in engine.changes(0, 100).changes] == expiries


def test_a_number_follows_its_predecessor_exactly(engine: RedisEngine) -> None:
    numbers = [engine.write([Change(b"key", b"v")]).seq for _ in range(100)]
    assert numbers == list(range(numbers[0], numbers[0] + 100))
    assert engine.changes(numbers[-1] - 1, 10).changes[0].seq == numbers[-1]
    assert not engine.changes(numbers[-1], 10).changes


@pytest.mark.parametrize("revision", [1, 2**32, 2**53, 2**63, 2**64 - 2])
def test_revisions_are_compared_beyond_what_a_double_holds(
    engine: RedisEngine, revision: int
) -> None:
    newer = Condition(newer=True)
    assert engine.write([Change(b"key", b"v", None, revision)], newer).done
    assert not engine.write([Change(b"key", b"v", None, revision)], newer).done
    assert not engine.write([Change(b"key", b"v", None, revision - 1)], newer).done
    assert engine.write([Change(b"key", b"v", None, revision + 1)], newer).done


def test_numbers_go_on_in_a_new_epoch_while_the_server_remembers_the_last(
    engine: RedisEngine,
) -> None:
    last = engine.write([Change(b"key", b"v")] * 50).seq
    shared_valkey().execute("DEL", engine._keys[1])
    assert engine.write([Change(b"key", b"v")]).seq == last + 1


def test_an_expiry_that_is_no_number_is_refused_before_anything_is_sent(
    engine: RedisEngine,
) -> None:
    with pytest.raises(ValueError, match="expiry"):
        engine.write([Change(b"good", b"v"), Change(b"bad", b"v", float("nan"))])
    assert held(engine) == {}


def test_a_page_of_big_values_ends_early_and_loses_nothing(engine: RedisEngine) -> None:
    big = b"x" * 100_000
    for i in range(10):
        engine.write([Change(b"%d-%d" % (i, j), big) for j in range(30)])
    page = engine.changes(0, engine.page_size)
    assert page.more
    assert 0 < len(page.changes) < 300
    assert len(held(engine)) == 300


# Servers that are not what they were ------------------------------------------------------------


@pytest.mark.parametrize("how", ["FLUSHALL", "FLUSHDB", "DEL entries", "DEL log", "DEL meta"])
def test_a_server_that_lost_keys_begins_a_new_epoch(
    server: Valkey, make_engine: MakeEngine, namespace: str, how: str
) -> None:
    engine = make_engine(server.url())
    engine.write([Change(b"key", b"v")])
    before = engine.changes(0, 10)
    command, _, key = how.partition(" ")
    server.execute(command, *([f"{{{namespace}}}:{key}"] if key else []))
    page = engine.changes(0, 10)
    assert page.epoch != before.epoch
    assert not page.changes
    assert engine.changes(0, 10).epoch == page.epoch


def test_losing_entries_and_numbers_together_is_noticed_by_a_write(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    before = engine.write([Change(b"key", b"v")]).epoch
    server.execute("DEL", engine._keys[1], engine._keys[2])
    assert not engine.write([Change(b"key", b"w")], Condition(epoch=before)).done
    assert engine.changes(0, 10).epoch != before


def test_nodes_forget_what_a_flushed_server_has_forgotten(
    server: Valkey, make_node: MakeNode
) -> None:
    node = make_node(server.url())
    node.set("key", "value")
    assert node.get("key") == "value"
    server.execute("FLUSHALL")
    wait_until(lambda: node.get("key") is None, 5)
    node.set("key", "again")
    assert node.get("key") == "again"


def test_a_server_killed_without_persistence_begins_again_and_nobody_serves_the_past(
    server: Valkey, make_node: MakeNode
) -> None:
    node, other = make_node(server.url()), make_node(server.url(), HEARTBEAT=0.11)
    node.set("key", "value")
    wait_until(lambda: other.get("key") == "value")
    before = other.status()["epoch"]
    server.kill()
    wait_until(lambda: other.get("key") is None, 5)
    with pytest.raises(EngineUnavailable):
        node.set("key", "while it was down")
    server.start()
    began = time.monotonic()
    wait_until(lambda: other.status()["fresh"] or other.get("key"), 5)
    assert time.monotonic() - began < 2 + GRACE
    assert other.status()["epoch"] != before
    assert other.get("key") is None
    node.set("key", "new")
    wait_until(lambda: other.get("key") == "new")


@pytest.mark.fault
def test_a_failover_that_loses_acknowledged_writes_empties_the_engine(
    pair: Pair, make_node: MakeNode
) -> None:
    node, other = make_node(pair.url), make_node(pair.url, HEARTBEAT=0.11)
    node.set("key", "old")
    node.set("also", "old")
    pair.primary.wait_for_replica(pair.replica)
    pair.cut()
    node.set("key", "new")
    wait_until(lambda: other.get("key") == "new")
    before = other.status()["epoch"]
    seen, ended = set(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.update(each.get("key") for each in (node, other))
            time.sleep(0.001)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        pair.fail_over()
        assert pair.replica.execute("HGET", node._follower.engine._keys[1], ":1:key") is not None
        wait_until(lambda: other.status()["epoch"] != before, 5)
        # As many writes as were lost: the promoted server would give their numbers away again.
        node.set("another", "value")
        wait_until(lambda: other.get("another") == "value", 5)
        time.sleep(0.3)
    finally:
        ended.set()
        looking.join()
    assert seen <= {"new", None}
    assert other.get("also") is None
    assert node.get("key") is None


def test_the_first_write_after_a_failover_cannot_land_in_the_old_epoch(
    pair: Pair, make_engine: MakeEngine
) -> None:
    engine = make_engine(pair.url)
    before = engine.write([Change(b"key", b"old", None, 1)]).epoch
    pair.primary.wait_for_replica(pair.replica)
    pair.fail_over()
    written = engine.write([Change(b"key", b"v", None, 2)], Condition(newer=True, epoch=before))
    assert not written.done
    assert written.epoch != before
    assert held(engine) == {}


def test_whoever_sees_a_new_server_first_sets_the_epoch_for_all(
    pair: Pair, make_engine: MakeEngine
) -> None:
    engines = [make_engine(pair.url) for _ in range(8)]
    before = engines[0].write([Change(b"key", b"v")]).epoch
    pair.primary.wait_for_replica(pair.replica)
    pair.fail_over()
    barrier = threading.Barrier(len(engines))
    epochs: list[str] = []

    def pull(engine: RedisEngine) -> None:
        barrier.wait()
        epochs.append(engine.changes(0, 10).epoch)

    threads = [threading.Thread(target=pull, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(epochs) == 8
    assert len(set(epochs)) == 1
    assert epochs[0] != before


@pytest.mark.parametrize("call", CALLS)
def test_a_replica_is_never_asked(pair: Pair, make_engine: MakeEngine, call: str) -> None:
    make_engine(pair.url).write([Change(b"key", b"v")])
    pair.primary.wait_for_replica(pair.replica)
    with pytest.raises(EngineUnavailable, match="replica"):
        CALLS[call](make_engine(pair.replica.url()))


def test_not_even_a_replica_that_takes_writes_is_asked(pair: Pair, make_engine: MakeEngine) -> None:
    first = make_engine(pair.url)
    first.write([Change(b"key", b"v")])
    pair.primary.wait_for_replica(pair.replica)
    pair.replica.execute("CONFIG SET", "replica-read-only", "no")
    for call in CALLS.values():
        with pytest.raises(EngineUnavailable, match="replica"):
            call(make_engine(pair.replica.url()))
    assert pair.replica.execute("HEXISTS", first._keys[1], "key")


def test_a_demoted_master_answers_no_node(pair: Pair, make_node: MakeNode) -> None:
    node = make_node(pair.url)
    node.set("key", "value")
    assert node.get("key") == "value"
    pair.replica.promote()
    pair.primary.follow(pair.replica)
    wait_until(lambda: node.get("key") is None, 5)
    with pytest.raises(EngineUnavailable):
        node.set("key", "lost")
    # Its connections were let go of, so that it is found where the name points to now.
    pair.front.target = pair.replica.port
    pair.front.drop()
    wait_until(lambda: node.status()["fresh"] or node.get("key"), 5)
    node.set("key", "new")
    assert node.get("key") == "new"


# Servers that do not answer ---------------------------------------------------------------------


def every_call_ends_in_time(make_engine: MakeEngine, url: str, silence: Callable[[], None]) -> None:
    """Each once on a connection that was good, then on new ones, which its kernel still accepts."""
    engines = {name: make_engine(url) for name in CALLS}
    for engine in engines.values():
        engine.changes(0, 1)
    silence()

    def twice(name: str) -> None:
        first = EngineUncertain if name in WRITES else EngineUnavailable
        for expected in (first, EngineUnavailable):
            began = time.monotonic()
            with pytest.raises(expected):
                CALLS[name](engines[name])
            assert time.monotonic() - began < DEADLINE + GRACE

    with ThreadPoolExecutor(len(CALLS)) as pool:
        list(pool.map(twice, CALLS))


@pytest.mark.fault
def test_every_call_to_a_frozen_server_ends_in_time(
    server: Valkey, make_engine: MakeEngine
) -> None:
    try:
        every_call_ends_in_time(make_engine, server.url(), server.freeze)
    finally:
        server.thaw()
    engine = make_engine(server.url())
    wait_until(lambda: _works(engine), 5)


def _works(engine: Engine) -> bool:
    with contextlib.suppress(CacheError):
        engine.changes(0, 1)
        return True
    return False


def test_one_call_that_fails_spares_the_others_the_connections_of_that_server(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    engine.wait(0.01)
    links = [engine._borrow([], time.monotonic() + 5) for _ in range(3)]
    for link in links:
        engine._give_back(engine._idle, link)
    server.freeze()
    try:
        with pytest.raises(EngineUncertain):
            engine.write([Change(b"key", b"v")])
        with pytest.raises(EngineUnavailable):  # certain, because it finds no connection
            engine.write([Change(b"key", b"v")])
    finally:
        server.thaw()
    assert engine._subscription is None


@pytest.mark.fault
def test_every_call_into_a_black_hole_ends_in_time(
    proxy: Proxy, server: Valkey, make_engine: MakeEngine
) -> None:
    every_call_ends_in_time(make_engine, server.url(port=proxy.port), proxy.black_hole)


def test_an_answer_that_trickles_in_does_not_prolong_the_deadline(
    make_engine: MakeEngine,
) -> None:
    """A timeout for each read of the socket would let it live on."""
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                while b"PING" not in client.recv(65536):
                    client.sendall(b"+OK\r\n")
                client.sendall(b"+PONG\r\n")
                client.recv(65536)
                client.sendall(b"$1000\r\n")
                for _ in range(100):
                    client.sendall(b"x")
                    time.sleep(0.1)

        threading.Thread(target=serve, daemon=True).start()
        engine = make_engine(f"redis://{HOST}:{listener.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(EngineUncertain):
            engine.write([Change(b"key", b"v")])
        assert time.monotonic() - began < DEADLINE + GRACE


def test_a_name_server_that_does_not_answer_does_not_prolong_the_deadline(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def getaddrinfo(*_: object, **__: object) -> Any:
        asked.set()
        time.sleep(2 * (DEADLINE + GRACE))
        raise socket.gaierror("nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    engine = make_engine("redis://somewhere.invalid")
    began = time.monotonic()
    with pytest.raises(EngineUnavailable):
        engine.write([Change(b"key", b"v")])
    assert time.monotonic() - began < DEADLINE + GRACE
    assert asked.is_set()


@pytest.mark.fault
def test_a_deleted_key_is_never_hit_after_max_staleness_whatever_the_network_does(
    proxy: Proxy, server: Valkey, make_node: MakeNode
) -> None:
    near, far = make_node(server.url()), make_node(server.url(port=proxy.port))
    near.set("key", "value")
    wait_until(lambda: far.get("key") == "value")
    proxy.black_hole()
    near.delete("key")
    deleted = time.monotonic()
    last = deleted
    while time.monotonic() - deleted < far.max_staleness + 1.5:
        if far.get("key") is not None:
            last = time.monotonic()
        time.sleep(0.005)
    assert last - deleted <= far.max_staleness + 0.05
    proxy.heal()
    healed = time.monotonic()
    wait_until(lambda: far.status()["fresh"] or far.get("key"), 5)
    assert time.monotonic() - healed < 2 + GRACE
    assert far.get("key") is None


# What has happened, and what is said about it ---------------------------------------------------


@pytest.mark.parametrize("what", ["add", "compare and set"])
def test_a_lost_answer_is_reported_and_the_write_happens_once(
    proxy: Proxy, server: Valkey, make_engine: MakeEngine, what: str
) -> None:
    engine, witness = make_engine(server.url(port=proxy.port)), make_engine(server.url())
    first = engine.write([Change(b"key", b"0")]).seq
    change, condition = Change(b"other", b"1"), Condition(absent=True)
    if what == "compare and set":
        change, condition = Change(b"key", b"1"), Condition(seq=first)
    proxy.black_hole(to_server=False)
    with pytest.raises(EngineUncertain):
        engine.write([change], condition)
    proxy.heal()
    time.sleep(0.2)
    page = witness.changes(0, 10)
    assert page.head == first + 1
    assert {entry.key: entry.value for entry in page.changes}[change.key] == b"1"
    assert not engine.write([change], condition).done


def test_a_write_that_was_never_sent_is_known_not_to_have_happened(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    engine.write([Change(b"key", b"0")])
    server.kill()
    for _ in range(2):  # once with a connection at hand, once without
        with pytest.raises(EngineUnavailable):
            engine.write([Change(b"key", b"1")])


def test_a_write_that_was_sent_in_part_is_known_not_to_have_happened(
    proxy: Proxy, server: Valkey, make_engine: MakeEngine
) -> None:
    engine, witness = make_engine(server.url(port=proxy.port)), make_engine(server.url())
    before = engine.changes(0, 1).head
    proxy.black_hole()
    with pytest.raises(EngineUnavailable):
        engine.write([Change(b"key", b"x" * 64_000_000)])  # more than all buffers on the way
    proxy.heal()
    time.sleep(0.5)
    assert witness.changes(0, 1).head == before


def test_a_connection_that_died_while_idle_fails_no_write(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    engine.changes(0, 1)
    server.restart()
    assert engine.write([Change(b"key", b"v")]).done


def test_a_server_that_forgot_our_scripts_is_told_again_and_writes_once(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    first = engine.write([Change(b"key", b"v")]).seq
    server.execute("SCRIPT FLUSH")
    assert engine.write([Change(b"key", b"v")]).seq == first + 1
    assert engine.changes(0, 1).head == first + 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_evicts_is_refused_and_the_setting_named(
    server: Valkey, make_engine: MakeEngine, policy: str
) -> None:
    engine = make_engine(server.url())
    server.execute("CONFIG SET", "maxmemory-policy", policy)
    with pytest.raises(EngineUnavailable, match="set maxmemory-policy to noeviction"):
        engine.changes(0, 10)
    server.execute("CONFIG SET", "maxmemory-policy", "noeviction")
    engine.changes(0, 10)


def test_a_full_server_refuses_writes_but_can_be_read_and_purged(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    engine.write([Change(b"%d" % i, b"x" * 1000, 1.0) for i in range(2000)])
    head = engine.changes(0, 1).head
    server.execute("CONFIG SET", "maxmemory", "1mb")
    with pytest.raises(EngineUnavailable, match="memory"):
        engine.write([Change(b"key", b"v")])
    assert engine.changes(0, 1).head == head
    assert engine.purge(2.0, 10_000) == 2000
    page = engine.changes(0, 10)
    assert (page.floor, page.changes) == (head, [])


def test_a_server_that_lacks_replicas_refuses_writes(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    engine.changes(0, 1)
    server.execute("CONFIG SET", "min-replicas-to-write", 1)
    with pytest.raises(EngineUnavailable, match="min-replicas-to-write"):
        engine.write([Change(b"key", b"v")])


def test_a_server_that_is_loading_is_unavailable_and_nothing_is_uncertain(
    server: Valkey, make_engine: MakeEngine
) -> None:
    server.stop()
    server.parameters |= {
        "save": "",
        "key-load-delay": 2000,
        "loading-process-events-interval-bytes": 1024,
    }
    server.start()
    server.execute("MSET", *(f"filler-{i}" for i in range(4000)))
    server.execute("SAVE")
    server.kill()
    server.parameters["dbfilename"] = "dump.rdb"
    server.start(wait=False)
    engine = make_engine(server.url())
    messages: set[str] = set()

    def refused() -> bool:
        try:
            engine.write([Change(b"key", b"v")])
        except EngineUnavailable as error:
            messages.add(str(error))
            return any("loading" in message for message in messages)
        return False

    wait_until(refused, 5)


SECRET = "pa/ss:wo rd%"
QUOTED = "pa%2Fss%3Awo%20rd%25"


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("", "password"),
        (":wrong%2F@", "refused the user name or password"),
        (f"nobody:{QUOTED}@", "refused the user name or password"),
        (f"weak:{QUOTED}@", "may not do"),
    ],
)
def test_a_refused_login_is_unavailable_and_no_message_holds_a_password(
    server: Valkey, make_engine: MakeEngine, user: str, says: str
) -> None:
    server.execute("ACL", "SETUSER", "weak", "on", f">{SECRET}", "+ping", "+client", "+select")
    server.execute("CONFIG SET", "requirepass", SECRET)
    for call in CALLS.values():
        with pytest.raises(EngineUnavailable, match=says) as caught:
            call(make_engine(f"redis://{user}{HOST}:{server.port}"))
        chain: list[str] = []
        error: BaseException | None = caught.value
        while error is not None:
            chain.append(repr(error))
            error = error.__cause__
        for secret in (SECRET, QUOTED, "wrong"):
            assert secret not in "".join(chain)


def test_a_server_that_quotes_the_password_in_its_error_is_not_quoted(
    make_engine: MakeEngine,
) -> None:
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                while SECRET.encode() not in client.recv(65536):
                    client.sendall(b"+OK\r\n")
                client.sendall(f"-ERR what is {SECRET} supposed to mean\r\n".encode())

        threading.Thread(target=serve, daemon=True).start()
        engine = make_engine(f"redis://:{QUOTED}@{HOST}:{listener.getsockname()[1]}")
        with pytest.raises(EngineUnavailable, match=r"what is \*\*\* supposed") as caught:
            engine.changes(0, 1)
    assert SECRET not in repr(caught.value)


def test_a_good_password_with_special_characters_is_accepted(
    server: Valkey, make_engine: MakeEngine
) -> None:
    server.execute("CONFIG SET", "requirepass", SECRET)
    engine = make_engine(f"redis://:{QUOTED}@{HOST}:{server.port}/3")
    assert engine.write([Change(b"key", b"v")]).done
    assert SECRET not in repr(vars(engine))


def test_what_others_wrote_into_our_keys_is_an_absence_and_kills_no_follower(
    server: Valkey, make_node: MakeNode, namespace: str
) -> None:
    node = make_node(server.url())
    node.set("a", "good")
    meta, entries, log = (f"{{{namespace}}}:{name}" for name in ("meta", "entries", "log"))
    for key, body in (("a", "short"), ("b", "x" * 100), ("c", ""), ("d", b"\0" * 16 + b"\1\1\0x")):
        number = server.execute("HINCRBY", meta, "seq", 1)
        server.execute("HSET", entries, f":1:{key}", body)
        server.execute("ZADD", log, number, f":1:{key}")
    wait_until(lambda: node.get("a") is None, 5)
    assert [node.get(key) for key in "abcd"] == [None] * 4
    assert node.status()["counters"]["refused"] == 4
    assert node.add("a", "mine")
    node.set("b", "mine")
    assert node.get_many("ab") == {"a": "mine", "b": "mine"}


# Replicas that have to follow -------------------------------------------------------------------


@pytest.mark.fault
def test_with_min_replicas_a_cut_off_master_confirms_nothing_and_is_not_fresh(
    pair: Pair, make_engine: MakeEngine
) -> None:
    engine = make_engine(pair.url, min_replicas=1)
    assert engine.write([Change(b"key", b"v")]).done
    assert engine.changes(0, 10).changes
    pair.cut()
    # The server itself has not noticed anything.
    info = pair.primary.execute("INFO", "replication")
    assert (info["role"], info["connected_slaves"], info["slave0"]["lag"] <= 1) == (
        "master",
        1,
        True,
    )
    for call, expected in (("changes", EngineUnavailable), ("write", EngineUncertain)):
        began = time.monotonic()
        with pytest.raises(expected, match="MIN_REPLICAS"):
            CALLS[call](engine)
        assert time.monotonic() - began < DEADLINE + GRACE
    # A refusal proves just as little: what refuses it may be lost.
    with pytest.raises(EngineUnavailable, match="MIN_REPLICAS"):
        engine.write([Change(b"key", b"v")], Condition(absent=True))
    # Whoever does not ask for replicas is not held up.
    assert make_engine(pair.url).write([Change(b"key", b"w")]).done
    pair.between.heal()
    wait_until(lambda: _works(engine), 5)
    assert engine.write([Change(b"key", b"x")]).done


def test_more_replicas_than_there_are_never_confirm(pair: Pair, make_engine: MakeEngine) -> None:
    engine = make_engine(pair.url, min_replicas=2)
    with pytest.raises(EngineUnavailable, match="1 of 2"):
        engine.changes(0, 10)


def test_with_min_replicas_what_was_confirmed_survives_on_the_replica(
    pair: Pair, make_engine: MakeEngine
) -> None:
    engine = make_engine(pair.url, min_replicas=1)
    for i in range(50):
        engine.write([Change(b"%d" % i, b"v")])
        assert pair.replica.execute("HEXISTS", engine._keys[1], str(i))


def test_a_user_with_the_rights_that_the_documentation_names_can_do_everything(
    server: Valkey, make_engine: MakeEngine
) -> None:
    configuration, rule = shown("docs/how-to/engines.rst", "none")
    for line in configuration.splitlines():
        server.execute("CONFIG", "SET", *shlex.split(line))
    server.execute(*rule.split())
    engine = make_engine(f"redis://shop:secret@{HOST}:{server.port}", namespace="accesspass")
    for call in CALLS.values():
        call(engine)
    for change in (Change(b"key", b"v", 1e10), Change(b"key", b"v"), Change(b"key", None)):
        assert engine.write([change]).done
    assert engine.write([Change(b"other", b"v", 1.0)], Condition(absent=True)).done
    assert engine.purge(1e10, 10) == 2
    engine.wait(0.01)
    assert engine._subscription is not None
    engine.clear()
    assert server.execute("ACL", "LOG") == []
    other = make_engine(f"redis://shop:secret@{HOST}:{server.port}", namespace="other")
    with pytest.raises(EngineUnavailable, match="may not"):
        other.changes(0, 0)


# Hints ------------------------------------------------------------------------------------------


def test_a_hint_wakes_the_follower_long_before_its_heartbeat(make_node: MakeNode) -> None:
    url = shared_valkey().url()
    reader = make_node(url, HEARTBEAT=20.0, MAX_STALENESS=40.0)
    writer = make_node(url, HEARTBEAT=21.0, MAX_STALENESS=40.0)
    assert reader.get("key") is None
    wait_until(lambda: reader._follower.engine._subscription is not None)
    for i in range(20):
        writer.set("key", i)
        wait_until(lambda i=i: reader.get("key") == i, 1.0, every=0.0005)


def test_hints_that_were_dropped_wake_nobody(engine: RedisEngine) -> None:
    engine.wait(0.01)  # the first one subscribes
    assert engine._subscription is not None
    for dropped in (True, False):
        engine.write([Change(b"key", b"v")])
        assert select.select([engine._subscription._socket], [], [], 2.0)[0]
        if dropped:
            engine.drop_hints()
        began = time.monotonic()
        engine.wait(0.3)
        assert (time.monotonic() - began >= 0.3) is dropped


def test_closing_interrupts_a_wait_and_the_engine_can_be_used_again(engine: RedisEngine) -> None:
    engine.wait(0.01)  # the first one subscribes
    woken = threading.Event()

    def wait() -> None:
        engine.wait(30.0)
        woken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    assert not woken.is_set()
    engine.close()
    assert woken.wait(2.0)
    waiting.join()
    assert engine.write([Change(b"key", b"v")]).done


def test_closing_interrupts_a_wait_for_a_server_that_is_away(make_engine: MakeEngine) -> None:
    engine = make_engine(f"redis://{HOST}:{free_port()}")
    waiting = threading.Thread(target=engine.wait, args=(30.0,))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    engine.close()
    waiting.join(2.0)
    assert not waiting.is_alive()


def test_a_subscription_that_died_silently_is_found_out_and_renewed(
    proxy: Proxy, server: Valkey, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PING_AFTER", 0.1)
    engine = make_engine(server.url(port=proxy.port))
    engine.wait(0.01)
    first = engine._subscription
    assert first is not None
    for _ in range(5):
        engine.wait(0.1)  # silent, but alive: the server answers when it is asked
    assert engine._subscription is first
    proxy.black_hole()
    wait_until(lambda: engine.wait(0.1) or engine._subscription is not first)
    proxy.drop()
    proxy.heal()
    wait_until(lambda: engine.wait(0.1) or engine._subscription is not None)


def test_a_wait_without_a_server_takes_its_time_and_fails_nobody(make_engine: MakeEngine) -> None:
    engine = make_engine(f"redis://{HOST}:{free_port()}")
    began = time.monotonic()
    engine.wait(0.3)
    assert 0.3 <= time.monotonic() - began < 0.3 + GRACE


# Processes --------------------------------------------------------------------------------------


def test_a_fork_leaves_the_connections_of_its_parent_alone(
    server: Valkey, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url(), deadline=5.0)
    engine.write([Change(b"parent", b"v")])
    engine.wait(0.01)
    clients = _clients(server)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # what the child does is told through its exit status
        status = 1
        with contextlib.suppress(BaseException):
            engine.forget_connections()
            engine.write([Change(b"child", b"v")])
            engine.wait(0.01)
            os.write(write, b"x")
            engine.close()
            status = 0
        os._exit(status)
    assert os.read(read, 1) == b"x"
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)
    # The same connections as before, and they still work.
    wait_until(lambda: _clients(server) == clients)
    assert engine.write([Change(b"parent", b"w")]).done
    assert _clients(server) == clients
    assert held(engine) == {b"parent": b"w", b"child": b"v"}


def test_a_fork_that_ran_no_hooks_is_noticed_by_the_engine(engine: RedisEngine) -> None:
    engine.changes(0, 1)
    (inherited,) = engine._idle
    engine._pid -= 1
    engine.changes(0, 1)
    assert inherited not in engine._idle
    assert inherited._socket.fileno() >= 0, "it was closed"


def _clients(server: Valkey) -> set[str]:
    listing = server.execute("CLIENT LIST")
    return {each["id"] for each in listing if each["cmd"].startswith("eval") or each["sub"] != "0"}


def test_many_threads_leave_few_connections_behind(server: Valkey, make_engine: MakeEngine) -> None:
    engine = make_engine(server.url(), deadline=10.0)
    threads = [
        threading.Thread(target=lambda: [engine.write([Change(b"k", b"v")]) for _ in range(20)])
        for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engine._idle) <= 8
    wait_until(lambda: len(_clients(server)) <= 8)


def test_two_namespaces_on_one_server_do_not_meet(make_engine: MakeEngine) -> None:
    url = shared_valkey().url()
    one, two = make_engine(url, namespace="one"), make_engine(url, namespace="two")
    one.write([Change(b"key", b"1")])
    two.write([Change(b"key", b"2")])
    two.clear()
    assert held(one) == {b"key": b"1"}
    assert held(two) == {}


# Where the server is ----------------------------------------------------------------------------

OPTIONS = {"ENGINE": None, "NAMESPACE": "accesspass", "MIN_REPLICAS": 0}


@pytest.mark.parametrize(
    "location",
    [
        "redis://h",
        "rediss://u:p@h:1/2?ssl_ca_certs=/x",
        "redis://[::1]:7",
        "redis+unix:///run/x.sock",
        "redis+unix://u:p@/run/x%20y.sock?db=2",
        "redis+cluster://a,b:1",
        "redis+sentinel://:p@a,b:1/name/3?sentinel_password=q",
        "rediss+sentinel://a/name",
    ],
)
def test_a_location_is_understood_and_its_identity_holds_no_password(location: str) -> None:
    resolved = resolve(location, OPTIONS)
    assert isinstance(resolved.make(), RedisEngine)
    shown = repr(resolved)
    assert ":p@" not in shown
    assert "sentinel_password" not in shown
    assert resolve(location, OPTIONS).identity == resolved.identity
    assert resolve(location, {**OPTIONS, "NAMESPACE": "x"}).identity != resolved.identity
    assert resolve(location, {**OPTIONS, "MIN_REPLICAS": 1}).identity != resolved.identity


@pytest.mark.parametrize(
    "location",
    [
        "redis://:s3cret@",
        "redis://:s3/cret@h",
        "redis://:s3cret@h/x",
        "redis://:s3cret@h,i",
        "redis://:s3cret@h?nonsense=s3cret",
        "redis+sentinel://:s3cret@h",
        "redis+what://:s3cret@h",
        "redis+unix://:s3cret@h/run/x.sock",
        "redis+unix://:s3cret@",
        "redis+unix://:s3cret@/run/x.sock?nonsense=s3cret",
        "rediss+unix://:s3cret@/run/x.sock",
        "redis+cluster://:s3cret@h/1",
        "redis://:s3cret@[::1",
        "redi://:s3cret@h",
        "redis://s3cret@h:x",
        "rediss://:s3cret@h?ssl_cert_reqs=s3",
        "redis://:s3cret@h℀x",
    ],
)
def test_a_wrong_location_is_refused_with_a_message_that_does_not_quote_it(location: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="LOCATION") as caught:
        resolve(location, OPTIONS)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "arguments", [{"namespace": "a{b}"}, {"namespace": ""}, {"min_replicas": -1}]
)
def test_a_wrong_option_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured):
        RedisEngine("redis://h", **arguments)


def test_without_redis_py_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = importlib.import_module("accesspass.cache.engines")
    monkeypatch.delattr(engines, "redis")
    monkeypatch.delitem(sys.modules, "accesspass.cache.engines.redis")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'django-accesspass\[redis\]'"):
        resolve("redis://h", OPTIONS)


class _Sentinel(Server):
    """A Sentinel that watches a primary under the name "main"."""

    def __init__(self, primary: Valkey) -> None:
        super().__init__(make_folder(), free_port())
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port}\nbind {HOST}\ndir {self.folder}\n"
            f"sentinel monitor main {HOST} {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n"
        )

    def command(self) -> Sequence[str | Path]:
        return [valkey_binary(), self.folder / "sentinel.conf", "--sentinel"]

    def is_ready(self) -> bool:
        return bool(self.execute("PING"))

    execute = Valkey.execute


@pytest.mark.fault
def test_sentinels_lead_to_the_master_and_after_a_failover_to_the_new_one(
    server: Valkey, make_engine: MakeEngine
) -> None:
    replica = server.replica()
    with replica, _Sentinel(server) as sentinel:
        away = free_port()  # a Sentinel that is down must not matter
        engine = make_engine(
            f"redis+sentinel://{HOST}:{away},{HOST}:{sentinel.port}/main", deadline=2.0
        )
        before = engine.write([Change(b"key", b"v")]).epoch
        wait_until(lambda: sentinel.execute("SENTINEL REPLICAS", "main"), 15)
        server.kill()
        with pytest.raises(EngineUnavailable):
            engine.write([Change(b"key", b"w")])
        wait_until(lambda: _works(engine), 25, every=0.1)
        assert replica.execute("INFO", "replication")["role"] == "master"
        page = engine.changes(0, 10)
        assert page.epoch != before
        assert not page.changes
        assert engine.write([Change(b"key", b"w")]).done


@pytest.mark.fault
def test_in_a_cluster_the_node_that_has_the_slot_is_found_also_after_it_moved(
    make_engine: MakeEngine,
) -> None:
    # The usual port for the nodes' own talk is 10,000 above the server's, which may be too high.
    talk = [free_port(), free_port()]
    parameters = [{"cluster-enabled": "yes", "cluster-port": str(port)} for port in talk]
    with Valkey(parameters[0]) as one, Valkey(parameters[1]) as two:
        one.execute("CLUSTER ADDSLOTSRANGE", 0, 8191)
        two.execute("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        one.execute("CLUSTER MEET", HOST, two.port, talk[1])
        wait_until(
            lambda: all(
                each.execute("CLUSTER INFO")["cluster_state"] == "ok" for each in (one, two)
            ),
            20,
        )
        slots = {one.execute("CLUSTER KEYSLOT", name): name for name in map(str, range(100))}
        low, high = slots[min(slots)], slots[max(slots)]
        away = free_port()
        for namespace, home in ((low, one), (high, two)):
            engine = make_engine(
                f"redis+cluster://{HOST}:{away},{HOST}:{one.port}",
                namespace=namespace,
                deadline=2.0,
            )
            assert engine.write([Change(b"key", b"v")]).done
            assert home.execute("HEXISTS", engine._keys[1], "key")
            assert {home.execute("CLUSTER KEYSLOT", key) for key in engine._keys} == {
                home.execute("CLUSTER KEYSLOT", f"{{{namespace}}}")
            }
        # The slot goes to the other node: what was there is gone, and nobody believes otherwise.
        engine.clear()
        two.execute("DEL", *engine._keys)
        here = one.execute("CLUSTER MYID").decode()
        slot = two.execute("CLUSTER KEYSLOT", f"{{{high}}}")
        for each in (one, two):
            each.execute("CLUSTER SETSLOT", slot, "NODE", here)
        with pytest.raises(EngineUnavailable, match="moved"):
            engine.write([Change(b"key", b"v")])
        assert engine.write([Change(b"key", b"v")]).done
        assert one.execute("HEXISTS", engine._keys[1], "key")


def test_over_a_unix_socket_it_works_alike(make_engine: MakeEngine) -> None:
    with Valkey({"unixsocket": "of%valkey.sock"}) as server:
        server.execute("CONFIG", "SET", "requirepass", "p@ss")
        place = f"{server.folder}/of%25valkey.sock"
        engine = make_engine(f"redis+unix://:p%40ss@{place}?db=3")
        assert engine.write([Change(b"key", b"value")]).done
        assert held(engine) == {b"key": b"value"}
        engine.wait(0.01)
        assert engine.write([Change(b"key", b"other")]).done
        began = time.monotonic()
        engine.wait(10.0)
        assert time.monotonic() - began < 5, "the hint did not come through"
        other = make_engine(f"redis+unix://:p%40ss@{place}?db=4")
        assert held(other) == {}
        with pytest.raises(EngineUnavailable, match="password") as caught:
            make_engine(f"redis+unix://:wr0ng@{place}").changes(0, 0)
        assert "wr0ng" not in str(caught.value)


class _TLSFront:
    """Speaks TLS and passes on what it hears: the packaged server cannot speak it itself."""

    def __init__(self, target: int, folder: Path) -> None:
        self.target = target
        self.certificate, key = make_certificate(folder)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, key)
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, self.target)) as server,
            self.context.wrap_socket(plain, server_side=True) as client,
        ):
            # One thread for both ways: an SSLSocket is not made for two at a time.
            while True:
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                if server in ready:
                    client.settimeout(10.0)
                    if not (data := server.recv(65536)):
                        break
                    client.sendall(data)
                if client in ready:
                    client.settimeout(0.01)
                    with contextlib.suppress(TimeoutError):
                        if not (data := client.recv(65536)):
                            break
                        server.sendall(data)


def test_over_tls_it_works_alike_and_trusts_only_whom_it_was_told_to(
    server: Valkey, make_engine: MakeEngine, tmp_path: Path
) -> None:
    front = _TLSFront(server.port, tmp_path)
    try:
        url = f"rediss://{HOST}:{front.port}"
        with pytest.raises(EngineUnavailable, match="certificate"):
            make_engine(url, deadline=3.0).write([Change(b"key", b"v")])
        engine = make_engine(f"{url}?ssl_ca_certs={front.certificate}", deadline=3.0)
        engine.wait(0.01)
        for i in range(20):
            assert engine.write([Change(b"%d" % i, b"v" * 50_000)]).done
        assert len(held(engine)) == 20
        assert len(engine._idle) == 1, "it found its own connection unusable"
        began = time.monotonic()
        engine.wait(10.0)
        assert time.monotonic() - began < 5, "the hints did not come through"
        began = time.monotonic()
        engine.wait(0.3)
        assert time.monotonic() - began >= 0.3
    finally:
        front.listener.close()


# One machine that is stopped --------------------------------------------------------------------


@pytest.mark.fault
def test_a_node_that_was_stopped_serves_nothing_old_when_it_goes_on(
    server: Valkey, make_node: MakeNode, namespace: str
) -> None:
    script = (
        "import os, sys, time, django\n"
        "django.setup()\n"
        "from accesspass.cache.backend import ReplicatedCache\n"
        f"options = {{'NAMESPACE': {namespace!r}, 'HEARTBEAT': 0.1, 'MAX_STALENESS': 1.0}}\n"
        "options['SIGNING_KEYS'] = ['a', 'b']\n"
        f"node = ReplicatedCache({server.url()!r}, {{'OPTIONS': options}})\n"
        "while True:\n"
        "    before = time.monotonic()\n"
        "    value = node.get('key')\n"
        "    os.write(1, f'{before} {value}\\n'.encode())\n"
        "    time.sleep(0.001)\n"
    )
    node = make_node(server.url(), SIGNING_KEYS=["a", "b"])
    node.set("key", "old")
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": os.environ["DJANGO_SETTINGS_MODULE"]}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True
    ) as child:
        assert child.stdout is not None
        try:
            wait_until(lambda: child.stdout.readline().split()[1] == "old", every=0)
            child.send_signal(signal.SIGSTOP)
            node.delete("key")
            deleted = time.monotonic()
            time.sleep(2.5)
            child.send_signal(signal.SIGCONT)
            time.sleep(0.5)
        finally:
            child.kill()
        said = [line.split() for line in child.stdout.read().splitlines() if line.count(" ") == 1]
    late = {value for began, value in said if float(began) > deleted + 1.0}
    assert late == {"None"}
