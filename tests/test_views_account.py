"""The account over HTTP: what travels by e-mail, and what needs the present password."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connections
from django.db.models.functions import Now
from django.test import override_settings
from django.urls import resolve, reverse
from django.utils import timezone
from rest_framework import serializers
from rest_framework.test import APIClient

from accesspass import accounts, mail, sessions
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET
from accesspass.exceptions import InvalidCredentials
from accesspass.models import Account, EmailKey, MailRequest, Session
from tests.conftest import PASSWORD, MakeUser
from tests.test_mail import key_in
from tests.test_views import BAD_BODIES, NEW, TOKENS, assert_error, bearer, post, url

User: Any = get_user_model()
NEW_PASSWORD = "another horse battery"
PUBLIC = [
    "confirm",
    "confirm-resend",
    "password-reset",
    "password-reset-confirm",
    "username-forgot",
    "email-change-confirm",
]
SIGNED_IN = ["password-change", "email-change", "account-delete"]
POSTS = [*PUBLIC, *SIGNED_IN]
ON_ITS_WAY = {"detail": "If there is somebody to send it to, an e-mail is on its way."}
separate_username = pytest.mark.skipif(
    User.USERNAME_FIELD == "email", reason="needs a username beside the e-mail address"
)


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    return sessions.start(user)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_INSERTING", 0)


def option(**options: Any) -> Any:
    return override_settings(ACCESSPASS={"BASE_URL": "https://app.example.com", **options})


def key_for(user: Any, purpose: str, mailoutbox: list[Any], **more: Any) -> str:
    """Have a key sent, and return it."""
    mail.notify(purpose, user, **more)
    mail.deliver()
    return key_in(mailoutbox.pop())


def send(api: APIClient, method: str, name: str, body: Any, token: str) -> Any:
    return api.generic(
        method, url(name), json.dumps(body), content_type="application/json", **bearer(token)
    )


def log_in(api: APIClient, name: str, password: str = PASSWORD) -> Any:
    return post(api, "login", {"username": name, "password": password})


@pytest.mark.parametrize("name", [*POSTS, "login"])
def test_a_serializer_may_have_fields_of_ones_own(
    api: APIClient,
    user: Any,
    mailoutbox: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    purposes = {
        "confirm": CONFIRM,
        "password-reset-confirm": PASSWORD_RESET,
        "email-change-confirm": EMAIL_CHANGE,
    }
    body = {
        "username": user.get_username(),
        "email": "new@example.org" if name == "email-change" else user.email,
        "current_password": PASSWORD,
        "password": PASSWORD,
        "new_password": NEW_PASSWORD,
    }
    if name in purposes:
        state = accounts.email_keys.state_of(user)
        more = {"address": "new@example.org", "state": state} if "change" in name else {}
        body["key"] = key_for(user, purposes[name], mailoutbox, **more)
    token = sessions.start(user).access_token if name in SIGNED_IN else ""
    view = resolve(url(name)).func.view_class
    declared = view.serializer_class

    class Further(declared):
        captcha = serializers.CharField()

    monkeypatch.setattr(view, "serializer_class", Further)
    refused = send(api, "POST", name, body, token)
    assert (refused.status_code, list(refused.json()["errors"])) == (400, ["captcha"])
    assert send(api, "POST", name, {**body, "captcha": "3"}, token).status_code < 300


def deliver(mailoutbox: list[Any]) -> list[Any]:
    while mail.deliver():
        pass
    sent = list(mailoutbox)
    mailoutbox.clear()
    return sent


# Confirm


@pytest.mark.django_db
def test_a_registration_is_followed_by_a_key_that_confirms_the_address(
    api: APIClient, mailoutbox: list[Any]
) -> None:
    made = post(api, "register", NEW)
    assert made.status_code == 201
    (message,) = deliver(mailoutbox)
    assert message.to == ["bob@example.com"]
    answer = post(api, "confirm", {"key": key_in(message)})
    assert (answer.status_code, answer.json()) == (200, {})
    account = Account.objects.get()
    assert account.confirmed_email == "bob@example.com"
    token = post(api, "refresh", {"refresh_token": made.json()["refresh_token"]}).json()
    check = api.get(url("check"), **bearer(token["access_token"])).json()
    assert check["email_confirmed"] is True
    assert_error(post(api, "confirm", {"key": key_in(message)}), 400, "invalid_key")


def test_confirming_gives_tokens_if_the_project_says_so(
    api: APIClient, user: Any, mailoutbox: list[Any]
) -> None:
    key = key_for(user, CONFIRM, mailoutbox)
    with option(CONFIRM_LOGS_IN=True):
        answer = post(api, "confirm", {"key": key})
    assert answer.status_code == 200
    assert set(answer.json()) == TOKENS
    check = api.get(url("check"), **bearer(answer.json()["access_token"]))
    assert check.json()["email_confirmed"] is True


def test_a_key_that_is_used_up_is_a_success_whatever_becomes_of_the_session(
    api: APIClient, user: Any, mailoutbox: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_for(user, CONFIRM, mailoutbox)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise InvalidCredentials

    monkeypatch.setattr(sessions, "start", refuse)
    with option(CONFIRM_LOGS_IN=True):
        answer = post(api, "confirm", {"key": key})
    assert (answer.status_code, answer.json()) == (200, {})
    assert Account.objects.get().is_confirmed(user)


@pytest.mark.parametrize("name", ["confirm", "password-reset-confirm", "email-change-confirm"])
def test_a_get_consumes_no_key(api: APIClient, user: Any, name: str, mailoutbox: list[Any]) -> None:
    """Mail scanners follow links."""
    key = key_for(user, CONFIRM, mailoutbox)
    for send_ in (api.get, api.head, api.options):
        assert send_(url(name) + f"?key={key}").status_code == 405
    assert post(api, "confirm", {"key": key}).status_code == 200


@pytest.mark.parametrize("name", ["confirm", "password-reset-confirm", "email-change-confirm"])
@pytest.mark.django_db
def test_every_bad_key_gets_the_same_answer(
    api: APIClient, user: Any, name: str, mailoutbox: list[Any]
) -> None:
    used = key_for(user, CONFIRM, mailoutbox)
    post(api, "confirm", {"key": used})
    expired = key_for(user, PASSWORD_RESET, mailoutbox)
    EmailKey.objects.filter(purpose=PASSWORD_RESET).update(expires_at=Now() - timedelta(seconds=1))
    access = sessions.start(user).access_token
    answers = set()
    for key in ("nonsense", "ap_ek_" + "A" * 76, used, expired, access, "\u00ff" * 82):
        answer = post(api, name, {"key": key, "new_password": NEW_PASSWORD})
        assert_error(answer, 400, "invalid_key")
        answers.add(answer.content)
    assert len(answers) == 1


def test_confirmation_keys_expire(api: APIClient, user: Any, mailoutbox: list[Any]) -> None:
    """The original's confirmation ids never did."""
    key = key_for(user, CONFIRM, mailoutbox)
    EmailKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert_error(post(api, "confirm", {"key": key}), 400, "invalid_key")


