"""kill -9 of a process between its commit and its publication: what it changed arrives."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.servers import require_postgresql, shared_postgresql, wait_until

pytestmark = pytest.mark.fault


class Node:
    """A process that has the project's database and a replica of its own."""

    def __init__(self, *where: str) -> None:
        script = Path(__file__).with_name("sessions_node.py")
        self.process = subprocess.Popen(
            [sys.executable, script, *where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, what: str, **more: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else "died"

    def comes_to_see(self, token: str, what: str) -> None:
        wait_until(lambda: self.do("use", token=token) == what)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=["sqlite", "postgresql"])
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Node]]:
    if request.param == "sqlite":
        where = (str(tmp_path / "project.sqlite3"), f"sqlite:///{tmp_path}/accesspass.cache")
    else:
        require_postgresql()
        url = shared_postgresql().create_database(f"kills_{secrets.token_hex(4)}")
        where = (url, "database:default")
    with ExitStack() as stack:

        def make() -> Node:
            node = Node(*where)
            stack.callback(node.close)
            return node

        yield make


@pytest.mark.pipeline
def test_what_was_committed_before_a_kill_arrives(launch: Callable[[], Node]) -> None:
    other = launch()
    other.do("migrate")
    for change, after in (
        ("take the claims", "nobody"),
        ("end all", "refused"),
        ("delete the user", "refused"),
    ):
        dying = launch()
        token = dying.do("log in")
        other.comes_to_see(token, "admin")
        dying.do("die before the next publication")
        assert dying.do(change) == "died"
        assert dying.process.wait(10) == -signal.SIGKILL
        # A node that has not heard of it goes on: the promise counts from the acknowledgement.
        assert other.do("use", token=token) == "admin"
        # One that joins looks for what is pending before it answers.
        joining = launch()
        assert joining.do("use", token=token) == after
        # Any node publishes it, for all.
        assert joining.do("tidy") >= 1
        other.comes_to_see(token, after)
        assert other.do("tidy") == 0
