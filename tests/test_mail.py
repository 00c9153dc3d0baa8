from __future__ import annotations

import logging
import re
import smtplib
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
import pytest
from django.contrib.auth import get_user_model
from django.core.mail.backends.base import BaseEmailBackend
from django.db import OperationalError, connection, connections
from django.db.models.functions import Now
from django.test import override_settings

from accesspass import background, email_keys, mail, sessions
from accesspass.email_keys import CONFIRM, EMAIL_CHANGE, PASSWORD_RESET
from accesspass.exceptions import InvalidToken
from accesspass.hooks import Hooks
from accesspass.models import Account, EmailKey, Identifier, MailRequest
from tests.conftest import MakeUser

User: Any = get_user_model()
separate_username = pytest.mark.skipif(
    User.USERNAME_FIELD == "email", reason="needs a username beside the e-mail address"
)
KEY = re.compile(r"ap_ek_[\w-]{76}")
KEYED = (CONFIRM, PASSWORD_RESET, EMAIL_CHANGE)


def key_in(message: Any) -> str:
    """Return the key in an e-mail, after checking that both of its parts have the same."""
    html = message.alternatives[0][0]
    (key,) = set(KEY.findall(message.body) + KEY.findall(html))
    return str(key)


def make_due() -> None:
    MailRequest.objects.update(lease_until=Now() - timedelta(seconds=1))


class Broken(BaseEmailBackend):
    """Fails, and quotes the message as some servers do."""

    def send_messages(self, messages: Any) -> int:
        raise smtplib.SMTPDataError(451, b"try again: " + messages[0].body.encode())


class Hanging(BaseEmailBackend):
    """Holds on to the message until it is let go."""

    inside, leave = threading.Event(), threading.Event()
    sent: list[str] = []

    def send_messages(self, messages: Any) -> int:
        self.inside.set()
        self.leave.wait(30)
        self.sent.append(messages[0].to[0])
        return len(messages)


class Custom(Hooks):
    def email_context(self, purpose: str, user: Any, context: Any) -> Any:
        return None if purpose == CONFIRM else {**context, "site": "a\r\nBcc: eve@example.com"}

    def email_from(self, purpose: str, user: Any) -> str:
        return f"{purpose}@example.com"

    def email_language(self, user: Any, language: str) -> str:
        return "fr"


def backend(name: str) -> Any:
    return override_settings(EMAIL_BACKEND=f"tests.test_mail.{name}")


# Asking


def test_asking_inserts_one_row_and_looks_nobody_up(
    user: Any, django_assert_num_queries: Any
) -> None:
    for name in (user.email, user.email, "nobody@example.com", "nobody"):
        with django_assert_num_queries(1) as asked:
            mail.ask(PASSWORD_RESET, name)
        sql = asked.captured_queries[0]["sql"]
        assert sql.startswith("INSERT ")
        assert User._meta.db_table not in sql.replace("accesspass_mailrequest", "")


@pytest.mark.parametrize("name", ["x" * 300, "\ufb03" * 255, "a\0b", "\ud800", ""])
@pytest.mark.django_db
def test_a_name_that_nobody_can_have_is_not_queued(name: str) -> None:
    mail.ask(PASSWORD_RESET, name)
    assert not MailRequest.objects.exists()


def test_one_request_waits_at_a_time(user: Any, mailoutbox: list[Any]) -> None:
    for name in (user.email, user.email.upper(), user.email):
        mail.ask(PASSWORD_RESET, name)
    mail.ask(CONFIRM, user.email)
    assert MailRequest.objects.count() == 2
    mail.deliver()
    assert len(mailoutbox) == 2


def test_a_request_soon_after_the_last_is_dropped(user: Any, mailoutbox: list[Any]) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    mail.deliver()
    for name in (user.email, user.get_username()):
        mail.ask(PASSWORD_RESET, name)
        mail.deliver()
    assert len(mailoutbox) == 1
    assert MailRequest.objects.count() == 1
    MailRequest.objects.update(sent_at=Now() - timedelta(minutes=5, seconds=1))
    mail.ask(PASSWORD_RESET, user.email)
    mail.deliver()
    assert len(mailoutbox) == 2


