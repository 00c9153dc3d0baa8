"""Triggers on PostgreSQL. Elsewhere only that there are none; `test_on_postgresql` runs all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, transaction

from accesspass import background, sessions, triggers
from accesspass.models import Account, Identifier, Lease, Session
from accesspass.testing import other_node
from tests.documents import shown
from tests.servers import wait_until
from tests.sessions import is_refused, replicated, user

__all__ = ["replicated", "user"]

pytestmark = pytest.mark.django_db(transaction=True)

on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL has triggers"
)


@pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL has triggers")
@pytest.mark.parametrize("option", ["--install", "--remove", "--sql"])
def test_another_database_is_told_that_it_has_none(option: str) -> None:
    with pytest.raises(CommandError, match="Only PostgreSQL"):
        call_command("accesspass_trigger", option)
    with pytest.raises(ImproperlyConfigured):
        triggers.sql(connection)


def execute(sql: str, *parameters: Any) -> None:
    """As an administrator does in psql."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def user_sql(what: str, user: Any, *parameters: Any) -> None:
    model: Any = get_user_model()
    table, key = model._meta.db_table, model._meta.pk.column
    execute(f'{what.format(table=table)} WHERE "{key}" = %s', *parameters, user.pk)


@pytest.fixture
def installed() -> Iterator[None]:
    call_command("accesspass_trigger", "--install", verbosity=0, stdout=_Silent())
    try:
        yield
    finally:
        call_command("accesspass_trigger", "--remove", stdout=_Silent())


class _Silent:
    def write(self, text: str) -> None:
        pass


@pytest.fixture
def heard(installed: None) -> Iterator[list[str]]:
    """A node that listens, as its background thread does. No sweep comes to its help."""
    keys: list[str] = []
    over = threading.Event()
    ready = threading.Event()
    listening = background._Listening()

    def listen() -> None:
        while not over.is_set():
            listening.wait(0.2)
            ready.set()
        listening._close()
        connection.close()

    sync_key = sessions.sync_key

    def note(key: str) -> None:
        keys.append(key)
        sync_key(key)

    thread = threading.Thread(target=listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "sync_key", note)
        thread.start()
        try:
            assert ready.wait(30)
            assert listening._listener is not None
            yield keys
        finally:
            over.set()
            thread.join()


@on_postgresql
def test_plain_sql_bites_on_every_node(heard: list[str], user: Any) -> None:
    pair = sessions.start(user)
    user_sql("UPDATE {table} SET is_superuser = true", user)
    wait_until(lambda: sessions.authenticate(pair.access_token)[0].is_superuser)
    with other_node():
        assert sessions.authenticate(pair.access_token)[0].is_superuser
    user_sql("UPDATE {table} SET is_active = false", user)
    wait_until(lambda: is_refused(pair.access_token))
    with other_node():  # this one refuses as soon as the row says so, that one when it is published
        wait_until(lambda: is_refused(pair.access_token))
    assert Session.objects.get(pk=pair.session_id).revoked_reason == "user_disabled"


@on_postgresql
def test_claims_that_plain_sql_writes_bite(heard: list[str], user: Any) -> None:
    pair = sessions.start(user)
    execute("""UPDATE accesspass_account SET claims = '{"role": "admin"}'""")
    wait_until(lambda: sessions.authenticate(pair.access_token)[1].claims == {"role": "admin"})


@on_postgresql
def test_a_user_whom_plain_sql_deletes_is_refused(heard: list[str], user: Any) -> None:
    pair = sessions.start(user)
    with transaction.atomic():
        Session.objects.update(user=None)
        Identifier.objects.all().delete()
        execute("DELETE FROM accesspass_account")
        user_sql("DELETE FROM {table}", user)
    wait_until(lambda: is_refused(pair.access_token))


@on_postgresql
def test_what_no_record_holds_and_what_is_rolled_back_is_not_told(
    heard: list[str], user: Any
) -> None:
    sessions.start(user)
    before = len(heard)
    user_sql("UPDATE {table} SET last_login = now()", user)
    user_sql("UPDATE {table} SET is_active = is_active", user)
    Account.objects.update(login_count=9)
    with transaction.atomic():
        user_sql("UPDATE {table} SET is_active = false", user)
        transaction.set_rollback(True)
    user_sql("UPDATE {table} SET is_superuser = true", user)
    wait_until(lambda: len(heard) > before)
    assert heard[before:] == [str(user.pk)]


@on_postgresql
def test_one_process_of_all_listens(heard: list[str]) -> None:
    second = background._Listening()
    second.wait(0.0)
    assert second._listener is None
    Lease.objects.filter(name="listen").delete()
    second._look_at = 0.0
    second.wait(0.01)
    assert second._listener is not None
    second._close()


@on_postgresql
def test_whoever_begins_to_listen_sweeps_first(installed: None, user: Any) -> None:
    pair = sessions.start(user)
    user_sql("UPDATE {table} SET is_active = false", user)
    listening = background._Listening()
    listening.wait(0.01)
    listening._close()
    assert is_refused(pair.access_token)


@on_postgresql
def test_the_statements_that_are_printed_install_them(user: Any) -> None:
    assert not triggers.are_installed(connection)
    execute(triggers.sql(connection))
    assert triggers.are_installed(connection)
    triggers.install(connection)
    assert triggers.are_installed(connection)
    triggers.remove(connection)
    triggers.remove(connection)
    assert not triggers.are_installed(connection)


@on_postgresql
def test_a_listener_whose_connection_is_cut_listens_again(heard: list[str], user: Any) -> None:
    pair = sessions.start(user)
    execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND query LIKE 'LISTEN%%' AND datname = current_database()"
    )
    user_sql("UPDATE {table} SET is_active = false", user)
    wait_until(lambda: is_refused(pair.access_token), timeout=30)


@on_postgresql
def test_a_session_that_is_ended_by_the_statement_of_the_page_is_refused(user: Any) -> None:
    (statement,) = shown("docs/explanation/how-it-works.rst", "sql")
    pair = sessions.start(user)
    assert not is_refused(pair.access_token)
    execute(statement.replace("'…'", "%s"), user.pk)
    sessions.tidy()
    assert is_refused(pair.access_token)
    assert Session.objects.get().revoked_reason == "by hand"
    assert not Session.objects.get().publication_pending
