"""What holds for the repository as a whole."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

from django.utils.crypto import get_random_string

import accesspass
from accesspass.cache.backend import OPTIONS
from accesspass.conf import Conf

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".ci", "accesspass", "benchmarks", "docs", "example_project", "tests")
TEXT = {".cfg", ".css", ".html", ".in", ".js", ".md", ".mk", ".po", ".py", ".rst", ".sh", ".toml"}
TEXT |= {".txt", ".yaml"}
# The only hosts that a URL in the repository may name: loopback, names reserved for examples
# (RFC 2606) and the pages that the documents cite.
HOSTS = {
    "127.0.0.1",
    "localhost",
    "testserver",
    "keepachangelog.com",
    "semver.org",
    "docs.allauth.org",
    "docs.djangoproject.com",
    "www.w3.org",
    "www.rfc-editor.org",
}
REFERENCE = ROOT / "docs" / "reference"
SETTINGS = (REFERENCE / "settings.rst").read_text(encoding="utf-8")
CACHE = (REFERENCE / "cache.rst").read_text(encoding="utf-8")


def texts() -> Iterator[tuple[Path, str]]:
    """Yield every text file that belongs to the repository."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*")
    for path in files:
        built = {"__pycache__", "_build"} & set(path.parts)
        known = path.suffix in TEXT or path.parent.name == ".ci" or path.name == "Makefile"
        if known and not built and path.is_file():
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def test_every_url_is_loopback_or_an_example_or_a_page_we_cite() -> None:
    url = re.compile(r"\bhttps?://(?:[^\s/@]*@)?([a-z0-9][a-z0-9.-]*)", re.IGNORECASE)
    strange = []
    for path, text in texts():
        for host in url.findall(text):
            example = host.endswith(("example.com", "example.org", "example.net", ".test"))
            if host not in HOSTS and not example:
                strange.append(f"{path}: {host}")
    assert strange == []


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    home = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work)/[\w.]+")
    assert [f"{path}: {found}" for path, text in texts() for found in home.findall(text)] == []


def test_no_token_is_committed() -> None:
    token = re.compile(r"\b[a-z]+_(?:at|rt|ek)_[A-Za-z0-9_-]{76}")
    assert token.search(f"ap_at_{get_random_string(76)}")
    assert [str(path) for path, text in texts() if token.search(text)] == []


def documented(text: str) -> dict[str, str]:
    """Return the default beside each option of a page's tables, as Python writes it."""
    rows = re.findall(r"\* - ``([A-Z_]+)``\n +- ``(.*?)``\n +- \S", text)
    return {name: default.replace('"', "'") for name, default in rows}


def test_every_option_is_documented_with_its_default() -> None:
    defaults = {name: repr(option.default) for name, option in Conf.options.items()}
    assert documented(SETTINGS) == defaults


def test_every_option_of_the_cache_is_documented_with_its_default() -> None:
    assert documented(CACHE) == {name: repr(value) for name, value in OPTIONS.items()}


def test_every_test_that_a_page_names_exists() -> None:
    written = {str(path): text for path, text in texts()}
    known = "".join(text for path, text in written.items() if path.startswith("tests/"))
    for path, text in written.items():
        if path.startswith("docs/"):
            for name in re.findall(r"``(test_\w+)``", text):
                assert f"def {name}(" in known, f"{path}: {name}"


def test_every_race_has_its_place_on_the_page() -> None:
    page = (ROOT / "docs" / "explanation" / "races.rst").read_text(encoding="utf-8")
    for path in (ROOT / "tests" / "races").glob("test_*.py"):
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"``{name}``" in page, name


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    release, dev, _ = accesspass.__version__.partition(".dev")
    newest = re.search(r"^## \[(.+?)\] - (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    if dev:
        assert newest.groups() == ("Unreleased", release)
    else:
        assert newest[1] == release
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", newest[2])


def test_every_module_has_a_layer() -> None:
    """Import-linter says so too, but on Python 3.11 or newer alone."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:service"]["layers"]
    placed = set(re.findall(r"\w+", layers))
    package = Path(accesspass.__file__).parent
    found = {path.stem for path in package.glob("*.py")} - {"__init__"}
    found |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert found - placed == set()
