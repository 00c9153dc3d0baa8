"""One node in a process of its own, whose every step can be held.

What a node is told to do runs in a thread of its own, an *actor*. Each statement that an actor
sends, each commit, and each call that changes a replica or the log is an *event* with a name:
``UPDATE session``, ``SELECT user``, ``COMMIT``, ``publish``, ``fill``. An actor stands still right
before the event that it is told to be held at, so a test decides who does what before whom:
``COMMIT`` is the last moment at which nobody knows, ``publish`` is between commit and publication,
``fill`` is between a query and what is remembered of it.

The hooks stand below the library, on Django's connection and on the cache's follower. They know
nothing of how `accesspass.sessions` is written.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import django
from asgiref.local import Local
from django.apps import apps
from django.conf import settings

if not apps.ready:
    django.setup()

from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.exceptions import ObjectDoesNotExist
from django.core.management import call_command
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from django.test import Client

with contextlib.suppress(ImportError):
    import django.db.backends.postgresql.base  # so that not each node must

from accesspass import accounts, background, records, sessions
from accesspass.cache import follower as follower_module
from accesspass.cache.follower import Follower
from accesspass.exceptions import InvalidToken
from accesspass.models import Account, Identifier, Session

__all__ = ["PASSWORD", "main"]

PASSWORD = "correct horse battery"  # of every user that a test begins with
#: After how many seconds a statement on SQLite is taken to wait for a lock. PostgreSQL is asked.
_SLOW = 0.03
_PATIENCE = 30.0

_actor = threading.local()


# Actors --------------------------------------------------------------------------------------


class Actor:
    """One operation in a thread of the node, and where it has got to."""

    def __init__(
        self, node: Node, operation: Callable[..., Any], arguments: dict[str, Any]
    ) -> None:
        self._node = node
        self._operation = operation
        self._arguments = arguments
        self._changed = threading.Condition()
        self._hold: int | str | None = None
        self._held = self._over = False
        self._busy_since: float | None = None
        self._backend: int | None = None
        self.trace: list[str] = []
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        _actor.current = self
        connection.execute_wrappers.append(self._statement)
        try:
            self.result = self._operation(**self._arguments)
        except Exception as error:  # noqa: BLE001 - the test gets it
            self.error = error
        finally:
            connection.execute_wrappers.remove(self._statement)
            _actor.current = None
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if connection.vendor == "postgresql" and connection.connection is not None:
            self._backend = connection.connection.info.backend_pid
        with self.event(_name(sql)):
            return execute(sql, params, many, context)

    @contextmanager
    def event(self, name: str) -> Iterator[None]:
        with self._changed:
            number = len(self.trace)
            self.trace.append(name)
            if self._hold is not None and self._hold in (number, name):
                self._hold, self._held = None, True
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: not self._held, _PATIENCE)
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def hold_at(self, event: int | str | None) -> None:
        with self._changed:
            self._hold = event

    def let_go(self, hold: int | str | None) -> None:
        with self._changed:
            self._hold, self._held = hold, False
            self._changed.notify_all()

    def settle(self, held_or_over: bool) -> str:
        """Wait until it is ``held``, ``over``, or, unless that is not enough, ``waiting``."""
        give_up = time.monotonic() + _PATIENCE
        while time.monotonic() < give_up:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._over, 0.005)
                if self._over:
                    return "over"
                if self._held:
                    return "held"
            if not held_or_over and self._waits():
                return "waiting"
        raise AssertionError(f"it does not settle after {self.trace}")

    def _waits(self) -> bool:
        """Whether it stands in the middle of a statement, since somebody else has the lock."""
        busy = self._busy_since
        if busy is None:
            return False
        if self._backend is None:
            return time.monotonic() - busy > _SLOW
        return self._node.waits_for_lock(self._backend)


_TABLE = re.compile(r'\b(?:FROM|INTO|UPDATE)\s+"(\w+)"')


def _name(sql: str) -> str:
    verb = sql.split(None, 1)[0].upper()
    found = _TABLE.search(sql)
    if found is None or verb not in ("SELECT", "INSERT", "UPDATE", "DELETE"):
        return verb
    table = found[1]
    if table == get_user_model()._meta.db_table:
        table = "user"
    return f"{verb} {table.removeprefix('accesspass_')}"


def _watch(owner: type, method: str, name: str) -> None:
    """Make a method an event of whichever actor calls it."""
    real = getattr(owner, method)

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        actor = getattr(_actor, "current", None)
        if actor is None:
            return real(self, *args, **kwargs)
        with actor.event(name):
            return real(self, *args, **kwargs)

    setattr(owner, method, watched)


# The node -------------------------------------------------------------------------------------


class Node:
    def __init__(self, config: dict[str, Any]) -> None:
        settings.DATABASES = {"default": config["database"]}
        settings.CACHES = {
            **settings.CACHES,
            "accesspass": {
                "BACKEND": "accesspass.cache.ReplicatedCache",
                "LOCATION": config["location"],
                "OPTIONS": config["options"],
            },
        }
        settings.ACCESSPASS = {**settings.ACCESSPASS, **config["accesspass"]}
        for handler in (connections, caches):
            handler.__dict__.pop("settings", None)
            handler._settings = None
            handler._connections = Local(handler.thread_critical)
        self._actors: list[Actor] = []
        # Their threads are used again, and so are the threads' connections to the database.
        self._threads = ThreadPoolExecutor(max_workers=32)
        self._observer: Any = None
        self._published: list[tuple[Any, ...]] = []
        # Nobody tidies up but on the test's order.
        background.start = lambda: None
        _watch(BaseDatabaseWrapper, "_commit", "COMMIT")
        _watch(Follower, "fill", "fill")
        self._remember_publications()
        _watch(Follower, "write", "publish")

    # Actors.

    def begin(self, operation: str, hold: int | str | None, **arguments: Any) -> int:
        actor = Actor(self, getattr(self, operation), arguments)
        actor.hold_at(hold)
        self._actors.append(actor)
        self._threads.submit(actor.run)
        return len(self._actors) - 1

    def settle(self, actor: int, held_or_over: bool) -> str:
        return self._actors[actor].settle(held_or_over)

    def let_go(self, actor: int, hold: int | str | None = None) -> None:
        self._actors[actor].let_go(hold)

    def trace(self, actor: int) -> list[str]:
        return self._actors[actor].trace

    def end(self, actor: int) -> Any:
        found = self._actors[actor]
        assert found.settle(held_or_over=True) == "over"
        if found.error is not None:
            raise found.error
        return found.result

    def waits_for_lock(self, backend: int) -> bool:
        if self._observer is None:
            self._observer = connections.create_connection("default")
            self._observer.inc_thread_sharing()
        with self._observer.cursor() as cursor:
            cursor.execute(
                "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", [backend]
            )
            row = cursor.fetchone()
        return bool(row and row[0])

    def _remember_publications(self) -> None:
        real = Follower.write

        def write(follower: Follower, changes: Any, condition: Any = None) -> Any:
            self._published.append((follower, changes, condition))
            return real(follower, changes, condition)

        Follower.write = write  # type: ignore[method-assign]

    # What can be done. Each returns plain data.

    def migrate(self) -> None:
        call_command("migrate", verbosity=0)

    def make_user(self, name: str) -> Any:
        model: Any = get_user_model()
        names = {"email": f"{name}@example.com"}
        if model.USERNAME_FIELD == "username":
            names["username"] = name
        return model._default_manager.create_user(password=PASSWORD, **names).pk

    def _user(self, pk: Any) -> Any:
        return get_user_model()._base_manager.get(pk=pk)

    def start(self, user: Any, lifetime: float | None = None) -> dict[str, Any]:
        return _plain(sessions.start(self._user(user), lifetime=lifetime))

    def log_in(self, name: str) -> dict[str, Any]:
        # By the natural key, since nobody who has no Account yet has any other name.
        by_email = get_user_model().USERNAME_FIELD == "email"
        name = f"{name}@example.com" if by_email else name
        return _plain(accounts.log_in(name, PASSWORD)[1])

    def refresh(self, token: str) -> dict[str, Any]:
        return _plain(sessions.refresh(token))

    def authenticate(self, token: str) -> bool:
        try:
            sessions.authenticate(token)
        except InvalidToken:
            return False
        return True

    def look(self, token: str) -> dict[str, Any]:
        """What an authorised request sees, or None, and how many queries that took."""
        count = 0

        def counted(execute: Any, *args: Any) -> Any:
            nonlocal count
            count += 1
            return execute(*args)

        with connection.execute_wrapper(counted):
            try:
                user, record = sessions.authenticate(token)
            except InvalidToken:
                return {"good": False, "queries": count}
            return {
                "good": True,
                "queries": count,
                "is_staff": getattr(user, "is_staff", False),
                "expires_in": record.expires_in,
            }

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        answer = Client(raise_request_exception=False).post(
            path, body, content_type="application/json"
        )
        return answer.status_code, answer.json() if answer.content else None

    # What ends sessions.

    def log_out(self, token: str, **_: Any) -> bool:
        return sessions.logout(access_token=token)

    def revoke_all(self, user: Any, **_: Any) -> bool:
        return sessions.revoke_all(self._user(user))

    def change_password(self, user: Any, **_: Any) -> None:
        found = self._user(user)
        found.set_password("another one")
        found.save()

    def change_password_in_transaction(self, user: Any, **_: Any) -> None:
        found = self._user(user)
        found.set_password("another one")
        with transaction.atomic():
            found.save()
            list(Session.objects.filter(user=user))

    def reset_password(self, user: Any, **_: Any) -> None:
        self.change_password(user)
        sessions.revoke_all(self._user(user))

    def deactivate(self, user: Any, **_: Any) -> None:
        found = self._user(user)
        found.is_active = False
        found.save()

    def deactivate_in_transaction(self, user: Any, **_: Any) -> None:
        try:
            found = self._user(user)
            found.is_active = False
            with transaction.atomic():
                found.save(update_fields=["is_active"])
        except (ObjectDoesNotExist, DatabaseError):
            if get_user_model()._base_manager.filter(pk=user).exists():
                raise  # it was not that the user is gone

    def deactivate_and_sync(self, user: Any, **_: Any) -> None:
        get_user_model()._base_manager.filter(pk=user).update(is_active=False)
        sessions.sync(self._user(user))

    def delete(self, user: Any, **_: Any) -> None:
        self._user(user).delete()

    def delete_queryset(self, user: Any, **_: Any) -> None:
        get_user_model()._base_manager.filter(pk=user).delete()

    def delete_by_sql(self, user: Any, **_: Any) -> None:
        """As somebody at the database's own prompt would, with nobody told."""
        model = get_user_model()
        user = model._meta.pk.get_db_prep_value(user, connection)
        steps = (
            (Session, 'UPDATE "{}" SET user_id = NULL WHERE user_id = %s'),
            (Identifier, 'DELETE FROM "{}" WHERE account_id = %s'),
            (Account, 'DELETE FROM "{}" WHERE user_id = %s'),
            (model, 'DELETE FROM "{}" WHERE "{}" = %s'),
        )
        with transaction.atomic(), connection.cursor() as cursor:
            for table, statement in steps:
                names = table._meta.db_table, model._meta.pk.column
                cursor.execute(statement.format(*names), [user])

    # What changes records.

    def set_staff(self, user: Any, value: bool) -> None:
        found = self._user(user)
        found.is_staff = value
        found.save()

    def set_staff_in_transaction(self, user: Any, value: bool) -> None:
        found = self._user(user)
        found.is_staff = value
        with transaction.atomic():
            found.save()

    def set_claims(self, user: Any, claims: dict[str, Any]) -> None:
        accounts.set_claims(self._user(user), claims)

    # Housekeeping, and looking behind.

    def tidy(self) -> int:
        return sessions.tidy()

    def purge(self) -> None:
        sessions.purge()

    def sql(self, statement: str, *parameters: Any) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def row(self, session: str) -> dict[str, Any]:
        return Session.objects.filter(pk=session).values().get()

    def live_sessions(self, user: Any) -> int:
        """How many sessions a user has that a refresh would prolong."""
        rows = Session.objects.filter(user=user, revoked_at=None).select_related("user")
        return sum(sessions._why_dead(_at(row)) is None for row in rows)

    def age(self, session: str, field: str, seconds: float) -> None:
        """Let one of a row's times be so much earlier than it is."""
        moved = F(field) - timedelta(seconds=seconds)
        Session.objects.filter(pk=session).update(**{field: moved})

    def held(self, session: str) -> Any:
        """What this process's memory holds of a session: a record, DEAD or None."""
        return records.open_cache().get(records.key(uuid.UUID(session).bytes))

    def at_engine(self, session: str) -> tuple[int, Any] | None:
        """Revision and value that the engine holds for a session."""
        cache: Any = caches["accesspass"]
        key = cache._key(records.key(uuid.UUID(session).bytes), None)
        entry, opened = cache._follower.read_engine(key)
        if entry is None or opened is None:
            return None
        return entry.revision, cache._codec.decode(opened.payload)

    def publish_again(self) -> int:
        """Send all publications of this process once more, the last one first."""
        published, self._published = self._published, []
        for follower, changes, condition in reversed(published):
            follower.write(changes, condition)
        return len(published)

    def forget(self, session: str) -> None:
        """Forget all that this process has heard of a session: its next request is a miss."""
        caches["accesspass"]._follower.pull()  # type: ignore[attr-defined]
        records.open_cache().forget(records.key(uuid.UUID(session).bytes))

    def clear(self) -> None:
        caches["accesspass"].clear()

    def join(self) -> bool:
        sessions.join()
        return bool(self.status()["fresh"])

    def status(self) -> dict[str, Any]:
        return caches["accesspass"].status()  # type: ignore[no-any-return, attr-defined]

    def now(self) -> float:
        return records.open_cache().now()

    def shift_clock(self, seconds: float) -> None:
        """Set this process's wall clock."""
        real = time.time
        time.time = lambda: real() + seconds

    def suspend(self, seconds: float) -> None:
        """Wake from a suspension: CLOCK_BOOTTIME has gone on, CLOCK_MONOTONIC has not."""
        real = follower_module.clock
        if real is not time.monotonic:
            follower_module.clock = lambda: real() + seconds


def _plain(pair: sessions.TokenPair) -> dict[str, Any]:
    return {
        "session": str(pair.session_id),
        "access": pair.access_token,
        "refresh": pair.refresh_token,
        "expires_in": pair.expires_in,
        "refresh_expires_in": pair.refresh_expires_in,
    }


def _at(row: Any) -> Any:
    row.clock = django.utils.timezone.now()
    return row


def main(orders: Connection, config: dict[str, Any]) -> None:
    """Obey until the other end is closed."""
    node = Node(config)
    while True:
        try:
            command, positional, arguments = orders.recv()
        except EOFError:
            return
        try:
            orders.send((True, getattr(node, command)(*positional, **arguments)))
        except Exception as error:  # noqa: BLE001 - the test gets it
            orders.send((False, (type(error).__name__, str(error))))
