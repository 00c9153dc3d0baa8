from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.exceptions import PermissionDenied
from django.db import connection, connections
from django.db.models.lookups import Exact
from django.test import override_settings
from django.test.utils import register_lookup

from accesspass import accounts, sessions
from accesspass.exceptions import (
    EmailTaken,
    Invalid,
    InvalidCredentials,
    InvalidToken,
    UsernameTaken,
)
from accesspass.models import Account, Identifier, Session
from accesspass.signals import user_registered
from tests.conftest import PASSWORD, MakeUser

User: Any = get_user_model()
separate_username = pytest.mark.skipif(
    User.USERNAME_FIELD == "email", reason="needs a username beside the e-mail address"
)


def register(username: str = "bob", email: str = "bob@example.com", **more: Any) -> Any:
    if User.USERNAME_FIELD == "email":
        username = ""
    return accounts.register(username=username, email=email, **{"password": PASSWORD, **more})


def codes(error: pytest.ExceptionInfo[Invalid]) -> dict[str, list[str]]:
    return {field: [x["code"] for x in found] for field, found in error.value.errors.items()}


# Registering


@pytest.mark.django_db
def test_a_registration_makes_user_account_aliases_and_session() -> None:
    user, pair = register("Bob", "Bob@EXAMPLE.com", meta={"colour": "green"})
    assert user.email == "Bob@example.com"
    assert user.check_password(PASSWORD)
    account = Account.objects.get(pk=user.pk)
    assert account.meta == {"colour": "green"}
    assert account.claims == {}
    held = set(account.identifiers.values_list("value", flat=True))
    assert held == {x.casefold() for x in (user.get_username(), user.email)}
    assert sessions.authenticate(pair.access_token)[0] == user


@separate_username
@pytest.mark.django_db
@pytest.mark.parametrize("name", ["bob", "BOB", "ｂｏｂ"])
def test_a_username_is_taken_in_any_spelling(name: str) -> None:
    register("bob", "bob@example.com")
    with pytest.raises(UsernameTaken):
        register(name, "other@example.com")


@pytest.mark.django_db
@pytest.mark.parametrize("email", ["bob@example.com", "BOB@Example.COM"])
def test_an_address_is_taken_in_any_case(email: str) -> None:
    register("bob", "bob@example.com")
    with pytest.raises(EmailTaken):
        register("other", email)
    assert User.objects.count() == 1


@separate_username
@pytest.mark.django_db
def test_a_username_cannot_be_the_address_of_another() -> None:
    register("bob", "bob@example.com")
    with pytest.raises(Invalid):
        register("bob@example.com", "eve@example.com")


@separate_username
@pytest.mark.django_db
def test_a_username_may_be_ones_own_address() -> None:
    user, _pair = register("bob@example.com", "bob@example.com")
    assert list(Identifier.objects.values_list("value", flat=True)) == ["bob@example.com"]
    assert accounts.log_in("BOB@example.com", PASSWORD)[0] == user


def test_the_names_of_users_who_never_logged_in_are_taken(user: Any) -> None:
    with pytest.raises((UsernameTaken, EmailTaken)):
        register("bob", "other@example.com" if User.USERNAME_FIELD == "username" else user.email)
    with pytest.raises(EmailTaken):
        register("other", user.email)


@separate_username
@pytest.mark.skipif(User._meta.label != "accesspass.User", reason="needs its constraints")
def test_a_constraint_of_the_model_says_which_name_is_taken(make_user: MakeUser) -> None:
    make_user("BOB", "BOB@example.com")  # no account, and neither spelling is looked for
    with pytest.raises(UsernameTaken):
        register("Bob", "other@example.com")
    with pytest.raises(EmailTaken):
        register("other", "Bob@example.com")


