"""Makes mutants, runs their tests, and says what became of them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.mutants.mutant import ROOT, Mutant

__all__ = ["Verdict", "collected", "judge", "run"]

# What the tests need of the project.
_COPIED = ("accesspass", "tests", "pyproject.toml")
# More at a time, and the tests' own deadlines are missed for the wrong reason.
_AT_A_TIME = 2
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
# After so many seconds a run is interrupted: a test that hangs has found nothing out. One that
# cannot be interrupted ends by the faulthandler_timeout of pyproject.toml.
_PATIENCE = 120
# Only a claim of the test's own counts, not what the mutant broke on the way to it.
_claim = re.compile(r"AssertionError\b|assert |Failed: DID NOT RAISE").match


class Verdict(NamedTuple):
    """What became of a mutant, after how many seconds; ``said`` is the end of pytest's output."""

    word: str
    seconds: float
    said: str

    @property
    def killed(self) -> bool:
        return self.word == "killed"


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    """A copy of the project, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="accesspass-mutant-") as folder:
        tree = Path(folder)
        for name in _COPIED:
            if (ROOT / name).is_dir():
                no_bytecode = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, tree / name, ignore=no_bytecode)
            else:
                shutil.copy(ROOT / name, tree)
        yield tree


class _Ran(NamedTuple):
    """A run of pytest: exit status, its report on each test, and what it printed."""

    status: int
    cases: Sequence[ElementTree.Element]
    said: str


def _inherited() -> dict[str, str]:
    """The environment, without what an outer pytest has set, which is not for an inner one."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def _pytest(tree: Path, *arguments: str) -> _Ran:
    report = tree / "report.xml"
    with subprocess.Popen(
        [*_PYTEST, *arguments, f"--basetemp={tree / 'tmp'}", f"--junitxml={report}"],
        cwd=tree,
        env={**_inherited(), "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # so that the servers it has started end too
            said, _ = process.communicate()
    cases = ElementTree.parse(report).findall(".//testcase") if report.exists() else []  # noqa: S314
    return _Ran(process.returncode, cases, said)


def _passed(case: ElementTree.Element) -> bool:
    return len(case) == 0  # not failed, not skipped


def collected(tests: Sequence[str]) -> list[str]:
    """Return the node ids that pytest finds for those given, and selects without being asked."""
    done = subprocess.run(
        [*_PYTEST, "--collect-only", "-n", "0", *tests],
        cwd=ROOT,
        env=_inherited(),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    return [line for line in lines if line.startswith("tests/") and "::" in line]


def judge(mutant: Mutant) -> Verdict:
    """Make a mutant and run its test.

    It is killed if the test fails by a claim of its own. An error while the code is imported or a
    server started, another exception, a hang or a skip is no verdict.

    Raises:
        Moved: the code is no longer what it replaces.
    """
    began = time.monotonic()
    broken = mutant.broken()
    with _copy() as tree:
        (tree / mutant.file).write_text(broken, encoding="utf-8")
        status, cases, said = _pytest(tree, "-n", "0", mutant.test)
    word = "no verdict"
    if len(cases) == 1:
        failure = cases[0].find("failure")
        if status == 0 and _passed(cases[0]):
            word = "SURVIVED"
        elif failure is not None and _claim(failure.get("message", "")):
            word = "killed"
    return Verdict(word, time.monotonic() - began, said[-3000:])


def run(mutants: Sequence[Mutant]) -> int:
    """Judge mutants, printing a table; returns how many are not killed.

    Raises:
        Moved: the code is no longer what a mutant replaces.
        SystemExit: a named test does not pass in the unbroken code.
    """
    for mutant in mutants:
        mutant.broken()
    began = time.monotonic()
    tests = sorted({mutant.test for mutant in mutants})
    with _copy() as tree:
        status, cases, said = _pytest(tree, "-n", str(_AT_A_TIME), *tests)
    passed = sum(map(_passed, cases))
    if status or passed != len(tests):
        raise SystemExit(f"{said}\n{passed} of {len(tests)} tests pass while nothing is broken")
    print(f"Nothing broken: {passed} tests pass, {time.monotonic() - began:.1f} s", flush=True)
    alive = []
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for mutant, verdict in zip(mutants, pool.map(judge, mutants), strict=True):
            test = mutant.test.removeprefix("tests/")
            print(
                f"{mutant.name:27} {verdict.word:10} {verdict.seconds:5.1f} s  {test}", flush=True
            )
            if not verdict.killed:
                alive.append((mutant, verdict))
    for mutant, verdict in alive:
        print(f"\n{mutant.name}: {mutant.breaks} {verdict.word}:\n{verdict.said}")
    killed = len(mutants) - len(alive)
    print(f"{killed} of {len(mutants)} mutants killed, {time.monotonic() - began:.1f} s")
    return len(alive)
