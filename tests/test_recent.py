"""What is kept of tokens found good: it saves work, and changes nothing that anybody can see."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import models
from django.db.models.signals import post_init, pre_init
from django.test import override_settings

from accesspass import accounts, background, recent, records, session_cache, sessions
from accesspass.authentication import TokenAuthentication
from accesspass.hooks import Hooks
from accesspass.tokens import TokenType, parse
from tests.sessions import forget, is_refused, options, plain, queries, replicated, user

__all__ = ["plain", "replicated", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


def kept() -> dict[bytes, Any]:
    return {**recent._old, **recent._young}


def use(token: str) -> None:
    """Authenticate as often as it takes to be remembered, if it can be."""
    for _ in range(2):
        sessions.authenticate(token)


def session_parts(record: Any) -> list[Any]:
    return [getattr(record, name) for name in record.__slots__]


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    """A session whose token is remembered."""
    started = sessions.start(user, claims={"role": "editor"})
    use(started.access_token)
    return started


def test_a_token_is_kept_when_it_comes_a_second_time(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "_ONCE", 3)
    token = sessions.start(user).access_token
    for _ in range(5):
        sessions.authenticate(sessions.start(user).access_token)
        assert kept() == {}
        assert len(recent._once) <= 3
    sessions.authenticate(token)
    assert recent.find(token) is None
    sessions.authenticate(token)
    assert recent.find(token) is not None


def test_a_token_that_was_found_good_is_not_parsed_again(
    pair: sessions.TokenPair, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(session_cache, "parse")
    with queries(0):
        assert sessions.authenticate(pair.access_token)[0] == user


def test_what_is_remembered_is_what_the_record_says(pair: sessions.TokenPair) -> None:
    remembered = recent.find(pair.access_token)
    token = parse(TokenType.ACCESS, pair.access_token)
    assert remembered is not None
    assert token is not None
    cache = records.open_cache()
    read = records.read(token, cache.get(records.key(token.id)), cache.now())
    assert read is not None
    assert session_parts(remembered[1]) == session_parts(read[1])
    assert remembered[1].claims == {"role": "editor"}
    (attributes, state), (others, other_state) = (
        ({k: v for k, v in vars(found).items() if k != "_state"}, vars(found._state))
        for found in (remembered[0], read[0])
    )
    assert attributes == others
    assert state == other_state
    assert type(remembered[0]) is type(read[0])
    assert remembered[0].get_deferred_fields() == read[0].get_deferred_fields()


@pytest.mark.parametrize("nested", [{}, {"role": "editor"}, {"teams": ["a", {"b": 1}]}])
@pytest.mark.parametrize("where", ["claims", "meta"])
def test_each_request_has_a_user_and_a_session_of_its_own(
    user: Any, where: str, nested: Any
) -> None:
    if where == "meta":
        accounts.update(user, meta=nested)
    claims = nested if where == "claims" else {}
    token = sessions.start(user, claims=claims).access_token
    for _ in range(4):
        found, record = sessions.authenticate(token)
        assert found.get_username() == user.get_username()
        assert found.is_active
        assert getattr(record, where) == nested
        assert not hasattr(found, "noted")
        # What a careless view might do.
        found.noted = True
        found.is_active = False
        setattr(found, found.USERNAME_FIELD, "somebody else")
        found._state.db = "elsewhere"
        found._state.fields_cache["other"] = 1
        record.claims["added"] = record.meta["added"] = 1
        getattr(record, where).get("teams", []).append("c")


@pytest.mark.parametrize("how", ["revoke", "deactivate", "delete"])
def test_a_revocation_is_seen_although_the_token_is_remembered(
    pair: sessions.TokenPair, user: Any, how: str
) -> None:
    assert kept()
    if how == "revoke":
        sessions.revoke(pair.session_id)
    elif how == "deactivate":
        user.is_active = False
        user.save()
    else:
        user.delete()
    with queries(0):
        assert is_refused(pair.access_token)


def test_a_change_of_the_user_is_seen_by_the_next_request(
    pair: sessions.TokenPair, user: Any
) -> None:
    assert not sessions.authenticate(pair.access_token)[0].is_staff
    user.is_staff = True
    user.save()
    for _ in range(3):
        with queries(0):
            assert sessions.authenticate(pair.access_token)[0].is_staff


def test_a_remembered_token_expires_before_its_entry(user: Any) -> None:
    with options(ACCESS_TOKEN_LIFETIME=1):
        pair = sessions.start(user)
        _, record = sessions.authenticate(pair.access_token)
        # What is read from the row is held for a lifetime from then on.
        time.sleep(max(0.0, record.access_expires_at - time.time() - 0.4))
        forget(pair)
        for _ in range(2):
            sessions.authenticate(pair.access_token)
        assert recent.find(pair.access_token) is not None
        time.sleep(max(0.0, record.access_expires_at - time.time()) + 0.05)
        assert recent.find(pair.access_token) is None
        assert is_refused(pair.access_token)


def test_a_remembered_session_ends(user: Any) -> None:
    token = sessions.start(user, lifetime=1).access_token
    use(token)
    assert recent.find(token) is not None
    time.sleep(1.05)
    assert recent.find(token) is None
    assert is_refused(token)


def test_what_is_known_of_an_ended_session_goes(pair: sessions.TokenPair) -> None:
    sessions.revoke(pair.session_id)
    assert is_refused(pair.access_token)
    assert kept() == {}


def test_the_router_is_asked_for_each_request(user: Any) -> None:
    class Router:
        def db_for_write(self, model: Any, **_: Any) -> str:
            return aliases[-1]

    aliases = ["default"]
    with override_settings(DATABASE_ROUTERS=[Router()]):
        token = sessions.start(user).access_token
        use(token)
        aliases.append("another")
        assert sessions.authenticate(token)[0]._state.db == "another"


def test_a_user_who_is_loaded_is_loaded_each_time(user: Any) -> None:
    with options(USER_FROM_RECORD=False):
        token = sessions.start(user).access_token
        for _ in range(4):
            with queries(1):
                sessions.authenticate(token)


def test_a_token_is_not_remembered_where_the_key_may_depend_on_more(user: Any) -> None:
    """On the tenant, say, whom a request is for."""
    tenant = ["a"]

    def make_key(key: str, prefix: str, version: int) -> str:
        return f"{tenant[-1]}:{key}"

    alias = {**settings.CACHES["accesspass"], "KEY_FUNCTION": make_key}
    with override_settings(CACHES={**settings.CACHES, "accesspass": alias}):
        token = sessions.start(user).access_token
        for _ in range(3):
            with queries(0):
                sessions.authenticate(token)
        tenant.append("b")
        with queries(1):
            sessions.authenticate(token)


@pytest.mark.parametrize("claims", [None, [], "text", {"large": "x" * 1_000}])
def test_what_is_odd_or_large_is_read_each_time(
    user: Any, claims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hooks, "claims", lambda *_: claims)
    token = sessions.start(user).access_token
    for _ in range(4):
        assert sessions.authenticate(token)[1].claims == claims
    assert recent.find(token) is None


async def _twice(token: str) -> list[Any]:
    return [await sessions.aauthenticate(token) for _ in range(2)]


def test_an_event_loop_remembers_too(
    pair: sessions.TokenPair, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(session_cache, "parse")
    assert [found for found, _ in asyncio.run(_twice(pair.access_token))] == [user, user]


@pytest.mark.parametrize("signal", [pre_init, post_init])
def test_what_a_project_does_when_a_user_is_made_is_done_for_each_request(
    user: Any, signal: Any
) -> None:
    made = []

    def note(**_: Any) -> None:
        made.append(1)

    signal.connect(note, sender=get_user_model())
    try:
        token = sessions.start(user).access_token
        made.clear()
        for number in range(1, 5):
            sessions.authenticate(token)
            assert len(made) == number
    finally:
        signal.disconnect(note, sender=get_user_model())


@pytest.mark.parametrize("name", ["from_db", "__init__", "__setattr__"])
def test_a_user_model_that_makes_its_users_itself_does_so_for_each_request(
    user: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = get_user_model(), []
    original = getattr(model, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        # As a classmethod it is given the class, which the original has already.
        return original(*(args[1:] if name == "from_db" else args), **kwargs)

    monkeypatch.setattr(model, name, classmethod(counted) if name == "from_db" else counted)
    token = sessions.start(user).access_token
    before = []
    for _ in range(5):
        calls.clear()
        sessions.authenticate(token)
        before.append(len(calls))
    assert min(before) == max(before) > 0


class Mixin:
    """Brings along what runs when a model is made from a row."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


