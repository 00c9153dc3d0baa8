"""Stores that tests may harm, and nodes on them, each in a process of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from accesspass.cache.backend import OPTIONS
from accesspass.cache.engines import resolve
from accesspass.cache.engines.base import Engine
from tests.faults.checker import Log, Op, differences, read_history, violations
from tests.faults.node import Rows
from tests.servers import (
    PostgreSQL,
    Proxy,
    Valkey,
    require_postgresql,
    require_valkey,
    shared_postgresql,
)

__all__ = [
    "KEYS",
    "MAX_STALENESS",
    "STORES",
    "Cluster",
    "Node",
    "Store",
    "cluster_on",
    "on_servers",
]

_ROOT = Path(__file__).parents[2]
KEYS = ["faults"]
#: What a node promises here, in seconds.
MAX_STALENESS = 1.0
_PATIENCE = 30.0


class Store:
    """An engine's log, used by one test alone, and the proxy that some nodes reach it through.

    Args:
        private: have a server for it that the test may harm. Otherwise PostgreSQL, which takes a
            while to start, is one server for all tests of a process.
        parameters: of that server.
    """

    def __init__(
        self, name: str, folder: Path, stack: ExitStack, *, private: bool = True, **parameters: Any
    ) -> None:
        self.name = name
        self.database = "postgres"
        self.server: PostgreSQL | Valkey | None = None
        self._proxy: Proxy | None = None
        self._stack = stack
        self._path = folder / "log.accesspass"
        if name == "postgresql":
            require_postgresql()
            if private:
                self.server = stack.enter_context(PostgreSQL(parameters or None))
            else:
                self.server = shared_postgresql()
                self.database = f"faults_{secrets.token_hex(4)}"
                self.server.create_database(self.database)
        elif name == "valkey":
            require_valkey()
            if not parameters:  # what it acknowledges survives a kill
                parameters = {"appendonly": "yes", "appendfsync": "always"}
            self.server = stack.enter_context(Valkey(parameters))

    @property
    def proxy(self) -> Proxy:
        assert self.server is not None
        if self._proxy is None:
            self._proxy = self._stack.enter_context(Proxy(self.server.port))
        return self._proxy

    def location(self, *, proxied: bool = False) -> str:
        if self.server is None:
            return f"sqlite:///{self._path}"
        port = self.proxy.port if proxied else None
        if isinstance(self.server, PostgreSQL):
            return self.server.url(self.database, port=port)
        return self.server.url(port=port)

    def engine(self, deadline: float = 10.0) -> Engine:
        engine = resolve(self.location(), OPTIONS).make()
        engine.deadline = deadline
        self._stack.callback(engine.close)
        return engine

    def terminate_clients(self) -> None:
        """End every connection, as an administrator would."""
        if isinstance(self.server, PostgreSQL):
            self.server.terminate_backends()
        elif isinstance(self.server, Valkey):
            for kind in ("normal", "pubsub"):
                self.server.execute("CLIENT", "KILL", "TYPE", kind)


# Two kinds of engine in every run, all three in the pipeline.
STORES = ["sqlite", "postgresql", pytest.param("valkey", marks=pytest.mark.pipeline)]
# The faults of servers are one engine's in every run, and both engines' in the pipeline.
WITH_SERVERS = ["postgresql", pytest.param("valkey", marks=pytest.mark.pipeline)]


class _Nursery:
    """The process that nodes are forked from; it ends with this one."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.node", str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._close)

    def fork(self, config: dict[str, Any], *files: int) -> int:
        """Have a node with these files for its stdin and stdout; returns its process id."""
        socket.send_fds(self._control, [json.dumps(config).encode()], files)
        return int(self._control.recv(32))

    def _close(self) -> None:
        self._control.close()
        self._process.wait()


_nursery = functools.cache(_Nursery)


