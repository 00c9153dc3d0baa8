"""The demonstration of two hosts keeps what its page in the documentation shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.two_hosts import no_namespaces
from tests.documents import shown
from tests.servers import require_postgresql, require_valkey

ROOT = Path(__file__).resolve().parent.parent
EVENT = re.compile(r"^ *(-?[\d,]+) ms  (host \w|link \w) +(.*)$", re.MULTILINE)


def events(text: str) -> list[tuple[str, str]]:
    """Who did what, in its order, without the numbers that differ each time."""
    found = EVENT.findall(text)
    return [(who, re.split(r", in |; ", what)[0]) for _, who, what in found]


@pytest.mark.pipeline
@pytest.mark.parametrize("link", ["cable", "proxy"])
@pytest.mark.parametrize("log", ["postgresql", "valkey"])
def test_a_host_that_is_cut_off_stops_accepting_in_time_and_heals(log: str, link: str) -> None:
    require_postgresql()
    if log == "valkey":
        require_valkey()
    if link == "cable" and (reason := no_namespaces()) is not None:
        pytest.skip(reason)
    options = [*(["--valkey"] if log == "valkey" else []), *(["--proxied"] * (link == "proxy"))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.two_hosts", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = events(done.stdout)
    ends = seen.index(("host A", "logout: 204, acknowledged"))
    heals = seen.index(("link B", "healed"))
    assert ("link B", "cut") in seen[:ends]
    assert ("host A", "401 invalid_token") in seen[ends:heals]
    assert ("host B", "503 unavailable") in seen[ends:heals]
    assert ("host B", "401 invalid_token") in seen[heals:]
    assert seen[-1] == ("host B", "200 with that token")


def test_the_page_shows_a_whole_timeline_for_each_log() -> None:
    postgresql, valkey = shown("docs/explanation/two-hosts.rst", "text")
    for log, text in (("PostgreSQL", postgresql), ("Valkey", valkey)):
        assert f"the log on {log};" in text
        seen = events(text)
        assert ("link B", "cut") in seen
        assert seen[-1] == ("host B", "200 with that token")