def _model(*bases: type) -> Any:
    class Meta:
        abstract = True
        app_label = "tests"

    return type("Made", bases, {"__module__": __name__, "Meta": Meta})


def test_a_mixin_may_have_a_say_wherever_it_stands() -> None:
    new, init = (type("Mixin", (), {name: vars(Mixin)[name]}) for name in ("__new__", "__init__"))
    assert recent._is_made_plainly(_model(models.Model))
    assert recent._is_made_plainly(_model(type("Mixin", (), {"other": 1}), models.Model))
    assert not recent._is_made_plainly(_model(new, models.Model))
    assert not recent._is_made_plainly(_model(init, models.Model))
    assert not recent._is_made_plainly(_model(models.Model, init))  # Django's own calls it


def test_a_user_with_a_value_that_can_be_changed_is_made_anew(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "_UNCHANGEABLE", recent._UNCHANGEABLE - {bool})
    token = sessions.start(user).access_token
    use(token)
    assert recent.find(token) is None


def test_only_so_many_are_kept_and_those_in_use_stay(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "_LIMIT", 3)
    used = sessions.start(user).access_token
    for _ in range(12):
        use(used)
        use(sessions.start(user).access_token)
        assert len(recent._young) <= 3
        assert len(recent._old) <= 3
    assert recent.find(used) is not None


def test_a_changed_setting_forgets_all(pair: sessions.TokenPair) -> None:
    assert recent.find(pair.access_token) is not None
    with override_settings(LANGUAGE_CODE="de"):
        assert recent.find(pair.access_token) is None


def test_a_request_with_a_remembered_token_sees_that_the_background_thread_runs(
    pair: sessions.TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(background, "start", lambda: started.append(1))
    assert recent.find(pair.access_token) is not None
    TokenAuthentication().find(pair.access_token)
    assert started == [1]


def test_nothing_is_kept_where_the_cache_does_not_say_whether_it_still_holds(
    plain: None, user: Any
) -> None:
    token = sessions.start(user).access_token
    for _ in range(3):
        with queries(0):
            sessions.authenticate(token)
        assert recent.find(token) is None


def test_no_token_is_kept(pair: sessions.TokenPair) -> None:
    assert recent.find(pair.access_token) is not None
    assert pair.access_token[-40:] not in repr(kept())


def test_an_error_further_down_shows_no_token(
    pair: sessions.TokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(recent, "_copy", fail)
    with pytest.raises(RuntimeError) as caught:
        recent.find(pair.access_token)
    (frame,) = (entry.frame for entry in caught.traceback if entry.name == "find")
    assert pair.access_token not in repr(frame.f_locals)


@pytest.mark.parametrize("token", [None, 7, b"x", "", "x" * 10**6, "\ud800", "é"])
def test_what_was_never_found_good_is_unknown(token: object) -> None:
    assert recent.find(token) is None
