from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.views.debug import ExceptionReporter

from accesspass.conf import Conf, conf
from accesspass.hooks import Hooks


class OtherHooks(Hooks):
    pass


def test_every_default_is_valid() -> None:
    for name, option in Conf.options.items():
        assert option.problem(option.default) is None, name


@override_settings(ACCESSPASS={})
def test_defaults() -> None:
    assert conf.ACCESS_TOKEN_LIFETIME == 300
    assert conf.REFRESH_TOKEN_LIFETIME is None
    assert conf.TOKEN_PREFIX == "ap"
    assert conf.CACHE == "accesspass"
    assert conf.ACCESS_TOKEN_HEADER == "Authorization"
    assert conf.USER_FIELDS == ()


def test_a_project_without_the_setting_gets_the_defaults(settings: Any) -> None:
    del settings.ACCESSPASS
    assert conf.REFRESH_GRACE == 10


@pytest.mark.parametrize("name", ["TOKEN_KEYS", "INTROSPECTION_SECRET", "INTROSPECTION_CLIENTS"])
def test_the_report_of_a_wrong_option_does_not_show_what_it_was(name: str) -> None:
    wrong = {"TOKEN_KEYS": ["canary"], "INTROSPECTION_CLIENTS": {"shop": "canary"}}
    with (
        override_settings(ACCESSPASS={name: wrong.get(name, b"canary")}),
        pytest.raises(ImproperlyConfigured) as raised,
    ):
        getattr(conf, name)
    report = ExceptionReporter(None, raised.type, raised.value, raised.tb)
    frames = [
        frame for frame in report.get_traceback_frames() if "/accesspass/" in frame["filename"]
    ]
    assert frames
    assert "canary" not in repr([frame["vars"] for frame in frames])
    assert "canary" not in str(raised.value)


def test_options_are_read_when_they_are_used() -> None:
    with override_settings(ACCESSPASS={"SESSIONS_PER_USER": 3}):
        assert conf.SESSIONS_PER_USER == 3
    assert conf.SESSIONS_PER_USER == 50


@pytest.mark.parametrize("value", [90, 90.0, timedelta(seconds=90)])
def test_durations_come_out_in_seconds(value: Any) -> None:
    with override_settings(
        ACCESSPASS={"ACCESS_TOKEN_LIFETIME": value, "REFRESH_TOKEN_LIFETIME": value}
    ):
        assert conf.ACCESS_TOKEN_LIFETIME == 90
        assert conf.REFRESH_TOKEN_LIFETIME == 90


