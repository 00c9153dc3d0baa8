"""What the PostgreSQL engine claims beyond the contract of all engines, on real servers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings

from accesspass.cache.backend import OPTIONS, ReplicatedCache
from accesspass.cache.engines import resolve
from accesspass.cache.engines.base import Change, Condition, Engine
from accesspass.cache.exceptions import CacheError, EngineUnavailable, EngineUncertain
from tests.documents import commands, module_of, settings_of, shown
from tests.servers import (
    HOST,
    Missing,
    PgBouncer,
    PostgreSQL,
    Proxy,
    free_port,
    make_certificate,
    postgresql_binaries,
    shared_postgresql,
    wait_until,
)

try:
    postgresql_binaries()
except Missing as _missing:
    pytest.skip(f"needs PostgreSQL: {_missing}", allow_module_level=True)

import psycopg

from accesspass.cache.engines import postgresql as module
from accesspass.cache.engines.postgresql import PostgreSQLEngine, schema

MakeEngine = Callable[..., PostgreSQLEngine]
MakeNode = Callable[..., ReplicatedCache]
ROOT = Path(__file__).parents[2]
DEADLINE = 0.7
# What a busy machine may add to a deadline, in seconds.
GRACE = 0.6


_spare: list[PostgreSQL] = []
doomed = pytest.mark.parametrize("server", ["doomed"], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQL]:
    """A server that nobody else uses meanwhile. One that is ``doomed`` may be killed, too."""
    if hasattr(request, "param"):
        with PostgreSQL() as server:
            yield server
        return
    if not _spare:
        _spare.append(PostgreSQL())
        _spare[0].start()
    yield _spare[0]
    _spare[0].reset()


@pytest.fixture
def proxy(server: PostgreSQL) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def location() -> Iterator[str]:
    """An empty schema on a server that the tests of this process share."""
    name = f"test_{secrets.token_hex(4)}"
    server = shared_postgresql()
    server.execute(f"CREATE SCHEMA {name}")
    yield f"{server.url()}?options=-csearch_path%3D{name}"
    server.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    made = []

    def make(location: str, deadline: float = 10.0, **options: Any) -> PostgreSQLEngine:
        engine = resolve(location, {**OPTIONS, **options}).make()
        assert isinstance(engine, PostgreSQLEngine)
        engine.deadline = deadline
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def make_node(make_node_at: MakeNode) -> MakeNode:
    def make(location: str, deadline: float = DEADLINE, **options: Any) -> ReplicatedCache:
        node = make_node_at(location, **{"HEARTBEAT": 0.1, "MAX_STALENESS": 1.0, **options})
        node._follower.engine.deadline = deadline
        return node

    return make


def put(engine: Engine, key: str, value: str = "value", **condition: Any) -> int:
    written = engine.write(
        [Change(key.encode(), value.encode())], Condition(**condition) if condition else None
    )
    assert written.done
    return written.seq


def value_of(engine: Engine, key: str) -> str | None:
    entry = engine.read(key.encode())
    return None if entry is None or entry.value is None else entry.value.decode()


def run(location: str, code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in another process, where ``engine`` is on that log."""
    prelude = (
        "import os, sys, time\n"
        "from accesspass.cache.backend import OPTIONS\n"
        "from accesspass.cache.engines import resolve\n"
        "from accesspass.cache.engines.base import Change, Condition\n"
        f"engine = resolve({location!r}, OPTIONS).make()\n"
        "engine.deadline = 20.0\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings.own_user"},
    )


def connect(location: str) -> psycopg.Connection[Any]:
    return psycopg.connect(location, autocommit=True)


