"""One-time keys that travel by e-mail: mint, read, consume, void.

A key is good once, for one purpose, for one user, for as long as the user has the password and the
address that were there when it was made. Only its digest is stored (NIST SP 800-63B-4 §3.1.3.2,
OWASP Forgot Password).
"""

from __future__ import annotations

import hashlib
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.db import router
from django.db.models.functions import Now
from django.utils.crypto import constant_time_compare
from django.views.decorators.debug import sensitive_variables

from accesspass import records, tokens
from accesspass.conf import conf
from accesspass.exceptions import InvalidKey
from accesspass.models import Account, EmailKey, MailRequest, email_of
from accesspass.tokens import TokenType

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = [
    "CONFIRM",
    "EMAIL_CHANGE",
    "PASSWORD_RESET",
    "consume",
    "mint",
    "purge",
    "read",
    "state_of",
    "void",
]

CONFIRM = "confirm"
PASSWORD_RESET = "password_reset"  # noqa: S105 - a purpose
EMAIL_CHANGE = "email_change"

_KEPT = timedelta(days=30)  # after its expiry, for whoever looks into what happened


@sensitive_variables("token")
def mint(user: AbstractBaseUser, purpose: str, email: str) -> str:
    """Return a new key for `user`, which is going to be sent to the address `email`.

    It is good for `EMAIL_KEY_LIFETIMES[purpose]` seconds. The user needs an Account.
    """
    database = router.db_for_write(EmailKey)
    lifetime = conf.EMAIL_KEY_LIFETIMES[purpose]
    pk = uuid.uuid4()
    token = tokens.mint(TokenType.EMAIL_KEY, pk.bytes, int(time.time() + lifetime))
    EmailKey.objects.using(database).create(
        pk=pk,
        digest=token.digest.hex(),
        purpose=purpose,
        user_id=user.pk,
        email=email,
        state=state_of(user),
        created_at=Now(),
        expires_at=Now() + timedelta(seconds=lifetime),
    )
    return token.text


@sensitive_variables("key", "token")
def read(key: object, purpose: str) -> EmailKey:
    """Return the row of a key that is still good, with its user, and leave it good.

    Raises InvalidKey for one that is malformed, forged, for another purpose, expired, used up or
    void, or whose user is gone, disabled, or has another password or address by now. What was not
    made here costs no I/O.
    """
    token = tokens.parse(TokenType.EMAIL_KEY, key)
    if token is None or not token.is_authentic():
        raise InvalidKey
    database = router.db_for_write(EmailKey)
    row = (
        EmailKey.objects.using(database)
        .select_related("user")
        .filter(pk=uuid.UUID(bytes=token.id), purpose=purpose, spent_at=None, expires_at__gt=Now())
        .first()
    )
    if row is None or not constant_time_compare(row.digest, token.digest.hex()):
        raise InvalidKey
    if not _still_fits(row, row.user):
        raise InvalidKey
    return row


def consume(row: EmailKey) -> None:
    """Use up a key that was read. Of any number of callers one gets past; the others InvalidKey.

    Call it first in the transaction that does what the key is for, outside of which `row` was read:
    a failure later in that transaction leaves the key good. It takes the user's lock.
    """
    database = router.db_for_write(EmailKey)
    Account.objects.lock(row.user_id, database)
    keys = EmailKey.objects.using(database).filter(pk=row.pk, spent_at=None, expires_at__gt=Now())
    if not keys.update(spent_at=Now()):
        raise InvalidKey
    user = get_user_model()._base_manager.using(database).filter(pk=row.user_id).first()
    if user is None or not _still_fits(row, user):
        raise InvalidKey


def void(user: AbstractBaseUser, purpose: str | None = None) -> None:
    """Make all keys of a user good for nothing, those of one purpose if it is given.

    A change of address that still waits to be sent is forgotten with its keys. Call it with the
    user's lock held, so that a delivery in another process comes before or after, not between.
    """
    database = router.db_for_write(EmailKey)
    keys = EmailKey.objects.using(database).filter(user=user.pk, spent_at=None)
    if purpose is not None:
        keys = keys.filter(purpose=purpose)
    keys.update(spent_at=Now())
    if purpose in (None, EMAIL_CHANGE):
        MailRequest.objects.using(database).filter(
            user=user.pk, purpose=EMAIL_CHANGE, sent_at=None
        ).delete()


def purge() -> None:
    """Delete keys that expired more than 30 days ago."""
    keys = EmailKey.objects.using(router.db_for_write(EmailKey))
    keys.filter(expires_at__lt=Now() - _KEPT).delete()


def state_of(user: AbstractBaseUser) -> str:
    """Return the SHA-256 of what a key is bound to: the user's password and stored address."""
    return _state(records.auth_hash(user), user)


def _state(auth_hash: str, user: AbstractBaseUser) -> str:
    return hashlib.sha256(f"{auth_hash}\n{email_of(user)}".encode()).hexdigest()


def _still_fits(row: EmailKey, user: Any) -> bool:
    if not getattr(user, "is_active", True):
        return False
    if row.purpose != EMAIL_CHANGE and row.email != email_of(user):
        return False
    # As for sessions, the hashes under a SECRET_KEY that is on its way out count as well.
    fallbacks: Any = getattr(user, "get_session_auth_fallback_hash", list)()
    return row.state == state_of(user) or any(row.state == _state(x, user) for x in fallbacks)
