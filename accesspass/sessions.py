"""Sessions: start, authenticate, refresh, revoke, and keep up. The sole author of cache keys.

The row is the truth; the record in the cache is a copy of what an authorised request needs. Every
change of a row raises its ``revision``, and the copy is published under that number once the
change is committed, so a copy that comes late loses. See the explanation "How it works" for why
each step stands where it stands.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    router,
    transaction,
)
from django.db.models import Exists, F, OuterRef, Q
from django.db.models.functions import Now
from django.views.decorators.debug import sensitive_variables

from accesspass import metrics, recent, records
from accesspass.conf import TEN_YEARS, conf
from accesspass.devices import printable, user_agent
from accesspass.exceptions import (
    AccessPassError,
    InvalidCredentials,
    InvalidToken,
    TokenRequired,
    Unavailable,
)
from accesspass.models import Account, EmailKey, MailRequest, Session
from accesspass.networks import client_address
from accesspass.records import RecordCache, SessionRecord
from accesspass.session_cache import parse_access_token
from accesspass.signals import refresh_token_reused, session_revoked, session_started
from accesspass.tokens import Token, TokenType, derive, mint, parse

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest

__all__ = [
    "SessionRecord",
    "TokenPair",
    "aauthenticate",
    "authenticate",
    "has_expired",
    "introspect",
    "join",
    "keep",
    "let_go",
    "live",
    "logout",
    "pending",
    "publish_now",
    "purge",
    "refresh",
    "revoke",
    "revoke_all",
    "select_user",
    "start",
    "sweep",
    "sync",
    "sync_key",
    "tidy",
]

logger = logging.getLogger("accesspass.sessions")

_MAX_ACCESS_TOKENS = 4
_BATCH = 1_000
# What the clocks of database and engine may differ by, when tokens are told from the time of their
# session's last use, in seconds.
_SWEEP_MARGIN = 60.0


class TokenPair:
    """What a login or a refresh gives. Its repr shows no token.

    ``user`` is whose session it is. ``expires_in`` and ``refresh_expires_in`` are whole seconds
    from now; the latter is None for a session without an end.
    """

    __slots__ = (
        "access_token",
        "expires_in",
        "refresh_expires_in",
        "refresh_token",
        "session_id",
        "user",
    )

    def __init__(
        self,
        user: AbstractBaseUser,
        session_id: uuid.UUID,
        access_token: str,
        expires_in: int,
        refresh_token: str,
        refresh_expires_in: int | None,
    ) -> None:
        self.user = user
        self.session_id = session_id
        self.access_token = access_token
        self.expires_in = expires_in
        self.refresh_token = refresh_token
        self.refresh_expires_in = refresh_expires_in

    def __repr__(self) -> str:
        return f"<TokenPair of session {self.session_id}>"

    def as_dict(self) -> dict[str, Any]:
        """Return the body of a token answer (names as in RFC 6749 §5.1)."""
        return {
            "token_type": "Bearer",
            "access_token": self.access_token,
            "expires_in": self.expires_in,
            "refresh_token": self.refresh_token,
            "refresh_expires_in": self.refresh_expires_in,
        }


# Publishing -----------------------------------------------------------------------------------


def _cache() -> RecordCache:
    cache = records.open_cache()
    cache.before_fresh(_doubt_pending)
    return cache


def _mark(cache: RecordCache) -> Any:
    """Return a mark, or False if none can be had: nothing can be published or filled then."""
    try:
        return cache.mark()
    except cache.CacheError:
        return False


def _marker_timeout(cache: RecordCache) -> float:
    # Longer than any record that it has to beat can live, wherever that record was held up.
    return conf.ACCESS_TOKEN_LIFETIME + 2 * cache.max_staleness


def _publish(
    cache: RecordCache, found: Iterable[tuple[Any, Any]], mark: Any, ended: _Ended | None = None
) -> None:
    """Publish what rows say now, once that is committed: sessions, each with its record or DEAD.

    Where a row has it as pending and the engine acknowledges, the row hears of it; else `tidy`
    publishes it. A plain rotation is not pending: nobody need hear of it, since whoever meets the
    new tokens asks the database.
    """
    reachable = acknowledged = True
    for session, record in found:
        done = False
        if reachable and (mark is not False or record == records.DEAD):
            try:
                with metrics.PUBLISH.measure():
                    done = _publish_one(cache, session, record, mark)
            except cache.CacheError as error:
                logger.warning(
                    "session.not_published: %s: %s",
                    session.pk,
                    error,
                    extra={"event": "session.not_published", "session_id": str(session.pk)},
                )
                reachable = False  # the others would wait for the same engine
        acknowledged &= done
        if not done:
            if record != records.DEAD:
                cache.forget(records.key(session.pk.bytes))
        elif session.publication_pending:
            _acknowledge(session)
    if ended is not None:
        ended.acknowledged = acknowledged


def _publish_one(cache: RecordCache, session: Any, record: Any, mark: Any) -> bool:
    key, timeout = records.key(session.pk.bytes), conf.ACCESS_TOKEN_LIFETIME
    if record == records.DEAD:
        mark, timeout = None, _marker_timeout(cache)
    try:
        done = cache.publish(key, record, session.revision, timeout, mark)
    except cache.ValueRefused as error:
        # Nothing in its place lets every node ask the database, and none go on with what it had.
        logger.error(
            "session.not_recorded: %s: %s",
            session.pk,
            error,
            extra={"event": "session.not_recorded", "session_id": str(session.pk)},
        )
        done = cache.publish(key, None, session.revision, timeout, mark)
    if not done:
        # The engine's history has ended since the mark was taken. Or the database was restored,
        # and the engine knows of a revision that the row has not reached again.
        logger.warning(
            "session.publication_refused: %s",
            session.pk,
            extra={"event": "session.publication_refused", "session_id": str(session.pk)},
        )
    return done


def _acknowledge(session: Any) -> None:
    """Clear the flag of the very revision that the engine has acknowledged."""
    rows = Session.objects.using(router.db_for_write(Session))
    try:
        rows.filter(pk=session.pk, revision=session.revision).update(publication_pending=False)
    except DatabaseError as error:
        # What was asked for is done. That it is published once more does no harm.
        logger.warning(
            "session.not_acknowledged: %s: %s",
            session.pk,
            error,
            extra={"event": "session.not_acknowledged", "session_id": str(session.pk)},
        )


def _doubt_pending() -> None:
    """Make this process trust nothing that changed while it, or the engine, was out of reach."""
    database = router.db_for_write(Session)
    connection = connections[database]
    if connection.vendor == "sqlite" and connection.is_in_memory_db():  # type: ignore[attr-defined]
        return  # such a database has one process, and that one has seen it all
    cache = _cache()
    mark = cache.mark()
    pending = Session.objects.using(database).filter(publication_pending=True)
    for session_id, revision, revoked_at in pending.values_list("pk", "revision", "revoked_at"):
        key = records.key(session_id.bytes)
        cache.forget(key)
        if revoked_at is not None:
            timeout = _marker_timeout(cache)
            cache.fill(key, records.DEAD, revision, timeout, mark, marker=True)


# Authenticate ---------------------------------------------------------------------------------


@sensitive_variables()
def authenticate(access_token: object) -> tuple[AbstractBaseUser, SessionRecord]:
    """Return the user and the session that an access token stands for.

    A token whose session this process holds costs no I/O, and neither does one that is malformed,
    forged or expired. Anything else costs one query.

    Raises:
        InvalidToken: it stands for nothing (RFC 6750 §3.1, ``invalid_token``).
        Unavailable: the database had to be asked and could not be.
    """
    if found := recent.find(access_token):
        return found
    token = parse_access_token(access_token)
    del access_token  # a report of an error further down would show it
    cache = _cache()
    try:
        if found := _from_cache(cache, token):
            return found
        with metrics.reading_through():
            return _from_database(cache, token)
    except (OperationalError, InterfaceError) as error:
        raise Unavailable from error


def introspect(access_token: object) -> tuple[AbstractBaseUser, SessionRecord]:
    """The same, decided by the row alone, at the cost of one query.

    Who asks from elsewhere may keep the answer for ``MAX_STALENESS``. One from memory may be that
    old already.
    """
    token = parse(TokenType.ACCESS, access_token)
    cache = _cache()
    if token is None or not token.is_authentic() or token.number <= cache.now():
        raise InvalidToken
    return _from_database(cache, token)


def join() -> None:
    """Let this process's replica join the others, if it has not yet, as its first read would."""
    _cache().get("session:")


