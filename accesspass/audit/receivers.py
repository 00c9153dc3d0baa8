"""Receivers of every signal that the audit log is made of.

Whatever goes wrong here, the request that it happened in goes on. Each event is a line of the
logger first. The row is written once the transaction that the caller may be in is committed, never
inside of it, where a failed INSERT would spoil it; if that fails, the error is logged, and the line
is what is left.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db import router, transaction
from django.db.models.functions import Now
from django.dispatch import Signal

from accesspass import accounts, signals
from accesspass.audit.models import Event
from accesspass.devices import user_agent
from accesspass.identifiers import is_plain_text
from accesspass.models import is_possible_username
from accesspass.networks import client_address

if TYPE_CHECKING:
    import uuid

    from django.http import HttpRequest

__all__ = ["ACTIONS", "connect"]

logger = logging.getLogger("accesspass.audit")

#: Every action, and the signal that says it.
ACTIONS: dict[str, Signal] = {
    "user_logged_in": user_logged_in,
    "user_logged_out": user_logged_out,
    "user_login_failed": user_login_failed,
} | {name: found for name in signals.__all__ if isinstance(found := getattr(signals, name), Signal)}
# Of what a signal carries, what is kept as it is. Not the addresses of `email_changed`.
_DETAILS = {
    "network_over_limit": ("scope", "network"),
    "session_revoked": ("reason",),
    "username_changed": ("old", "new"),
}


def connect() -> None:
    """Connect a receiver to each signal."""
    for action, signal in ACTIONS.items():
        # Kept alive by the signal, which holds functions made here weakly by default.
        receiver = _failed_login if signal is user_login_failed else partial(_happened, action)
        signal.connect(receiver, weak=False, dispatch_uid=f"accesspass.audit.{action}")


def _never_fails(receive: Callable[..., None]) -> Callable[..., None]:
    """Let no error reach whoever sent the signal: Django's own senders would pass it on."""

    def received(*args: Any, **kwargs: Any) -> None:
        try:
            receive(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is ours
            # Where it happened and no more: its text, and the variables that a report by e-mail
            # shows, may have what somebody typed as a name.
            logger.error(
                "audit.not_recorded: %s\n%s",
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)),
                extra={"event": "audit.not_recorded", "error": type(error).__name__},
            )

    return received


@_never_fails
def _happened(
    action: str,
    *,
    user: Any = None,
    user_id: Any = None,
    username: str = "",
    session_id: uuid.UUID | None = None,
    request: HttpRequest | None = None,
    **more: Any,
) -> None:
    """Record what a signal says. What each sends stands in `accesspass.signals`."""
    if user is not None:
        user_id, username = user.pk, str(user.get_username())
    details = {name: more[name] for name in _DETAILS.get(action, ())}
    if details.get("reason") == "admin" and (who := getattr(request, "user", None)) is not None:
        details["by"] = str(who.pk)
    _record(action, user_id, username, session_id, request, details)


@_never_fails
def _failed_login(
    *, credentials: dict[str, Any], request: HttpRequest | None = None, **_: Any
) -> None:
    """Record a login that no backend let in.

    Its name is looked up, and kept only if it is somebody's: people type passwords into that field.
    """
    model: Any = get_user_model()
    name = credentials.get(model.USERNAME_FIELD, credentials.get("username"))
    user = _user_named(name) if isinstance(name, str) and is_plain_text(name) else None
    user_id, username = (None, "") if user is None else (user.pk, str(user.get_username()))
    _record("user_login_failed", user_id, username, None, request, {})


def _user_named(name: str) -> Any:
    model: Any = get_user_model()
    users = model._base_manager.using(router.db_for_write(model))
    # In a transaction of the caller's an error of the database would end that.
    with transaction.atomic(using=users.db):
        key = accounts.natural_key(name)
        # Asked for an unknown name too, which takes as long then.
        found = users.filter(**{model.USERNAME_FIELD: key}) if is_possible_username(key) else None
        return None if found is None else found.first()


def _record(
    action: str,
    user_id: Any,
    username: str,
    session_id: uuid.UUID | None,
    request: HttpRequest | None,
    details: dict[str, Any],
) -> None:
    event = Event(
        action=action,
        user_id="" if user_id is None else str(user_id),
        username=username[:254],
        session_id=session_id,
        ip=None if request is None else client_address(request),
        user_agent="" if request is None else user_agent(request),
        details=details,
    )
    fields = {
        "action": action,
        "user_id": event.user_id,
        "username": event.username,
        "session_id": None if session_id is None else str(session_id),
        "ip": event.ip,
        "user_agent": event.user_agent,
        "details": details,
    }
    logger.info(
        "audit.happened: %s, user %s, session %s, from %s, %s",
        action,
        event.user_id or "unknown",
        session_id,
        event.ip,
        details,
        extra={"event": "audit.happened", **fields},
    )
    database = router.db_for_write(Event)
    transaction.on_commit(partial(_write, event, database), using=database)


def _write(event: Event, database: str) -> None:
    event.created_at = Now()
    try:
        event.save(using=database, force_insert=True)
    except Exception:
        logger.exception(
            "audit.not_written: %s, user %s",
            event.action,
            event.user_id or "unknown",
            extra={
                "event": "audit.not_written",
                "action": event.action,
                "user_id": event.user_id,
            },
        )
