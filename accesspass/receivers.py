"""What saving and deleting a user does to the user's sessions: receivers of Django's signals.

``apps`` connects them to the user model, its proxies and its children.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import get_hasher, identify_hasher
from django.db import connections, router
from django.views.decorators.debug import sensitive_variables

from accesspass import records, sessions
from accesspass.models import Account, Session

__all__ = ["user_deleting", "user_saved", "user_saving"]

# On an instance: a password was set and the save that followed did not write it.
_UNSAVED = "_accesspass_password_unsaved"
# On an instance, while it is being saved: hashes of the password that it keeps.
_OLD_HASHES = "_accesspass_old_hashes"


@sensitive_variables()
def user_saving(instance: Any, update_fields: Sequence[str] | None = None, **_: Any) -> None:
    """``pre_save`` of the user model.

    A ``request.user`` that was built from a record may be seconds old: saving it must not write
    back privileges that were taken away meanwhile, so what the view has not changed is reloaded.
    """
    instance.__dict__.pop(_OLD_HASHES, None)  # a save that failed has left it
    if not isinstance(instance, get_user_model()) or instance._state.adding:
        return
    database = router.db_for_write(Session)
    concerned = records.recorded_fields(get_user_model())
    if connections[database].in_atomic_block and (
        update_fields is None or not concerned.isdisjoint(update_fields)
    ):
        # Inside a transaction the user's row would stay locked before the account's.
        Account.objects.lock(instance.pk, database)
    if old_hashes := _hashes_kept(database, instance, update_fields):
        instance.__dict__[_OLD_HASHES] = old_hashes
    if "_accesspass_recorded" in instance.__dict__:
        _reload_unchanged(instance, update_fields)


def user_saved(
    instance: Any, created: bool, update_fields: Sequence[str] | None = None, **_: Any
) -> None:
    """``post_save`` of the user model: what has changed bites at once."""
    if not isinstance(instance, get_user_model()):
        return
    if update_fields is None or "password" in update_fields:
        instance.__dict__.pop(_UNSAVED, None)
    elif instance.__dict__.get("_password") is not None:
        # Django forgets at the end of this save that it was set.
        instance.__dict__[_UNSAVED] = True
    if created:
        return
    recorded = records.recorded_fields(type(instance))
    if update_fields is None or not recorded.isdisjoint(update_fields):
        sessions.sync(instance, instance.__dict__.pop(_OLD_HASHES, ()))


def user_deleting(instance: Any, **_: Any) -> None:
    """``pre_delete`` of the user model: revoke first, the account's lock before the sessions'.

    The collector's own order is the reverse and would meet a refresh head on.
    """
    if isinstance(instance, get_user_model()):
        sessions.let_go(instance)


def _reload_unchanged(instance: Any, update_fields: Sequence[str] | None) -> None:
    names, values = instance.__dict__["_accesspass_recorded"]
    written = set(names if update_fields is None else update_fields)
    # By either name: `org` is written as `org_id`, which is what is recorded.
    written |= {f.attname for f in instance._meta.concrete_fields if f.name in written}
    written -= {f.attname for f in instance._meta.concrete_fields if f.primary_key}
    unchanged = [
        name
        for name, value in zip(names, values, strict=True)
        if name in written and getattr(instance, name) == value
    ]
    if unchanged:
        rows = type(instance)._base_manager.using(instance._state.db)
        row = rows.filter(pk=instance.pk).values(*unchanged).first()
        for name, value in (row or {}).items():
            setattr(instance, name, value)
    # It may be saved again.
    instance.__dict__["_accesspass_recorded"] = (
        names,
        tuple(
            getattr(instance, x) if x in written else v for x, v in zip(names, values, strict=True)
        ),
    )


@sensitive_variables()
def _hashes_kept(database: str, instance: Any, update_fields: Sequence[str] | None) -> list[str]:
    """Return the auth hashes that stand for the password still, if this save rehashes it only.

    Django upgrades an outdated hash at a login by ``set_password``, ``_password = None`` and
    ``save(update_fields=["password"])``. An instance that was saved before has ``_password`` None
    too, so the row must tell: its hash is outdated, and the new one is not. When in doubt it is a
    change of password, which ends sessions.
    """
    if (
        update_fields is None
        or set(update_fields) != {"password"}
        or instance.__dict__.get("_password", "") is not None
        or instance.__dict__.get(_UNSAVED)
    ):
        return []
    row = sessions.select_user(database, instance.pk)
    if row is None or _is_outdated(row.password) is not True:
        return []
    if _is_outdated(instance.password) is not False:
        return []
    return records.auth_hashes(row)


@sensitive_variables()
def _is_outdated(encoded: str) -> bool | None:
    """Whether Django would replace this hash at the next login; None if nobody could log in."""
    try:
        hasher = identify_hasher(encoded)
    except ValueError:
        return None  # unusable, or of a hasher that is not there any more
    preferred = get_hasher("default")
    return hasher.algorithm != preferred.algorithm or preferred.must_update(encoded)
