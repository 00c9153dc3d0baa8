"""Sessions: start, authenticate, refresh, revoke, tidy. The sole author of cache keys.

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
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db import InterfaceError, OperationalError, connections, router, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from accesspass import records
from accesspass.conf import conf
from accesspass.exceptions import (
    AccessPassError,
    InvalidCredentials,
    InvalidToken,
    TokenRequired,
    Unavailable,
)
from accesspass.models import Account, Session
from accesspass.networks import client_address
from accesspass.records import RecordCache, SessionRecord
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
    "join",
    "logout",
    "publish_now",
    "purge",
    "refresh",
    "revoke",
    "revoke_all",
    "start",
    "sync",
    "tidy",
]

logger = logging.getLogger("accesspass.sessions")

_MAX_ACCESS_TOKENS = 4
_TIDY_LIMIT = 1_000


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
    cache.before_fresh(_mark_pending)
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


def _publish(cache: RecordCache, session_id: bytes, record: Any, revision: int, mark: Any) -> None:
    """Publish a live record. If it fails the next request asks the database, and that is all."""
    key = records.key(session_id)
    if mark is False:
        cache.forget(key)
        return
    try:
        cache.publish(key, record, revision, conf.ACCESS_TOKEN_LIFETIME, mark)
    except cache.CacheError as error:
        cache.forget(key)
        logger.warning("session.not_published: %s: %s", uuid.UUID(bytes=session_id), error)


def _mark_pending() -> None:
    """Make this process refuse what was revoked while it, or the engine, was out of reach."""
    database = router.db_for_write(Session)
    connection = connections[database]
    if connection.vendor == "sqlite" and connection.is_in_memory_db():  # type: ignore[attr-defined]
        return  # such a database has one process, and that one has seen it all
    cache = _cache()
    mark = cache.mark()
    pending = Session.objects.using(database).filter(revocation_pending=True)
    for session_id, revision in pending.values_list("pk", "revision"):
        cache.fill(
            records.key(session_id.bytes),
            records.DEAD,
            revision,
            _marker_timeout(cache),
            mark,
            marker=True,
        )


# Authenticate ---------------------------------------------------------------------------------


def authenticate(access_token: object) -> tuple[AbstractBaseUser, SessionRecord]:
    """Return the user and the session that an access token stands for.

    A token whose session this process holds costs no I/O, and neither does one that is malformed,
    forged or expired. Anything else costs one query.

    Raises:
        InvalidToken: it stands for nothing (RFC 6750 §3.1, ``invalid_token``).
        Unavailable: the database had to be asked and could not be.
    """
    token = parse(TokenType.ACCESS, access_token)
    if token is None:
        raise InvalidToken
    cache = _cache()
    return _from_cache(cache, token) or _from_database(cache, token)


def join() -> None:
    """Let this process's replica join the others, if it has not yet, as its first read would."""
    _cache().get("session:")


async def aauthenticate(access_token: object) -> tuple[AbstractBaseUser, SessionRecord]:
    """The same on an event loop; only a miss goes to a thread."""
    token = parse(TokenType.ACCESS, access_token)
    if token is None:
        raise InvalidToken
    cache = _cache()
    if conf.USER_FROM_RECORD and (found := _from_cache(cache, token)):
        return found
    return await sync_to_async(authenticate)(access_token)


def _from_cache(cache: RecordCache, token: Token) -> tuple[AbstractBaseUser, SessionRecord] | None:
    """Decide by memory alone; None if only the database can tell."""
    record = cache.get(records.key(token.id))
    if record is not None:
        if record == records.DEAD:
            raise InvalidToken
        found = records.read(token, record, cache.now())
        if found is not None:
            return found
    # Only what was made here, and is not over, is worth a query.
    if not token.is_authentic() or token.number <= cache.now() or _refused.holds(token.digest):
        raise InvalidToken
    return None


def _from_database(cache: RecordCache, token: Token) -> tuple[AbstractBaseUser, SessionRecord]:
    database = router.db_for_write(Session)
    mark = _mark(cache)
    try:
        session = _select(database, token.id)
    except (OperationalError, InterfaceError) as error:
        raise Unavailable from error
    key, revision = records.key(token.id), 0 if session is None else session.revision
    # What is read inside a transaction may be rolled back, or older than what others see.
    may_fill = mark is not False and not connections[database].in_atomic_block
    if session is not None and session.revoked_at is not None:
        if may_fill:
            cache.fill(key, records.DEAD, revision, _marker_timeout(cache), mark, marker=True)
        raise InvalidToken
    if session is not None and _why_dead(session) is None:
        assert session.user is not None  # noqa: S101 - _why_dead has looked
        record = records.build(session, session.user)
        found = records.read(token, record, cache.now())
        if found is not None:
            # `sync` must see what undoes a state, so only what was published is held.
            if may_fill and records.is_published(session.user):
                _fill(cache, key, record, revision, mark)
            return found
    # A row that is missing may be a login that is not committed yet, so not for long.
    _refused.add(token.digest)
    raise InvalidToken