@pytest.mark.parametrize("purpose", [CONFIRM, PASSWORD_RESET, mail.USERNAME, mail.ADDRESS_TAKEN])
def test_for_an_unknown_name_nothing_is_sent_and_nothing_stays(
    user: Any, purpose: str, mailoutbox: list[Any]
) -> None:
    mail.ask(purpose, "nobody@example.com")
    assert mail.deliver() == 1
    assert mailoutbox == []
    assert not MailRequest.objects.exists()


def test_users_are_found_before_they_have_an_account(
    make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    make_user("Bob", "Bob@example.com")
    mail.ask(PASSWORD_RESET, "BOB@EXAMPLE.COM")
    mail.deliver()
    assert [x.to for x in mailoutbox] == [["Bob@example.com"]]
    assert Account.objects.count() == Identifier.objects.filter(value="bob@example.com").count()


@separate_username
@pytest.mark.parametrize("adopted", [False, True])
def test_users_are_found_by_username_in_any_case(
    make_user: MakeUser, mailoutbox: list[Any], adopted: bool
) -> None:
    user = make_user("Bob", "real@example.com")
    if adopted:
        Account.objects.for_user(user)
    mail.ask(PASSWORD_RESET, "bOB")
    mail.deliver()
    assert [x.to for x in mailoutbox] == [["real@example.com"]]


@separate_username
def test_mail_goes_to_the_stored_address_not_to_a_look_alike(
    make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    make_user("mike", "mike@example.org")
    for name in ("m\u0131ke@example.org", "mike@example.org,eve@example.com", "mi\u212ae@ex"):
        mail.ask(PASSWORD_RESET, name)
    mail.ask(mail.USERNAME, "\uff4dike@example.org")  # the same name under NFKC
    while mail.deliver():
        pass
    assert [x.to for x in mailoutbox] == [["mike@example.org"]]


@pytest.mark.skipif(
    User._meta.label == "accesspass.User", reason="its addresses are unique in any case"
)
def test_old_users_who_share_an_address_but_for_its_case_each_get_their_own(
    make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    first, second = make_user("bob", "z@example.com"), make_user("eve", "Z@example.com")
    mail.ask(PASSWORD_RESET, "z@example.com")
    while mail.deliver():
        pass
    sent = {x.to[0]: email_keys.read(key_in(x), PASSWORD_RESET).user for x in mailoutbox}
    assert sent == {"z@example.com": first, "Z@example.com": second}


@separate_username
def test_a_username_equal_to_anothers_address_takes_no_mail_of_theirs(
    make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    """Users of before: eve is called what bob's address is."""
    bob = make_user("bob", "bob@example.com")
    eve = make_user("bob@example.com", "eve@example.com")
    Account.objects.for_user(eve)
    mail.ask(PASSWORD_RESET, "bob@example.com")
    while mail.deliver():
        pass
    sent = {x.to[0]: email_keys.read(key_in(x), PASSWORD_RESET).user for x in mailoutbox}
    assert sent == {"bob@example.com": bob, "eve@example.com": eve}


def test_a_disabled_user_gets_no_key(user: Any, mailoutbox: list[Any]) -> None:
    user.is_active = False
    user.save()
    mail.ask(PASSWORD_RESET, user.email)
    mail.deliver()
    assert mailoutbox == []


def test_a_user_without_a_password_of_ours_gets_no_reset(user: Any, mailoutbox: list[Any]) -> None:
    user.set_unusable_password()
    user.save()
    mail.ask(PASSWORD_RESET, user.email)
    mail.deliver()
    assert mailoutbox == []


def test_a_confirmed_address_is_not_asked_to_confirm(user: Any, mailoutbox: list[Any]) -> None:
    Account.objects.for_user(user)
    Account.objects.update(confirmed_email=user.email, confirmed_at=Now())
    mail.ask(CONFIRM, user.email)
    mail.deliver()
    assert mailoutbox == []


# Delivering


def test_keys_stand_in_the_mail_and_nowhere_else(
    user: Any, mailoutbox: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        mail.ask(PASSWORD_RESET, user.email)
        with backend("Broken"):
            mail.deliver()
        make_due()
        mail.deliver()
    key = key_in(mailoutbox[0])
    assert email_keys.read(key, PASSWORD_RESET).user == user
    rows = [*MailRequest.objects.values_list(), *EmailKey.objects.values_list()]
    assert EmailKey.objects.count() == 2  # the first one may have been delivered, who knows
    for text in (str(rows), caplog.text):
        assert not KEY.search(text)
        assert key[6:30] not in text
    assert "SMTPDataError 451" in caplog.text


def test_a_failure_is_tried_again_later_and_later_and_then_given_up(
    user: Any, mailoutbox: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    pauses = []
    with backend("Broken"):
        while MailRequest.objects.filter(failed_at=None).exists():
            make_due()
            assert mail.deliver() == 1
            assert mail.deliver() == 0
            row = MailRequest.objects.annotate(now=Now()).get()
            pauses.append(round((row.lease_until - row.now).total_seconds()))
    assert pauses[:-1] == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert row.attempts == len(pauses) == 10
    assert row.error == "SMTPDataError 451"
    assert row.pending_key is None
    given_up = [x for x in caplog.records if x.levelno == logging.ERROR]
    assert [x.getMessage().split(":")[0] for x in given_up] == ["mail.given_up"]
    # A new request is not held up by the dead letter, and that can be tried again.
    mail.ask(PASSWORD_RESET, user.email)
    assert MailRequest.objects.count() == 2
    MailRequest.objects.filter(failed_at=None).delete()
    assert mail.retry(MailRequest.objects.all()) == 1
    assert mail.deliver() == 1
    assert len(mailoutbox) == 1
    assert MailRequest.objects.get().sent_at is not None


def test_a_template_that_fails_is_a_failure_like_others(
    user: Any, tmp_path: Path, settings: Any
) -> None:
    folder = tmp_path / "accesspass" / "email"
    folder.mkdir(parents=True)
    (folder / "confirm.txt").write_text("{% nonsense %}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    mail.ask(CONFIRM, user.email)
    mail.deliver()
    assert MailRequest.objects.get().error == "TemplateSyntaxError"


def test_without_a_base_url_a_key_goes_nowhere(user: Any, mailoutbox: list[Any]) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    with override_settings(ACCESSPASS={}):
        mail.deliver()
    assert mailoutbox == []
    assert MailRequest.objects.get().error == "ImproperlyConfigured"


def test_an_address_that_is_not_one_gets_no_mail(user: Any, mailoutbox: list[Any]) -> None:
    User.objects.filter(pk=user.pk).update(email="a@example.com,b@example.com")
    mail.ask(PASSWORD_RESET, "a@example.com,b@example.com")
    mail.deliver()
    assert mailoutbox == []
    assert MailRequest.objects.get().error == "ValidationError"


def test_within_the_lease_nobody_else_takes_the_row(user: Any) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    pk = MailRequest.objects.get().pk
    assert mail._claim("default", pk) is not None
    assert mail._claim("default", pk) is None
    assert mail.deliver() == 0
    make_due()
    again = mail._claim("default", pk)
    assert again is not None
    assert again.attempts == 2


def test_who_comes_back_after_the_lease_writes_nothing(user: Any, mailoutbox: list[Any]) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    pk = MailRequest.objects.get().pk
    frozen = mail._claim("default", pk)
    assert frozen is not None
    make_due()
    with backend("Broken"):
        mail.deliver()
    mail._deliver("default", frozen)  # wakes up
    row = MailRequest.objects.get()
    assert (row.sent_at, row.attempts, row.error) == (None, 2, "SMTPDataError 451")


@pytest.mark.skipif(
    connection.vendor == "sqlite", reason="threads share no lock on SQLite in memory"
)
@pytest.mark.django_db(transaction=True)
def test_of_many_workers_one_sends(make_user: MakeUser) -> None:
    names = [f"user{x}" for x in range(8)]
    users = [make_user(name) for name in names]
    for user in users:
        mail.ask(PASSWORD_RESET, user.email)
    Hanging.sent.clear()
    Hanging.inside.clear()
    Hanging.leave.clear()
    taken: list[int] = []

    def run() -> None:
        try:
            taken.append(mail.deliver())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(4)]
    with backend("Hanging"):
        for thread in threads:
            thread.start()
        Hanging.inside.wait(30)
        Hanging.leave.set()
        for thread in threads:
            thread.join()
    assert sum(taken) == 8
    assert sorted(Hanging.sent) == sorted(x.email for x in users)


def test_a_request_that_is_void_by_now_is_not_sent(user: Any, mailoutbox: list[Any]) -> None:
    for change in (
        lambda: user.set_password("another horse battery"),
        lambda: setattr(user, "email", "third@example.com"),
    ):
        state = email_keys.state_of(user)
        mail.notify(EMAIL_CHANGE, user, address="new@example.com", state=state)
        change()
        user.save()
        mail.deliver()
    assert mailoutbox == []
    assert not MailRequest.objects.exists()


def test_what_is_voided_while_it_is_being_written_gets_no_key(
    user: Any, mailoutbox: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.notify(EMAIL_CHANGE, user, address="new@example.com", state=email_keys.state_of(user))
    wants = mail._wants_key

    def meanwhile(row: Any, whose: Any) -> bool:
        answer = wants(row, whose)
        email_keys.void(user, EMAIL_CHANGE)
        return answer

    monkeypatch.setattr(mail, "_wants_key", meanwhile)
    mail.deliver()
    assert mailoutbox == []
    assert not EmailKey.objects.exists()


def test_an_address_of_another_user_is_told_to_that_user_alone(
    user: Any, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    eve = make_user("eve")
    for _ in range(2):
        mail.notify(EMAIL_CHANGE, eve, address=user.email.upper(), state=email_keys.state_of(eve))
        mail.deliver()
    assert [(x.to, x.subject) for x in mailoutbox] == [
        ([user.email], "You have an account at app.example.com")
    ]
    assert "eve" not in mailoutbox[0].body
    assert not EmailKey.objects.exists()


def test_purge_forgets_what_is_old(user: Any) -> None:
    for days, field in ((8, "sent_at"), (6, "sent_at"), (31, "failed_at"), (29, "failed_at")):
        MailRequest.objects.create(
            user=user,
            purpose=CONFIRM,
            created_at=Now(),
            lease_until=Now(),
            **{field: Now() - timedelta(days=days)},
        )
    mail.purge()
    assert MailRequest.objects.count() == 2


@pytest.mark.parametrize(("delivery", "sent"), [("thread", 1), ("worker", 0), ("inline", 0)])
def test_the_background_thread_delivers_if_it_is_left_to_threads(
    user: Any, delivery: str, sent: int, mailoutbox: list[Any]
) -> None:
    assert mail.deliver_due in [job.run for job in background.JOBS]
    mail.ask(PASSWORD_RESET, user.email)
    with override_settings(
        ACCESSPASS={"MAIL_DELIVERY": delivery, "BASE_URL": "https://app.example.com"}
    ):
        mail.deliver_due()
    assert len(mailoutbox) == sent


def test_a_slow_mail_server_does_not_keep_the_thread(
    user: Any, make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    for email in (user.email, make_user("eve").email):
        mail.ask(PASSWORD_RESET, email)
    assert mail.deliver(seconds=0) == 0
    assert mail.deliver(seconds=60) == 2


def test_inline_delivery_sends_at_once(user: Any, mailoutbox: list[Any]) -> None:
    inline = {"MAIL_DELIVERY": "inline", "BASE_URL": "https://app.example.com"}
    with override_settings(ACCESSPASS=inline):
        mail.ask(PASSWORD_RESET, user.email)
    assert [x.to for x in mailoutbox] == [[user.email]]


def test_a_database_that_fails_loses_nothing(
    user: Any, mailoutbox: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mail.ask(PASSWORD_RESET, user.email)

    def fail(*args: Any) -> Any:
        raise OperationalError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(email_keys, "mint", fail)
        mail.deliver()
    make_due()
    mail.deliver()
    assert len(mailoutbox) == 1


def test_a_backend_without_a_time_limit_gets_one() -> None:
    smtp = "django.core.mail.backends.smtp.EmailBackend"
    with override_settings(EMAIL_BACKEND=smtp):
        assert mail.connection().timeout == 20
    with override_settings(EMAIL_BACKEND=smtp, EMAIL_TIMEOUT=7):
        assert mail.connection().timeout == 7


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.1 began with MAILERS")
def test_the_default_of_mailers_sends_where_a_project_has_them() -> None:
    console = "django.core.mail.backends.console"
    with override_settings(MAILERS={"default": {"BACKEND": f"{console}.EmailBackend"}}):
        assert type(mail.connection()).__module__ == console


# What stands in them


@pytest.fixture
def sent(user: Any, mailoutbox: list[Any]) -> Any:
    """Send one e-mail of each purpose; returns them by purpose."""
    for purpose in mail.PURPOSES:
        state = email_keys.state_of(user) if purpose == EMAIL_CHANGE else ""
        mail.notify(purpose, user, address="to@example.com", state=state)
    mail.deliver()
    return dict(zip(mail.PURPOSES, mailoutbox, strict=True))


def test_every_email_has_a_subject_a_text_and_an_html_part(sent: dict[str, Any]) -> None:
    for purpose, message in sent.items():
        assert "app.example.com" in message.subject
        assert "app.example.com" in message.body
        assert message.to == ["to@example.com"]
        assert [x[1] for x in message.alternatives] == ["text/html"]
        html = message.alternatives[0][0]
        assert '<html lang="en-us" dir="ltr">' in html
        for part in (message.body, html):
            assert bool(KEY.search(part)) == (purpose in KEYED)
            assert "{" not in part
            assert "None" not in part
        assert "&" not in message.body
        assert message.message()["Auto-Submitted"] == "auto-generated"
    assert len({x.subject for x in sent.values()}) == len(mail.PURPOSES)


def test_links_have_the_key_in_the_fragment(sent: dict[str, Any]) -> None:
    for purpose, path in (
        (CONFIRM, "/confirm#key="),
        (PASSWORD_RESET, "/reset-password#key="),
        (EMAIL_CHANGE, "/confirm-email#key="),
    ):
        link = "https://app.example.com" + path + key_in(sent[purpose])
        assert link in sent[purpose].body.split()
        assert f'<a href="{link}">' in sent[purpose].alternatives[0][0]


def test_the_lifetime_is_said(sent: dict[str, Any]) -> None:
    assert "within 2\xa0hours" in sent[PASSWORD_RESET].body
    assert "within 1\xa0day" in sent[CONFIRM].body


def test_links_are_the_projects(user: Any, mailoutbox: list[Any]) -> None:
    own = {"BASE_URL": "https://app.example.com/shop/", "LINKS": {"confirm": "/#/c?k={key}"}}
    with override_settings(ACCESSPASS=own):
        mail.notify(CONFIRM, user)
        mail.notify(PASSWORD_RESET, user)
        mail.deliver()
    assert "https://app.example.com/shop/#/c?k=ap_ek_" in mailoutbox[0].body
    assert "https://app.example.com/shop/reset-password#key=ap_ek_" in mailoutbox[1].body


@separate_username
def test_values_are_escaped_in_html_and_as_they_are_in_text(
    make_user: MakeUser, mailoutbox: list[Any]
) -> None:
    make_user("<b>&'bob", "bob@example.com")
    mail.ask(mail.USERNAME, "bob@example.com")
    mail.deliver()
    assert "<b>&'bob" in mailoutbox[0].body
    assert "<b>" not in mailoutbox[0].alternatives[0][0]
    assert "&lt;b&gt;&amp;&#x27;bob" in mailoutbox[0].alternatives[0][0]


def test_hooks_change_context_sender_and_language_or_send_nothing(
    user: Any, mailoutbox: list[Any]
) -> None:
    own = {"BASE_URL": "https://app.example.com", "HOOKS": "tests.test_mail.Custom"}
    with override_settings(ACCESSPASS=own):
        mail.notify(CONFIRM, user)
        mail.notify(PASSWORD_RESET, user)
        mail.deliver()
    (message,) = mailoutbox
    assert message.from_email == "password_reset@example.com"
    assert "\n" not in message.subject
    assert "Bcc: eve@example.com" in message.subject
    assert message.recipients() == [user.email]
    assert message.message()["Bcc"] is None
    assert "2\xa0heures" in message.body
    assert '<html lang="fr"' in message.alternatives[0][0]


def test_templates_of_the_project_come_first(
    user: Any, mailoutbox: list[Any], tmp_path: Path, settings: Any
) -> None:
    folder = tmp_path / "accesspass" / "email"
    folder.mkdir(parents=True)
    (folder / "confirm.subject.txt").write_text("Hello\n from\r\nus\n")
    (folder / "confirm.txt").write_text("Go to {{ link }}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    mail.ask(CONFIRM, user.email)
    mail.deliver()
    assert mailoutbox[0].subject == "Hello from us"
    assert mailoutbox[0].body.startswith("Go to https://app.example.com/confirm#key=")
    assert "Confirm my e-mail address" in mailoutbox[0].alternatives[0][0]


def test_an_email_is_in_the_language_of_the_account_or_else_of_the_request(
    user: Any, mailoutbox: list[Any], rf: Any
) -> None:
    request = rf.get("/", headers={"Accept-Language": "de-AT,de;q=0.9"})
    mail.notify(PASSWORD_RESET, user, request=request)
    mail.deliver()
    assert "2\xa0Stunden" in mailoutbox[0].body
    Account.objects.update(language="ar")
    mail.notify(PASSWORD_RESET, user, request=request)
    mail.deliver()
    assert '<html lang="ar" dir="rtl">' in mailoutbox[1].alternatives[0][0]


@pytest.mark.parametrize("header", ["", "x" * 5000, "\0", "de;q=" + "9" * 5000, "*", ",,;;"])
def test_no_language_that_is_asked_for_breaks_it(
    user: Any, mailoutbox: list[Any], rf: Any, header: str
) -> None:
    mail.ask(PASSWORD_RESET, user.email, request=rf.get("/", HTTP_ACCEPT_LANGUAGE=header))
    mail.deliver()
    assert len(mailoutbox) == 1


@pytest.mark.django_db(transaction=True)
def test_a_refresh_token_used_twice_is_told_to_the_user(
    make_user: MakeUser, mailoutbox: list[Any], settings: Any
) -> None:
    settings.ACCESSPASS = {**settings.ACCESSPASS, "REFRESH_GRACE": 0}
    user = make_user()
    pair = sessions.start(user)
    sessions.refresh(pair.refresh_token)
    with pytest.raises(InvalidToken):
        sessions.refresh(pair.refresh_token)
    mail.deliver()
    assert [(x.to, x.subject) for x in mailoutbox] == [
        ([user.email], "A session of yours at app.example.com was ended")
    ]
