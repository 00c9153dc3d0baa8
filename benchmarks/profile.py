"""``python -m benchmarks.profile``: where the microseconds of an authorised request go.

Once by adding one step after the other to a request that is not authenticated, and once by py-spy,
which looks at a process that answers one request after the other, with the token of one session on
PostgreSQL, through Django's WSGI handler. It stops the process for each look, so it says which
share of the time is spent where; how long a request takes is measured without it.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.project import open_project
from benchmarks.report import facts, markdown, put_between_markers, rst
from benchmarks.timing import Call, Result, interleave

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = _ROOT / "docs" / "explanation" / "profile.rst"
_PICTURE = _ROOT / "docs" / "images" / "profile-request.svg"
_PACKAGES = ("Django", "djangorestframework", "django-accesspass", "py-spy")
_LOOKS = 1_000  # a second
_REQUESTS = 20_000  # of each rung


class Place(NamedTuple):
    """A function whose time is shown, with all that it calls; ``within`` another of them."""

    title: str
    function: str
    file: str
    within: int = 0


_PLACES = (
    Place("the whole request", "__call__", "core/handlers/wsgi.py"),
    Place("Django REST framework's view", "dispatch", "rest_framework/views.py", 1),
    Place("TokenAuthentication.authenticate", "authenticate", "accesspass/bearer.py", 2),
    Place("the token out of the header", "sent_token", "accesspass/bearer.py", 3),
    Place("what the process made of this token before", "find", "accesspass/recent.py", 3),
    Place("whether the replica still holds it", "still_holds", "cache/follower.py", 4),
    Place("a session record of its own", "_copy", "accesspass/recent.py", 4),
)


def main() -> int:
    """Parse the command line, measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long py-spy looks")
    parser.add_argument("--docs", action="store_true", help="rewrite the page and picture in docs/")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    with tempfile.TemporaryDirectory(prefix="accesspass-profile-") as folder:
        picture, stacks = Path(folder, "picture.svg"), Path(folder, "stacks")
        with open_project() as project:
            steps = measure(project.user)
            ladder = climb(project.user)
        with serving() as pid:
            look(pid, stacks, "raw", options.seconds)
            if options.docs:
                look(pid, picture, "flamegraph", options.seconds)
        whole = steps["a whole request", "remembered"].median
        tables = [
            ("Where the time goes", shares(stacks.read_text(encoding="utf-8"), whole)),
            ("What remembering brought", rows(steps)),
            ("What each step adds", ladder),
        ]
        about = ", ".join(f"{name} {value}" for name, value in facts(_PACKAGES).items()) + "."
        print(about)
        for title, table in tables:
            print(f"\n## {title}\n\n{markdown(table)}")
        if options.docs:
            _PICTURE.write_bytes(picture.read_bytes())
            for name, (_, table) in zip(("shares", "steps", "ladder"), tables, strict=True):
                put_between_markers(_PAGE, f"profile-{name}", rst(table))
            put_between_markers(_PAGE, "profile-facts", about)
    return 0


def measure(user: Any) -> dict[tuple[str, str], Result]:
    """Time a request, and what is ours of it, with and without what is remembered of a token."""
    from accesspass import recent
    from benchmarks.variants import BASE, Server, named

    server = Server()
    base, ours = named(BASE, "AccessPass, PostgreSQL")
    logins = {variant.name: variant.log_in(user) for variant in (base, ours)}
    authenticate = ours.authenticate(logins[ours.name])

    def anew(run: Callable[[], object]) -> Callable[[], object]:
        def forgetful() -> None:
            recent.forget_all()
            run()

        return forgetful

    def request(variant: Any) -> Callable[[], object]:
        return lambda: server.send(variant, logins[variant.name])

    runs = {
        ("authenticate()", "remembered"): authenticate,
        ("authenticate()", "anew"): anew(authenticate),
        ("a whole request", "remembered"): request(ours),
        ("a whole request", "anew"): anew(request(ours)),
        ("a whole request", "no authentication"): request(base),
    }
    calls = {" / ".join(name): Call(run, ours.select) for name, run in runs.items()}
    samples = interleave(calls, rounds=40, batch_seconds=0.05)
    return {name: Result.of(samples[" / ".join(name)]) for name in runs}