@sensitive_variables()
async def aauthenticate(access_token: object) -> tuple[AbstractBaseUser, SessionRecord]:
    """The same on an event loop; only a miss goes to a thread."""
    if found := recent.find(access_token):
        return found
    token = parse_access_token(access_token)
    cache = _cache()
    if conf.USER_FROM_RECORD and (found := _from_cache(cache, token)):
        return found
    return await sync_to_async(authenticate)(access_token)


def _from_cache(cache: RecordCache, token: Token) -> tuple[AbstractBaseUser, SessionRecord] | None:
    """Decide by memory alone; None if only the database can tell."""
    looked = cache.look(records.key(token.id))
    if looked is not None:
        record, snapshot = looked
        if record == records.DEAD:
            metrics.CHECKS.count("revoked")
            raise InvalidToken
        found = records.read(token, record, cache.now())
        if found is not None:
            metrics.CHECKS.count("hit")
            recent.remember(cache, snapshot, token, *found)
            return found
        if not records.is_readable(record):
            cache.forget(records.key(token.id))  # it would keep ours, of the same revision, out
    # Only what was made here, and is not over, is worth a query.
    if not token.is_authentic():
        refusal = "forged"
    elif token.number <= cache.now():
        refusal = "expired"
    elif _refused.holds(token.digest):
        refusal = "refused"
    else:
        return None
    metrics.CHECKS.count(refusal)
    raise InvalidToken