def execute(location: str, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement past the engine; returns its rows."""
    with connect(location) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


# Making the tables -----------------------------------------------------------------------------


@pytest.mark.fault
def test_twenty_processes_that_begin_together_agree_on_one_log(location: str) -> None:
    code = (
        "begin, go = os.pipe()\n"
        "for number in range(20):\n"
        "    if not os.fork():\n"
        "        os.close(go)\n"
        "        os.read(begin, 1)\n"
        "        page = engine.changes(0, 0)\n"
        "        written = engine.write([Change(b'%d' % number, b'here')])\n"
        "        os.write(1, b'%s %s %d\\n' % (\n"
        "            page.epoch.encode(), written.epoch.encode(), written.seq))\n"
        "        os._exit(0)\n"
        "time.sleep(0.2)\n"
        "os.close(go)\n"
        "assert all(os.wait()[1] == 0 for number in range(20))\n"
    )
    answers = [line.split() for line in finish(run(location, code)).splitlines()]
    assert len({epoch for first, second, _ in answers for epoch in (first, second)}) == 1
    assert sorted(int(seq) for _, _, seq in answers) == list(range(1, 21))


def test_a_role_that_may_not_create_is_told_and_what_the_page_types_helps(
    server: PostgreSQL, make_engine: MakeEngine, tmp_path: Path
) -> None:
    (console,) = shown("docs/how-to/engines.rst", "console")
    (grant,) = shown("docs/how-to/engines.rst", "psql")
    status, create, open_ = commands(console)
    server.create_database("shop")
    server.execute("CREATE ROLE shop LOGIN")
    server.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database="shop")
    engine = make_engine(server.url("shop", user="shop"))
    told = r"PostgreSQL: the tables of accesspass_cache .* not be made; accesspass_status --schema"
    with pytest.raises(EngineUnavailable, match=told):
        engine.changes(0, 0)
    assert status == "python manage.py accesspass_status --schema > cache.sql"
    (tmp_path / "cache.sql").write_text(schema())  # which is what that prints
    path = f"{server.binaries}{os.pathsep}{os.environ['PATH']}"
    login = {"PGHOST": HOST, "PGPORT": str(server.port), "PGUSER": "postgres"}
    for command, said in ((create, ""), (open_, grant)):
        subprocess.run(
            ["sh", "-c", command],
            input=said,
            cwd=tmp_path,
            env={**os.environ, **login, "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
    assert put(engine, "key") == 1
    assert value_of(engine, "key") == "value"
    engine.clear()
    assert engine.purge(0.0, 10) == 1


def test_the_script_can_be_run_again_without_harm(location: str, make_engine: MakeEngine) -> None:
    engine = make_engine(location)
    put(engine, "key")
    execute(location, schema())
    assert value_of(engine, "key") == "value"


def test_a_cache_of_ones_own_is_as_the_reference_shows(
    location: str, request: pytest.FixtureRequest
) -> None:
    code, use = shown("docs/reference/cache.rst", "python")
    code = code.replace("postgresql://shop@db.internal/shop", location)
    with override_settings(**settings_of(code)):
        cache: Any = caches["shop"]
        request.addfinalizer(cache._follower.stop)
        others: Any = ReplicatedCache(
            location, {"OPTIONS": {"TABLE": "shop_cache", "RETENTION": 3601}}
        )
        request.addfinalizer(others._follower.stop)
        done = use.replace("...", "told.append(1)")
        told: list[int] = []
        for _ in range(2):
            module_of(done, told=told)
    # Both times there is maintenance; the report is made once.
    assert len(told) == 3
    assert others.get("maintenance") is True
    assert others.get("report-2026-11") == "me"


def test_tables_of_other_names_and_schemas_are_other_logs(
    location: str, make_engine: MakeEngine
) -> None:
    name = location.rpartition("%3D")[2]
    one, two = make_engine(location), make_engine(location, TABLE="other")
    three = make_engine(shared_postgresql().url(), TABLE=f"{name}.third")
    put(one, "key", "one")
    put(two, "key", "two")
    put(three, "key", "three")
    assert [value_of(engine, "key") for engine in (one, two, three)] == ["one", "two", "three"]
    found = shared_postgresql().execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", [name]
    )
    assert [table for (table,) in found] == [
        *("accesspass_cache", "accesspass_cache_meta", "other", "other_meta"),
        *("third", "third_meta"),
    ]


@pytest.mark.parametrize("table", ['a"b', "A", "a b", "", "a.b.c", "a;b", "a" * 41, "1a"])
def test_a_table_name_that_needs_quoting_is_refused(table: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="TABLE"):
        schema(table)


def test_tables_that_were_dropped_are_made_again_as_another_epoch(
    location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    put(engine, "key")
    before = engine.changes(0, 10)
    execute(location, "DROP TABLE accesspass_cache, accesspass_cache_meta")
    after = engine.changes(0, 10)
    assert (len(before.changes), len(after.changes)) == (1, 0)
    assert before.epoch != after.epoch
    execute(location, "DELETE FROM accesspass_cache_meta")
    assert put(engine, "key") == 1
    execute(location, "DELETE FROM accesspass_cache_meta")
    assert engine.changes(0, 10).epoch not in (before.epoch, after.epoch)


# Order -----------------------------------------------------------------------------------------

_WRITE = (
    "SELECT seq FROM accesspass_cache_write_1(array[%s::bytea], array['\\x01'::bytea], "
    "array[null::float8], array[0::bigint], false, false, null, false, null)"
)


def test_a_commit_held_open_cannot_be_passed_by_a_later_one(
    location: str, make_engine: MakeEngine
) -> None:
    engine, reader = make_engine(location), make_engine(location)
    assert put(engine, "first") == 1
    with connect(location) as slow, ThreadPoolExecutor() as pool:
        slow.execute("BEGIN")
        assert slow.execute(_WRITE, [b"held open"]).fetchall() == [(2,)]
        later = pool.submit(put, engine, "later")
        time.sleep(0.3)
        assert not later.done()
        assert [entry.seq for entry in reader.changes(1, 10).changes] == []
        assert reader.changes(1, 0).head == 1
        slow.execute("COMMIT")
        assert later.result() == 3
    assert [entry.key for entry in reader.changes(1, 10).changes] == [b"held open", b"later"]


def test_a_writer_that_waits_too_long_for_another_one_says_that_nothing_happened(
    location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location, deadline=4.0)
    put(engine, "first")
    with connect(location) as slow:
        slow.execute("BEGIN")
        slow.execute(_WRITE, [b"held open"])
        with pytest.raises(EngineUnavailable, match="55P03"):
            put(engine, "later")
        slow.execute("ROLLBACK")
    assert value_of(engine, "later") is None
    assert put(engine, "later") == 2


@pytest.mark.fault
def test_followers_see_a_prefix_whatever_writers_do(location: str, make_engine: MakeEngine) -> None:
    """Four writers, some of whose transactions roll back; a reader pages along meanwhile."""
    writers = [make_engine(location) for _ in range(4)]
    reader = make_engine(location)
    put(reader, "first")
    seed = random.randrange(10**9)
    written: dict[int, bytes] = {}
    stop = threading.Event()

    def write(engine: PostgreSQLEngine, number: int) -> None:
        dice = random.Random(seed + number)
        for count in range(150):
            keys = [f"{number}-{count}-{part}".encode() for part in range(dice.choice([1, 1, 3]))]
            answer = engine.write([Change(key, b"v") for key in keys])
            for seq, key in enumerate(keys, answer.seq - len(keys) + 1):
                written[seq] = key

    def roll_back() -> None:
        with connect(location) as connection:
            while not stop.is_set():
                connection.execute("BEGIN")
                connection.execute(_WRITE, [b"never"])
                connection.execute("ROLLBACK")

    seen: dict[int, bytes] = {}
    with ThreadPoolExecutor() as pool:
        disturber = pool.submit(roll_back)
        tasks = [pool.submit(write, engine, number) for number, engine in enumerate(writers)]
        applied = 1
        while True:
            finished = all(task.done() for task in tasks)
            page = reader.changes(applied, 7)
            numbers = [entry.seq for entry in page.changes]
            assert numbers == list(range(applied + 1, applied + 1 + len(numbers)))
            seen.update({entry.seq: entry.key for entry in page.changes})
            applied = numbers[-1] if page.more else page.head
            if finished and not page.more:
                break
        stop.set()
        for task in [*tasks, disturber]:
            task.result()
    assert seen == written, f"seed {seed}"


def test_a_role_with_another_default_isolation_is_no_trouble(
    server: PostgreSQL, make_engine: MakeEngine
) -> None:
    server.execute("ALTER ROLE postgres SET default_transaction_isolation = 'repeatable read'")
    engines = [make_engine(server.url()) for _ in range(4)]
    engines[0].changes(0, 0)

    def write(engine: PostgreSQLEngine) -> list[int]:
        return [put(engine, "the same key") for _ in range(50)]

    with ThreadPoolExecutor() as pool:
        numbers = [number for found in pool.map(write, engines) for number in found]
    assert sorted(numbers) == list(range(1, 201))


def test_the_key_of_an_entry_may_be_long(location: str, make_engine: MakeEngine) -> None:
    engine = make_engine(location)
    key = random.randbytes(20_000)
    engine.write([Change(key, b"one")])
    engine.write([Change(key, b"two")])
    assert [entry.value for entry in engine.changes(0, 10).changes] == [b"two"]
    assert engine.read(key) == engine.changes(0, 10).changes[0]


def test_a_key_twice_in_one_write_keeps_the_last_value(
    location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    written = engine.write([Change(b"a", b"1"), Change(b"b", b"1"), Change(b"a", b"2")])
    assert (written.seq, written.held) == (3, 0)
    assert [(e.key, e.seq, e.value) for e in engine.changes(0, 9).changes] == [
        (b"b", 2, b"1"),
        (b"a", 3, b"2"),
    ]


def test_emptying_a_full_log_touches_no_entry_and_purging_removes_them(
    location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    put(engine, "first")
    execute(
        location,
        "INSERT INTO accesspass_cache SELECT int8send(n), n, 0, null, 'x' "
        "FROM generate_series(2, 20000) n",
    )
    before = engine.changes(0, 1)
    engine.clear()
    after = engine.changes(0, 10)
    assert (list(after.changes), after.more, after.head, after.floor) == ([], False, 20000, 20000)
    assert before.epoch != after.epoch
    assert engine.read(b"first") is None
    assert engine.write([Change(b"first", b"x")], Condition(absent=True, seq=0)).held == 0
    assert [engine.purge(0.0, 15_000) for _ in range(3)] == [15_000, 4_999, 0]
    assert engine.changes(0, 10).floor == 20000
    assert execute(location, "SELECT count(*) FROM accesspass_cache") == [(1,)]


# Waking up -------------------------------------------------------------------------------------


@pytest.mark.fault
def test_a_write_wakes_a_follower_in_another_process(
    location: str, make_node: MakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    """The heartbeat is so slow that only a notification can be in time."""
    code = (
        "import django; django.setup()\n"
        "from django.test import override_settings\n"
        "from accesspass.cache import ReplicatedCache\n"
        "override_settings(SECRET_KEY='cache-tests', SECRET_KEY_FALLBACKS=[]).enable()\n"
        f"node = ReplicatedCache({location!r}, "
        "{'OPTIONS': {'HEARTBEAT': 100, 'MAX_STALENESS': 200}})\n"
        "node.get('nothing')\n"
        "wanted = 1\n"
        "print('ready', flush=True)\n"
        "while wanted <= 100:\n"
        "    if node.get('number') == wanted:\n"
        "        print(time.monotonic(), flush=True)\n"
        "        wanted += 1\n"
        "    time.sleep(0.0001)\n"
    )
    follower = run(location, code)
    assert line_of(follower) == "ready"
    node = make_node(location, deadline=10.0)
    latencies = []
    for number in range(1, 101):
        node.set("number", number)
        written = time.monotonic()
        latencies.append(float(line_of(follower)) - written)
    finish(follower)
    latencies.sort()
    with capsys.disabled():
        sys.stdout.write(
            f"\n100 writes, from acknowledged to applied in another process: "
            f"p50 {latencies[50] * 1e3:.1f} ms, p99 {latencies[98] * 1e3:.1f} ms\n"
        )


def test_waiting_ends_with_a_write_that_came_during_the_last_pull(
    location: str, make_engine: MakeEngine
) -> None:
    reader, writer = make_engine(location), make_engine(location)
    reader.changes(0, 0)
    put(writer, "before listening")
    began = time.monotonic()
    reader.wait(30.0)  # begins to listen, and something may have come before
    reader.changes(0, 0)
    put(writer, "after the pull")
    reader.wait(30.0)
    assert time.monotonic() - began < 20
    reader.changes(0, 0)
    began = time.monotonic()
    reader.wait(0.3)
    assert time.monotonic() - began >= 0.29


def test_waiting_ends_with_a_notification_that_came_with_another_answer(
    location: str, make_engine: MakeEngine
) -> None:
    reader, writer = make_engine(location), make_engine(location)
    reader.changes(0, 0)
    reader.wait(30.0)
    assert reader._follower is not None
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(reader._follower.execute, "SELECT pg_sleep(1)", time.monotonic() + 10)
        time.sleep(0.2)
        put(writer, "key")
        slow.result()
    began = time.monotonic()
    reader.wait(30.0)
    assert time.monotonic() - began < 20


def test_waiting_ends_with_a_write_that_came_after_what_was_asked_ahead(
    location: str, make_engine: MakeEngine
) -> None:
    reader, writer = make_engine(location), make_engine(location)
    for key in "abc":
        put(writer, key)
    reader.changes(0, 0)
    reader.wait(30.0)
    assert reader.changes(0, 1).more
    receive = reader.ask_ahead(1, 2)
    assert receive is not None
    assert reader._follower is not None
    follower = reader._follower
    wait_until(lambda: follower.is_alive() and not follower._libpq.is_busy())
    put(writer, "d")
    assert [entry.seq for entry in receive().changes] == [2, 3]
    began = time.monotonic()
    reader.wait(30.0)
    assert time.monotonic() - began < 20


@pytest.mark.fault
def test_a_page_asked_ahead_on_a_connection_that_was_lost_is_asked_for_again(
    server: PostgreSQL, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    for key in "abc":
        put(engine, key)
    assert engine.changes(0, 1).more
    receive = engine.ask_ahead(1, 1)
    assert receive is not None
    server.terminate_backends()
    wait_until(lambda: not backends(server))
    assert [entry.seq for entry in receive().changes] == [2]
    assert [entry.seq for entry in engine.changes(1, 5).changes] == [2, 3]


def test_clearing_wakes_too(location: str, make_engine: MakeEngine) -> None:
    reader, writer = make_engine(location), make_engine(location)
    reader.changes(0, 0)
    reader.wait(30.0)
    reader.changes(0, 0)
    writer.clear()
    began = time.monotonic()
    reader.wait(30.0)
    assert time.monotonic() - began < 20


def test_closing_ends_waiting(location: str, make_engine: MakeEngine) -> None:
    engine = make_engine(location)
    engine.changes(0, 0)
    engine.wait(30.0)
    waiting = threading.Thread(target=engine.wait, args=(30.0,))
    waiting.start()
    time.sleep(0.1)
    engine.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert engine.changes(0, 0).head == 0


# Connections -----------------------------------------------------------------------------------


def backends(server: PostgreSQL) -> list[int]:
    return sorted(
        pid
        for (pid,) in server.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'accesspass'"
        )
    )


def test_a_process_has_two_connections_and_the_idle_one_is_closed(
    server: PostgreSQL, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(server.url())
    assert backends(server) == []
    engine.changes(0, 0)
    assert len(backends(server)) == 1
    for number in range(5):
        put(engine, str(number))
        engine.changes(0, 10)
    assert len(backends(server)) == 2
    monkeypatch.setattr(module, "_IDLE", -1.0)
    engine.wait(0.0)
    wait_until(lambda: len(backends(server)) == 1)
    engine.close()
    wait_until(lambda: not backends(server))


def test_forty_threads_share_a_few_connections(server: PostgreSQL, make_engine: MakeEngine) -> None:
    engine = make_engine(server.url())
    engine.changes(0, 0)
    with ThreadPoolExecutor(40) as pool:
        list(pool.map(lambda number: put(engine, str(number % 7)), range(400)))
    assert engine.changes(0, 0).head == 400
    assert len(backends(server)) <= 3


@pytest.mark.fault
def test_terminated_backends_cost_nothing_but_new_ones(
    server: PostgreSQL, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    put(engine, "key", "1")
    engine.changes(0, 0)
    engine.wait(0.0)
    for _ in range(3):
        server.terminate_backends()
        wait_until(lambda: not backends(server))
        assert engine.changes(0, 10).head >= 1
        assert value_of(engine, "key") is not None
        put(engine, "key", "2")
    server.terminate_backends()
    wait_until(lambda: not backends(server))
    with pytest.raises(EngineUnavailable):
        engine.wait(30.0)
    assert engine.changes(0, 0).head == 4


def test_a_pooler_that_loses_prepared_statements_is_noticed(
    location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    put(engine, "key", "1")
    # As if the next statement came to another server connection.
    engine._pool[0].execute("DEALLOCATE ALL", time.monotonic() + 10)
    assert put(engine, "key", "2") == 2
    assert value_of(engine, "key") == "2"
    assert engine.changes(0, 10).head == 2


def test_a_prepared_statement_of_somebody_else_is_noticed(
    location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    put(engine, "key", "1")
    engine._pool[0]._prepared.clear()
    assert put(engine, "key", "2") == 2


@pytest.mark.fault
def test_through_a_pooler_in_transaction_mode_the_heartbeat_brings_what_others_write(
    server: PostgreSQL, make_node: MakeNode
) -> None:
    try:
        pooler = PgBouncer(server)
    except Missing as missing:
        pytest.skip(str(missing))
    with pooler:
        nodes = [make_node(pooler.url(), deadline=10.0) for _ in range(3)]
        for number in range(5):
            for node in nodes:
                node.set("key", number)
                node.incr("key", 10)
                for other in nodes:
                    wait_until(lambda other=other, number=number: other.get("key") == number + 10)
        assert len(backends(server)) <= 2
        said = [node.status() for node in nodes]
        assert [status["counters"]["failures"] for status in said] == [0, 0, 0]
        # A connection that listened for us would be lent to others, with a warning at each write.
        assert "got packet" not in pooler.log


def test_where_the_isolation_is_another_one_a_write_is_refused(
    location: str, make_engine: MakeEngine
) -> None:
    """A pooler hands out connections on which it was never set."""
    engine = make_engine(location)
    put(engine, "key", "1")
    for level in ("repeatable read", "serializable"):
        engine._pool[0].execute(
            f"SET default_transaction_isolation TO '{level}'", time.monotonic() + 10
        )
        with pytest.raises(EngineUnavailable, match="read committed"):
            put(engine, "key", "2")
    assert value_of(engine, "key") == "1"


def test_over_a_unix_socket_it_works_alike(server: PostgreSQL, make_engine: MakeEngine) -> None:
    folder = server.folder
    engine = make_engine(f"postgresql://postgres@/postgres?host={folder}&port={server.port}")
    assert put(engine, "key", "1") == 1
    assert execute(
        server.url(),
        "SELECT count(*), count(client_addr) FROM pg_stat_activity "
        "WHERE application_name = 'accesspass'",
    ) == [(1, 0)]
    assert engine.changes(0, 10).head == 1
    engine.wait(0.0)
    put(engine, "key", "2")
    engine.wait(30.0)
    assert engine.changes(1, 10).head == 2


def test_over_tls_it_works_alike_and_trusts_only_whom_it_was_told_to(
    server: PostgreSQL, make_engine: MakeEngine, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    for name, path in (("server.crt", certificate), ("server.key", key)):
        shutil.copy(path, server.data / name)
        shutil.chown(server.data / name, server.data.owner())
        (server.data / name).chmod(0o600)
    try:
        server.set("ssl", "on")
    except psycopg.errors.InvalidParameterValue:
        pytest.skip("this PostgreSQL has no TLS")
    url = f"postgresql://postgres@localhost:{server.port}/postgres?sslmode=verify-full"
    with pytest.raises(EngineUnavailable, match="certificate"):
        make_engine(url, deadline=3.0).changes(0, 0)
    engine = make_engine(f"{url}&sslrootcert={certificate}")
    engine.write([Change(str(number).encode(), b"v" * 50_000) for number in range(20)])
    assert len(engine.changes(0, 100).changes) == 20
    assert execute(
        server.url(),
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
        "WHERE application_name = 'accesspass'",
    ) == [(True,)]
    engine.wait(0.0)
    put(engine, "key", "2")
    engine.wait(30.0)
    assert engine.changes(20, 10).head == 21


def test_a_place_that_does_not_answer_leaves_time_for_the_next(
    server: PostgreSQL, proxy: Proxy, make_engine: MakeEngine
) -> None:
    proxy.black_hole()
    port = f"{free_port()},{proxy.port},{server.port}"
    hosts = f"{HOST},{HOST},localhost"
    engine = make_engine(f"postgresql://postgres@/postgres?host={hosts}&port={port}", deadline=3.0)
    assert engine.changes(0, 0).head == 0


def test_a_host_without_an_address_is_unavailable(make_engine: MakeEngine) -> None:
    engine = make_engine("postgresql://postgres@name.invalid/postgres", deadline=1.0)
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"name\.invalid|in time"):
        engine.changes(0, 0)
    assert time.monotonic() - began < 1.0 + GRACE


def test_a_fork_leaves_the_connections_of_the_parent_alone(location: str) -> None:
    code = (
        "engine.changes(0, 0)\n"
        "engine.wait(0)\n"
        "engine.write([Change(b'before', b'')])\n"
        "pids = lambda: [c._libpq.backend_pid for c in [engine._follower, *engine._pool]]\n"
        "own = pids()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    engine.forget_connections()\n"
        "    for inherited in engine._inherited:\n"
        "        inherited.close()\n"
        "        inherited.abandon()\n"
        "    engine.write([Change(b'child', b'')])\n"
        "    assert engine.changes(0, 10).head == 2\n"
        "    assert not set(own) & set(pids())\n"
        "    engine.close()\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "began = time.monotonic()\n"
        "engine.wait(30)\n"
        "assert time.monotonic() - began < 20\n"
        "assert engine.changes(0, 10).head == 2\n"
        "engine.write([Change(b'parent', b'')])\n"
        "assert pids() == own, (pids(), own)\n"
        "print(engine.changes(0, 0).head)\n"
    )
    assert finish(run(location, code)).split() == ["3"]


# Faults: every call ends in time ---------------------------------------------------------------

CALLS: dict[str, Callable[[Engine], object]] = {
    "changes": lambda engine: engine.changes(0, 10),
    "read": lambda engine: engine.read(b"key"),
    "write": lambda engine: engine.write([Change(b"key", b"v")]),
    "clear": lambda engine: engine.clear(),
    "purge": lambda engine: engine.purge(0.0, 10),
}


def ends_in_time(engine: PostgreSQLEngine, call: str) -> CacheError:
    began = time.monotonic()
    with pytest.raises((EngineUnavailable, EngineUncertain)) as caught:
        CALLS[call](engine)
    assert time.monotonic() - began < engine.deadline + GRACE
    error: CacheError = caught.value
    return error


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["frozen server", "black hole"])
def test_every_call_ends_in_time_when_the_server_falls_silent(
    fault: str, server: PostgreSQL, proxy: Proxy, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url(port=proxy.port))
    put(engine, "key")
    engine.changes(0, 0)
    engine.wait(0.0)
    calls = ("changes", "changes", "read", "clear", "purge")
    others = [make_engine(server.url(port=proxy.port)) for _ in calls]
    for each in others:
        each.changes(0, 0)
    for each in (engine, *others):
        each.deadline = DEADLINE
    server.freeze() if fault == "frozen server" else proxy.black_hole()
    # What went out on a standing connection may have arrived; connecting again proves nothing did.
    assert type(ends_in_time(engine, "write")) is EngineUncertain
    assert type(ends_in_time(engine, "write")) is EngineUnavailable
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ends_in_time, others, calls))
        list(pool.map(lambda _: ends_in_time(engine, "write"), range(6)))
    server.thaw()
    proxy.heal()
    engine.deadline = 10.0

    def is_back() -> bool:
        put(engine, "key", "again")
        return value_of(engine, "key") == "again"

    wait_until(is_back)  # what was on its way may arrive in between


@pytest.mark.fault
def test_a_frozen_backend_holds_up_nobody_else(server: PostgreSQL, make_engine: MakeEngine) -> None:
    engine, other = make_engine(server.url()), make_engine(server.url())
    put(engine, "key")
    put(other, "key")
    (writer,) = [connection._libpq.backend_pid for connection in engine._pool]
    engine.deadline = DEADLINE
    os.kill(writer, signal.SIGSTOP)
    try:
        assert type(ends_in_time(engine, "write")) is EngineUncertain
        assert put(engine, "key") == 3
        assert put(other, "key") == 4
    finally:
        os.kill(writer, signal.SIGCONT)


@pytest.mark.fault
def test_a_lost_answer_is_reported_and_the_write_not_repeated(
    server: PostgreSQL, proxy: Proxy, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url(port=proxy.port))
    put(engine, "key", "1")
    engine.deadline = DEADLINE
    proxy.black_hole(to_server=False)
    with pytest.raises(EngineUncertain):
        put(engine, "key", "2", seq=1)
    proxy.drop()
    proxy.heal()
    engine.deadline = 10.0
    wait_until(lambda: value_of(engine, "key") == "2")
    assert engine.changes(0, 10).head == 2


@pytest.mark.fault
@pytest.mark.parametrize("setting", ["on", "off", "local"])
def test_a_missing_synchronous_standby_lets_writers_give_up_in_time(
    setting: str, server: PostgreSQL, make_engine: MakeEngine
) -> None:
    """Whatever the role's synchronous_commit is, or an acknowledged write might be lost."""
    engine, reader = make_engine(server.url()), make_engine(server.url())
    put(engine, "key", "1")
    server.execute(f"ALTER ROLE postgres SET synchronous_commit = '{setting}'")
    server.terminate_backends()
    wait_until(lambda: not backends(server))
    server.set("synchronous_standby_names", "absent")
    engine.deadline = DEADLINE
    began = time.monotonic()
    with pytest.raises(EngineUncertain):
        put(engine, "key", "2")
    assert time.monotonic() - began < DEADLINE + GRACE
    assert value_of(reader, "key") == "1"
    assert reader.changes(0, 10).head == 1
    ends_in_time(engine, "write")
    server.set("synchronous_standby_names", "")
    engine.deadline = 10.0
    put(engine, "other")
    assert value_of(reader, "key") in ("2", "v")


@pytest.mark.fault
def test_a_commit_that_an_administrator_freed_from_its_wait_is_uncertain(
    server: PostgreSQL, make_engine: MakeEngine
) -> None:
    engine = make_engine(server.url())
    put(engine, "key", "1")
    server.set("synchronous_standby_names", "absent")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(put, engine, "key", "2")
        waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: server.execute(f"SELECT 1 {waits}"))
        server.execute(f"SELECT pg_cancel_backend(pid) {waits}")
        with pytest.raises(EngineUncertain):
            writing.result()


