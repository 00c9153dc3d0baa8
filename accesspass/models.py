"""The tables: who may log in, under which names, and with which sessions.

The rows are the truth; what the cache holds is made from them.
"""

from __future__ import annotations

import uuid
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connections, models, router, transaction
from django.db.models import Case, F, Q, When
from django.db.models.functions import Lower, Now
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from accesspass.conf import conf
from accesspass.identifiers import MAX_LENGTH, canonical, is_plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Account",
    "EmailKey",
    "Identifier",
    "Lease",
    "MailRequest",
    "Node",
    "Session",
    "Throttle",
    "User",
    "aliases",
    "email_field",
    "email_of",
    "in_utc",
    "is_possible_username",
    "name_fields",
    "new_user_id",
]

_ID_ATTEMPTS = 5
_PURGE_BATCH = 1_000


class _FreshId(str):
    """A key that nobody chose, so another may take its place when it is in use."""

    __slots__ = ()


def new_user_id() -> str:
    """Return a new key for `User`, from `Hooks.user_id`."""
    return _FreshId(conf.hooks().user_id())


class UserManager(BaseUserManager["User"]):
    def create_user(
        self, username: str, email: str = "", password: str | None = None, **fields: Any
    ) -> User:
        """Insert and return a user. Without a password nobody can log in by one."""
        if not username:
            raise ValueError("a user needs a username")
        user = self.model(
            username=self.model.normalize_username(username),
            email=self.normalize_email(email),
            **fields,
        )
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(
        self, username: str, email: str = "", password: str | None = None, **fields: Any
    ) -> User:
        """Insert and return a user who may do everything."""
        return self.create_user(
            username, email, password, **{**fields, "is_staff": True, "is_superuser": True}
        )


class User(AbstractBaseUser, PermissionsMixin):
    """A ready-made user: short random id, username and e-mail unique in any case.

    For new projects: `AUTH_USER_MODEL = "accesspass.User"`.
    """

    id = models.CharField(
        _("id"), primary_key=True, max_length=32, default=new_user_id, editable=False
    )
    username = models.CharField(
        _("username"),
        max_length=150,
        unique=True,
        validators=[UnicodeUsernameValidator()],
        error_messages={"unique": _("A user with that username already exists.")},
    )
    email = models.EmailField(_("e-mail address"), blank=True)
    is_active = models.BooleanField(
        _("active"),
        default=True,
        help_text=_("Take this away instead of deleting the account; it ends every session."),
    )
    is_staff = models.BooleanField(
        _("staff"), default=False, help_text=_("Whether the user can log in to the admin site.")
    )
    date_joined = models.DateTimeField(_("date joined"), default=now)

    objects: ClassVar[UserManager] = UserManager()

    EMAIL_FIELD = "email"
    USERNAME_FIELD = "username"
    REQUIRED_FIELDS = ["email"]

    class Meta:
        verbose_name = _("user")
        verbose_name_plural = _("users")
        swappable = "AUTH_USER_MODEL"
        constraints = [
            models.UniqueConstraint(
                Lower("username"),
                name="accesspass_user_username",
                violation_error_code="username_taken",
                violation_error_message=_("This username is taken."),
            ),
            models.UniqueConstraint(
                Lower("email"),
                condition=~models.Q(email=""),
                name="accesspass_user_email",
                violation_error_code="email_taken",
                violation_error_message=_("This e-mail address is taken."),
            ),
        ]

    def clean(self) -> None:
        super().clean()
        self.email = type(self).objects.normalize_email(self.email)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save; a new user whose random id is in use already gets another one."""
        if not (self._state.adding and isinstance(self.pk, _FreshId)):
            super().save(*args, **kwargs)
            return
        database = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        for attempt in range(1, _ID_ATTEMPTS + 1):
            self.pk = str(self.pk)
            try:
                with transaction.atomic(using=database):
                    super().save(*args, **kwargs)
                return
            except IntegrityError:
                in_use = type(self)._base_manager.using(database).filter(pk=self.pk).exists()
                if attempt == _ID_ATTEMPTS or not in_use:
                    raise
                self.pk = conf.hooks().user_id()

    def get_full_name(self) -> str:
        return self.username

    def get_short_name(self) -> str:
        return self.username


def email_field() -> str | None:
    """Return the name of the user model's e-mail field, None if it has none."""
    model = get_user_model()
    name = model.get_email_field_name()
    return name if name in {field.name for field in model._meta.concrete_fields} else None