def _fill(cache: RecordCache, key: str, record: Any, revision: int, mark: Any) -> None:
    try:
        cache.fill(key, record, revision, conf.ACCESS_TOKEN_LIFETIME, mark)
    except cache.CacheError as error:
        logger.error("session.not_recorded: %s", error)


def _select(database: str, session_id: bytes) -> Any:
    """Select a session with its user, account and the database's clock (as ``clock``)."""
    return (
        Session.objects.using(database)
        .select_related("user__accesspass_account")
        .annotate(clock=Now())
        .filter(pk=uuid.UUID(bytes=session_id))
        .first()
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
        lifetime: seconds after which it ends, ``REFRESH_TOKEN_LIFETIME`` if None.
        name: what the user calls the device, at most 100 characters.

    Raises:
        InvalidCredentials: the user is gone or disabled, or the password has changed since it was
            verified.
    """
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
        current = _select_user(database, user.pk)
        if current is None:
            raise InvalidCredentials
        if not known:
            Account.objects.db_manager(database).for_user(current)
            accounts.update(login_count=F("login_count") + 1)
            current = _select_user(database, user.pk)
        if current.accesspass_account.published != records.fingerprint(current):
            # The session must begin with the very state whose fingerprint is on record, or the
            # change that came after it would find nothing to do.
            current = _republish(cache, mark, database, current)
        _refuse_if_changed(user, current)
        clock: datetime = current.clock
        ends_after = conf.REFRESH_TOKEN_LIFETIME if lifetime is None else _seconds(lifetime)
        session = Session(
            user=current,
            created_at=clock,
            last_used_at=clock,
            expires_at=None if ends_after is None else clock + timedelta(seconds=ends_after),
            claims=dict(claims or {}),
            name=_plain(name)[:100],
            auth_hash=records.auth_hash(current),
        )
        if request is not None:
            session.ip = client_address(request)
            session.user_agent = _plain(request.headers.get("User-Agent", ""))[:300]
        refresh_token = mint(TokenType.REFRESH, session.pk.bytes, 0)
        access_token = mint(TokenType.ACCESS, session.pk.bytes, _access_expiry(cache, session))
        session.refresh_digest = refresh_token.digest.hex()
        session.access_tokens = [[access_token.digest.hex(), access_token.number]]
        session.save(using=database, force_insert=True)
        _enforce_limit(database, session)
        record = records.build(session, current)
        transaction.on_commit(
            partial(_publish, cache, session.pk.bytes, record, 1, mark), using=database
        )
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


def _select_user(database: str, pk: Any) -> Any:
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


def _enforce_limit(database: str, session: Session) -> None:
    live = Session.objects.using(database).filter(
        Q(expires_at=None) | Q(expires_at__gt=session.created_at),
        user=session.user_id,
        revoked_at=None,
    )
    order = live.order_by("-created_at", "-pk").exclude(pk=session.pk)
    surplus = list(order.values_list("pk", flat=True)[conf.SESSIONS_PER_USER - 1 :])
    if surplus:
        _end(database, Q(pk__in=surplus), "session_limit")


def _access_expiry(cache: RecordCache, session: Session) -> int:
    expires = math.ceil(cache.now() + conf.ACCESS_TOKEN_LIFETIME)
    if session.expires_at is not None:
        expires = min(expires, int(session.expires_at.timestamp()))
    return expires


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
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def _plain(text: str) -> str:
    """What a client says of itself, without what a database or a terminal would choke on."""
    return "".join(character for character in text if character.isprintable())


# Refresh --------------------------------------------------------------------------------------


def refresh(refresh_token: object) -> TokenPair:
    """Exchange a refresh token for a new pair (rotation, RFC 9700 §4.14.2).

    The same token within ``REFRESH_GRACE`` gets the identical pair again, for two tabs or a lost
    answer. After that, or one rotation later, it ends the session: two parties hold it.

    Call it outside of transactions: what it records must stay even if it raises.

    Raises:
        InvalidToken: the token is not, or no more, good for anything.
        RuntimeError: it was called inside a transaction.
    """
    token = parse(TokenType.REFRESH, refresh_token)
    if token is None or not token.is_authentic():
        raise InvalidToken
    database = router.db_for_write(Session)
    cache = _cache()
    mark = _mark(cache)
    changed: list[Any] = []
    with transaction.atomic(using=database, durable=True):
        outcome = _rotate(cache, mark, database, token, changed)
    for user in changed:
        sync(user)
    # Raised here, so that what was recorded of the refusal stays.
    if isinstance(outcome, AccessPassError):
        raise outcome
    return outcome


def _rotate(
    cache: RecordCache, mark: Any, database: str, token: Token, changed: list[Any]
) -> TokenPair | AccessPassError:
    rows = Session.objects.using(database).filter(pk=uuid.UUID(bytes=token.id))
    # An UPDATE locks the row on every vendor; SELECT FOR UPDATE does not on SQLite.
    rows.update(generation=F("generation"))
    session = _select(database, token.id)
    if session is None or _why_dead(session) is not None or _is_idle(session):
        return InvalidToken()
    digest = token.digest.hex()
    if token.number == session.generation and digest == session.refresh_digest:
        if not records.is_published(session.user):
            changed.append(session.user)
        return _successor(cache, mark, rows, session, token)
    if (
        token.number == session.generation - 1
        and digest == session.previous_digest
        and session.nonce
        and session.clock - session.rotated_at <= timedelta(seconds=conf.REFRESH_GRACE)
    ):
        return _same_successor(cache, session, token) or InvalidToken()
    if token.number < session.generation:
        _end(database, Q(pk=session.pk), "refresh_token_reused")
        transaction.on_commit(
            partial(
                refresh_token_reused.send,
                sender=type(session.user),
                user_id=session.user_id,
                session_id=session.pk,
            ),
            using=database,
            robust=True,
        )
        logger.warning("session.refresh_token_reused: %s", session.pk)
        return InvalidToken()
    # Made under our key but never given out: a restored database, or a leaked key.
    logger.error("session.refresh_token_unknown: %s", session.pk)
    return InvalidToken()


def _is_idle(session: Any) -> bool:
    limit = conf.SESSION_IDLE_LIFETIME
    return limit is not None and session.clock - session.last_used_at > timedelta(seconds=limit)


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
    record = records.build(session, session.user)
    transaction.on_commit(
        partial(_publish, cache, token.id, record, session.revision + 1, mark), using=rows.db
    )
    return _pair(cache, session, access_token, refresh_token, session.clock)


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


def revoke(session_id: uuid.UUID, *, reason: str = "revoked") -> bool:
    """End a session, on every node.

    Returns:
        True if the engine has acknowledged it: every node refuses it from now on, and one that is
        cut off does within ``MAX_STALENESS``. False if it is recorded and will be published: the
        engine is out of reach, or the caller's transaction is not committed yet.
    """
    database = router.db_for_write(Session)
    with transaction.atomic(using=database):
        ended = _end(database, Q(pk=session_id), reason)
    return ended.acknowledged


def revoke_all(
    user: AbstractBaseUser, *, except_: uuid.UUID | None = None, reason: str = "revoked"
) -> bool:
    """End all sessions of a user but one. Returns as ``revoke`` does."""
    database = router.db_for_write(Session)
    which = Q(user=user.pk)
    if except_ is not None:
        which &= ~Q(pk=except_)
    with transaction.atomic(using=database):
        _lock_account(database, user.pk)
        ended = _end(database, which, reason)
    return ended.acknowledged


def logout(
    *,
    access_token: object = None,
    refresh_token: object = None,
    request: HttpRequest | None = None,
) -> bool:
    """End the session of an access token, or of a refresh token of any generation.

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
    acknowledged, ended = True, False
    for token in given:
        if token is None or not token.is_authentic():
            continue
        if token.type is TokenType.ACCESS and token.number <= _cache().now():
            if ended:
                continue
            raise InvalidToken
        ended = True
        session_id = uuid.UUID(bytes=token.id)
        user = _listened_for(session_id)
        acknowledged &= revoke(session_id, reason="logout")
        if user is not None:
            user_logged_out.send(sender=type(user), request=request, user=user)
    return acknowledged


def _listened_for(session_id: uuid.UUID) -> Any:
    """Return the user of a live session, if anybody wants to hear of the logout."""
    if not user_logged_out.has_listeners(get_user_model()):
        return None
    live = Session.objects.using(router.db_for_write(Session)).filter(revoked_at=None)
    session = live.select_related("user").filter(pk=session_id).first()
    return None if session is None else session.user


class _Ended:
    """Becomes true once every revocation is published; stays false inside a transaction."""

    def __init__(self) -> None:
        self.acknowledged = False


def _end(database: str, which: Q, reason: str) -> _Ended:
    """Revoke rows inside the caller's transaction, and publish them once it is committed."""
    ended = _Ended()
    rows = Session.objects.using(database).filter(which)
    changed = rows.filter(revoked_at=None).update(
        revoked_at=Now(), revoked_reason=reason, revision=F("revision") + 1, revocation_pending=True
    )
    # With those that an earlier attempt has left pending; they come last.
    pending = rows.filter(revocation_pending=True).order_by("-revoked_at")
    found = list(pending.only("pk", "user_id", "revision"))
    cache = _cache()
    for session in found:
        # At once, so that it holds in a TestCase too, where nothing is ever committed.
        cache.forget(records.key(session.pk.bytes))
    transaction.on_commit(partial(_publish_dead, cache, database, found, ended), using=database)
    for session in found[:changed]:
        announce = partial(
            session_revoked.send,
            sender=get_user_model(),
            user_id=session.user_id,
            session_id=session.pk,
            reason=reason,
        )
        transaction.on_commit(announce, using=database, robust=True)
    return ended


def _publish_dead(
    cache: RecordCache, database: str, sessions: Iterable[Any], ended: _Ended | None = None
) -> None:
    """Publish that sessions are dead, and clear their mark as far as the engine acknowledges."""
    for session in sessions:
        try:
            cache.publish(
                records.key(session.pk.bytes),
                records.DEAD,
                session.revision,
                _marker_timeout(cache),
            )
        except cache.CacheError as error:
            # The rest would wait for the same engine; `tidy` publishes them.
            logger.warning("session.revocation_pending: %s: %s", session.pk, error)
            return
        Session.objects.using(database).filter(pk=session.pk, revision=session.revision).update(
            revocation_pending=False
        )
    if ended is not None:
        ended.acknowledged = True


def _lock_user(database: str, user_pk: Any) -> None:
    """Take the lock of the user's own row, for as long as there is no account."""
    model = get_user_model()
    name = model.USERNAME_FIELD
    model._base_manager.using(database).filter(pk=user_pk).update(**{name: F(name)})


def _lock_account(database: str, user_pk: Any) -> None:
    """Take the user's lock: whoever locks both takes the account before the sessions."""
    Account.objects.using(database).filter(pk=user_pk).update(login_count=F("login_count"))


# Keep up with the user ------------------------------------------------------------------------


def sync(user: AbstractBaseUser, rehashed: Sequence[str] = ()) -> None:
    """Make the sessions of a user follow the user's row, if that has changed.

    ``rehashed`` are auth hashes that stand for the password that the user still has.

    Saving a user does it by itself; call it after ``QuerySet.update()``, ``bulk_update()`` or SQL.
    A disabled user's sessions and those begun under another password end; of the others, fields,
    claims and confirmation are published anew.
    """
    database = router.db_for_write(Session)
    current = _select_user(database, user.pk)
    if current is None or not hasattr(current, "accesspass_account"):
        return  # gone, and pre_delete has ended the sessions; or never logged in
    cache = _cache()
    mark = _mark(cache)
    with transaction.atomic(using=database):
        if rehashed:
            _lock_account(database, user.pk)
            sessions = Session.objects.using(database).filter(user=user.pk)
            sessions.filter(auth_hash__in=rehashed).update(auth_hash=records.auth_hash(user))
        _republish(cache, mark, database, current)


def _republish(cache: RecordCache, mark: Any, database: str, user: Any) -> Any:
    fingerprint = records.fingerprint(user)
    accounts = Account.objects.using(database).filter(pk=user.pk)
    if not accounts.exclude(published=fingerprint).update(published=fingerprint):
        return user
    live = Session.objects.using(database).filter(user=user.pk, revoked_at=None)
    live.update(revision=F("revision") + 1)
    # Read again now that the lock is held: another change may have come first.
    user = _select_user(database, user.pk)
    if (again := records.fingerprint(user)) != fingerprint:
        accounts.update(published=again)
    if not getattr(user, "is_active", True):
        _end(database, Q(user=user.pk), "user_disabled")
        return user
    outdated = []
    for session in live:
        if not _has_auth_hash(session, user):
            outdated.append(session.pk)
            continue
        cache.forget(records.key(session.pk.bytes))
        transaction.on_commit(
            partial(
                _publish,
                cache,
                session.pk.bytes,
                records.build(session, user),
                session.revision,
                mark,
            ),
            using=database,
        )
    if outdated:
        _end(database, Q(pk__in=outdated), "password_changed")
    return user


def user_saving(instance: Any, update_fields: Sequence[str] | None = None, **_: Any) -> None:
    """``pre_save`` of the user model.

    A ``request.user`` that was built from a record may be seconds old: saving it must not write
    back privileges that were taken away meanwhile, so what the view has not changed is reloaded.
    """
    if not isinstance(instance, get_user_model()):
        return
    if instance._state.adding:
        return
    concerned = records.recorded_fields(get_user_model())
    database = router.db_for_write(Session)
    if connections[database].in_atomic_block and (
        update_fields is None or not concerned.isdisjoint(update_fields)
    ):
        # Inside a transaction the user's row would stay locked before the account's.
        _lock_account(database, instance.pk)
    if _is_rehash(instance, update_fields):
        instance.__dict__["_accesspass_old_hashes"] = _old_auth_hashes(instance)
    if "_accesspass_recorded" not in instance.__dict__:
        return
    names, values = instance.__dict__["_accesspass_recorded"]
    written = set(names if update_fields is None else update_fields)
    written -= {field.attname for field in instance._meta.concrete_fields if field.primary_key}
    unchanged = [
        name
        for name, value in zip(names, values, strict=True)
        if name in written and getattr(instance, name) == value
    ]
    if unchanged:
        fresh = type(instance)._base_manager.using(instance._state.db)
        row = fresh.filter(pk=instance.pk).values(*unchanged).first()
        for name, value in (row or {}).items():
            setattr(instance, name, value)
    # It may be saved again.
    instance.__dict__["_accesspass_recorded"] = (
        names,
        [getattr(instance, x) if x in written else v for x, v in zip(names, values, strict=True)],
    )


def user_saved(
    instance: Any, created: bool, update_fields: Sequence[str] | None = None, **_: Any
) -> None:
    """``post_save`` of the user model: what has changed bites at once."""
    if created or not isinstance(instance, get_user_model()):
        return
    recorded = records.recorded_fields(type(instance))
    if update_fields is not None and recorded.isdisjoint(update_fields):
        return
    sync(instance, instance.__dict__.pop("_accesspass_old_hashes", ()))


def user_deleting(instance: Any, **_: Any) -> None:
    """``pre_delete`` of the user model: revoke first, the account's lock before the sessions'.

    The collector's own order is the reverse and would meet a refresh head on.
    """
    if isinstance(instance, get_user_model()):
        revoke_all(instance, reason="user_deleted")


def _is_rehash(user: Any, update_fields: Sequence[str] | None) -> bool:
    # Django's upgrade of an outdated hash sets _password to None on the instance before saving.
    return (
        update_fields is not None
        and set(update_fields) == {"password"}
        and user.__dict__.get("_password", "") is None
    )


def _old_auth_hashes(user: Any) -> list[str]:
    current = _select_user(router.db_for_write(Session), user.pk)
    if current is None:
        return []
    return [records.auth_hash(current), *getattr(current, "get_session_auth_fallback_hash", list)()]


# Housekeeping ---------------------------------------------------------------------------------


def tidy() -> int:
    """Publish revocations that the engine has not acknowledged yet. Returns how many there were.

    Every serving process does it every few seconds; it is one look into a partial index.
    """
    database = router.db_for_write(Session)
    pending = Session.objects.using(database).filter(revocation_pending=True)
    found = list(pending.only("pk", "revision")[:_TIDY_LIMIT])
    if found:
        _publish_dead(_cache(), database, found)
    return len(found)


def purge() -> None:
    """Forget what the grace of refresh tokens needed: after it nobody may derive a pair again."""
    database = router.db_for_write(Session)
    over = Now() - timedelta(seconds=conf.REFRESH_GRACE)
    Session.objects.using(database).exclude(nonce="").filter(rotated_at__lt=over).update(nonce="")


def publish_now(session_id: uuid.UUID) -> None:
    """Publish a session's record without waiting for a commit. For tests only.

    A TestCase never commits, so without this each of its requests would ask the database.
    """
    database = router.db_for_write(Session)
    cache = _cache()
    mark = cache.mark()
    session = _select(database, session_id.bytes)
    if session is not None and _why_dead(session) is None:
        _publish(
            cache, session_id.bytes, records.build(session, session.user), session.revision, mark
        )