def _from_database(cache: RecordCache, token: Token) -> tuple[AbstractBaseUser, SessionRecord]:
    database = router.db_for_write(Session)
    # What is read inside a transaction may be rolled back, or older than what others see.
    may_fill = not connections[database].in_atomic_block
    mark = _mark(cache) if may_fill else False
    session = _select(database, token.id)
    if (
        mark is not False
        and session is not None
        and _why_dead(session) is None
        and _let_sync_see(database, session.user)
    ):
        mark, session = _mark(cache), _select(database, token.id)
    key, revision = records.key(token.id), 0 if session is None else session.revision
    if session is not None and session.revoked_at is not None:
        if mark is not False:
            cache.fill(key, records.DEAD, revision, _marker_timeout(cache), mark, marker=True)
        raise InvalidToken
    if session is not None and _why_dead(session) is None:
        record = records.build(session, session.user)
        found = records.read(token, record, cache.now())
        if found is not None:
            if mark is not False and records.is_undone_by_sync(session.user):
                _fill(cache, session, record, mark)
            return found
    # A row that is missing may be a login that is not committed yet, so not for long.
    _refused.add(token.digest)
    raise InvalidToken


def _let_sync_see(database: str, user: Any) -> bool:
    """Make sure that `sync` sees it if what is read of a user now is undone. True: read again.

    A state that was never published, because it was written behind the ORM's back or because a
    setting changed what is recorded, may be held only once the account says that what is out there
    is unknown. One request writes that, once for each user.
    """
    if records.is_undone_by_sync(user):
        return False
    found = records.account_of(user).published
    accounts = Account.objects.using(database).filter(pk=user.pk, published=found)
    try:
        return accounts.update(published="") == 1
    except DatabaseError:
        return False  # this one cannot be written; the request is answered, and nothing held


def _fill(cache: RecordCache, session: Any, record: Any, mark: Any) -> None:
    key = records.key(session.pk.bytes)
    try:
        cache.fill(key, record, session.revision, conf.ACCESS_TOKEN_LIFETIME, mark)
    except cache.CacheError as error:
        logger.error(
            "session.not_recorded: %s: %s",
            session.pk,
            error,
            extra={"event": "session.not_recorded", "session_id": str(session.pk)},
        )


def _select(database: str, session_id: bytes) -> Any:
    return _selected(database).filter(pk=uuid.UUID(bytes=session_id)).first()


def _selected(database: str) -> Any:
    """Sessions, each with its user, account and the database's clock (as ``clock``)."""
    return (
        Session.objects.using(database)
        .select_related("user__accesspass_account")
        .annotate(clock=Now())
    )


def _why_dead(session: Any) -> str | None:
    """Say why a selected session that was not revoked is good for nothing, None if it lives."""
    if session.revoked_at is not None:
        return "revoked"
    if session.user is None:
        return "user_deleted"
    if not getattr(session.user, "is_active", True):
        return "user_disabled"
    if session.expires_at is not None and session.expires_at <= session.clock:
        return "expired"
    if not _has_auth_hash(session, session.user):
        return "password_changed"
    return None


class _Refused:
    """Digests of tokens that the database has just refused, so that it is not asked again."""

    _SECONDS, _LIMIT = 1.0, 10_000

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}

    def holds(self, digest: bytes) -> bool:
        return self._until.get(digest, 0.0) > time.monotonic()

    def add(self, digest: bytes) -> None:
        if len(self._until) >= self._LIMIT:
            self._until = {}
        self._until[digest] = time.monotonic() + self._SECONDS


_refused = _Refused()


# Start ----------------------------------------------------------------------------------------


@sensitive_variables()
def start(
    user: AbstractBaseUser,
    *,
    request: HttpRequest | None = None,
    claims: Mapping[str, Any] | None = None,
    lifetime: float | timedelta | None = None,
    name: str = "",
) -> TokenPair:
    """Begin a session for a user whom the caller has authenticated, or vouches for.

    Args:
        request: where the device's address and user agent are taken from.
        claims: claims of this session alone, over those of the account; plain types.
        lifetime: seconds after which it ends, ``REFRESH_TOKEN_LIFETIME`` if None; for "remember
            me", or a token for a command line.
        name: what the user calls the device, at most 100 characters.

    Raises:
        InvalidCredentials: the user is gone or disabled, or the password has changed since it was
            verified.
        ValueError: the lifetime is not above 0 and at most ten years.
    """
    ends_after = conf.REFRESH_TOKEN_LIFETIME if lifetime is None else _seconds(lifetime)
    database = router.db_for_write(Session)
    cache = _cache()
    mark = _mark(cache)
    with transaction.atomic(using=database):
        accounts = Account.objects.using(database).filter(pk=user.pk)
        known = accounts.update(login_count=F("login_count") + 1)
        if not known:
            # There is no account to lock, and `sync` sees none, until this is committed: hold the
            # user's own row, so that a change of it waits and then finds the account.
            _lock_user(database, user.pk)
        current = select_user(database, user.pk)
        if current is None:
            raise InvalidCredentials
        if not known:
            Account.objects.db_manager(database).for_user(current)
            accounts.update(login_count=F("login_count") + 1)
            current = select_user(database, user.pk)
        if current.accesspass_account.published != records.fingerprint(current):
            # The session must begin with the very state whose fingerprint is on record, or the
            # change that came after it would find nothing to do.
            current = _republish(cache, mark, database, current)
        _refuse_if_changed(user, current)
        clock: datetime = current.clock
        session: Any = Session(
            user=current,
            created_at=clock,
            last_used_at=clock,
            expires_at=None if ends_after is None else clock + timedelta(seconds=ends_after),
            claims=dict(claims or {}),
            name=printable(name)[:100],
            auth_hash=records.auth_hash(current),
        )
        session.clock = clock
        if request is not None:
            session.ip = client_address(request)
            session.user_agent = user_agent(request)
        refresh_token = mint(TokenType.REFRESH, session.pk.bytes, 0)
        access_token = mint(TokenType.ACCESS, session.pk.bytes, _access_expiry(cache, session))
        session.refresh_digest = refresh_token.digest.hex()
        session.access_tokens = [[access_token.digest.hex(), access_token.number]]
        session.save(using=database, force_insert=True)
        _enforce_limit(database, session, request)
        record = records.build(session, current)
        transaction.on_commit(partial(_publish, cache, [(session, record)], mark), using=database)
        transaction.on_commit(
            partial(
                session_started.send,
                sender=type(current),
                user=current,
                session_id=session.pk,
                request=request,
            ),
            using=database,
            robust=True,
        )
    return _pair(cache, session, access_token, refresh_token, clock)


