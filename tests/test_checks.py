from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as project
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from django.test import override_settings
from django.urls import include, path
from rest_framework.authentication import BasicAuthentication, SessionAuthentication

from accesspass import metrics, sessions, views
from accesspass.checks import (
    check_cache,
    check_deployment,
    check_keys,
    check_options,
)
from accesspass.hooks import Hooks
from accesspass.model_checks import (
    check_api,
    check_databases,
    check_mail,
    check_mail_backend,
    check_tables,
    check_urls,
    check_user_model,
)
from accesspass.models import Account, Identifier, MailRequest, Session
from tests.conftest import MakeUser

ROOT = Path(__file__).resolve().parents[1]

DATABASE = {"LOCATION": "database:default"}
GOOD = {"BASE_URL": "https://app.example.com"}


def ids(found: list[Any]) -> list[str]:
    return [x.id.removeprefix("accesspass.") for x in found]


def options(**changes: Any) -> list[Any]:
    with override_settings(ACCESSPASS={**GOOD, **changes}):
        return check_options()


def cache(backend: str, **more: Any) -> list[Any]:
    with override_settings(CACHES={"accesspass": {"BACKEND": backend, **more}}):
        return check_cache()


def test_the_settings_of_the_tests_are_clean() -> None:
    assert check_options() == []
    assert check_cache() == []
    assert check_mail() == []
    assert check_api() == []
    assert check_urls() == []
    assert check_keys() == []


def test_the_reference_lists_every_check() -> None:
    code = [x.read_text(encoding="utf-8") for x in (ROOT / "accesspass").glob("*checks.py")]
    used = [x for text in code for x in re.findall(r'"accesspass\.([EWI]\d{3})"', text)]
    page = (ROOT / "docs" / "reference" / "checks.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^   \* - ``accesspass\.(\w+)``$", page, re.MULTILINE)
    assert listed == sorted(set(used), key=lambda x: ("EWI".index(x[0]), x))
    for one in listed:
        assert used.count(one) == (2 if one in ("E001", "E005") else 1), one


def test_an_unknown_key_is_an_error_with_the_nearest_name() -> None:
    (found,) = options(ACCES_TOKEN_LIFETIME=60)
    assert ids([found]) == ["E001"]
    assert "ACCESS_TOKEN_LIFETIME" in found.hint
    (found,) = options(zzzzzz=60)
    assert ids([found]) == ["E001"]
    assert found.hint


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("10/min", "must be a dict"),
        ({"logins": {}}, "has no scope 'logins', only login, register, mail"),
        ({"login": "10/min"}, "must have a dict or None for 'login'"),
        ({"login": {"acount": "10/min"}}, "has no 'acount' in 'login', only account_network"),
        ({"login": {"account": 10}}, "a rate as '10/min', or None, for 'account' in 'login'"),
        ({"mail": {"network": "0/min"}}, "a rate as '10/min', or None, for 'network' in 'mail'"),
        ({"mail": {"network": "10/week"}}, "a rate as"),
        ({"mail": {"network": "10 / min"}}, "a rate as"),
        ({"mail": {"network": "10/5min"}}, "a rate as"),
    ],
)
def test_a_wrong_throttle_is_named(value: Any, words: str) -> None:
    (found,) = options(THROTTLES=value)
    assert ids([found]) == ["E002"]
    assert words in found.msg


def test_anything_but_a_dict_is_an_error() -> None:
    with override_settings(ACCESSPASS=["BASE_URL"]):
        assert ids(check_options()) == ["E001"]
        assert check_cache() == []


def test_a_wrong_value_is_an_error_that_does_not_show_it() -> None:
    (found,) = options(TOKEN_KEYS=["too short a key"])
    assert ids([found]) == ["E002"]
    assert "too short" not in f"{found} {found.hint}"


@pytest.mark.parametrize("path", ["nowhere.Hooks", "accesspass.hooks.Nothing", "builtins.dict"])
def test_hooks_must_be_a_subclass_that_can_be_imported(path: str) -> None:
    assert ids(options(HOOKS=path)) == ["E005"]


@pytest.mark.parametrize("name", ["nothing", "password", "groups"])
def test_a_further_field_must_be_a_column_of_the_user_model(name: str) -> None:
    with override_settings(ACCESSPASS={**GOOD, "USER_FIELDS": ["last_login", name]}):
        (found,) = check_user_model()
    assert ids([found]) == ["E007"]


