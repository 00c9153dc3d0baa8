"""Sessions: what they promise, on the replicated cache and on a plain one."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
import threading
import time
import uuid
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest
from django.test import override_settings

from accesspass import records, sessions
from accesspass.exceptions import InvalidCredentials, InvalidToken, TokenRequired, Unavailable
from accesspass.models import Account, Session
from accesspass.signals import refresh_token_reused, session_revoked, session_started
from accesspass.tokens import TokenType, mint, parse
from tests.sessions import (
    cache_settings,
    forget,
    is_refused,
    make_user,
    plain,
    queries,
    replicated,
    user,
)

__all__ = ["plain", "replicated", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


# authenticate


def test_a_session_that_was_just_started_is_known_without_a_query(user: Any) -> None:
    pair = sessions.start(user)
    with queries(0):
        found, record = sessions.authenticate(pair.access_token)
        assert found == user
        assert type(found) is type(user)
        assert found.get_username() == user.get_username()
        assert found.is_active
    assert record.id == pair.session_id
    assert record.expires_at is None
    assert 295 <= record.expires_in <= 300


def test_a_miss_costs_one_query_and_the_next_request_none(user: Any) -> None:
    pair = sessions.start(user)
    forget(pair)
    with queries(1):
        assert sessions.authenticate(pair.access_token)[0] == user
    with queries(0):
        assert sessions.authenticate(pair.access_token)[0] == user


@pytest.mark.parametrize("token", [None, "", "x", b"\xff", 7, "ap_at_" + "A" * 76, "é" * 82])
def test_what_is_no_token_of_ours_is_refused_without_a_query(token: object) -> None:
    with queries(0), pytest.raises(InvalidToken):
        sessions.authenticate(token)


def test_a_forged_token_of_a_live_session_is_refused_without_a_query(user: Any) -> None:
    pair = sessions.start(user)
    with override_settings(SECRET_KEY="another key that is long enough to be one"):
        forged = mint(TokenType.ACCESS, pair.session_id.bytes, int(time.time()) + 300)
    with queries(0):
        assert is_refused(forged.text)


def test_an_expired_token_is_refused_without_a_query() -> None:
    expired = mint(TokenType.ACCESS, uuid.uuid4().bytes, int(time.time()) - 1)
    with queries(0):
        assert is_refused(expired.text)


def test_a_token_expires_although_its_record_is_held(user: Any) -> None:
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "ACCESS_TOKEN_LIFETIME": 1}):
        pair = sessions.start(user)
        assert not is_refused(pair.access_token)
        token = parse(TokenType.ACCESS, pair.access_token)
        assert token is not None
        time.sleep(max(0.0, token.number - time.time()) + 0.05)
        assert is_refused(pair.access_token)


def test_a_token_for_a_row_that_is_missing_asks_once_a_second() -> None:
    token = mint(TokenType.ACCESS, uuid.uuid4().bytes, int(time.time()) + 300)
    with queries(1):
        assert is_refused(token.text)
    with queries(0):
        assert is_refused(token.text)


def test_a_refresh_token_is_no_access_token(user: Any) -> None:
    pair = sessions.start(user)
    with queries(0):
        assert is_refused(pair.refresh_token)


def test_an_authentic_token_that_was_never_given_out_is_refused(user: Any) -> None:
    pair = sessions.start(user)
    minted = mint(TokenType.ACCESS, pair.session_id.bytes, int(time.time()) + 300)
    assert is_refused(minted.text)
    assert not is_refused(pair.access_token)


def test_a_database_that_is_down_is_unavailable_and_not_a_refusal(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = sessions.start(user)
    forget(pair)

    def fail(*args: Any) -> None:
        raise OperationalError("the database is down")

    with connection.execute_wrapper(fail), pytest.raises(Unavailable):
        sessions.authenticate(pair.access_token)
    assert not is_refused(pair.access_token)


def test_nothing_is_filled_from_inside_a_transaction(user: Any) -> None:
    pair = sessions.start(user)
    forget(pair)
    with transaction.atomic():
        sessions.authenticate(pair.access_token)
    with queries(1):
        sessions.authenticate(pair.access_token)


def test_the_user_of_a_request_never_holds_the_password(user: Any) -> None:
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    assert "password" in found.get_deferred_fields()
    assert user.password not in repr(caches["accesspass"].get(f"session:{pair.session_id.hex}"))


def test_further_user_fields_come_without_a_query(user: Any) -> None:
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "USER_FIELDS": ["last_login"]}):
        pair = sessions.start(user)
        with queries(0):
            assert sessions.authenticate(pair.access_token)[0].last_login is None
    # A record of another layout is a miss. The first one says so in the account, once.
    with queries(3):
        sessions.authenticate(pair.access_token)
    with queries(0):
        sessions.authenticate(pair.access_token)
    forget(pair)
    with queries(1):
        sessions.authenticate(pair.access_token)


def test_user_from_record_false_loads_the_user_by_one_query(user: Any) -> None:
    pair = sessions.start(user)
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "USER_FROM_RECORD": False}):
        with queries(1):
            found, _ = sessions.authenticate(pair.access_token)
        assert not found.get_deferred_fields()


def test_on_an_event_loop_a_hit_stays_on_it(user: Any) -> None:
    import asyncio

    pair = sessions.start(user)
    with queries(0):
        found, _ = asyncio.run(sessions.aauthenticate(pair.access_token))
    assert found == user


# start


def test_a_login_that_a_ban_has_overtaken_is_refused(user: Any) -> None:
    stale = get_user_model().objects.get(pk=user.pk)
    user.is_active = False
    user.save()
    with pytest.raises(InvalidCredentials):
        sessions.start(stale)
    assert not Session.objects.exists()


def test_a_login_that_a_new_password_has_overtaken_is_refused(user: Any) -> None:
    stale = get_user_model().objects.get(pk=user.pk)
    user.set_password("another one")
    user.save()
    with pytest.raises(InvalidCredentials):
        sessions.start(stale)


def test_a_login_of_a_user_who_is_gone_is_refused(user: Any) -> None:
    stale = get_user_model().objects.get(pk=user.pk)
    user.delete()
    with pytest.raises(InvalidCredentials):
        sessions.start(stale)


def test_every_login_has_a_session_of_its_own(user: Any) -> None:
    first, second = sessions.start(user), sessions.start(user)
    assert first.session_id != second.session_id
    sessions.revoke(first.session_id)
    assert is_refused(first.access_token)
    assert not is_refused(second.access_token)


def test_the_oldest_session_gives_way_at_the_limit(user: Any) -> None:
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "SESSIONS_PER_USER": 2}):
        pairs = [sessions.start(user) for _ in range(3)]
    assert [is_refused(pair.access_token) for pair in pairs] == [True, False, False]


def test_a_session_ends_when_its_lifetime_is_over(user: Any) -> None:
    pair = sessions.start(user, lifetime=datetime.timedelta(hours=1), name="laptop\0\n")
    assert pair.refresh_expires_in == 3600
    row = Session.objects.get(pk=pair.session_id)
    assert row.name == "laptop"
    row.expires_at -= datetime.timedelta(hours=2)
    row.save(update_fields=["expires_at"])
    forget(pair)
    assert is_refused(pair.access_token)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)


@pytest.mark.parametrize("lifetime", [0, -1, float("nan"), float("inf"), 10**12])
def test_a_lifetime_that_is_none_is_refused(user: Any, lifetime: float) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        sessions.start(user, lifetime=lifetime)
    assert not Session.objects.exists()


def test_an_access_token_does_not_outlive_its_session(user: Any) -> None:
    pair = sessions.start(user, lifetime=60)
    token = parse(TokenType.ACCESS, pair.access_token)
    assert token is not None
    assert token.number <= time.time() + 60
    assert pair.expires_in <= 60


def test_no_usable_secret_is_stored(user: Any) -> None:
    pair = sessions.start(user)
    pair = sessions.refresh(pair.refresh_token)
    row = repr(Session.objects.filter(pk=pair.session_id).values().get())
    record = repr(caches["accesspass"].get(f"session:{pair.session_id.hex}"))
    for type_, text in (
        (TokenType.ACCESS, pair.access_token),
        (TokenType.REFRESH, pair.refresh_token),
    ):
        token = parse(type_, text)
        assert token is not None
        for stored in (row, record, repr(pair)):
            assert text not in stored
            assert token.secret.hex() not in stored
            assert repr(token.secret) not in stored


def test_claims_are_those_of_the_account_under_those_of_the_session(user: Any) -> None:
    sessions.start(user)
    Account.objects.filter(user=user.pk).update(claims={"role": "admin", "team": "a"})
    pair = sessions.start(user, claims={"team": "b"})
    _, record = sessions.authenticate(pair.access_token)
    assert record.claims == {"role": "admin", "team": "b"}


def test_what_the_client_said_of_itself_comes_without_a_query(user: Any) -> None:
    sessions.start(user)
    Account.objects.filter(user=user.pk).update(meta={"nick": "a"})
    pair = sessions.start(user)
    with queries(0):
        assert sessions.authenticate(pair.access_token)[1].meta == {"nick": "a"}


def test_session_started_is_sent_once_it_is_committed(user: Any) -> None:
    seen: list[Any] = []

    def receiver(sender: type, **kwargs: Any) -> None:
        seen.append((sender, kwargs["user"], kwargs["session_id"]))

    session_started.connect(receiver)
    try:
        with transaction.atomic():
            pair = sessions.start(user)
            assert seen == []
    finally:
        session_started.disconnect(receiver)
    assert seen == [(type(user), user, pair.session_id)]


# refresh


def test_a_refresh_gives_a_new_pair_and_keeps_the_session(user: Any) -> None:
    pair = sessions.start(user)
    new = sessions.refresh(pair.refresh_token)
    assert new.session_id == pair.session_id
    assert {new.access_token, new.refresh_token}.isdisjoint({pair.access_token, pair.refresh_token})
    with queries(0):
        assert not is_refused(new.access_token)
        assert not is_refused(pair.access_token)


def test_a_refresh_costs_three_statements(user: Any) -> None:
    pair = sessions.start(user)
    with queries(3):
        sessions.refresh(pair.refresh_token)


def test_a_refresh_that_takes_along_what_is_pending_costs_four_statements(user: Any) -> None:
    pair = sessions.start(user)
    Session.objects.filter(pk=pair.session_id).update(publication_pending=True)
    with queries(4):
        sessions.refresh(pair.refresh_token)
    assert not Session.objects.get(pk=pair.session_id).publication_pending


def test_a_refresh_within_the_grace_costs_two_statements_and_writes_nothing(user: Any) -> None:
    pair = sessions.start(user)
    sessions.refresh(pair.refresh_token)
    before = Session.objects.filter(pk=pair.session_id).values().get()
    with queries(2):
        sessions.refresh(pair.refresh_token)
    assert Session.objects.filter(pk=pair.session_id).values().get() == before


def test_a_refresh_that_is_refused_costs_two_statements(user: Any) -> None:
    pair = sessions.start(user)
    sessions.revoke(pair.session_id)
    with queries(2), pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)


def test_the_same_refresh_token_within_the_grace_gets_the_identical_pair(user: Any) -> None:
    pair = sessions.start(user)
    first, second = sessions.refresh(pair.refresh_token), sessions.refresh(pair.refresh_token)
    assert (first.access_token, first.refresh_token) == (second.access_token, second.refresh_token)
    assert Session.objects.get(pk=pair.session_id).generation == 1


def test_a_grace_of_none_has_no_instant_in_it(user: Any, monkeypatch: Any) -> None:
    """SQLite counts milliseconds, and two refreshes may come within one."""
    select = sessions._select

    def at_once(*wanted: Any) -> Any:
        session = select(*wanted)
        if session is not None:
            session.clock = session.rotated_at or session.clock  # type: ignore[attr-defined]
        return session

    monkeypatch.setattr(sessions, "_select", at_once)
    pair = sessions.start(user)
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "REFRESH_GRACE": 0}):
        sessions.refresh(pair.refresh_token)
        with pytest.raises(InvalidToken):
            sessions.refresh(pair.refresh_token)


def test_the_identical_pair_survives_a_rotation_of_the_token_keys(user: Any) -> None:
    old, new = "the old key, long enough to be used" * 2, "the new key, long enough to be used" * 2
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "TOKEN_KEYS": [old]}):
        pair = sessions.start(user)
        first = sessions.refresh(pair.refresh_token)
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "TOKEN_KEYS": [new, old]}):
        second = sessions.refresh(pair.refresh_token)
        assert (first.access_token, first.refresh_token) == (
            second.access_token,
            second.refresh_token,
        )
        assert not is_refused(sessions.refresh(second.refresh_token).access_token)


@pytest.mark.parametrize("rotations", [1, 2])
def test_reuse_after_the_grace_or_a_rotation_later_ends_the_session(
    user: Any, rotations: int
) -> None:
    seen: list[uuid.UUID] = []

    def receiver(sender: type, session_id: uuid.UUID, **_: Any) -> None:
        seen.append(session_id)

    pair = newest = sessions.start(user)
    for _ in range(rotations):
        newest = sessions.refresh(newest.refresh_token)
    if rotations == 1:
        row = Session.objects.get(pk=pair.session_id)
        row.rotated_at -= datetime.timedelta(seconds=11)  # type: ignore[operator]
        row.save(update_fields=["rotated_at"])
    refresh_token_reused.connect(receiver)
    try:
        with pytest.raises(InvalidToken):
            sessions.refresh(pair.refresh_token)
    finally:
        refresh_token_reused.disconnect(receiver)
    assert seen == [pair.session_id]
    assert is_refused(newest.access_token)
    with pytest.raises(InvalidToken):
        sessions.refresh(newest.refresh_token)
    assert Session.objects.get(pk=pair.session_id).revoked_reason == "refresh_token_reused"


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_a_refresh_token_that_was_never_given_out_ends_nothing(user: Any, ahead: int) -> None:
    pair = sessions.start(user)
    minted = mint(TokenType.REFRESH, pair.session_id.bytes, ahead)
    with pytest.raises(InvalidToken):
        sessions.refresh(minted.text)
    assert not is_refused(pair.access_token)
    assert sessions.refresh(pair.refresh_token)


@pytest.mark.parametrize("token", [None, "", 7, b"x", "ap_rt_" + "A" * 76])
def test_what_is_no_refresh_token_of_ours_costs_no_query(token: object) -> None:
    with queries(0), pytest.raises(InvalidToken):
        sessions.refresh(token)


def test_an_idle_session_cannot_be_refreshed(user: Any) -> None:
    with override_settings(ACCESSPASS={**settings.ACCESSPASS, "SESSION_IDLE_LIFETIME": 60}):
        pair = sessions.start(user)
        row = Session.objects.get(pk=pair.session_id)
        row.last_used_at -= datetime.timedelta(seconds=61)
        row.save(update_fields=["last_used_at"])
        with pytest.raises(InvalidToken):
            sessions.refresh(pair.refresh_token)


def test_a_refresh_never_moves_the_end_of_the_session(user: Any) -> None:
    pair = sessions.start(user, lifetime=1000)
    before = Session.objects.get(pk=pair.session_id).expires_at
    sessions.refresh(pair.refresh_token)
    assert Session.objects.get(pk=pair.session_id).expires_at == before


def test_at_refresh_the_database_decides_whatever_was_changed_behind_us(user: Any) -> None:
    pair = sessions.start(user)
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)


def test_refresh_refuses_to_run_inside_a_transaction(user: Any) -> None:
    pair = sessions.start(user)
    with transaction.atomic(), pytest.raises(RuntimeError):
        sessions.refresh(pair.refresh_token)


def test_only_the_last_four_access_tokens_are_good(user: Any) -> None:
    pairs = [sessions.start(user)]
    for _ in range(5):
        pairs.append(sessions.refresh(pairs[-1].refresh_token))
    refused = [is_refused(pair.access_token) for pair in pairs]
    assert refused == [True, True, False, False, False, False]


# revoke and logout


def test_a_revoked_session_is_refused_without_a_query(user: Any) -> None:
    pair = sessions.start(user)
    assert sessions.revoke(pair.session_id) is True
    with queries(0):
        assert is_refused(pair.access_token)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)
    assert Session.objects.get(pk=pair.session_id).publication_pending is False


def test_a_revocation_stays_although_the_cache_is_emptied(user: Any) -> None:
    pair = sessions.start(user)
    sessions.revoke(pair.session_id)
    caches["accesspass"].clear()
    with queries(1):
        assert is_refused(pair.access_token)
    with queries(0):
        assert is_refused(pair.access_token)


def test_sessions_survive_an_emptied_cache(user: Any) -> None:
    pair = sessions.start(user)
    caches["accesspass"].clear()
    assert not is_refused(pair.access_token)


def test_a_revocation_inside_a_transaction_is_refused_at_once_there(user: Any) -> None:
    pair = sessions.start(user)
    with transaction.atomic():
        assert sessions.revoke(pair.session_id) is False
        assert is_refused(pair.access_token)
    assert is_refused(pair.access_token)
    assert Session.objects.get(pk=pair.session_id).publication_pending is False


def test_a_revocation_that_is_rolled_back_never_happened(user: Any) -> None:
    pair = sessions.start(user)
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        sessions.revoke(pair.session_id)
        raise ZeroDivisionError
    assert not is_refused(pair.access_token)


def test_revoke_all_spares_the_one_that_is_excepted(user: Any) -> None:
    pairs = [sessions.start(user) for _ in range(3)]
    other = sessions.start(make_user("bob"))
    assert sessions.revoke_all(user, except_=pairs[1].session_id) is True
    assert [is_refused(pair.access_token) for pair in pairs] == [True, False, True]
    assert not is_refused(other.access_token)


def test_session_revoked_is_sent_once_for_each_session(user: Any) -> None:
    seen: list[Any] = []

    def receiver(sender: type, **kwargs: Any) -> None:
        seen.append((kwargs["session_id"], kwargs["user_id"], kwargs["reason"], kwargs["request"]))

    pair, request = sessions.start(user), HttpRequest()
    session_revoked.connect(receiver)
    try:
        sessions.revoke(pair.session_id, reason="lost", request=request)
        sessions.revoke(pair.session_id, reason="again", request=request)
    finally:
        session_revoked.disconnect(receiver)
    assert seen == [(pair.session_id, user.pk, "lost", request)]


def test_logout_takes_the_refresh_token_of_any_generation(user: Any) -> None:
    pair = sessions.start(user)
    new = sessions.refresh(pair.refresh_token)
    assert sessions.logout(refresh_token=pair.refresh_token) is True
    assert is_refused(new.access_token)


def test_logout_answers_alike_for_live_dead_forged_and_unknown_tokens(user: Any) -> None:
    pair = sessions.start(user)
    unknown = mint(TokenType.ACCESS, uuid.uuid4().bytes, int(time.time()) + 300)
    for token in (pair.access_token, pair.access_token, unknown.text, "ap_at_" + "A" * 76, "", 7):
        assert sessions.logout(access_token=token) is True
    assert is_refused(pair.access_token)


def test_logout_by_an_expired_token_of_ours_says_that_the_session_goes_on(user: Any) -> None:
    pair = sessions.start(user)
    expired = mint(TokenType.ACCESS, pair.session_id.bytes, int(time.time()) - 1)
    with pytest.raises(InvalidToken):
        sessions.logout(access_token=expired.text)
    assert not is_refused(pair.access_token)


def test_an_expired_access_token_beside_a_refresh_token_is_no_obstacle_to_logout(
    user: Any,
) -> None:
    pair = sessions.start(user)
    expired = mint(TokenType.ACCESS, pair.session_id.bytes, int(time.time()) - 1)
    assert sessions.logout(access_token=expired.text, refresh_token=pair.refresh_token) is True
    assert is_refused(pair.access_token)


def test_logout_without_a_token_asks_for_one() -> None:
    with pytest.raises(TokenRequired):
        sessions.logout()


def give_up_soon() -> None:
    """Wait for the engine for a moment only, since it is out of reach."""
    caches["accesspass"]._follower.engine.deadline = 0.1  # type: ignore[attr-defined]


def test_a_revocation_without_the_engine_is_recorded_and_arrives_later(
    user: Any, tmp_path: Any
) -> None:
    path = tmp_path / "sessions.cache"
    with cache_settings(f"sqlite:///{path}"):
        pair = sessions.start(user)
        give_up_soon()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            assert sessions.revoke(pair.session_id) is False
            # Here it holds at once; elsewhere as soon as it is published.
            assert is_refused(pair.access_token)
            row = Session.objects.get(pk=pair.session_id)
            assert row.revoked_at is not None
            assert row.publication_pending is True
            assert sessions.logout(access_token=pair.access_token) is False
            other.execute("ROLLBACK")
        assert sessions.tidy() == 1
        assert sessions.tidy() == 0
        assert Session.objects.get(pk=pair.session_id).publication_pending is False
        assert caches["accesspass"].get(f"session:{pair.session_id.hex}") == records.DEAD


def test_login_and_refresh_succeed_without_the_engine(user: Any, tmp_path: Any) -> None:
    path = tmp_path / "sessions.cache"
    with cache_settings(f"sqlite:///{path}"):
        sessions.start(user)
        give_up_soon()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            pair = sessions.start(user)
            assert not is_refused(pair.access_token)
            assert not is_refused(sessions.refresh(pair.refresh_token).access_token)
            other.execute("ROLLBACK")


# concurrency


def test_of_twenty_threads_with_one_refresh_token_all_get_one_pair(
    user: Any, tmp_path: Any
) -> None:
    if connection.vendor == "sqlite" and connection.is_in_memory_db():
        pytest.skip("threads on an in-memory SQLite database share one transaction")
    pair = sessions.start(user)
    barrier = threading.Barrier(20)
    got: list[Any] = []

    def run() -> None:
        try:
            barrier.wait()
            new = sessions.refresh(pair.refresh_token)
            got.append((new.access_token, new.refresh_token))
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 20
    assert len(set(got)) == 1


# a plain cache under the alias


def test_everything_works_on_a_plain_cache(plain: None, user: Any) -> None:
    pair = sessions.start(user)
    with queries(0):
        assert not is_refused(pair.access_token)
    new = sessions.refresh(pair.refresh_token)
    assert not is_refused(new.access_token)
    with queries(0):
        assert not is_refused(new.access_token)
    assert sessions.revoke(pair.session_id) is True
    with queries(0):
        assert is_refused(new.access_token)


def test_the_file_of_the_log_has_addresses_of_users_in_it(user: Any, tmp_path: Any) -> None:
    """And so it is as private as the database beside it."""
    with cache_settings(f"sqlite:///{tmp_path}/shop.sqlite3.accesspass"):
        pair = sessions.start(user)
        sessions.publish_now(pair.session_id)
        files = list(tmp_path.glob("*.accesspass*"))
    assert set(files) == set(tmp_path.iterdir())
    written = b"".join(x.read_bytes() for x in files)
    assert user.email.encode() in written
    assert pair.access_token.encode() not in written
