"""One's sessions over HTTP: the list, ending one, ending all."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now
from django.test import RequestFactory, override_settings
from django.urls import reverse
from rest_framework.test import APIClient

from accesspass import sessions
from accesspass.cache import ReplicatedCache
from accesspass.cache.exceptions import EngineUnavailable
from accesspass.devices import device_name
from accesspass.models import Session
from accesspass.tokens import TokenType, mint
from tests.conftest import MakeUser
from tests.test_views import assert_error, bearer, post, url

FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    return sessions.start(user)


@pytest.fixture
def stranger(make_user: MakeUser) -> Any:
    return make_user("eve")


def is_good(api: APIClient, pair: sessions.TokenPair) -> bool:
    return bool(api.get(url("check"), **bearer(pair.access_token)).status_code == 200)


def listed(api: APIClient, pair: sessions.TokenPair) -> list[dict[str, Any]]:
    answer = api.get(url("session-list"), **bearer(pair.access_token))
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "no-store"
    found: list[dict[str, Any]] = answer.json()
    return found


def delete(api: APIClient, session_id: object, pair: sessions.TokenPair) -> Any:
    path = reverse("accesspass:session-detail", args=[session_id])
    return api.delete(path, **bearer(pair.access_token))


# The list


def test_the_list_shows_each_device(api: APIClient, user: Any) -> None:
    def began(agent: str, address: str = "192.0.2.7", **options: Any) -> sessions.TokenPair:
        made = RequestFactory().get("/", headers={"user-agent": agent}, REMOTE_ADDR=address)
        return sessions.start(user, request=made, **options)

    began(FIREFOX)
    began(IPHONE, "2001:db8::1", name="Ada's phone")
    began("MyApp/1.2 (build 7)", lifetime=3600)
    mine = sessions.start(user)
    found = {x["id"]: x for x in listed(api, mine)}
    assert len(found) == 4
    assert [x["id"] for x in found.values() if x["current"]] == [str(mine.session_id)]
    seen = {(x["device"], x["ip"]) for x in found.values()}
    assert seen == {
        ("Firefox on Windows", "192.0.2.7"),
        ("Ada's phone", "2001:db8::1"),
        ("MyApp", "192.0.2.7"),
        ("", None),
    }
    for shown in found.values():
        assert set(shown) == {
            "id",
            "device",
            "ip",
            "created_at",
            "last_used_at",
            "expires_at",
            "current",
        }
        for name in ("created_at", "last_used_at", "expires_at"):
            assert shown[name] is None or shown[name].endswith("Z")
        assert shown["created_at"] == shown["last_used_at"]
    ends = [x["expires_at"] for x in found.values() if x["expires_at"]]
    assert len(ends) == 1
    left = datetime.fromisoformat(ends[0].replace("Z", "+00:00")) - datetime.now(timezone.utc)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_times_are_utc_whatever_the_project_has(
    api: APIClient, user: Any, use_tz: bool, zone: str
) -> None:
    with override_settings(USE_TZ=use_tz, TIME_ZONE=zone):
        (shown,) = listed(api, sessions.start(user, lifetime=3600))
    now = datetime.now(timezone.utc)
    for name, seconds in (("created_at", 0), ("last_used_at", 0), ("expires_at", 3600)):
        expected = now + timedelta(seconds=seconds)
        found = datetime.fromisoformat(shown[name].replace("Z", "+00:00"))
        assert abs((found - expected).total_seconds()) < 30


def test_the_list_has_the_session_first_that_was_used_last(api: APIClient, user: Any) -> None:
    first, second, third = (sessions.start(user) for _ in range(3))
    for hours, pair in enumerate((first, third, second)):
        moved = Session.objects.filter(pk=pair.session_id)
        moved.update(last_used_at=F("last_used_at") - timedelta(hours=hours))
    expected = [str(x.session_id) for x in (first, third, second)]
    assert [x["id"] for x in listed(api, first)] == expected


def test_the_list_has_no_session_that_is_over_or_somebody_elses(
    api: APIClient, user: Any, stranger: Any, pair: sessions.TokenPair
) -> None:
    revoked, expired, outdated = (sessions.start(user) for _ in range(3))
    sessions.revoke(revoked.session_id)
    rows = Session.objects
    rows.filter(pk=expired.session_id).update(expires_at=Now() - timedelta(seconds=1))
    rows.filter(pk=outdated.session_id).update(auth_hash="of another password")
    sessions.start(stranger)
    assert [x["id"] for x in listed(api, pair)] == [str(pair.session_id)]
    idle = sessions.start(user)
    rows.filter(pk=idle.session_id).update(last_used_at=Now() - timedelta(days=2))
    with override_settings(ACCESSPASS={"SESSION_IDLE_LIFETIME": timedelta(days=1)}):
        assert [x["id"] for x in listed(api, pair)] == [str(pair.session_id)]


def test_the_list_costs_one_query(
    api: APIClient, user: Any, pair: sessions.TokenPair, django_assert_num_queries: Any
) -> None:
    for _ in range(5):
        sessions.start(user)
    sessions.publish_now(pair.session_id)
    with django_assert_num_queries(1):
        assert len(listed(api, pair)) == 6


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (FIREFOX, "Firefox on Windows"),
        (IPHONE, "Mobile Safari on iOS"),
        ("curl/8.5.0", "curl"),
        ("MyApp/1.2 (iPhone; iOS 17.5; Scale/3.00)", "Mobile Safari UI/WKWebView on iOS"),
        ("MyApp/1.2", "MyApp"),
        ("", ""),
        ("/", ""),
        ("x" * 300, "x" * 50),
        ("<script>alert(1)</script>", "<script>alert(1)<"),
    ],
)
def test_a_device_is_named_after_its_user_agent(agent: str, name: str) -> None:
    assert device_name(agent) == name


# End one


def test_a_user_ends_one_session_and_no_other(
    api: APIClient, user: Any, pair: sessions.TokenPair
) -> None:
    other, third = sessions.start(user), sessions.start(user)
    answer = delete(api, other.session_id, pair)
    assert (answer.status_code, answer.content) == (204, b"")
    assert [is_good(api, x) for x in (pair, other, third)] == [True, False, True]
    assert_error(delete(api, other.session_id, pair), 404, "not_found")
    assert delete(api, str(third.session_id).upper(), pair).status_code == 204
    assert not is_good(api, third)


def test_a_user_may_end_the_session_in_use(api: APIClient, pair: sessions.TokenPair) -> None:
    assert delete(api, pair.session_id, pair).status_code == 204
    assert not is_good(api, pair)


def test_another_users_session_is_not_found_and_goes_on(
    api: APIClient, stranger: Any, pair: sessions.TokenPair
) -> None:
    theirs = sessions.start(stranger)
    assert_error(delete(api, theirs.session_id, pair), 404, "not_found")
    assert is_good(api, theirs)


@pytest.mark.parametrize(
    "session_id", [str(uuid.UUID(int=5)), "x", "1", "%00", "\udcff", "x" * 999]
)
def test_what_is_no_session_is_not_found(
    api: APIClient, pair: sessions.TokenPair, session_id: str
) -> None:
    path = url("session-list").encode() + session_id.encode("utf-8", "surrogateescape") + b"/"
    answer = api.delete(path.decode("latin-1"), **bearer(pair.access_token))
    assert_error(answer, 404, "not_found")


@pytest.mark.django_db
@pytest.mark.parametrize("token", [None, "nonsense"])
def test_sessions_need_an_access_token(api: APIClient, token: str | None) -> None:
    headers = {} if token is None else bearer(token)
    for answer in (
        api.get(url("session-list"), **headers),
        api.delete(reverse("accesspass:session-detail", args=["x"]), **headers),
    ):
        assert_error(answer, 401, "token_required" if token is None else "invalid_token")


def test_other_methods_are_refused(api: APIClient, pair: sessions.TokenPair) -> None:
    detail = reverse("accesspass:session-detail", args=[pair.session_id])
    for path in (url("session-list"), detail):
        answer = api.post(path, {}, **bearer(pair.access_token))
        assert_error(answer, 405, "method_not_allowed")
    assert is_good(api, pair)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine acknowledges nothing."""
    monkeypatch.setattr("accesspass.views.sessions.revoke", lambda *_, **__: False)
    monkeypatch.setattr("accesspass.views.sessions.logout", lambda *_, **__: False)
    monkeypatch.setattr("accesspass.views.connections", _NotInATest())


