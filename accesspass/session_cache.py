"""The session record: its place in the cache, and what can be read from it without a user model.

A node makes the records from its rows, in `records`; a resource server only reads them.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from django.core.cache import caches

from accesspass import metrics
from accesspass.conf import conf
from accesspass.exceptions import InvalidToken
from accesspass.tokens import Token, TokenType, parse

__all__ = [
    "DEAD",
    "FORMAT",
    "RecordCache",
    "SessionRecord",
    "field_label",
    "find",
    "identity",
    "key",
    "open_cache",
    "parse_access_token",
]

logger = logging.getLogger("accesspass.sessions")

#: What stands in the cache for a session that has ended.
DEAD = "dead"
FORMAT = 1


class SessionRecord:
    """``request.auth``: what is known of the session without a query.

    ``claims`` are what permissions read, ``meta`` is what the client said of itself and nobody may
    trust; ``expires_at`` is when the session ends, in Unix
    seconds, None for never; ``access_expires_at`` is when this access token does.
    """

    __slots__ = ("_id", "access_expires_at", "claims", "email_confirmed", "expires_at", "meta")

    def __init__(
        self,
        id: bytes,
        claims: dict[str, Any],
        meta: dict[str, Any],
        email_confirmed: bool,
        expires_at: float | None,
        access_expires_at: int,
    ) -> None:
        self._id = id
        self.claims = claims
        self.meta = meta
        self.email_confirmed = email_confirmed
        self.expires_at = expires_at
        self.access_expires_at = access_expires_at

    @property
    def id(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._id)

    @property
    def expires_in(self) -> int:
        """For how many whole seconds more the access token is good."""
        return max(0, int(self.access_expires_at - open_cache().now()))

    def __repr__(self) -> str:
        return f"<SessionRecord {self.id}>"


class RecordCache(Protocol):
    """What is used of the cache, whichever kind stands under the alias."""

    @property
    def CacheError(self) -> type[Exception]: ...
    @property
    def ValueRefused(self) -> type[Exception]: ...
    @property
    def max_staleness(self) -> float: ...

    def get(self, key: str) -> Any: ...
    def look(self, key: str) -> tuple[Any, Any] | None: ...
    def still_holds(self, snapshot: Any, until: float) -> bool: ...
    def publish(
        self, key: str, value: Any, revision: int, timeout: float, mark: Any = None
    ) -> bool: ...
    def fill(
        self,
        key: str,
        value: Any,
        revision: int,
        timeout: float,
        mark: Any,
        *,
        marker: bool = False,
    ) -> bool: ...
    def mark(self) -> Any: ...
    def forget(self, key: str) -> None: ...
    def now(self) -> float: ...
    def before_fresh(self, callback: Callable[[], None]) -> None: ...


class _PlainCache:
    """The same names over a cache that knows neither revisions nor an order.

    It only ever adds what is new and deletes what changed, so an old record is not put back over
    a newer one; but a read that overlaps a revocation may, for the lifetime of an access token.
    System checks say so.
    """

    max_staleness = 0.0

    class CacheError(Exception):
        """The cache failed, in whatever way."""

    class ValueRefused(CacheError):
        """Never raised: such a cache does not say which of its errors are of this kind."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def _try(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as error:
            raise self.CacheError(str(error)) from error

    def get(self, key: str) -> Any:
        try:
            return self._cache.get(key)
        except Exception:  # every backend has errors of its own; the row decides
            logger.warning(
                "session.cache_failed: it cannot be read",
                exc_info=True,
                extra={"event": "session.cache_failed"},
            )
            return None

    def look(self, key: str) -> tuple[Any, Any] | None:
        record = self.get(key)
        return None if record is None else (record, None)

    def still_holds(self, snapshot: Any, until: float) -> bool:
        return False  # such a cache does not say, so it is read each time

    def publish(
        self, key: str, value: Any, revision: int, timeout: float, mark: Any = None
    ) -> bool:
        if value == DEAD:
            self._try(self._cache.set, key, value, timeout)
        elif revision == 1:
            self._try(self._cache.add, key, value, timeout)
        else:
            self._try(self._cache.delete, key)
        return True

    def fill(
        self,
        key: str,
        value: Any,
        revision: int,
        timeout: float,
        mark: Any,
        *,
        marker: bool = False,
    ) -> bool:
        try:
            (self._cache.set if marker else self._cache.add)(key, value, timeout)
        except Exception:  # noqa: BLE001 - as in get
            return False
        return True

    def mark(self) -> Any:
        return None

    def forget(self, key: str) -> None:
        try:
            self._cache.delete(key)
        except Exception:
            logger.warning(
                "session.cache_failed: it cannot be written",
                exc_info=True,
                extra={"event": "session.cache_failed"},
            )

    def now(self) -> float:
        return time.time()

    def before_fresh(self, callback: Callable[[], None]) -> None:
        pass


def open_cache() -> RecordCache:
    """Return the cache under the alias ``ACCESSPASS["CACHE"]``, whatever its kind."""
    cache: Any = caches[conf.CACHE]
    return cache if hasattr(cache, "publish") else _PlainCache(cache)


def key(session_id: bytes) -> str:
    """Return the cache key of a session."""
    return "session:" + session_id.hex()


def find(token: Token, record: Any, now: float) -> tuple[SessionRecord, str, list[Any]] | None:
    """Return what the record says of the token, None if it does not hold it as good.

    That is the session, the user's recorded fields by their label, and their values.
    """
    if type(record) is not list or record[:1] != [FORMAT]:
        return None
    _, tokens, label, values, claims, meta, email_confirmed, expires_at = record
    expires = next((expires for digest, expires in tokens if digest == token.digest), 0)
    if expires <= now or (expires_at is not None and expires_at <= now):
        return None
    session = SessionRecord(token.id, claims, meta, email_confirmed, expires_at, expires)
    return session, label, values


def field_label(model: str, names: Sequence[str], identity: Sequence[str]) -> str:
    """Name a user model's recorded fields, and those that are its key, username and e-mail."""
    return f"{model}:{','.join(names)}:{','.join(identity)}"


def identity(label: str, values: Sequence[Any]) -> tuple[str, str, str]:
    """Return a recorded user's key, username and e-mail address ("" for none), without the model.

    Raises ValueError for a label that `field_label` did not make for these values.
    """
    fields = dict(zip(_names(label)[0], values, strict=True))
    pk, username, email = (fields[name] if name else None for name in _names(label)[1])
    return str(pk), str(username), "" if email is None else str(email)


@lru_cache(maxsize=16)
def _names(label: str) -> tuple[list[str], list[str]]:
    _model, names, identity = label.split(":")
    return names.split(","), identity.split(",")


def parse_access_token(text: object) -> Token:
    """Return what may be an access token of ours, by its form alone. Raises InvalidToken."""
    token = parse(TokenType.ACCESS, text)
    if token is None:
        metrics.CHECKS.count("malformed")
        raise InvalidToken
    return token
