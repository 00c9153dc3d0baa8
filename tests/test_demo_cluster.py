"""``make demo-cluster``, in processes of its own: what it claims, and that all of it ends."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.demo_cluster import Show
from benchmarks.two_hosts import MAX_STALENESS, Answer, NotAsPromisedError
from tests.servers import family, require_postgresql, require_valkey, wait_until

ROOT = Path(__file__).resolve().parent.parent
DEMO = [sys.executable, "-m", "benchmarks.demo_cluster"]
EVENT = re.compile(r"^ *([\d,]+) ms  (node \w|link \w) +(.*)$", re.MULTILINE)
SECRET = re.compile(r"ap_(at|rt)_")


def events(text: str) -> list[tuple[str, str]]:
    """Who did what, in its order, without the numbers that differ each time."""
    return [(who, re.split(r", in |; ", what)[0]) for _, who, what in EVENT.findall(text)]


def milliseconds(pattern: str, text: str) -> int:
    """The one number in a sentence of the demo."""
    found = re.search(pattern, " ".join(text.split()))
    assert found is not None, text
    return int(found[1].replace(",", ""))


@contextlib.contextmanager
def running(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The demo; everything that it has started must have ended at the end."""
    # What a shell runs in the background ignores SIGINT, and so does all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        demo = subprocess.Popen(
            [*DEMO, *options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with demo:
        try:
            yield demo
        finally:
            demo.kill()


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    """Read what it prints, up to the line with these words; returns all of that."""
    assert demo.stdout is not None
    text = ""
    for line in demo.stdout:
        text += line
        if words in line:
            return text
    raise AssertionError(f"it ended without {words!r}:\n{text}")


def press(demo: subprocess.Popen[str], key: str) -> None:
    assert demo.stdin is not None
    demo.stdin.write(key)
    demo.stdin.flush()


def assert_gone(processes: list[int]) -> None:
    """Fail unless every one of these processes has ended."""
    wait_until(lambda: not any(family(pid) for pid in processes))


@pytest.mark.pipeline
@pytest.mark.parametrize("engine", ["postgresql", "valkey"])
def test_a_node_that_is_cut_off_forgets_in_time_and_refuses_once_it_is_linked(engine: str) -> None:
    require_postgresql()
    if engine == "valkey":
        require_valkey()
    with running("--exit", "--engine", engine) as demo:
        text = read_until(demo, "link B")
        processes = family(demo.pid)
        text += demo.communicate(timeout=120)[0]
    assert demo.returncode == 0, text
    assert text.endswith("All as promised.\n")
    assert not SECRET.search(text)
    assert len(processes) > 5  # the demo, the engine, two servers with a worker each
    assert_gone(processes)

    seen = events(text)
    cut, healed = seen.index(("link B", "cut")), seen.index(("link B", "healed"))
    assert [event for event in seen[:cut] if event[1] == "200"] == [
        ("node A", "200"),
        ("node B", "200"),
    ]
    meanwhile = seen[cut:healed]
    assert ("node A", "revoke everywhere: 204") in meanwhile
    assert ("node A", "401 invalid_token") in meanwhile
    # The database is the engine, or in reach.
    decided = "503 unavailable" if engine == "postgresql" else "401 invalid_token"
    assert [what for who, what in meanwhile if who == "node B"] == [decided]
    after = [what for who, what in seen[healed:] if who == "node B"]
    assert after == [*["401 invalid_token"] * (engine == "postgresql"), "200", "401 invalid_token"]

    kept = milliseconds(r"cut off, accepted from its memory until ([\d,]+) ms", text)
    assert 0 < kept <= MAX_STALENESS * 1000
    # No assertion of speed: these are there, and say less than what MAX_STALENESS bounds.
    assert milliseconds(r"link whole, node B refused ([\d,]+) ms", text) <= MAX_STALENESS * 1000
    assert ("Healed, it refused" in text) is (engine == "postgresql")


@pytest.mark.pipeline
def test_keys_cut_heal_and_revoke_beside_the_page() -> None:
    require_postgresql()
    with running() as demo:
        text = read_until(demo, "q quit")
        address = re.search(r"http://([\d.]+):(\d+)/", text)
        assert address is not None, text
        text += read_until(demo, "node B   200")
        processes = family(demo.pid)

        workers = set()
        for path, status in [("/", 200)] * 2 + [("/auth/check/", 401)] * 2:
            connection = http.client.HTTPConnection(address[1], int(address[2]), timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", path)
                answer = connection.getresponse()
                assert answer.status == status
                workers.add(answer.headers["X-Demo-Worker"])
        assert len(workers) == 2

        press(demo, "c")
        text += read_until(demo, "cut")
        press(demo, "r")
        text += read_until(demo, "node B   503")
        press(demo, "h")
        text += read_until(demo, "node B   401")
        press(demo, "l")
        text += read_until(demo, "node B   200")
        press(demo, "q")
        text += demo.communicate(timeout=30)[0]
    assert demo.returncode == 0, text
    assert not SECRET.search(text)
    assert_gone(processes)


@pytest.mark.pipeline
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_all_that_it_started_when_it_is_told_to_stop(number: signal.Signals) -> None:
    require_postgresql()
    with running() as demo:
        text = read_until(demo, "node B   200")
        processes = family(demo.pid)
        demo.send_signal(number)
        text += demo.communicate(timeout=30)[0]
    assert demo.returncode == (0 if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert "Traceback" not in text
    assert_gone(processes)


@pytest.mark.pipeline
def test_no_promise_is_broken_where_nobody_reads_any_more() -> None:
    require_postgresql()
    with running("--exit") as demo:
        text = read_until(demo, "link B")
        processes = family(demo.pid)
        assert demo.stdout is not None
        demo.stdout.close()
        assert demo.wait(60) == 128 + signal.SIGPIPE, text
        assert_gone(processes)


def judged(on_first: list[tuple[float, int]], on_second: list[tuple[float, int]]) -> None:
    """Let the demo judge answers: when each was asked for, after the revocation, and its status."""
    nothing: Any = None
    show = Show(nothing, nothing, nothing)
    revoked = show._revoked = time.monotonic()
    show.watchers = [
        SimpleNamespace(
            answers=[
                Answer(revoked + sent, revoked + sent, status, {}) for sent, status in answers
            ],
            stop=lambda: None,
        )
        for answers in (on_first, on_second)
    ]
    show.stop()


def test_the_demo_fails_where_a_promise_is_broken() -> None:
    before = [(-1.0, 200)]
    judged([*before, (0.1, 401)], [*before, (MAX_STALENESS - 0.1, 200), (MAX_STALENESS, 503)])
    with pytest.raises(NotAsPromisedError, match=r"accepted 0\.100 s after"):
        judged([*before, (0.1, 200)], before)
    with pytest.raises(NotAsPromisedError, match="after the revocation"):
        judged(before, [*before, (MAX_STALENESS + 0.1, 200)])
    with pytest.raises(NotAsPromisedError, match="500"):
        judged(before, [(0.1, 500)])