@pytest.mark.django_db
@pytest.mark.parametrize("taken", ["bob", "BOB"])
def test_a_name_taken_between_look_and_insert_is_refused(
    taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("bob", "bob@example.com")
    look, looks = accounts._refuse_taken, iter([True])

    def late(user: Any) -> None:
        if not next(looks, False):
            look(user)

    monkeypatch.setattr(accounts, "_refuse_taken", late)
    with pytest.raises((UsernameTaken, EmailTaken)):
        register(taken, "bob@example.com")
    assert User.objects.count() == Account.objects.count() == Session.objects.count() == 1


@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="threads share no lock on SQLite in memory"
)
@pytest.mark.django_db(transaction=True)
def test_of_many_registrations_of_one_name_one_wins() -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        barrier.wait()
        try:
            register()
            outcomes.append("won")
        except (UsernameTaken, EmailTaken) as error:
            outcomes.append(error.code)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4
    assert outcomes.count("won") == 1
    assert User.objects.count() == Account.objects.count() == Session.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("values", "field", "code"),
    [
        ({"email": "bob"}, "email", "invalid"),
        ({"email": "a@example.com,b@example.com"}, "email", "invalid"),
        ({"email": "böb@example.com"}, "email", "invalid"),
        ({"password": "short"}, "password", "password_too_short"),
        ({"password": "password1"}, "password", "password_too_common"),
        ({"password": "bob@example.com"}, "password", "password_too_similar"),
        ({"password": "x" * 1025}, "password", "max_length"),
        ({"password": "good enough\0"}, "password", "invalid"),
        ({"password": "good enough\ud800"}, "password", "invalid"),
        ({"meta": ["admin"]}, "meta", "invalid"),
        ({"meta": {"a": "x" * 5000}}, "meta", "invalid"),
        ({"meta": {"a": "\0"}}, "meta", "invalid"),
        ({"meta": {"\ud800": 1}}, "meta", "invalid"),
        ({"meta": {"a": float("inf")}}, "meta", "invalid"),
    ],
)
def test_a_bad_value_is_refused_with_its_field(
    values: dict[str, Any], field: str, code: str
) -> None:
    with pytest.raises(Invalid) as error:
        register(**values)
    assert code in codes(error)[field]
    assert not User.objects.exists()


@separate_username
@pytest.mark.django_db
@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\0b", "x" * 151, "eve@example.com"])
def test_a_bad_username_is_refused(name: str) -> None:
    with pytest.raises(Invalid) as error:
        register(name)
    assert "username" in codes(error)


@pytest.mark.skipif(User.USERNAME_FIELD != "email", reason="needs an e-mail address as username")
@pytest.mark.django_db
def test_where_the_username_is_the_address_another_one_is_refused() -> None:
    with pytest.raises(Invalid) as error:
        accounts.register(username="bob", email="bob@example.com", password=PASSWORD)
    assert "username" in codes(error)
    accounts.register(username="BOB@example.com", email="bob@example.com", password=PASSWORD)


@pytest.mark.django_db
def test_a_password_of_the_greatest_length_is_taken_whole() -> None:
    password = " " + "é" * 1022 + " "
    user, _pair = register(password=password)
    assert user.check_password(password)
    assert not user.check_password(password.strip())
    assert not user.check_password(password[:-1])


@pytest.mark.django_db
def test_a_registration_is_announced() -> None:
    heard: list[Any] = []

    def listen(sender: Any, **kwargs: Any) -> None:
        heard.append((sender, kwargs["user"], kwargs["request"]))

    user_registered.connect(listen)
    try:
        user, _pair = register()
    finally:
        user_registered.disconnect(listen)
    assert heard == [(User, user, None)]


@pytest.mark.django_db
def test_meta_never_becomes_claims_or_rights() -> None:
    meta = {"role": "admin", "is_staff": True}
    user, pair = register(meta=meta, data={"is_staff": True, "claims": {"role": "admin"}})
    _user, record = sessions.authenticate(pair.access_token)
    assert record.claims == {}
    assert not user.is_staff


# Logging in


@pytest.mark.parametrize("name", ["bob@example.com", "BOB@EXAMPLE.COM", "ｂｏｂ@example.com"])
def test_a_login_takes_the_address_in_any_spelling(user: Any, name: str) -> None:
    Account.objects.for_user(user)
    assert accounts.log_in(name, PASSWORD)[0] == user


@separate_username
@pytest.mark.parametrize("name", ["bob", "BOB", "Bob", "ＢＯＢ"])
def test_a_login_takes_the_username_in_any_spelling(user: Any, name: str) -> None:
    Account.objects.for_user(user)
    assert accounts.log_in(name, PASSWORD)[0] == user


def test_a_user_without_account_logs_in_by_the_exact_name_and_gets_one(user: Any) -> None:
    assert accounts.log_in(user.get_username(), PASSWORD)[0] == user
    assert Account.objects.get(pk=user.pk).login_count == 1
    assert accounts.log_in(user.email.upper(), PASSWORD)[0] == user
    assert Account.objects.get(pk=user.pk).login_count == 2


@separate_username
def test_an_old_user_named_like_anothers_address_shuts_nobody_out(make_user: MakeUser) -> None:
    bob = make_user("bob", "bob@example.com")
    twin = make_user("bob@example.com", "twin@example.com", password="another battery staple")
    assert accounts.log_in("bob", PASSWORD)[0] == bob
    assert accounts.log_in("bob@example.com", "another battery staple")[0] == twin
    assert accounts.log_in("bob", PASSWORD)[0] == bob


def test_an_outdated_alias_leads_to_nobody(user: Any) -> None:
    Account.objects.for_user(user)
    User.objects.filter(pk=user.pk).update(email="robert@example.com")  # past post_save
    assert accounts.natural_key("bob@example.com") == "bob@example.com"


