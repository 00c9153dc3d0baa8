"""E-mails: queued by requests, delivered later, so that no request waits for a mail server or tells
by its time or its answer whether an account exists.

A request inserts one row and looks nobody up. Delivery takes the row by a lease, finds the user,
makes the key, renders and sends through Django's e-mail backend, whichever that is. The row is
marked as sent after the backend has accepted the message: a process that is killed in between
leaves a row that is sent again once the lease is over, so an e-mail is sent at least once, and
twice only then. Two processes never work on one row within its lease.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import mail as django_mail
from django.core.exceptions import ImproperlyConfigured
from django.db import router, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.template.loader import render_to_string
from django.utils import timezone, translation
from django.utils.timesince import timesince
from django.views.decorators.debug import sensitive_variables

from accesspass import email_keys, metrics
from accesspass.conf import conf
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET
from accesspass.identifiers import MAX_LENGTH, canonical, is_plain_text, validate_email
from accesspass.models import Account, Identifier, MailRequest, aliases, email_of, name_fields

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest

__all__ = [
    "ADDRESS_TAKEN",
    "CONFIRM",
    "EMAIL_CHANGE",
    "EMAIL_CHANGED",
    "PASSWORD_CHANGED",
    "PASSWORD_RESET",
    "PURPOSES",
    "TOKEN_REUSED",
    "USERNAME",
    "USERNAME_TAKEN",
    "ask",
    "connection",
    "deliver",
    "deliver_due",
    "notify",
    "purge",
    "queue",
    "retry",
    "token_reused",
]

logger = logging.getLogger("accesspass.mail")

USERNAME = "username"
ADDRESS_TAKEN = "address_taken"
USERNAME_TAKEN = "username_taken"
PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a purpose
EMAIL_CHANGED = "email_changed"
TOKEN_REUSED = "token_reused"  # noqa: S105 - a purpose

#: Each has three templates: accesspass/email/<purpose>.subject.txt, .txt and .html.
PURPOSES = (
    CONFIRM,
    PASSWORD_RESET,
    EMAIL_CHANGE,
    USERNAME,
    ADDRESS_TAKEN,
    USERNAME_TAKEN,
    PASSWORD_CHANGED,
    EMAIL_CHANGED,
    TOKEN_REUSED,
)

_SOCKET_TIMEOUT = 20  # seconds, where EMAIL_TIMEOUT sets none
# Longer than an SMTP dialogue of which each step takes _SOCKET_TIMEOUT: a slow one is not doubled.
_LEASE = timedelta(minutes=5)
_ATTEMPTS = 10  # with the pauses below, spread over three hours and more
_FIRST_PAUSE, _LONGEST_PAUSE = 30, 3600  # seconds
_QUIET = timedelta(minutes=5)  # between two e-mails that anybody may ask for
_SENT_KEPT, _FAILED_KEPT = timedelta(days=7), timedelta(days=30)


# Queueing -------------------------------------------------------------------------------------


def ask(purpose: str, name: str, *, address: str = "", request: HttpRequest | None = None) -> None:
    """Queue an e-mail that anybody may ask for, to whoever `name` belongs to, if to anybody.

    One INSERT, whoever it is and whether or not one waits already. `name` is a username or an
    e-mail address in any spelling. With an `address` nobody is looked for: it goes there.
    """
    identifier = canonical(name)
    if not identifier or len(identifier) > MAX_LENGTH or not is_plain_text(identifier):
        return  # nobody can have it
    _insert(
        MailRequest(
            purpose=purpose,
            identifier=identifier,
            address=address,
            pending_key=f"{purpose}:{identifier}",
            language=_language_of(request),
        )
    )


def notify(
    purpose: str,
    user: AbstractBaseUser,
    *,
    address: str = "",
    request: HttpRequest | None = None,
    **context: str,
) -> None:
    """Queue an e-mail to a known user, at `address` if it is not to go to the stored one.

    Inside a transaction it is queued if and when that is committed.
    """
    _insert(
        MailRequest(
            purpose=purpose,
            user_id=user.pk,
            address=address,
            context=context,
            language=_language_of(request),
        )
    )


def token_reused(sender: Any, user_id: Any, **_: Any) -> None:
    """Tell the user. Receiver of `refresh_token_reused`."""
    model = get_user_model()
    user = model._base_manager.using(router.db_for_write(model)).filter(pk=user_id).first()
    if user is not None:
        notify(TOKEN_REUSED, user)


def _insert(request: MailRequest) -> None:
    request.created_at = request.lease_until = Now()
    rows = MailRequest.objects.using(router.db_for_write(MailRequest))
    rows.bulk_create([request], ignore_conflicts=request.pending_key is not None)
    if conf.MAIL_DELIVERY == "inline":
        deliver()


def _language_of(request: HttpRequest | None) -> str:
    if request is None:
        return (translation.get_language() or "")[:16]
    return translation.get_language_from_request(request)[:16]


# Delivering -----------------------------------------------------------------------------------


def deliver_due() -> None:
    """What the background thread does: deliver, if `MAIL_DELIVERY` leaves it to threads.

    The thread has other jobs, so a slow mail server gets one more e-mail at a time.
    """
    if conf.MAIL_DELIVERY == "thread":
        deliver(seconds=2)


def deliver(limit: int = 100, seconds: float = math.inf) -> int:
    """Deliver up to `limit` e-mails whose time has come. Returns how many rows were taken up.

    After so many `seconds` it takes up no other.

    A failure is recorded in its row, which is tried again later: after 30 s, then after twice as
    long each time, an hour at most, ten times in all. A row that was given up stays as a dead
    letter for `retry`.
    """
    database = router.db_for_write(MailRequest)
    due = _waiting(database).filter(lease_until__lte=Now())
    taken, over = 0, time.monotonic() + seconds
    for pk in list(due.order_by("lease_until").values_list("pk", flat=True)[:limit]):
        if time.monotonic() >= over:
            break
        row = _claim(database, pk)
        if row is not None:
            _deliver(database, row)
            taken += 1
    return taken


def retry(queryset: Any) -> int:
    """Give those of `queryset` that have failed a new set of attempts, the first one now.

    That are the dead letters and what waits for its next attempt; not what somebody is sending just
    now. Returns how many there were.
    """
    failed = Q(failed_at__isnull=False) | (Q(sent_at=None) & ~Q(error=""))
    return int(
        queryset.filter(failed).update(failed_at=None, attempts=0, lease_until=Now(), error="")
    )


def queue() -> tuple[int, int]:
    """Return how many e-mails wait, and how many were given up and still stand."""
    database = router.db_for_write(MailRequest)
    given_up = MailRequest.objects.using(database).filter(failed_at__isnull=False)
    return _waiting(database).count(), given_up.count()


def purge() -> None:
    """Delete what was sent a week ago and dead letters of 30 days, and keys that are long over."""
    rows = MailRequest.objects.using(router.db_for_write(MailRequest))
    rows.filter(sent_at__lt=Now() - _SENT_KEPT).delete()
    rows.filter(failed_at__lt=Now() - _FAILED_KEPT).delete()
    email_keys.purge()


def _waiting(database: str) -> Any:
    return MailRequest.objects.using(database).filter(sent_at=None, failed_at=None)


def _claim(database: str, pk: int) -> MailRequest | None:
    """Take up a row by one conditional UPDATE; None if somebody else has."""
    rows = _waiting(database).filter(pk=pk)
    # An error stands in a row that waits for another attempt, and in none that is being sent.
    claimed = rows.filter(lease_until__lte=Now()).update(
        lease_until=Now() + _LEASE, attempts=F("attempts") + 1, error=""
    )
    found: MailRequest | None = rows.select_related("user").first() if claimed else None
    return found


def _deliver(database: str, row: MailRequest) -> None:
    # A process that comes back after its lease finds another number of attempts.
    mine = _waiting(database).filter(pk=row.pk, attempts=row.attempts)
    try:
        message = _prepare(database, row)
        if message is None:
            mine.delete()
            metrics.MAILS.count("dropped")
            return
        with metrics.MAIL.measure():
            connection().send_messages([message])
    except Exception as error:  # noqa: BLE001 - each backend has errors of its own
        _record_failure(mine, row, error)
    else:
        mine.update(sent_at=Now(), pending_key=None, error="")
        metrics.MAILS.count("sent")


def connection() -> Any:
    """Return a new connection of Django's e-mail backend, not opened yet."""
    # Django 6.1 has MAILERS, and deprecates get_connection().
    mailers = getattr(django_mail, "mailers", None)
    made: Any = django_mail.get_connection() if mailers is None else mailers.default
    # Without EMAIL_TIMEOUT a mail server that hangs would hold the thread for ever.
    if getattr(made, "timeout", 0) is None:
        made.timeout = _SOCKET_TIMEOUT
    return made