def name_fields() -> list[str]:
    """Return the fields of the user model that hold names to log in by, the username first."""
    names = (get_user_model().USERNAME_FIELD, email_field())
    return [name for name in dict.fromkeys(names) if name is not None]


def email_of(user: AbstractBaseUser) -> str:
    """Return the user's e-mail address, or "" for a model or a user without one."""
    name = email_field()
    return "" if name is None else getattr(user, name, None) or ""


def is_possible_username(name: str) -> bool:
    """Tell whether the user model's USERNAME_FIELD, which may be a number, can have this value."""
    model = get_user_model()
    field: Any = model._meta.get_field(model.USERNAME_FIELD)
    try:
        field.get_prep_value(field.to_python(name))
    except (ValidationError, ValueError, TypeError):
        return False
    return True


def aliases(user: AbstractBaseUser) -> list[str]:
    """Return the canonical names under which the user may log in, username first."""
    names = (str(user.get_username() or ""), email_of(user))
    found = (canonical(name) for name in names if name and is_plain_text(name))
    return [x for x in dict.fromkeys(found) if 0 < len(x) <= MAX_LENGTH]


def in_utc(value: datetime) -> datetime:
    """Return in UTC a time that `Now()` has written into one of our rows.

    Without USE_TZ it names no time zone: it is UTC on SQLite, and that of TIME_ZONE elsewhere.
    """
    if value.tzinfo is None and connections[router.db_for_write(Session)].vendor == "sqlite":
        return value.replace(tzinfo=timezone.utc)
    return value.astimezone(timezone.utc)


class AccountManager(models.Manager["Account"]):
    def for_user(self, user: AbstractBaseUser) -> Account:
        """Return the user's Account, made now with its identifiers if there is none yet.

        Users come from `createsuperuser`, the admin and the time before installation too, so an
        Account is made when it is first needed. An alias that another account holds already stays
        with it. Raises IntegrityError, at the latest at commit, if the user is not in the database.
        """
        database = router.db_for_write(self.model, instance=user)
        account = self.using(database).filter(pk=user.pk).first()
        if account is not None:
            return account
        try:
            with transaction.atomic(using=database):
                account = self.using(database).create(user_id=user.pk)
                account.claim_aliases(aliases(user))
        except IntegrityError:
            # Another process may have made it meanwhile.
            account = self.using(database).filter(pk=user.pk).first()
            if account is None:
                raise
        return account

    def lock(self, user_pk: Any, using: str) -> bool:
        """Take the user's lock; whoever locks both takes the account before the sessions.

        An UPDATE locks the row on every vendor; SELECT FOR UPDATE does not on SQLite. Returns
        whether there is an account to lock.
        """
        rows = self.using(using).filter(pk=user_pk)
        return rows.update(login_count=models.F("login_count")) > 0