def test_a_user_model_is_built_without_a_query() -> None:
    # Those that cannot be are in tests/oddusers.
    assert check_user_model() == []
    with override_settings(ACCESSPASS={**GOOD, "USER_FIELDS": ["last_login"]}):
        assert check_user_model() == []


@pytest.mark.parametrize("years", [11, 10**6])
@pytest.mark.parametrize("name", ["REFRESH_TOKEN_LIFETIME", "SESSION_IDLE_LIFETIME"])
def test_a_lifetime_has_an_upper_bound(name: str, years: int) -> None:
    assert ids(options(**{name: years * 365 * 86_400})) == ["E002"]
    assert options(**{name: timedelta(days=3650)}) == []


def test_a_missing_base_url_is_a_warning() -> None:
    with override_settings(ACCESSPASS={}):
        assert ids(check_options()) == ["W001"]


def test_a_missing_alias_is_an_error() -> None:
    with override_settings(CACHES={"default": {"BACKEND": "accesspass.cache.ReplicatedCache"}}):
        assert ids(check_cache()) == ["E003"]


def test_the_hint_names_the_alias_that_is_missing() -> None:
    with override_settings(ACCESSPASS={**GOOD, "CACHE": "tokens"}):
        (found,) = check_cache()
    assert found.hint.startswith("Add CACHES['tokens'] = {'BACKEND': 'accesspass.cache.Replicat")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wrong",
    [
        {"TELEMETRY": "prometheus"},
        {"REQUIRE_CONFIRMED_EMAIL": "False"},
        {"ACCESS_TOKEN_LIFETIME": "300"},
        {"CACHE": None},
    ],
)
def test_a_wrong_value_is_said_by_one_check_and_breaks_none(wrong: dict[str, Any]) -> None:
    with override_settings(ACCESSPASS={**GOOD, **wrong}):
        metrics.switch_on()  # as the app does when it is loaded
        with pytest.raises(SystemCheckError, match=r"accesspass\.E002"):
            call_command("check", deploy=True, databases=["default"])


@pytest.mark.parametrize(
    ("vendor", "said"),
    [
        ("mysql", "there is no engine for mysql yet"),
        ("postgresql", "psycopg 3 cannot be imported"),
    ],
)
def test_a_database_without_an_engine_is_said_by_a_check_and_by_each_read(
    monkeypatch: pytest.MonkeyPatch, vendor: str, said: str
) -> None:
    monkeypatch.setattr(connection, "vendor", vendor)
    # As if the driver were not there.
    monkeypatch.setitem(sys.modules, "accesspass.cache.engines.postgresql", None)
    backend = "accesspass.cache.ReplicatedCache"
    (found,) = cache(backend, **DATABASE)
    assert ids([found]) == ["E004"]
    assert said in found.msg
    with override_settings(CACHES={"accesspass": {"BACKEND": backend, **DATABASE}}):
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured, match=said):
                caches["accesspass"].get("key")


def test_each_lesser_cache_has_its_warning() -> None:
    base = "django.core.cache.backends."
    assert ids(cache(base + "dummy.DummyCache")) == ["W003"]
    assert ids(cache(base + "locmem.LocMemCache")) == ["W004"]
    assert ids(cache(base + "filebased.FileBasedCache", LOCATION="/nonexistent")) == ["W002"]
    assert cache("accesspass.cache.ReplicatedCache", LOCATION="memory://checks") == []


