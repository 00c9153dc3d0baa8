"""The account from Python: signals, hooks, races, and users from before."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection, connections
from django.db.models import ProtectedError
from django.dispatch import Signal
from django.test import override_settings
from rest_framework import serializers
from rest_framework.test import APIRequestFactory

from accesspass import accounts, email_keys, mail, sessions, signals, views
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET
from accesspass.exceptions import (
    AccessPassError,
    EmailTaken,
    Invalid,
    InvalidCredentials,
)
from accesspass.hooks import Hooks
from accesspass.models import Account, EmailKey, Identifier, MailRequest, Session, email_of
from accesspass.serializers import AccountSerializer, RegisterSerializer
from tests.conftest import PASSWORD, MakeUser
from tests.test_mail import key_in

User: Any = get_user_model()
NEW_PASSWORD = "another horse battery"
BASE = {"BASE_URL": "https://app.example.com"}
separate_username = pytest.mark.skipif(
    User.USERNAME_FIELD == "email", reason="needs a username beside the e-mail address"
)
threads_share_rows = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="threads share no lock on SQLite in memory"
)
has_first_name = pytest.mark.skipif(
    not any(x.name == "first_name" for x in User._meta.fields), reason="needs a first name"
)


def minted(user: Any, purpose: str, email: str | None = None) -> str:
    Account.objects.for_user(user)
    return email_keys.mint(user, purpose, email_of(user) if email is None else email)


def race(count: int, act: Callable[[int], Any]) -> list[str]:
    """Do it in so many threads at once: return the outcomes, codes of errors and "won"."""
    outcomes: list[str] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait(30)
        try:
            act(number)
            outcomes.append("won")
        except AccessPassError as error:
            outcomes.append(error.code)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(x,)) for x in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == count
    return sorted(outcomes)


# Signals


@pytest.fixture
def heard() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What the public signals have said."""
    found: list[tuple[str, dict[str, Any]]] = []
    names = (
        "email_confirmed",
        "password_changed",
        "password_reset",
        "email_changed",
        "username_changed",
        "account_deleted",
    )
    receivers: list[tuple[Signal, Any]] = []
    for name in names:

        def receive(name: str = name, **kwargs: Any) -> None:
            kwargs.pop("signal")
            found.append((name, kwargs))
            raise RuntimeError("a receiver that fails harms nobody")

        signal = getattr(signals, name)
        signal.connect(receive)
        receivers.append((signal, receive))
    yield found
    for signal, receive in receivers:
        signal.disconnect(receive)


def test_signals_have_the_payload_that_is_documented(user: Any, heard: Any, rf: Any) -> None:
    request = rf.post("/")
    accounts.confirm(minted(user, CONFIRM), request=request)
    accounts.reset_password(minted(user, PASSWORD_RESET), NEW_PASSWORD, request=request)
    accounts.change_password(user, NEW_PASSWORD, PASSWORD, request=request)
    user.refresh_from_db()
    key = minted(user, EMAIL_CHANGE, "new@example.com")
    accounts.confirm_email_change(key, request=request)
    user.refresh_from_db()
    old = user.get_username()
    if User.USERNAME_FIELD == "username":
        accounts.update(user, username="robert", current_password=PASSWORD, request=request)
    pk = user.pk
    user.refresh_from_db()
    name = user.get_username()
    accounts.delete(user, PASSWORD, request=request)
    common = {"sender": User, "request": request}
    someone = {**common, "user": User(pk=pk)}
    renamed = ("username_changed", {**someone, "old": old, "new": "robert"})
    assert heard == [
        ("email_confirmed", someone),
        ("password_reset", someone),
        ("password_changed", someone),
        ("email_changed", {**someone, "old": "bob@example.com", "new": "new@example.com"}),
        *([renamed] if User.USERNAME_FIELD == "username" else []),
        (
            "account_deleted",
            {**common, "user_id": pk, "username": name, "email": "new@example.com"},
        ),
    ]


