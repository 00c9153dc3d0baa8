"""What one request asks of the database and of Valkey, counted and not timed.

``python -m benchmarks.operations`` is the process that sends the requests, on servers behind
proxies; each line on its stdin is a variant's name and header, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.project import Project
from tests import servers

__all__ = ["CountingProxy", "count"]

_ROOT = Path(__file__).resolve().parent.parent
_REQUESTS = 200


class CountingProxy(servers.Proxy):
    """Counts round trips: how often a client speaks after the server has answered."""

    def __init__(self, target: int) -> None:
        self.round_trips = 0
        self._speaking: dict[Any, str] = {}
        super().__init__(target)

    def _passes(self, link: Any, way: str, size: int) -> None:
        if way == "to_server" and self._speaking.get(link) != way:
            self.round_trips += 1
        self._speaking[link] = way


def count(project: Project) -> list[dict[str, Any]]:
    """Return for each variant what a request asks, as means over many requests.

    Round trips are those of the whole process: a follower's and the housekeeping's are among them.
    """
    from benchmarks.variants import VARIANTS

    rows = []
    with (
        CountingProxy(project.postgresql.port) as database,
        CountingProxy(project.valkey.port) as valkey,
    ):
        environment = {
            **os.environ,
            "ACCESSPASS_BENCH_DATABASE": project.postgresql.url(port=database.port),
            "ACCESSPASS_BENCH_LOG": project.postgresql.url(port=database.port),
            "ACCESSPASS_BENCH_VALKEY": f"redis://{valkey.host}:{valkey.port}",
        }
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.operations"],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            for variant in VARIANTS:
                if variant.alias == "memory":
                    continue  # that process has another memory
                header = variant.log_in(project.user).header
                client.stdin.write(json.dumps([variant.name, header]) + "\n")
                client.stdin.flush()
                client.stdout.readline()  # it is warm
                before = database.round_trips, valkey.round_trips
                client.stdin.write("go\n")
                client.stdin.flush()
                statements = int(client.stdout.readline())
                after = database.round_trips, valkey.round_trips
                asked = [(now - then) / _REQUESTS for now, then in zip(after, before, strict=True)]
                rows.append(
                    {
                        "name": variant.name,
                        "statements": statements / _REQUESTS,
                        "database": asked[0],
                        "valkey": asked[1],
                    }
                )
            client.stdin.close()
    return rows


def main() -> None:
    """Serve until stdin ends."""
    import django

    django.setup()
    from django.db import connection

    from benchmarks.variants import Login, Server, named

    server, statements = Server(), 0

    def counted(execute: Any, *arguments: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(*arguments)

    for line in iter(sys.stdin.readline, ""):
        name, header = json.loads(line)
        (variant,), login = named(name), Login(header and tuple(header))
        variant.select()
        for _ in range(50):  # connects, prepares statements, and joins
            server.send(variant, login)
        print("warm", flush=True)
        sys.stdin.readline()
        statements = 0
        with connection.execute_wrapper(counted):
            for _ in range(_REQUESTS):
                server.send(variant, login)
        print(statements, flush=True)


if __name__ == "__main__":
    main()
