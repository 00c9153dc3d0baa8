"""``python -m benchmarks.demo_cluster``: two nodes, and a key that cuts one of them off.

Two servers of the example project stand behind a small balancer, with its page, and share a
PostgreSQL of their own; with ``--engine valkey`` the log is on a Valkey of its own instead. Both
are asked all the time whether one access token is good, and each change of the answer is printed.
Node B reaches the engine through a proxy, which ends its connections and refuses new ones while
the link is cut. Where the log is on Valkey, the database stays in reach.

Keys cut the link, heal it, log in and revoke. ``--exit`` plays all of it and ends. What must never
happen ends the program with status 1, also after keys: a token that is accepted on a request sent
later than MAX_STALENESS seconds after its revocation was acknowledged.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException
from importlib.metadata import version

from benchmarks import two_hosts
from benchmarks.two_hosts import MAX_STALENESS, PASSWORD, NotAsPromisedError
from tests import servers

_MORE_SETTINGS = """
# A token that is watched for longer does not end by itself, and keys may be pressed in a hurry.
ACCESSPASS["ACCESS_TOKEN_LIFETIME"] = 86400
ACCESSPASS["THROTTLES"] = {"login": None}
"""
_KEYS = {"c": "cut node B's link", "h": "heal it", "l": "log in on node A"}
_KEYS |= {"r": "revoke everywhere on node A", "q": "quit"}


class Balancer(servers.Proxy):
    """Takes each connection to the next node, which ends it after one answer."""

    def __init__(self) -> None:
        self.folder = servers.make_folder()
        self.ports: list[int] = []
        self._turns = itertools.count()
        super().__init__(0)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def target(self) -> int:
        return self.ports[next(self._turns) % len(self.ports)]

    @target.setter
    def target(self, port: int) -> None:
        """Nothing: there are the nodes."""


class EngineLink(two_hosts.Proxied):
    """A proxy in front of the engine alone. Cut, it says so at once, as a cable does not."""

    def __init__(self, engine: type[servers.Server]) -> None:
        super().__init__()
        self._engine = engine

    def address(self, server: servers.Server) -> tuple[str, int]:
        if isinstance(server, self._engine):
            return super().address(server)
        return server.host, server.port

    def cut(self) -> None:
        for proxy in self._proxies.values():
            proxy.drop(refuse=True)


class Node(two_hosts.Host):
    """A server that is reached by TCP too, for the balancer."""

    kind = "node"

    def __init__(
        self,
        name: str,
        network: two_hosts.Network,
        database: two_hosts.Database,
        location: str,
        *,
        balancer: Balancer,
    ) -> None:
        super().__init__(name, network, database, location)
        with (self.folder / "host_settings.py").open("a", encoding="utf-8") as settings:
            settings.write(_MORE_SETTINGS)
        self.port = servers.free_port()
        balancer.ports.append(self.port)
        self.environment |= {
            "ACCESSPASS_BASE_URL": balancer.url,
            "ACCESSPASS_DEMO_DIR": str(balancer.folder),  # one outbox
            "DJANGO_DEBUG": "1",  # the page shows it
        }

    def command(self) -> list[str]:
        # Threads, since browsers open connections in advance and leave them idle.
        options = ["--bind", f"{self.host}:{self.port}", "--threads", "8", "--keep-alive", "0"]
        *command, application = super().command()
        return [*command, *options, application]


class Show:
    """Both nodes, asked all the time with the token of the last login."""

    def __init__(self, first: Node, second: Node, timeline: two_hosts.Timeline) -> None:
        self.first, self.second, self.timeline = first, second, timeline
        self.watchers: list[two_hosts.Watcher] = []
        self._token = ""
        self._revoked: float | None = None  # when that was acknowledged

    def register(self) -> None:
        """Make the one user."""
        person = {"username": "Ada", "email": "ada@example.org", "password": PASSWORD}
        two_hosts.expect(self.first.send("POST", "/auth/register/", body=person), 201)
        self.timeline.begin(time.monotonic())

    def log_in(self) -> None:
        """Log in on A, and ask both about the new token from now on."""
        self.stop()
        person = {"username": "Ada", "password": PASSWORD}
        answer = self.first.send("POST", "/auth/login/", body=person)
        two_hosts.expect(answer, 200)
        self._say(self.first.title, "login: 200", answer.received)
        self._token = answer.body["access_token"]
        self.watchers = [
            two_hosts.Watcher(node, self._token, self.timeline)
            for node in (self.first, self.second)
        ]
        for watcher in self.watchers:
            watcher.start()

    def cut(self) -> float:
        """Cut B's link; returns when."""
        self.second.network.cut()
        return self._say("link B", "cut")

    def heal(self) -> float:
        """Heal B's link; returns when."""
        # Taken before: B may profit at once.
        now = self._say("link B", "healed")
        self.second.network.heal()
        return now

    def revoke(self) -> float:
        """End all sessions of the user, on A; returns when that was acknowledged.

        Where they have been ended, it logs in first.
        """
        if self._revoked is not None:
            self.log_in()
        answer = self.first.send("POST", "/auth/logout/all/", token=self._token)
        two_hosts.expect(answer, 204)
        self._revoked = answer.received
        return self._say(self.first.title, "revoke everywhere: 204", answer.received)

    def stop(self) -> None:
        """Ask no more, and look at what was answered.

        Raises:
            NotAsPromisedError: a node accepted what it must not.
        """
        watchers, self.watchers = self.watchers, []
        revoked, self._revoked = self._revoked, None
        for watcher in watchers:
            watcher.stop()
        for watcher, allowed in zip(watchers, (0.0, MAX_STALENESS), strict=False):
            statuses = {answer.status for answer in watcher.answers}
            if strange := statuses - {200, 401, 503}:
                raise NotAsPromisedError(f"answers of {strange}")
            late = [
                answer.sent - revoked
                for answer in watcher.answers
                if revoked is not None and answer.status == 200
            ]
            if max(late, default=0.0) > allowed:
                raise NotAsPromisedError(f"accepted {max(late):.3f} s after the revocation")

    def _say(self, who: str, what: str, moment: float | None = None) -> float:
        moment = time.monotonic() if moment is None else moment
        self.timeline.say(moment, who, what)
        return moment