@pytest.mark.fault
@doomed
def test_no_acknowledged_write_is_missing_after_kill_9_under_load(
    server: PostgreSQL, make_engine: MakeEngine, make_node: MakeNode
) -> None:
    make_engine(server.url()).changes(0, 0)
    node = make_node(server.url())
    acknowledged: dict[str, int] = {}
    failed = threading.Event()
    stop = threading.Event()

    def write(number: int) -> None:
        engine = make_engine(server.url(), deadline=2.0)
        count = 0
        while not stop.is_set():
            key = f"{number}-{count}"
            try:
                acknowledged[key] = put(engine, key)
            except CacheError:
                failed.set()
                time.sleep(0.02)
            count += 1

    def more_than(number: int) -> bool:
        return len(acknowledged) > number

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        for _ in range(3):
            wait_until(functools.partial(more_than, len(acknowledged) + 50))
            failed.clear()
            server.kill()
            assert failed.wait(10)
            server.start()
        wait_until(functools.partial(more_than, len(acknowledged) + 50))
        stop.set()
        for writer in writers:
            writer.result()
    found = {e.key.decode(): e.seq for e in make_engine(server.url()).changes(0, 10**6).changes}
    assert acknowledged.items() <= found.items()
    node.set("key", "value")
    wait_until(lambda: node.get("key") == "value")