SOUND = {
    "ACCESSPASS": {
        "REFRESH_TOKEN_LIFETIME": timedelta(days=30),
        "SESSION_IDLE_LIFETIME": timedelta(days=14),
        "TRUSTED_PROXIES": 0,
    },
    "PASSWORD_HASHERS": ["accesspass.hashing.Argon2PasswordHasher"],
    "AUTH_PASSWORD_VALIDATORS": [
        {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"}
    ],
    "DEFAULT_FROM_EMAIL": "accounts@example.com",
    "CACHES": {
        "accesspass": {
            "BACKEND": "accesspass.cache.ReplicatedCache",
            "LOCATION": "sqlite:////tmp/never-opened",
        }
    },
}


def sound(**changes: Any) -> dict[str, Any]:
    return {"ACCESSPASS": {**SOUND["ACCESSPASS"], **changes}}  # type: ignore[dict-item]


class Sender(Hooks):
    def email_from(self, purpose: str, user: Any) -> str:
        return "accounts@example.com"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"ACCESSPASS": {"TRUSTED_PROXIES": 1}}, ["W005", "W006"]),
        ({"PASSWORD_HASHERS": ["django.contrib.auth.hashers.MD5PasswordHasher"]}, ["W014"]),
        ({"PASSWORD_HASHERS": ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]}, []),
        ({"AUTH_PASSWORD_VALIDATORS": []}, ["W015"]),
        (
            {
                "AUTH_PASSWORD_VALIDATORS": [
                    {
                        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
                        "OPTIONS": {"min_length": 7},
                    }
                ]
            },
            ["W015"],
        ),
        ({"ACCESSPASS": {**SOUND["ACCESSPASS"], "TRUSTED_PROXIES": 2}}, []),  # type: ignore[dict-item]
        (sound(THROTTLES={"login": None}), ["W018"]),
        (sound(THROTTLES={"mail": {"account_network": None}}), ["W018"]),
        (sound(THROTTLES={"login": {"account_network": None}}), []),
        (sound(THROTTLES={"login": {"network": None}}), []),
        (sound(BASE_URL="http://localhost:3000"), ["W008"]),
        (sound(BASE_URL="https://127.0.0.1"), ["W008"]),
        (sound(**GOOD) | {"DEFAULT_FROM_EMAIL": "webmaster@localhost"}, ["W009"]),
        (sound() | {"DEFAULT_FROM_EMAIL": "webmaster@localhost"}, []),
        (
            sound(**GOOD, HOOKS="tests.test_checks.Sender")
            | {"DEFAULT_FROM_EMAIL": "webmaster@localhost"},
            [],
        ),
        ({"CACHES": project.CACHES}, ["W027"]),
        ({"ACCESSPASS": {"NONSENSE": 1}}, []),  # E001 comes first
        ({"ACCESSPASS": ["NONSENSE"]}, []),
    ],
)
def test_deployment_advises(changes: dict[str, Any], found: list[str]) -> None:
    with override_settings(**{**SOUND, **changes}):
        assert ids(check_deployment()) == found


def test_deployment_wants_the_number_of_proxies_said() -> None:
    with override_settings(**SOUND), override_settings(ACCESSPASS={}):
        assert ids(check_deployment()) == ["W005", "W006", "W016"]


def test_who_requires_confirmation_needs_links_and_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with override_settings(ACCESSPASS={"REQUIRE_CONFIRMED_EMAIL": True}):
        assert ids(check_mail()) == ["E010"]
        monkeypatch.setattr(get_user_model(), "EMAIL_FIELD", "nothing")
        assert ids(check_mail()) == ["E010", "E011"]
        monkeypatch.undo()
    with override_settings(ACCESSPASS={**GOOD, "REQUIRE_CONFIRMED_EMAIL": True}):
        assert check_mail() == []


def test_templates_that_cannot_be_found_are_a_warning(tmp_path: Path, settings: Any) -> None:
    settings.TEMPLATES = []
    assert ids(check_mail()) == ["W012"]
    folder = tmp_path / "accesspass" / "email"
    folder.mkdir(parents=True)
    (folder / "username.html").write_text("{% nonsense %}")
    engine = {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
    settings.TEMPLATES = [{**engine, "DIRS": [tmp_path]}]
    (found,) = check_mail()
    assert "username.html" in found.msg


def test_mail_sent_by_requests_is_no_deployment() -> None:
    with override_settings(ACCESSPASS={"MAIL_DELIVERY": "inline"}):
        assert "W013" in ids(check_deployment())


@pytest.mark.parametrize("name", ["console", "dummy", "locmem", "filebased", "smtp"])
def test_mail_that_goes_nowhere_is_no_deployment(name: str, tmp_path: Path, settings: Any) -> None:
    settings.EMAIL_FILE_PATH = tmp_path
    settings.EMAIL_BACKEND = f"django.core.mail.backends.{name}.EmailBackend"
    assert ids(check_mail_backend()) == ([] if name == "smtp" else ["W017"])
    settings.EMAIL_BACKEND = "nowhere.EmailBackend"
    assert check_mail_backend() == []


GOOD_KEY = "0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("key", "weak"),
    [
        (GOOD_KEY, False),
        (GOOD_KEY.encode(), False),
        ("django-insecure-" + GOOD_KEY, True),
        ("ab" * 40, True),
        ("short", True),
    ],
)
def test_a_key_that_can_be_guessed_is_a_warning_that_does_not_show_it(key: Any, weak: bool) -> None:
    alias = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": "memory://checks"}
    for changes in (
        {"ACCESSPASS": {"TOKEN_KEYS": [GOOD_KEY, key]}},
        {"CACHES": {"accesspass": {**alias, "OPTIONS": {"SIGNING_KEYS": [GOOD_KEY, key]}}}},
    ):
        with override_settings(**changes):
            found = check_keys()
        assert ids(found) == ["W019"] * weak
        assert str(key) not in "".join(f"{x} {x.hint}" for x in found)


