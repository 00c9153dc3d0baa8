from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import IntegrityError, transaction
from django.test import override_settings
from django.utils import timezone

from accesspass.hooks import Hooks
from accesspass.models import Account, Identifier, Session, aliases, new_user_id
from tests.conftest import MakeUser

User: Any = get_user_model()
own_user = pytest.mark.skipif(
    User._meta.label != "accesspass.User", reason="needs AUTH_USER_MODEL = 'accesspass.User'"
)


@pytest.mark.django_db
def test_the_migrations_are_complete() -> None:
    call_command("makemigrations", "--check", "--dry-run", stdout=io.StringIO())


def test_an_account_is_made_when_it_is_first_needed(user: Any) -> None:
    assert not Account.objects.exists()
    account = Account.objects.for_user(user)
    assert account.pk == user.pk
    held = set(Identifier.objects.values_list("value", flat=True))
    assert held == set(aliases(user))
    assert Account.objects.for_user(user) == account
    assert Account.objects.count() == 1


def test_the_first_claimant_keeps_an_alias(make_user: MakeUser) -> None:
    first, second = make_user("bob"), make_user("eve")
    account = Account.objects.for_user(first)
    second.email = first.email.upper()
    Account.objects.for_user(second)
    assert Identifier.objects.get(value="bob@example.com").account == account


def test_two_identifiers_of_one_value_are_refused(user: Any) -> None:
    account = Account.objects.for_user(user)
    with pytest.raises(IntegrityError), transaction.atomic():
        Identifier.objects.create(value="bob@example.com", account=account)


def test_a_changed_address_moves_the_alias(user: Any) -> None:
    Account.objects.for_user(user)
    user.email = "Robert@example.com"
    user.save()
    held = set(Identifier.objects.values_list("value", flat=True))
    assert "robert@example.com" in held
    assert "bob@example.com" not in held


def test_saving_other_fields_leaves_the_aliases_alone(
    user: Any, django_assert_num_queries: Any
) -> None:
    Account.objects.for_user(user)
    user.last_login = timezone.now()
    with django_assert_num_queries(1):
        user.save(update_fields=["last_login"])


def test_saving_a_user_without_account_makes_none(user: Any) -> None:
    user.email = "robert@example.com"
    user.save()
    assert not Account.objects.exists()


def test_deleting_a_user_takes_account_and_aliases_and_keeps_the_session_row(user: Any) -> None:
    Account.objects.for_user(user)
    now = timezone.now()
    session = Session.objects.create(
        user=user, created_at=now, last_used_at=now, refresh_digest="0" * 64
    )
    user.delete()
    assert not Account.objects.exists()
    assert not Identifier.objects.exists()
    session.refresh_from_db()
    assert session.user is None


def test_a_confirmation_is_of_one_address(user: Any) -> None:
    account = Account(user_id=user.pk)
    assert not account.is_confirmed(user)
    account.confirmed_email = user.email
    assert not account.is_confirmed(user)
    account.confirmed_at = timezone.now()
    assert account.is_confirmed(user)
    user.email = "robert@example.com"
    assert not account.is_confirmed(user)
    user.email = account.confirmed_email = ""
    assert not account.is_confirmed(user)


def test_nothing_secret_is_shown(user: Any) -> None:
    now = timezone.now()
    session = Session(
        user=user, created_at=now, last_used_at=now, refresh_digest="f" * 64, nonce="e" * 64
    )
    for secret in (session.refresh_digest, session.nonce, user.password):
        assert secret not in f"{session!r} {session!s} {user!r} {user!s}"


class FewIds(Hooks):
    """Ids that run out: the first two are the same."""

    ids: list[str] = []

    def user_id(self) -> str:
        return self.ids.pop(0)


@own_user
@pytest.mark.django_db
@override_settings(ACCESSPASS={"HOOKS": "tests.test_models.FewIds"})
def test_an_id_in_use_is_exchanged_for_another() -> None:
    FewIds.ids = ["first", "first", "first", "second"]
    one = User.objects.create_user("one", "one@example.com")
    two = User.objects.create_user("two", "two@example.com")
    assert (one.pk, two.pk) == ("first", "second")
    assert User.objects.count() == 2


@own_user
@pytest.mark.django_db
@override_settings(ACCESSPASS={"HOOKS": "tests.test_models.FewIds"})
def test_ids_that_are_always_in_use_end_in_an_error() -> None:
    FewIds.ids = ["first"] * 20
    User.objects.create_user("one", "one@example.com")
    with pytest.raises(IntegrityError):
        User.objects.create_user("two", "two@example.com")


@own_user
@pytest.mark.django_db
def test_an_id_that_was_chosen_is_never_exchanged() -> None:
    User.objects.create_user("one", "one@example.com", id="mine")
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create_user("two", "two@example.com", id="mine")


@own_user
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("username", "email"), [("BOB", "other@example.com"), ("other", "BOB@example.com")]
)
def test_names_are_unique_in_any_case(user: Any, username: str, email: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create_user(username, email)


@own_user
@pytest.mark.django_db
def test_users_without_an_address_do_not_collide() -> None:
    User.objects.create_user("one")
    User.objects.create_user("two")
    assert User.objects.filter(email="").count() == 2


@own_user
@pytest.mark.django_db
def test_a_superuser_may_do_everything() -> None:
    root = User.objects.create_superuser("root", "root@example.com", "pw")
    assert root.is_staff
    assert root.is_superuser
    assert User.objects.get_by_natural_key("root") == root


def test_user_ids_are_short_and_random() -> None:
    found = {new_user_id() for _ in range(100)}
    assert len(found) == 100
    assert {len(x) for x in found} == {12}


class _Replicas:
    """A router that reads from a replica, which is behind."""

    def db_for_read(self, model: type, **hints: Any) -> str:
        raise AssertionError("a replica was read")

    def db_for_write(self, model: type, **hints: Any) -> str:
        return "default"


def test_aliases_are_kept_by_what_the_primary_says(user: Any) -> None:
    Account.objects.for_user(user)
    user.email = "robert@example.com"
    with override_settings(DATABASE_ROUTERS=[_Replicas()]):
        user.save()
    held = set(Identifier.objects.values_list("value", flat=True))
    assert "robert@example.com" in held
    assert "bob@example.com" not in held