# REQUIRE_CONFIRMED_EMAIL


@pytest.mark.django_db
def test_with_required_confirmation_nobody_gets_in_before_it(
    api: APIClient, mailoutbox: list[Any]
) -> None:
    with option(REQUIRE_CONFIRMED_EMAIL=True, CONFIRM_LOGS_IN=True):
        made = post(api, "register", {**NEW, "meta": {"a": 1}})
        assert (made.status_code, made.json()) == (202, ON_ITS_WAY)
        assert not Session.objects.exists()
        refused = log_in(api, "bob@example.com")
        unknown = log_in(api, "nobody@example.com")
        assert_error(refused, 401, "invalid_credentials")
        assert refused.content == unknown.content
        assert dict(refused.headers) == dict(unknown.headers)
        (message,) = deliver(mailoutbox)
        answer = post(api, "confirm", {"key": key_in(message)})
        assert set(answer.json()) == TOKENS
        assert log_in(api, "bob@example.com").status_code == 200
        assert Account.objects.get().meta == {"a": 1}


@pytest.mark.django_db
def test_with_required_confirmation_a_taken_name_gets_the_same_answer(
    api: APIClient, mailoutbox: list[Any]
) -> None:
    with option(REQUIRE_CONFIRMED_EMAIL=True):
        first = post(api, "register", NEW)
        deliver(mailoutbox)
        bodies = [{**NEW, "password": NEW_PASSWORD}, {**NEW, "email": "BOB@Example.com"}]
        if "username" in NEW:
            bodies = [{**x, "username": "other"} for x in bodies]
        for body in bodies:
            answer = post(api, "register", body)
            assert answer.status_code == 202
            assert answer.content == first.content
            assert dict(answer.headers) == dict(first.headers)
        (message,) = deliver(mailoutbox)
        assert message.subject == "You have an account at app.example.com"
        assert message.to == ["bob@example.com"]
        if "username" in NEW:
            answer = post(api, "register", {**NEW, "email": "eve@example.com"})
            assert (answer.status_code, answer.content) == (202, first.content)
            (message,) = deliver(mailoutbox)
            assert message.subject == "Choose another username at app.example.com"
            assert message.to == ["eve@example.com"]
            assert "bob" not in message.body
    assert User.objects.count() == 1
    assert User.objects.get().check_password(PASSWORD)