# Changing


@separate_username
@pytest.mark.parametrize("name", ["bob@example.com", "BOB@Example.com"])
def test_a_username_that_is_the_address_follows_it(
    make_user: MakeUser, heard: Any, name: str
) -> None:
    user = make_user(name, "bob@example.com")
    account = Account.objects.for_user(user)
    found = accounts.confirm_email_change(minted(user, EMAIL_CHANGE, "new@example.com"))
    user.refresh_from_db()
    assert found.get_username() == user.get_username() == user.email == "new@example.com"
    assert list(account.identifiers.values_list("value", flat=True)) == ["new@example.com"]
    email = {"old": "bob@example.com", "new": "new@example.com"}
    assert [(x, {k: y[k] for k in ("old", "new")}) for x, y in heard] == [
        ("email_changed", email),
        ("username_changed", {"old": name, "new": "new@example.com"}),
    ]
    # Whoever has the old address next gets it for a name.
    accounts.register(username=name, email="bob@example.com", password=PASSWORD)


@separate_username
def test_a_username_that_is_the_address_cannot_follow_it_to_anothers(make_user: MakeUser) -> None:
    user = make_user("bob@example.com", "bob@example.com")
    key = minted(user, EMAIL_CHANGE, "NEW@example.com")
    make_user("new@example.com", "new@example.com")
    with pytest.raises(EmailTaken):
        accounts.confirm_email_change(key)
    user.refresh_from_db()
    assert user.get_username() == user.email == "bob@example.com"


@separate_username
def test_an_address_that_the_username_cannot_follow_is_refused(make_user: MakeUser) -> None:
    user = make_user("bob", "bob@example.com")
    long = ".".join([f"{'a' * 60}@{'b' * 60}", "c" * 60, "example.com"])
    accounts.change_email(user, PASSWORD, long)
    key = minted(user, EMAIL_CHANGE, long)
    user.username = "BOB@example.com"
    user.save()
    for act in (
        lambda: accounts.change_email(user, PASSWORD, long),
        lambda: accounts.confirm_email_change(key),  # asked for when it had another name
    ):
        with pytest.raises(Invalid) as error:
            act()
        assert [x["code"] for x in error.value.errors["email"]] == ["max_length"]
    user.refresh_from_db()
    assert (user.get_username(), user.email) == ("BOB@example.com", "bob@example.com")


