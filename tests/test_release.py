"""The package as it is released, installed where nothing else is, and the tutorial on top of it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import accesspass
from tests.documents import Block, blocks, commands
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    # setuptools builds in the checkout, and the workers of pytest-xdist share that.
    with (tmp_path_factory.getbasetemp().parent / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
            capture_output=True,
            text=True,
        )
    assert made.returncode == 0, made.stdout + made.stderr
    (found,) = folder.glob("*.whl")
    return found


class Terminal:
    """A shell that stays, so that ``cd`` and an activated environment do too."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """Return what a command printed; an AssertionError if it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho; echo END $?\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.startswith("END "):
                assert line == "END 0\n", f"{command}\n{''.join(lines)}"
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"{command}: the shell has ended\n{''.join(lines)}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("kill $(jobs -p); wait\n")
        self.process.stdin.close()
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def newest_python() -> Path | None:
    """Return the folder of the newest Python that is whole, and later than the one that runs this.

    It may have a later Django, whose startproject makes other settings.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(19, sys.version_info.minor, -1):
        on_path = shutil.which(f"python3.{minor}")
        found = [Path(on_path)] if on_path else []
        for python in [*found, *sorted(pyenv.glob(f"3.{minor}.*/bin/python3.{minor}"))]:
            asked = subprocess.run(
                [python, "-c", "import ensurepip, sqlite3, ssl, sys; print(sys.executable)"],
                capture_output=True,
                text=True,
            )
            if asked.returncode == 0:
                return Path(asked.stdout.strip()).resolve().parent
    return None


@pytest.fixture(params=["this", "newest"])
def terminal(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> Iterator[Terminal]:
    if request.param == "this":
        python = Path(sys.executable).resolve().parent
    elif (newest := newest_python()) is None:
        pytest.skip("no later Python was found")
    else:
        python = newest
    constraint = tmp_path / "constraint.txt"
    constraint.write_text(f"django-accesspass=={accesspass.__version__}\n")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        # Until it is released, `pip install django-accesspass` finds it here.
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_CONSTRAINT": str(constraint),
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    work = tmp_path / "work"
    work.mkdir()
    made = Terminal(work, environment)
    yield made
    made.close()


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "the server does not listen"
        time.sleep(0.1)


def alike(shown: Any, got: Any) -> bool:
    """Whether an answer is what the page shows; `…` stands for anything, seconds may pass."""
    if isinstance(shown, dict):
        return (
            isinstance(got, dict)
            and list(shown) == list(got)
            and all(alike(value, got[key]) for key, value in shown.items())
        )
    if isinstance(shown, str) and shown.endswith("…"):
        return isinstance(got, str) and got.startswith(shown[:-1])
    if shown == 300 and isinstance(got, int):
        return 240 < got <= 300
    return bool(shown == got)


def write(block: Block, folder: Path) -> None:
    assert block.caption is not None
    name = block.caption.removeprefix("at the end of ")
    with (folder / name).open("a" if name != block.caption else "w") as file:
        file.write("\n" + block.text)


class Reader:
    """Somebody who does what a tutorial says, and compares each answer with the one it shows.

    `ports` are those that the servers really have, by those of the page.
    """

    def __init__(self, terminal: Terminal, project: Path) -> None:
        self.terminal = terminal
        self.project = project
        self.ports = {"8000": free_port(), "8001": free_port()}
        self.tokens: dict[str, str] = {}
        self.printed = ""
        self.compared = 0

    def follow(self, page: str) -> None:
        for block in blocks(ROOT / page):
            if block.language == "python" and block.caption is not None:
                write(block, self.project)
            elif block.language == "console":
                for command in commands(block.text):
                    self.type(command)
                    self.keep_tokens()
            elif block.language == "json":
                got = json.loads(self.printed)
                assert alike(json.loads(block.text), got), f"line {block.line}: {self.printed}"
                self.compared += 1

    def type(self, command: str) -> None:
        if " runserver" in command:
            begin, _, port = command.partition(" runserver")
            really = self.ports[port.strip() or "8000"]
            self.terminal.run(
                f"{begin} runserver --noreload 127.0.0.1:{really} >{really}.log 2>&1 &"
            )
            wait_for(really)
            return
        command = re.sub(r"(ap_[ar]t)_…", lambda found: self.tokens[found[1]], command)
        command = re.sub(r":(800[01])/", lambda found: f":{self.ports[found[1]]}/", command)
        command = re.sub(r"^curl ", "curl --silent --show-error ", command)
        self.printed = self.terminal.run(command)

    def keep_tokens(self) -> None:
        for token in re.findall(r"ap_[ar]t_[\w-]{76}", self.printed):
            self.tokens[token[:5]] = token


@pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorials call curl")
def test_the_tutorials_are_literally_right(terminal: Terminal, tmp_path: Path) -> None:
    reader = Reader(terminal, tmp_path / "work" / "shop")
    reader.follow("docs/tutorial/quickstart.rst")
    reader.follow("docs/tutorial/two-nodes.rst")
    assert reader.compared == 9
    assert "sqlite" in reader.printed  # accesspass_status names the engine
    assert "site-packages" in terminal.run("python -c 'import accesspass as x; print(x.__file__)'")