@separate_username
def test_a_save_of_an_instance_that_is_out_of_date_keeps_newer_aliases(user: Any) -> None:
    account = Account.objects.for_user(user)
    stale = User.objects.get(pk=user.pk)
    user.email = "new@example.com"
    user.save()
    stale.username = "robert"
    stale.save(update_fields=["username"])
    held = account.identifiers.values_list("value", flat=True)
    assert set(held) == {"robert", "new@example.com"}


class Loose(Exact):
    """Tells no accents apart, as the collations of MySQL do."""

    def as_sqlite(self, compiler: Any, connection: Any, **_: Any) -> tuple[str, Any]:
        sql, params = super().as_sql(compiler, connection)
        return sql.replace(" = ", " COLLATE loose = "), params


@pytest.fixture
def loose_usernames(db: None) -> Iterator[None]:
    if connection.vendor != "sqlite":
        pytest.skip("tests/abuse/test_guessing.py has a collation of PostgreSQL's own")

    def fold(text: str) -> str:
        letters = unicodedata.normalize("NFD", text)
        return "".join(x for x in letters if not unicodedata.combining(x)).casefold()

    def compare(one: str, other: str) -> int:
        return (fold(one) > fold(other)) - (fold(one) < fold(other))

    connection.ensure_connection()
    connection.connection.create_collation("loose", compare)
    with register_lookup(User._meta.get_field(User.USERNAME_FIELD), Loose):
        yield