class Account(models.Model):
    """What AccessPass itself knows of a user, whatever the user model is."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="accesspass_account",
        verbose_name=_("user"),
    )
    confirmed_at = models.DateTimeField(_("confirmed at"), null=True, blank=True)
    confirmed_email = models.CharField(
        _("confirmed address"), max_length=254, blank=True, default=""
    )
    # What clients say of themselves; nothing may be decided by it.
    meta = models.JSONField(_("meta"), default=dict, blank=True)
    # Written by the server alone; permissions read it.
    claims = models.JSONField(_("claims"), default=dict, blank=True)
    # What the user's client asked for at registration; e-mails are written in it.
    language = models.CharField(_("language"), max_length=16, blank=True, default="")
    login_count = models.PositiveBigIntegerField(_("logins"), default=0, editable=False)
    published = models.CharField(max_length=64, blank=True, default="", editable=False)

    objects: ClassVar[AccountManager] = AccountManager()

    class Meta:
        verbose_name = _("account")
        verbose_name_plural = _("accounts")

    def __str__(self) -> str:
        return _("account of %(user)s") % {"user": self.pk}

    def is_confirmed(self, user: AbstractBaseUser) -> bool:
        """Tell whether the address that `user` has now is the one that was confirmed."""
        email = email_of(user)
        return self.confirmed_at is not None and email != "" and self.confirmed_email == email

    def claim_aliases(self, names: Iterable[str]) -> None:
        """Take those of the canonical `names` that no account holds."""
        Identifier.objects.using(self._state.db).bulk_create(
            [Identifier(value=name, account=self) for name in names], ignore_conflicts=True
        )

    def sync_aliases(self, user: AbstractBaseUser) -> None:
        """Give up the aliases that the user has no more, and take those that are new and free."""
        wanted = aliases(user)
        # Where the account was read: a router may send a related manager to a replica.
        identifiers = Identifier.objects.using(self._state.db).filter(account=self)
        held = set(identifiers.values_list("value", flat=True))
        if stale := held.difference(wanted):
            identifiers.filter(value__in=stale).delete()
        if new := [name for name in wanted if name not in held]:
            self.claim_aliases(new)


class Identifier(models.Model):
    """One canonical alias, username or e-mail address, of one account."""

    value = models.CharField(_("value"), max_length=MAX_LENGTH, unique=True)
    account = models.ForeignKey(
        Account, on_delete=models.CASCADE, related_name="identifiers", verbose_name=_("account")
    )

    class Meta:
        verbose_name = _("identifier")
        verbose_name_plural = _("identifiers")

    def __str__(self) -> str:
        return self.value


class Session(models.Model):
    """One login on one device. No usable secret is stored: digests only.

    The times are the database's own, given by whoever writes the row.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # A session without a user is dead. The row outlives the user so that the revocation can still
    # be published.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        related_name="accesspass_sessions",
        verbose_name=_("user"),
    )
    created_at = models.DateTimeField(_("created at"))
    last_used_at = models.DateTimeField(_("last used at"))
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    revision = models.PositiveBigIntegerField(default=1)
    generation = models.PositiveBigIntegerField(default=0)
    refresh_digest = models.CharField(max_length=64)
    previous_digest = models.CharField(max_length=64, blank=True, default="")
    nonce = models.CharField(max_length=64, blank=True, default="")
    rotated_at = models.DateTimeField(null=True, blank=True)
    # [hex digest, expiry in Unix seconds] of each live access token, the newest last
    access_tokens = models.JSONField(default=list)
    claims = models.JSONField(_("claims"), default=dict, blank=True)
    name = models.CharField(_("name"), max_length=100, blank=True, default="")
    auth_hash = models.CharField(max_length=128, blank=True, default="")
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True)
    revoked_reason = models.CharField(_("reason"), max_length=32, blank=True, default="")
    # Whether `revision` stands for something that every node must hear of (a revocation, another
    # state of the user) and that the engine has not acknowledged yet.
    publication_pending = models.BooleanField(default=False)
    ip = models.GenericIPAddressField(_("IP address"), null=True, blank=True)
    user_agent = models.CharField(_("user agent"), max_length=300, blank=True, default="")

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        indexes = [
            models.Index(fields=["user", "revoked_at"], name="accesspass_session_user"),
            models.Index(
                fields=["publication_pending"],
                condition=models.Q(publication_pending=True),
                name="accesspass_session_pending",
            ),
        ]

    def __str__(self) -> str:
        return _("session %(id)s") % {"id": self.pk}


class LeaseManager(models.Manager["Lease"]):
    def take(self, name: str, seconds: float, holder: str = "") -> bool:
        """Take a lease, by one conditional UPDATE. Returns whether it is the caller's now.

        Nobody else gets it for `seconds`, nor does the caller, unless it names itself by `holder`
        (at most 64 characters) and so prolongs what it has. The clock is the database's.
        """
        leases = self.using(router.db_for_write(self.model))
        is_free = models.Q(until__lte=Now())
        if holder:
            is_free |= models.Q(holder=holder)
        for _attempt in range(2):
            until = Now() + timedelta(seconds=seconds)
            if leases.filter(is_free, name=name).update(until=until, holder=holder):
                return True
            if leases.filter(name=name).exists():
                return False
            # The first time ever: one that is over already, so that the UPDATE has its one winner.
            leases.bulk_create([self.model(name=name, until=Now())], ignore_conflicts=True)
        return False