def _record_failure(mine: Any, row: MailRequest, error: Exception) -> None:
    # The text of an error may quote the message, and so the key: its kind and number must do.
    number = getattr(error, "smtp_code", None) or getattr(error, "status_code", None)
    kind = type(error).__name__ + (f" {number}" if isinstance(number, int) else "")
    fields = {"request_id": row.pk, "purpose": row.purpose, "error": kind}
    if row.attempts >= _ATTEMPTS:
        mine.update(failed_at=Now(), pending_key=None, error=kind[:100])
        metrics.MAILS.count("given_up")
        logger.error(
            "mail.given_up: request %s, %s: %s",
            row.pk,
            row.purpose,
            kind,
            extra={"event": "mail.given_up", **fields},
        )
        return
    pause = min(_FIRST_PAUSE * 2 ** (row.attempts - 1), _LONGEST_PAUSE)
    mine.update(lease_until=Now() + timedelta(seconds=pause), error=kind[:100])
    metrics.MAILS.count("failed")
    logger.warning(
        "mail.failed: request %s, %s: %s",
        row.pk,
        row.purpose,
        kind,
        extra={"event": "mail.failed", **fields},
    )


@sensitive_variables("key")
def _prepare(database: str, row: MailRequest) -> Any:
    """Return the message to be sent, None if there is nobody, or no reason, to send it to."""
    if row.user is None and not row.address and not _resolve(database, row):
        return None
    user: Any = row.user
    address = row.address or (email_of(user) if user is not None else "")
    if not address or (user is not None and not getattr(user, "is_active", True)):
        return None
    if row.identifier and _sent_lately(database, row):
        return None
    validate_email(address)
    key = None
    if row.purpose in (CONFIRM, PASSWORD_RESET, EMAIL_CHANGE):
        if not _wants_key(row, user):
            return None
        holder = _holder_of(database, address) if row.purpose == EMAIL_CHANGE else None
        if holder is not None and holder.pk != user.pk:
            # Who asked is not told whose address it is; its owner is told that somebody asked.
            _readdress(database, row, holder)
            return _prepare(database, row)
        key = _mint(database, row, user, address)
        if key is None:
            return None
    return _render(row, user, address, key)