def select_user(database: str, pk: Any) -> Any:
    """Select a user with account and the database's clock (as ``clock``), past any manager."""
    return (
        get_user_model()
        ._base_manager.using(database)
        .select_related("accesspass_account")
        .annotate(clock=Now())
        .filter(pk=pk)
        .first()
    )


def _refuse_if_changed(user: AbstractBaseUser, current: AbstractBaseUser) -> None:
    """Refuse a login that a ban or a new password has overtaken."""
    if not getattr(current, "is_active", True):
        raise InvalidCredentials
    if "password" in user.__dict__ and user.password != current.password:
        raise InvalidCredentials


def _enforce_limit(database: str, session: Session, request: HttpRequest | None) -> None:
    live = Session.objects.using(database).filter(
        Q(expires_at=None) | Q(expires_at__gt=session.created_at),
        user=session.user_id,
        revoked_at=None,
    )
    order = live.order_by("-created_at", "-pk").exclude(pk=session.pk)
    surplus = list(order.values_list("pk", flat=True)[conf.SESSIONS_PER_USER - 1 :])
    if surplus:
        _end(database, Q(pk__in=surplus), "session_limit", request)


def _access_expiry(cache: RecordCache, session: Any) -> int:
    expires = math.ceil(cache.now() + conf.ACCESS_TOKEN_LIFETIME)
    ends = records.ends_at(session)
    return expires if ends is None else min(expires, int(ends))


def _pair(
    cache: RecordCache, session: Any, access_token: Token, refresh_token: Token, clock: datetime
) -> TokenPair:
    return TokenPair(
        session.user,
        session.pk,
        access_token.text,
        max(0, min(round(conf.ACCESS_TOKEN_LIFETIME), access_token.number - int(cache.now()))),
        refresh_token.text,
        None
        if session.expires_at is None
        else max(0, int((session.expires_at - clock).total_seconds())),
    )


def _has_auth_hash(session: Session, user: Any) -> bool:
    """Whether the session began under the user's present password, under any SECRET_KEY."""
    if session.auth_hash == records.auth_hash(user):
        return True
    fallback = getattr(user, "get_session_auth_fallback_hash", list)
    return session.auth_hash in fallback()


def _seconds(duration: float | timedelta) -> float:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not 0 < seconds <= TEN_YEARS:
        raise ValueError("the lifetime of a session is above 0 and at most ten years")
    return seconds


# Refresh --------------------------------------------------------------------------------------


@sensitive_variables()
def refresh(refresh_token: object, *, request: HttpRequest | None = None) -> TokenPair:
    """Exchange a refresh token for a new pair (rotation, RFC 9700 §4.14.2).

    It costs three statements, and a fourth if the session had something pending; where the user
    was changed behind the ORM's back, those of `sync` too.

    The same token within ``REFRESH_GRACE`` gets the identical pair again, for two tabs or a lost
    answer. After that, or one rotation later, it ends the session: two parties hold it.

    Call it outside of transactions: what it records must stay even if it raises. ``request`` is for
    receivers of ``refresh_token_reused``.

    Raises:
        InvalidToken: the token is not, or no more, good for anything.
        RuntimeError: it was called inside a transaction.
    """
    token = parse(TokenType.REFRESH, refresh_token)
    del refresh_token  # a report of an error further down would show it
    if token is None or not token.is_authentic():
        raise InvalidToken
    database = router.db_for_write(Session)
    cache = _cache()
    mark = _mark(cache)
    changed: list[Any] = []
    with transaction.atomic(using=database, durable=True):
        outcome = _rotate(cache, mark, database, token, changed, request)
    for user in changed:
        sync(user)
    # Raised here, so that what was recorded of the refusal stays.
    if isinstance(outcome, AccessPassError):
        raise outcome
    return outcome