class Lease(models.Model):
    """Who does a recurring job, and until when nobody else does."""

    name = models.CharField(primary_key=True, max_length=32)
    holder = models.CharField(max_length=64, blank=True, default="")
    until = models.DateTimeField()

    objects: ClassVar[LeaseManager] = LeaseManager()

    def __str__(self) -> str:
        return self.name


class Node(models.Model):
    """What a serving process has last said of itself and of its replica; see `nodes`.

    From `engine` on the names are those of the cache's `status()`; the times are the database's.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    version = models.CharField(_("version"), max_length=32)
    started_at = models.DateTimeField(_("first report"))
    reported_at = models.DateTimeField(_("last report"), db_index=True)
    engine = models.CharField(_("engine"), max_length=32)
    role = models.CharField(_("role"), max_length=32, blank=True, default="")
    epoch = models.CharField(_("epoch"), max_length=64, blank=True, default="")
    applied = models.PositiveBigIntegerField(_("applied"))
    head = models.PositiveBigIntegerField(_("head"), null=True)
    staleness = models.FloatField(_("staleness"), null=True)
    fresh = models.BooleanField(_("fresh"))
    entries = models.PositiveBigIntegerField(_("entries"))
    bytes = models.PositiveBigIntegerField(_("bytes"))
    last_resync = models.DateTimeField(_("last resync"), null=True)
    counters = models.JSONField(_("counters"), default=dict)

    class Meta:
        verbose_name = _("node")
        verbose_name_plural = _("nodes")

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class EmailKey(models.Model):
    """A one-time key that travelled by e-mail. No usable secret is stored: the digest only."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    digest = models.CharField(max_length=64)
    purpose = models.CharField(_("purpose"), max_length=32)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="accesspass_email_keys",
        verbose_name=_("user"),
    )
    # Where it was sent to; for a change of address the new one.
    email = models.CharField(_("e-mail address"), max_length=254)
    # SHA-256 of the user's auth hash and address when the key was made: see email_keys.state_of.
    state = models.CharField(max_length=64)
    created_at = models.DateTimeField(_("created at"))
    expires_at = models.DateTimeField(_("expires at"))
    # Used, or made void by something that happened to the account.
    spent_at = models.DateTimeField(_("spent at"), null=True, blank=True)

    class Meta:
        verbose_name = _("e-mail key")
        verbose_name_plural = _("e-mail keys")
        indexes = [
            models.Index(fields=["user", "spent_at"], name="accesspass_emailkey_user"),
            models.Index(fields=["expires_at"], name="accesspass_emailkey_expiry"),
        ]

    def __str__(self) -> str:
        return _("e-mail key %(id)s") % {"id": self.pk}


class MailRequest(models.Model):
    """An e-mail that was asked for, until it is sent, and for a while after.

    A public request holds an `identifier` alone, since the request path looks nobody up; delivery
    finds the user. Notices of our own name the user, and the address where it is not the stored
    one.
    """

    purpose = models.CharField(_("purpose"), max_length=32)
    identifier = models.CharField(_("identifier"), max_length=MAX_LENGTH, blank=True, default="")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="accesspass_mail_requests",
        verbose_name=_("user"),
    )
    address = models.CharField(_("e-mail address"), max_length=254, blank=True, default="")
    context = models.JSONField(default=dict, blank=True)
    language = models.CharField(_("language"), max_length=16, blank=True, default="")
    # Purpose and identifier of a public request that waits, so that there is one at a time.
    pending_key = models.CharField(max_length=MAX_LENGTH + 33, null=True, unique=True)
    created_at = models.DateTimeField(_("created at"))
    # Nobody takes it up before: somebody is sending it, or the last attempt has failed.
    lease_until = models.DateTimeField(_("not before"))
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    sent_at = models.DateTimeField(_("sent at"), null=True, blank=True)
    failed_at = models.DateTimeField(_("given up at"), null=True, blank=True)
    error = models.CharField(_("last error"), max_length=100, blank=True, default="")

    class Meta:
        verbose_name = _("e-mail")
        verbose_name_plural = _("e-mails")
        indexes = [
            models.Index(
                fields=["lease_until"],
                condition=models.Q(sent_at=None, failed_at=None),
                name="accesspass_mail_due",
            ),
            models.Index(fields=["user", "purpose", "sent_at"], name="accesspass_mail_sent"),
            models.Index(
                fields=["failed_at"],
                condition=models.Q(failed_at__isnull=False),
                name="accesspass_mail_failed",
            ),
        ]

    def __str__(self) -> str:
        return _("e-mail %(id)s: %(purpose)s") % {"id": self.pk, "purpose": self.purpose}


