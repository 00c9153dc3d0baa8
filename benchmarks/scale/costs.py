"""What the simulation needs and no other benchmark has measured: processor time, bytes, memory.

Processor time is counted by the kernel for each thread, so that what else the machine does
disturbs it less than it does a clock.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cache.measure import percentile
from benchmarks.cache.places import Process
from benchmarks.timing import processor_time
from tests import servers

__all__ = ["SERVERS", "measure", "nodes"]

#: The engines that are for many machines, each on a private server. What a disk makes of durable
#: writes is for ``benchmarks.cache`` to say; here it would only add what others do with it.
SERVERS: dict[str, Callable[[], servers.PostgreSQL | servers.Valkey]] = {
    "postgresql": lambda: servers.PostgreSQL({"max_connections": 200, "shared_buffers": "256MB"}),
    "valkey": servers.Valkey,
}
_FOLLOWERS = 4
_ENTRIES = 50_000
_CALLS = 3_000
# Seconds of a run with followers and the writes a second in it. Then the pause between two pulls,
# in seconds, and whether they are told of writes: the follower's own way and a longer pause, so
# that what a pull costs and what a notification costs can be told apart, and one that tests it.
_SECONDS = 5.0
_RATE = 1_000.0
_WAYS = ((0.002, True), (0.010, True), (0.010, False))
# The best of so many, because whatever else the machine does only makes it dearer.
_ROUNDS = 3
_POINTS = 101
_numbers = iter(range(10_000_000, 2**40, 10_000_000))


class Node(Process):
    """A process that counts what it does."""

    def __init__(self, location: str) -> None:
        super().__init__(location, "benchmarks.scale.node")


class _Meter(servers.Proxy):
    """Counts the bytes that pass."""

    def __init__(self, target: int) -> None:
        self.bytes = 0
        super().__init__(target)

    def _passes(self, link: Any, way: str, size: int) -> None:
        self.bytes += size


def measure() -> dict[str, Any]:
    """Measure both engines and what their alternatives would have to be built of."""
    found: dict[str, Any] = {name: _engine(name) for name in SERVERS}
    found["local"] = {
        "socket_us": _socket_us(),
        "shared_memory_us": _shared_memory_us(),
    }
    return found


@contextlib.contextmanager
def nodes(location: str, count: int) -> Iterator[list[Node]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Node(location)) for _ in range(count)]  # type: ignore[misc]


def _engine(name: str) -> dict[str, Any]:
    with SERVERS[name]() as server:
        location = server.url()
        found: dict[str, Any] = {}
        with nodes(location, 1) as (node,):
            found["write"] = _calls(server, node, "sets", first=next(_numbers), count=_CALLS)
        with nodes(location, 1) as (node,):
            found["pull"] = _calls(server, node, "pulls", count=_CALLS)
        print(".", end="", file=sys.stderr, flush=True)
        *found["live"], found["untold"] = (
            min((_live(server, *how) for _ in range(_ROUNDS)), key=_for_each_write) for how in _WAYS
        )
        found["busy_lag"] = _busy_lag(location)
        found["connections"] = _connections(server)
        print(".", end="", file=sys.stderr, flush=True)
    with SERVERS[name]() as server:
        found["bytes"] = _bytes(server)
        found.update(_rows(server))
        print(".", end="", file=sys.stderr, flush=True)
    return found


def _calls(server: servers.Server, node: Node, do: str, **named: Any) -> dict[str, float]:
    """Seconds for each call: on the clock, and of the client's and the server's processors."""
    warm = {"first": next(_numbers)} if "first" in named else {}
    node.ask(do, count=100, **warm)
    before = processor_time(server)
    done = node.ask(do, **named)
    spent, count = processor_time(server) - before, named["count"]
    return {
        "seconds": done["seconds"] / count,
        "client_cpu": done["cpu"] / count,
        "server_cpu": spent / count,
    }


def _live(
    server: servers.PostgreSQL | servers.Valkey, breath: float, told: bool
) -> dict[str, float]:
    """What following costs each process and the server, beside the writes."""
    with nodes(server.url(), _FOLLOWERS + 1) as (writer, *followers):
        writer.ask("sets", first=next(_numbers), count=100)
        for node in followers:
            node.ask("follow", seconds=0.3, breath=breath, told=told)
        writer.send("write", seconds=_SECONDS + 1, first=next(_numbers), rate=_RATE)
        time.sleep(0.5)
        before, began = processor_time(server), time.perf_counter()
        for node in followers:
            node.send("follow", seconds=_SECONDS, breath=breath, told=told)
        done = [node.receive() for node in followers]
        spent, seconds = processor_time(server) - before, time.perf_counter() - began
        writer.receive()
    pulls, rows = (statistics.mean(one[what] for one in done) for what in ("pulls", "rows"))
    return {
        "breath": breath,
        "followers": _FOLLOWERS,
        "writes_per_second": rows / _SECONDS,
        "pulls_per_second": pulls / _SECONDS,
        "client_cpu": statistics.mean(one["cpu"] for one in done) / _SECONDS,
        "server_cpu": spent / seconds,
    }


def _for_each_write(live: dict[str, float]) -> float:
    return live["server_cpu"] / live["writes_per_second"]


def _busy_lag(location: str) -> dict[str, Any]:
    """How much later a process hears of a write whose other thread computes all the time."""
    with nodes(location, 2) as (writer, watcher):
        writer.ask("sets", first=next(_numbers), count=100)
        assert watcher.ask("toil") == {"watching": True}
        time.sleep(0.3)
        wrote = writer.ask("write", seconds=_SECONDS, first=next(_numbers), rate=50.0)
        time.sleep(0.7)
        applied = dict(map(tuple, watcher.ask("stop watching")["applied"]))
    lags = [max(0.0, applied[number] - moment) for number, moment in wrote["acknowledged"]]
    return {"curve": [percentile(lags, point / (_POINTS - 1)) for point in range(_POINTS)]}


def _connections(server: servers.PostgreSQL | servers.Valkey) -> dict[str, float]:
    """What a process that reads and writes has open, and the server's memory for each of them."""
    with nodes(server.url(), 1) as (node,):
        node.ask("follow", seconds=0.5)
        node.ask("sets", first=next(_numbers), count=100)
        node.ask("follow", seconds=0.5)
        if isinstance(server, servers.PostgreSQL):
            pids = server.backends()
            sizes = [_private(pid) for pid in pids]
        else:
            listed = server.execute("CLIENT", "LIST")
            text = listed.decode() if isinstance(listed, bytes) else str(listed)
            clients = [
                dict(word.split("=", 1) for word in line.split() if "=" in word)
                for line in text.splitlines()
                if "cmd=client" not in line
            ]
            sizes = [int(client["tot-mem"]) for client in clients]
    return {"each_process": len(sizes), "bytes": statistics.mean(sizes)}