@sensitive_variables()
def _rotate(
    cache: RecordCache,
    mark: Any,
    database: str,
    token: Token,
    changed: list[Any],
    request: HttpRequest | None,
) -> TokenPair | AccessPassError:
    rows = Session.objects.using(database).filter(pk=uuid.UUID(bytes=token.id))
    # An UPDATE locks the row on every vendor; SELECT FOR UPDATE does not on SQLite.
    rows.update(generation=F("generation"))
    session = _select(database, token.id)
    if session is None or _why_dead(session) is not None or _is_idle(session):
        return InvalidToken()
    digest = token.digest.hex()
    if token.number == session.generation and digest == session.refresh_digest:
        if records.is_behind(session.user):
            changed.append(session.user)
        return _successor(cache, mark, rows, session, token)
    if (
        token.number == session.generation - 1
        and digest == session.previous_digest
        and session.nonce
        and session.clock - session.rotated_at < timedelta(seconds=conf.REFRESH_GRACE)
    ):
        return _same_successor(cache, session, token) or InvalidToken()
    if token.number < session.generation:
        _end(database, Q(pk=session.pk), "refresh_token_reused", request)
        transaction.on_commit(
            partial(
                refresh_token_reused.send,
                sender=type(session.user),
                user_id=session.user_id,
                session_id=session.pk,
                request=request,
            ),
            using=database,
            robust=True,
        )
        metrics.REUSES.count()
        logger.warning(
            "session.refresh_token_reused: %s",
            session.pk,
            extra={"event": "session.refresh_token_reused", "session_id": str(session.pk)},
        )
        return InvalidToken()
    # Made under our key but never given out: a restored database, or a leaked key.
    logger.error(
        "session.refresh_token_unknown: %s",
        session.pk,
        extra={"event": "session.refresh_token_unknown", "session_id": str(session.pk)},
    )
    return InvalidToken()


def _is_idle(session: Any) -> bool:
    limit = conf.SESSION_IDLE_LIFETIME
    return limit is not None and session.clock - session.last_used_at > timedelta(seconds=limit)


@sensitive_variables()
def _successor(cache: RecordCache, mark: Any, rows: Any, session: Any, token: Token) -> TokenPair:
    nonce = os.urandom(32)
    refresh_token = derive(token, nonce, TokenType.REFRESH, session.generation + 1)
    access_token = derive(token, nonce, TokenType.ACCESS, _access_expiry(cache, session))
    now = cache.now()
    live = [[digest, expires] for digest, expires in session.access_tokens if expires > now]
    live = [*live, [access_token.digest.hex(), access_token.number]][-_MAX_ACCESS_TOKENS:]
    session.access_tokens = live
    rows.update(
        revision=F("revision") + 1,
        generation=F("generation") + 1,
        previous_digest=session.refresh_digest,
        refresh_digest=refresh_token.digest.hex(),
        nonce=nonce.hex(),
        rotated_at=Now(),
        last_used_at=Now(),
        access_tokens=live,
        # One that matched under a SECRET_KEY that is on its way out matches the new one too.
        auth_hash=records.auth_hash(session.user),
    )
    session.revision += 1
    record = records.build(session, session.user)
    transaction.on_commit(partial(_publish, cache, [(session, record)], mark), using=rows.db)
    return _pair(cache, session, access_token, refresh_token, session.clock)


@sensitive_variables()
def _same_successor(cache: RecordCache, session: Any, token: Token) -> TokenPair | None:
    """Derive the pair that the last rotation gave; its keys may have rotated meanwhile."""
    nonce = bytes.fromhex(session.nonce)
    for key in conf.TOKEN_KEYS:
        refresh_token = derive(token, nonce, TokenType.REFRESH, session.generation, key)
        if refresh_token.digest.hex() != session.refresh_digest:
            continue
        for digest, expires in reversed(session.access_tokens):
            access_token = derive(token, nonce, TokenType.ACCESS, expires, key)
            if access_token.digest.hex() == digest:
                return _pair(cache, session, access_token, refresh_token, session.clock)
    return None


# Revoke ---------------------------------------------------------------------------------------


def revoke(
    session_id: uuid.UUID, *, reason: str = "revoked", request: HttpRequest | None = None
) -> bool:
    """End a session, on every node. ``request`` is for receivers of ``session_revoked``.

    Returns:
        True if the engine has acknowledged it: every node refuses it from now on, and one that is
        cut off does within ``MAX_STALENESS``. False if it is recorded and will be published: the
        engine is out of reach, or the caller's transaction is not committed yet.
    """
    database = router.db_for_write(Session)
    with transaction.atomic(using=database):
        ended = _end(database, Q(pk=session_id), reason, request)
    return ended.acknowledged