@pytest.mark.parametrize("backend", ["django.contrib.auth", "accesspass"])
@pytest.mark.parametrize("password", [PASSWORD, "wrong"])
@pytest.mark.usefixtures("loose_usernames")
def test_a_spelling_that_the_database_alone_takes_for_a_name_logs_nobody_in(
    make_user: MakeUser, backend: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = make_user("bob")
    Account.objects.for_user(user)
    hashes: list[str] = []
    encode = MD5PasswordHasher.encode

    def counted(self: Any, password: str, salt: str) -> str:
        hashes.append(password)
        return encode(self, password, salt)

    name = str(user.get_username()).replace("o", "\u00f3", 1)
    assert User._base_manager.get(**{User.USERNAME_FIELD: name}) == user
    path = {"accesspass": "accesspass.backends.IdentifierBackend"}
    path["django.contrib.auth"] = "django.contrib.auth.backends.ModelBackend"
    monkeypatch.setattr(MD5PasswordHasher, "encode", counted)
    with override_settings(AUTHENTICATION_BACKENDS=[path[backend]]):
        with pytest.raises(InvalidCredentials):
            accounts.log_in(name, password)
        assert hashes == [password]
        if backend == "accesspass":
            assert authenticate(username=name, password=password) is None
        assert accounts.log_in(user.get_username(), PASSWORD)[0] == user


@pytest.mark.parametrize(
    "name", ["bob@example.com", "nobody@example.com", "x" * 255, "\ufdfa" * 20]
)
def test_a_wrong_name_and_a_wrong_password_are_refused_alike(user: Any, name: str) -> None:
    with pytest.raises(InvalidCredentials):
        accounts.log_in(name, "wrong")


def test_a_password_is_compared_as_it_was_typed(make_user: MakeUser) -> None:
    user = make_user(password=" spaces around ")
    assert accounts.log_in(user.get_username(), " spaces around ")[0] == user
    with pytest.raises(InvalidCredentials):
        accounts.log_in(user.get_username(), "spaces around")


def test_a_disabled_user_is_refused_like_an_unknown_one(user: Any) -> None:
    user.is_active = False
    user.save()
    with pytest.raises(InvalidCredentials):
        accounts.log_in(user.get_username(), PASSWORD)


@pytest.mark.parametrize("password", ["x\0", "x\ud800", "x" * 1025])
def test_a_password_that_cannot_be_one_is_not_hashed(
    user: Any, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MD5PasswordHasher, "encode", lambda *args: pytest.fail("hashed"))
    with pytest.raises(Invalid):
        accounts.log_in(user.get_username(), password)


@pytest.mark.parametrize("name", ["x\0", "x\ud800"])
def test_a_name_that_no_database_takes_makes_no_query(
    user: Any, name: str, django_assert_num_queries: Any
) -> None:
    with django_assert_num_queries(0), pytest.raises(Invalid):
        accounts.log_in(name, PASSWORD)


def test_an_unknown_name_costs_as_many_hashes_and_queries_as_a_known_one(
    user: Any, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    hashes: list[str] = []
    encode = MD5PasswordHasher.encode

    def counted(self: Any, password: str, salt: str) -> str:
        hashes.append(password)
        return encode(self, password, salt)

    Account.objects.for_user(user)
    monkeypatch.setattr(MD5PasswordHasher, "encode", counted)
    for name in (user.get_username(), user.email, user.email.upper(), "nobody"):
        hashes.clear()
        with django_assert_num_queries(3), pytest.raises(InvalidCredentials):
            accounts.log_in(name, "wrong password")
        assert hashes == ["wrong password"], name


def test_logins_are_announced_as_django_does(user: Any, rf: Any) -> None:
    heard: list[tuple[str, Any]] = []

    def good(sender: Any, **kwargs: Any) -> None:
        heard.append(("good", kwargs))

    def bad(sender: Any, **kwargs: Any) -> None:
        heard.append(("bad", kwargs))

    user_logged_in.connect(good)
    user_login_failed.connect(bad)
    try:
        request = rf.post("/")
        accounts.log_in(user.get_username(), PASSWORD, request=request)
        with pytest.raises(InvalidCredentials):
            accounts.log_in(user.get_username(), "wrong", request=request)
    finally:
        user_logged_in.disconnect(good)
        user_login_failed.disconnect(bad)
    assert [kind for kind, _ in heard] == ["good", "bad"]
    assert heard[0][1]["user"] == user
    assert heard[0][1]["request"] is request
    assert "wrong" not in str(heard[1][1]["credentials"])
    user.refresh_from_db()
    assert user.last_login is not None


def test_a_logout_is_announced_once_as_django_does(user: Any, rf: Any) -> None:
    pair = sessions.start(user)
    request, heard = rf.post("/"), []

    def receiver(sender: Any, **kwargs: Any) -> None:
        heard.append((sender, kwargs["user"], kwargs["request"]))

    user_logged_out.connect(receiver)
    try:
        for _ in range(2):
            sessions.logout(
                access_token=pair.access_token, refresh_token=pair.refresh_token, request=request
            )
        sessions.logout(access_token="nonsense", request=request)
    finally:
        user_logged_out.disconnect(receiver)
    assert heard == [(type(user), user, request)]


@pytest.mark.django_db(transaction=True)
def test_a_login_republishes_nothing(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sessions.start(user)
    published: list[bytes] = []
    publish = sessions._publish_one

    def noted(cache: Any, session: Any, *args: Any) -> Any:
        published.append(session.pk.bytes)
        return publish(cache, session, *args)

    monkeypatch.setattr(sessions, "_publish_one", noted)
    _user, pair = accounts.log_in(user.get_username(), PASSWORD)
    user.refresh_from_db()
    assert user.last_login is not None
    assert published == [pair.session_id.bytes]
    assert Session.objects.get(pk=before.session_id).revision == 1


class Refusing:
    """A backend that wants more than the password, which is right."""

    calls: list[Any] = []

    def authenticate(self, request: Any, **credentials: Any) -> Any:
        Refusing.calls.append(credentials)
        if User.objects.get().check_password(credentials["password"]):
            raise PermissionDenied
        return None


class NeverAsked:
    def authenticate(self, request: Any, **credentials: Any) -> Any:
        raise AssertionError("a backend behind the one that refused was asked")


def test_nothing_is_asked_beside_the_projects_backends(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2024-21543: a plain check of the password let people past a second factor."""
    Refusing.calls = []
    asked: list[Any] = []

    def once(request: Any = None, **credentials: Any) -> Any:
        asked.append(credentials)
        return authenticate(request, **credentials)

    monkeypatch.setattr(accounts, "authenticate", once)
    backends = ["tests.test_accounts.Refusing", "tests.test_accounts.NeverAsked"]
    with override_settings(AUTHENTICATION_BACKENDS=backends), pytest.raises(InvalidCredentials):
        accounts.log_in(user.get_username(), PASSWORD)
    assert len(asked) == len(Refusing.calls) == 1
    assert not Session.objects.exists()


# Claims


def test_changed_claims_reach_live_sessions(user: Any) -> None:
    pair = sessions.start(user, claims={"device": "phone"})
    accounts.set_claims(user, {"role": "admin"})
    _user, record = sessions.authenticate(pair.access_token)
    assert record.claims == {"role": "admin", "device": "phone"}


def test_claims_that_are_not_json_are_refused(user: Any) -> None:
    for claims in ({"a": object()}, {"a": "\0"}, {"a": float("nan")}):
        with pytest.raises(Invalid):
            accounts.set_claims(user, claims)


def test_json_of_any_depth_is_judged_without_recursion() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert accounts.json_problem(nested)
    assert accounts.json_problem({"a": [1, 2.5, None, True, "x", {"b": []}]}) is None


def test_a_foreign_token_is_refused(user: Any) -> None:
    with pytest.raises(InvalidToken):
        sessions.authenticate("nonsense")