def _private(pid: int) -> int:
    """The memory that a process shares with no other one, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _bytes(server: servers.PostgreSQL | servers.Valkey) -> dict[str, float]:
    """What goes over the network both ways: a write, an empty pull, a row of one, a hint."""
    meter = _Meter(server.port)
    with meter, nodes(server.url(port=meter.port), 1) as (node,):
        node.ask("sets", first=next(_numbers), count=100)
        before = meter.bytes
        node.ask("sets", first=next(_numbers), count=500)
        write = (meter.bytes - before) / 501  # sets warms up by one more
        node.ask("pulls", count=10)
        before = meter.bytes
        node.ask("pulls", count=500)
        pull = (meter.bytes - before) / 501
        node.ask("populate", first=next(_numbers), count=_ENTRIES)
        before = meter.bytes
        node.ask("pulls", count=0)
        row = (meter.bytes - before) / _ENTRIES
        with nodes(server.url(), 1) as (writer,):
            node.ask("follow", seconds=0.3)
            before = meter.bytes
            writer.send("sets", first=next(_numbers), count=500)
            done = node.ask("follow", seconds=1.5)
            writer.receive()
        hint = (meter.bytes - before - pull * done["pulls"] - row * done["rows"]) / done["rows"]
    return {"write": write, "pull": pull, "row": row, "hint": max(0.0, hint)}


def _rows(server: servers.PostgreSQL | servers.Valkey) -> dict[str, float]:
    """The server's share of a join, and the room that the log takes there, for each entry."""
    before_room, entries = _room(server), 2 * _ENTRIES
    with nodes(server.url(), 2) as (writer, node):
        writer.ask("populate", first=next(_numbers), count=entries)
        room = (_room(server) - before_room) / entries
        node.ask("follow", seconds=0.0)  # joins
        node.ask("renew")
        held = entries + _ENTRIES
        node.ask("pulls", count=0)
        before = processor_time(server)
        node.ask("renew")
        done = node.ask("pull")
        spent = processor_time(server) - before
    return {"row_server_cpu": spent / max(held, done["entries"]), "log_bytes": room}


def _room(server: servers.PostgreSQL | servers.Valkey) -> int:
    if isinstance(server, servers.PostgreSQL):
        ((size,),) = server.execute(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c "
            "WHERE c.relkind = 'r' AND c.relname LIKE 'accesspass%'"
        )
        return int(size)
    return int(server.execute("INFO", "memory")["used_memory"])


# What alternatives would be built of --------------------------------------------------------------


def _socket_us() -> float:
    """A question of 64 bytes and its answer of 256 by a unix socket of another process, in µs."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            ours.close()
            while theirs.recv(64):
                theirs.sendall(b"x" * 256)
        os._exit(0)
    theirs.close()
    samples = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            ours.sendall(b"q" * 64)
            ours.recv(256)
        samples.append((time.perf_counter() - began) / 500 * 1e6)
    ours.close()
    os.waitpid(pid, 0)
    return min(samples)


def _shared_memory_us(entries: int = 200_000) -> float:
    """Finding an entry by its key in an open hash table in shared memory, in Python, in µs."""
    slot, key_size, slots = 256, 40, 1 << 19
    head = struct.Struct("<Q")
    with tempfile.TemporaryFile(prefix="accesspass-bench-") as file:
        file.truncate(slot * slots)
        with contextlib.closing(mmap.mmap(file.fileno(), slot * slots)) as memory:
            keys = [b"session:%032x" % number for number in range(entries)]
            for key in keys:
                place = zlib.crc32(key) % slots * slot
                while memory[place + 8] != 0:
                    place = (place + slot) % (slot * slots)
                memory[place : place + 8 + key_size] = head.pack(2) + key

            def get(key: bytes) -> bytes | None:
                place = zlib.crc32(key) % slots * slot
                while True:
                    # What is being changed has an odd number, or another one afterwards.
                    (before,) = head.unpack_from(memory, place)
                    entry = memory[place + 8 : place + slot]
                    if head.unpack_from(memory, place)[0] != before or before & 1:
                        continue
                    if entry.startswith(key):
                        return entry
                    if not before:
                        return None
                    place = (place + slot) % (slot * slots)

            asked = keys[:: entries // 20_000]
            samples = []
            for _ in range(5):
                began = time.perf_counter()
                for key in asked:
                    get(key)
                samples.append((time.perf_counter() - began) / len(asked) * 1e6)
    return min(samples)
