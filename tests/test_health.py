"""The health endpoint, with servers that are really dead or frozen."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client, override_settings
from django.urls import include, path

from accesspass import health
from tests.cluster import Cluster
from tests.servers import (
    PostgreSQL,
    Server,
    Valkey,
    free_port,
    make_folder,
    require_postgresql,
    require_valkey,
    wait_until,
)
from tests.sessions import options, plain, replicated

__all__ = ["plain", "replicated"]

ROOT = Path(__file__).resolve().parent.parent
_SETTINGS = """\
from tests.deployments.settings import *

ROOT_URLCONF = "watched_urls"
DATABASES["default"]["ATOMIC_REQUESTS"] = True
"""
_URLS = """\
from django.urls import include, path

from tests.deployments.urls import urlpatterns

urlpatterns = [*urlpatterns, path("health/", include("accesspass.health"))]
"""

urlpatterns = [path("health/", include("accesspass.health"))]


def get(where: str = "") -> tuple[int, dict[str, str]]:
    response = Client().get(f"/health/{where}")
    assert response["Cache-Control"] == "no-store"
    return response.status_code, response.json()


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ask = health._ask_database

    def ask_and_close() -> bool:
        try:
            return ask()
        finally:
            # Django does not close one to a database in memory, and Python complains.
            BaseDatabaseWrapper.close(connection)

    monkeypatch.setattr(health, "_ask_database", ask_and_close)
    health._forget()
    yield
    wait_until(lambda: not health._out)  # or a thread would not find itself on the next one's list


# In one process -------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls(__name__)
def test_a_current_replica_is_enough_and_nothing_else_is_asked(
    django_assert_num_queries: Any,
) -> None:
    caches["accesspass"].get("anything")
    with django_assert_num_queries(0):
        assert get() == (200, {"status": "ready", "replica": "current", "database": "unasked"})


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls(__name__)
def test_a_process_that_has_served_nobody_joins_before_it_says_that_it_is_ready() -> None:
    assert not caches["accesspass"].status()["fresh"]
    assert get()[0] == 200
    wait_until(lambda: caches["accesspass"].status()["fresh"])


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls(__name__)
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("answers", "status"), [(True, 200), (False, 503)])
def test_on_another_kind_of_cache_the_database_decides(
    answers: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(health, "_ask_database", lambda: answers)
    found, body = get()
    assert (found, body["replica"]) == (status, "none")
    assert ("health.not_ready" in caplog.text) is not answers


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls(__name__)
def test_a_replica_is_not_enough_where_users_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    caches["accesspass"].get("anything")
    monkeypatch.setattr(health, "_ask_database", lambda: False)
    with options(USER_FROM_RECORD=False):
        assert get() == (
            503,
            {"status": "unavailable", "replica": "none", "database": "silent"},
        )


@pytest.mark.urls(__name__)
@override_settings(
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
)
def test_nobody_has_to_log_in_and_nobody_can_change_anything() -> None:
    assert get("live/") == (200, {"status": "live"})
    assert Client().head("/health/live/").status_code == 200
    for method in ("post", "put", "delete"):
        assert getattr(Client(), method)("/health/").status_code == 405


@pytest.mark.urls(__name__)
@pytest.mark.usefixtures("plain")
def test_what_hangs_costs_one_thread_and_no_check_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go_on = [], threading.Event()

    def hang() -> bool:
        asked.append(1)
        return go_on.wait(30)

    monkeypatch.setattr(health, "_DEADLINE", 0.05)
    monkeypatch.setattr(health, "_catch_up", lambda: False)
    monkeypatch.setattr(health, "_ask_database", hang)
    try:
        assert [get()[0] for _ in range(3)] == [503] * 3
        assert len(asked) == 1
        monkeypatch.setattr(health, "_ABANDONED", 0.0)
        assert get()[0] == 503
        assert len(asked) == 2
    finally:
        go_on.set()
    assert wait_until(lambda: get()[0] == 200)


def test_what_hangs_for_ever_costs_few_threads_and_is_found_to_be_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go_on, clock = [], threading.Event(), iter(range(0, 100_000, 5))

    def hang() -> bool:
        asked.append(1)
        return go_on.wait(30)

    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    try:
        for _ in range(720):  # an hour
            health._ask("database", hang)
        threads = [x for x in threading.enumerate() if x.name == "accesspass-health-database"]
        assert 5 <= len(threads) <= 15
        # Those never come back, but the server answers again.
        answers = [health._ask("database", lambda: True) for _ in range(61)]  # five minutes
        assert answers[-1].result(10) is True
    finally:
        go_on.set()


def test_an_answer_is_good_for_a_while_and_not_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "_REUSED", 60.0)
    assert health._ask("database", lambda: True).result(10) is True
    assert health._ask("database", lambda: False).result(10) is True
    monkeypatch.setattr(health, "_REUSED", 0.0)
    assert health._ask("database", lambda: False).result(10) is False


def test_without_a_thread_to_be_had_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert health._ask("database", lambda: True).result(10) is False
    assert health._ask("database", lambda: True).result(10) is True


def test_a_question_that_fails_is_answered_with_no(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bool:
        raise ZeroDivisionError

    assert health._ask("database", fail).result(10) is False
    assert "health.failed: database" in caplog.text


# With servers ---------------------------------------------------------------------------------


class Watched(Cluster):
    """A project on PostgreSQL whose sessions cache is on Valkey, both its own."""

    application = "tests.deployments.wsgi:application"

    def __init__(self) -> None:
        require_postgresql()
        require_valkey()
        Server.__init__(self, make_folder(), free_port())
        self.workers = 1
        self.database, self.engine = PostgreSQL(), Valkey()
        self.database.start()
        self.engine.start()
        (self.folder / "watched.py").write_text(_SETTINGS)
        (self.folder / "watched_urls.py").write_text(_URLS)
        self.environment = {
            **os.environ,
            "ACCESSPASS_DEMO_DIR": str(self.folder),
            "DEPLOYMENT_CACHE": self.engine.url(),
            "DEPLOYMENT_DATABASE": self.database.url(),
            "DEPLOYMENT_STALENESS": "1",
            "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
            "DJANGO_SETTINGS_MODULE": "watched",
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
        }
        self.popen_options = {"env": self.environment}
        subprocess.run(
            [sys.executable, ROOT / "manage.py", "migrate", "--verbosity=0"],
            env=self.environment,
            check=True,
            capture_output=True,
        )

    def command(self) -> list[str]:
        command = super().command()
        return [*command[:-1], "--threads", "8", command[-1]]

    def is_ready(self) -> bool:
        return self.once("GET", "/health/live/").status == 200

    def close(self) -> None:
        super().close()
        self.database.close()
        self.engine.close()

    def health(self) -> tuple[int, str, str]:
        answer = self.once("GET", "/health/")
        return answer.status, answer.body["replica"], answer.body["database"]


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with Watched() as running:
        yield running


@pytest.mark.fault
def test_dead_and_frozen_servers_are_told_from_each_other_and_hang_nobody(
    watched: Watched,
) -> None:
    assert watched.health()[0] == 200
    wait_until(lambda: watched.health() == (200, "current", "unasked"))

    watched.database.kill()
    assert watched.health() == (200, "current", "unasked")
    watched.engine.kill()
    wait_until(lambda: watched.health() == (503, "stale", "silent"))
    assert watched.once("GET", "/health/live/").status == 200

    watched.database.start()
    wait_until(lambda: watched.health() == (200, "stale", "answers"))
    watched.database.freeze()
    wait_until(lambda: watched.health()[0] == 503)  # the last answer is good for a second
    # More of them than there are threads in the server: each is answered all the same.
    answers = watched.at_once(12, "GET", "/health/")
    assert {x.status for x in answers} == {503}
    assert {x.body["database"] for x in answers} == {"silent"}
    assert watched.once("GET", "/health/live/").status == 200
    watched.database.thaw()
    wait_until(lambda: watched.health() == (200, "stale", "answers"))

    watched.engine.start()
    wait_until(lambda: watched.health() == (200, "current", "unasked"))
    assert "Traceback" not in watched.log