@pytest.mark.django_db
def test_a_taken_name_takes_as_long_as_a_free_one(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    hashes: list[str] = []
    monkeypatch.setattr(accounts, "_INSERTING", 100)
    monkeypatch.setattr(accounts.time, "sleep", pauses.append)
    monkeypatch.setattr(accounts.time, "monotonic", lambda: 0.0)
    set_password = User.set_password
    monkeypatch.setattr(
        User, "set_password", lambda self, raw: (hashes.append(raw), set_password(self, raw))[1]
    )
    with option(REQUIRE_CONFIRMED_EMAIL=True):
        for _ in range(2):
            assert post(api, "register", NEW).status_code == 202
    assert pauses == [100, 100]
    assert hashes == [PASSWORD, PASSWORD]


@pytest.mark.parametrize("known", [True, False])
def test_a_good_password_for_an_unconfirmed_account_takes_no_more_queries(
    api: APIClient, user: Any, known: bool, django_assert_num_queries: Any
) -> None:
    Account.objects.for_user(user)
    with (
        option(REQUIRE_CONFIRMED_EMAIL=True, THROTTLES={"login": None}),
        django_assert_num_queries(4),
    ):
        name = user.get_username() if known else "nobody"
        assert log_in(api, name).status_code == 401


def test_an_address_that_is_not_the_confirmed_one_lets_nobody_in(api: APIClient, user: Any) -> None:
    Account.objects.for_user(user)
    Account.objects.update(confirmed_email=user.email, confirmed_at=Now())
    with option(REQUIRE_CONFIRMED_EMAIL=True):
        assert log_in(api, user.get_username()).status_code == 200
        Account.objects.update(confirmed_email="old@example.com")
        assert_error(log_in(api, user.get_username()), 401, "invalid_credentials")


# Asking for e-mails


@pytest.mark.parametrize("name", ["confirm-resend", "password-reset", "username-forgot"])
def test_asking_tells_nothing_and_looks_nobody_up(
    api: APIClient, user: Any, name: str, django_assert_num_queries: Any
) -> None:
    field = "email" if name == "username-forgot" else "username"
    answers = set()
    for who in (user.email, "nobody@example.com", user.email.upper(), user.email):
        with option(THROTTLES={"mail": None}), django_assert_num_queries(1):
            answer = post(api, name, {field: who})
        assert (answer.status_code, answer.json()) == (202, ON_ITS_WAY)
        answers.add(str(sorted(answer.headers.items())))
    assert len(answers) == 1


@separate_username
def test_a_forgotten_username_comes_by_mail(
    api: APIClient, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    make_user("bob", "real@example.com")
    for email in ("bob", "REAL@example.com"):
        post(api, "username-forgot", {"email": email})
    (message,) = deliver(mailoutbox)
    assert message.to == ["real@example.com"]
    assert "\nbob\n" in message.body


def test_a_mail_server_that_fails_is_invisible(api: APIClient, user: Any) -> None:
    with override_settings(EMAIL_BACKEND="tests.test_mail.Broken"):
        assert post(api, "password-reset", {"username": user.email}).status_code == 202
        mail.deliver()
    assert MailRequest.objects.get().error == "SMTPDataError 451"


# Reset


@pytest.mark.django_db(transaction=True)
def test_a_reset_sets_the_password_ends_every_session_and_tells(
    api: APIClient, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    """The original's reset revoked nothing."""
    user = make_user()
    tokens = [sessions.start(user) for _ in range(2)]
    post(api, "password-reset", {"username": user.get_username()})
    (message,) = deliver(mailoutbox)
    body = {"key": key_in(message), "new_password": NEW_PASSWORD, "password_confirm": NEW_PASSWORD}
    answer = post(api, "password-reset-confirm", body)
    assert (answer.status_code, answer.content) == (204, b"")
    for pair in tokens:
        assert api.get(url("check"), **bearer(pair.access_token)).status_code == 401
        assert post(api, "refresh", {"refresh_token": pair.refresh_token}).status_code == 401
    assert_error(log_in(api, user.get_username()), 401, "invalid_credentials")
    assert log_in(api, user.get_username(), NEW_PASSWORD).status_code == 200
    assert_error(post(api, "password-reset-confirm", body), 400, "invalid_key")
    (notice,) = deliver(mailoutbox)
    assert notice.subject == "Your password at app.example.com was changed"
    assert Account.objects.get().is_confirmed(user)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"new_password": "short"}, "new_password"),
        ({"new_password": "password1"}, "new_password"),
        ({"new_password": "bob@example.com"}, "new_password"),
        ({"new_password": "x" * 1025}, "new_password"),
        ({"new_password": 1}, "new_password"),
        ({"password_confirm": "different"}, "password_confirm"),
    ],
)
def test_a_password_that_is_refused_leaves_the_key_good(
    api: APIClient, user: Any, changes: dict[str, Any], field: str, mailoutbox: list[Any]
) -> None:
    body = {"key": key_for(user, PASSWORD_RESET, mailoutbox), "new_password": NEW_PASSWORD}
    found = assert_error(post(api, "password-reset-confirm", {**body, **changes}), 400, "invalid")
    assert field in found["errors"]
    assert post(api, "password-reset-confirm", body).status_code == 204