def revoke_all(
    user: AbstractBaseUser,
    *,
    except_: uuid.UUID | None = None,
    reason: str = "revoked",
    request: HttpRequest | None = None,
) -> bool:
    """End all sessions of a user but one. Takes ``request``, and returns, as ``revoke`` does."""
    database = router.db_for_write(Session)
    which = Q(user=user.pk)
    if except_ is not None:
        which &= ~Q(pk=except_)
    with transaction.atomic(using=database):
        Account.objects.lock(user.pk, database)
        ended = _end(database, which, reason, request)
    return ended.acknowledged


def let_go(user: AbstractBaseUser) -> None:
    """End all sessions of a user who is about to be deleted, and remove what refers to the user.

    The collector has looked for that before there was a lock: what a login, or a notice by e-mail,
    has inserted since would make the deletion fail.
    """
    database = router.db_for_write(Session)
    with transaction.atomic(using=database):
        if not Account.objects.lock(user.pk, database):
            _lock_user(database, user.pk)
        _end(database, Q(user=user.pk), "user_deleted")
        Session.objects.using(database).filter(user=user.pk).update(user=None)
        Account.objects.using(database).filter(pk=user.pk).delete()
        for model in (EmailKey, MailRequest):
            model._default_manager.using(database).filter(user=user.pk).delete()


def live(user: AbstractBaseUser) -> list[Session]:
    """Return the sessions of a user that can still be used, the one refreshed last first."""
    database = router.db_for_write(Session)
    rows = (
        Session.objects.using(database)
        .select_related("user")
        .annotate(clock=Now())
        .filter(user=user.pk, revoked_at=None)
        .order_by("-last_used_at", "pk")
    )
    return [row for row in rows if _why_dead(row) is None and not _is_idle(row)]


def has_expired() -> Q:
    """Return the condition on rows of sessions whose time is over, by lifetime or by idleness."""
    expired = Q(expires_at__lte=Now())
    if conf.SESSION_IDLE_LIFETIME is not None:
        expired |= Q(last_used_at__lt=Now() - timedelta(seconds=conf.SESSION_IDLE_LIFETIME))
    return expired


def _everywhere(session_id: uuid.UUID, *, reason: str, request: HttpRequest | None) -> bool:
    """End every session of the user whose live session this is. Returns as ``revoke`` does."""
    database = router.db_for_write(Session)
    session = _select(database, session_id.bytes)
    if session is None or session.user is None:
        return revoke(session_id, reason=reason, request=request)
    if _why_dead(session) is None:
        return revoke_all(session.user, reason=reason, request=request)
    # A dead one ends nothing; but what an earlier attempt has left pending is published.
    with transaction.atomic(using=database):
        ended = _end(database, Q(user=session.user_id, revoked_at__isnull=False), reason)
    return ended.acknowledged


def keep(session_id: uuid.UUID, user: AbstractBaseUser) -> None:
    """Let a session outlive the change of its user's password to the one that ``user`` has now.

    Call it in the transaction of that change, with the user's lock held, before the user is saved.
    """
    sessions = Session.objects.using(router.db_for_write(Session))
    sessions.filter(pk=session_id).update(auth_hash=records.auth_hash(user))


@sensitive_variables()
def logout(
    *,
    access_token: object = None,
    refresh_token: object = None,
    everywhere: bool = False,
    request: HttpRequest | None = None,
) -> bool:
    """End the session of an access token, or of a refresh token of any generation.

    With ``everywhere`` end all sessions of its user, unless that session has ended already: a
    token that was thrown away does nothing any more.

    It is idempotent and tells nothing (RFC 7009 §2.2): live, dead, forged and unknown tokens get
    the same answer. Django's ``user_logged_out`` is sent with ``request`` if a session has ended.
    Returns as ``revoke`` does.

    Raises:
        TokenRequired: neither token was given.
        InvalidToken: the access token is ours but has expired. It proves nothing any more, and
            the session goes on: use the refresh token.
    """
    if access_token is None and refresh_token is None:
        raise TokenRequired
    given = [
        parse(TokenType.REFRESH, refresh_token),
        parse(TokenType.ACCESS, access_token),
    ]
    del access_token, refresh_token  # a report of an error further down would show them
    acknowledged, ended = True, False
    for token in given:
        if token is None or not token.is_authentic():
            continue
        if token.type is TokenType.ACCESS and token.number <= _cache().now():
            if ended:
                continue
            raise InvalidToken
        ended = True
        end = _everywhere if everywhere else revoke
        session_id = uuid.UUID(bytes=token.id)
        user = _listened_for(session_id)
        acknowledged &= end(session_id, reason="logout", request=request)
        if user is not None:
            user_logged_out.send(sender=type(user), request=request, user=user)
    return acknowledged


def _listened_for(session_id: uuid.UUID) -> Any:
    """Return the user of a live session, if anybody wants to hear of the logout."""
    if not user_logged_out.has_listeners(get_user_model()):
        return None
    session = _select(router.db_for_write(Session), session_id.bytes)
    return None if session is None or _why_dead(session) is not None else session.user


class _Ended:
    """Becomes true once every revocation is published; stays false inside a transaction."""

    def __init__(self) -> None:
        self.acknowledged = False