@separate_username
def test_an_address_given_up_meanwhile_becomes_nobodys_username(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = minted(user, EMAIL_CHANGE, "new@example.com")
    monkeypatch.setattr(
        accounts, "_refuse_bad_fields", lambda *_: accounts.confirm_email_change(key)
    )
    with pytest.raises(Invalid) as error:
        accounts.update(user, username="bob@example.com", current_password=PASSWORD)
    assert list(error.value.errors) == ["username"]
    user.refresh_from_db()
    assert (user.get_username(), user.email) == ("bob", "new@example.com")


def test_a_change_overtaken_by_another_is_refused(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Account.objects.for_user(user)
    hash_new = accounts._hash_new_password

    def meanwhile(*args: Any) -> None:
        hash_new(*args)
        other = User.objects.get(pk=user.pk)
        other.set_password("a third horse battery")
        other.save()

    monkeypatch.setattr(accounts, "_hash_new_password", meanwhile)
    with pytest.raises(Invalid):
        accounts.change_password(user, PASSWORD, NEW_PASSWORD)
    user.refresh_from_db()
    assert user.check_password("a third horse battery")


def test_fields_with_flows_of_their_own_cannot_be_updated(user: Any) -> None:
    for name in ("email", "password"):
        with pytest.raises(ValueError, match="change_"):
            accounts.update(user, fields={name: "x"})


def test_a_user_who_is_gone_changes_nothing(user: Any) -> None:
    User.objects.filter(pk=user.pk).delete()
    for act in (
        lambda: accounts.change_password(user, PASSWORD, NEW_PASSWORD),
        lambda: accounts.change_email(user, PASSWORD, "new@example.com"),
        lambda: accounts.update(user, meta={}),
        lambda: accounts.delete(user, PASSWORD),
    ):
        with pytest.raises(InvalidCredentials):
            act()


class Keeping(Hooks):
    def delete_user(self, user: Any) -> None:
        user.is_active = False
        user.save()


class Protecting(Hooks):
    def delete_user(self, user: Any) -> None:
        raise ProtectedError("invoices", {user})


@pytest.mark.django_db(transaction=True)
def test_a_project_may_keep_the_row_of_who_leaves(make_user: MakeUser) -> None:
    user = make_user()
    sessions.start(user)
    with override_settings(ACCESSPASS={**BASE, "HOOKS": "tests.test_account_flows.Keeping"}):
        assert accounts.delete(user, PASSWORD) is True
    user.refresh_from_db()
    assert not user.is_active
    assert Session.objects.get().revoked_reason == "user_deleted"


@pytest.mark.django_db(transaction=True)
def test_an_account_that_is_still_needed_is_kept_with_its_sessions(make_user: MakeUser) -> None:
    user = make_user()
    pair = sessions.start(user)
    protecting = {**BASE, "HOOKS": "tests.test_account_flows.Protecting"}
    with override_settings(ACCESSPASS=protecting), pytest.raises(Invalid) as error:
        accounts.delete(user, PASSWORD)
    assert error.value.errors["non_field_errors"][0]["code"] == "protected"
    assert sessions.authenticate(pair.access_token)[0] == user


# Races


@threads_share_rows
@pytest.mark.django_db(transaction=True)
def test_of_20_resets_with_one_key_one_wins(make_user: MakeUser) -> None:
    user = make_user()
    key = minted(user, PASSWORD_RESET)
    outcomes = race(20, lambda x: accounts.reset_password(key, f"a horse of number {x}"))
    assert outcomes == ["invalid_key"] * 19 + ["won"]


@threads_share_rows
@pytest.mark.django_db(transaction=True)
def test_of_different_keys_at_once_one_wins(make_user: MakeUser) -> None:
    """Each voids the others."""
    user = make_user()
    keys = [minted(user, PASSWORD_RESET) for _ in range(4)]
    change = minted(user, EMAIL_CHANGE, "eve@example.com")

    def act(number: int) -> None:
        if number < 4:
            accounts.reset_password(keys[number], f"a horse of number {number}")
        else:
            accounts.confirm_email_change(change)

    outcomes = race(5, act)
    assert outcomes == ["invalid_key"] * 4 + ["won"]
    assert EmailKey.objects.filter(spent_at=None).count() == 0


@threads_share_rows
@pytest.mark.django_db(transaction=True)
def test_of_two_changes_to_one_address_one_wins(make_user: MakeUser) -> None:
    users = [make_user(f"user{x}") for x in range(4)]
    keys = [minted(user, EMAIL_CHANGE, "new@example.com") for user in users]
    outcomes = race(4, lambda x: accounts.confirm_email_change(keys[x]))
    assert outcomes.count("won") == 1
    assert set(outcomes) == {"won", "email_taken"}
    assert User.objects.filter(email="new@example.com").count() == 1


@threads_share_rows
@separate_username
@pytest.mark.django_db(transaction=True)
def test_of_two_changes_to_one_username_one_wins(make_user: MakeUser) -> None:
    users = [make_user(f"user{x}") for x in range(4)]
    names = ["robert", "ROBERT", "Robert", "rObert"]
    outcomes = race(
        4, lambda x: accounts.update(users[x], username=names[x], current_password=PASSWORD)
    )
    assert outcomes == ["username_taken"] * 3 + ["won"]


@threads_share_rows
@pytest.mark.django_db(transaction=True)
def test_of_20_quiet_registrations_of_one_name_one_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_INSERTING", 0)
    names = {} if User.USERNAME_FIELD == "email" else {"username": "bob"}
    with override_settings(ACCESSPASS={**BASE, "REQUIRE_CONFIRMED_EMAIL": True}):
        outcomes = race(
            20,
            lambda _: accounts.register_quietly(
                **names, email="bob@example.com", password=PASSWORD
            ),
        )
    assert outcomes == ["won"] * 20
    assert User.objects.count() == Account.objects.count() == 1
    assert MailRequest.objects.filter(purpose=CONFIRM).count() == 1


@pytest.mark.parametrize("taken", ["username", "email"])
@pytest.mark.django_db
def test_a_name_taken_between_look_and_insert_is_told_by_mail(
    taken: str, monkeypatch: pytest.MonkeyPatch, mailoutbox: list[Any]
) -> None:
    monkeypatch.setattr(accounts, "_INSERTING", 0)
    separate = User.USERNAME_FIELD == "username"
    names = {"username": "bob"} if separate else {}
    accounts.register(**names, email="bob@example.com", password=PASSWORD)
    mail.deliver()
    mailoutbox.clear()
    look, looks = accounts._refuse_taken, iter([True])
    monkeypatch.setattr(
        accounts, "_refuse_taken", lambda user: None if next(looks, False) else look(user)
    )
    if taken == "username" and separate:
        names, email = {"username": "BOB"}, "eve@example.com"
    else:
        names, email = ({"username": "eve"} if separate else {}), "BOB@example.com"
    with override_settings(ACCESSPASS={**BASE, "REQUIRE_CONFIRMED_EMAIL": True}):
        accounts.register_quietly(**names, email=email, password=PASSWORD)
    mail.deliver()
    assert [x.to for x in mailoutbox] == [[email if "eve@" in email else "bob@example.com"]]
    assert User.objects.count() == 1


# Further fields by serializers


class Inviting(Hooks):
    seen: list[Any] = []

    def prepare_user(self, user: Any, data: Any) -> None:
        self.seen.append(data.get("invitation"))


class RegisterWithMore(RegisterSerializer):
    first_name = serializers.CharField(max_length=20, required=False)
    invitation = serializers.IntegerField(min_value=1)


class RegisterMore(views.RegisterView):
    serializer_class = RegisterWithMore


class AccountWithMore(AccountSerializer):
    first_name = serializers.CharField(max_length=20, required=False)
    is_staff = serializers.BooleanField(read_only=True)


class AccountMore(views.AccountView):
    serializer_class = AccountWithMore


@pytest.mark.django_db
def test_a_serializer_adds_fields_to_registration() -> None:
    body: dict[str, Any] = {"email": "bob@example.com", "password": PASSWORD, "invitation": "7"}
    if User.USERNAME_FIELD == "username":
        body["username"] = "bob"
    has_name = any(x.name == "first_name" for x in User._meta.fields)
    if has_name:
        body["first_name"] = "Bob"
    view = RegisterMore.as_view()
    make = APIRequestFactory().post
    Inviting.seen.clear()
    with override_settings(ACCESSPASS={**BASE, "HOOKS": "tests.test_account_flows.Inviting"}):
        for wrong in ({}, {"invitation": 0}):
            bad = view(make("/", {**body, "invitation": None, **wrong}, format="json"))
            assert bad.data["errors"].keys() == {"invitation"}
        answer = view(make("/", {**body, "is_staff": True}, format="json"))
    assert answer.status_code == 201
    assert Inviting.seen == [7]  # as the serializer made it, not as it was sent
    user = User.objects.get()
    assert not user.is_staff
    if has_name:
        assert user.first_name == "Bob"


@has_first_name
def test_a_serializer_adds_fields_to_the_account(user: Any) -> None:
    view = AccountMore.as_view()
    pair = sessions.start(user)
    make = APIRequestFactory()
    bearer = {"HTTP_AUTHORIZATION": f"Bearer {pair.access_token}"}
    changes = {"first_name": "Bob", "is_staff": True}
    answer = view(make.patch("/", changes, format="json", **bearer))
    assert answer.status_code == 200
    shown = view(make.get("/", **bearer)).data["user"]
    assert answer.data["user"] == shown
    assert (shown["first_name"], shown["is_staff"]) == ("Bob", False)
    assert set(shown) == {"id", "username", "email", "meta", "first_name", "is_staff"}
    bad = view(make.patch("/", {"first_name": "x" * 21}, format="json", **bearer))
    assert (bad.status_code, list(bad.data["errors"])) == (400, ["first_name"])


# Users from before


def test_users_of_any_origin_work_at_once(
    db: None, mailoutbox: list[Any], make_user: MakeUser
) -> None:
    made = make_user("made", "made@example.com")
    bulk = User(email="bulk@example.com")
    superuser_names = {"email": "root@example.com"}
    if User.USERNAME_FIELD == "username":
        bulk.username, superuser_names["username"] = "bulk", "root"
    bulk.set_password(PASSWORD)
    User.objects.bulk_create([bulk])
    root = User.objects.create_superuser(password=PASSWORD, **superuser_names)
    for user in (made, User.objects.get(email="bulk@example.com"), root):
        mail.ask(PASSWORD_RESET, user.email.upper())
        mail.deliver()
        key = key_in(mailoutbox.pop())
        accounts.reset_password(key, NEW_PASSWORD)
        mail.deliver()
        mailoutbox.clear()
        assert accounts.log_in(user.get_username(), NEW_PASSWORD)[0] == user
        assert accounts.log_in(user.email.upper(), NEW_PASSWORD)[0] == user


def adopt(*words: str) -> list[str]:
    out = io.StringIO()
    call_command("accesspass_adopt", *words, stdout=out)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("size", ["1", "2", "1000"])
def test_adopt_makes_accounts_in_batches_and_may_be_run_again(
    make_user: MakeUser, size: str
) -> None:
    users = [make_user(f"user{x}") for x in range(5)]
    Account.objects.for_user(users[0])
    assert adopt("--batch-size", size) == ["4 users adopted, 0 collisions"]
    assert Account.objects.count() == 5
    for user in users:
        assert accounts.natural_key(user.email.upper()) == user.get_username()
    assert adopt() == ["0 users adopted, 0 collisions"]
    assert not Account.objects.exclude(confirmed_at=None).exists()


def test_adopt_may_take_the_addresses_for_confirmed(make_user: MakeUser) -> None:
    early = make_user("ann")
    adopt()
    users = [make_user("bob"), make_user("eve")]
    adopt("--confirmed")
    assert Account.objects.get(user=early).confirmed_at is None  # who had an account already
    with override_settings(ACCESSPASS={**BASE, "REQUIRE_CONFIRMED_EMAIL": True}):
        for user in users:
            assert accounts.log_in(user.email, PASSWORD)[0] == user


@pytest.mark.skipif(
    User._meta.label == "accesspass.User", reason="its names are unique in any case"
)
def test_adopt_reports_collisions_and_guesses_nothing(make_user: MakeUser) -> None:
    pairs = sorted(
        (
            make_user(name, email)
            for name, email in (("z", "z@example.com"), ("y", "Z@example.com"))
        ),
        key=lambda x: x.pk,
    )
    first, second = pairs
    assert adopt() == [
        f"collision: 'z@example.com' of user {second.pk} belongs to user {first.pk}",
        "2 users adopted, 1 collisions",
    ]
    assert Identifier.objects.get(value="z@example.com").account_id == first.pk
    for user in pairs:
        assert accounts.log_in(user.get_username(), PASSWORD)[0] == user