@pytest.mark.parametrize("by", ["reset", "change", "email"])
def test_any_change_makes_other_keys_void(
    api: APIClient, user: Any, by: str, mailoutbox: list[Any]
) -> None:
    """A key for the attacker's address, minted before the victim's reset, is of no use after it."""
    pair = sessions.start(user)
    state = accounts.email_keys.state_of(user)
    eves = key_for(user, EMAIL_CHANGE, mailoutbox, address="eve@example.com", state=state)
    own = key_for(user, EMAIL_CHANGE, mailoutbox, address="bob2@example.com", state=state)
    keys = {
        CONFIRM: key_for(user, CONFIRM, mailoutbox),
        PASSWORD_RESET: key_for(user, PASSWORD_RESET, mailoutbox),
    }
    mail.notify(EMAIL_CHANGE, user, address="eve2@example.com", state=state)  # still waits
    if by == "reset":
        key = keys.pop(PASSWORD_RESET)
        reset = {"key": key, "new_password": NEW_PASSWORD}
        answer = post(api, "password-reset-confirm", reset)
    elif by == "change":
        body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        answer = post(api, "password-change", body, **bearer(pair.access_token))
    else:
        answer = post(api, "email-change-confirm", {"key": own})
    assert answer.status_code == 204
    for name, key in (
        ("email-change-confirm", eves),
        ("confirm", keys[CONFIRM]),
        ("password-reset-confirm", keys.get(PASSWORD_RESET, "")),
    ):
        body = {"key": key, "new_password": "a third horse battery"}
        if key:
            assert_error(post(api, name, body), 400, "invalid_key")
    assert "eve2@example.com" not in [x.to[0] for x in deliver(mailoutbox)]
    user.refresh_from_db()
    assert not user.email.startswith("eve")


# Change the password