# Which server ----------------------------------------------------------------------------------


@pytest.mark.fault
@doomed
def test_a_standby_answers_nothing_and_is_never_fresh(
    server: PostgreSQL, make_engine: MakeEngine, make_node: MakeNode
) -> None:
    make_node(server.url(), deadline=10.0).set("key", "value")
    engine = make_engine(server.url())
    engine.changes(0, 0)
    standby = server.standby()
    try:
        on_standby = make_engine(standby.url())
        for call in CALLS:
            with pytest.raises(EngineUnavailable):
                CALLS[call](on_standby)
        node = make_node(standby.url())
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert node.get("key") is None
            assert not node.status()["fresh"]
            time.sleep(0.02)
        assert node.status()["role"] == "replica"
        # Of several hosts the one that takes writes is found, if that is asked for.
        hosts = f"host={HOST},{HOST}&port={standby.port},{server.port}"
        url = f"postgresql://postgres@/postgres?{hosts}&target_session_attrs=read-write"
        assert value_of(make_engine(url), "key") is None
        put(make_engine(url), "found")
        assert value_of(engine, "found") == "value"
    finally:
        standby.close()


@pytest.mark.fault
@doomed
def test_a_promoted_standby_that_lost_writes_is_emptied_and_begins_an_epoch(
    server: PostgreSQL, proxy: Proxy, make_engine: MakeEngine, make_node: MakeNode
) -> None:
    url = server.url(port=proxy.port)
    engine = make_engine(url)
    put(engine, "old")
    node = make_node(url)
    node.set("revoked", False)
    standby = server.standby()
    try:
        server.wait_for_standby(standby)
        standby.stop()
        before = engine.changes(0, 10)
        node.set("revoked", True)  # acknowledged, and lost by the failover
        put(engine, "lost")
        assert node.get("revoked") is True
        server.kill()
        proxy.target = standby.port
        proxy.drop()
        standby.start()
        with pytest.raises(EngineUnavailable):
            engine.changes(0, 10)
        standby.promote()
        written = engine.write([Change(b"new", b"v")], Condition(absent=True))
        assert written.epoch != before.epoch
        after = engine.changes(0, 10)
        assert after.epoch == written.epoch
        assert [entry.key for entry in after.changes] == [b"new"]
        assert engine.read(b"old") is None
        wait_until(lambda: node.status()["fresh"] and node.status()["epoch"] == after.epoch)
        assert node.get("revoked") is None
        with pytest.raises(AssertionError):
            put(engine, "late", epoch=before.epoch)
        standby.restart()
        assert make_engine(url).changes(0, 10).epoch == after.epoch
    finally:
        standby.close()