def test_the_token_keys_are_the_secret_key_and_its_fallbacks() -> None:
    with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["old", b"older"]):
        assert conf.TOKEN_KEYS == ("new", "old", "older")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCESS_TOKEN_LIFETIME", "300"),
        ("ACCESS_TOKEN_LIFETIME", True),
        ("ACCESS_TOKEN_LIFETIME", 0),
        ("ACCESS_TOKEN_LIFETIME", float("nan")),
        ("ACCESS_TOKEN_LIFETIME", None),
        ("REFRESH_TOKEN_LIFETIME", -1),
        ("REFRESH_GRACE", 61),
        ("SESSIONS_PER_USER", 0),
        ("SESSIONS_PER_USER", 1.5),
        ("TOKEN_PREFIX", "a_b"),
        ("TOKEN_PREFIX", ""),
        ("TOKEN_KEYS", []),
        ("TOKEN_KEYS", ["short"]),
        ("TOKEN_KEYS", "a" * 40),
        ("ACCESS_TOKEN_HEADER", "X Token"),
        ("CACHE", ""),
        ("HOOKS", OtherHooks),
        ("USER_FIELDS", "first_name"),
        ("USER_FROM_RECORD", 1),
        ("REFRESH_COOKIE", ""),
        ("REFRESH_COOKIE", "a b"),
        ("REFRESH_COOKIE", "a;b"),
        ("REFRESH_COOKIE", True),
        ("REFRESH_COOKIE", "sessionid"),
        ("REFRESH_COOKIE", "csrftoken"),
        ("BASE_URL", ""),
        ("BASE_URL", "app.example.com"),
        ("BASE_URL", "http://app.example.com"),
        ("BASE_URL", "https://"),
        ("BASE_URL", "https://app.example.com/?next=x"),
        ("BASE_URL", "https://app.example.com/#x"),
        ("BASE_URL", "https://user:secret@app.example.com"),
        ("BASE_URL", "https://app.example.com:port"),
        ("BASE_URL", "https://app.example.com/a b"),
        ("BASE_URL", "javascript:alert(1)"),
        ("BASE_URL", 1),
        ("LINKS", []),
        ("LINKS", {"reset": "/x#{key}"}),
        ("LINKS", {"confirm": "/x?key={key}"}),
        ("LINKS", {"confirm": "/x?key={key}#"}),
        ("LINKS", {"confirm": "/x#"}),
        ("LINKS", {"confirm": "/x#{key}{key}"}),
        ("LINKS", {"confirm": "https://other.example.com/#{key}"}),
        ("LINKS", {"confirm": None}),
        ("EMAIL_KEY_LIFETIMES", 60),
        ("EMAIL_KEY_LIFETIMES", {"reset": 60}),
        ("EMAIL_KEY_LIFETIMES", {"confirm": 59}),
        ("EMAIL_KEY_LIFETIMES", {"password_reset": timedelta(days=2)}),
        ("EMAIL_KEY_LIFETIMES", {"confirm": timedelta(days=8)}),
        ("MAIL_DELIVERY", "celery"),
        ("MAIL_DELIVERY", None),
        ("REQUIRE_CONFIRMED_EMAIL", "yes"),
        ("CONFIRM_LOGS_IN", 1),
    ],
)
def test_a_wrong_value_has_a_problem_and_is_not_read(name: str, value: Any) -> None:
    problem = Conf.options[name].problem(value)
    assert problem
    for _ in range(2):
        with (
            override_settings(ACCESSPASS={name: value}),
            pytest.raises(ImproperlyConfigured, match=re.escape(f"[{name!r}] {problem}.")),
        ):
            getattr(conf, name)
        getattr(conf, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BASE_URL", "https://app.example.com"),
        ("BASE_URL", "https://app.example.com:8443/shop/"),
        ("BASE_URL", "http://localhost:3000"),
        ("BASE_URL", "http://127.0.0.1"),
        ("BASE_URL", "http://[::1]:3000/"),
        ("LINKS", {}),
        ("LINKS", {"confirm": "/#/confirm?key={key}"}),
        ("EMAIL_KEY_LIFETIMES", {"password_reset": timedelta(hours=1), "confirm": 604_800}),
        ("MAIL_DELIVERY", "worker"),
    ],
)
def test_a_right_value_has_none(name: str, value: Any) -> None:
    assert Conf.options[name].problem(value) is None


def test_a_part_of_links_and_lifetimes_keeps_the_other_defaults() -> None:
    own = {"LINKS": {"confirm": "/c#{key}"}, "EMAIL_KEY_LIFETIMES": {"confirm": timedelta(hours=1)}}
    with override_settings(ACCESSPASS=own):
        assert conf.LINKS["confirm"] == "/c#{key}"
        assert conf.LINKS["password_reset"] == "/reset-password#key={key}"
        assert conf.EMAIL_KEY_LIFETIMES["confirm"] == 3600
        assert conf.EMAIL_KEY_LIFETIMES["password_reset"] == 7200


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/min", (10, 60)),
        ("1/s", (1, 1)),
        ("100/h", (100, 3_600)),
        ("5/hour", (5, 3_600)),
        ("1000/day", (1000, 86_400)),
    ],
)
def test_a_rate_is_a_limit_and_seconds(text: str, rate: tuple[int, float]) -> None:
    with override_settings(ACCESSPASS={"THROTTLES": {"login": {"account": text}}}):
        assert conf.THROTTLES["login"]["account"] == rate


def test_throttles_that_are_not_given_have_their_defaults() -> None:
    given = {"login": {"account": None}, "mail": None}
    with override_settings(ACCESSPASS={"THROTTLES": given}):
        found = conf.THROTTLES
    assert found["login"] == {"account_network": (10, 60), "account": None, "network": (1000, 3600)}
    assert found["mail"] == {"account_network": None, "account": None, "network": None}
    assert found["register"]["account_network"] == (10, 60)


def test_hooks_are_one_instance_of_the_class_that_is_named() -> None:
    assert type(conf.hooks()) is Hooks
    with override_settings(ACCESSPASS={"HOOKS": "tests.test_conf.OtherHooks"}):
        assert type(conf.hooks()) is OtherHooks
        assert conf.hooks() is conf.hooks()
