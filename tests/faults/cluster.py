"""Stores that tests may harm, and nodes on them, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
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


STORES = ("sqlite", "postgresql", "valkey")


class Node:
    """A node process, as the test sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name: str = config["name"]
        self.history = Path(config["history"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.node", json.dumps(config)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._heard = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command without waiting for its answer, which ``answer`` returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, within: float = _PATIENCE) -> Any:
        assert self._process.stdout is not None
        file, give_up = self._process.stdout.fileno(), time.monotonic() + within
        while b"\n" not in self._heard:
            ready, _, _ = select.select([file], [], [], max(0.0, give_up - time.monotonic()))
            assert ready, f"{self.name} does not answer"
            read = os.read(file, 1 << 20)
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

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        """Wait until it stands still, stopped by whomever."""
        give_up = time.monotonic() + _PATIENCE
        while not os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG):
            assert time.monotonic() < give_up, f"{self.name} goes on"
            time.sleep(0.001)

    def go(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it; one that does not end is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        if self._process.poll() is None:
            self.go()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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
            with contextlib.suppress(OSError):
                assert node._process.stdin is not None
                node._process.stdin.close()
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
    return pytest.mark.parametrize("cluster", STORES[1:], indirect=True)(test)


def on_private_servers(test: Any) -> Any:
    """Run a test that asks for ``private_cluster`` on each of them, to harm as it likes."""
    return pytest.mark.parametrize("private_cluster", STORES[1:], indirect=True)(test)
