"""How sessions keep up: with the user, with the engine, with time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.db import DatabaseError, connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from accesspass import accounts, mail, sessions
from accesspass.hooks import Hooks
from accesspass.models import Account, MailRequest, Session
from accesspass.testing import age, other_node
from tests.sessions import (
    engine_out_of_reach,
    forget,
    is_refused,
    make_user,
    options,
    plain,
    queries,
    real_database,
    replicated,
    user,
)

__all__ = ["plain", "replicated", "user"]

pytestmark = pytest.mark.django_db(transaction=True)


def pending(pair: sessions.TokenPair) -> bool:
    return Session.objects.get(pk=pair.session_id).publication_pending


# sync


def test_sync_catches_up_with_an_update_behind_the_orm(user: Any) -> None:
    pair = sessions.start(user)
    get_user_model().objects.filter(pk=user.pk).update(is_superuser=True)
    assert not sessions.authenticate(pair.access_token)[0].is_superuser
    sessions.sync(user)
    assert sessions.authenticate(pair.access_token)[0].is_superuser
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)
    sessions.sync(user)
    assert is_refused(pair.access_token)


def test_what_a_miss_read_before_it_was_synced_does_not_outlive_its_undoing(user: Any) -> None:
    pair = sessions.start(user)
    rows = get_user_model().objects.filter(pk=user.pk)
    rows.update(is_superuser=True)
    forget(pair)
    assert sessions.authenticate(pair.access_token)[0].is_superuser
    rows.update(is_superuser=False)
    sessions.sync(user)
    assert not sessions.authenticate(pair.access_token)[0].is_superuser


def test_a_refresh_catches_up_with_an_update_behind_the_orm(user: Any) -> None:
    first, second = sessions.start(user), sessions.start(user)
    get_user_model().objects.filter(pk=user.pk).update(is_superuser=True)
    sessions.refresh(first.refresh_token)
    with queries(0):
        assert sessions.authenticate(second.access_token)[0].is_superuser


def test_a_changed_secret_key_with_a_fallback_logs_nobody_out(user: Any) -> None:
    pair = sessions.start(user)
    with override_settings(
        SECRET_KEY="a new key that is long enough to be one",
        SECRET_KEY_FALLBACKS=[settings.SECRET_KEY],
    ):
        forget(pair)
        assert not is_refused(pair.access_token)
        new = sessions.refresh(pair.refresh_token)
    with override_settings(SECRET_KEY="a new key that is long enough to be one"):
        forget(pair)
        assert not is_refused(new.access_token)


def test_a_user_who_never_logged_in_is_not_looked_at_twice(user: Any) -> None:
    with queries(1):
        sessions.sync(user)


@pytest.mark.parametrize("setting", ["USER_FIELDS", "SECRET_KEY"])
def test_after_a_changed_setting_a_miss_is_filled_again_and_nobody_storms(
    user: Any, setting: str
) -> None:
    pairs = [sessions.start(user) for _ in range(5)]
    revisions = list(Session.objects.order_by("pk").values_list("revision", flat=True))
    if setting == "USER_FIELDS":
        changed: Any = options(USER_FIELDS=["last_login"])
    else:
        changed = override_settings(
            SECRET_KEY="a new key that is long enough to be one",
            SECRET_KEY_FALLBACKS=[settings.SECRET_KEY],
        )
    with changed, other_node(), CaptureQueriesContext(connection) as captured:
        for pair in pairs:
            assert not is_refused(pair.access_token)
        with queries(0):
            for pair in pairs:
                assert not is_refused(pair.access_token)
    # Nobody publishes anything for this: there is one write for each user at most.
    writes = [q["sql"] for q in captured if q["sql"].startswith("UPDATE")]
    assert len(writes) <= (setting == "USER_FIELDS"), writes
    assert list(Session.objects.order_by("pk").values_list("revision", flat=True)) == revisions


def test_two_releases_side_by_side_do_not_write_at_each_request(user: Any) -> None:
    pair = sessions.start(user)
    with options(USER_FIELDS=["last_login"]), other_node():
        assert not is_refused(pair.access_token)
    writes = []
    for _ in range(5):
        for fields in ([], ["last_login"]):
            with options(USER_FIELDS=fields), CaptureQueriesContext(connection) as captured:
                forget(pair)
                assert not is_refused(pair.access_token)
            writes += [q["sql"] for q in captured if q["sql"].startswith("UPDATE")]
    assert not writes


def test_a_state_that_was_filled_after_a_changed_setting_is_undone_by_sync(user: Any) -> None:
    pair = sessions.start(user)
    rows = get_user_model().objects.filter(pk=user.pk)
    with options(USER_FIELDS=["last_login"]):
        with other_node():
            rows.update(is_superuser=True)
            assert sessions.authenticate(pair.access_token)[0].is_superuser
        rows.update(is_superuser=False)
        sessions.sync(user)
        with other_node():
            assert not sessions.authenticate(pair.access_token)[0].is_superuser


# what is pending


def _claims(user: Any) -> None:
    accounts.set_claims(user, {})


def _staff(user: Any) -> None:
    user.is_superuser = False
    user.save()


def _behind_the_orm(user: Any) -> None:
    get_user_model().objects.filter(pk=user.pk).update(is_superuser=False)
    Account.objects.filter(pk=user.pk).update(claims={})
    sessions.sync(user)


def _is_admin(pair: sessions.TokenPair) -> bool:
    user, record = sessions.authenticate(pair.access_token)
    return bool(user.is_superuser and record.claims.get("role") == "admin")


@pytest.fixture
def admin(user: Any) -> Any:
    user.is_superuser = True
    user.save()
    sessions.start(user)
    accounts.set_claims(user, {"role": "admin"})
    return user


@pytest.mark.parametrize("demote", [_claims, _staff, _behind_the_orm])
def test_a_demotion_whose_publication_fails_arrives_by_tidy(
    admin: Any, demote: Callable[[Any], None]
) -> None:
    pair = sessions.start(admin)
    with other_node():
        assert _is_admin(pair)
    with engine_out_of_reach():
        demote(admin)
        assert not _is_admin(pair), "where it was changed it holds at once"
    assert pending(pair)
    # Any node publishes it, not only the one that made the change.
    with other_node():
        assert sessions.tidy() == 2
        with queries(0):
            assert not _is_admin(pair)
        assert sessions.tidy() == 0
    assert not pending(pair)
    assert not _is_admin(pair)


def test_a_plain_rotation_is_not_pending_though_its_publication_fails(user: Any) -> None:
    pair = sessions.start(user)
    with engine_out_of_reach():
        new = sessions.refresh(pair.refresh_token)
        assert not pending(pair)
        assert not is_refused(new.access_token)
    with other_node():
        assert not is_refused(new.access_token)
    assert sessions.tidy() == 0


def test_a_rotation_takes_what_is_pending_along(admin: Any) -> None:
    pair = sessions.start(admin)
    with engine_out_of_reach():
        accounts.set_claims(admin, {})
    new = sessions.refresh(pair.refresh_token)
    assert not pending(pair)
    with other_node():
        assert not _is_admin(new)


def test_what_was_acknowledged_for_an_older_revision_stays_pending(user: Any) -> None:
    pair = sessions.start(user)
    with engine_out_of_reach():
        accounts.set_claims(user, {"n": 1})
    session = Session.objects.get(pk=pair.session_id)
    Session.objects.filter(pk=pair.session_id).update(revision=session.revision + 1)
    sessions._acknowledge(session)
    assert pending(pair)


def test_tidy_publishes_the_others_though_a_hook_fails_for_one(
    user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bob = make_user("bob")
    pairs = [sessions.start(user), sessions.start(bob)]
    with engine_out_of_reach():
        for who in (user, bob):
            accounts.set_claims(who, {"n": str(who.pk)})
    with options(HOOKS=f"{__name__}.FailingHooks"):
        FailingHooks.fails_for = user.pk
        assert sessions.tidy() == 2
    assert [pending(pair) for pair in pairs] == [True, False]
    assert "session.record_failed" in caplog.text
    assert sessions.tidy() == 1
    assert not pending(pairs[0])


class FailingHooks(Hooks):
    fails_for: Any = None

    def claims(self, user: Any, account: Any, session_claims: Any) -> dict[str, Any]:
        if user.pk == self.fails_for:
            raise ZeroDivisionError
        return super().claims(user, account, session_claims)


class OddHooks(Hooks):
    odd = False

    def claims(self, user: Any, account: Any, session_claims: Any) -> dict[str, Any]:
        claims = super().claims(user, account, session_claims)
        return {**claims, "odd": object()} if type(self).odd else claims


def test_claims_that_no_cache_takes_make_every_node_ask_the_database(admin: Any) -> None:
    with options(HOOKS=f"{__name__}.OddHooks"):
        pair = sessions.start(admin)
        with other_node():
            assert _is_admin(pair)
        try:
            OddHooks.odd = True
            accounts.set_claims(admin, {})
            with other_node():
                assert not _is_admin(pair)
        finally:
            OddHooks.odd = False


def test_of_many_revocations_the_first_failure_is_the_only_one_that_is_waited_for(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        sessions.start(user)
    cache: Any = caches["accesspass"]
    tries = []

    def fail(*args: Any, **_: Any) -> None:
        tries.append(args)
        raise cache.EngineUnavailable("the engine is out of reach")

    monkeypatch.setattr(type(cache), "publish", fail)
    assert sessions.revoke_all(user) is False
    assert len(tries) == 1
    assert Session.objects.filter(publication_pending=True).count() == 5


@real_database
@pytest.mark.parametrize("ends", [True, False])
def test_a_node_that_joins_doubts_what_is_pending_before_it_answers(admin: Any, ends: bool) -> None:
    pair = sessions.start(admin)
    with engine_out_of_reach():
        if ends:
            assert sessions.revoke(pair.session_id) is False
        else:
            accounts.set_claims(admin, {})
    assert pending(pair)
    # The log has the old record still.
    with other_node():
        if ends:
            assert is_refused(pair.access_token)
        else:
            assert not _is_admin(pair)
    assert pending(pair)


# sweep


def _nothing(user: Any) -> None:
    pass


def _ban(user: Any) -> None:
    get_user_model().objects.filter(pk=user.pk).update(is_active=False)


def _other_password(user: Any) -> None:
    get_user_model().objects.filter(pk=user.pk).update(password="!unusable")


def _by_sql(user: Any) -> None:
    table = connection.ops.quote_name(get_user_model()._meta.db_table)
    column = connection.ops.quote_name(get_user_model()._meta.pk.column)
    key = get_user_model()._meta.pk.get_db_prep_value(user.pk, connection)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET is_active = %s WHERE {column} = %s", [False, key])  # noqa: S608


@pytest.mark.parametrize(
    ("change", "ends"), [(_nothing, False), (_ban, True), (_other_password, True), (_by_sql, True)]
)
def test_a_sweep_finds_what_was_changed_behind_the_orm(
    user: Any, change: Callable[[Any], None], ends: bool
) -> None:
    bob = sessions.start(make_user("bob"))
    pair = sessions.start(user)
    change(user)
    assert not is_refused(pair.access_token)
    assert sessions.sweep() == ends
    with other_node():
        assert is_refused(pair.access_token) is ends
        assert not is_refused(bob.access_token)
    assert sessions.sweep() == 0


def test_a_sweep_publishes_another_state_without_ending_the_session(user: Any) -> None:
    pair = sessions.start(user)
    Account.objects.filter(pk=user.pk).update(claims={"role": "admin"})
    assert sessions.sweep() == 1
    with other_node():
        assert sessions.authenticate(pair.access_token)[1].claims == {"role": "admin"}


def test_a_sweep_ends_the_sessions_of_users_whom_sql_has_deleted(user: Any) -> None:
    pair = sessions.start(user)
    Session.objects.filter(pk=pair.session_id).update(user=None)
    assert not is_refused(pair.access_token)
    sessions.sweep()
    with queries(0):
        assert is_refused(pair.access_token)
    assert Session.objects.get(pk=pair.session_id).revoked_reason == "user_deleted"


def test_a_sweep_goes_in_batches_and_passes_over_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "_BATCH", 2)
    pairs = [sessions.start(make_user(f"user{n}")) for n in range(5)]
    get_user_model().objects.update(is_active=False)
    with CaptureQueriesContext(connection) as captured:
        assert sessions.sweep() == 5
    pages = [q["sql"] for q in captured if "EXISTS" in q["sql"]]
    assert len(pages) == 3, pages
    assert all(is_refused(pair.access_token) for pair in pairs)


def test_a_sweep_looks_at_nobody_whose_access_tokens_are_over(user: Any) -> None:
    pair = sessions.start(user)
    age(pair, 400)
    _ban(user)
    assert sessions.sweep() == 0
    # At the refresh the database decides.
    with pytest.raises(sessions.InvalidToken):
        sessions.refresh(pair.refresh_token)


# purge


def test_the_nonce_is_forgotten_after_the_grace(user: Any) -> None:
    pair = sessions.start(user)
    sessions.refresh(pair.refresh_token)
    sessions.purge()
    assert Session.objects.get(pk=pair.session_id).nonce
    age(pair, 11)
    sessions.purge()
    assert not Session.objects.get(pk=pair.session_id).nonce


@pytest.mark.parametrize("how", ["revoked", "expired", "idle", "alive", "pending"])
def test_a_session_that_ended_long_ago_is_deleted(user: Any, how: str) -> None:
    kept = sessions.start(user)
    pair = sessions.start(user, lifetime=60 if how == "expired" else None)
    with contextlib.ExitStack() as stack:
        if how == "pending":
            stack.enter_context(engine_out_of_reach())
        if how in ("revoked", "pending"):
            sessions.revoke(pair.session_id)
        if how == "idle":
            stack.enter_context(options(SESSION_IDLE_LIFETIME=86_400))
        age(pair, 29 * 86_400)
        assert sessions.purge() == 0
        age(pair, 3 * 86_400)
        deleted = sessions.purge()
    assert deleted == (how in ("revoked", "expired", "idle"))
    left = set(Session.objects.values_list("pk", flat=True))
    assert left == {kept.session_id} | (set() if deleted else {pair.session_id})


def test_a_purge_goes_in_batches(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_BATCH", 2)
    pairs = [sessions.start(user) for _ in range(5)]
    for pair in pairs:
        sessions.revoke(pair.session_id)
        age(pair, 40 * 86_400)
    assert sessions.purge() == 5
    assert not Session.objects.exists()


@real_database
def test_a_purge_waits_for_no_lock_so_it_cannot_deadlock(user: Any) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one lock for all")
    pairs = [sessions.start(user) for _ in range(3)]
    for pair in pairs:
        sessions.refresh(pair.refresh_token)
        age(pair, 11)
    failures: list[Exception] = []

    def purge() -> None:
        try:
            sessions.purge()
        except Exception as error:  # noqa: BLE001 - it is shown below
            failures.append(error)
        finally:
            connection.close()

    with transaction.atomic():
        # As revoke_all has it in the middle of its UPDATE.
        Session.objects.filter(pk=pairs[1].session_id).update(name="held")
        thread = threading.Thread(target=purge)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "it waits for the row that is held"
        assert not failures
        Session.objects.filter(pk__in=[pair.session_id for pair in pairs]).update(name="all")
    nonces = [bool(Session.objects.get(pk=pair.session_id).nonce) for pair in pairs]
    assert nonces == [False, True, False]
    sessions.purge()
    assert not Session.objects.get(pk=pairs[1].session_id).nonce


# a plain cache under the alias


def test_nothing_refers_to_a_user_who_is_let_go(user: Any) -> None:
    pair = sessions.start(user)
    mail.notify(mail.PASSWORD_CHANGED, user)
    sessions.let_go(user)
    assert is_refused(pair.access_token)
    assert not Account.objects.filter(pk=user.pk).exists()
    assert not MailRequest.objects.filter(user=user.pk).exists()
    assert not Session.objects.filter(user=user.pk).exists()


def test_tidy_publishes_ends_before_changes(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_BATCH", 1)
    ended, *changed = [sessions.start(user) for _ in range(4)]
    with engine_out_of_reach():
        accounts.set_claims(user, {"role": "admin"})
        assert not sessions.revoke(ended.session_id)
    assert sessions.tidy() == 1
    assert not pending(ended)
    assert all(pending(pair) for pair in changed)


def test_tidy_and_sweep_work_on_a_plain_cache(plain: None, user: Any) -> None:
    pair = sessions.start(user)
    assert not is_refused(pair.access_token)
    Account.objects.filter(pk=user.pk).update(claims={"role": "admin"})
    assert sessions.sweep() == 1
    assert sessions.authenticate(pair.access_token)[1].claims == {"role": "admin"}
    assert sessions.tidy() == 0


def test_a_database_that_fails_at_the_acknowledgement_undoes_nothing(
    user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pair = sessions.start(user)

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and "revoked_at" not in sql:
            raise DatabaseError("the database is down")
        return execute(sql, *args)

    with connection.execute_wrapper(fail):
        assert sessions.revoke(pair.session_id) is True
    assert is_refused(pair.access_token)
    assert "session.not_acknowledged" in caplog.text
    assert sessions.tidy() == 1
    assert not pending(pair)