@pytest.mark.django_db(transaction=True)
def test_a_changed_password_ends_all_other_sessions(
    api: APIClient, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    user = make_user()
    mine, other = sessions.start(user), sessions.start(user)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    answer = post(api, "password-change", body, **bearer(mine.access_token))
    assert answer.status_code == 204
    assert api.get(url("check"), **bearer(other.access_token)).status_code == 401
    assert post(api, "refresh", {"refresh_token": other.refresh_token}).status_code == 401
    # Access 200 and refresh 401 would be an endless loop for a client.
    assert api.get(url("check"), **bearer(mine.access_token)).status_code == 200
    assert post(api, "refresh", {"refresh_token": mine.refresh_token}).status_code == 200
    assert log_in(api, user.get_username(), NEW_PASSWORD).status_code == 200
    (notice,) = deliver(mailoutbox)
    assert (notice.to, notice.subject) == (
        [user.email],
        "Your password at app.example.com was changed",
    )


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"current_password": "wrong"}, "current_password", "password_incorrect"),
        ({"current_password": "x" * 2000}, "current_password", "max_length"),
        ({"current_password": None}, "current_password", "null"),
        ({"new_password": "short"}, "new_password", "password_too_short"),
        ({"new_password": "bob@example.com"}, "new_password", "password_too_similar"),
        ({"password_confirm": "different"}, "password_confirm", "password_mismatch"),
    ],
)
def test_a_change_of_password_that_is_refused_changes_nothing(
    api: APIClient,
    user: Any,
    pair: sessions.TokenPair,
    changes: dict[str, Any],
    field: str,
    code: str,
) -> None:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD, **changes}
    answer = post(api, "password-change", body, **bearer(pair.access_token))
    assert code in [x["code"] for x in assert_error(answer, 400, "invalid")["errors"][field]]
    user.refresh_from_db()
    assert user.check_password(PASSWORD)
    assert not MailRequest.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("by", ["reset", "change", "delete"])