@pytest.fixture
def moved(location: str, make_engine: MakeEngine) -> Callable[[], list[str]]:
    """A log that was written on another server. Call it for the epochs that were begun since."""
    put(make_engine(location), "old")
    execute(location, "UPDATE accesspass_cache_meta SET server = '1/00000001'")
    execute(location, "CREATE TABLE begun (epoch text)")
    execute(
        location,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO begun VALUES (new.epoch); RETURN new; END'",
    )
    execute(
        location,
        "CREATE TRIGGER note AFTER UPDATE ON accesspass_cache_meta "
        "FOR EACH ROW EXECUTE FUNCTION note()",
    )
    return lambda: [epoch for (epoch,) in execute(location, "SELECT epoch FROM begun")]


def test_of_many_that_notice_a_changed_server_one_empties_the_log(
    location: str, moved: Callable[[], list[str]], make_engine: MakeEngine
) -> None:
    engines = [make_engine(location) for _ in range(8)]
    gate = threading.Barrier(8)

    def notice(number: int) -> str:
        engine = engines[number]
        gate.wait()
        if number % 2:
            return engine.write([Change(b"%d" % number, b"v")]).epoch
        return engine.changes(0, 10).epoch

    with ThreadPoolExecutor(8) as pool:
        epochs = set(pool.map(notice, range(8)))
    assert list(epochs) == moved()
    keys = [entry.key for entry in engines[0].changes(0, 10).changes]
    assert sorted(keys) == [b"1", b"3", b"5", b"7"]