class Node:
    """A node process, as the test sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name: str = config["name"]
        self.history = Path(config["history"])
        stdin, self._stdin = os.pipe()
        self._stdout, stdout = os.pipe()
        self.pid = _nursery().fork(config, stdin, stdout)
        os.close(stdin)
        os.close(stdout)
        self._heard = b""

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command without waiting for its answer, which ``answer`` returns."""
        command = json.dumps({"do": do, **arguments}).encode() + b"\n"
        while command:
            command = command[os.write(self._stdin, command) :]

    def answer(self, within: float = _PATIENCE) -> Any:
        give_up = time.monotonic() + within
        while b"\n" not in self._heard:
            read = self._receive(give_up)
            assert read is not None, f"{self.name} does not answer"
            assert read, f"{self.name} ended"
            self._heard += read
        line, _, self._heard = self._heard.partition(b"\n")
        said = json.loads(line)
        assert "error" not in said, f"{self.name}: {said}"
        return said["result"]

    def do(self, command: str, /, **arguments: Any) -> Any:
        self.send(command, **arguments)
        return self.answer()

    def get(self, key: str) -> Any:
        done = self.do("get", key=key)
        assert done["outcome"] == "done", done
        return done["result"]

    def write(self, op: str, key: str, value: Any = None, **more: Any) -> Any:
        """Write, and insist that it is done; returns what was written down."""
        done = self.do(op, key=key, value=value, **more)
        assert done["outcome"] == "done", done
        return done

    def sees(self, key: str, value: Any, within: float = 5.0) -> None:
        """Wait until a read returns a value."""
        give_up = time.monotonic() + within
        while (found := self.get(key)) != value:
            assert time.monotonic() < give_up, f"{self.name}: {key} is {found!r}, not {value!r}"
            time.sleep(0.005)

    def is_fresh(self) -> bool:
        """Whether it vouches for what it holds, after a read that lets it try."""
        self.get("any")
        return bool(self.do("status")["fresh"])

    def _receive(self, give_up: float) -> bytes | None:
        """What it has said, ``b""`` at its end, ``None`` if nothing comes in time."""
        left = max(0.0, give_up - time.monotonic())
        ready, _, _ = select.select([self._stdout], [], [], left)
        return os.read(self._stdout, 1 << 20) if ready else None

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        """Wait until it stands still, stopped by whomever."""
        give_up = time.monotonic() + _PATIENCE
        while not all(
            task.read_text().rpartition(")")[2].split()[0] == "T"
            for task in Path(f"/proc/{self.pid}/task").glob("*/stat")
        ):
            assert time.monotonic() < give_up, f"{self.name} goes on"
            time.sleep(0.001)

    def go(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """Tell it to end. It does not wait for that, as ``close`` does."""
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def close(self) -> None:
        """End it; one that does not end is killed."""
        self.end()
        with contextlib.suppress(ProcessLookupError):
            self.go()
        give_up = time.monotonic() + 5
        while (said := self._receive(give_up)) != b"":
            if said is None:
                os.kill(self.pid, signal.SIGKILL)
                give_up += 5
        os.close(self._stdout)


class Cluster:
    """Nodes on one store, and what they wrote down."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.nodes: list[Node] = []
        self._folder = folder
        self._rows = folder / "rows"
        Rows.make(str(self._rows))
        self._number = 0

    def launch(
        self,
        count: int = 1,
        *,
        proxied: bool = False,
        location: str = "",
        clock_offset: float = 0.0,
        deadline: float = 2.0,
        **options: Any,
    ) -> list[Node]:
        """Start nodes and wait until each of them obeys."""
        made = []
        for _ in range(count):
            self._number += 1
            config = {
                "name": f"n{self._number}",
                "location": location or self.store.location(proxied=proxied),
                "options": {
                    "MAX_STALENESS": MAX_STALENESS,
                    "HEARTBEAT": 0.1,
                    "SIGNING_KEYS": KEYS,
                    **options,
                },
                "history": str(self._folder / f"history-{self._number}"),
                "rows": str(self._rows),
                "clock_offset": clock_offset,
                "deadline": deadline,
            }
            made.append(Node(config))
        self.nodes += made
        for node in made:
            node.answer()
        return made

    def one(self, **more: Any) -> Node:
        (node,) = self.launch(1, **more)
        return node

    def history(self) -> list[Op]:
        return read_history(sorted(self._folder.glob("history-*")))

    def judge(self) -> list[Op]:
        """Return the history, in which no rule is broken."""
        history = self.history()
        found = violations(history, MAX_STALENESS)
        assert not found, "\n".join(found[:20])
        return history

    def converge(self, within: float = 5.0, *, nodes: Sequence[Node] = ()) -> Log:
        """Wait until every node holds exactly what the engine holds, and return that."""
        engine = self.store.engine()
        give_up = time.monotonic() + within
        while True:
            log = Log.of(engine, KEYS)
            found = {}
            for node in nodes or self.nodes:
                dump = node.do("dump")
                differ = differences(log, dump)
                if differ or not dump["fresh"]:
                    found[node.name] = differ[:5] or ["stale"]
            if not found:
                return log
            assert time.monotonic() < give_up, f"{len(log.payloads)} live entries, but {found}"
            time.sleep(0.05)

    def close(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError):
                node.go()
        for node in self.nodes:
            node.end()
        for node in self.nodes:
            node.close()


@contextlib.contextmanager
def cluster_on(
    name: str, folder: Path, *, private: bool = True, **parameters: Any
) -> Iterator[Cluster]:
    """A store (arguments as there) and no node yet; everything ends with the block."""
    with ExitStack() as stack:
        store = Store(name, folder, stack, private=private, **parameters)
        cluster = Cluster(store, folder)
        stack.callback(cluster.close)
        yield cluster


def on_servers(test: Any) -> Any:
    """Run a test that asks for ``cluster`` on the engines that have a server."""
    return pytest.mark.parametrize("cluster", WITH_SERVERS, indirect=True)(test)


def on_private_servers(test: Any) -> Any:
    """Run a test that asks for ``private_cluster`` on each of them, to harm as it likes."""
    return pytest.mark.parametrize("private_cluster", WITH_SERVERS, indirect=True)(test)
