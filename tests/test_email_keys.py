from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models.functions import Now
from django.test import override_settings

from accesspass import email_keys, tokens
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET
from accesspass.exceptions import InvalidKey
from accesspass.models import Account, EmailKey, MailRequest, email_of
from accesspass.tokens import TokenType
from tests.conftest import PASSWORD

PURPOSES = (CONFIRM, PASSWORD_RESET, EMAIL_CHANGE)


@pytest.fixture
def owner(user: Any) -> Any:
    Account.objects.for_user(user)
    return user


def mint(user: Any, purpose: str = CONFIRM, email: str | None = None) -> str:
    return email_keys.mint(user, purpose, email_of(user) if email is None else email)


def use(key: object, purpose: str = CONFIRM) -> None:
    row = email_keys.read(key, purpose)
    with transaction.atomic():
        email_keys.consume(row)


def test_a_key_is_good_once(owner: Any) -> None:
    key = mint(owner)
    assert email_keys.read(key, CONFIRM).user == owner
    assert email_keys.read(key, CONFIRM).email == email_of(owner)
    use(key)
    with pytest.raises(InvalidKey):
        use(key)


def test_a_key_that_was_read_before_another_used_it_is_refused(owner: Any) -> None:
    key = mint(owner)
    row = email_keys.read(key, CONFIRM)
    use(key)
    with pytest.raises(InvalidKey), transaction.atomic():
        email_keys.consume(row)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("other", PURPOSES)
def test_a_key_is_good_for_one_purpose(owner: Any, purpose: str, other: str) -> None:
    key = mint(owner, purpose)
    if purpose == other:
        use(key, other)
    else:
        with pytest.raises(InvalidKey):
            use(key, other)


def test_no_usable_key_is_stored(owner: Any) -> None:
    key = mint(owner)
    row = EmailKey.objects.values_list().get()
    assert key not in str(row)
    assert key[10:] not in str(row)
    assert key not in repr(EmailKey.objects.get())


def test_what_was_not_made_here_costs_no_query(owner: Any, django_assert_num_queries: Any) -> None:
    key = mint(owner)
    forged = key[:-1] + ("A" if key[-1] != "A" else "E")
    access = tokens.mint(TokenType.ACCESS, b"x" * 16, 2**31).text
    for bad in (None, 7, "", "nonsense", forged, access, key + "A", "\0", [key], key.upper()):
        with django_assert_num_queries(0), pytest.raises(InvalidKey):
            email_keys.read(bad, CONFIRM)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_key_expires_whatever_timers_do(owner: Any, purpose: str) -> None:
    key = mint(owner, purpose)
    row = email_keys.read(key, purpose)
    seconds = (row.expires_at - row.created_at).total_seconds()
    assert seconds == {PASSWORD_RESET: 7_200}.get(purpose, 86_400)
    EmailKey.objects.update(expires_at=Now() - timedelta(seconds=1))
    with pytest.raises(InvalidKey):
        email_keys.read(key, purpose)
    with pytest.raises(InvalidKey), transaction.atomic():
        email_keys.consume(row)


def test_lifetimes_are_the_projects(owner: Any) -> None:
    with override_settings(ACCESSPASS={"EMAIL_KEY_LIFETIMES": {CONFIRM: timedelta(hours=3)}}):
        row = email_keys.read(mint(owner), CONFIRM)
        assert row.expires_at - row.created_at == timedelta(hours=3)
        row = email_keys.read(mint(owner, PASSWORD_RESET), PASSWORD_RESET)
        assert row.expires_at - row.created_at == timedelta(hours=2)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_another_password_makes_a_key_void(owner: Any, purpose: str) -> None:
    key = mint(owner, purpose)
    owner.set_password("another horse battery")
    owner.save()
    with pytest.raises(InvalidKey):
        use(key, purpose)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_another_address_makes_a_key_void_however_it_came(owner: Any, purpose: str) -> None:
    key = mint(owner, purpose)
    type(owner).objects.filter(pk=owner.pk).update(email="other@example.com")
    with pytest.raises(InvalidKey):
        use(key, purpose)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_change_between_read_and_use_is_seen(owner: Any, purpose: str) -> None:
    row = email_keys.read(mint(owner, purpose), purpose)
    type(owner).objects.filter(pk=owner.pk).update(email="other@example.com")
    with pytest.raises(InvalidKey), transaction.atomic():
        email_keys.consume(row)
    assert EmailKey.objects.get().spent_at is None  # rolled back with the rest


def test_a_disabled_user_has_no_good_key(owner: Any) -> None:
    key = mint(owner)
    owner.is_active = False
    owner.save()
    with pytest.raises(InvalidKey):
        use(key)


def test_the_keys_of_a_deleted_user_go_too(owner: Any) -> None:
    key = mint(owner)
    owner.delete()
    assert not EmailKey.objects.exists()
    with pytest.raises(InvalidKey):
        use(key)


def test_a_rotated_secret_key_leaves_keys_good(owner: Any, settings: Any) -> None:
    key = mint(owner)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another key, of the same length or so"
    use(key)


def test_void_takes_keys_and_the_change_of_address_that_waits(owner: Any, make_user: Any) -> None:
    keys = {purpose: mint(owner, purpose) for purpose in PURPOSES}
    other = make_user("eve")
    Account.objects.for_user(other)
    others = mint(other)
    for user in (owner, other):
        for purpose in (EMAIL_CHANGE, "password_changed"):
            MailRequest.objects.create(
                user=user, purpose=purpose, created_at=Now(), lease_until=Now()
            )
    email_keys.void(owner)
    for purpose, key in keys.items():
        with pytest.raises(InvalidKey):
            use(key, purpose)
    use(others)
    left = MailRequest.objects.order_by("pk").values_list("user", "purpose")
    assert list(left) == [
        (owner.pk, "password_changed"),
        (other.pk, EMAIL_CHANGE),
        (other.pk, "password_changed"),
    ]


def test_void_of_one_purpose_leaves_the_others(owner: Any) -> None:
    confirm, change = mint(owner), mint(owner, EMAIL_CHANGE)
    email_keys.void(owner, EMAIL_CHANGE)
    use(confirm)
    with pytest.raises(InvalidKey):
        use(change, EMAIL_CHANGE)


def test_purge_forgets_keys_long_over(owner: Any) -> None:
    mint(owner)
    email_keys.purge()
    assert EmailKey.objects.count() == 1
    EmailKey.objects.update(expires_at=Now() - timedelta(days=31))
    email_keys.purge()
    assert EmailKey.objects.count() == 0


@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="threads share no lock on SQLite in memory"
)
@pytest.mark.django_db(transaction=True)
def test_of_20_uses_at_once_one_wins(make_user: Any) -> None:
    user = make_user(password=PASSWORD)
    Account.objects.for_user(user)
    key = mint(user)
    outcomes: list[bool] = []
    barrier = threading.Barrier(20)

    def run() -> None:
        try:
            row = email_keys.read(key, CONFIRM)
            barrier.wait(30)
            with transaction.atomic():
                email_keys.consume(row)
            outcomes.append(True)
        except InvalidKey:
            outcomes.append(False)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 19 + [True]
