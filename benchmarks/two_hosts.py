"""``python -m benchmarks.two_hosts``: cut the cable of one of two hosts, revoke, watch, heal.

Two servers of the example project share one PostgreSQL. As root on Linux each has a network of its
own (a network namespace) and a cable to the database's (a veth pair), which is pulled out; anywhere
else each one reaches the database through a proxy, which swallows everything. Each is spoken to
over a Unix socket, as by somebody who sits beside it.

What must never happen ends the program with status 1: a token that is accepted on a request sent
later than MAX_STALENESS seconds after its revocation was acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import put_between_markers
from example_project.demo import tell
from tests import servers

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = _ROOT / "docs" / "explanation" / "two-hosts.rst"
_SETTINGS = """\
import os
from example_project.settings import *

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": os.environ["DEMO_HOST"],
        "PORT": os.environ["DEMO_PORT"],
        # Django has no end to its wait for a database. Two seconds is the least that libpq knows.
        "OPTIONS": {"connect_timeout": 2},
    }
}
CACHES["accesspass"]["LOCATION"] = os.environ["DEMO_LOCATION"]
CACHES["accesspass"]["OPTIONS"] = {"MAX_STALENESS": float(os.environ["DEMO_MAX_STALENESS"])}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""
PASSWORD = "correct horse battery staple"
MAX_STALENESS = 5.0
PATIENCE = 30.0
_EVERY = 0.02


class NotAsPromisedError(Exception):
    """Something happened that AccessPass says never does, or did not that should."""


# Networks --------------------------------------------------------------------------------------


class Network:
    """How a host reaches the servers, and how its link is cut."""

    #: What a command of this host begins with.
    prefix: Sequence[str] = ()

    def address(self, server: servers.Server) -> tuple[str, int]:
        """Where the host finds a server."""
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError


class Cable(Network):
    """A network namespace, and a pair of virtual interfaces as its cable to the servers."""

    def __init__(self, number: int) -> None:
        self.name = f"accesspass-{os.getpid()}-{number}"
        self.prefix = ["ip", "netns", "exec", self.name]
        self.port = f"ap{os.getpid()}n{number}"
        # Of the range that is set aside for benchmarks of networks (RFC 2544, appendix C).
        self.near, self.far = (f"198.18.{os.getpid() % 250}.{4 * number + end}" for end in (1, 2))

    def address(self, server: servers.Server) -> tuple[str, int]:
        return self.near, server.port

    def __enter__(self) -> Cable:
        inside = ["-n", self.name]
        _ip("netns", "add", self.name)
        try:
            _ip(
                "link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", self.name
            )
            _ip("address", "add", f"{self.near}/30", "dev", self.port)
            _ip(*inside, "address", "add", f"{self.far}/30", "dev", "eth0")
            _ip("link", "set", self.port, "up")
            _ip(*inside, "link", "set", "eth0", "up")
            _ip(*inside, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self.port)
        _ip("netns", "delete", self.name)

    def cut(self) -> None:
        _ip("link", "set", self.port, "down")

    def heal(self) -> None:
        _ip("link", "set", self.port, "up")


def _ip(*words: str) -> None:
    command = [shutil.which("ip") or "ip", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)


def _sweep() -> None:
    """Remove what a run has left behind that was killed with SIGKILL."""
    for path in Path("/run/netns").glob("accesspass-*-*"):
        owner = path.name.split("-")[1]
        if not Path("/proc", owner).exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", path.name)