def _end(database: str, which: Q, reason: str, request: HttpRequest | None = None) -> _Ended:
    """Revoke rows inside the caller's transaction, and publish them once it is committed."""
    ended = _Ended()
    rows = Session.objects.using(database).filter(which)
    changed = rows.filter(revoked_at=None).update(
        revoked_at=Now(),
        revoked_reason=reason,
        revision=F("revision") + 1,
        publication_pending=True,
    )
    # With those that an earlier attempt has left pending; they come last.
    pending = rows.filter(publication_pending=True).exclude(revoked_at=None).order_by("-revoked_at")
    found = list(pending.only("pk", "user_id", "revision", "publication_pending"))
    cache = _cache()
    for session in found:
        # At once, so that it holds in a TestCase too, where nothing is ever committed.
        cache.forget(records.key(session.pk.bytes))
    dead = [(session, records.DEAD) for session in found]
    transaction.on_commit(partial(_publish, cache, dead, None, ended), using=database)
    for session in found[:changed]:
        announce = partial(
            session_revoked.send,
            sender=get_user_model(),
            user_id=session.user_id,
            session_id=session.pk,
            reason=reason,
            request=request,
        )
        transaction.on_commit(announce, using=database, robust=True)
    return ended


def _lock_user(database: str, user_pk: Any) -> None:
    """Take the lock of the user's own row, for as long as there is no account."""
    model = get_user_model()
    name = model.USERNAME_FIELD
    model._base_manager.using(database).filter(pk=user_pk).update(**{name: F(name)})


# Keep up with the user ------------------------------------------------------------------------


def sync(user: AbstractBaseUser, rehashed: Sequence[str] = ()) -> None:
    """Make the sessions of a user follow the user's row, if that has changed.

    ``rehashed`` are auth hashes that stand for the password that the user still has.

    Saving a user does it by itself; call it after ``QuerySet.update()``, ``bulk_update()`` or SQL.
    A disabled user's sessions and those begun under another password end; of the others, fields,
    claims and confirmation are published anew.
    """
    _sync(user.pk, rehashed, records.auth_hash(user) if rehashed else "")


def sync_key(text: str) -> None:
    """The same for a user's primary key as a database writes it."""
    model: Any = get_user_model()
    _sync(model._meta.pk.to_python(text))


def _sync(user_pk: Any, rehashed: Sequence[str] = (), auth_hash: str = "") -> None:
    database = router.db_for_write(Session)
    current = select_user(database, user_pk)
    if current is None:
        _end_orphans(database)
        return
    if not hasattr(current, "accesspass_account"):
        return  # never logged in
    cache = _cache()
    mark = _mark(cache)
    with transaction.atomic(using=database):
        if rehashed:
            Account.objects.lock(user_pk, database)
            sessions = Session.objects.using(database).filter(user=user_pk)
            sessions.filter(auth_hash__in=rehashed).update(auth_hash=auth_hash)
        _republish(cache, mark, database, current)


def _republish(cache: RecordCache, mark: Any, database: str, user: Any) -> Any:
    fingerprint, *older = records.fingerprints(user)
    accounts = Account.objects.using(database).filter(pk=user.pk)
    if older and accounts.filter(published__in=older).update(published=fingerprint):
        return user  # the same state, under a SECRET_KEY that is on its way out
    if not accounts.exclude(published=fingerprint).update(published=fingerprint):
        return user
    live = Session.objects.using(database).filter(user=user.pk, revoked_at=None)
    live.update(revision=F("revision") + 1, publication_pending=True)
    # Read again now that the lock is held: another change may have come first.
    user = select_user(database, user.pk)
    if (again := records.fingerprint(user)) != fingerprint:
        accounts.update(published=again)
    if not getattr(user, "is_active", True):
        _end(database, Q(user=user.pk), "user_disabled")
        return user
    found, outdated = [], []
    for session in live.annotate(clock=Now()):
        if not _has_auth_hash(session, user):
            outdated.append(session.pk)
            continue
        cache.forget(records.key(session.pk.bytes))
        found.append((session, records.build(session, user)))
    if found:
        transaction.on_commit(partial(_publish, cache, found, mark), using=database)
    if outdated:
        _end(database, Q(pk__in=outdated), "password_changed")
    return user


def _end_orphans(database: str) -> None:
    """End the sessions of users whom SQL has deleted: they have no user any more."""
    with transaction.atomic(using=database):
        _end(database, Q(user=None), "user_deleted")


# Housekeeping ---------------------------------------------------------------------------------


def tidy() -> int:
    """Publish what the engine has not acknowledged yet. Returns how much that was.

    Every serving process does it every few seconds; it is one look into a partial index.
    """
    database = router.db_for_write(Session)
    pending = Session.objects.using(database).filter(publication_pending=True)
    # Ends come first: somebody waits for each of them, and a change of many users may be long.
    ends_first = F("revoked_at").desc(nulls_last=True)
    ids = list(pending.order_by(ends_first).values_list("pk", flat=True)[:_BATCH])
    if not ids:
        return 0
    cache = _cache()
    mark = _mark(cache)
    found = []
    rows = _selected(database).filter(pk__in=ids, publication_pending=True)
    for session in rows.order_by(ends_first):
        try:
            if (record := _current_record(session)) is not None:
                found.append((session, record))
        except Exception:  # a hook of the project's: the others are published all the same
            logger.exception(
                "session.record_failed: %s",
                session.pk,
                extra={"event": "session.record_failed", "session_id": str(session.pk)},
            )
    _publish(cache, found, mark)
    return len(ids)


