"""One node, as a process of its own: does what lines of JSON on stdin say, answers on stdout.

Times are ``time.perf_counter()``, which on Linux is one clock for all processes.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from django.conf import settings

from accesspass.cache import ReplicatedCache
from accesspass.cache.replica import Replica

__all__ = ["Node", "key_of", "main", "value_of"]

_numbers = itertools.count(1)
_BATCH = 5_000
_DAY = 86_400.0


def key_of(number: int) -> str:
    """A key as long as that of a session."""
    return f"session:{number:032x}"


def value_of(number: int) -> dict[str, Any]:
    """A value about as big as the record of a session with two access tokens."""
    digests = [hashlib.sha256(b"%d %d" % (number, n)).digest() for n in range(2)]
    return {
        "user": number,
        "tokens": dict.fromkeys(digests, 1900000000 + number),
        "fields": {"username": f"user{number}", "is_active": True, "is_staff": False},
        "claims": {},
    }


class Node:
    """Its methods are what can be asked of it; each answer is an object of JSON."""

    def __init__(self, location: str) -> None:
        self._location = location
        self.renew()

    def renew(self) -> None:
        """Begin with an empty replica: whoever has other options has another one."""
        options = {"RETENTION": 3_600.0 + next(_numbers)}
        self._cache = ReplicatedCache(self._location, {"TIMEOUT": None, "OPTIONS": options})
        self._follower: Any = self._cache._follower

    # Writing ---------------------------------------------------------------------------------

    def write(
        self, seconds: float, first: int, rate: float = 0.0, *, follow: bool = False
    ) -> dict[str, Any]:
        """Write one entry after the other, as fast as it goes or ``rate`` of them a second."""
        if follow:
            self._cache.get("warm")
        self._cache.set(key_of(first), value_of(first), _DAY)
        began = due = time.perf_counter()
        took, acknowledged, failed = [], [], 0
        while time.perf_counter() - began < seconds:
            if rate:
                due += 1 / rate
                time.sleep(max(0.0, due - time.perf_counter()))
            first += 1
            value = value_of(first)
            sent = time.perf_counter()
            try:
                self._cache.set(key_of(first), value, _DAY)
            except ReplicatedCache.CacheError:
                failed += 1
                continue
            now = time.perf_counter()
            took.append(now - sent)
            acknowledged.append([first, now])
        done: dict[str, Any] = {"began": began, "ended": time.perf_counter(), "took": took}
        done["failed"] = failed
        if rate:
            done["acknowledged"] = acknowledged
        return done

    def populate(self, first: int, count: int) -> dict[str, Any]:
        """Write many entries, thousands at a time. Returns their bytes, keys and values alone."""
        size = 0
        for start in range(first, first + count, _BATCH):
            numbers = range(start, min(start + _BATCH, first + count))
            # Sessions that began at different times do not end at one time.
            timeout = _DAY + start % _DAY
            self._cache.set_many({key_of(n): value_of(n) for n in numbers}, timeout)
            sample = numbers[:: len(numbers) // 10 or 1]
            sizes = [len(self._key(n)) + len(self._encoded(n)) for n in sample]
            size += len(numbers) * sum(sizes) // len(sizes)
        return {"bytes": size}

    def _key(self, number: int) -> bytes:
        return self._cache._key(key_of(number), None)

    def _encoded(self, number: int) -> bytes:
        return self._cache._codec.encode(value_of(number))

    # Pulling ---------------------------------------------------------------------------------

    def pull(self) -> dict[str, Any]:
        """Bring the replica to the head of the log, and say how long that took."""
        gc.collect()
        memory, began, cpu = _resident(), time.perf_counter(), time.process_time()
        self._follower.pull()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        gc.collect()
        return {
            "seconds": seconds,
            "cpu": cpu,
            "resident": _resident() - memory,
            **{name: self._cache.status()[name] for name in ("entries", "bytes", "applied")},
        }

    def get(self, first: int, count: int, times: int) -> dict[str, Any]:
        """Read keys at random, each found; microseconds per call, less what making the key took."""
        numbers = [random.randrange(first, first + count) for _ in range(20_000)]
        get = self._cache.get
        for number in numbers[:1000]:
            assert get(key_of(number)) is not None, number
        samples = []
        for _ in range(times):
            began = time.perf_counter()
            for number in numbers:
                get(key_of(number))
            middle = time.perf_counter()
            for number in numbers:
                key_of(number)
            ended = time.perf_counter()
            samples.append((middle - began - (ended - middle)) / len(numbers) * 1e6)
        return {"samples": samples}

    # Watching --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _watching(self, every: float | None) -> Iterator[dict[str, Any]]:
        """Follow the log. ``every``: seconds between reads, 0 for no pause, None for no reads."""
        result: dict[str, Any] = {"applied": [], "pauses": []}
        stop = threading.Event()
        put = Replica.put

        def timed(self: Replica, key: bytes, *args: Any, **named: Any) -> bool:
            done = put(self, key, *args, **named)
            result["applied"].append([int(key[-32:], 16), time.perf_counter()])
            return done

        def read() -> None:
            get, key, pauses = self._cache.get, key_of(0), result["pauses"]
            queues = [_RunQueue(threading.get_native_id()), _RunQueue(self._thread_id())]
            for queue in queues:
                queue.waited()
            while not stop.is_set():
                for queue in queues:
                    queue.waited()
                longest, last = 0.0, time.perf_counter()
                for _ in range(1 if every else 50):
                    get(key)
                    now = time.perf_counter()
                    longest, last = max(longest, now - last), now
                if longest > 0.0005:
                    # At most one of the two holds the interpreter, so they may wait together.
                    pauses.append([longest, max([queue.waited() for queue in queues])])
                if every:
                    time.sleep(every)
            for queue in queues:
                queue.close()

        self._cache.get(key_of(0))  # joins, and starts the thread
        threads = [threading.Thread(target=read)] if every is not None else []
        if every != 0:
            Replica.put = timed  # type: ignore[method-assign]
        before = self._cache.status()["counters"]["applied"]
        began, cpu = time.perf_counter(), time.process_time()
        try:
            for thread in threads:
                thread.start()
            yield result
        finally:
            result["cpu"] = time.process_time() - cpu
            result["seconds"] = time.perf_counter() - began
            result["changes"] = self._cache.status()["counters"]["applied"] - before
            stop.set()
            Replica.put = put  # type: ignore[method-assign]
            for thread in threads:
                thread.join()

    def _thread_id(self) -> int:
        """The follower's thread, or the one that asks if that engine needs none."""
        thread = self._follower._thread
        return threading.get_native_id() if thread is None else thread.native_id

    def watch(self, every: float | None = None) -> dict[str, Any]:
        """Follow until the next line. Returns when each entry was applied, and a reader's pauses.

        The pauses, between one read and the next, are those above half a millisecond; with each
        goes how much of it a thread of ours was ready to run and had no processor.
        """
        with self._watching(every) as result:
            print(json.dumps({"watching": True}), flush=True)
            sys.stdin.readline()
        return result

    def idle(self, seconds: float) -> dict[str, Any]:
        """Follow for a while and do nothing else; returns the processor time that it took."""
        self._cache.get(key_of(0))
        before = self._cache.status()["counters"]["applied"]
        began, cpu = time.perf_counter(), time.process_time()
        time.sleep(seconds)
        return {
            "cpu": time.process_time() - cpu,
            "seconds": time.perf_counter() - began,
            "changes": self._cache.status()["counters"]["applied"] - before,
        }

    def stop(self) -> dict[str, Any]:
        """End the follower's thread; ``pull`` catches up when it is asked to."""
        self._follower.stop()
        return {}


class _RunQueue:
    """How long a thread of this process was ready to run and did not, as Linux counts it."""

    def __init__(self, thread: int) -> None:
        self._file = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)
        self._before = 0

    def waited(self) -> float:
        """Seconds since this was asked before."""
        total = int(os.pread(self._file, 64, 0).split()[1])
        waited, self._before = total - self._before, total
        return waited / 1e9

    def close(self) -> None:
        os.close(self._file)


def _resident() -> int:
    """The memory that this process has in use, in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def main(kind: type[Node] = Node) -> None:
    """Serve until stdin ends."""
    settings.configure(SECRET_KEY="benchmarks", SECRET_KEY_FALLBACKS=[], USE_TZ=True)
    node = kind(sys.argv[1])
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        answer = getattr(node, asked.pop("do"))(**asked)
        print(json.dumps(answer or {}), flush=True)


if __name__ == "__main__":
    main()