def _resolve(database: str, row: MailRequest) -> bool:
    """Find whom a public request is for, and write it down, so that it is found once."""
    users = _users_named(database, row.identifier)
    if row.purpose == USERNAME:
        users = [x for x in users if canonical(email_of(x)) == row.identifier]
    if not users:
        return False
    with transaction.atomic(using=database):
        mine = _waiting(database).filter(pk=row.pk, attempts=row.attempts, user=None)
        if not mine.update(user=users[0]):
            return False
        # Old users may share an address but for its case: each gets an e-mail of their own.
        MailRequest.objects.using(database).bulk_create(
            MailRequest(
                purpose=row.purpose,
                identifier=row.identifier,
                user=user,
                context=row.context,
                language=row.language,
                created_at=Now(),
                lease_until=Now(),
            )
            for user in users[1:]
        )
    row.user = users[0]
    return True


def _readdress(database: str, row: MailRequest, holder: Any) -> None:
    """Turn a request for an address into a notice for the user who has it already."""
    row.purpose, row.user, row.identifier = ADDRESS_TAKEN, holder, canonical(row.address)
    row.address, row.context = "", {}
    _waiting(database).filter(pk=row.pk, attempts=row.attempts).update(
        purpose=row.purpose, user=holder, identifier=row.identifier, address="", context={}
    )


