from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db.models.functions import Now
from django.test import override_settings

from accesspass.checks import check_cache, check_deployment, check_options
from accesspass.model_checks import check_mail, check_tables, check_user_model
from accesspass.models import Account, MailRequest
from tests.conftest import MakeUser

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
}


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
    ],
)
def test_deployment_advises(changes: dict[str, Any], found: list[str]) -> None:
    with override_settings(**{**SOUND, **changes}):
        assert ids(check_deployment()) == found


def test_deployment_wants_the_number_of_proxies_said() -> None:
    with override_settings(**SOUND), override_settings(ACCESSPASS={}):
        assert ids(check_deployment()) == ["W005", "W006", "W016"]


def test_who_requires_confirmation_needs_links() -> None:
    with override_settings(ACCESSPASS={"REQUIRE_CONFIRMED_EMAIL": True}):
        assert ids(check_mail()) == ["E010"]
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


def test_users_without_an_account_are_a_warning(user: Any) -> None:
    assert ids(check_tables(databases=["default"])) == ["W010"]
    assert check_tables(databases=[]) == check_tables() == []
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
