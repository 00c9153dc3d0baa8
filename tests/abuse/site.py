"""The site that is attacked: gunicorn on PostgreSQL, reached over sockets, byte by byte."""

from __future__ import annotations

import contextlib
import email
import email.policy
import itertools
import json
import os
import re
import secrets
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster import exchange
from tests.servers import Server, family, free_port, make_folder, shared_postgresql

__all__ = ["NEW_PASSWORD", "PASSWORD", "Mail", "Person", "Reply", "Site", "request"]

PASSWORD = "correct horse battery"
NEW_PASSWORD = "purple monkey dishwasher"

_ROOT = Path(__file__).resolve().parents[2]
_SERVICE_SECRET = "abuse-" + secrets.token_urlsafe(32)
# What differs between any two answers, whatever they are answers to.
_ALWAYS_DIFFERENT = {"date", "x-demo-time"}
_KEY = re.compile(r"ap_ek_[A-Za-z0-9_-]{76}")


class Reply(NamedTuple):
    """What came back on one connection."""

    status: int
    headers: tuple[tuple[str, str], ...]
    content: bytes

    @property
    def body(self) -> Any:
        try:
            return json.loads(self.content)
        except ValueError:
            return {}

    @property
    def code(self) -> str | None:
        """The stable code of a refusal; None if it is none of ours."""
        body = self.body
        return body.get("code") if isinstance(body, dict) else None

    @property
    def queries(self) -> int:
        return int(self.header("X-Demo-Queries"))

    def header(self, name: str) -> str:
        return ", ".join(value for found, value in self.headers if found == name.lower())

    @property
    def seen(self) -> tuple[object, ...]:
        """All that a client can tell answers apart by, but for time; the number of queries too."""
        headers = sorted(x for x in self.headers if x[0] not in _ALWAYS_DIFFERENT)
        return self.status, headers, self.content


class Mail(NamedTuple):
    """One e-mail as a mail server gets it."""

    to: list[str]
    source: str

    @property
    def message(self) -> EmailMessage:
        parsed = email.message_from_string(self.source, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed

    def part(self, kind: str) -> str:
        part = self.message.get_body((kind,))
        assert part is not None
        return str(part.get_content())

    @property
    def key(self) -> str | None:
        found = _KEY.search(self.part("plain"))
        return found[0] if found else None


class Person(NamedTuple):
    """A user of the site, with the tokens of the registration."""

    username: str
    email: str
    id: str
    access: str
    refresh: str


def request(
    method: str,
    path: str,
    *,
    token: str = "",
    body: Any = None,
    content: bytes | None = None,
    content_type: str = "application/json",
    headers: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] = (),
) -> bytes:
    """Return the bytes of one HTTP request. ``content`` is sent as it is, ``body`` as JSON.

    ``headers`` come after, and take the place of, those that are sent by themselves.
    """
    if content is None:
        content = b"" if body is None else json.dumps(body).encode()
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    given = {name.lower() for name, _ in pairs}
    defaults = {"Host": "127.0.0.1", "Connection": "close"}
    if token:
        defaults["Authorization"] = f"Bearer {token}"
    if method not in ("GET", "HEAD") or content:
        defaults |= {"Content-Type": content_type, "Content-Length": str(len(content))}
    pairs = [(k, v) for k, v in defaults.items() if k.lower() not in given] + pairs
    lines = [f"{method} {path} HTTP/1.1".encode()]
    for name, value in pairs:
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        lines.append(name.encode("latin-1") + b": " + raw)
    return b"\r\n".join([*lines, b"", b""]) + content


def _parse(received: bytes) -> Reply:
    head, found, content = received.partition(b"\r\n\r\n")
    if not found:
        raise ConnectionError(f"no whole answer: {received[:200]!r}")
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest)
    headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
    return Reply(int(first.split()[1]), headers, content)


