"""Databases of the two kinds that are supported, and nodes on them that a test moves step by step.

near, far = store.node(), store.node()
logout = near.begin("log_out", hold="publish", token=pair["access"])
assert logout.is_held()          # committed, and nobody has heard of it
...
logout.let_go().end()
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.races import node as node_module
from tests.servers import (
    PostgreSQL,
    Proxy,
    make_folder,
    require_postgresql,
    shared_postgresql,
    wait_until,
)

__all__ = [
    "KINDS",
    "Actor",
    "Gap",
    "Node",
    "Order",
    "Refused",
    "Store",
    "gaps",
    "long",
    "user_name",
]

KINDS = ("sqlite", "postgresql")
_REFUSALS = ("InvalidToken", "InvalidCredentials")
_numbers = itertools.count(1)


class Refused(Exception):
    """A node refused an operation; ``name`` is the class of its error."""

    def __init__(self, name: str, said: str) -> None:
        super().__init__(f"{name}: {said}")
        self.name = name


@functools.cache
def _processes() -> Any:
    """Processes forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.races.node"])
    return context


class Node:
    """A process. Whatever `node.Node` can do is a method: ``near.refresh(token=…)``."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._orders, theirs = _processes().Pipe()
        self._process = _processes().Process(
            target=node_module.main, args=(theirs, config), daemon=True
        )
        self._process.start()
        theirs.close()

    def __getattr__(self, command: str) -> Callable[..., Any]:
        return functools.partial(self.do, command)

    def do(self, command: str, *positional: Any, **arguments: Any) -> Any:
        self._orders.send((command, positional, arguments))
        assert self._orders.poll(60), f"no answer to {command}"
        done, said = self._orders.recv()
        if done:
            return said
        name, message = said
        # A deadlock, a foreign key that fails, or whatever else is no refusal, is a failure.
        assert name in _REFUSALS, f"{name}: {message}"
        raise Refused(name, message)

    def order(self, operation: str, **arguments: Any) -> Order:
        """What `Gap.meet` will tell it to do."""
        return Order(self, operation, arguments)

    def begin(self, operation: str, hold: int | str | None = None, **arguments: Any) -> Actor:
        """Begin an operation, to be held right before an event: its name or its number."""
        return Actor(self, self.do("begin", operation, hold, **arguments))

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.join()
        self._orders.close()

    def close(self) -> None:
        if not self._orders.closed:
            self._orders.close()
        self._process.join(5)
        if self._process.is_alive():
            self.kill()


class Actor:
    """An operation under way on a node."""

    def __init__(self, node: Node, number: int) -> None:
        self._node = node
        self._number = number

    def is_held(self) -> bool:
        """Wait until it stands before its event; False if it ended without coming there."""
        return bool(self._node.settle(self._number, True) == "held")

    def settle(self) -> str:
        """Wait until it is ``held``, ``over``, or ``waiting`` for somebody's lock."""
        return str(self._node.settle(self._number, False))

    def let_go(self, hold: int | str | None = None) -> Actor:
        self._node.do("let_go", self._number, hold)
        return self

    def end(self) -> Any:
        """Wait for its end. Raises Refused with whatever it raised."""
        return self._node.do("end", self._number)

    @property
    def trace(self) -> list[str]:
        found: list[str] = self._node.do("trace", self._number)
        return found


class Order(NamedTuple):
    """Something that a node will be told to do."""

    node: Node
    operation: str
    arguments: dict[str, Any]