def _current_record(session: Any) -> Any:
    """Return what is to be published of a selected session; None if it was seen to otherwise."""
    why = _why_dead(session)
    if why in ("revoked", "expired"):
        return records.DEAD
    if session.user is not None and records.is_behind(session.user):
        sync(session.user)  # publishes all of the user's sessions
        return None
    if why is not None:
        revoke(session.pk, reason=why)
        return None
    return records.build(session, session.user)


def pending() -> int:
    """Return how many sessions stand for something that the engine has not acknowledged."""
    rows = Session.objects.using(router.db_for_write(Session))
    return rows.filter(publication_pending=True).count()


def sweep() -> int:
    """Find users whose rows were changed behind the ORM's back, and `sync` them.

    Compared with what was published last are the users whose access tokens may be good still: at
    a refresh the database decides anyway. Returns how many had changed.
    """
    database = router.db_for_write(Session)
    _end_orphans(database)
    since = Now() - timedelta(seconds=conf.ACCESS_TOKEN_LIFETIME + _SWEEP_MARGIN)
    used = Session.objects.filter(user=OuterRef("pk"), revoked_at=None, last_used_at__gt=since)
    users = (
        get_user_model()
        ._base_manager.using(database)
        .select_related("accesspass_account")
        .filter(Exists(used), accesspass_account__isnull=False)
    )
    changed = 0
    for user in _batches(users):
        if records.is_behind(user):
            try:
                sync(user)
                changed += 1
            except Exception:  # as in tidy
                logger.exception(
                    "session.not_synced: user %s",
                    user.pk,
                    extra={"event": "session.not_synced", "user_id": str(user.pk)},
                )
    return changed


def purge() -> int:
    """Forget what is of no use any more. Returns how many sessions were deleted.

    The nonces of refresh tokens whose grace is over: after it nobody may derive a pair again. And
    the rows of sessions that ended ``SESSION_RETENTION`` ago.
    """
    database = router.db_for_write(Session)
    rows = Session.objects.using(database)
    over = Now() - timedelta(seconds=conf.REFRESH_GRACE)
    for batch in _locked_batches(rows.exclude(nonce="").filter(rotated_at__lt=over)):
        batch.update(nonce="")
    ended = Now() - timedelta(seconds=conf.SESSION_RETENTION)
    # Never one whose end is still to be published: tidy would have nothing to publish.
    long_ago = Q(revoked_at__lt=ended, publication_pending=False) | Q(expires_at__lt=ended)
    if conf.SESSION_IDLE_LIFETIME is not None:
        idle = timedelta(seconds=conf.SESSION_IDLE_LIFETIME)
        long_ago |= Q(last_used_at__lt=ended - idle)
    deleted = 0
    for batch in _locked_batches(rows.filter(long_ago)):
        deleted += batch.delete()[1].get(Session._meta.label, 0)
    return deleted


def _batches(rows: Any) -> Iterator[Any]:
    """Iterate over a table in the order of its keys, with no long query and no long list."""
    last: Any = None
    while True:
        page = rows if last is None else rows.filter(pk__gt=last)
        batch = list(page.order_by("pk")[:_BATCH])
        yield from batch
        if len(batch) < _BATCH:
            return
        last = batch[-1].pk


def _locked_batches(rows: Any) -> Iterator[Any]:
    """Yield the rows in batches, to be changed by one statement each.

    No lock is waited for while others are held, so this cannot deadlock with who locks many rows
    of one user: rows that are in use are left for the next time. Where the database cannot skip
    them, a batch is one row. SQLite has one lock for all, which whoever reads first in a
    transaction cannot wait for, so there is none.
    """
    features = connections[rows.db].features
    skip = features.has_select_for_update_skip_locked
    size = _BATCH if skip or not features.has_select_for_update else 1
    last: Any = None
    while True:
        page = rows if last is None else rows.filter(pk__gt=last)
        page = page.order_by("pk").values_list("pk", flat=True)
        with transaction.atomic(using=rows.db) if skip else nullcontext():
            if skip:
                page = page.select_for_update(skip_locked=True)
            ids = list(page[:size])
            if ids:
                # Checked once more by the statement that changes them.
                yield rows.filter(pk__in=ids)
        if not ids:
            return
        last = ids[-1]


def publish_now(session_id: uuid.UUID) -> None:
    """Publish a session's record without waiting for a commit. For tests only.

    A TestCase never commits, so without this each of its requests would ask the database.
    """
    database = router.db_for_write(Session)
    cache = _cache()
    mark = cache.mark()
    session = _select(database, session_id.bytes)
    if session is not None and _why_dead(session) is None:
        _publish(cache, [(session, records.build(session, session.user))], mark)
