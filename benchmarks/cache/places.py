"""Where the logs are kept while they are measured: a private server for each engine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests import servers

__all__ = ["PLACES", "Place", "Process", "fsync_seconds"]

_ROOT = Path(__file__).resolve().parent.parent.parent
_PATIENCE = 600.0


class Process:
    """A node of a log; ``ask`` waits for its answer, ``send`` and ``receive`` do not."""

    def __init__(self, location: str, module: str = "benchmarks.cache.node") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, location],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, do: str, **named: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **named}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a node ended with status {self._process.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **named: Any) -> dict[str, Any]:
        self.send(do, **named)
        return self.receive()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class Place(NamedTuple):
    """One engine. ``shared`` tells whether other processes see the log."""

    name: str
    open: Callable[[], contextlib.AbstractContextManager[str]]
    durability: str
    shared: bool = True


@contextlib.contextmanager
def _memory() -> Iterator[str]:
    yield "memory://benchmarks"


@contextlib.contextmanager
def _sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="accesspass-bench-") as folder:
        yield f"sqlite:///{folder}/log.accesspass"


@contextlib.contextmanager
def _postgresql() -> Iterator[str]:
    # What differs from PostgreSQL's defaults keeps a checkpoint from falling into a measurement.
    parameters = {"shared_buffers": "256MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}
    with servers.PostgreSQL(parameters, durable=True) as server:
        ((commit,),) = server.execute("SHOW synchronous_commit")
        ((fsync,),) = server.execute("SHOW fsync")
        assert (commit, fsync) == ("on", "on")
        yield server.url()


@contextlib.contextmanager
def _valkey() -> Iterator[str]:
    with servers.Valkey() as server:
        yield server.url()


#: In the order of the tables.
PLACES = {
    place.name: place
    for place in (
        Place("memory", _memory, "nothing survives its process", shared=False),
        Place("sqlite", _sqlite, "synchronous=FULL: each write is flushed to the disk"),
        Place(
            "postgresql",
            _postgresql,
            "synchronous_commit=on, fsync=on: each write is flushed to the disk",
        ),
        Place("valkey", _valkey, "in the server's memory, without a file"),
    )
}


def fsync_seconds() -> float:
    """How long it takes here to write a block of 8 KiB and flush it to the disk: the median."""
    took = []
    with tempfile.TemporaryFile(prefix="accesspass-bench-") as file:
        for _ in range(200):
            file.seek(0)
            began = time.perf_counter()
            file.write(os.urandom(8192))
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 2]
