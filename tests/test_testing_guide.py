"""The examples of docs/how-to/testing.rst run, under Django's runner and under pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import files_of
from tests.guides import Project

SETTINGS = """
SECRET_KEY = "tests-only-tests-only-tests-only-tests-only"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes", "rest_framework", "accesspass",
]
MIDDLEWARE = ["accesspass.middleware.TokenAuthenticationMiddleware"]
ROOT_URLCONF = "shop.urls"
STATIC_URL = "static/"
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True},
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "accesspass": {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": "redis://127.0.0.1:1/0",  # nothing answers there
    },
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}  # Django 6.1
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accesspass.authentication.TokenAuthentication"],
}
ACCESSPASS = {"BASE_URL": "https://app.example.com"}
"""
URLS = """
from django.urls import include, path
from shop import views
urlpatterns = [
    path("auth/", include("accesspass.urls")),
    path("hello/", views.Hello.as_view()),
    path("prices/", views.Prices.as_view()),
    path("hello-async/", views.hello_async),
]
"""
# Each test leaves something behind for the next one of its class to find.
ISOLATION = """
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.test import LiveServerTestCase, TestCase, TransactionTestCase
from accesspass.testing import login, other_node

class Each:
    seen = set()

    def test_one(self):
        self.look()

    def test_two(self):
        self.look()

    def look(self):
        assert caches["accesspass"].status()["engine"] == "memory"
        for _ in range(2):
            caches["accesspass"].get("anything")
            assert caches["accesspass"].status()["entries"] == 0
            assert caches["accesspass"].status()["epoch"] not in self.seen
            with other_node():
                assert caches["accesspass"].get("key") is None
        self.seen.add(caches["accesspass"].status()["epoch"])
        login(self.client, get_user_model().objects.create_user("ada"))
        caches["accesspass"].set("key", 1)
        assert caches["accesspass"].status()["entries"] == 2

class A(Each, TestCase):
    pass

class B(Each, TransactionTestCase):
    pass

class C(Each, LiveServerTestCase):
    pass
"""

PYTEST = ["-m", "pytest", "-q", "-Werror"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shown = files_of("docs/how-to/testing.rst")
    assert set(shown) == {
        "conftest.py",
        "shop/settings.py",
        "shop/test_sessions.py",
        "shop/tests.py",
        "shop/views.py",
    }
    made = Project(tmp_path)
    made.write({"shop/__init__.py": "", "shop/urls.py": URLS, "shop/tests_each.py": ISOLATION})
    made.write({**shown, "shop/settings.py": SETTINGS + shown["shop/settings.py"]})
    return made


@pytest.mark.pipeline
@pytest.mark.parametrize("options", [["--parallel=2"], []])
def test_under_djangos_runner(project: Project, options: list[str]) -> None:
    command = ["-m", "django", "test", "--pattern=tests*.py", *options]
    output = project.run(*command, DJANGO_SETTINGS_MODULE="shop.settings")
    assert "Ran 14 tests" in output
    assert "\nOK\n" in output


@pytest.mark.pipeline
@pytest.mark.parametrize("options", [[], ["-p", "xdist.plugin", "-n2"]])
def test_under_pytest(project: Project, options: list[str]) -> None:
    command = [*PYTEST, "-p", "pytest_django.plugin", "--ds=shop.settings", *options]
    tests = ["shop/tests.py", "shop/tests_each.py", "shop/test_sessions.py"]
    output = project.run(*command, *tests, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "21 passed" in output


def test_the_plugin_passes_by_a_run_without_settings(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write({"test_it.py": "def test_it():\n    pass\n"})
    # Named on the command line it is imported before anything of Django is set up.
    output = project.run(
        *PYTEST, "-p", "accesspass.pytest_plugin", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    assert "1 passed" in output
