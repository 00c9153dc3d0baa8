"""Registering and logging in, for any user model.

These functions are what the views do, without HTTP: call them from a project's own code too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.contrib.auth import authenticate, get_user_model, password_validation
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.signals import user_logged_in
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import IntegrityError, router, transaction
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

from accesspass import hashing, identifiers, sessions
from accesspass.conf import conf
from accesspass.exceptions import EmailTaken, Invalid, InvalidCredentials, UsernameTaken
from accesspass.identifiers import canonical, is_plain_text
from accesspass.models import Account, Identifier, aliases, email_of
from accesspass.sessions import TokenPair
from accesspass.signals import user_registered

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = [
    "describe",
    "json_problem",
    "log_in",
    "natural_key",
    "register",
    "set_claims",
    "username_is_email",
]

_MAX_JSON_DEPTH = 32


@sensitive_variables("password", "credentials", "data")
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
    credentials = {get_user_model().USERNAME_FIELD: natural_key(username), "password": password}
    with hashing.slot(request):
        user = authenticate(request, **credentials)
    if user is None:
        raise InvalidCredentials
    conf.hooks().may_login(user, {} if data is None else data, request)
    pair = sessions.start(user, request=request, name=name)
    user_logged_in.send(sender=type(user), request=request, user=user)
    return user, pair


@sensitive_variables("password")
def register(
    *,
    username: str = "",
    email: str,
    password: str,
    meta: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> tuple[AbstractBaseUser, TokenPair]:
    """Insert a user and start a first session: return the user and the tokens.

    `meta` is what the client says of itself, `data` what `Hooks.prepare_user` gets. Where the
    username of the user model is the e-mail address, `username` may be left out, or hold that
    address. Raises Invalid with the fields that were refused, UsernameTaken, EmailTaken, Busy.
    """
    model = get_user_model()
    data = {} if data is None else data
    user: Any = model()
    email = BaseUserManager.normalize_email(email)
    if username_is_email():
        if username and canonical(username) != canonical(email):
            raise Invalid(
                _problem("username", _("The username must be the e-mail address."), "invalid")
            )
    else:
        setattr(user, model.USERNAME_FIELD, model.normalize_username(username))
    setattr(user, model.get_email_field_name(), email)
    conf.hooks().prepare_user(user, data)
    _validate(user, password, meta)
    _refuse_taken(user)
    with hashing.slot(request):
        user.set_password(password)
    database = router.db_for_write(model)
    try:
        with transaction.atomic(using=database):
            user = conf.hooks().create_user(user, data)
            account = Account.objects.using(database).create(user_id=user.pk, meta=meta or {})
            Identifier.objects.using(database).bulk_create(
                [Identifier(value=value, account=account) for value in aliases(user)]
            )
            pair = sessions.start(user, request=request)
    except IntegrityError:
        # Somebody else took the name since it was looked for, or wrote it in another case.
        user._state.adding = True
        _refuse_taken(user)
        _refuse_constraints(user)
        raise
    user_registered.send(sender=type(user), user=user, request=request)
    return user, pair


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
    model = get_user_model()
    if not is_plain_text(name):
        return name
    database = router.db_for_write(model)
    users = model._base_manager.using(database).filter(**{model.USERNAME_FIELD: name})
    exact = users.values_list(model.USERNAME_FIELD, flat=True).first()
    alias = canonical(name)
    fields = [f"account__user__{x}" for x in (model.USERNAME_FIELD, model.get_email_field_name())]
    row = (
        Identifier.objects.using(database)
        .filter(value=alias)
        .values_list(*dict.fromkeys(fields))
        .first()
        if len(alias) <= identifiers.MAX_LENGTH
        else None
    )
    if exact is not None and str(exact) == name:
        return name
    # Compared again: the collation of the database may be looser, and the row may be out of date.
    if row is not None and any(canonical(str(value or "")) == alias for value in row):
        return str(row[0])
    return name


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
    account = Account.objects.using(kwargs["using"]).filter(pk=instance.pk).first()
    if account is not None:
        account.sync_aliases(instance)


def _validate(user: Any, password: str, meta: Mapping[str, Any] | None) -> None:
    model: Any = type(user)
    name_field, email_field = model.USERNAME_FIELD, model.get_email_field_name()
    errors: dict[str, list[dict[str, str]]] = {}

    def collect(field: str, error: ValidationError) -> None:
        errors.setdefault(field, []).extend(_messages(error))

    try:
        identifiers.validate_email(email_of(user))
    except ValidationError as error:
        collect("email", error)
    if name_field != email_field:
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
        public = {name_field: "username", email_field: "email"}
        for check in (
            lambda: user.clean_fields(exclude={"password"}),
            user.clean,
            # The names are looked for by their canonical form instead; a random key needs no query.
            lambda: user.validate_unique(exclude={name_field, email_field, model._meta.pk.name}),
            lambda: user.validate_constraints(exclude={name_field, email_field}),
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
        return _("This has more than %d bytes of JSON.") % conf.META_MAX_BYTES
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
        (model.get_email_field_name(), email, EmailTaken),
    ):
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
    message = _("This has more than %d characters.") % conf.PASSWORD_MAX_LENGTH
    return _problem("password", message, "max_length")