def test_a_write_to_a_changed_server_is_never_of_the_old_epoch(
    location: str, moved: Callable[[], list[str]], make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    ((old,),) = execute(location, "SELECT epoch FROM accesspass_cache_meta")
    refused = engine.write([Change(b"key", b"v")], Condition(epoch=old))
    assert not refused.done
    assert [refused.epoch] == moved()
    assert not engine.changes(0, 10).changes


@pytest.mark.parametrize("call", ["changes", "read", "purge"])
def test_whatever_is_asked_first_of_a_changed_server_empties_the_log(
    call: str, location: str, moved: Callable[[], list[str]], make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    CALLS[call](engine)
    assert len(moved()) == 1
    assert engine.read(b"old") is None


@pytest.mark.parametrize("how", ["truncated", "restored"])
def test_a_log_that_was_cut_behind_its_back_is_emptied_and_begins_an_epoch(
    how: str, location: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(location)
    put(engine, "old")
    before = engine.changes(0, 10)
    programs = postgresql_binaries()
    tables = [
        f"--table={location.rpartition('%3D')[2]}.accesspass_cache{end}" for end in ("", "_meta")
    ]
    url = shared_postgresql().url()
    dump = subprocess.run(
        [str(programs / "pg_dump"), "--clean", *tables, url], capture_output=True, check=True
    )
    put(engine, "since")
    if how == "truncated":
        execute(location, "TRUNCATE accesspass_cache")
    else:
        restore = [str(programs / "psql"), "-X", "-v", "ON_ERROR_STOP=1", url]
        subprocess.run(restore, input=dump.stdout, stdout=subprocess.DEVNULL, check=True)
    written = engine.write([Change(b"new", b"v")])
    after = engine.changes(0, 10)
    assert before.epoch != written.epoch == after.epoch
    assert [entry.key for entry in after.changes] == [b"new"]


# LOCATION --------------------------------------------------------------------------------------


def test_a_password_is_in_no_error_and_no_identity() -> None:
    for location in ("postgresql://u:geheim%zz@h/d", "postgresql://u:geheim@h/d?no=such"):
        with pytest.raises(ImproperlyConfigured) as caught:
            resolve(location, OPTIONS)
        assert "geheim" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
    assert "geheim" not in repr(resolve("postgresql://u:geheim@h/d", OPTIONS))


def test_two_urls_of_one_database_share_an_engine_and_others_do_not() -> None:
    def identity(location: str, **options: Any) -> object:
        return resolve(location, {**OPTIONS, **options}).identity

    one = identity("postgresql://u:old@h/d")
    assert one == identity("postgresql://u:new@h/d")
    assert one == identity("postgres://u@/d?host=h")
    others = [
        identity("postgresql://u@h/e"),
        identity("postgresql://u@i/d"),
        identity("postgresql://v@h/d"),
        identity("postgresql://u@h:5433/d"),
        identity("postgresql://u@h/d", TABLE="other"),
    ]
    assert len({one, *others}) == 6


def test_psycopg_missing_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'django-accesspass\[postgres\]'"):
        resolve("postgresql://u@h/d", OPTIONS)


@contextlib.contextmanager
def alias_of(server: PostgreSQL, **settings: Any) -> Iterator[str]:
    alias = f"alias_{secrets.token_hex(4)}"
    connections.settings[alias] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": server.host,
        "PORT": server.port,
        **settings,
    }
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def test_an_alias_lends_its_parameters_but_no_connection(
    server: PostgreSQL, make_engine: MakeEngine
) -> None:
    server.execute("CREATE ROLE owner NOLOGIN SUPERUSER")
    options = {"assume_role": "owner", "sslmode": "disable", "isolation_level": 2, "pool": False}
    with alias_of(server, OPTIONS=options) as alias:
        engine = make_engine(f"database:{alias}")
        assert put(engine, "key") == 1
        assert connections[alias].connection is None
    ((owner,),) = server.execute(
        "SELECT tableowner FROM pg_tables WHERE tablename = 'accesspass_cache'"
    )
    assert owner == "owner"


def test_an_engine_stays_with_its_database_when_the_alias_is_renamed(
    server: PostgreSQL, make_engine: MakeEngine
) -> None:
    server.create_database("second")
    with alias_of(server) as alias:
        first = make_engine(f"database:{alias}")
        put(first, "key", "first")
        connections.settings[alias]["NAME"] = "second"
        second = make_engine(f"database:{alias}")
        assert value_of(second, "key") is None
        first.close()
        assert value_of(first, "key") == "first"


def test_a_write_inside_a_transaction_of_the_project_stays_when_that_rolls_back(
    server: PostgreSQL, make_engine: MakeEngine, django_db_blocker: Any
) -> None:
    with alias_of(server) as alias, django_db_blocker.unblock():
        engine = make_engine(f"database:{alias}")
        project = connections[alias]
        project.ensure_connection()
        project.set_autocommit(False)
        with project.cursor() as cursor:
            cursor.execute("CREATE TABLE gone (id int)")
        put(engine, "key")
        project.rollback()
    assert value_of(make_engine(server.url()), "key") == "value"


def test_status_is_plain_data(location: str, make_node: MakeNode) -> None:
    node = make_node(location, deadline=10.0)
    node.set("key", "value")
    assert node.get("key") == "value"
    assert json.loads(json.dumps(node.status()))["engine"] == "postgresql"
