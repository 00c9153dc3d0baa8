"""The record of a session, made from the rows: what an authorised request needs.

A record is plain data: the digests of the live access tokens, the recorded fields of the user, the
claims, whether the address is confirmed, and when the session ends. What stands in it was read
from the rows; it can be made again at any time, so a cache may forget it at any time.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import models, router
from django.utils.timezone import now

from accesspass.conf import conf
from accesspass.models import Account, Session
from accesspass.session_cache import (
    DEAD,
    FORMAT,
    RecordCache,
    SessionRecord,
    field_label,
    find,
    key,
    open_cache,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from accesspass.tokens import Token

__all__ = [
    "DEAD",
    "RecordCache",
    "SessionRecord",
    "account_of",
    "auth_hash",
    "auth_hashes",
    "build",
    "build_sample",
    "ends_at",
    "fingerprint",
    "fingerprints",
    "is_behind",
    "is_readable",
    "is_undone_by_sync",
    "key",
    "open_cache",
    "read",
    "recorded_fields",
]


class _Layout(NamedTuple):
    """Which fields of the user model are recorded, in the order of its columns."""

    label: str
    names: tuple[str, ...]
    pk: int


@lru_cache(maxsize=16)
def _layout(model: Any, extra: tuple[str, ...]) -> _Layout:
    options: Any = model._meta
    wanted = {"is_active", "is_staff", "is_superuser", *extra}
    for attribute in ("USERNAME_FIELD", "EMAIL_FIELD"):
        wanted.add(getattr(model, attribute, ""))
    wanted.discard("password")
    names = tuple(
        field.attname
        for field in options.concrete_fields
        if field.primary_key or field.name in wanted or field.attname in wanted
    )
    by_name = {field.name: field.attname for field in options.concrete_fields}
    username, email = (
        by_name.get(getattr(model, attribute, ""), "")
        for attribute in ("USERNAME_FIELD", "EMAIL_FIELD")
    )
    pk: str = options.pk.attname
    label = field_label(options.label, names, (pk, username, email))
    return _Layout(label, names, names.index(pk))


def build(session: Session, user: AbstractBaseUser) -> list[Any]:
    """Return what is put into the cache for a live session: plain types only."""
    layout = _layout(type(user), conf.USER_FIELDS)
    account = account_of(user)
    return [
        FORMAT,
        [[bytes.fromhex(digest), expires] for digest, expires in session.access_tokens],
        layout.label,
        [getattr(user, name) for name in layout.names],
        conf.hooks().claims(user, account, session.claims),
        account.meta,
        account.is_confirmed(user),
        ends_at(session),
    ]


def ends_at(session: Any) -> float | None:
    """Return when a selected session ends, in Unix seconds of the cache's clock; None for never.

    Reckoned from the database's clock at the selection, ``session.clock``: the two clocks may
    differ, and without USE_TZ what the database says may be in any time zone.
    """
    if session.expires_at is None:
        return None
    left: float = (session.expires_at - session.clock).total_seconds()
    return open_cache().now() + left


def account_of(user: AbstractBaseUser) -> Account:
    """Return the account that was selected with the user, an empty one if there is none."""
    return getattr(user, "accesspass_account", None) or Account(user_id=user.pk)


def read(token: Token, record: Any, now: float) -> tuple[AbstractBaseUser, SessionRecord] | None:
    """Return the user and session if the token is on record and good, else None."""
    found = find(token, record, now)
    if found is None:
        return None
    session, label, values = found
    model = get_user_model()
    layout = _layout(model, conf.USER_FIELDS)
    if label != layout.label:
        return None
    user: Any
    if conf.USER_FROM_RECORD:
        user = _restore(model, layout, values)
    else:
        users = model._base_manager.using(router.db_for_write(model))
        user = users.filter(pk=values[layout.pk]).first()
        if user is None or not getattr(user, "is_active", True):
            return None
    return user, session


def _restore(model: Any, layout: _Layout, values: list[Any]) -> Any:
    user = model.from_db(router.db_for_write(model), layout.names, values)
    user._accesspass_recorded = (layout.names, tuple(values))
    return user


def build_sample(model: Any) -> Any:
    """Return a user of that model as `read` makes it, with made-up values. For a system check."""
    layout = _layout(model, conf.USER_FIELDS)
    fields = {field.attname: field for field in model._meta.concrete_fields}
    user = _restore(model, layout, [_made_up(fields[name]) for name in layout.names])
    user.get_username()
    return user


def _made_up(field: Any) -> Any:
    while field.remote_field is not None:
        field = field.target_field
    kinds: dict[type[models.Field[Any, Any]], Any] = {
        models.BooleanField: True,
        models.IntegerField: 1,
        models.FloatField: 1.0,
        models.DecimalField: Decimal(1),
        models.UUIDField: uuid.UUID(int=1),
        models.DateTimeField: now(),
        models.DateField: now().date(),
        models.TimeField: now().time(),
        models.DurationField: timedelta(1),
        models.JSONField: {},
        models.BinaryField: b"",
    }
    return next((value for kind, value in kinds.items() if isinstance(field, kind)), "a@b.example")


def is_readable(record: Any) -> bool:
    """Whether a live record was made by a process with this release, user model and USER_FIELDS."""
    if type(record) is not list or record[:1] != [FORMAT]:
        return False
    model: Any = get_user_model()
    return bool(record[2] == _layout(model, conf.USER_FIELDS).label)


def recorded_fields(model: Any) -> frozenset[str]:
    """Return the fields of the user model whose change concerns the sessions."""
    names = _layout(model, conf.USER_FIELDS).names
    fields = (field for field in model._meta.concrete_fields if field.attname in names)
    return frozenset(name for field in fields for name in (field.name, field.attname)) | {
        "password"
    }


def fingerprint(user: AbstractBaseUser) -> str:
    """SHA-256 of everything about a user that the records of the sessions hold or depend on."""
    return _fingerprint(user, auth_hash(user))


def fingerprints(user: Any) -> list[str]:
    """Return the fingerprint, then what it would be under each SECRET_KEY on its way out."""
    return [_fingerprint(user, hashed) for hashed in auth_hashes(user)]


def _fingerprint(user: Any, hashed: str) -> str:
    model: Any = type(user)
    layout = _layout(model, conf.USER_FIELDS)
    account = account_of(user)
    state = [
        layout.label,
        [getattr(user, name) for name in layout.names],
        account.claims,
        account.meta,
        account.is_confirmed(user),
        hashed,
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def is_behind(user: Any) -> bool:
    """Whether what was published last is not what a selected user's row says now."""
    account = getattr(user, "accesspass_account", None)
    return account is not None and account.published != fingerprint(user)


def is_undone_by_sync(user: Any) -> bool:
    """Whether a change back from what a selected user's row says now would be seen by `sync`.

    It compares with what was published last: with this very state, or with "", an unknown one.
    """
    account = getattr(user, "accesspass_account", None)
    if account is None:
        return False
    return account.published == "" or account.published in fingerprints(user)


def auth_hash(user: Any) -> str:
    """The hash that changes with the password; "" for user models without one."""
    return user.get_session_auth_hash() if hasattr(user, "get_session_auth_hash") else ""


def auth_hashes(user: Any) -> list[str]:
    """The same, and those under each SECRET_KEY on its way out."""
    fallbacks = getattr(user, "get_session_auth_fallback_hash", list)
    return [auth_hash(user), *fallbacks()]
