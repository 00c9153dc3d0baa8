"""Triggers by which PostgreSQL says that plain SQL has changed a user. They are optional.

A trigger writes nothing and locks nothing: it sends a notification with the user's key once the
transaction is committed, and the background thread of one process compares that user with what was
published, as the sweep does for all. So it can make no statement fail or wait, whoever runs it,
and where nobody listens (no serving process, a transaction pooler in between), the sweep remains.
"""

from __future__ import annotations

import contextlib
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, transaction

from accesspass import records
from accesspass.models import Account

__all__ = ["Listener", "are_installed", "install", "remove", "sql"]

_NAME = "accesspass_changed"

_FUNCTION = f"""\
CREATE OR REPLACE FUNCTION {_NAME}() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- The name of the key's column is the argument of each trigger.
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('{_NAME}', to_jsonb(OLD) ->> TG_ARGV[0]);
    ELSE
        PERFORM pg_notify('{_NAME}', to_jsonb(NEW) ->> TG_ARGV[0]);
    END IF;
    RETURN NULL;
END $body$;
"""

_TRIGGERS = """\
CREATE OR REPLACE TRIGGER {name} AFTER UPDATE OF {columns} ON {table} FOR EACH ROW
    WHEN (({old}) IS DISTINCT FROM ({new})) EXECUTE FUNCTION {name}('{key}');
CREATE OR REPLACE TRIGGER {name}_deleted AFTER DELETE ON {table} FOR EACH ROW
    EXECUTE FUNCTION {name}('{key}');
"""

_INSTALLED = "SELECT 1 FROM pg_trigger WHERE tgname = %s AND tgrelid = to_regclass(%s)"


def sql(connection: Any) -> str:
    """Return the statements that install the triggers.

    Raises:
        ImproperlyConfigured: the database is not PostgreSQL, or a table of the user model has
            another key than the user.
    """
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured("Only PostgreSQL has these triggers.")
    quote = connection.ops.quote_name
    parts = [_FUNCTION]
    for table, (key, columns) in _watched().items():
        parts.append(
            _TRIGGERS.format(
                name=_NAME,
                table=quote(table),
                key=key.replace("'", "''"),
                columns=", ".join(map(quote, columns)),
                old=", ".join(f"OLD.{quote(column)}" for column in columns),
                new=", ".join(f"NEW.{quote(column)}" for column in columns),
            )
        )
    return "\n".join(parts)


def install(connection: Any) -> None:
    """Install the triggers, or those of the present user model in the place of older ones.

    They lock the users' table for a moment. Raises what `sql` does.
    """
    text = sql(connection)
    with transaction.atomic(using=connection.alias):
        remove(connection)
        with connection.cursor() as cursor:
            cursor.execute(text)


def remove(connection: Any) -> None:
    """Remove all that `install` made. Raises ImproperlyConfigured if this is not PostgreSQL."""
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured("Only PostgreSQL has these triggers.")
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION IF EXISTS " + _NAME + "() CASCADE")


def are_installed(connection: Any) -> bool:
    """Whether the accounts' table has its trigger."""
    with connection.cursor() as cursor:
        cursor.execute(_INSTALLED, [_NAME, connection.ops.quote_name(Account._meta.db_table)])
        return cursor.fetchone() is not None


class Listener:
    """Hears the triggers, on a connection of its own.

    Args:
        connection: Django's connection to the same database.

    Raises:
        DatabaseError: there is no connection to be had, or it cannot listen.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection.copy()
        # One that is kept for good is none for a pool.
        self._connection.settings_dict["OPTIONS"].pop("pool", None)
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("LISTEN " + _NAME)
            if not callable(getattr(self._connection.connection, "notifies", None)):
                raise DatabaseError("listening needs psycopg 3")
        except BaseException:
            self.close()
            raise

    def heard(self, seconds: float) -> list[str]:
        """Wait so long at most, and return the key, as text, of each user that was changed."""
        with self._connection.wrap_database_errors:
            found = self._connection.connection.notifies(timeout=seconds, stop_after=1)
            return list(dict.fromkeys(notification.payload for notification in found))

    def close(self) -> None:
        with contextlib.suppress(DatabaseError):
            self._connection.close()


def _watched() -> dict[str, tuple[str, list[str]]]:
    """Return, for each table with something that records hold: its key, and those columns."""
    model: Any = get_user_model()
    recorded = records.recorded_fields(model)
    found: dict[str, tuple[str, list[str]]] = {}
    for field in model._meta.concrete_fields:
        if field.name not in recorded or field.primary_key:
            continue
        # A field that is inherited stands in the table of the parent.
        owner = field.model
        if owner is not model and not _shares_key(model, owner):
            raise ImproperlyConfigured(
                f"{owner._meta.label} has another primary key than {model._meta.label}, so a "
                "trigger on its table could not say which user was changed."
            )
        found.setdefault(owner._meta.db_table, (owner._meta.pk.column, []))[1].append(field.column)
    account: Any = Account._meta
    told = ("claims", "meta", "confirmed_at", "confirmed_email")
    columns = [account.get_field(name).column for name in told]
    found[account.db_table] = (account.pk.column, columns)
    return found


def _shares_key(model: Any, parent: Any) -> bool:
    """Whether the key of a child's row is that of its row in the parent's table."""
    key = model._meta.pk
    while key.remote_field is not None and key.remote_field.parent_link:
        if key.remote_field.model is parent:
            return True
        key = key.remote_field.model._meta.pk
    return False