class Gap:
    """The moment right before one event of an operation, in which another operation happens."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.is_last = False
        self.name = ""

    def meet(self, first: Order, second: Order) -> tuple[Actor, Actor]:
        """Begin ``first``, let ``second`` into the gap, and let both go on to their ends.

        ``second`` runs until it ends, or until it waits for a lock that ``first`` has. If ``first``
        has no such event any more, its end comes before the beginning of ``second``.
        """
        one = first.node.begin(first.operation, self._number, **first.arguments)
        self.is_last = not one.is_held()
        trace = one.trace
        self.name = f"{second.operation} after " + ("all" if self.is_last else "") + str(trace)
        two = second.node.begin(second.operation, **second.arguments)
        two.settle()
        if not self.is_last:
            one.let_go()
        assert not one.is_held(), self.name
        assert not two.is_held(), self.name
        return one, two


def gaps() -> Iterator[Gap]:
    """Every gap of an operation, from before its first event to after its last."""
    for number in itertools.count():
        gap = Gap(number)
        yield gap
        if gap.is_last:
            assert number > 0, "there was no gap"
            return


class Store:
    """A database of its own and the engine's log beside it, and the nodes on them.

    Args:
        kind: ``sqlite`` or ``postgresql``.
        apart: keep the log where it can be cut off while the database answers.
    """

    def __init__(self, kind: str, *, apart: bool = False, **accesspass: Any) -> None:
        self.kind = kind
        self.accesspass = accesspass
        self.folder = make_folder(in_memory=True)
        self._nodes: list[Node] = []
        self._proxy: Proxy | None = None
        self._database, location = _copy_of_template(kind, self.folder)
        self.location = "database:default"
        if apart and kind == "postgresql":
            self._proxy = Proxy(shared_postgresql().port)
            name = self._database["NAME"]
            self.location = shared_postgresql().url(name, port=self._proxy.port)
        elif apart:
            self.location = f"sqlite:///{location}"
        self._log = location

    def node(self, *, atomic_requests: bool = False, **options: Any) -> Node:
        """Start a process on it. ``options`` are the cache's."""
        made = Node(
            {
                "database": {**self._database, "ATOMIC_REQUESTS": atomic_requests},
                "location": self.location,
                "options": options,
                "accesspass": self.accesspass,
            }
        )
        self._nodes.append(made)
        return made

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """Let nobody reach the log for a while."""
        if self._proxy is not None:
            self._proxy.drop(refuse=True)
            yield
            self._proxy.heal()
            return
        # Nobody can write from now on, and nobody can read as soon as the next look at the path.
        away = self._log.with_name("away")
        with contextlib.closing(sqlite3.connect(self._log, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            self._log.rename(away)
            self._log.mkdir()
            yield
            self._log.rmdir()
            away.rename(self._log)
            other.execute("ROLLBACK")

    def close(self) -> None:
        for made in self._nodes:
            made.close()
        if self._proxy is not None:
            self._proxy.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def long(*values: Any) -> list[Any]:
    """Parameters that are left to the pipeline, since the others show as much of it."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.pipeline)
        for value in values
    ]


def user_name() -> str:
    """A name that nobody has yet."""
    return f"user{next(_numbers)}"


# Migrations take a second, so they run once, and every store begins with a copy.


def _sqlite_settings(path: Path) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}


def _postgresql_settings(server: PostgreSQL, name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": "postgres",
        "HOST": server.host,
        "PORT": server.port,
    }


@functools.cache
def _template(kind: str) -> dict[str, Any]:
    if kind == "postgresql":
        require_postgresql()
        server = shared_postgresql()
        server.create_database("races")
        made = _postgresql_settings(server, "races")
    else:
        made = _sqlite_settings(make_folder(in_memory=True) / "races.sqlite3")
    migrating = Node(
        {"database": made, "location": "memory://races", "options": {}, "accesspass": {}}
    )
    migrating.migrate()
    migrating.close()
    return made


def _copy_of_template(kind: str, folder: Path) -> tuple[dict[str, Any], Path]:
    template = _template(kind)
    path = folder / "project.sqlite3"
    if kind == "sqlite":
        shutil.copy(template["NAME"], path)
        return _sqlite_settings(path), Path(f"{path}.accesspass")
    server, name = shared_postgresql(), f"races_{secrets.token_hex(4)}"
    wait_until(lambda: not _users_of(server, template["NAME"]))
    server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template["NAME"]}"')
    return _postgresql_settings(server, name), folder


def _users_of(server: PostgreSQL, name: str) -> list[Any]:
    return server.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", [name])
