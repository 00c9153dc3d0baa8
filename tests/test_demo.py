"""The main job, end to end: the demo runs in processes of its own, as ``make demo`` runs it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = [sys.executable, str(ROOT / "example_project" / "demo.py")]
ROW = re.compile(
    r" *(?P<request>(GET|POST) \S+.*?) +(?P<status>\d{3}) (?P<answer>.*?) +(?P<worker>\d+) +"
    r"(?P<ms>\d+\.\d\d) ms +(?P<queries>\d+)"
)
FULL_TOKEN = re.compile(r"ap_(at|rt)_[\w-]{20,}")

pytestmark = pytest.mark.fault


def rows(text: str) -> list[re.Match[str]]:
    """Return the lines of the table that stand for a request."""
    return [found for line in text.splitlines() if (found := ROW.fullmatch(line))]


def assert_gone(workers: set[int]) -> None:
    """Fail unless every one of these processes has ended."""
    deadline = time.monotonic() + 10
    while alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)


@pytest.mark.pipeline
def test_the_demo_keeps_every_promise_and_stops_all_it_started() -> None:
    done = subprocess.run([*DEMO, "--exit"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as promised." in done.stdout
    assert not FULL_TOKEN.search(done.stdout)

    table = rows(done.stdout)
    checks = [row for row in table if row["request"].startswith("GET")]
    good = [row for row in checks if row["status"] == "200" and "check/" in row["request"]]
    refused = [row for row in checks if row["status"] == "401"]
    assert [row["queries"] for row in checks] == ["0"] * len(checks)
    # Before and after the refresh, and after a worker was killed: three workers each time.
    assert [len({row["worker"] for row in good[i : i + 3]}) for i in (0, 3, 6)] == [3, 3, 3]
    assert len(good) == 9
    # The forged token, and the one that was logged out, on each worker.
    assert len(refused) == 4
    assert len({row["worker"] for row in refused[1:]}) == 3

    killed = re.search(r"kill -9 worker (\d+)", done.stdout)
    assert killed is not None
    assert killed[1] in {row["worker"] for row in good[:6]}
    assert killed[1] not in {row["worker"] for row in good[6:]}
    assert_gone({int(row["worker"]) for row in table})


@pytest.mark.pipeline
def test_the_demo_fails_where_the_workers_do_not_agree(tmp_path: Path) -> None:
    """A cache of each worker's own, under our alias, must not get past the demo."""
    (tmp_path / "unshared.py").write_text(
        "from example_project.settings import *\n"
        "CACHES = {**CACHES, 'accesspass': CACHES['default']}\n"
    )
    done = subprocess.run(
        [*DEMO, "--exit", "--settings=unshared"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Not as promised: expected 0 SQL queries, counted " in done.stderr
    assert "All as promised." not in done.stdout
    assert_gone({int(row["worker"]) for row in rows(done.stdout)})


@pytest.mark.pipeline
def test_the_demo_ends_in_silence_where_nobody_reads_any_more() -> None:
    # In an alphabet without the ellipsis of the shortened tokens.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        text = ""
        for line in demo.stdout:
            text += line
            if "GET /auth/check/" in line:
                break
        demo.stdout.close()
        assert demo.stderr.read() == ""
    assert demo.returncode == 128 + signal.SIGPIPE
    assert "ap_at_?" in text
    assert_gone({int(row["worker"]) for row in rows(text)})


@pytest.mark.pipeline
def test_the_demo_keeps_its_folder_and_breaks_no_promise_there_again(tmp_path: Path) -> None:
    environment = {**os.environ, "ACCESSPASS_DEMO_DIR": str(tmp_path / "kept")}
    first, second = (
        subprocess.run(
            [*DEMO, "--exit"], capture_output=True, text=True, timeout=120, env=environment
        )
        for _ in range(2)
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert (tmp_path / "kept" / "db.sqlite3").exists()
    assert second.returncode == 1
    assert second.stderr.strip().startswith("An earlier demo has left its user there")


def test_the_demo_says_why_a_server_does_not_start() -> None:
    done = subprocess.run(
        [*DEMO, "--exit", "--settings=no_such_module"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stderr


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """What a shell runs in the background ignores SIGINT, and so does all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.pipeline
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_stays_until_it_is_told_to_stop(number: signal.Signals) -> None:
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        text = ""
        try:
            for line in demo.stdout:
                text += line
                if "stays at" in line:
                    break
            address = re.search(r"http://([\d.]+):(\d+)/", line)
            assert address is not None, text
            connection = http.client.HTTPConnection(address[1], int(address[2]), timeout=30)
            connection.request("GET", "/auth/check/")
            answer = connection.getresponse()
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert set(json.loads(answer.read())) == {"detail", "code"}
            connection.close()
            assert demo.poll() is None
        finally:
            demo.send_signal(number)
            _, errors = demo.communicate(timeout=30)
    assert demo.returncode == (0 if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert "Traceback" not in errors
    assert_gone({int(row["worker"]) for row in rows(text)})
