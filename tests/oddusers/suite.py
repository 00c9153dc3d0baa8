"""What holds for every user model. `tests/test_odd_users.py` runs it with each of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.core.checks import run_checks
from django.db import OperationalError, connection
from django.db.models.signals import post_save
from django.test import override_settings
from rest_framework.test import APIClient

from accesspass import accounts, doctor, sessions
from accesspass.exceptions import InvalidCredentials, InvalidToken, Unavailable
from accesspass.models import Account
from tests.oddusers.models import Club
from tests.sessions import forget, is_refused, options, queries, replicated

__all__ = ["replicated"]

pytestmark = pytest.mark.django_db(transaction=True)

User: Any = get_user_model()
KIND = User.__name__
NAME = {"Number": 7, "Member": "ann", "Stubborn": "ann"}[KIND]
PASSWORD = "correct horse battery"
# By one query where the record does not do.
COST = int(KIND == "Stubborn")


@pytest.fixture
def user() -> Any:
    fields: dict[str, Any] = {User.USERNAME_FIELD: NAME}
    if KIND != "Number":
        fields["email"] = "ann@example.com"
    if KIND == "Member":
        fields["club"] = Club.objects.create(name="chess")
    return User._default_manager.create_user(PASSWORD, **fields)


def test_a_session_begins_is_refreshed_and_ends(user: Any) -> None:
    pair = sessions.start(user)
    with queries(COST):
        found, _ = sessions.authenticate(pair.access_token)
    assert type(found) is User
    assert found == user
    assert found.get_username() == NAME
    forget(pair)
    with queries(1 + COST):
        sessions.authenticate(pair.access_token)
    pair = sessions.refresh(pair.refresh_token)
    user.set_password("another one")
    user.save()
    assert is_refused(pair.access_token)


def test_a_deleted_user_is_refused(user: Any) -> None:
    pair = sessions.start(user)
    user.delete()
    assert is_refused(pair.access_token)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)


def test_the_user_of_a_request_can_be_saved(user: Any) -> None:
    pair = sessions.start(user)
    found, _ = sessions.authenticate(pair.access_token)
    found.save()
    found.refresh_from_db()
    assert User._base_manager.get(pk=user.pk).check_password(PASSWORD)
    assert not is_refused(pair.access_token)


def test_the_sweep_sees_every_user(user: Any) -> None:
    pair = sessions.start(user)
    assert sessions.sweep() == 0
    User._base_manager.filter(pk=user.pk).update(password="!none")
    assert sessions.sweep() == 1
    assert is_refused(pair.access_token)


@pytest.mark.skipif(KIND != "Member", reason="of two tables")
def test_inherited_and_further_fields_come_without_a_query(user: Any) -> None:
    pair = sessions.start(user)
    with queries(0):
        found, _ = sessions.authenticate(pair.access_token)
        assert (found.login, found.email, found.is_active) == ("ann", "ann@example.com", True)
        assert (found.level, found.club_id) == (1, user.club_id)
        assert found.made_by == "from_db"
    user.level = 2
    user.save()
    with queries(0):
        assert sessions.authenticate(pair.access_token)[0].level == 2
    found.save()
    assert User._base_manager.get(pk=user.pk).level == 2


@pytest.mark.skipif(KIND != "Member", reason="has a manager that hides")
def test_a_user_whom_the_manager_hides_is_a_user(user: Any) -> None:
    User._base_manager.filter(pk=user.pk).update(login="hidden")
    user.refresh_from_db()
    pair = sessions.start(user)
    assert not is_refused(pair.access_token)
    sessions.refresh(pair.refresh_token)
    user.is_active = False
    user.save()
    assert is_refused(pair.access_token)


def test_the_doctor_makes_a_user_for_a_session_and_deletes_it() -> None:
    (found,) = [x for x in doctor.examine(try_login=True) if x.subject == "login"]
    assert found.state == "ok", found
    assert not User._base_manager.exists()


def test_the_system_check_says_what_a_record_cannot_make() -> None:
    def found() -> list[str]:
        return [x.id for x in run_checks() if str(x.id).startswith("accesspass.E")]

    assert found() == []
    with options(USER_FROM_RECORD=True):
        assert found() == (["accesspass.E006"] if KIND == "Stubborn" else [])


@pytest.mark.parametrize("confirmed", [False, True])
@pytest.mark.parametrize("name", [NAME, "nobody", "7a", "９", 10**30, "x@example.com", "\u0661"])
def test_a_login_is_never_an_internal_error(user: Any, name: Any, confirmed: bool) -> None:
    body = {"username": str(name), "password": PASSWORD}
    with options(REQUIRE_CONFIRMED_EMAIL=confirmed):
        answer = APIClient().post("/login/", body, format="json")
    assert answer.status_code == (200 if name == NAME and not confirmed else 401)
    backend = "accesspass.backends.IdentifierBackend"
    with override_settings(AUTHENTICATION_BACKENDS=[backend]):
        assert authenticate(username=str(name), password=PASSWORD) == (
            user if name == NAME else None
        )


@pytest.mark.skipif(KIND != "Number", reason="has a name of one spelling")
@pytest.mark.parametrize("name", ["07", "+7", "0_7", " 7"])
def test_another_spelling_of_a_number_passes_no_limit(user: Any, name: str) -> None:
    for backend in (
        "accesspass.backends.IdentifierBackend",
        "django.contrib.auth.backends.ModelBackend",
    ):
        with (
            override_settings(AUTHENTICATION_BACKENDS=[backend]),
            pytest.raises(InvalidCredentials),
        ):
            accounts.log_in(name, PASSWORD)


@pytest.mark.skipif(KIND != "Number", reason="has an e-mail address")
def test_users_without_an_address_register_each_within_their_own_limit() -> None:
    def register(number: int) -> int:
        body = {"username": str(number), "password": PASSWORD, "email": f"x{next(fresh)}@x.example"}
        return APIClient().post("/register/", body, format="json").status_code

    fresh = itertools.count()
    with options(THROTTLES={"register": {"account_network": "2/min"}}):
        assert [register(number) for number in range(4)] == [201] * 4
        # An address that nobody will have makes no other registration of it.
        assert [register(0) for _ in range(2)] == [400, 429]


@pytest.fixture
def eager() -> Iterator[None]:
    """A project that makes the account itself."""

    def make(instance: Any, created: bool, **_: Any) -> None:
        if created:
            Account.objects.for_user(instance)

    post_save.connect(make, sender=User)
    yield
    post_save.disconnect(make, sender=User)


@pytest.mark.parametrize("made", [False, True])
def test_a_registration_is_never_an_internal_error(made: bool, request: Any) -> None:
    if made:
        request.getfixturevalue("eager")
    body = {"username": str(NAME), "password": PASSWORD, "meta": {"a": 1}}
    if KIND != "Number":
        body["email"] = "ann@example.com"
    answer = APIClient().post("/register/", body, format="json")
    assert answer.status_code == 201, answer.json()
    assert Account.objects.get().meta == {"a": 1}
    again = APIClient().post("/register/", body, format="json")
    assert again.status_code == 400
    assert again.json()["code"] in ("username_taken", "email_taken")
    odd = APIClient().post("/register/", {**body, "username": "a b"}, format="json")
    assert odd.status_code == 400


@pytest.mark.skipif(not COST, reason="asks no database")
def test_a_user_who_is_loaded_from_a_database_that_is_down_is_unavailable(user: Any) -> None:
    pair = sessions.start(user)

    def fail(*_: Any) -> None:
        raise OperationalError("the database is down")

    with connection.execute_wrapper(fail), pytest.raises(Unavailable):
        sessions.authenticate(pair.access_token)


def test_plain_sql_is_heard_from_each_table(user: Any) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL has triggers")
    from accesspass import triggers

    triggers.install(connection)
    listener = triggers.Listener(connection)
    try:
        # One stands in the child's table, the other in the parent's.
        for change in ({"level": 3}, {"password": "!"}):
            assert User._base_manager.filter(pk=user.pk).update(**change) == 1
            assert listener.heard(10) == [str(user.pk)], change
    finally:
        listener.close()
        triggers.remove(connection)
