"""What this process made of the access tokens that it has lately found good.

A client sends the same access token for minutes. Parsing it, decoding the record and making the
user need not be done again while the cache holds the very copy of the record that they were made
from. That is asked at each request, so nothing is decided here: a revocation, like every change
of a session or its user, puts another copy in its place.

A token is known here by its SHA-256 alone. No lock: each step on a dict is atomic.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, models, router
from django.db.models.base import ModelState
from django.db.models.signals import post_init, pre_init

from accesspass import metrics
from accesspass.session_cache import RecordCache, SessionRecord

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

    from accesspass.tokens import Token

__all__ = ["find", "forget_all", "remember"]

# Of each half. What is in neither costs some microseconds more.
_LIMIT = 2_000
# Of those that were found good once: many are not seen a second time by this process.
_ONCE = 10_000
# Nothing is kept of larger entries, in bytes, since clients have a say in what is in them.
_LARGEST = 1_000
# Nobody hashes more of what a client sends; no token is so long.
_LONGEST = 256
# What cannot be changed may be shared by the users of several requests.
_UNCHANGEABLE = frozenset(
    {
        *(bool, bytes, float, int, str, type(None), uuid.UUID, decimal.Decimal),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta),
    }
)


class _Known(NamedTuple):
    """All that is needed to answer for a token again, and ``still_holds``, which is asked first."""

    still_holds: Callable[[Any, float], bool]
    snapshot: Any
    until: float
    model: type[models.Model]
    attributes: dict[str, Any]
    session: SessionRecord


# What was asked for lately, and what was before that: when the one is full, it becomes the other.
_young: dict[bytes, _Known] = {}
_old: dict[bytes, _Known] = {}
_once: set[bytes] = set()

_count_hit = metrics.CHECKS.of("hit")


def find(access_token: object) -> tuple[Any, SessionRecord] | None:
    """Return a user and session of the caller's own for a token that is good, None if unknown."""
    if not isinstance(access_token, str) or len(access_token) > _LONGEST:
        return None
    digest = hashlib.sha256(access_token.encode("utf-8", "surrogatepass")).digest()
    del access_token  # a report of an error further down would show it
    known = _young.get(digest)
    if known is None:
        known = _old.get(digest)
        if known is None:
            return None
        _keep(digest, known)
    still_holds, snapshot, until, model, attributes, session = known
    if not still_holds(snapshot, until):
        _young.pop(digest, None)
        _old.pop(digest, None)
        return None
    user: Any = model.__new__(model)
    user.__dict__.update(attributes)
    user._state = state = ModelState()
    state.db = router.db_for_write(model) if router.routers else DEFAULT_DB_ALIAS
    state.adding = False
    _count_hit()
    return user, _copy(session)


def remember(
    cache: RecordCache, snapshot: Any, token: Token, user: AbstractBaseUser, session: SessionRecord
) -> None:
    """Keep what was just made of a token, the second time, for those that come.

    It is kept if copies of it are as good as what is made anew.

    Args:
        snapshot: of the record it was made from, None if the cache has no such thing.
        user, session: nobody else has seen them yet.
    """
    if token.digest not in _once:
        if len(_once) >= _ONCE:
            _once.clear()
        _once.add(token.digest)
        return
    model, attributes = type(user), dict(vars(user))
    state = attributes.pop("_state")
    recorded = attributes.pop("_accesspass_recorded", None)
    if (
        snapshot is None
        or snapshot.size > _LARGEST
        or not _is_made_plainly(model)
        # Nothing is in it but what was recorded, as it was recorded.
        or recorded is None
        or attributes != dict(zip(*recorded, strict=True))
        or vars(state).keys() != {"adding", "db"}
        or not all(map(_is_flat, (attributes, session.claims, session.meta)))
    ):
        return
    attributes["_accesspass_recorded"] = recorded
    until: float = session.access_expires_at
    if session.expires_at is not None:
        until = min(until, session.expires_at)
    known = _Known(cache.still_holds, snapshot, until, model, attributes, _copy(session))
    _keep(token.digest, known)


def _copy(session: SessionRecord) -> SessionRecord:
    return SessionRecord(
        session._id,
        session.claims.copy(),
        session.meta.copy(),
        session.email_confirmed,
        session.expires_at,
        session.access_expires_at,
    )


def _keep(digest: bytes, known: _Known) -> None:
    global _young, _old
    if len(_young) >= _LIMIT:
        _old, _young = _young, {}
    _young[digest] = known


def _is_made_plainly(model: Any) -> bool:
    """Whether nothing of the project's runs when Django makes an object of a model from a row."""
    return (
        getattr(model.from_db, "__func__", None) is _from_db
        and model.__new__ is object.__new__
        and model.__init__ is models.Model.__init__
        and super(models.Model, model).__init__ is object.__init__  # a mixin's, which Model calls
        and model.__setattr__ is object.__setattr__
        and type(model).__call__ is type.__call__
        and not pre_init.has_listeners(model)
        and not post_init.has_listeners(model)
    )


_from_db = models.Model.from_db.__func__  # type: ignore[attr-defined]


def _is_flat(value: Any) -> bool:
    return type(value) is dict and all(type(part) in _UNCHANGEABLE for part in value.values())


def forget_all(**_kwargs: Any) -> None:
    """Begin anew, as after a change of settings."""
    for memory in (_young, _old, _once):
        memory.clear()


setting_changed.connect(forget_all, dispatch_uid="accesspass.recent")