# What lets somebody in


class Exempt(SessionAuthentication):
    def enforce_csrf(self, request: Any) -> None:
        return


class Limited(BasicAuthentication):
    """Counts what is tried."""

    def authenticate_credentials(self, userid: str, password: str, request: Any = None) -> Any:
        raise NotImplementedError


TOKENS = "accesspass.authentication.TokenAuthentication"
DRF = "rest_framework.authentication."


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (None, ["W021", "I001"]),  # what REST framework has by itself
        ([TOKENS], []),
        ([TOKENS, DRF + "SessionAuthentication"], []),
        ([TOKENS, DRF + "BasicAuthentication"], ["W021"]),
        ([TOKENS, "tests.test_checks.Limited"], []),
        ([TOKENS, "tests.test_checks.Exempt"], ["W022"]),
        ([DRF + "SessionAuthentication"], ["I001"]),
        (["accesspass.resource.ResourceServerAuthentication"], []),
        (["nowhere.Authentication"], []),
    ],
)
def test_other_ways_in_are_named(classes: list[str] | None, found: list[str]) -> None:
    given = {} if classes is None else {"DEFAULT_AUTHENTICATION_CLASSES": classes}
    with override_settings(REST_FRAMEWORK=given):
        assert ids(check_api()) == found


def test_tokens_may_be_taken_by_the_middleware_alone() -> None:
    ours = "accesspass.middleware.TokenAuthenticationMiddleware"
    with override_settings(
        REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": []},
        MIDDLEWARE=[*project.MIDDLEWARE, ours],
    ):
        assert check_api() == []


def test_translations_of_rest_framework_need_it_installed() -> None:
    without = [x for x in project.INSTALLED_APPS if x != "rest_framework"]
    with override_settings(INSTALLED_APPS=without):
        assert ids(check_api()) == ["W007"]
        with override_settings(USE_I18N=False):
            assert check_api() == []


# Transactions and routes


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)


class Routes:
    """A project's urls, with our login behind a decorator."""

    def __init__(self, decorate: Callable[[Any], Any]) -> None:
        self.urlpatterns = [
            path("auth/login/", decorate(views.LoginView.as_view())),
            path("auth/", include("accesspass.urls")),
        ]


def hiding(view: Any) -> Any:
    return lambda request: view(request)


@pytest.mark.usefixtures("atomic_requests")
def test_atomic_requests_are_mentioned_and_warned_of_where_they_reach_our_views() -> None:
    assert ids(check_urls()) == ["I002"]
    with override_settings(ROOT_URLCONF=Routes(lambda view: view)):
        assert ids(check_urls()) == ["I002"]
    with override_settings(ROOT_URLCONF=Routes(hiding)):
        information, warning = check_urls()
    assert ids([information, warning]) == ["I002", "W023"]
    assert "ATOMIC_REQUESTS is around login:" in warning.msg


@pytest.mark.django_db(transaction=True)
def test_what_is_said_of_atomic_requests_is_true(make_user: MakeUser) -> None:
    pair = sessions.start(make_user())
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        sessions.refresh(pair.refresh_token)
    with transaction.atomic():
        assert sessions.revoke(pair.session_id) is False
        transaction.set_rollback(True)
    assert Session.objects.get().revoked_at is None


def test_a_project_without_our_routes_is_told() -> None:
    others = Routes(hiding)
    del others.urlpatterns[1]
    with override_settings(ROOT_URLCONF=others):
        assert ids(check_urls()) == ["I003"]
    with override_settings(ROOT_URLCONF=None):
        assert check_urls() == []


