"""One node in a process of its own, which obeys commands and writes down all that it does.

    python -m tests.faults.node FILE

FILE is a socket. To each configuration that comes there, along with what shall be stdin and stdout
of a node, it forks a node and answers with its process id. A fork of a process that has imported
everything costs a hundredth of a process that has to.

Commands come on stdin, one JSON object a line, and each is answered by one line on stdout. Every
operation on the cache goes to the history file: a line before a write is sent, so that one that
was under way when the process was killed is known, and a line when it has returned. Times are on
the clock that all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import mmap
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

__all__ = ["Rows"]

_ROW = struct.Struct(">Q?7x")
#: How many rows the workload has, and how many keys of each other kind.
ROWS, REGISTERS, COUNTERS, ADDED = 30, 6, 2, 150


class Rows:
    """The caller's database: for each row a revision, and whether it was revoked. Atomic."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "r+b")  # noqa: SIM115 - as long as the process
        self._memory = mmap.mmap(self._file.fileno(), ROWS * _ROW.size)
        self._threads = threading.Lock()

    @staticmethod
    def make(path: str) -> None:
        with open(path, "wb") as file:
            file.write(_ROW.pack(0, False) * ROWS)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._threads:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def read(self, row: int) -> tuple[int, bool]:
        with self._locked():
            revision, dead = _ROW.unpack_from(self._memory, row * _ROW.size)
            return revision, dead

    def update(self, row: int, *, revoke: bool = False) -> int | None:
        """Change a row and return its new revision; ``None`` if it was revoked before."""
        with self._locked():
            revision, dead = _ROW.unpack_from(self._memory, row * _ROW.size)
            if dead:
                return None
            _ROW.pack_into(self._memory, row * _ROW.size, revision + 1, revoke)
            return int(revision) + 1


