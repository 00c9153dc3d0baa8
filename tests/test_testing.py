from __future__ import annotations

import gc
import uuid
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.core import mail as django_mail
from django.core.cache import caches
from django.db import connection
from django.test import AsyncClient, Client, SimpleTestCase, override_settings
from django.test.runner import DiscoverRunner
from rest_framework.test import APIClient, RequestsClient

from accesspass import sessions
from accesspass.conf import conf
from accesspass.exceptions import InvalidToken
from accesspass.testing import (
    MemoryCacheMixin,
    age,
    assert_no_queries,
    assert_refused,
    authorization,
    fresh_cache,
    login,
    logout,
    mailed_key,
    memory_cache,
    other_node,
    override_accesspass,
)
from tests.conftest import PASSWORD

URL = "http://testserver/protected/"
DUMMY = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}


@pytest.fixture(autouse=True)
def _memory() -> Any:
    with memory_cache():
        yield


# Clients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [APIClient, Client, RequestsClient])
def test_a_client_that_is_logged_in_makes_no_query(user: Any, make: Any) -> None:
    client = make()
    login(client, user)
    with assert_no_queries():
        assert client.get(URL).status_code == 200
    logout(client)
    assert client.get(URL).status_code == 401


def test_neither_does_an_async_one(user: Any) -> None:
    client = AsyncClient()
    login(client, user)

    async def get() -> int:
        with assert_no_queries():
            return (await client.get("/protected/")).status_code

    assert async_to_sync(get)() == 200
    logout(client)
    assert async_to_sync(client.get)("/protected/").status_code == 401


def test_claims_are_those_of_the_session(user: Any, api: APIClient) -> None:
    login(api, user, claims={"role": "admin"})
    assert api.get("/admins/").status_code == 200


@pytest.mark.parametrize("make", [APIClient, AsyncClient, RequestsClient])
def test_login_obeys_the_name_of_the_header(user: Any, make: Any) -> None:
    client = make()
    get = async_to_sync(client.get) if make is AsyncClient else client.get
    with override_accesspass(ACCESS_TOKEN_HEADER="X-Token"):
        pair = login(client, user)
        assert authorization(pair) == {"X-Token": pair.access_token}
        assert get(URL).status_code == 200
        logout(client)
        assert get(URL).status_code == 401


def test_one_request_can_carry_the_token_of_somebody_else(user: Any, make_user: Any) -> None:
    client = Client()
    login(client, user)
    other = sessions.start(make_user("eve"))
    for token in (other, other.access_token):
        answer = client.get("/protected/", headers=authorization(token))
        assert answer.json()["user"] == str(other.user.pk)


# The cache ------------------------------------------------------------------------------------


def test_the_memory_cache_stands_under_the_alias_and_is_taken_away_again() -> None:
    before = settings.CACHES
    with override_settings(CACHES={"default": DUMMY, "accesspass": DUMMY}):
        with memory_cache():
            assert hasattr(caches["accesspass"], "publish")
            assert not hasattr(caches["default"], "publish")
        assert not hasattr(caches["accesspass"], "publish")
    assert before == settings.CACHES


def test_a_fresh_cache_knows_nothing_of_the_sessions_before(user: Any) -> None:
    pair = login(Client(), user)
    held: Any = caches["accesspass"]
    assert held.status()["entries"] == 1
    fresh_cache()
    fresh: Any = caches["accesspass"]
    assert fresh.status()["entries"] == 0
    assert fresh.status()["epoch"] != held.status()["epoch"]
    with pytest.raises(AssertionError, match="SELECT"), assert_no_queries():
        sessions.authenticate(pair.access_token)  # its row is there still


def test_it_is_fresh_also_under_settings_that_were_overridden_meanwhile() -> None:
    with override_settings(CACHES={**settings.CACHES, "more": DUMMY}):
        caches["accesspass"].set("key", 1)
        fresh_cache()
        assert caches["accesspass"].get("key") is None


def test_what_a_project_has_put_under_the_alias_itself_is_left_alone() -> None:
    mine = {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": f"memory://{uuid.uuid4()}",
    }
    with override_settings(CACHES={"default": DUMMY, "accesspass": mine}):
        caches["accesspass"].set("key", 1)
        fresh_cache()
        assert caches["accesspass"].get("key") == 1
    with override_settings(CACHES={"default": DUMMY}):
        fresh_cache()


def test_tests_leave_no_replica_behind() -> None:
    from accesspass.cache import backend
    from accesspass.cache.engines import memory

    caches["accesspass"].get("key")
    before = len(backend._followers), len(memory._logs)
    for _ in range(5):
        caches["accesspass"].set("key", 1)
        fresh_cache()
    caches["accesspass"].get("key")
    gc.collect()
    assert (len(backend._followers), len(memory._logs)) <= before


def test_another_node_refuses_what_was_revoked_here(user: Any) -> None:
    pair = login(Client(), user)
    here: Any = caches["accesspass"]
    with other_node():
        there: Any = caches["accesspass"]
        assert here.status()["epoch"] is not None
        with assert_no_queries():
            sessions.authenticate(pair.access_token)
        assert there.status()["entries"] == 1
        with pytest.raises(AssertionError, match="still accepted"):
            assert_refused(pair, within=0)
    age(pair, timedelta(days=1))
    with other_node():
        assert_refused(pair.access_token)


# The runner -----------------------------------------------------------------------------------


def test_the_mixin_puts_it_there_for_a_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiscoverRunner, "setup_test_environment", lambda self, **kw: None)
    monkeypatch.setattr(DiscoverRunner, "teardown_test_environment", lambda self, **kw: None)

    class Runner(MemoryCacheMixin, DiscoverRunner):
        pass

    with override_settings(CACHES={"default": DUMMY, "accesspass": DUMMY}):
        runner = Runner()
        runner.setup_test_environment()
        assert hasattr(caches["accesspass"], "publish")
        runner.teardown_test_environment()
        assert not hasattr(caches["accesspass"], "publish")