class _NotInATest(dict[str, Any]):
    in_atomic_block = False

    def __missing__(self, alias: str) -> Any:
        return self


def test_a_revocation_that_nobody_acknowledged_is_said_to_be_pending(
    api: APIClient, pair: sessions.TokenPair, unreachable: None
) -> None:
    for answer in (
        delete(api, pair.session_id, pair),
        post(api, "logout-all", {}, **bearer(pair.access_token)),
    ):
        assert (answer.status_code, answer.json()) == (202, {"sessions_ended": "pending"})


# End all


@pytest.mark.parametrize("by", ["access", "refresh", "old_refresh"])
def test_logout_everywhere_ends_every_session_of_the_user(
    api: APIClient, user: Any, stranger: Any, by: str
) -> None:
    pair, other, theirs = sessions.start(user), sessions.start(user), sessions.start(stranger)
    if by == "access":
        answer = post(api, "logout-all", {}, **bearer(pair.access_token))
    else:
        if by == "old_refresh":
            sessions.refresh(pair.refresh_token)
        answer = post(api, "logout-all", {"refresh_token": pair.refresh_token})
    assert (answer.status_code, answer.content) == (204, b"")
    assert [is_good(api, x) for x in (pair, other, theirs)] == [False, False, True]


def test_a_token_that_is_dead_or_unknown_ends_nothing_and_gets_the_same_answer(
    api: APIClient, user: Any, pair: sessions.TokenPair
) -> None:
    dead = sessions.start(user)
    sessions.revoke(dead.session_id)
    unknown = mint(TokenType.ACCESS, b"unknown session!", 2**32 - 1).text
    for answer in (
        post(api, "logout-all", {}, **bearer(dead.access_token)),
        post(api, "logout-all", {"refresh_token": dead.refresh_token}),
        post(api, "logout-all", {}, **bearer(unknown)),
        post(api, "logout-all", {}, **bearer("nonsense")),
        post(api, "logout-all", {"refresh_token": "nonsense"}),
    ):
        assert (answer.status_code, answer.content) == (204, b"")
    assert is_good(api, pair)


def test_an_expired_access_token_logs_nobody_out_everywhere(
    api: APIClient, pair: sessions.TokenPair
) -> None:
    expired = mint(TokenType.ACCESS, pair.session_id.bytes, 1_000_000_000).text
    assert_error(post(api, "logout-all", {}, **bearer(expired)), 401, "invalid_token")
    assert_error(post(api, "logout-all", {}), 400, "token_required")
    assert is_good(api, pair)


@pytest.mark.django_db(transaction=True)
def test_logout_everywhere_is_pending_until_the_engine_has_heard_of_all_of_it(
    api: APIClient, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EngineUnavailable("gone")

    user = make_user()
    pair, other = sessions.start(user), sessions.start(user)
    with monkeypatch.context() as patch:
        patch.setattr(ReplicatedCache, "publish", fail)
        for _ in range(2):
            answer = post(api, "logout-all", {"refresh_token": pair.refresh_token})
            assert (answer.status_code, answer.json()) == (202, {"sessions_ended": "pending"})
    assert post(api, "logout-all", {"refresh_token": pair.refresh_token}).status_code == 204
    assert sessions.tidy() == 0
    assert [is_good(api, x) for x in (pair, other)] == [False, False]