def test_a_success_that_the_engine_has_not_acknowledged_is_a_202(
    api: APIClient,
    make_user: MakeUser,
    by: str,
    mailoutbox: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = make_user()
    mine, other = sessions.start(user), sessions.start(user)
    key = key_for(user, PASSWORD_RESET, mailoutbox)
    cache = sessions._cache()

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise cache.EngineUnavailable("down")  # type: ignore[attr-defined]

    name, body = {
        "reset": ("password-reset-confirm", {"key": key, "new_password": NEW_PASSWORD}),
        "change": (
            "password-change",
            {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
        ),
        "delete": ("account-delete", {"current_password": PASSWORD}),
    }[by]
    assert api.get(url("check"), **bearer(mine.access_token)).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(type(cache), "publish", unreachable)
        answer = post(api, name, body, **bearer(mine.access_token))
    assert (answer.status_code, answer.json()) == (202, {"sessions_ended": "pending"})
    assert api.get(url("check"), **bearer(other.access_token)).status_code == 401
    assert sessions.tidy() > 0
    assert not Session.objects.filter(publication_pending=True).exists()


# Change the address


@pytest.mark.django_db(transaction=True)
def test_a_new_address_is_confirmed_before_it_counts_and_the_old_one_is_told(
    api: APIClient, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    user = make_user()
    pair = sessions.start(user)
    body = {"current_password": PASSWORD, "email": "New@Example.com"}
    answer = post(api, "email-change", body, **bearer(pair.access_token))
    assert answer.status_code == 202
    (message,) = deliver(mailoutbox)
    assert message.to == ["New@example.com"]
    user.refresh_from_db()
    assert user.email == "bob@example.com"
    assert post(api, "email-change-confirm", {"key": key_in(message)}).status_code == 204
    check = api.get(url("check"), **bearer(pair.access_token)).json()
    assert check["user"]["email"] == "New@example.com"
    assert check["email_confirmed"] is True
    assert log_in(api, "new@example.com").status_code == 200
    assert_error(log_in(api, "bob@example.com"), 401, "invalid_credentials")
    (notice,) = deliver(mailoutbox)
    assert (notice.to, notice.subject) == (
        ["bob@example.com"],
        "Your e-mail address at app.example.com was changed",
    )
    assert_error(post(api, "email-change-confirm", {"key": key_in(message)}), 400, "invalid_key")


def test_the_last_of_two_new_addresses_counts(
    api: APIClient, user: Any, pair: sessions.TokenPair, mailoutbox: list[Any]
) -> None:
    keys = []
    for email in ("typo@example.com", "right@example.com"):
        body = {"current_password": PASSWORD, "email": email}
        post(api, "email-change", body, **bearer(pair.access_token))
        keys += [key_in(x) for x in deliver(mailoutbox)]
    assert_error(post(api, "email-change-confirm", {"key": keys[0]}), 400, "invalid_key")
    assert post(api, "email-change-confirm", {"key": keys[1]}).status_code == 204


def test_an_address_of_another_is_not_told_to_who_asks(
    api: APIClient, make_user: MakeUser, pair: sessions.TokenPair, mailoutbox: list[Any]
) -> None:
    make_user("alice", "alice@example.com")
    answers = []
    for email in ("alice@example.com", "free@example.com"):
        body = {"current_password": PASSWORD, "email": email}
        answers.append(post(api, "email-change", body, **bearer(pair.access_token)))
        (message,) = deliver(mailoutbox)
        assert message.to == [email]
    assert answers[0].content == answers[1].content
    assert answers[0].status_code == answers[1].status_code == 202


@pytest.mark.parametrize("adopted", [True, False])
def test_an_address_that_was_taken_meanwhile_is_refused(
    api: APIClient,
    user: Any,
    make_user: MakeUser,
    pair: sessions.TokenPair,
    adopted: bool,
    mailoutbox: list[Any],
) -> None:
    body = {"current_password": PASSWORD, "email": "new@example.com"}
    post(api, "email-change", body, **bearer(pair.access_token))
    (message,) = deliver(mailoutbox)
    other = make_user("alice", "new@example.com")
    if adopted:
        Account.objects.for_user(other)
    for _ in range(2):
        answer = post(api, "email-change-confirm", {"key": key_in(message)})
        assert_error(answer, 400, "email_taken")
    user.refresh_from_db()
    assert user.email == "bob@example.com"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "new@example.com"}, "current_password"),
        ({"email": "new@example.com", "current_password": "wrong"}, "current_password"),
        ({"email": "nonsense", "current_password": PASSWORD}, "email"),
        ({"email": "a@example.com,b@example.com", "current_password": PASSWORD}, "email"),
        ({"email": ["a@example.com", "b@example.com"], "current_password": PASSWORD}, "email"),
        ({"email": "b\u00f6b@example.com", "current_password": PASSWORD}, "email"),
        ({"email": "a@example.com\r\nBcc: b@example.com", "current_password": PASSWORD}, "email"),
        ({"current_password": PASSWORD}, "email"),
    ],
)
def test_a_bad_change_of_address_is_refused(
    api: APIClient, pair: sessions.TokenPair, body: dict[str, Any], field: str
) -> None:
    answer = post(api, "email-change", body, **bearer(pair.access_token))
    assert field in assert_error(answer, 400, "invalid")["errors"]
    assert not MailRequest.objects.exists()


# The account


def test_the_account_is_shown_without_a_query(
    api: APIClient, user: Any, pair: sessions.TokenPair, django_assert_num_queries: Any
) -> None:
    sessions.publish_now(pair.session_id)
    with django_assert_num_queries(0):
        answer = api.get(url("account"), **bearer(pair.access_token))
    assert answer.status_code == 200
    assert answer.json() == {
        "user": {
            "id": str(user.pk),
            "username": user.get_username(),
            "email": "bob@example.com",
            "meta": {},
        }
    }


@pytest.mark.django_db(transaction=True)
def test_meta_is_changed_and_reaches_the_session(api: APIClient, make_user: MakeUser) -> None:
    pair = sessions.start(make_user())
    for meta in ({"colour": "green"}, {}):
        answer = send(api, "PATCH", "account", {"meta": meta}, pair.access_token)
        assert answer.status_code == 200
        assert answer.json()["user"]["meta"] == meta
        check = api.get(url("check"), **bearer(pair.access_token))
        assert check.json()["user"]["meta"] == meta


