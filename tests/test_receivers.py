"""What saving and deleting a user does to the sessions."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.db import transaction
from django.test import override_settings

from accesspass import accounts, sessions
from accesspass.models import Account, Session
from tests.sessions import is_refused, make_user, queries, replicated, user

__all__ = ["replicated", "user"]

pytestmark = pytest.mark.django_db(transaction=True)

# The hash of every user is outdated under these.
NEW_HASHERS = [
    "django.contrib.auth.hashers.PBKDF2SHA1PasswordHasher",
    *settings.PASSWORD_HASHERS,
]


@pytest.mark.parametrize("field", ["is_active", "password"])
def test_a_ban_and_a_new_password_end_sessions_at_once(user: Any, field: str) -> None:
    pair = sessions.start(user)
    if field == "password":
        user.set_password("another one")
    else:
        user.is_active = False
    user.save()
    with queries(0):
        assert is_refused(pair.access_token)


def test_staff_flags_and_addresses_bite_at_once_without_ending_the_session(user: Any) -> None:
    pair = sessions.start(user)
    user.is_superuser = True
    user.email = "new@example.com"
    user.save()
    with queries(0):
        found, _ = sessions.authenticate(pair.access_token)
    assert found.is_superuser
    assert found.email == "new@example.com"


def test_saving_what_is_not_recorded_publishes_nothing(user: Any) -> None:
    pair = sessions.start(user)
    user.save(update_fields=["last_login"])
    user.save()
    assert Session.objects.get(pk=pair.session_id).revision == 1


def test_a_change_inside_a_transaction_that_is_rolled_back_never_happened(user: Any) -> None:
    pair = sessions.start(user)
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        user.is_active = False
        user.save()
        raise ZeroDivisionError
    assert not is_refused(pair.access_token)
    assert Session.objects.get(pk=pair.session_id).revoked_at is None


def test_another_address_is_one_that_is_not_confirmed(user: Any) -> None:
    pair = sessions.start(user)
    Account.objects.filter(pk=user.pk).update(
        confirmed_at=Session.objects.get(pk=pair.session_id).created_at,
        confirmed_email=user.email,
    )
    sessions.sync(user)
    assert sessions.authenticate(pair.access_token)[1].email_confirmed
    user.email = "other@example.com"
    user.save()
    with queries(0):
        assert not sessions.authenticate(pair.access_token)[1].email_confirmed


def test_claims_bite_at_once_without_ending_the_session(user: Any) -> None:
    pair = sessions.start(user)
    accounts.set_claims(user, {"role": "admin"})
    with queries(0):
        assert sessions.authenticate(pair.access_token)[1].claims == {"role": "admin"}


def test_a_user_of_a_request_that_is_saved_twice_writes_no_stale_privileges_back(
    user: Any,
) -> None:
    user.is_superuser = True
    user.save()
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    found.save()
    get_user_model().objects.filter(pk=user.pk).update(is_superuser=False)
    found.save()
    assert not get_user_model().objects.get(pk=user.pk).is_superuser


def test_saving_the_user_of_a_request_writes_no_stale_privileges_back(user: Any) -> None:
    user.is_superuser = True
    user.save()
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    get_user_model().objects.filter(pk=user.pk).update(is_superuser=False)
    found.email = "mine@example.com"
    found.save()
    row = get_user_model().objects.get(pk=user.pk)
    assert row.email == "mine@example.com"
    assert not row.is_superuser
    assert row.has_usable_password()


def test_what_the_view_changed_is_written_and_nothing_else(user: Any) -> None:
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    get_user_model().objects.filter(pk=user.pk).update(is_staff=True)
    found.is_superuser = True
    found.save()
    row = get_user_model().objects.get(pk=user.pk)
    assert row.is_staff
    assert row.is_superuser


def test_saving_some_fields_of_the_user_of_a_request_leaves_the_others(user: Any) -> None:
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    get_user_model().objects.filter(pk=user.pk).update(is_staff=True)
    found.email = "mine@example.com"
    found.save(update_fields=["email", "is_staff"])
    row = get_user_model().objects.get(pk=user.pk)
    assert row.email == "mine@example.com"
    assert row.is_staff


def test_the_user_of_a_request_can_change_the_password(user: Any) -> None:
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    found.set_password("another one")
    found.save()
    assert get_user_model().objects.get(pk=user.pk).check_password("another one")
    assert is_refused(pair.access_token)


def test_deleting_a_user_ends_the_sessions_and_keeps_the_rows(user: Any) -> None:
    pair = sessions.start(user)
    user.delete()
    with queries(0):
        assert is_refused(pair.access_token)
    row = Session.objects.get(pk=pair.session_id)
    assert row.user_id is None
    assert row.revoked_reason == "user_deleted"


def test_deleting_users_in_bulk_ends_their_sessions(user: Any) -> None:
    pairs = [sessions.start(user), sessions.start(make_user("bob"))]
    get_user_model().objects.all().delete()
    assert [is_refused(pair.access_token) for pair in pairs] == [True, True]


def test_a_rehash_of_the_same_password_ends_nothing(user: Any) -> None:
    pair = sessions.start(user)
    with override_settings(PASSWORD_HASHERS=NEW_HASHERS):
        before = user.password
        assert user.check_password("correct horse")
        assert user.password != before
    assert not is_refused(pair.access_token)
    assert sessions.refresh(pair.refresh_token)


def test_a_rehash_after_an_earlier_save_of_the_same_user_ends_nothing(user: Any) -> None:
    user.set_password("correct horse")
    user.save()
    pair = sessions.start(user)
    with override_settings(PASSWORD_HASHERS=NEW_HASHERS):
        assert user.check_password("correct horse")
    assert not is_refused(pair.access_token)


def _set_after_a_save(user: Any) -> None:
    user.set_password("the first")
    user.save()
    user.password = make_password("another one")
    user.save(update_fields=["password"])


def _set_after_a_rehash(user: Any) -> None:
    assert user.check_password("correct horse")
    user.password = make_password("another one")
    user.save(update_fields=["password"])


def _set_before_a_save_of_something_else(user: Any) -> None:
    user.set_password("another one")
    user.save(update_fields=["last_login"])
    user.save(update_fields=["password"])


def _set_after_a_save_that_failed(user: Any) -> None:
    user.password, user._password = make_password("correct horse"), None
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        user.save(update_fields=["password"])
        raise ZeroDivisionError
    user.set_password("another one")
    user.save(update_fields=["password"])


def _made_unusable(user: Any) -> None:
    user._password = None
    user.set_unusable_password()
    user._password = None
    user.save(update_fields=["password"])


@pytest.mark.parametrize(
    "change",
    [
        _set_after_a_save,
        _set_after_a_rehash,
        _set_before_a_save_of_something_else,
        _set_after_a_save_that_failed,
        _made_unusable,
    ],
)
def test_a_change_of_password_is_never_taken_for_a_rehash(user: Any, change: Any) -> None:
    pair = sessions.start(user)
    with override_settings(PASSWORD_HASHERS=NEW_HASHERS):
        change(user)
    assert is_refused(pair.access_token)


def test_a_hash_that_is_current_is_never_rehashed(user: Any) -> None:
    pair = sessions.start(user)
    user.password, user._password = make_password("another one"), None
    user.save(update_fields=["password"])
    assert is_refused(pair.access_token)