class ThrottleManager(models.Manager["Throttle"]):
    """Counts in the database, whose clock it goes by. Call it outside of transactions: what it
    counts must stay, whatever happens to the request."""

    def take(self, key: str, limit: int, period: float) -> bool:
        """Count one under `key`, and tell whether that is still within `limit`.

        The window of `period` seconds begins with the first one that is counted. One UPDATE
        decides, so the limit is exact whoever counts at the same time; beyond it nothing is
        counted any more.
        """
        over = Q(expires_at__lte=Now())
        rows = self._rows(key).filter(over | Q(count__lt=limit))
        # In this order: MySQL evaluates the second with what the first has set.
        changes = {
            "count": Case(When(over, then=1), default=F("count") + 1),
            "expires_at": Case(When(over, then=_later(period)), default=F("expires_at")),
        }
        if rows.update(**changes):
            return True
        if self._rows(key).filter(count__gte=limit, expires_at__gt=Now()).exists():
            return False
        try:
            self._begin(key, period)
        except IntegrityError:  # somebody else was the first
            return bool(rows.update(**changes))
        return True

    def give_back(self, key: str) -> None:
        """Take back one that was counted."""
        self._rows(key).filter(count__gt=0).update(count=F("count") - 1)

    def first_over(self, key: str, limit: int) -> bool:
        """Tell once in a window, whoever asks, that the limit has been passed."""
        return bool(self._rows(key).filter(count=limit).update(count=limit + 1))

    def wait(self, key: str) -> float:
        """Return the seconds until the window of `key` ends."""
        row = self._rows(key).annotate(clock=Now()).first()
        return 0.0 if row is None else max(0.0, (row.expires_at - row.clock).total_seconds())

    def remember(self, keys: Sequence[str], period: float) -> None:
        """Let `holds` be true of all `keys` for `period` seconds from now on."""
        expires_at = _later(period)
        if self._all().filter(pk__in=keys).update(expires_at=expires_at) < len(keys):
            rows = [self.model(key=key, count=1, expires_at=expires_at) for key in keys]
            self._all().bulk_create(rows, ignore_conflicts=True)

    def holds(self, key: str) -> bool:
        """Tell whether `key` was remembered, or counted, and its time is not over."""
        return self._rows(key).filter(expires_at__gt=Now()).exists()

    def purge(self) -> None:
        """Delete what is over."""
        over = self._all().filter(expires_at__lte=Now())
        while found := list(over.values_list("pk", flat=True)[:_PURGE_BATCH]):
            over.filter(pk__in=found).delete()

    def _all(self) -> models.QuerySet[Throttle]:
        return self.using(router.db_for_write(self.model))

    def _rows(self, key: str) -> models.QuerySet[Throttle]:
        return self._all().filter(pk=key)

    def _begin(self, key: str, period: float) -> None:
        rows = self._all()
        # A conflict would spoil a transaction of the caller's.
        inside = connections[rows.db].in_atomic_block
        with transaction.atomic(using=rows.db) if inside else nullcontext():
            rows.create(key=key, count=1, expires_at=_later(period))


def _later(seconds: float) -> Any:
    return Now() + timedelta(seconds=seconds)


class Throttle(models.Model):
    """How often something was tried in a window of time.

    The key is a keyed hash (see `throttling`): neither a name nor an address can be read from it.
    """

    key = models.CharField(primary_key=True, max_length=64)
    count = models.PositiveIntegerField()
    expires_at = models.DateTimeField(db_index=True)

    objects: ClassVar[ThrottleManager] = ThrottleManager()

    class Meta:
        verbose_name = _("throttle")
        verbose_name_plural = _("throttles")

    def __str__(self) -> str:
        return _("throttle %(key)s") % {"key": self.key[:8]}