@separate_username
@pytest.mark.django_db(transaction=True)
def test_a_username_is_changed_with_the_password(api: APIClient, make_user: MakeUser) -> None:
    pair = sessions.start(make_user())
    body = {"username": "Robert", "current_password": PASSWORD}
    answer = send(api, "PATCH", "account", body, pair.access_token)
    assert answer.status_code == 200
    assert answer.json()["user"]["username"] == "Robert"
    check = api.get(url("check"), **bearer(pair.access_token))
    assert check.json()["user"]["username"] == "Robert"
    assert log_in(api, "robert").status_code == 200
    assert log_in(api, "bob").status_code == 401
    held = Account.objects.get().identifiers.values_list("value", flat=True)
    assert set(held) == {"robert", "bob@example.com"}


@separate_username
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"username": "robert"}, "current_password"),
        ({"username": "robert", "current_password": "wrong"}, "current_password"),
        ({"username": "", "current_password": PASSWORD}, "username"),
        ({"username": "a b", "current_password": PASSWORD}, "username"),
        ({"username": "alice@example.com", "current_password": PASSWORD}, "username"),
        ({"username": "x" * 200, "current_password": PASSWORD}, "username"),
        ({"username": 1, "current_password": PASSWORD}, "username"),
        ({"username": None, "current_password": PASSWORD}, "username"),
        ({"meta": "text"}, "meta"),
        ({"meta": {"a": "x" * 5000}}, "meta"),
        ({"meta": None}, "meta"),
    ],
)
def test_a_bad_change_of_the_account_is_refused(
    api: APIClient, user: Any, pair: sessions.TokenPair, body: dict[str, Any], field: str
) -> None:
    answer = send(api, "PATCH", "account", body, pair.access_token)
    assert field in assert_error(answer, 400, "invalid")["errors"]
    user.refresh_from_db()
    assert user.get_username() == "bob"


@separate_username
@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize("name", ["alice", "ALICE", "\uff41lice"])
def test_a_username_of_another_is_refused(
    api: APIClient, make_user: MakeUser, pair: sessions.TokenPair, adopted: bool, name: str
) -> None:
    alice = make_user("alice")
    if adopted:
        Account.objects.for_user(alice)
    body = {"username": name, "current_password": PASSWORD}
    answer = send(api, "PATCH", "account", body, pair.access_token)
    assert_error(answer, 400, "username_taken")


@pytest.mark.skipif(User.USERNAME_FIELD != "email", reason="needs an e-mail address as username")
def test_a_username_that_is_the_address_is_changed_by_its_own_route(
    api: APIClient, pair: sessions.TokenPair
) -> None:
    body = {"username": "new@example.com", "current_password": PASSWORD}
    answer = send(api, "PATCH", "account", body, pair.access_token)
    assert "username" in assert_error(answer, 400, "invalid")["errors"]


def test_what_a_client_may_not_change_is_ignored(
    api: APIClient, user: Any, pair: sessions.TokenPair
) -> None:
    body = {
        "email": "eve@example.com",
        "password": NEW_PASSWORD,
        "is_staff": True,
        "claims": {"role": "admin"},
        "confirmed_email": user.email,
        "confirmed_at": "2020-01-01",
        "id": "mine",
        "meta": {"role": "admin"},
    }
    assert send(api, "PATCH", "account", body, pair.access_token).status_code == 200
    user.refresh_from_db()
    account = Account.objects.get()
    assert (user.email, user.is_staff) == ("bob@example.com", False)
    assert user.check_password(PASSWORD)
    assert (account.claims, account.confirmed_at) == ({}, None)


@pytest.mark.django_db
def test_no_key_can_be_cast_at_registration(api: APIClient, mailoutbox: list[Any]) -> None:
    """The original's reset key and its expiry could be."""
    body = {
        **NEW,
        "key": "mine",
        "reset_key": "mine",
        "password_reset_key": "mine",
        "password_reset_key_expires_at": 2**31,
        "email_keys": [{"digest": "x", "purpose": PASSWORD_RESET}],
        "accesspass_email_keys": [{"digest": "x"}],
        "confirmed": True,
        "state": "x",
        "language": "de",
        "context": {"state": "x"},
    }
    assert post(api, "register", body).status_code == 201
    assert not EmailKey.objects.exists()
    assert MailRequest.objects.get().context == {}
    assert_error(
        post(api, "password-reset-confirm", {"key": "mine", "new_password": NEW_PASSWORD}),
        400,
        "invalid_key",
    )
    assert len(deliver(mailoutbox)) == 1