# Settings -------------------------------------------------------------------------------------


def test_one_option_is_changed_and_the_others_stay() -> None:
    with override_accesspass(ACCESS_TOKEN_LIFETIME=60):
        with override_accesspass(SESSIONS_PER_USER=2):
            assert conf.ACCESS_TOKEN_LIFETIME == 60
            assert conf.BASE_URL == "https://app.example.com"
        assert conf.SESSIONS_PER_USER == 50
    assert conf.ACCESS_TOKEN_LIFETIME == 300


@override_accesspass(ACCESS_TOKEN_LIFETIME=60)
class TestDecorated(SimpleTestCase):
    def test_the_class_has_it(self) -> None:
        assert conf.ACCESS_TOKEN_LIFETIME == 60
        assert conf.BASE_URL == "https://app.example.com"

    @override_accesspass(SESSIONS_PER_USER=2)
    def test_a_method_adds_to_it(self) -> None:
        assert (conf.ACCESS_TOKEN_LIFETIME, conf.SESSIONS_PER_USER) == (60, 2)


@override_accesspass(SESSIONS_PER_USER=3)
class TestInherited(TestDecorated):
    def test_a_subclass_adds_to_it(self) -> None:
        assert (conf.ACCESS_TOKEN_LIFETIME, conf.SESSIONS_PER_USER) == (60, 3)


def test_a_wrong_option_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean ACCESS_TOKEN_LIFETIME"):
        override_accesspass(ACCESS_TOKEN_LIFETIMES=60)
    with pytest.raises(ValueError, match=r"no option COLOUR$"):
        override_accesspass(COLOUR="red")
    with pytest.raises(ValueError, match="must be seconds"):
        override_accesspass(ACCESS_TOKEN_LIFETIME="soon")


# Time -----------------------------------------------------------------------------------------


def is_accepted(pair: sessions.TokenPair) -> bool:
    try:
        sessions.authenticate(pair.access_token)
    except InvalidToken:
        return False
    return True


def test_an_access_token_expires_and_its_session_goes_on(user: Any) -> None:
    pair = login(Client(), user)
    age(pair, 200)
    assert is_accepted(pair)
    age(pair, 200)
    assert not is_accepted(pair)
    young = sessions.refresh(pair.refresh_token)
    age(pair, 200)
    assert is_accepted(young)
    age(pair.session_id, 200)
    assert not is_accepted(young)


def test_what_was_aged_is_so_on_another_node_too(user: Any) -> None:
    pair = login(Client(), user)
    with other_node():
        assert is_accepted(pair)
    age(pair, conf.ACCESS_TOKEN_LIFETIME)
    with other_node():
        assert not is_accepted(pair)


def test_a_session_ends_and_one_that_nobody_uses_is_idle(user: Any) -> None:
    with override_accesspass(SESSION_IDLE_LIFETIME=1000):
        pair = login(Client(), user)
        age(pair, 1001)
        with pytest.raises(InvalidToken):
            sessions.refresh(pair.refresh_token)
    pair = login(Client(), user, lifetime=timedelta(seconds=100))
    age(pair, 101)
    assert not is_accepted(pair)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)


def test_the_grace_of_a_refresh_ends_not_a_moment_too_soon(user: Any) -> None:
    pair = login(Client(), user)
    successor = sessions.refresh(pair.refresh_token)
    age(pair, conf.REFRESH_GRACE - 2)
    assert sessions.refresh(pair.refresh_token).access_token == successor.access_token
    age(pair, 3)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)
    assert not is_accepted(successor)


# What is asserted -----------------------------------------------------------------------------


def test_a_query_is_seen_and_shown_without_its_parameters(user: Any) -> None:
    def ask() -> None:
        user.refresh_from_db()
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", ["a secret"])

    with pytest.raises(AssertionError, match="2 where none") as error, assert_no_queries():
        ask()
    assert "a secret" not in str(error.value)


def test_so_is_a_call_of_the_engine() -> None:
    with pytest.raises(AssertionError, match=r"MemoryEngine\.write"), assert_no_queries():
        caches["accesspass"].set("key", 1)
    with assert_no_queries():
        assert caches["accesspass"].get("key") == 1


def test_another_cache_may_only_be_asked_if_it_is_in_this_process(user: Any) -> None:
    local = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "testing"}
    with override_settings(CACHES={"default": DUMMY, "accesspass": local}), assert_no_queries():
        caches["accesspass"].get("key")
    with (
        override_settings(CACHES={"default": DUMMY, "accesspass": DUMMY}),
        pytest.raises(AssertionError, match=r"DummyCache\.get"),
        assert_no_queries(),
    ):
        caches["accesspass"].get("key")


def test_nothing_is_watched_any_more_afterwards() -> None:
    from django.db.backends.utils import CursorWrapper

    before = CursorWrapper.execute
    with pytest.raises(ZeroDivisionError), assert_no_queries():
        raise ZeroDivisionError
    assert CursorWrapper.execute is before


def test_the_key_of_a_mail_is_found(api: APIClient, make_user: Any) -> None:
    user = make_user("eve")
    with pytest.raises(AssertionError, match=r"to nobody@example\.com"):
        mailed_key(to="nobody@example.com")
    api.post("/auth/password/reset/", {"username": "eve@example.com"}, format="json")
    key = mailed_key(to=user.email)
    assert key in django_mail.outbox[-1].body
    assert mailed_key() == key
    body = {"key": key, "new_password": PASSWORD + "!"}
    assert api.post("/auth/password/reset/confirm/", body, format="json").status_code == 204
