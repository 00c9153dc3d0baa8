"""The whole life of an account, for any user model: register, log in, confirm, change, delete.

These functions are what the views do, without HTTP: call them from a project's own code too.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from django.contrib.auth import authenticate, get_user_model, password_validation
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.core.exceptions import NON_FIELD_ERRORS, FieldDoesNotExist, ValidationError
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    router,
    transaction,
)
from django.db.models import ProtectedError, RestrictedError
from django.db.models.functions import Now
from django.utils.translation import get_language_from_request
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from accesspass import email_keys, hashing, identifiers, mail, sessions, throttling
from accesspass.conf import conf
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET
from accesspass.exceptions import (
    AccessPassError,
    EmailTaken,
    Invalid,
    InvalidCredentials,
    NotFound,
    UsernameTaken,
)
from accesspass.identifiers import canonical, is_plain_text
from accesspass.models import (
    Account,
    Identifier,
    Session,
    aliases,
    email_field,
    email_of,
    is_possible_username,
    name_fields,
)
from accesspass.sessions import TokenPair
from accesspass.signals import (
    account_deleted,
    email_changed,
    email_confirmed,
    password_changed,
    password_reset,
    user_registered,
    username_changed,
)

if TYPE_CHECKING:
    import uuid

    from django.http import HttpRequest

__all__ = [
    "Collision",
    "adopt",
    "change_email",
    "change_password",
    "collisions",
    "confirm",
    "confirm_email_change",
    "delete",
    "describe",
    "json_problem",
    "log_in",
    "natural_key",
    "register",
    "register_quietly",
    "reset_password",
    "resolve_name",
    "set_claims",
    "update",
    "username_is_email",
]

_MAX_JSON_DEPTH = 32
_INSERTING = 0.1  # seconds: more than it takes to insert a user, see register_quietly


@sensitive_variables()
def log_in(
    username: str,
    password: str,
    *,
    request: HttpRequest | None = None,
    name: str = "",
    data: Mapping[str, Any] | None = None,
) -> tuple[AbstractBaseUser, TokenPair]:
    """Check the password and start a session: return the user and the tokens.

    `username` may be the username or the e-mail address in any case, `name` is what the device is
    called, `data` what `Hooks.may_login` gets. The project's AUTHENTICATION_BACKENDS decide, asked
    once, and then that hook. Raises InvalidCredentials for a wrong name, a wrong password and a
    user who may not log in alike, Invalid for text that cannot be a name or password, Busy when too
    many passwords are being hashed, and whatever the hook raises. Nothing is throttled here: that
    is done by the view.
    """
    if not is_plain_text(username) or not is_plain_text(password):
        raise Invalid(
            _problem("username", _("This has characters that are not allowed."), "invalid")
        )
    if len(password) > conf.PASSWORD_MAX_LENGTH:
        raise Invalid(_password_too_long())
    model: Any = get_user_model()
    key, is_loose = resolve_name(username)
    credentials = {model.USERNAME_FIELD: key, "password": password}
    is_possible = is_possible_username(key)
    asks_account = conf.REQUIRE_CONFIRMED_EMAIL and is_possible
    confirmed = _confirmed_account(credentials) if asks_account else None
    with hashing.slot(request):
        if is_possible:
            user = authenticate(request, **credentials)
        else:
            # No backend could look for it. It takes as long as any other unknown name.
            user = model().set_password(password)
    if user is None:
        raise InvalidCredentials
    is_unconfirmed = confirmed is None or not confirmed.is_confirmed(user)
    if is_loose or (conf.REQUIRE_CONFIRMED_EMAIL and is_unconfirmed):
        # What counts failures has to count this one too, or it would be told from the others.
        hidden = {**credentials, "password": "*" * 20}
        user_login_failed.send(sender=__name__, credentials=hidden, request=request)
        raise InvalidCredentials
    return user, _let_in(user, data, request, name)


@sensitive_variables()
def register(
    *,
    username: str = "",
    email: str,
    password: str,
    meta: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> tuple[AbstractBaseUser, TokenPair | None]:
    """Insert a user and start a first session: return the user and the tokens.

    `meta` is what the client says of itself, `fields` are further fields of the user model, trusted
    as they are, `data` is what `Hooks.prepare_user` gets. Where the username of the user model is
    the e-mail address, `username` may be left out, or hold that address. An e-mail asks to confirm
    the address; with REQUIRE_CONFIRMED_EMAIL there are no tokens before that, so None. Raises
    Invalid with the fields that were refused, UsernameTaken, EmailTaken, Busy.
    """
    data = {} if data is None else data
    user = _new_user(username, email, password, meta, fields, data)
    _refuse_taken(user)
    with hashing.slot(request):
        user.set_password(password)
    return _insert(user, meta, data, request)


@sensitive_variables("password")
def register_quietly(
    *,
    username: str = "",
    email: str,
    password: str,
    meta: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> None:
    """Register so that the caller cannot tell whether the names were taken: an e-mail says it.

    For REQUIRE_CONFIRMED_EMAIL. The arguments are those of `register`. Raises Invalid and Busy.
    """
    data = {} if data is None else data
    user = _new_user(username, email, password, meta, fields, data)
    with hashing.slot(request):
        user.set_password(password)
    # Everything up to here was alike. Inserting takes longer than finding a name taken.
    over = time.monotonic() + _INSERTING
    try:
        _refuse_taken(user)
        _insert(user, meta, data, request)
    except EmailTaken:
        mail.ask(mail.ADDRESS_TAKEN, email, request=request)
    except UsernameTaken:
        mail.ask(mail.USERNAME_TAKEN, email, address=email_of(user), request=request)
    finally:
        time.sleep(max(0.0, over - time.monotonic()))


@sensitive_variables("key", "data")
def confirm(
    key: object, *, request: HttpRequest | None = None, data: Mapping[str, Any] | None = None
) -> tuple[AbstractBaseUser, TokenPair | None]:
    """Confirm the address that a key was sent to: return the user, and tokens if CONFIRM_LOGS_IN.

    `data` is what `Hooks.may_login` gets. Where it refuses, the address is confirmed all the same,
    and there are no tokens. Raises InvalidKey.
    """
    row = email_keys.read(key, CONFIRM)
    user = row.user
    with transaction.atomic(using=row._state.db):
        email_keys.consume(row)
        _record_confirmation(user, row.email)
        sessions.sync(user)
    email_confirmed.send_robust(sender=type(user), user=user, request=request)
    if not conf.CONFIRM_LOGS_IN:
        return user, None
    try:
        return user, _let_in(user, data, request)
    except AccessPassError:
        return user, None  # the key is used up, and the address confirmed all the same


@sensitive_variables("key", "new_password")
def reset_password(key: object, new_password: str, *, request: HttpRequest | None = None) -> bool:
    """Set a new password by a key from an e-mail, and end every session of the user.

    Whoever has the key reads the mail of that address, so the address counts as confirmed. Returns
    whether the engine has acknowledged the end of the sessions, as `sessions.revoke` does. Raises
    InvalidKey, Busy, and Invalid for a password that is refused, which leaves the key good.
    """
    row = email_keys.read(key, PASSWORD_RESET)
    user = row.user
    _hash_new_password(user, new_password, request)
    with transaction.atomic(using=row._state.db):
        email_keys.consume(row)
        _record_confirmation(user, row.email)
        _save_password(user, request)
    password_reset.send_robust(sender=type(user), user=user, request=request)
    return _end_sessions(user, request, reason="password_reset")


@sensitive_variables("current_password", "new_password")
def change_password(
    user: AbstractBaseUser,
    current_password: str,
    new_password: str,
    *,
    session_id: uuid.UUID | None = None,
    request: HttpRequest | None = None,
) -> bool:
    """Set a new password for whoever knows the present one, and end all sessions but `session_id`.

    Returns as `reset_password` does. Raises Invalid, Busy, and with a request Throttled.
    """
    user = _checked(user, current_password, request)
    checked = user.password
    _hash_new_password(user, new_password, request)
    with transaction.atomic(using=user._state.db):
        _lock_unchanged(user, checked)
        if session_id is not None:
            sessions.keep(session_id, user)
        _save_password(user, request)
    password_changed.send_robust(sender=type(user), user=user, request=request)
    return _end_sessions(user, request, except_=session_id, reason="password_changed")


@sensitive_variables("current_password")
def change_email(
    user: AbstractBaseUser,
    current_password: str,
    email: str,
    *,
    request: HttpRequest | None = None,
) -> None:
    """Send a key to a new address, which is the user's once that key comes back.

    Whether the address is free is not told; if it is another user's, that user is told. An earlier
    request is forgotten. Where the username is the address, the new one has to be possible as a
    username too. Raises Invalid, Busy, NotFound where the user model has no address, and with a
    request Throttled.
    """
    email = BaseUserManager.normalize_email(email)
    model: Any = get_user_model()
    try:
        identifiers.validate_email(email)
        model._meta.get_field(model.get_email_field_name()).run_validators(email)
    except ValidationError as error:
        raise Invalid({"email": _messages(error)}) from None
    except FieldDoesNotExist:
        raise NotFound from None  # users of this model have no address
    user = _checked(user, current_password, request)
    _name_following(user, email)
    database = router.db_for_write(Account)
    Account.objects.for_user(user)
    with transaction.atomic(using=database):
        Account.objects.lock(user.pk, database)
        email_keys.void(user, EMAIL_CHANGE)
        mail.notify(
            EMAIL_CHANGE, user, address=email, request=request, state=email_keys.state_of(user)
        )


@sensitive_variables("key")
def confirm_email_change(key: object, *, request: HttpRequest | None = None) -> AbstractBaseUser:
    """Make the address that a key was sent to the user's own: return the user.

    A username that is the old address becomes the new one, since the old one may be somebody else's
    from now on. The old address is told. Raises InvalidKey, EmailTaken if somebody has the new one
    meanwhile, and Invalid for one that the username cannot be.
    """
    row = email_keys.read(key, EMAIL_CHANGE)
    try:
        with transaction.atomic(using=row._state.db):
            email_keys.consume(row)
            user: AbstractBaseUser = _stored(row.user)
            old, old_name = email_of(user), str(user.get_username())
            changes = {user.get_email_field_name(): row.email, **_name_following(user, row.email)}
            for field, value in changes.items():
                setattr(user, field, value)
            if canonical(row.email) != canonical(old):
                _claim_alias(user, row.email, EmailTaken)
            _record_confirmation(user, row.email)
            user.save(update_fields=list(changes))
            email_keys.void(user)
            if old:
                mail.notify(mail.EMAIL_CHANGED, user, address=old, request=request)
    except IntegrityError:
        raise EmailTaken from None
    sender, new_name = type(user), str(user.get_username())
    email_changed.send_robust(sender=sender, user=user, old=old, new=row.email, request=request)
    if new_name != old_name and not username_is_email():
        username_changed.send_robust(
            sender=sender, user=user, old=old_name, new=new_name, request=request
        )
    return user


def _name_following(user: Any, email: str) -> dict[str, str]:
    """Return by its field the username of a user who gets another address, if it changes too.

    Raises Invalid, naming the address, if it has to and the new one cannot be a username.
    """
    name = str(user.get_username() or "")
    if username_is_email() or canonical(name) != canonical(email_of(user)):
        return {}
    name = user.normalize_username(email)
    try:
        user._meta.get_field(user.USERNAME_FIELD).run_validators(name)
    except ValidationError as error:
        raise Invalid({"email": _messages(error)}) from None
    return {user.USERNAME_FIELD: name}


@sensitive_variables("current_password")
def update(
    user: AbstractBaseUser,
    *,
    username: str | None = None,
    current_password: str | None = None,
    meta: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> tuple[AbstractBaseUser, Mapping[str, Any]]:
    """Change what is given of username, meta and `fields` of the user model.

    A username needs the present password. Returns the user as stored, and meta. Raises Invalid with
    the fields that were refused, UsernameTaken, Busy, and with a request Throttled.
    """
    if meta is not None and (problem := _meta_problem(meta)):
        raise Invalid(_problem("meta", problem, "invalid"))
    fields = dict(fields or {})
    stored: Any = _stored(user)
    if not fields.keys().isdisjoint({"password", stored.get_email_field_name()}):
        raise ValueError("change_password and change_email change these")
    old = str(stored.get_username())
    if username is not None and username != old:
        if username_is_email():
            raise Invalid(_problem("username", _("The username is the e-mail address."), "invalid"))
        stored = _checked(user, current_password, request)
        fields[stored.USERNAME_FIELD] = stored.normalize_username(username)
        _refuse_username(fields[stored.USERNAME_FIELD], stored)
    for name, value in fields.items():
        setattr(stored, name, value)
    _refuse_bad_fields(stored, fields)
    new = str(stored.get_username())
    account = Account.objects.for_user(stored)
    database = router.db_for_write(Account)
    try:
        with transaction.atomic(using=database):
            Account.objects.lock(stored.pk, database)
            if meta is not None:
                account.meta = dict(meta)
                account.save(update_fields=["meta"])
            if new != old:
                # Again: the address that it was equal to may have been another's by now.
                _refuse_username(new, _stored(stored))
            if canonical(new) != canonical(old):
                _claim_alias(stored, new, UsernameTaken)
            if fields:
                stored.save(update_fields=list(fields))
            sessions.sync(stored)
    except IntegrityError:
        _refuse_constraints(stored)
        if new == old:
            raise
        raise UsernameTaken from None
    if new != old:
        username_changed.send_robust(
            sender=type(stored), user=stored, old=old, new=new, request=request
        )
    return stored, account.meta


@sensitive_variables("current_password")
def delete(
    user: AbstractBaseUser, current_password: str, *, request: HttpRequest | None = None
) -> bool:
    """End every session of the user and delete the account, by `Hooks.delete_user`.

    Returns as `reset_password` does. Raises Invalid, Busy, with a request Throttled, and
    InvalidCredentials if somebody else was faster.
    """
    user = _checked(user, current_password, request)
    checked = user.password
    gone = {"user_id": user.pk, "username": str(user.get_username()), "email": email_of(user)}
    rows = Session.objects.using(router.db_for_write(Session))
    ended = list(rows.filter(user=user.pk, revoked_at=None).values_list("pk", flat=True))
    try:
        with transaction.atomic(using=router.db_for_write(type(user), instance=user)):
            _lock_unchanged(user, checked)
            sessions.revoke_all(user, reason="user_deleted", request=request)
            conf.hooks().delete_user(user)
    except (ProtectedError, RestrictedError):
        raise Invalid(
            _problem("non_field_errors", _("This account is still needed."), "protected")
        ) from None
    account_deleted.send_robust(sender=type(user), **gone, request=request)
    return not rows.filter(pk__in=ended, publication_pending=True).exists()


def set_claims(user: AbstractBaseUser, claims: Mapping[str, Any]) -> None:
    """Replace the claims that permissions read, on every session of the user.

    `claims` holds plain JSON types. Sessions go on; their records are published again.
    """
    if problem := json_problem(dict(claims)):
        raise Invalid(_problem("claims", problem, "invalid"))
    account = Account.objects.for_user(user)
    Account.objects.using(account._state.db).filter(pk=user.pk).update(claims=dict(claims))
    sessions.sync(user)


def natural_key(name: str) -> str:
    """Return the USERNAME_FIELD of the user meant by `name`, or `name` itself if there is none.

    A user whose natural key is exactly `name` comes first, then the one who holds its canonical
    form. Both are always looked for, so that an unknown name takes as long as a known one.
    """
    return resolve_name(name)[0]


def resolve_name(name: str) -> tuple[str, bool]:
    """Return `natural_key(name)`, and whether it is a spelling that nobody may log in by.

    That is one which the database alone takes for somebody's: by a collation that tells fewer
    letters apart than the canonical form does, or since "07" is the number 7. There may be very
    many of one name, and each would have limits of its own.
    """
    model = get_user_model()
    if not is_plain_text(name):
        return name, False
    database = router.db_for_write(model)
    exact = None
    if is_possible_username(name):
        users = model._base_manager.using(database).filter(**{model.USERNAME_FIELD: name})
        exact = users.values_list(model.USERNAME_FIELD, flat=True).first()
    alias = canonical(name)
    fields = [f"account__user__{x}" for x in name_fields()]
    row = (
        Identifier.objects.using(database).filter(value=alias).values_list(*fields).first()
        if len(alias) <= identifiers.MAX_LENGTH
        else None
    )
    if exact is not None and str(exact) == name:
        return name, False
    # Compared again: the collation of the database may be looser, and the row may be out of date.
    if row is not None and any(canonical(str(value or "")) == alias for value in row):
        return str(row[0]), False
    return name, exact is not None and canonical(str(exact)) != alias


class Collision(NamedTuple):
    """A canonical name that two users have: `user_id` does not get it, `held_by` has it."""

    name: str
    user_id: Any
    held_by: Any


def adopt(
    *, batch_size: int = 1000, confirmed: bool = False
) -> Iterator[tuple[int, list[Collision]]]:
    """Make the accounts of users that have none, in batches: yield how many, and collisions.

    A name that another user has in another spelling stays with who came first, by primary key;
    both go on logging in by their exact username. `confirmed` takes the addresses that users have
    now for confirmed ones.
    """
    model: Any = get_user_model()
    database = router.db_for_write(Account)
    users = model._base_manager.using(database).filter(accesspass_account=None)
    for batch in _batches(users, batch_size):
        wanted = {(name, user.pk) for user in batch for name in aliases(user)}
        with transaction.atomic(using=database):
            Account.objects.using(database).bulk_create(
                [_adopted(user, confirmed) for user in batch], ignore_conflicts=True
            )
            Identifier.objects.using(database).bulk_create(
                [
                    Identifier(value=name, account_id=user.pk)
                    for user in batch
                    for name in aliases(user)
                ],
                ignore_conflicts=True,
            )
            lost = _held_by_others(database, wanted)
        yield len(batch), lost


def collisions(*, among: int | None = None, batch_size: int = 1000) -> Iterator[Collision]:
    """Find the names of users that another user holds: those of the first `among` by primary key.

    Two users who both have no account collide only when they are adopted.
    """
    model: Any = get_user_model()
    database = router.db_for_write(Account)
    users = model._base_manager.using(database)
    most = None if among is None else math.ceil(among / batch_size)
    for batch in itertools.islice(_batches(users, batch_size), most):
        wanted = {(name, user.pk) for user in batch for name in aliases(user)}
        yield from _held_by_others(database, wanted)


def _batches(users: Any, size: int) -> Iterator[list[Any]]:
    """Read users by primary key, so many at a time, with nothing held open between."""
    users, last = users.order_by("pk"), None
    while batch := list((users if last is None else users.filter(pk__gt=last))[:size]):
        last = batch[-1].pk
        yield batch


def _held_by_others(database: str, wanted: set[tuple[str, Any]]) -> list[Collision]:
    """Return which of these names, each with a user's key, are held by another user."""
    names = {name for name, _pk in wanted}
    identifiers = Identifier.objects.using(database).filter(value__in=names)
    held = dict(identifiers.values_list("value", "account_id"))
    found = [Collision(name, pk, held[name]) for name, pk in wanted if held.get(name, pk) != pk]
    return sorted(found, key=str)