# Delete


@pytest.mark.django_db(transaction=True)
def test_a_deleted_account_is_gone_with_its_sessions(
    api: APIClient, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    user = make_user()
    mine, other = sessions.start(user), sessions.start(user)
    key = key_for(user, PASSWORD_RESET, mailoutbox)
    wrong = post(api, "account-delete", {"current_password": "x"}, **bearer(mine.access_token))
    assert "current_password" in assert_error(wrong, 400, "invalid")["errors"]
    body = {"current_password": PASSWORD}
    answer = post(api, "account-delete", body, **bearer(mine.access_token))
    assert (answer.status_code, answer.content) == (204, b"")
    assert not User.objects.exists()
    assert not Account.objects.exists()
    assert not MailRequest.objects.exists()
    for pair in (mine, other):
        assert api.get(url("check"), **bearer(pair.access_token)).status_code == 401
        assert post(api, "refresh", {"refresh_token": pair.refresh_token}).status_code == 401
    answer = post(api, "password-reset-confirm", {"key": key, "new_password": NEW_PASSWORD})
    assert_error(answer, 400, "invalid_key")
    assert post(api, "register", NEW).status_code == 201


# Of every endpoint


@pytest.mark.django_db
@pytest.mark.parametrize("name", [*SIGNED_IN, "account"])
def test_what_needs_a_session_says_so(api: APIClient, name: str) -> None:
    method = "GET" if name == "account" else "POST"
    answer = api.generic(method, url(name), b"{}", content_type="application/json")
    assert_error(answer, 401, "token_required")
    assert answer["WWW-Authenticate"] == "Bearer"
    assert_error(send(api, method, name, {}, "nonsense"), 401, "invalid_token")


@pytest.mark.parametrize("name", [*POSTS, "account"])
@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_bad_body_is_a_400(
    api: APIClient, pair: sessions.TokenPair, name: str, kind: str
) -> None:
    body, code = BAD_BODIES[kind]
    method = "PATCH" if name == "account" else "POST"
    answer = api.generic(
        method,
        url(name),
        body,
        content_type="application/json",
        **bearer(pair.access_token),
    )
    assert_error(answer, 400, code)


@pytest.mark.parametrize("name", [*POSTS, "account"])
@pytest.mark.parametrize(
    "value", [None, 0, 1.5, True, [], ["x"], {}, {"x": "y"}, 10**400, "", "x" * 100_000, "\uffff"]
)
def test_no_value_of_any_type_is_an_internal_error(
    api: APIClient, pair: sessions.TokenPair, name: str, value: Any
) -> None:
    fields = ("username", "email", "key", "new_password", "password_confirm", "current_password")
    body = {**dict.fromkeys(fields, value), "meta": value}
    method = "PATCH" if name == "account" else "POST"
    answer = send(api, method, name, body, pair.access_token)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.json()["code"] in ("invalid", "invalid_key")


@pytest.mark.parametrize("name", [*POSTS, "account"])
def test_every_view_says_what_it_takes(name: str) -> None:
    found = resolve(reverse(f"accesspass:{name}")).func
    view = found.cls
    assert [x.__name__ for x in view.parser_classes] == ["StrictJSONParser"]
    assert [x.__name__ for x in view.renderer_classes] == ["JSONRenderer"]
    wanted = [] if name in PUBLIC else ["TokenAuthentication"]
    assert [x.__name__ for x in view.authentication_classes] == wanted
    permission = "AllowAny" if name in PUBLIC else "IsAuthenticated"
    assert [x.__name__ for x in view.permission_classes] == [permission]
    assert found._non_atomic_requests >= set(connections)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("stale", ["Bearer nonsense", "Basic ::"])
@pytest.mark.django_db
def test_a_stale_header_breaks_no_public_view(api: APIClient, name: str, stale: str) -> None:
    body = {"username": "x", "email": "x@example.com", "key": "x", "new_password": NEW_PASSWORD}
    answer = post(api, name, body, HTTP_AUTHORIZATION=stale)
    assert answer.status_code in (202, 400)