class Node:
    def __init__(self, config: dict[str, Any]) -> None:
        from accesspass.cache.backend import ReplicatedCache
        from accesspass.cache.follower import Mark, clock

        self.name: str = config["name"]
        self.clock = clock
        self._make_mark = Mark
        self.cache = ReplicatedCache(config["location"], {"OPTIONS": config["options"]})
        self.follower = self.cache._follower
        self.follower.engine.deadline = config["deadline"]
        self._history = os.open(config["history"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._rows = Rows(config["rows"])
        self._seen = threading.local()
        self._watch_writes()
        self._threads: list[threading.Thread] = []
        self._enough = threading.Event()
        self._number = 0
        self._marks: dict[str, Mark] = {}
        if config["clock_offset"]:
            # After the imports: the clock of SQLite's engine is the machine's.
            real, offset = time.time, config["clock_offset"]
            time.time = lambda: real() + offset

    def _watch_writes(self) -> None:
        real = self.follower.write

        def write(*arguments: Any) -> Any:
            self._seen.written = real(*arguments)
            return self._seen.written

        self.follower.write = write  # type: ignore[method-assign]

    # Operations that are written down --------------------------------------------------------

    def _note(self, **line: Any) -> None:
        os.write(self._history, json.dumps(line).encode() + b"\n")

    def operate(self, op: str, key: str = "", value: Any = None, **more: Any) -> dict[str, Any]:
        """Do something with the cache and write it down; returns what was written."""
        self._number += 1
        line: dict[str, Any] = {"id": f"{self.name}-{self._number}", "node": self.name}
        line |= {"op": op, "key": key, "value": value, **more}
        before = self._vouching()
        self._seen.written = None
        line["began"] = self.clock()
        if op != "get":
            self._note(**line)
        try:
            line["result"] = self._call(op, key, value, more)
            line["outcome"] = "refused" if line["result"] is False else "done"
            if op == "delete":
                line["outcome"] = "done"
        except self.cache.EngineUncertain:
            line["outcome"] = "uncertain"
        except self.cache.EngineUnavailable:
            line["outcome"] = "unavailable"
        except ValueError:
            line["outcome"] = "absent"
        line["ended"] = self.clock()
        written = self._seen.written
        if written is not None:
            line |= {"epoch": written.epoch, "seq": written.seq}
        else:
            after = self._vouching()
            line |= {"epoch": after[0], "fresh": before == after and after[2]}
        self._note(**line)
        return line

    def _vouching(self) -> tuple[str | None, int, bool]:
        """Of which replica an answer is, and whether it may answer."""
        replica = self.follower._replica
        fresh = self.clock() - replica.fresh_at <= self.cache.max_staleness
        return replica.epoch, replica.generation, fresh

    def _call(self, op: str, key: str, value: Any, more: dict[str, Any]) -> Any:
        cache, timeout = self.cache, more.get("timeout")
        if op == "get":
            return cache.get(key)
        if op == "set":
            return cache.set(key, value, timeout)
        if op == "add":
            return cache.add(key, value, timeout)
        if op == "incr":
            return cache.incr(key)
        if op == "delete":
            return cache.delete(key)
        if op == "clear":
            return cache.clear()
        mark = self._marks.get(more.get("mark", ""))
        if op == "publish":
            return cache.publish(key, value, more["revision"], timeout, mark)
        if op == "fill":
            assert mark is not None
            return cache.fill(key, value, more["revision"], 300, mark)
        raise AssertionError(op)

    # A random workload -----------------------------------------------------------------------

    def work(self, seed: int, pause: float) -> None:
        """Until told otherwise, do anything to anything that all nodes share."""
        rng = random.Random(seed)
        pending: list[tuple[int, int]] = []  # revocations that are not known to be published
        while not self._enough.is_set():
            step = rng.random()
            if step < 0.35:
                done = self._look(rng)
            elif step < 0.65:
                done = self._change_register(rng)
            elif step < 0.72:
                done = self._count(f"counter-{rng.randrange(COUNTERS)}")
            elif step < 0.78:
                done = self.operate("add", f"added-{rng.randrange(ADDED)}", self._fresh_value())
            else:
                done = self._publish(rng, pending, pause)
            if done["outcome"] in ("unavailable", "uncertain"):
                self._enough.wait(0.02)
            else:
                self._enough.wait(rng.random() * pause)

    def _fresh_value(self) -> str:
        return f"{self.name}:{self._number + 1}"

    def _look(self, rng: random.Random) -> dict[str, Any]:
        kind = rng.choice(["register", "own", "row", "row"])
        if kind == "row":
            return self.operate("get", f"row-{rng.randrange(ROWS)}")
        if kind == "own":
            return self.operate("get", f"own-{self.name}-{rng.randrange(2)}")
        return self.operate("get", f"register-{rng.randrange(REGISTERS)}")

    def _change_register(self, rng: random.Random) -> dict[str, Any]:
        if rng.random() < 0.4:
            key = f"own-{self.name}-{rng.randrange(2)}"
        else:
            key = f"register-{rng.randrange(REGISTERS)}"
        if rng.random() < 0.25:
            done = self.operate("delete", key)
        else:
            timeout = rng.choice([None, None, None, 300, 0.3])
            done = self.operate("set", key, self._fresh_value(), timeout=timeout)
        self.operate("get", key)
        return done

    def _count(self, key: str) -> dict[str, Any]:
        done = self.operate("incr", key)
        if done["outcome"] == "absent":
            self.operate("add", key, 0)
            done = self.operate("incr", key)
        return done

    def _publish(
        self, rng: random.Random, pending: list[tuple[int, int]], pause: float
    ) -> dict[str, Any]:
        if pending and rng.random() < 0.5:
            row, revision = pending[0]
            done = self._publish_row(row, revision, dead=True)
            if done["outcome"] == "done":
                pending.pop(0)
            return done
        row, what = rng.randrange(ROWS), rng.random()
        if what < 0.04:
            revoked = self._rows.update(row, revoke=True)
            if revoked is None:
                return self.operate("get", f"row-{row}")
            done = self._publish_row(row, revoked, dead=True)
            if done["outcome"] != "done":
                pending.append((row, revoked))
            self.operate("get", f"row-{row}")
            return done
        if not self.mark("work"):
            return {"outcome": "unavailable"}
        if what < 0.5:
            revision, dead = self._rows.read(row)
            self._enough.wait(rng.random() * pause * 5)
            if dead or not revision:
                return self.operate("get", f"row-{row}")
            done = self.operate(
                "fill", f"row-{row}", [revision, False], revision=revision, mark="work"
            )
        else:
            changed = self._rows.update(row)
            self._enough.wait(rng.random() * pause * 5)
            if changed is None:
                return self.operate("get", f"row-{row}")
            done = self._publish_row(row, changed, dead=False)
        self.operate("get", f"row-{row}")
        return done

    def _publish_row(self, row: int, revision: int, *, dead: bool) -> dict[str, Any]:
        more: dict[str, Any] = {} if dead else {"mark": "work"}
        return self.operate("publish", f"row-{row}", [revision, dead], revision=revision, **more)

    def watch(self, keys: list[str], every: float) -> None:
        while not self._enough.wait(every):
            for key in keys:
                self.operate("get", key)

    def take_part(self, start: float, operations: list[list[Any]]) -> None:
        """Do all of this, beginning at a time that other nodes wait for too."""
        time.sleep(max(0.0, start - self.clock()))
        for op, key, value in operations:
            self.operate(op, key, value)

    # Commands --------------------------------------------------------------------------------

    def obey(self, do: str, **arguments: Any) -> Any:
        if do in ("get", "set", "add", "incr", "delete", "clear", "publish", "fill"):
            return self.operate(do, **arguments)
        return getattr(self, do)(**arguments)

    def start(self, what: str, **arguments: Any) -> None:
        thread = threading.Thread(target=getattr(self, what), kwargs=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def rest(self) -> int:
        """End what was started. Returns how many operations there were so far."""
        self._enough.set()
        self.finish()
        self._enough.clear()
        return self._number

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads = []

    def mark(self, name: str) -> list[Any] | None:
        try:
            self._marks[name] = self.cache.mark()
        except self.cache.EngineUnavailable:
            return None
        return list(self._marks[name])

    def preload(self, count: int) -> None:
        """Fill the log; these writes are not written down."""
        for first in range(0, count, 1000):
            last = min(first + 1000, count)
            self.cache.set_many({f"loaded-{n}": n for n in range(first, last)}, None)

    def status(self) -> dict[str, Any]:
        return self.cache.status()

    def now(self) -> float:
        return self.cache.now()

    def dump(self) -> dict[str, Any]:
        """What the replica holds alive: number, revision, payload, and whether it is a fill."""
        self.cache.get("any")  # as any reader would, so that it comes to be current
        fresh = self.status()["fresh"]  # to look through all of it may take longer
        replica, now = self.follower._replica, self.cache.now()
        entries = {}
        for shard in replica._shards:
            for key in list(shard):
                held = replica.get(key)
                if held is not None and not held.absent and held.expires > now:
                    filled = held.taken != float("-inf")
                    entries[key.hex()] = [held.seq, held.revision, held.payload.hex(), filled]
        return {"epoch": replica.epoch, "entries": entries, "fresh": fresh}

    def stop_at(self, place: str) -> None:
        """Stand still once, in the middle of the next read: before or after the value was read."""
        from accesspass.cache.replica import Replica

        real = Replica.find

        def find(replica: Replica, key: bytes) -> Any:
            Replica.find = real  # type: ignore[method-assign]
            if place == "before":
                os.kill(os.getpid(), signal.SIGSTOP)
            held = real(replica, key)
            if place == "after":
                os.kill(os.getpid(), signal.SIGSTOP)
            return held

        Replica.find = find  # type: ignore[method-assign]

    def fork(self, children: int, key: str) -> list[float]:
        """Have children read a key until they hit; returns after how many seconds each did."""
        pipes = []
        for _ in range(children):
            reader, writer = os.pipe()
            if not os.fork():
                code = 1
                try:
                    began = self.clock()
                    while self.cache.get(key) is None and self.clock() < began + 10:
                        time.sleep(0.001)
                    took = self.clock() - began
                    self.cache.set(f"child-{os.getpid()}", os.getpid())
                    fresh = self.cache.get(f"child-{os.getpid()}") == os.getpid()
                    os.write(writer, json.dumps(took if fresh else 99.0).encode())
                    code = 0
                finally:
                    os._exit(code)
            os.close(writer)
            pipes.append(reader)
        took = []
        for reader in pipes:
            took.append(float(os.read(reader, 100) or b"99"))
            os.close(reader)
            os.wait()
        return took


def main() -> None:
    """Fork nodes until the socket is closed. This process has one thread, so it may."""
    for name in ("backend", "engines.postgresql", "engines.redis"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"accesspass.cache.{name}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            config, files, _, _ = socket.recv_fds(control, 1 << 16, 2)
            if not config:
                return
            pid = os.fork()
            if pid == 0:
                control.close()
                become_node(json.loads(config), files)
            for file in files:
                os.close(file)
            control.send(b"%d" % pid)


def become_node(config: dict[str, Any], files: list[int]) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        serve(config)
    except BaseException:  # noqa: BLE001 - it is said, and the fork ends here whatever it was
        traceback.print_exc()
    finally:
        os._exit(0)


def serve(config: dict[str, Any]) -> None:
    node = Node(config)
    answer: Callable[[Any], None] = lambda said: print(json.dumps(said), flush=True)  # noqa: E731, T201
    answer({"result": os.getpid()})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer({"result": node.obey(**command)})
        except Exception as error:  # noqa: BLE001 - the test shows it
            answer({"error": f"{type(error).__name__}: {error}"})
    node.follower.stop()


if __name__ == "__main__":
    main()