def play(show: Show) -> None:
    """Act it out.

    Raises:
        NotAsPromisedError: a node accepted what it must not, or did not recover.
    """
    show.register()
    show.log_in()
    on_first, on_second = show.watchers
    for watcher in show.watchers:
        watcher.wait_for(200)
    show.cut()
    on_second.wait_for(200)
    revoked = show.revoke()
    on_first.wait_for(401)
    on_second.wait_for(200)
    answer = servers.wait_until(
        lambda: on_second.failure or next(iter(_since(on_second, revoked, accepted=False)), None),
        timeout=two_hosts.PATIENCE,
    )
    if isinstance(answer, BaseException):
        raise answer
    time.sleep(1.0)  # that it goes on refusing can be seen
    healed = show.heal()
    on_second.wait_for(401)
    show.stop()
    # The database has answered. Node B follows the log again within a second, its longest pause
    # between two tries; what it learnt from the database before may be as old as MAX_STALENESS.
    time.sleep(1.5)

    last = max(answer.sent for answer in on_second.answers if answer.status == 200) - revoked
    lines = [
        f"Node A accepted nothing that was sent after the revocation. Node B, cut off, accepted "
        f"from its memory until {_ms(last)} after it",
        f"(MAX_STALENESS is {_ms(MAX_STALENESS)}), then answered {two_hosts.shown(answer)}.",
    ]
    if answer.status == 503:
        refusal = next(a for a in _since(on_second, healed, accepted=False) if a.status == 401)
        lines.append(f"Healed, it refused {_ms(refusal.received - healed)} later.")
    else:
        lines.append("It asked the database, which was in reach.")

    show.log_in()
    _, on_second = show.watchers
    for watcher in show.watchers:
        watcher.wait_for(200)
    revoked = show.revoke()
    on_second.wait_for(401)
    show.stop()
    refusal = _since(on_second, revoked, accepted=False)[0]
    lines.append(
        f"With its link whole, node B refused {_ms(refusal.received - revoked)} after a revocation."
    )
    for line in lines:
        show.timeline.title(line)
    show.timeline.title("All as promised.")


def _since(watcher: two_hosts.Watcher, moment: float, *, accepted: bool) -> list[two_hosts.Answer]:
    """What was answered since then, of one kind."""
    return [
        answer
        for answer in list(watcher.answers)
        if answer.received >= moment and (answer.status == 200) is accepted
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def obey(show: Show) -> None:
    """Do what the keys say, until one of them, or the end of the input, ends it."""
    steps = {"c": show.cut, "h": show.heal, "l": show.log_in, "r": show.revoke}
    with _keys() as keys:
        print("; ".join(f"{key} {what}" for key, what in _KEYS.items()), flush=True)
        show.register()
        show.log_in()
        for key in itertools.takewhile(lambda key: key != "q", keys):
            if key in steps:
                steps[key]()
    show.stop()


@contextlib.contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """What is typed, key by key; a terminal is as it was afterwards."""
    typed = iter(lambda: os.read(sys.stdin.fileno(), 1).decode(errors="replace"), "")
    if not sys.stdin.isatty():
        yield typed
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin, termios.TCSANOW)  # what was typed already counts
        yield typed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def run(*, valkey: bool, leave: bool) -> None:
    """Start all of it, act it out or obey the keys, and end all of it."""
    timeline = two_hosts.Timeline()
    log = "Valkey" if valkey else "PostgreSQL"
    timeline.title(
        f"Django {version('Django')}, Python {platform.python_version()}; rows on PostgreSQL, "
        f"the log on {log}; two nodes"
    )
    engine = two_hosts.Store if valkey else two_hosts.Database
    with Balancer() as balancer:
        node = partial(Node, balancer=balancer)
        with two_hosts.hosts(lambda number: EngineLink(engine), valkey=valkey, host=node) as (
            first,
            second,
        ):
            show = Show(first, second, timeline)
            if leave:
                play(show)
                return
            print(f"The page of both, as ada with the password {PASSWORD!r}: {balancer.url}/")
            obey(show)


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make demo-cluster", description=__doc__)
    parser.add_argument("--engine", choices=["postgresql", "valkey"], default="postgresql")
    parser.add_argument("--exit", action="store_true", help="play the whole timeline, and end")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        run(valkey=options.engine == "valkey", leave=options.exit)
    except servers.Missing as missing:
        print(f"This needs PostgreSQL, and Valkey for its engine: {missing}", file=sys.stderr)
        return 1
    except (NotAsPromisedError, AssertionError, HTTPException, OSError) as failure:
        print(f"\nNot as promised: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
