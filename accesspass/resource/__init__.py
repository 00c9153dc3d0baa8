"""For a resource server: another project that checks our tokens and has neither users nor rows.

It shares the cache's LOCATION and SIGNING_KEYS and the TOKEN_KEYS with the authorization server, so
its processes hold the same session records, and a revocation reaches them like any node. What its
memory does not tell, it asks the authorization server's `introspect/` (RFC 7662).

Nothing here imports a model.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping
from typing import Any

from asgiref.sync import sync_to_async

from accesspass import metrics
from accesspass.bearer import (
    AuthenticatedHttpRequest,
    AuthenticatedRequest,
    BearerAuthentication,
    BearerMiddleware,
    token_required,
)
from accesspass.exceptions import InvalidToken, Unavailable
from accesspass.resource.introspection import Introspection, IntrospectionFailed
from accesspass.session_cache import (
    DEAD,
    RecordCache,
    SessionRecord,
    find,
    identity,
    key,
    parse_access_token,
)
from accesspass.session_cache import open_cache as _cache
from accesspass.tokens import Token

__all__ = [
    "AnonymousPrincipal",
    "AuthenticatedHttpRequest",
    "AuthenticatedRequest",
    "Principal",
    "ResourceServerAuthentication",
    "ResourceServerMiddleware",
    "aauthenticate",
    "authenticate",
    "token_required",
]

logger = logging.getLogger("accesspass.resource")

if hasattr(time, "CLOCK_BOOTTIME"):

    def _clock() -> float:
        # As in the cache: what is kept for seconds is not kept longer over a suspend.
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - not on Linux
    _clock = time.monotonic


class Principal:
    """``request.user`` of a resource server: who an access token stands for.

    ``id`` (and ``pk``, the same) is a text, whatever the key of the user model is; ``claims`` are
    what permissions read. Two principals with one id are equal.
    """

    is_authenticated = True
    is_active = True
    is_anonymous = False

    def __init__(self, id: str, username: str, email: str, claims: dict[str, Any]) -> None:
        self.id = id
        self.username = username
        self.email = email
        self.claims = claims

    @property
    def pk(self) -> str:
        return self.id

    def get_username(self) -> str:
        return self.username

    def __str__(self) -> str:
        return self.username

    def __repr__(self) -> str:
        return f"<Principal {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Principal) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class AnonymousPrincipal:
    """``request.user`` of a resource server for a request without a token."""

    id = pk = None
    username = email = ""
    is_authenticated = False
    is_active = False
    is_anonymous = True

    @property
    def claims(self) -> dict[str, Any]:
        return {}

    def get_username(self) -> str:
        return ""

    def __str__(self) -> str:
        return "AnonymousPrincipal"


_Found = tuple[Principal, SessionRecord]


def authenticate(access_token: object) -> _Found:
    """Return the principal and the session that an access token stands for.

    A token whose session this process holds costs no I/O, and neither does one that is malformed,
    forged or expired. Anything else costs one call of the authorization server, whose answer is
    kept for ``MAX_STALENESS``, a refusal for a second.

    Raises:
        InvalidToken: it stands for nothing (RFC 6750 §3.1, ``invalid_token``).
        Unavailable: the authorization server had to be asked and could not be.
    """
    token = parse_access_token(access_token)
    cache = _cache()
    return _from_memory(cache, token) or _read_through(cache, token)


async def aauthenticate(access_token: object) -> _Found:
    """The same on an event loop; only a miss goes to a thread."""
    token = parse_access_token(access_token)
    cache = _cache()
    # Any thread will do: nothing here is bound to one, as database connections are.
    ask = sync_to_async(_read_through, thread_sensitive=False)
    return _from_memory(cache, token) or await ask(cache, token)


def _from_memory(cache: RecordCache, token: Token) -> _Found | None:
    record = cache.get(key(token.id))
    if record is not None:
        if record == DEAD:
            metrics.CHECKS.count("revoked")
            raise InvalidToken
        found = find(token, record, cache.now())
        if found is not None:
            _count_hit()
            session, label, values = found
            return Principal(*identity(label, values), session.claims), session
    # Only what was made with our keys, and is not over, is worth a call.
    if not token.is_authentic() or token.number <= cache.now():
        metrics.CHECKS.count("expired" if token.is_authentic() else "forged")
        raise InvalidToken
    try:
        kept = _answers.get(token.digest)
    except InvalidToken:
        metrics.CHECKS.count("refused")
        raise
    if kept is not None:
        _count_hit()
    return kept


_count_hit = metrics.CHECKS.of("hit")


def _read_through(cache: RecordCache, token: Token) -> _Found:
    with metrics.reading_through():
        return _from_server(cache, token)


def _from_server(cache: RecordCache, token: Token) -> _Found:
    # Counted from before the question, so that what is kept was true no longer ago than that.
    asked_at = _clock()
    if _answers.down_until > asked_at:
        raise Unavailable
    try:
        answer = Introspection.configured().ask(token.text)
        found = _read_answer(token, answer)
    except IntrospectionFailed as error:
        # From now on: to find out may have taken longer than that.
        _answers.down_until = _clock() + _DOWN_SECONDS
        extra = {"event": "resource.introspection_failed"}
        logger.error("resource.introspection_failed: %s", error, extra=extra)
        raise Unavailable from None
    if found is None:
        _answers.keep(token.digest, None, asked_at + _REFUSED_SECONDS)
        raise InvalidToken
    _answers.keep(token.digest, found, asked_at + cache.max_staleness)
    return found


def _read_answer(token: Token, answer: Mapping[str, Any]) -> _Found | None:
    """Return whom an active answer names, None for an inactive one (RFC 7662 §2.2)."""
    if answer.get("active") is False:
        return None
    expected: list[tuple[str, tuple[type, ...]]] = [
        ("active", (bool,)),
        ("sub", (str,)),
        ("username", (str,)),
        ("email", (str,)),
        ("email_confirmed", (bool,)),
        ("claims", (dict,)),
        ("meta", (dict,)),
        ("session_exp", (int, float, type(None))),
    ]
    if wrong := [name for name, types in expected if not isinstance(answer.get(name), types)]:
        raise IntrospectionFailed(f"the answer has no good {', '.join(wrong)}")
    session = SessionRecord(
        token.id,
        answer["claims"],
        answer["meta"],
        answer["email_confirmed"],
        answer["session_exp"],
        token.number,
    )
    principal = Principal(answer["sub"], answer["username"], answer["email"], session.claims)
    return principal, session


_REFUSED_SECONDS = 1.0
_DOWN_SECONDS = 1.0


class _Answers:
    """What the authorization server has said of late, by token digest; None is a refusal."""

    _LIMIT = 10_000

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[float, _Found | None]] = {}
        self.down_until = 0.0
        """Until when it is not asked again after it did not answer, so that requests do not queue
        up behind its time-out."""

    def get(self, digest: bytes) -> _Found | None:
        """Return what it said of a token, None if nothing. Raises InvalidToken if it refused."""
        until, found = self._kept.get(digest, (0.0, None))
        if until <= _clock():
            return None
        if found is None:
            raise InvalidToken
        return copy.deepcopy(found)

    def keep(self, digest: bytes, found: _Found | None, until: float) -> None:
        if len(self._kept) >= self._LIMIT:
            self._kept = {}
        # Copied, as what the cache gives is: a view may change its claims.
        self._kept[digest] = (until, copy.deepcopy(found))


_answers = _Answers()


class ResourceServerAuthentication(BearerAuthentication):
    """`TokenAuthentication` of a resource server, for Django REST framework.

    `request.user` is a `Principal`, `request.auth` the `SessionRecord`.
    """

    def find(self, token: str) -> _Found:
        return authenticate(token)


class ResourceServerMiddleware(BearerMiddleware):
    """The same for plain and async Django views."""

    def find(self, token: str) -> _Found:
        return authenticate(token)

    async def afind(self, token: str) -> _Found:
        return await aauthenticate(token)

    def anonymous(self) -> AnonymousPrincipal:
        return AnonymousPrincipal()
