"""A client that is generated from the schema in docs/reference, used against a live server."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.documents import shown

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "docs" / "reference" / "openapi.yaml"
PROGRAM = ROOT / "tests" / "openapi_client.py"

pytestmark = pytest.mark.pipeline


def run(*command: str | Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """Return the folder of the package `shop_client`."""
    pytest.importorskip("openapi_python_client")
    _install, script = shown("docs/how-to/openapi.rst", "sh")
    describe, generate = script.splitlines()
    (tmp_path / "manage.py").symlink_to(ROOT / "manage.py")
    settings = "--settings=tests.settings.own_user --urlconf=accesspass.urls"
    for command in (f"{describe} {settings}", f"{generate} --fail-on-warning"):
        done = subprocess.run(
            ["sh", "-c", command],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "openapi.yaml").read_bytes() == SCHEMA.read_bytes()
    return tmp_path


def test_a_generated_client_speaks_with_the_example(
    client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(client)
    with Cluster(1) as site:
        program = importlib.import_module("tests.openapi_client")
        program.run(f"http://{site.host}:{site.port}")


def test_a_generated_client_is_typed(client: Path) -> None:
    pytest.importorskip("mypy")
    # What is said of the generated code itself is left to who generates it.
    options = ["--strict", "--config-file=", "--follow-imports=silent"]
    run("mypy", *options, PROGRAM, MYPYPATH=str(client))