class Elsewhere:
    """Sends one model to a database of its own, and reads everything from a replica."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "elsewhere" if model is self.model else None


def test_users_in_another_database_than_sessions_are_an_error() -> None:
    with override_settings(DATABASE_ROUTERS=[Elsewhere(None)]):
        assert check_databases() == []
    with override_settings(DATABASE_ROUTERS=[Elsewhere(get_user_model())]):
        (found,) = check_databases()
    assert ids([found]) == ["E009"]
    assert "to 'elsewhere' and accesspass to 'default'" in found.msg


@pytest.mark.parametrize("under", ["<str:version>/", "v1/"])
def test_routes_below_an_argument_or_a_namespace_are_there(under: str) -> None:
    inner = include(([path("auth/", include("accesspass.urls"))], "api"), namespace="v1")
    with override_settings(ROOT_URLCONF=(path(under, inner),)):
        assert check_urls() == []


# The database


@pytest.mark.django_db
def test_migrations_that_are_to_be_run_are_a_warning() -> None:
    recorded = MigrationRecorder(connection).migration_qs.filter(app="accesspass")
    assert check_tables(databases=["default"]) == []
    recorded.delete()
    (found,) = check_tables(databases=["default"])
    assert ids([found]) == ["W024"]
    assert "0001_initial" in found.msg
    # Nothing was ever run: it is the first `migrate`, which makes these checks too.
    MigrationRecorder(connection).migration_qs.all().delete()
    assert check_tables(databases=["default"]) == []


@pytest.mark.django_db
def test_tables_of_another_user_model_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_user_model()._meta, "db_table", "members")
    (found,) = check_tables(databases=["default"])
    assert ids([found]) == ["E008"]


def test_names_that_collide_are_counted(make_user: MakeUser) -> None:
    one, other = make_user("bob"), make_user("eve")
    Account.objects.for_user(one)
    Account.objects.for_user(other)
    assert check_tables(databases=["default"]) == []
    Identifier.objects.filter(value="eve@example.com").update(account=one.pk)
    (found,) = check_tables(databases=["default"])
    assert ids([found]) == ["W025"]
    assert found.msg.startswith("1 names")


def test_a_cache_with_room_for_too_few_is_a_warning(user: Any) -> None:
    sessions.start(user)
    sessions.start(user)
    alias = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": "memory://checks"}
    for room in (alias | {"MAX_ENTRIES": 1}, alias | {"OPTIONS": {"MAX_ENTRIES": "1"}}):
        with override_settings(CACHES={"accesspass": room}):
            (found,) = check_tables(databases=["default"])
        assert ids([found]) == ["W026"]
        assert "2 sessions" in found.msg
    with override_settings(CACHES={"accesspass": alias | {"MAX_ENTRIES": 2}}):
        assert check_tables(databases=["default"]) == []


def test_users_without_an_account_are_a_warning(user: Any) -> None:
    assert ids(check_tables(databases=["default"])) == ["W010"]
    assert check_tables(databases=[]) == check_tables() == []
    with override_settings(ACCESSPASS={"NONSENSE": 1}):
        assert check_tables(databases=["default"]) == []
    Account.objects.for_user(user)
    assert check_tables(databases=["default"]) == []


def test_dead_letters_are_a_warning(make_user: MakeUser) -> None:
    user = make_user()
    Account.objects.for_user(user)
    row = MailRequest(user=user, purpose="confirm", created_at=Now(), lease_until=Now())
    row.save()
    assert check_tables(databases=["default"]) == []
    MailRequest.objects.update(failed_at=Now())
    (found,) = check_tables(databases=["default"])
    assert ids([found]) == ["W011"]
    assert "1 e-mails" in found.msg


@pytest.mark.django_db  # Django 6.1 runs those of the database too
def test_manage_py_check_runs_them() -> None:
    with (
        override_settings(ACCESSPASS={"NONSENSE": 1}),
        pytest.raises(SystemCheckError, match=r"accesspass\.E001"),
    ):
        call_command("check", stdout=io.StringIO(), stderr=io.StringIO())
    err = io.StringIO()
    call_command("check", deploy=True, stdout=io.StringIO(), stderr=err)
    assert "accesspass.W005" in err.getvalue()