def no_namespaces() -> str | None:
    """Why there can be no network namespaces here, None if there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no ip command (iproute2)"
    _sweep()
    try:
        with Cable(9) as cable:
            subprocess.run([*cable.prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces do not work here: {getattr(error, 'stderr', error)}"
    return None


class Proxied(Network):
    """A proxy in front of each server."""

    def __init__(self) -> None:
        self._proxies: dict[int, servers.Proxy] = {}

    def address(self, server: servers.Server) -> tuple[str, int]:
        proxy = self._proxies.get(server.port)
        if proxy is None:
            proxy = self._proxies[server.port] = servers.Proxy(server.port)
        return proxy.host, proxy.port

    def __enter__(self) -> Proxied:
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies.values():
            proxy.close()

    def cut(self) -> None:
        for proxy in self._proxies.values():
            proxy.black_hole()

    def heal(self) -> None:
        for proxy in self._proxies.values():
            proxy.heal()


# Servers ---------------------------------------------------------------------------------------


class Database(servers.PostgreSQL):
    """PostgreSQL that also listens on the cables."""

    def __init__(self, addresses: Sequence[str]) -> None:
        super().__init__()
        self._addresses = addresses
        with (self.data / "pg_hba.conf").open("a") as file:
            file.writelines(f"host all all {address}/30 trust\n" for address in addresses)

    def command(self) -> list[Any]:
        listen = ",".join([servers.HOST, *self._addresses])
        return [*super().command(), f"--listen_addresses={listen}"]


class Store(servers.Valkey):
    """Valkey that also listens on the cables."""

    def __init__(self, addresses: Sequence[str]) -> None:
        bind = " ".join([servers.HOST, *addresses])
        super().__init__({"protected-mode": "no"})
        self._bind = bind

    def command(self) -> list[Any]:
        return [*super().command(), "--bind", *self._bind.split()]


class Answer(NamedTuple):
    """What one request brought back; times are of ``time.monotonic``."""

    sent: float
    received: float
    status: int
    body: dict[str, Any]


class Host(servers.Server):
    """One worker of the example project, in a network of its own."""

    #: What the timeline calls it, before its name.
    kind = "host"

    def __init__(self, name: str, network: Network, database: Database, location: str) -> None:
        super().__init__(servers.make_folder(), 0)
        self.name = name
        self.title = f"{self.kind} {name}"
        self.network = network
        self._path = self.folder / "http"
        (self.folder / "host_settings.py").write_text(_SETTINGS, encoding="utf-8")
        host, port = network.address(database)
        self.environment = {
            **os.environ,
            "ACCESSPASS_DEMO_DIR": str(self.folder),
            "DEMO_HOST": host,
            "DEMO_PORT": str(port),
            "DEMO_LOCATION": location,
            "DEMO_MAX_STALENESS": str(MAX_STALENESS),
            "DJANGO_SECRET_KEY": _SECRET_KEY,
            "DJANGO_SETTINGS_MODULE": "host_settings",
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(_ROOT)]),
        }
        self.popen_options = {"env": self.environment}

    def command(self) -> list[str]:
        command = [*self.network.prefix, sys.executable, "-m", "gunicorn", "--workers", "1"]
        command += ["--bind", f"unix:{self._path}", "--no-control-socket"]
        return [*command, "--chdir", str(_ROOT), "example_project.wsgi:application"]

    def migrate(self) -> None:
        command = [*self.network.prefix, sys.executable, str(_ROOT / "manage.py"), "migrate"]
        subprocess.run(
            [*command, "--verbosity=0"], env=self.environment, check=True, capture_output=True
        )

    def is_ready(self) -> bool:
        return self.send("GET", "/hello/").status == 401

    def send(self, method: str, path: str, *, token: str = "", body: Any = None) -> Answer:
        """Send one request on a connection of its own."""
        connection = _UnixConnection(self._path)
        headers = {"Host": "localhost", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        with contextlib.closing(connection):
            sent = time.monotonic()
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            content = response.read()
        received = time.monotonic()
        return Answer(sent, received, response.status, json.loads(content) if content else {})


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


_SECRET_KEY = secrets.token_urlsafe(50)


# The play --------------------------------------------------------------------------------------


class Timeline:
    """Prints what happens, in milliseconds since the revocation was acknowledged.

    What happened before is printed once that is known.
    """

    def __init__(self) -> None:
        self.text = ""
        self._zero: float | None = None
        self._waiting: list[tuple[float, str, str]] = []
        self._lock = threading.Lock()

    def title(self, line: str) -> None:
        self._print(line)

    def say(self, moment: float, who: str, what: str) -> None:
        with self._lock:
            self._waiting.append((moment, who, what))
            if self._zero is not None:
                self._flush()

    def begin(self, zero: float) -> None:
        with self._lock:
            self._zero = zero
            self._flush()

    def _flush(self) -> None:
        assert self._zero is not None
        for moment, who, what in sorted(self._waiting):
            self._print(f"{(moment - self._zero) * 1000:>9,.0f} ms  {who:<8} {what}")
        self._waiting.clear()

    def _print(self, line: str) -> None:
        self.text += line.rstrip() + "\n"
        tell(line.rstrip())


class Watcher(threading.Thread):
    """Asks a host again and again with one token, and tells of each change of the answer."""

    def __init__(self, host: Host, token: str, timeline: Timeline) -> None:
        super().__init__(daemon=True, name=f"watch {host.name}")
        self._host, self._token, self._timeline = host, token, timeline
        self._done = threading.Event()
        self.answers: list[Answer] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._done.is_set():
                answer = self._host.send("GET", "/hello/", token=self._token)
                before = self.answers[-1] if self.answers else None
                self.answers.append(answer)
                if before is None or before.status != answer.status:
                    self._tell(before, answer)
                self._done.wait(_EVERY)
        except BaseException as error:  # noqa: BLE001 - told by stop()
            self.failure = error

    def _tell(self, before: Answer | None, answer: Answer) -> None:
        took = (answer.received - answer.sent) * 1000
        what = f"{shown(answer)}, in {took:,.0f} ms"
        if before is not None:
            same = sum(one.status == before.status for one in self.answers)
            ago = (answer.received - before.sent) * 1000
            what += f"; before it {same} × {before.status}, the last sent {ago:,.0f} ms earlier"  # noqa: RUF001
        self._timeline.say(answer.received, self._host.title, what)

    def wait_for(self, status: int) -> Answer:
        """Wait for an answer with that status to what is asked from now on."""
        now = time.monotonic()

        def found() -> Answer | None:
            if self.failure is not None:
                raise self.failure
            return next((a for a in self.answers if a.sent >= now and a.status == status), None)

        answer: Answer = servers.wait_until(found, timeout=PATIENCE)
        return answer

    def stop(self) -> None:
        self._done.set()
        self.join(PATIENCE)
        if self.failure is not None:
            raise self.failure


def shown(answer: Answer) -> str:
    """The status and the code of an answer."""
    return f"{answer.status} {answer.body.get('code', '')}".strip()


def play(first: Host, second: Host, timeline: Timeline) -> None:
    """Act it out.

    Raises:
        NotAsPromisedError: a host accepted what it must not, or did not recover.
    """
    person = {"username": "Ada", "email": "ada@example.org", "password": PASSWORD}
    expect(first.send("POST", "/auth/register/", body=person), 201)
    login = first.send("POST", "/auth/login/", body={"username": "Ada", "password": PASSWORD})
    expect(login, 200)
    token = str(login.body["access_token"])
    timeline.say(login.received, "host A", "login, one more session: 200")
    watchers = [Watcher(host, token, timeline) for host in (first, second)]
    for watcher in watchers:
        watcher.start()
        watcher.wait_for(200)
    on_first, on_second = watchers
    time.sleep(1.0)

    second.network.cut()
    timeline.say(time.monotonic(), "link B", "cut")
    time.sleep(1.0)
    logout = first.send("POST", "/auth/logout/", token=token)
    expect(logout, 204)
    timeline.say(logout.received, "host A", "logout: 204, acknowledged")
    timeline.begin(logout.received)
    on_first.wait_for(401)
    on_second.wait_for(503)
    time.sleep(max(0.0, logout.received + 2 * MAX_STALENESS - time.monotonic()))

    second.network.heal()
    healed = time.monotonic()
    timeline.say(healed, "link B", "healed")
    on_second.wait_for(401)
    login = first.send("POST", "/auth/login/", body={"username": "Ada", "password": PASSWORD})
    expect(login, 200)
    timeline.say(login.received, "host A", "login: 200")
    fresh = str(login.body["access_token"])
    servers.wait_until(
        lambda: second.send("GET", "/hello/", token=fresh).status == 200, timeout=PATIENCE
    )
    timeline.say(time.monotonic(), "host B", "200 with that token")
    time.sleep(2.0)
    for watcher in watchers:
        watcher.stop()

    late = [
        answer.sent - logout.received
        for watcher, allowed in ((on_first, 0.0), (on_second, MAX_STALENESS))
        for answer in watcher.answers
        if answer.status == 200 and answer.sent > logout.received + allowed
    ]
    if late:
        raise NotAsPromisedError(f"accepted {max(late):.3f} s after the revocation")
    strange = {a.status for w in watchers for a in w.answers} - {200, 401, 503}
    if strange:
        raise NotAsPromisedError(f"answers of {strange}")
    last = max(a.sent for a in on_second.answers if a.status == 200) - logout.received
    timeline.title(
        "Host A accepted nothing that was sent after 0 ms, "
        f"host B nothing that was sent after {last * 1000:,.0f} ms."
    )
    timeline.title(f"MAX_STALENESS is {MAX_STALENESS * 1000:,.0f} ms.")


def expect(answer: Answer, status: int) -> None:
    """Raise NotAsPromisedError unless the answer has this status."""
    if answer.status != status:
        raise NotAsPromisedError(f"expected {status}, got {shown(answer)}")


@contextlib.contextmanager
def hosts(
    network: Callable[[int], Any], *, valkey: bool, host: Callable[..., Any] = Host
) -> Iterator[tuple[Any, Any]]:
    """Start the servers and both hosts, and end all of it whatever happens.

    Args:
        network: makes the network of the host with this number.
        valkey: whether the log is on Valkey, instead of with the rows on PostgreSQL.
        host: makes a host of its name, network, database and LOCATION.
    """
    with contextlib.ExitStack() as stack:
        networks = [stack.enter_context(network(number)) for number in range(2)]
        addresses = [network.near for network in networks if isinstance(network, Cable)]
        database = stack.enter_context(Database(addresses))
        store = stack.enter_context(Store(addresses)) if valkey else None
        made = []
        for name, its in zip("AB", networks, strict=True):
            location = "database:default"
            if store is not None:
                location = "redis://{}:{}/0".format(*its.address(store))
            made.append(host(name, its, database, location))
            stack.callback(made[-1].close)
        made[0].migrate()
        for one in made:
            one.start()
        yield made[0], made[1]


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_hosts", description=__doc__)
    parser.add_argument("--proxied", action="store_true", help="proxies, though there is root")
    parser.add_argument("--valkey", action="store_true", help="the log on Valkey")
    parser.add_argument("--docs", action="store_true", help="rewrite the timeline in docs/")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    reason = "as asked for" if options.proxied else no_namespaces()
    timeline = Timeline()
    links = "one cable each" if reason is None else f"proxies ({reason})"
    log = "Valkey" if options.valkey else "PostgreSQL"
    timeline.title(
        f"Django {version('Django')}, Python {platform.python_version()}; rows on PostgreSQL, "
        f"the log on {log}; {links}"
    )
    try:
        network = Cable if reason is None else lambda number: Proxied()
        with hosts(network, valkey=options.valkey) as (first, second):
            play(first, second, timeline)
    except NotAsPromisedError as failure:
        print(f"\nNot as promised: {failure}", file=sys.stderr)
        return 1
    if options.docs:
        name = "valkey" if options.valkey else "postgresql"
        lines = "\n".join(f"   {line}".rstrip() for line in timeline.text.splitlines())
        put_between_markers(_PAGE, f"timeline {name}", f".. code-block:: text\n\n{lines}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
