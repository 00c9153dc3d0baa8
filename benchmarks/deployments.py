"""The variants under real servers: one server for each variant, asked in turn.

Client, servers, PostgreSQL and Valkey share the machine, so trust the ratios. Memory is the
proportional set size of the workers, as Linux counts it.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import Load, ask, load
from benchmarks.timing import Effort, Result, processor_time
from benchmarks.variants import BASE, VARIANTS, Login, Variant, named
from tests.servers import HOST, Server, family, free_port, make_folder, wait_until

__all__ = ["SERVERS", "processes", "revocations", "throughput"]

_ROOT = Path(__file__).resolve().parent.parent
_CONNECTIONS = 4
# How long a refusal is waited for, in seconds.
_PATIENCE = 2.0
_GUNICORN = "-m gunicorn benchmarks.served:wsgi --bind {address} --workers {workers}"
#: What starts each server.
SERVERS = {
    "gunicorn, sync": _GUNICORN,
    "gunicorn, gthread": _GUNICORN + " --worker-class gthread --threads 4",
    "granian": "-m granian benchmarks.served:wsgi --interface wsgi --host {host} --port {port}"
    " --workers {workers} --blocking-threads 4 --no-access-log",
    "uvicorn": "-m uvicorn benchmarks.served:asgi --host {host} --port {port} --workers {workers}"
    " --no-access-log --lifespan off",
}
#: Where all of them would take too long.
_FEW = (
    BASE,
    "AccessPass, PostgreSQL",
    "simplejwt, stateless",
    "token by Django's RedisCache",
    "knox",
)


class _Deployment(Server):
    """The project under a server, with the cache of one variant, whose user is logged in."""

    def __init__(self, server: str, variant: Variant, user: Any, workers: int = 1) -> None:
        super().__init__(make_folder(), free_port())
        self.variant = variant
        self.login: Login = variant.log_in(user)
        self._words = SERVERS[server].format(
            address=f"{HOST}:{self.port}", host=HOST, port=self.port, workers=workers
        )
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        if variant.alias:
            environment["ACCESSPASS_BENCH_ALIAS"] = variant.alias
        self.popen_options = {"env": environment}

    def command(self) -> list[str]:
        return [sys.executable, *self._words.split()]

    def is_ready(self) -> bool:
        return self.ask(self.login)[0] == 200

    def ask(self, login: Login) -> tuple[int, bytes]:
        return ask(self.port, self.variant.path, login.header)

    def load(self, seconds: float, connections: int = _CONNECTIONS) -> Load:
        return load(
            self.port,
            self.variant.path,
            self.login.header,
            connections=connections,
            seconds=seconds,
        )

    def memory(self) -> int:
        """The memory of all its processes but the one that starts the others, in bytes."""
        _, *others = family(self.pid)
        return sum(_memory_of(pid) for pid in others or [self.pid])


def _memory_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no Pss")


@contextlib.contextmanager
def _deployed(
    server: str, variants: Sequence[Variant], user: Any, workers: int = 1
) -> Iterator[list[_Deployment]]:
    """Start a server for each variant, make sure that it does what it says, and yield all."""
    with contextlib.ExitStack() as stack:
        deployments = []
        for variant in variants:
            deployment = _Deployment(server, variant, user, workers)
            stack.callback(deployment.close)
            # Many workers at once would take longer to start than anybody waits.
            deployment.start(wait=workers > 1)
            deployments.append(deployment)
        for deployment in deployments:
            deployment.wait_ready()
            deployment.variant.check(deployment.ask, deployment.login, user)
        _wait_until_idle(deployments)
        yield deployments


def _wait_until_idle(deployments: Sequence[_Deployment]) -> None:
    """Wait until no worker is still starting: the first that is ready answers for all."""

    def idle() -> bool:
        before = sum(processor_time(deployment) for deployment in deployments)
        time.sleep(0.2)
        return sum(processor_time(deployment) for deployment in deployments) - before < 0.05

    wait_until(idle, timeout=60)


def throughput(effort: Effort, user: Any) -> dict[str, list[dict[str, Any]]]:
    """Requests a second and latencies, on four connections, against no authentication.

    All variants under the first of several servers; a few of them under the others, and in a run
    of one server.
    """
    # The memory engine is for one process, and these are others.
    everyone = [variant for variant in VARIANTS if variant.alias != "memory"]
    rows: dict[str, list[dict[str, Any]]] = {}
    for server in effort.servers:
        variants = everyone if not rows and len(effort.servers) > 1 else named(*_FEW)
        with _deployed(server, variants, user) as deployments:
            rows[server] = _in_turn(deployments, effort)
    return rows


def processes(effort: Effort, user: Any) -> list[dict[str, Any]]:
    """The same with more and more workers, and what these do when nobody asks."""
    rows = []
    variants = named(BASE, "AccessPass, PostgreSQL", "AccessPass, Valkey", "knox")
    for workers in effort.processes:
        with _deployed("gunicorn, sync", variants, user, workers) as deployments:
            found = _in_turn(deployments, effort, connections=max(_CONNECTIONS, 2 * workers))
            _wait_until_idle(deployments)
            before, began = [processor_time(d) for d in deployments], time.perf_counter()
            time.sleep(2 * effort.server_seconds)
            seconds = time.perf_counter() - began
            for row, deployment, then in zip(found, deployments, before, strict=True):
                rows.append(
                    {
                        **row,
                        "workers": workers,
                        "memory": row["memory"] / workers,
                        "idle": (processor_time(deployment) - then) / seconds,
                    }
                )
    return rows


def _in_turn(
    deployments: Sequence[_Deployment], effort: Effort, connections: int = _CONNECTIONS
) -> list[dict[str, Any]]:
    loads: dict[str, list[Load]] = {d.variant.name: [] for d in deployments}
    spent: dict[str, list[float]] = {d.variant.name: [] for d in deployments}
    for deployment in deployments:
        deployment.load(0.2 * effort.server_seconds, connections)  # warm
    order, shuffle = list(deployments), random.Random(0).shuffle
    for _ in range(effort.server_rounds):
        shuffle(order)
        for deployment in order:
            before = processor_time(deployment)
            measured = deployment.load(effort.server_seconds, connections)
            seconds = processor_time(deployment) - before
            loads[deployment.variant.name].append(measured)
            spent[deployment.variant.name].append(seconds / len(measured.latencies) * 1e6)
    rows = []
    for deployment in deployments:
        measured, processor = loads[deployment.variant.name], spent[deployment.variant.name]
        ratios = [
            one.per_second / other.per_second
            for one, other in zip(measured, loads[BASE], strict=True)
        ]
        processor_ratios = [one / base for one, base in zip(processor, spent[BASE], strict=True)]
        percentiles = statistics.quantiles([x for one in measured for x in one.latencies], n=100)
        rows.append(
            {
                "name": deployment.variant.name,
                "ratio": Result.of(ratios)._asdict(),
                "processor": Result.of(processor)._asdict(),
                "processor_ratio": Result.of(processor_ratios)._asdict(),
                "per_second": Result.of([one.per_second for one in measured])._asdict(),
                "p50": percentiles[49],
                "p95": percentiles[94],
                "p99": percentiles[98],
                "memory": deployment.memory(),
            }
        )
    return rows


def revocations(effort: Effort, user: Any) -> list[dict[str, Any]]:
    """From the end of a logout in this process to the first refusal in another one.

    The other process is asked without a pause. What cannot be taken back is left out.
    """
    names = (
        "AccessPass, SQLite",
        "AccessPass, PostgreSQL",
        "AccessPass, Valkey",
        "token by Django's RedisCache",
        "durin, cached",
        "session, cached_db",
        "knox",
    )
    rows = []
    with _deployed("gunicorn, sync", named(*names), user) as deployments:
        for deployment in deployments:
            deployment.variant.select()
            lags: list[float] = []
            accepted = 0
            # Where one took too long, the next one would take as long.
            while len(lags) < effort.revocations and lags[-1:] != [_PATIENCE]:
                lag, meanwhile = _revoke(deployment, user)
                lags.append(lag)
                accepted += meanwhile > 0
            lags.sort()
            rows.append(
                {
                    "name": deployment.variant.name,
                    "p50": statistics.median(lags),
                    "p90": lags[int(0.9 * len(lags))],
                    "longest": lags[-1],
                    "accepted": accepted,
                    "of": len(lags),
                    "given_up": lags[-1] == _PATIENCE,
                }
            )
    return rows


def _revoke(deployment: _Deployment, user: Any) -> tuple[float, int]:
    """Return the seconds to the first refusal, and how many were accepted in between.

    _PATIENCE stands for a refusal that did not come in that time.
    """
    login = deployment.variant.log_in(user)
    assert login.log_out is not None
    asked: list[tuple[float, float, int]] = []  # sent at, answered at, status
    give_up = time.perf_counter() + _PATIENCE

    def watch() -> None:
        while not asked or (asked[-1][2] == 200 and asked[-1][1] < give_up):
            sent = time.perf_counter()
            status, _ = deployment.ask(login)
            asked.append((sent, time.perf_counter(), status))

    watcher = threading.Thread(target=watch)
    watcher.start()
    time.sleep(random.uniform(0.01, 0.03))
    login.log_out()
    acknowledged = time.perf_counter()
    watcher.join()
    accepted = sum(sent > acknowledged and status == 200 for sent, _, status in asked)
    _, answered, status = asked[-1]
    return _PATIENCE if status == 200 else max(0.0, answered - acknowledged), accepted
