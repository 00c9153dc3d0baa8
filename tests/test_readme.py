"""What README shows is what happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import django
import pytest

from accesspass.cache.backend import OPTIONS
from tests.documents import shown

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Each promise, by the words in bold, and tests that fail where it does not hold.
PROMISES = {
    "An authorised request makes no database or network round trip.": [
        "tests/test_authentication.py::test_an_authorised_request_makes_no_query",
        "tests/test_sessions.py::test_a_miss_costs_one_query_and_the_next_request_none",
    ],
    "A revoked token is refused.": [
        "tests/test_cluster.py::test_each_login_is_good_and_each_logout_final_on_all_workers_at_once",
        "tests/test_two_hosts.py::test_a_host_that_is_cut_off_stops_accepting_in_time_and_heals",
    ],
    "Nothing is lost.": [
        "tests/test_cluster.py::"
        "test_kill_9_of_a_worker_and_of_the_server_logs_nobody_out_and_lets_nobody_back_in",
        "tests/test_sessions.py::test_sessions_survive_an_emptied_cache",
    ],
    "No infrastructure to start with.": [
        "tests/test_readme.py::test_the_five_lines_are_all_that_a_new_project_needs",
        "tests/test_release.py::test_the_tutorials_are_literally_right",
    ],
    "No usable secret is stored.": [
        "tests/abuse/test_secrets.py::test_no_secret_is_logged_or_stored",
    ],
    "A forged or expired token costs no query.": [
        "tests/test_authentication.py::test_a_forged_token_is_refused_without_a_query",
        "tests/test_authentication.py::test_an_expired_token_is_refused_without_a_query",
    ],
    "Nobody learns which accounts exist": [
        "tests/abuse/test_enumeration.py::"
        "test_a_login_says_the_same_of_an_unknown_name_and_a_wrong_password",
        "tests/abuse/test_enumeration.py::"
        "test_a_registration_says_the_same_of_a_taken_name_where_confirmation_is_required",
        "tests/abuse/test_enumeration.py::test_asking_for_mail_says_the_same_for_everybody",
    ],
}


(DEMO,) = shown("README.md", "text")
(SETTINGS,) = shown("README.md", "python")
(FRONT,) = shown("docs/index.rst", "python")


def without_measurements(text: str) -> list[str]:
    """Return the lines with the times, versions, process ids and tokens taken out."""
    for pattern, instead in (
        (r"(ap_(?:at|rt)_)…[\w-]{4}", r"\1…"),
        (r" +\d+\.\d\d ms", " T ms"),
        (r"(Django|Python) \d+(\.\w+)+", r"\1 V"),
        (r" +\d+(?= T ms)", " PID"),
        (r"worker \d+", "worker PID"),
    ):
        text = re.sub(pattern, instead, text)
    return text.splitlines()


@pytest.mark.pipeline
def test_the_output_in_readme_is_what_the_demo_prints() -> None:
    """After a change: ``python example_project/demo.py --exit --readme``."""
    demo = ROOT / "example_project" / "demo.py"
    done = subprocess.run(
        [sys.executable, str(demo), "--exit"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected, printed = DEMO, done.stdout
    assert len(expected.splitlines()) > 20
    if f"Django {django.VERSION[0]}.{django.VERSION[1]}." not in expected:
        # Each Django has savepoints and queries of its own. None is none for all of them.
        expected, printed = (re.sub(r"(?m)[1-9]\d*$", "N", text) for text in (expected, printed))
    assert without_measurements(expected) == without_measurements(printed)


def test_the_five_lines_are_all_that_a_new_project_needs(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DJANGO_SETTINGS_MODULE", None)  # the suite's own

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    lines = SETTINGS.splitlines()
    assert len(lines) == 5
    kept = {
        "INSTALLED_APPS": "*INSTALLED_APPS",
        "CACHES": "**CACHES",
        "urlpatterns": "*urlpatterns",
    }
    lines = [line.replace("...", kept.get(line.split()[0], "")) for line in lines]
    urls = [line for line in lines if line.startswith("urlpatterns")]
    settings = [line for line in lines if line not in urls]
    assert len(urls) == 1

    run("-m", "django", "startproject", "fresh", ".")
    with (tmp_path / "fresh" / "settings.py").open("a") as file:
        file.write("\n".join(["from django.conf.global_settings import CACHES", *settings, ""]))
    with (tmp_path / "fresh" / "urls.py").open("a") as file:
        file.write("\n".join(["from django.urls import include", *urls, ""]))
    run("manage.py", "check", "--fail-level=WARNING")
    run("manage.py", "migrate", "--verbosity=0")
    out = run(
        "manage.py",
        "shell",
        "-c",
        "from django.test import Client\n"
        "from django.conf import settings\n"
        "settings.ALLOWED_HOSTS = ['testserver']\n"
        "person = {'username': 'ada', 'email': 'ada@example.org', 'password': 'a horse, a nail'}\n"
        "made = Client().post('/auth/register/', person, 'application/json')\n"
        "bearer = {'Authorization': 'Bearer ' + made.json()['access_token']}\n"
        "print(made.status_code, Client().get('/auth/check/', headers=bearer).status_code)\n",
    )
    assert out.splitlines()[-1] == "201 200"


def test_the_front_page_of_the_documentation_has_the_same_five_lines() -> None:
    assert FRONT == SETTINGS


def test_each_promise_has_tests_that_hold_it() -> None:
    section = README.partition("## What it promises\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\d+\. \*\*(.+?)\*\*", section, re.MULTILINE) == list(PROMISES)
    for tests in PROMISES.values():
        for test in tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_the_measured_row_is_what_the_benchmarks_last_printed() -> None:
    numbers = (ROOT / "docs" / "images" / "benchmarks.json").read_text(encoding="utf-8")
    found = {row["name"]: row["ratio"]["median"] for row in json.loads(numbers)["requests"]}
    ours, authtoken, knox, stateless, simplejwt = (
        f"{found[name]:.1f}"
        for name in (
            "AccessPass, PostgreSQL",
            "DRF authtoken",
            "knox",
            "simplejwt, stateless",
            "simplejwt, user from database",
        )
    )
    assert f"| **{ours}** | {authtoken}; {knox} | {stateless}; {simplejwt} |" in README


def test_the_numbers_are_those_of_the_code() -> None:
    staleness = f"{OPTIONS['MAX_STALENESS']:g} s"
    assert f"`MAX_STALENESS` ({staleness})" in README
    assert f"| {staleness}, by setting |" in README
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    python = re.search(r'^requires-python = ">=(.+)"', pyproject, re.MULTILINE)
    assert python is not None
    assert f"Python {python[1]} or newer" in README
    made = "a server with three workers"
    assert made in README
    assert "gunicorn with 3 workers" in DEMO
