"""What the audit log holds. `tests/test_audit.py` runs it with the app installed."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import mail as outbox
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from rest_framework.test import APIClient

from accesspass import accounts, background, mail, sessions, signals
from accesspass.audit import receivers
from accesspass.audit.models import Event
from accesspass.models import Account
from tests.documents import module_of, settings_of, shown
from tests.sessions import options, replicated

__all__ = ["replicated"]

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "correct horse battery"
PERSON = {"username": "ann", "email": "ann@example.com", "password": PASSWORD}
AGENT = "Mozilla/5.0 \x07(X11)"


@pytest.fixture
def api() -> APIClient:
    return APIClient(headers={"User-Agent": AGENT, "X-Forwarded-For": "6.6.6.6, 192.0.2.7"})


@pytest.fixture(autouse=True)
def behind_a_proxy() -> Iterator[None]:
    with options(TRUSTED_PROXIES=1):
        yield


@pytest.fixture
def user() -> Any:
    return get_user_model()._default_manager.create_user(**PERSON)


def actions() -> list[str]:
    return list(Event.objects.order_by("pk").values_list("action", flat=True))


def post(api: APIClient, path: str, body: Any = None, *, token: str = "", expect: int) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answer = api.post(f"/auth/{path}", body or {}, format="json", headers=headers)
    assert answer.status_code == expect, answer.content
    return answer.json() if answer.content else {}


def key_of_the_last_mail() -> str:
    mail.deliver()
    return outbox.outbox[-1].body.partition("#key=")[2].split()[0]


def test_every_signal_of_the_library_is_an_action() -> None:
    assert set(receivers.ACTIONS) == {
        *signals.__all__,
        "user_logged_in",
        "user_logged_out",
        "user_login_failed",
    }


def test_the_examples_of_the_page_read_and_anonymise(
    api: APIClient, user: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    app, reading, anonymising = shown("docs/how-to/audit.rst", "python")
    assert settings_of(app)["INSTALLED_APPS"] == settings.INSTALLED_APPS
    body = {"username": user.get_username(), "password": PASSWORD}
    token = post(api, "login/", body, expect=200)["access_token"]
    post(api, "logout/", token=token, expect=204)
    module_of(reading, user=user)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in printed] == actions()[::-1]
    assert all("192.0.2.7" in line for line in printed)
    module_of(anonymising, Event=Event, user_id=user.pk)
    assert not Event.objects.of(user).exists()
    assert not Event.objects.exclude(ip=None).exists()


def test_the_life_of_an_account_is_recorded_with_who_and_from_where(api: APIClient) -> None:
    post(api, "register/", PERSON, expect=201)
    post(api, "confirm/", {"key": key_of_the_last_mail()}, expect=200)
    names = {"username": "Ann@Example.com", "password": PASSWORD}
    tokens = post(api, "login/", names, expect=200)
    post(api, "logout/", token=tokens["access_token"], expect=204)
    assert actions() == [
        "session_started",
        "user_registered",
        "email_confirmed",
        "session_started",
        "user_logged_in",
        "session_revoked",
        "user_logged_out",
    ]
    user = get_user_model()._default_manager.get()
    assert list(Event.objects.of(user)) == list(Event.objects.order_by("-pk"))
    for event in Event.objects.all():
        assert event.username == ("" if event.action == "session_revoked" else "ann")
        assert event.ip == "192.0.2.7"
        assert event.user_agent == "Mozilla/5.0 (X11)"
        assert (event.session_id is not None) is event.action.startswith("session_")
    ended = Event.objects.get(action="session_revoked")
    assert ended.details == {"reason": "logout"}
    assert ended.user_id == user.pk


def test_a_changed_account_and_a_stolen_token_are_recorded_without_addresses(
    api: APIClient, user: Any
) -> None:
    tokens = post(api, "login/", {"username": "ann", "password": PASSWORD}, expect=200)
    token = tokens["access_token"]
    body = {"current_password": PASSWORD, "email": "new@example.com"}
    post(api, "email/change/", body, token=token, expect=202)
    post(api, "email/change/confirm/", {"key": key_of_the_last_mail()}, expect=204)
    body = {"current_password": PASSWORD, "username": "anna"}
    answer = api.patch("/auth/account/", body, format="json", headers=bearer(token))
    assert answer.status_code == 200
    with options(REFRESH_GRACE=0, TRUSTED_PROXIES=1):
        post(api, "refresh/", {"refresh_token": tokens["refresh_token"]}, expect=200)
        post(api, "refresh/", {"refresh_token": tokens["refresh_token"]}, expect=401)
    assert actions()[-4:] == [
        "email_changed",
        "username_changed",
        "session_revoked",
        "refresh_token_reused",
    ]
    changed, stolen = Event.objects.get(action="username_changed"), Event.objects.last()
    assert changed.details == {"old": "ann", "new": "anna"}
    assert stolen is not None
    assert (stolen.ip, stolen.user_id) == ("192.0.2.7", user.pk)
    assert "example.com" not in str(list(Event.objects.values()))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_what_was_typed_as_a_name_is_kept_only_if_it_is_somebodys(
    api: APIClient, user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Account.objects.for_user(user)  # under which any spelling is known
    caplog.set_level(logging.INFO)
    for name in ("ANN@example.com", "my secret password", "x" * 200, "nobody\u202e"):
        post(api, "login/", {"username": name, "password": "wrong"}, expect=401)
    Client().post("/admin/login/", {"username": "ann", "password": "wrong"})
    Client().post("/admin/login/", {"username": "hunter2 hunter2", "password": "wrong"})
    found = Event.objects.order_by("pk").values_list("action", "user_id", "username")
    known, unknown = ("user_login_failed", user.pk, "ann"), ("user_login_failed", "", "")
    assert list(found) == [known, unknown, unknown, unknown, known, unknown]
    everything = str(list(Event.objects.values())) + "".join(str(vars(x)) for x in audited(caplog))
    for typed in ("secret", "xxxx", "nobody", "hunter2", "wrong"):
        assert typed not in everything


def audited(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [x for x in caplog.records if x.name == "accesspass.audit"]


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 5000, None, 7])
def test_whatever_is_tried_as_a_name_is_recorded(name: Any) -> None:
    receivers._failed_login(credentials={"username": name})
    assert actions() == ["user_login_failed"]


def test_a_known_and_an_unknown_name_cost_the_same(user: Any) -> None:
    def cost(name: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            receivers._failed_login(credentials={"username": name})
        return len(captured)

    assert cost("ann") == cost("nobody") > 0


def test_an_event_outlives_its_user_until_it_is_anonymised(api: APIClient, user: Any) -> None:
    tokens = post(api, "login/", {"username": "ann", "password": PASSWORD}, expect=200)
    key, body = str(user.pk), {"current_password": PASSWORD}
    post(api, "account/delete/", body, token=tokens["access_token"], expect=204)
    of_ann = Event.objects.filter(user_id=key)
    count = of_ann.count()
    assert count == Event.objects.count() == len(actions())
    assert of_ann.get(action="account_deleted").username == "ann"
    before = actions()
    assert Event.objects.anonymise(key) == count
    assert actions() == before
    said = str(list(Event.objects.values()))
    for personal in (key, "ann", "192.0.2.7", "Mozilla"):
        assert personal not in said
    assert not Event.objects.exclude(session_id=None).exists()


def test_an_administrator_is_forgotten_where_others_were_acted_on_too(user: Any) -> None:
    details = {"reason": "admin", "by": "root"}
    Event.objects.create(
        created_at=Now(), action="session_revoked", user_id=str(user.pk), details=details
    )
    assert Event.objects.anonymise("root") == 1
    left = Event.objects.get()
    assert (left.user_id, left.details) == (str(user.pk), {"reason": "admin"})


def test_a_receiver_of_the_project_may_anonymise_who_is_deleted(api: APIClient, user: Any) -> None:
    def forget(user_id: Any, **_: Any) -> None:
        Event.objects.anonymise(user_id)

    tokens = post(api, "login/", {"username": "ann", "password": PASSWORD}, expect=200)
    signals.account_deleted.connect(forget)
    try:
        body = {"current_password": PASSWORD}
        post(api, "account/delete/", body, token=tokens["access_token"], expect=204)
    finally:
        signals.account_deleted.disconnect(forget)
    assert "account_deleted" in actions()
    assert not Event.objects.exclude(user_id="", username="").exists()


def test_the_line_has_what_the_row_has(
    api: APIClient, user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    post(api, "login/", {"username": "ann", "password": PASSWORD}, expect=200)
    fields = ("action", "user_id", "username", "session_id", "ip", "user_agent", "details")
    lines = [{name: vars(x)[name] for name in fields} for x in audited(caplog)]
    rows = list(Event.objects.order_by("pk").values(*fields))
    for row in rows:
        row["session_id"] = row["session_id"] and str(row["session_id"])
    assert lines == rows
    assert {x.event for x in audited(caplog)} == {"audit.happened"}  # type: ignore[attr-defined]


def test_a_table_that_is_gone_breaks_no_login_and_is_said(
    api: APIClient, user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(Event)
    try:
        post(api, "login/", {"username": "ann", "password": PASSWORD}, expect=200)
        post(api, "login/", {"username": "ann", "password": "wrong"}, expect=401)
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(Event)
    failed = [x for x in audited(caplog) if vars(x)["event"] == "audit.not_written"]
    assert [vars(x)["action"] for x in failed] == [
        "session_started",
        "user_logged_in",
        "user_login_failed",
    ]


def test_no_error_of_ours_reaches_who_sent_a_signal(
    api: APIClient, user: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receivers, "client_address", lambda _: 1 // 0)
    post(api, "login/", {"username": "ann", "password": PASSWORD}, expect=200)
    post(api, "login/", {"username": "ann", "password": "wrong"}, expect=401)
    assert caplog.text.count("audit.not_recorded: ZeroDivisionError") == 3
    assert "in _record" in caplog.text


def test_an_error_does_not_quote_what_somebody_typed_as_a_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(accounts, "natural_key", fail)
    receivers._failed_login(credentials={"username": "my secret password"})
    (record,) = audited(caplog)
    assert record.exc_info is None  # of which a report by e-mail shows the variables
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_a_row_is_written_after_the_transaction_and_a_failure_spoils_none(
    user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with transaction.atomic():
        signals.password_changed.send(type(user), user=user, request=None)
        assert actions() == []
    assert actions() == ["password_changed"]
    with transaction.atomic():
        signals.password_reset.send(type(user), user=user, request=None)
        transaction.set_rollback(True)
    assert actions() == ["password_changed"]
    assert "password_reset" in caplog.text  # the line says what was tried


def test_what_is_too_old_is_purged_by_the_thread_and_by_the_command(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.start(user)
    accounts.set_claims(user, {})
    sessions.revoke_all(user)
    old = Event.objects.order_by("pk").first()
    assert old is not None
    Event.objects.filter(pk=old.pk).update(created_at=Now() - timedelta(days=181))
    with options(AUDIT_RETENTION=None):
        assert Event.objects.purge() == 0
    monkeypatch.setattr(background, "_last", {})
    background.run_due(["audit"])
    assert actions() == ["session_revoked"]
    Event.objects.update(created_at=Now() - timedelta(days=2))
    said = StringIO()
    with options(AUDIT_RETENTION=timedelta(days=1)):
        call_command("accesspass_purge", stdout=said)
    assert "1 events deleted from the audit log." in said.getvalue()
    assert actions() == []


def test_the_admin_shows_finds_and_changes_nothing(user: Any) -> None:
    user.is_staff = user.is_superuser = True
    user.save()
    root = Client()
    root.force_login(user)
    session = sessions.start(user, name="phone").session_id
    reverse_of = "admin:accesspass_session_changelist"
    body = {"action": "revoke", "_selected_action": [str(session)]}
    root.post(reverse(reverse_of), body)
    ended = Event.objects.get(action="session_revoked")
    assert ended.details == {"reason": "admin", "by": str(user.pk)}
    assert ended.ip is None  # no proxy has said from where
    pages = reverse("admin:accesspass_audit_event_changelist")
    page = reverse("admin:accesspass_audit_event_change", args=[ended.pk])
    for query in (f"q={user.pk}", f"user_id={user.pk}", f"q={session}", "action=session_revoked"):
        answer = root.get(f"{pages}?{query}")
        assert answer.status_code == 200
        assert str(session) in answer.content.decode(), query
    assert str(session) not in root.get(f"{pages}?q={uuid.uuid4()}").content.decode()
    assert root.get(page).status_code == 200
    assert root.post(page, {"action": "forged"}).status_code == 403
    assert root.get(reverse("admin:accesspass_audit_event_add")).status_code == 403
    delete = reverse("admin:accesspass_audit_event_delete", args=[ended.pk])
    assert root.post(delete, {"post": "yes"}).status_code == 403


def test_an_authorised_request_writes_nothing(user: Any, django_assert_num_queries: Any) -> None:
    pair = sessions.start(user)
    caches["accesspass"].get("anything")
    count = Event.objects.count()
    with django_assert_num_queries(0):
        sessions.authenticate(pair.access_token)
    assert Event.objects.count() == count