class Site(Server):
    """The example project under gunicorn: one process of many threads, so that its settings can
    be changed for a test."""

    def __init__(self) -> None:
        super().__init__(make_folder(), free_port())
        self._connection: Any = None
        self.database = f"abuse_{os.getpid()}"
        environment = {
            **os.environ,
            "ACCESSPASS_DEMO_DIR": str(self.folder),
            "ACCESSPASS_SERVICE_SECRET": _SERVICE_SECRET,
            "ACCESSPASS_SHARED_KEY": secrets.token_urlsafe(50),
            "DEPLOYMENT_DATABASE": shared_postgresql().create_database(self.database),
            "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
            "DJANGO_SETTINGS_MODULE": "tests.abuse.settings",
            "PYTHONPATH": str(_ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.secret_key = environment["DJANGO_SECRET_KEY"]
        self.popen_options = {"env": environment}
        subprocess.run(
            [sys.executable, _ROOT / "manage.py", "migrate", "--verbosity=0"],
            env=environment,
            check=True,
            capture_output=True,
        )
        self._numbers = itertools.count()

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--access-logfile=-"]
        command += ["--worker-class=gthread", "--workers=1", "--threads=24"]
        command += ["--bind", f"{self.host}:{self.port}", "--chdir", str(_ROOT)]
        return [*command, "example_project.wsgi:application"]

    def is_ready(self) -> bool:
        return self.send("GET", "/hello/").status == 401

    # The client.

    def at_once(self, requests: Sequence[bytes]) -> list[Reply]:
        """Send requests over as many connections, all of them open before the first is sent."""
        return [_parse(x) for x in exchange(self.host, self.port, requests)]

    def send(self, method: str, path: str, **more: Any) -> Reply:
        """Send one request; the arguments are those of ``request``."""
        return self.at_once([request(method, path, **more)])[0]

    def post(self, route: str, body: Any = None, **more: Any) -> Reply:
        """POST JSON to a route of AccessPass."""
        return self.send("POST", f"/auth/{route}/", body={} if body is None else body, **more)

    def get(self, route: str, **more: Any) -> Reply:
        return self.send("GET", f"/auth/{route}/", **more)

    # What goes on behind.

    @contextlib.contextmanager
    def settings(
        self, *, django: Mapping[str, Any] | None = None, **changes: Any
    ) -> Iterator[None]:
        """Change options of ACCESSPASS, and settings of Django."""
        changed = {**(django or {}), "ACCESSPASS": changes}
        assert self.send("POST", "/lab/settings/", body=changed).status == 200
        try:
            yield
        finally:
            assert self.send("POST", "/lab/settings/", body={}).status == 200

    def mail(self) -> list[Mail]:
        """Deliver what waits, and return it."""
        reply = self.send("POST", "/lab/deliver/", body={})
        assert reply.status == 200, reply
        return [Mail(**x) for x in reply.body["sent"]]

    def key_for(self, address: str) -> str:
        """Deliver, and return the one key that went to an address."""
        (key,) = [x.key for x in self.mail() if x.to == [address] and x.key]
        return key

    def key_for_reset(self, person: Person) -> str:
        """Ask for a reset, and return the key that came."""
        self.mail()
        assert self.post("password/reset", {"username": person.email}).status == 202
        return self.key_for(person.email)

    def memory(self) -> int:
        """The memory of the process that serves, in MB; the most that it ever had."""
        (worker,) = family(self.pid)[1:]
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())
        return int(line) // 1024

    def sql(self, statement: str, *values: object) -> Any:
        """Run one statement past the application; returns its rows, if there are any."""
        if self._connection is None:
            self._connection = shared_postgresql().connect(self.database)
        cursor = self._connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        super().close()

    # Users.

    def name(self) -> str:
        """Return a username that nobody has."""
        return f"mike{next(self._numbers)}"

    def register(self, username: str = "", **more: Any) -> Reply:
        username = username or self.name()
        body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
        return self.post("register", {**body, **more})

    def person(self, *, confirmed: bool = False) -> Person:
        """Sign a user up."""
        reply = self.register()
        assert reply.status == 201, reply
        user = reply.body["user"]
        made = Person(
            user["username"],
            user["email"],
            user["id"],
            reply.body["access_token"],
            reply.body["refresh_token"],
        )
        if confirmed:
            assert self.post("confirm", {"key": self.key_for(made.email)}).status == 200
        return made

    def person_in_cookies(self) -> Person:
        """The same, where REFRESH_COOKIE keeps the refresh token out of the body."""
        reply = self.register()
        assert reply.status == 201, reply
        user, sent = reply.body["user"], reply.header("Set-Cookie")
        refresh = sent.partition(";")[0].partition("=")[2]
        return Person(
            user["username"], user["email"], user["id"], reply.body["access_token"], refresh
        )

    def log_in(self, name: str, password: str = PASSWORD, **more: Any) -> Reply:
        return self.post("login", {"username": name, "password": password}, **more)

    def is_let_in(self, access: str) -> bool:
        """Whether the project's own view takes an access token."""
        return self.send("GET", "/hello/", token=access).status == 200

    def rows_of(self, person: Person) -> list[Any]:
        """What the server alone decides about a user."""
        return self.sql(
            "SELECT u.id, u.username, u.email, u.is_active, u.is_staff, u.is_superuser, "
            "u.date_joined, u.password, a.claims, a.confirmed_at, a.confirmed_email "
            "FROM accesspass_user u JOIN accesspass_account a ON a.user_id = u.id WHERE u.id = %s",
            person.id,
        )

    @property
    def service(self) -> dict[str, str]:
        """The header of the one service that is registered."""
        basic = b64encode(f"notes:{_SERVICE_SECRET}".encode()).decode()
        return {"Authorization": f"Basic {basic}"}