def climb(user: Any) -> list[dict[str, str]]:
    """Return what each step of the authentication adds to a request, in that request.

    Each rung is an authenticator that does one thing more than the one before and then gives the
    same user as the first. One request of each is sent in turn, in a new order each time, so that
    each finds the processor's caches as a request of somebody else leaves them.
    """
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.request import Request

    from accesspass import recent
    from accesspass.bearer import sent_token
    from benchmarks.variants import BASE, Server, Variant, add_view, named

    base, ours = named(BASE, "AccessPass, PostgreSQL")
    login, server = ours.log_in(user), Server()
    recent.forget_all()
    for _ in range(3):
        server.send(ours, login)
    (known,) = recent._young.values()
    same = ours.authenticate(login)()

    def nothing(request: Request) -> Any:
        return same

    def take_token(request: Request) -> Any:
        sent_token(request._request)
        return same

    def look_up(request: Request) -> Any:
        digest = hashlib.sha256(str(sent_token(request._request)).encode()).digest()
        assert recent._young[digest] is known
        return same

    def ask_replica(request: Request) -> Any:
        digest = hashlib.sha256(str(sent_token(request._request)).encode()).digest()
        found = recent._young[digest]
        assert found.still_holds(found.snapshot, found.until)
        return same

    def make_user(request: Request) -> Any:
        return recent.find(sent_token(request._request))

    def rung(title: str, step: Callable[[Request], Any]) -> Variant:
        methods = {"authenticate": lambda self, request: step(request)}
        made = type("Rung", (BaseAuthentication,), methods)
        variant = Variant(title, [made], lambda user: login)
        add_view(variant)
        return variant

    rungs = [
        base,
        rung("a user who is always the same", nothing),
        rung("the token out of the header", take_token),
        rung("its SHA-256, and what is remembered under that", look_up),
        rung("whether the replica still holds it", ask_replica),
        rung("a user and a session of its own", make_user),
        ours._replace(name="all of TokenAuthentication"),
    ]
    add_view(rungs[-1])
    times: dict[str, list[float]] = {variant.name: [] for variant in rungs}
    order, shuffle = list(rungs), random.Random(0).shuffle
    ours.select()
    for _ in range(_REQUESTS):
        shuffle(order)
        for variant in order:
            began = time.perf_counter()
            server.send(variant, login)
            times[variant.name].append((time.perf_counter() - began) * 1e6)
    medians = [statistics.median(found) for found in times.values()]
    return [
        {
            "": "no authentication" if variant is base else f"+ {variant.name}",
            "a request": f"{median:.1f} µs",
            "more": "" if variant is base else f"{median - before:.1f} µs",
            "against no authentication": f"{median / medians[0]:.3f} ×",  # noqa: RUF001
        }
        for variant, before, median in zip(rungs, [0.0, *medians], medians, strict=False)
    ]


def rows(steps: dict[tuple[str, str], Result]) -> list[dict[str, str]]:
    """Return what was measured with and without, side by side."""
    shown = []
    for what in ("authenticate()", "a whole request"):
        after, before = steps[what, "remembered"].median, steps[what, "anew"].median
        shown.append({"": what, "anew": f"{before:.1f} µs", "remembered": f"{after:.1f} µs"})
    base = steps["a whole request", "no authentication"].median
    times = {way: steps["a whole request", way].median / base for way in ("anew", "remembered")}
    ratios = {way: f"{time:.2f} ×" for way, time in times.items()}  # noqa: RUF001
    return [*shown, {"": "the same against no authentication", **ratios}]


def serve() -> int:
    """Answer requests until the parent closes stdin's other end."""
    import threading

    with open_project() as project:
        from benchmarks.variants import Server, named

        server = Server()
        (ours,) = named("AccessPass, PostgreSQL")
        login = ours.log_in(project.user)
        ours.select()
        ended = threading.Event()

        def wait() -> None:
            sys.stdin.read()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        for _ in range(1_000):
            server.send(ours, login)
        print("ready", flush=True)
        while not ended.is_set():
            for _ in range(100):
                server.send(ours, login)
    return 0


@contextmanager
def serving() -> Iterator[int]:
    """Have a process that answers requests; yields its id."""
    command = [sys.executable, "-m", "benchmarks.profile", "--serve"]
    with subprocess.Popen(
        command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            sys.exit("the process that was to be looked at has ended")
        try:
            yield process.pid
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def look(pid: int, into: Path, format: str, seconds: float) -> None:
    """Have py-spy look at a process. It needs the right to: root, or a ptrace_scope of 0."""
    time.sleep(0.5)
    # Its words become the title of the picture, so no path is among them.
    command = ["py-spy", "record", "--pid", str(pid), "--function", "--rate", str(_LOOKS)]
    command += ["--format", format, "--output", into.name, "--duration", str(round(seconds))]
    executable = Path(sys.executable).parent / "py-spy"
    done = subprocess.run(
        command, executable=executable, cwd=into.parent, capture_output=True, text=True
    )
    if done.returncode or not into.exists():
        sys.exit(f"py-spy: {done.stdout}{done.stderr}")


def shares(stacks: str, whole: float) -> list[dict[str, str]]:
    """Return the time of each place out of lines ``Class.function (file:line);… count``.

    Args:
        whole: what the first place takes, in microseconds.
    """
    seen: Counter[Place] = Counter()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        places = {
            place
            for frame in frames.split(";")
            for place in _PLACES
            if re.search(rf"\b{place.function} \(.*{place.file}(:\d+)?\)$", frame)
        }
        seen.update(dict.fromkeys(places, int(count)))
    of = seen[_PLACES[0]]
    if not of:
        sys.exit("py-spy saw no request")
    return [
        {
            "with all that it calls": "· " * place.within + place.title,
            "share": f"{seen[place] / of:.1%}",
            "µs": f"{seen[place] / of * whole:.1f}",
        }
        for place in _PLACES
    ]


if __name__ == "__main__":
    sys.exit(main())
