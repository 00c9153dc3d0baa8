from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.cache import caches
from django.test import Client, override_settings
from django.test.runner import DiscoverRunner
from rest_framework.test import APIClient

from accesspass.testing import MemoryCacheMixin, login, logout, memory_cache


@pytest.mark.parametrize("make", [APIClient, Client])
def test_a_client_that_is_logged_in_makes_no_query(
    user: Any, make: type[Client], django_assert_num_queries: Any
) -> None:
    client = make()
    login(client, user)
    with django_assert_num_queries(0):
        assert client.get("/protected/").status_code == 200
    logout(client)
    assert client.get("/protected/").status_code == 401


def test_claims_are_those_of_the_session(user: Any, api: APIClient) -> None:
    login(api, user, claims={"role": "admin"})
    assert api.get("/admins/").status_code == 200


def test_login_obeys_the_name_of_the_header(user: Any, api: APIClient) -> None:
    with override_settings(ACCESSPASS={"ACCESS_TOKEN_HEADER": "X-Token"}):
        login(api, user)
        assert api.get("/protected/").status_code == 200
        logout(api)
        assert api.get("/protected/").status_code == 401


def test_the_memory_cache_stands_under_the_alias_and_is_taken_away_again() -> None:
    before = settings.CACHES
    with override_settings(
        CACHES={
            "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
            "accesspass": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
        }
    ):
        with memory_cache():
            assert hasattr(caches["accesspass"], "publish")
            assert not hasattr(caches["default"], "publish")
        assert not hasattr(caches["accesspass"], "publish")
    assert before == settings.CACHES


def test_the_mixin_puts_it_there_for_a_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiscoverRunner, "setup_test_environment", lambda self, **kw: None)
    monkeypatch.setattr(DiscoverRunner, "teardown_test_environment", lambda self, **kw: None)

    class Runner(MemoryCacheMixin, DiscoverRunner):
        pass

    dummy = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}
    with override_settings(CACHES={"default": dummy, "accesspass": dummy}):
        runner = Runner()
        runner.setup_test_environment()
        assert hasattr(caches["accesspass"], "publish")
        runner.teardown_test_environment()
        assert not hasattr(caches["accesspass"], "publish")


def test_the_plugin_puts_it_there_for_pytest(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["accesspass.testing"]\n')
    (tmp_path / "test_it.py").write_text(
        "from django.core.cache import caches\n"
        "from django.conf import settings\n"
        "def test_it():\n"
        '    assert settings.CACHES["accesspass"]["LOCATION"] == "memory://accesspass-testing"\n'
        '    caches["accesspass"].set("key", 1)\n'
        '    assert caches["accesspass"].get("key") == 1\n'
    )
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    done = subprocess.run(
        [
            *command,
            f"--rootdir={tmp_path}",
            "--ds=tests.settings.own_user",
            "-o",
            f"pythonpath={root}",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