def _adopted(user: Any, confirmed: bool) -> Account:
    email = email_of(user) if confirmed else ""
    return Account(user_id=user.pk, confirmed_email=email, confirmed_at=Now() if email else None)


def username_is_email() -> bool:
    """Tell whether the user model's username is its e-mail address."""
    model = get_user_model()
    return model.get_email_field_name() == model.USERNAME_FIELD


def describe(user: AbstractBaseUser, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user as answers show it, without a query."""
    return {
        "id": str(user.pk),
        "username": str(user.get_username()),
        "email": email_of(user),
        "meta": meta,
    }


def json_problem(value: object) -> str | None:
    """Tell why some database could not store `value` as JSON, or return None.

    Refused are NUL, lone surrogates, numbers that are not finite, and nesting deeper than 32. The
    walk does not recurse.
    """
    todo: list[tuple[object, int]] = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if depth > _MAX_JSON_DEPTH:
            return _("The JSON is nested too deep.")
        if isinstance(item, str):
            if not is_plain_text(item):
                return _("The JSON has characters that are not allowed.")
        elif isinstance(item, float):
            if not math.isfinite(item):
                return _("The JSON has a number that is out of range.")
        elif isinstance(item, dict):
            todo.extend((x, depth + 1) for pair in item.items() for x in pair)
        elif isinstance(item, (list, tuple)):
            todo.extend((x, depth + 1) for x in item)
        elif item is not None and not isinstance(item, int):
            return _("The JSON has a value that is not JSON.")
    return None


def sync_aliases(sender: type[Any], instance: Any, **kwargs: Any) -> None:
    """Keep the identifiers of a saved user current. Receiver of `post_save` of the user model."""
    fields = kwargs.get("update_fields")
    names = {sender.USERNAME_FIELD, sender.get_email_field_name()}
    if kwargs.get("raw") or kwargs.get("created"):
        return
    if fields is not None and names.isdisjoint(fields):
        return
    database = kwargs["using"]
    with transaction.atomic(using=database):
        if not Account.objects.lock(instance.pk, database):
            return
        # The instance may have been loaded before somebody else changed the other name.
        stored = sender._base_manager.using(database).filter(pk=instance.pk).first()
        if stored is not None:
            Account.objects.using(database).get(pk=instance.pk).sync_aliases(stored)


def _new_user(
    username: str,
    email: str,
    password: str,
    meta: Mapping[str, Any] | None,
    fields: Mapping[str, Any] | None,
    data: Mapping[str, Any],
) -> Any:
    """Return a user who was validated, but for names that are taken, and has no password yet."""
    model = get_user_model()
    user: Any = model()
    email = BaseUserManager.normalize_email(email)
    if username_is_email():
        if username and canonical(username) != canonical(email):
            raise Invalid(
                _problem("username", _("The username must be the e-mail address."), "invalid")
            )
    else:
        setattr(user, model.USERNAME_FIELD, model.normalize_username(username))
    if (field := email_field()) is not None:
        setattr(user, field, email)
    for name, value in (fields or {}).items():
        setattr(user, name, value)
    conf.hooks().prepare_user(user, data)
    _validate(user, password, meta)
    return user


def _insert(
    user: Any,
    meta: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    request: HttpRequest | None,
) -> tuple[AbstractBaseUser, TokenPair | None]:
    """Insert a new user with all that belongs to one. Raises UsernameTaken, EmailTaken."""
    database = router.db_for_write(type(user))
    language = "" if request is None else get_language_from_request(request)[:16]
    pair = None
    try:
        with transaction.atomic(using=database):
            user = conf.hooks().create_user(user, data)
            # A receiver of the project's may have made it already.
            known = {"meta": meta or {}, "language": language}
            account, made = Account.objects.using(database).get_or_create(
                user_id=user.pk, defaults=known
            )
            names = set(aliases(user))
            if not made:
                given = known if meta else {"language": language}
                Account.objects.using(database).filter(pk=user.pk).update(**given)
                held = Identifier.objects.using(database).filter(account=account)
                names.difference_update(held.values_list("value", flat=True))
            Identifier.objects.using(database).bulk_create(
                [Identifier(value=value, account=account) for value in names]
            )
            if not conf.REQUIRE_CONFIRMED_EMAIL:
                pair = sessions.start(user, request=request)
            if conf.BASE_URL:
                mail.notify(CONFIRM, user, request=request)
    except IntegrityError:
        # Somebody else took the name since it was looked for, or wrote it in another case.
        user._state.adding = True
        _refuse_taken(user)
        _refuse_constraints(user)
        raise
    user_registered.send(sender=type(user), user=user, request=request)
    return user, pair


@sensitive_variables("data")
def _let_in(
    user: AbstractBaseUser,
    data: Mapping[str, Any] | None,
    request: HttpRequest | None,
    name: str = "",
) -> TokenPair:
    """Start the session of a user who has proved who they are, unless `Hooks.may_login` refuses."""
    conf.hooks().may_login(user, {} if data is None else data, request)
    pair = sessions.start(user, request=request, name=name)
    try:
        user_logged_in.send(sender=type(user), request=request, user=user)
    except DatabaseError:
        # Django's own receiver saves `last_login`, which fails for a user who was deleted since.
        if get_user_model()._base_manager.using(user._state.db).filter(pk=user.pk).exists():
            raise
        raise InvalidCredentials from None
    return pair


def _confirmed_account(credentials: Mapping[str, Any]) -> Account | None:
    """Return the account behind credentials. Asked for before the password is looked at, so that
    a good password for an unconfirmed account takes as many queries as a bad one."""
    name = get_user_model().USERNAME_FIELD
    accounts = Account.objects.using(router.db_for_write(Account))
    return accounts.filter(**{f"user__{name}": credentials[name]}).first()


def _record_confirmation(user: AbstractBaseUser, email: str) -> None:
    accounts = Account.objects.using(router.db_for_write(Account))
    accounts.filter(pk=user.pk).update(confirmed_at=Now(), confirmed_email=email)


def _stored(user: AbstractBaseUser) -> Any:
    """Return the user as the database has it: `request.user` holds a part that may be old."""
    model = get_user_model()
    database = router.db_for_write(model, instance=user)
    stored = model._base_manager.using(database).filter(pk=user.pk).first()
    if stored is None:
        raise InvalidCredentials
    return stored


@sensitive_variables("password")
def _checked(user: AbstractBaseUser, password: str | None, request: HttpRequest | None) -> Any:
    """Return the user as stored, if that is the password. Call it outside of transactions.

    With a request it is counted as a login of that account: whoever holds a stolen access token
    could else guess without limit. Raises Invalid naming the field, Busy, Throttled.
    """
    stored = _stored(user)
    wrong = _problem("current_password", _("This is not your password."), "password_incorrect")
    if not password or len(password) > conf.PASSWORD_MAX_LENGTH:
        raise Invalid(wrong)
    attempt = None
    if request is not None:
        attempt = throttling.count("login", request, str(stored.get_username()))
    with hashing.slot(request):
        if not stored.check_password(password):
            raise Invalid(wrong)
    if attempt is not None:
        attempt.succeed(stored)
    return stored


@sensitive_variables("password")
def _hash_new_password(user: AbstractBaseUser, password: str, request: HttpRequest | None) -> None:
    """Put the hash of a new password into the user, not yet into the row."""
    if len(password) > conf.PASSWORD_MAX_LENGTH:
        raise Invalid({"new_password": _password_too_long()["password"]})
    if not is_plain_text(password):
        raise Invalid(
            _problem("new_password", _("This has characters that are not allowed."), "invalid")
        )
    try:
        password_validation.validate_password(password, cast("Any", user))
    except ValidationError as error:
        raise Invalid({"new_password": _messages(error)}) from None
    with hashing.slot(request):
        user.set_password(password)


def _lock_unchanged(user: AbstractBaseUser, password: str) -> None:
    """Take the user's lock; raise Invalid if the password was changed since it was checked."""
    Account.objects.lock(user.pk, router.db_for_write(Account))
    if _stored(user).password != password:
        raise Invalid(
            _problem("current_password", _("This is not your password."), "password_incorrect")
        )


def _save_password(user: AbstractBaseUser, request: HttpRequest | None) -> None:
    """Store the hash, which ends the sessions begun under another, and void all keys."""
    user.save(update_fields=["password"])
    email_keys.void(user)
    mail.notify(mail.PASSWORD_CHANGED, user, request=request)


def _end_sessions(
    user: AbstractBaseUser,
    request: HttpRequest | None,
    *,
    except_: uuid.UUID | None = None,
    reason: str,
) -> bool:
    """End what is left, and say whether the engine knows. What was done before stays done."""
    try:
        return sessions.revoke_all(user, except_=except_, reason=reason, request=request)
    except (OperationalError, InterfaceError):
        return False


def _claim_alias(user: AbstractBaseUser, name: str, error: type[Exception]) -> None:
    """Take an alias inside the caller's transaction. Raises `error` if another user has it."""
    model: Any = type(user)
    value = canonical(name)
    database = router.db_for_write(Identifier)
    others = model._base_manager.using(database).exclude(pk=user.pk)
    for field in name_fields():
        # Users who have not logged in yet hold no identifier.
        if others.filter(**{f"{field}__in": {name, value}}).exists():
            raise error
    try:
        with transaction.atomic(using=database):
            Identifier.objects.using(database).create(value=value, account_id=user.pk)
    except IntegrityError:
        held = Identifier.objects.using(database).filter(value=value, account_id=user.pk)
        if not held.exists():
            raise error from None


def _refuse_username(name: str, user: Any) -> None:
    try:
        identifiers.validate_username(name, email_of(user))
    except ValidationError as error:
        raise Invalid({"username": _messages(error)}) from None


def _refuse_bad_fields(user: Any, fields: Mapping[str, Any]) -> None:
    public = {user.USERNAME_FIELD: "username"}
    others = {x.name for x in user._meta.fields if x.name not in fields}
    errors: dict[str, list[dict[str, str]]] = {}
    try:
        user.clean_fields(exclude=others)
        user.validate_unique(exclude={*others, user.USERNAME_FIELD})
    except ValidationError as error:
        for field, found in error.update_error_dict({}).items():
            key = "non_field_errors" if field == NON_FIELD_ERRORS else public.get(field, field)
            errors.setdefault(key, []).extend(_messages(ValidationError(found)))
    if errors:
        raise Invalid(errors)


def user_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that are fields of the user model, by the names it gives them."""
    found = {}
    for name, value in values.items():
        try:
            get_user_model()._meta.get_field(name)
        except FieldDoesNotExist:
            continue
        found[name] = value
    return found


@sensitive_variables()
def _validate(user: Any, password: str, meta: Mapping[str, Any] | None) -> None:
    model: Any = type(user)
    name_field, mail_field = model.USERNAME_FIELD, model.get_email_field_name()
    errors: dict[str, list[dict[str, str]]] = {}

    def collect(field: str, error: ValidationError) -> None:
        errors.setdefault(field, []).extend(_messages(error))

    if email_field() is not None:
        try:
            identifiers.validate_email(email_of(user))
        except ValidationError as error:
            collect("email", error)
    if name_field != mail_field:
        try:
            identifiers.validate_username(str(user.get_username() or ""), email_of(user))
        except ValidationError as error:
            collect("username", error)
    if len(password) > conf.PASSWORD_MAX_LENGTH:
        errors.update(_password_too_long())
    elif not is_plain_text(password):
        errors.update(
            _problem("password", _("This has characters that are not allowed."), "invalid")
        )
    if meta is not None and (problem := _meta_problem(meta)):
        errors.update(_problem("meta", problem, "invalid"))
    if not errors:
        public = {name_field: "username", mail_field: "email"}
        for check in (
            lambda: user.clean_fields(exclude={"password"}),
            user.clean,
            # The names are looked for by their canonical form instead; a random key needs no query.
            lambda: user.validate_unique(exclude={name_field, mail_field, model._meta.pk.name}),
            lambda: user.validate_constraints(exclude={name_field, mail_field}),
        ):
            try:
                check()
            except ValidationError as error:
                for field, found in error.update_error_dict({}).items():
                    key = (
                        "non_field_errors"
                        if field == NON_FIELD_ERRORS
                        else public.get(field, field)
                    )
                    collect(key, ValidationError(found))
    if "password" not in errors:
        try:
            password_validation.validate_password(password, user)
        except ValidationError as error:
            collect("password", error)
    if errors:
        raise Invalid(errors)


def _meta_problem(meta: object) -> str | None:
    if not isinstance(meta, dict) or not all(isinstance(key, str) for key in meta):
        return _("This must be a JSON object.")
    if problem := json_problem(meta):
        return problem
    size = len(json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode())
    if size > conf.META_MAX_BYTES:
        return _("This has more than %(limit)d bytes of JSON.") % {"limit": conf.META_MAX_BYTES}
    return None


def _refuse_taken(user: AbstractBaseUser) -> None:
    """Raise UsernameTaken or EmailTaken if another user has the name."""
    model: Any = type(user)
    database = router.db_for_write(model)
    username, email = str(user.get_username()), email_of(user)
    names = aliases(user)
    held = set(
        Identifier.objects.using(database).filter(value__in=names).values_list("value", flat=True)
    )
    # Users who have not logged in yet hold no identifier, so their fields are looked at as well.
    for field, value, error in (
        (model.USERNAME_FIELD, username, EmailTaken if username_is_email() else UsernameTaken),
        (email_field(), email, EmailTaken),
    ):
        if field is None:
            continue
        spellings = {value, canonical(value)}
        users = model._base_manager.using(database).filter(**{f"{field}__in": spellings})
        if canonical(value) in held or users.exists():
            raise error


def _refuse_constraints(user: AbstractBaseUser) -> None:
    """Raise UsernameTaken or EmailTaken if a constraint of the model says so by its code."""
    try:
        user.validate_constraints()
    except ValidationError as error:
        codes = {x["code"] for x in _messages(error)}
        for refusal in (UsernameTaken, EmailTaken):
            if refusal.code in codes:
                raise refusal from None


def _messages(error: ValidationError) -> list[dict[str, str]]:
    if hasattr(error, "error_dict"):
        return [x for errors in error.error_dict.values() for e in errors for x in _messages(e)]
    return [
        {"message": str(message), "code": x.code or "invalid"}
        for x in error.error_list
        for message in x.messages
    ]


def _problem(field: str, message: str, code: str) -> dict[str, list[dict[str, str]]]:
    return {field: [{"message": message, "code": code}]}


def _password_too_long() -> dict[str, list[dict[str, str]]]:
    message = _("This has more than %(limit)d characters.") % {"limit": conf.PASSWORD_MAX_LENGTH}
    return _problem("password", message, "max_length")
