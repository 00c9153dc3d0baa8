"""gunicorn with several workers that serve the example project, and a client for it.

The project is the one of the demo, on a SQLite database in a folder of its own. Some of its
settings differ: passwords are hashed by MD5, because a good hash of all these logins would take a
minute, nobody counts these logins, and a refresh token may be sent again for longer, because a
killed server may need time to come back. ``ResourceServer`` is the second project, beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.servers import Server, free_port, make_folder

__all__ = ["Answer", "Cluster", "ResourceServer", "exchange"]

_ROOT = Path(__file__).resolve().parent.parent
_SETTINGS = """\
from example_project.settings import *

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ACCESSPASS = {**ACCESSPASS, "REFRESH_GRACE": 60, "THROTTLES": {"login": None}}
ACCESSPASS["REFRESH_COOKIE"] = None
if "ACCESSPASS_LOCATION" in os.environ:
    CACHES["accesspass"]["LOCATION"] = os.environ["ACCESSPASS_LOCATION"]
"""
_RESOURCE_SETTINGS = """\
from example_project.resource_server.settings import *

MIDDLEWARE = ["tests.connects.ReportConnects", *MIDDLEWARE]
"""
_PATIENCE = 30.0  # seconds, for anything that is waited for


class Answer(NamedTuple):
    """What one request brought back: ``worker`` is the process id of who answered, ``connects`` how
    many connections a resource server opened for it."""

    status: int
    worker: int
    queries: int
    body: dict[str, Any]
    connects: int = 0


class Cluster(Server):
    """The example project under gunicorn, as a server of this test process.

    Args:
        workers: how many sync workers serve it.
        location: the cache's LOCATION, that of the example if empty.
        store: what the example is to be on, SQLite if empty.
    """

    application = "example_project.wsgi:application"
    probe = "/hello/"

    def __init__(self, workers: int = 4, location: str = "", store: str = "") -> None:
        super().__init__(make_folder(), free_port())
        self.workers = workers
        (self.folder / "cluster_settings.py").write_text(_SETTINGS)
        self.environment = environment = {
            **os.environ,
            "ACCESSPASS_DEMO_DIR": str(self.folder),
            "ACCESSPASS_SERVICE_SECRET": secrets.token_urlsafe(32),
            "ACCESSPASS_SHARED_KEY": secrets.token_urlsafe(50),
            "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
            "DJANGO_SETTINGS_MODULE": "cluster_settings",
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(_ROOT)]),
        }
        if location:
            environment["ACCESSPASS_LOCATION"] = location
        if store:
            environment["ACCESSPASS_DEMO_STORE"] = store
        self.popen_options = {"env": environment}
        subprocess.run(
            [sys.executable, _ROOT / "manage.py", "migrate", "--verbosity=0"],
            env=environment,
            check=True,
            capture_output=True,
        )

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket"]
        command += ["--workers", str(self.workers), "--bind", f"{self.host}:{self.port}"]
        return [*command, "--chdir", str(_ROOT), self.application]

    def is_ready(self) -> bool:
        return self.once("GET", self.probe).status == 401

    # The client.

    def once(self, method: str, path: str, *, token: str = "", body: Any = None) -> Answer:
        """Send one request over a connection of its own.

        Raises:
            OSError: there was no whole answer, since the server or the worker died.
        """
        (answer,) = self.at_once(1, method, path, token=token, body=body)
        return answer

    def at_once(
        self, times: int, method: str, path: str, *, token: str = "", body: Any = None
    ) -> list[Answer]:
        """Send the same request over as many new connections, all of them open before the first.

        Raises:
            OSError: as ``once``.
        """
        request = _request(method, path, token, body)
        return [_answer(x) for x in exchange(self.host, self.port, [request] * times)]

    def insist(self, method: str, path: str, *, token: str = "", body: Any = None) -> Answer:
        """Send one request until it is answered, whoever dies meanwhile."""
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                return self.once(method, path, token=token, body=body)
            except OSError:
                assert time.monotonic() < give_up, (
                    f"no answer; its log ends with {self.log[-2000:]}"
                )
                time.sleep(0.02)

    def all_workers(self, method: str, path: str, *, token: str) -> dict[int, Answer]:
        """Send the same request until each of the workers has answered; one answer of each."""
        found: dict[int, Answer] = {}
        give_up = time.monotonic() + _PATIENCE
        while len(found) < self.workers:
            assert time.monotonic() < give_up, f"only {sorted(found)} have answered"
            for answer in self.at_once(self.workers, method, path, token=token):
                found.setdefault(answer.worker, answer)
        return found


class ResourceServer(Cluster):
    """The example's resource server under gunicorn, beside the authorization server ``auth``.

    Args:
        settings: more lines for its settings.
    """

    application = "example_project.resource_server.wsgi:application"
    probe = "/notes/"

    def __init__(self, auth: Cluster, settings: str = "") -> None:
        Server.__init__(self, make_folder(), free_port())
        self.workers = 1
        (self.folder / "resource_settings.py").write_text(_RESOURCE_SETTINGS + settings)
        self.popen_options = {
            "env": {
                **auth.environment,
                "ACCESSPASS_AUTH_URL": f"http://{auth.host}:{auth.port}/auth/",
                "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
                "DJANGO_SETTINGS_MODULE": "resource_settings",
                "PYTHONPATH": os.pathsep.join([str(self.folder), str(_ROOT)]),
            }
        }


def exchange(host: str, port: int, requests: Sequence[bytes]) -> list[bytes]:
    """Send each request over a connection of its own, all of them open before the first, and
    return what came back until the server closed it, in the order of the requests."""
    received = [bytearray() for _ in requests]
    with contextlib.ExitStack() as stack:
        waiting = stack.enter_context(selectors.DefaultSelector())
        for into in received:
            connection = stack.enter_context(socket.create_connection((host, port), _PATIENCE))
            waiting.register(connection, selectors.EVENT_READ, into)
        for key, request in zip(list(waiting.get_map().values()), requests, strict=True):
            key.fileobj.sendall(request)  # type: ignore[union-attr]
        while waiting.get_map():
            ready = waiting.select(_PATIENCE)
            if not ready:
                raise TimeoutError("no answer")
            for key, _ in ready:
                connection = key.fileobj  # type: ignore[assignment]
                piece = connection.recv(65536)
                if piece:
                    key.data.extend(piece)
                    continue
                # Closed at once, because the worker waits for that before it takes the next.
                waiting.unregister(connection)
                connection.close()
    return [bytes(x) for x in received]


def _request(method: str, path: str, token: str, body: Any) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


def _answer(received: bytes) -> Answer:
    head, found, content = received.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in rest)}
    if not found or len(content) < int(headers.get("content-length", 0)):
        raise ConnectionError("the answer was cut off")
    return Answer(
        int(first.split()[1]),
        int(headers["x-demo-worker"]),
        int(headers["x-demo-queries"]),
        json.loads(content) if content else {},
        int(headers.get("x-demo-connects", 0)),
    )