def _users_named(database: str, identifier: str) -> list[Any]:
    """Return the users with this canonical name, the one who holds it as an alias first.

    `iexact` finds candidates among users who have no alias yet; Python compares them.
    """
    model: Any = get_user_model()
    users = model._base_manager.using(database)
    held = Identifier.objects.using(database).filter(value=identifier)
    found = list(users.filter(pk__in=held.values("account_id")))
    for field in name_fields():
        # Without a bound, names that a loose collation takes for equal could be many.
        found += users.filter(**{f"{field}__iexact": identifier})[:10]
    return list({x.pk: x for x in found if identifier in aliases(x)}.values())


def _holder_of(database: str, address: str) -> Any:
    users = _users_named(database, canonical(address))
    return users[0] if users else None


def _sent_lately(database: str, row: MailRequest) -> bool:
    who = {"identifier": row.identifier} if row.user is None else {"user": row.user}
    sent = MailRequest.objects.using(database).filter(
        **who, purpose=row.purpose, sent_at__gt=Now() - _QUIET
    )
    return sent.exclude(identifier="").exists()


def _wants_key(row: MailRequest, user: Any) -> bool:
    if row.purpose == PASSWORD_RESET:
        return conf.hooks().may_reset_password(user)
    if row.purpose == CONFIRM:
        account = Account.objects.for_user(user)
        return not account.is_confirmed(user)
    # The password or the address has changed since the user asked.
    return bool(row.context.get("state") == email_keys.state_of(user))


def _mint(database: str, row: MailRequest, user: Any, address: str) -> str | None:
    Account.objects.for_user(user)  # keys are used under its lock
    with transaction.atomic(using=database):
        Account.objects.lock(user.pk, database)
        # What voids keys forgets this row too; it comes before this, or finds the key.
        if not _waiting(database).filter(pk=row.pk, attempts=row.attempts).exists():
            return None
        return email_keys.mint(user, row.purpose, address)


@sensitive_variables("key", "context", "shown", "text", "html", "message")
def _render(row: MailRequest, user: Any, address: str, key: str | None) -> Any:
    hooks = conf.hooks()
    accounts = Account.objects.using(row._state.db)
    account = None if user is None else accounts.filter(pk=user.pk).first()
    language = (account.language if account is not None else "") or row.language
    with translation.override(hooks.email_language(user, language) or settings.LANGUAGE_CODE):
        context: dict[str, Any] = {
            "user": user,
            "address": address,
            "base_url": conf.BASE_URL,
            "site": urlsplit(conf.BASE_URL or "").hostname or "",
            "link": None if key is None else _link(row.purpose, key),
            "lifetime": None if key is None else _span(conf.EMAIL_KEY_LIFETIMES[row.purpose]),
            **{name: value for name, value in row.context.items() if name != "state"},
        }
        shown = hooks.email_context(row.purpose, user, context)
        if shown is None:
            return None
        folder = f"accesspass/email/{row.purpose}"
        # A header is one line, whatever a value or a template holds.
        subject = " ".join(render_to_string(f"{folder}.subject.txt", shown).split())
        text = render_to_string(f"{folder}.txt", shown).strip() + "\n"
        html = render_to_string(f"{folder}.html", shown)
    message = django_mail.EmailMultiAlternatives(
        subject,
        text,
        hooks.email_from(row.purpose, user),
        [address],
        # RFC 3834 §5: no holiday replies.
        headers={"Auto-Submitted": "auto-generated"},
    )
    message.attach_alternative(html, "text/html")
    return message


@sensitive_variables("key")
def _link(purpose: str, key: str) -> str:
    if not conf.BASE_URL:
        raise ImproperlyConfigured("ACCESSPASS['BASE_URL'] is missing: e-mails have no link.")
    return conf.BASE_URL.rstrip("/") + conf.LINKS[purpose].replace("{key}", key)


def _span(seconds: float) -> str:
    """Say a duration in the active language: "2 hours"."""
    now = timezone.now()
    return timesince(now, now + timedelta(seconds=seconds), depth=1)
