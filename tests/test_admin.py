from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path as route
from django.urls import reverse

from accesspass import accounts, mail, sessions
from accesspass.admin import AccountAdmin, SessionAdmin, SessionsOfUserMixin
from accesspass.exceptions import InvalidToken
from accesspass.models import Account, EmailKey, MailRequest, Node, Session
from accesspass.testing import age
from tests.conftest import PASSWORD, MakeUser
from tests.sessions import is_refused, make_node, options

LISTS = ("account", "session", "mailrequest", "node")


class ProjectUserAdmin(SessionsOfUserMixin, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = (get_user_model().USERNAME_FIELD,)


# A project's own admin site, of which this module is the URLconf.
site = admin.AdminSite("own")
site.register(get_user_model(), ProjectUserAdmin)
site.register(Session, SessionAdmin)
urlpatterns = [route("own/", site.urls)]


@pytest.fixture
def root(make_user: MakeUser, client: Client) -> Client:
    user = make_user("root")
    user.is_staff = user.is_superuser = True
    user.save()
    client.force_login(user)
    return client


@pytest.fixture
def staff(make_user: MakeUser) -> Callable[..., Client]:
    """Log in a member of the staff with these permissions and no others."""

    def log_in(*permissions: str) -> Client:
        user = make_user("staff")
        user.is_staff = True
        user.save()
        found = Permission.objects.filter(
            content_type__app_label="accesspass", codename__in=permissions
        )
        assert len(found) == len(permissions)
        user.user_permissions.set(found)
        client = Client()
        client.force_login(user)
        return client

    return log_in


def list_of(name: str) -> str:
    return reverse(f"admin:accesspass_{name}_changelist")


def shown(answer: Any) -> set[Any]:
    assert answer.status_code == 200
    return {row.pk for row in answer.context["cl"].result_list}


def actions(answer: Any) -> set[str]:
    form = answer.context["action_form"]
    return set() if form is None else {name for name, _ in form.fields["action"].choices if name}


def test_the_pages_of_a_session_show_nothing_secret(root: Client, user: Any) -> None:
    pair = sessions.start(user, name="phone")
    row = Session.objects.get(pk=pair.session_id)
    secrets = [pair.access_token, pair.refresh_token, row.refresh_digest, row.access_tokens[0][0]]
    for path in (
        reverse("admin:accesspass_session_changelist"),
        reverse("admin:accesspass_session_change", args=[row.pk]),
    ):
        answer = root.get(path)
        assert answer.status_code == 200
        assert b"phone" in answer.content
        for secret in (*secrets, row.auth_hash, PASSWORD):
            assert secret.encode() not in answer.content


def test_the_action_revokes_sessions(root: Client, user: Any) -> None:
    pairs = [sessions.start(user) for _ in range(2)]
    body = {"action": "revoke", "_selected_action": [str(pairs[0].session_id)]}
    answer = root.post(reverse("admin:accesspass_session_changelist"), body, follow=True)
    assert b"1 session was revoked" in answer.content
    with pytest.raises(InvalidToken):
        sessions.authenticate(pairs[0].access_token)
    sessions.authenticate(pairs[1].access_token)


def test_a_session_cannot_be_added_or_deleted(root: Client, user: Any) -> None:
    pair = sessions.start(user)
    assert root.get(reverse("admin:accesspass_session_add")).status_code == 403
    path = reverse("admin:accesspass_session_delete", args=[pair.session_id])
    assert root.post(path, {"post": "yes"}).status_code == 403
    assert Session.objects.count() == 1


def test_claims_changed_in_the_admin_reach_live_sessions(root: Client, user: Any) -> None:
    pair = sessions.start(user)
    account = Account.objects.get(pk=user.pk)
    path = reverse("admin:accesspass_account_change", args=[account.pk])
    body = {
        "claims": json.dumps({"role": "admin"}),
        "identifiers-TOTAL_FORMS": "0",
        "identifiers-INITIAL_FORMS": "0",
    }
    assert root.get(path).status_code == 200
    assert root.post(path, body).status_code == 302
    assert sessions.authenticate(pair.access_token)[1].claims == {"role": "admin"}


def account_form(**changes: str) -> dict[str, str]:
    forms = {"identifiers-TOTAL_FORMS": "0", "identifiers-INITIAL_FORMS": "0"}
    return {"claims": "{}", **forms, **changes}


def test_the_admin_saves_no_column_that_it_did_not_change(
    root: Client, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions.start(user)
    real = AccountAdmin.save_model

    def overtaken(self: Any, request: Any, obj: Any, *args: Any) -> None:
        # Between the reading of the page and its saving.
        Account.objects.filter(pk=user.pk).update(login_count=9, confirmed_email="x@example.com")
        real(self, request, obj, *args)

    monkeypatch.setattr(AccountAdmin, "save_model", overtaken)
    path = reverse("admin:accesspass_account_change", args=[user.pk])
    assert root.post(path, account_form(claims='{"a": 1}')).status_code == 302
    account = Account.objects.get(pk=user.pk)
    assert (account.login_count, account.confirmed_email) == (9, "x@example.com")
    assert account.claims == {"a": 1}


@pytest.mark.parametrize("claims", ["[1]", '"x"', '{"a": "\\u0000"}', "{", "NaN"])
def test_claims_that_are_none_are_refused_by_the_form(root: Client, user: Any, claims: str) -> None:
    sessions.start(user)
    path = reverse("admin:accesspass_account_change", args=[user.pk])
    assert root.post(path, account_form(claims=claims)).status_code == 200
    assert Account.objects.get(pk=user.pk).claims == {}


@pytest.mark.skipif(get_user_model()._meta.label != "accesspass.User", reason="needs its admin")
def test_a_user_of_ours_can_be_added(root: Client) -> None:
    body = {
        "username": "eve",
        "email": "eve@example.com",
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
    }
    answer = root.post(reverse("admin:accesspass_user_add"), body)
    assert answer.status_code == 302
    eve = get_user_model()._default_manager.get(username="eve")
    assert root.get(reverse("admin:accesspass_user_change", args=[eve.pk])).status_code == 200


def test_dead_letters_are_shown_without_secrets_and_tried_again(
    root: Client, user: Any, mailoutbox: list[Any]
) -> None:
    mail.ask("password_reset", user.email)
    mail.deliver()
    mail.ask("confirm", user.email)
    MailRequest.objects.filter(sent_at=None).update(failed_at=Now(), error="SMTPDataError 552")
    row = MailRequest.objects.get(sent_at=None)
    key = EmailKey.objects.get()
    changes = reverse("admin:accesspass_mailrequest_changelist")
    for state, shown in (("", 2), ("waiting", 0), ("sent", 1), ("failed", 1)):
        answer = root.get(changes, {"state": state} if state else {})
        assert answer.context["cl"].result_count == shown
    answer = root.get(reverse("admin:accesspass_mailrequest_change", args=[row.pk]))
    assert b"SMTPDataError 552" in answer.content
    for secret in (key.digest, key.state, "ap_ek_"):
        assert secret.encode() not in answer.content
    assert root.get(reverse("admin:accesspass_mailrequest_add")).status_code == 403
    ids = list(MailRequest.objects.values_list("pk", flat=True))
    answer = root.post(changes, {"action": "retry", "_selected_action": ids}, follow=True)
    assert b"1 e-mail is tried again" in answer.content
    mail.deliver()
    assert len(mailoutbox) == 2
    assert not MailRequest.objects.filter(sent_at=None).exists()


@pytest.mark.parametrize("name", LISTS)
def test_staff_without_a_permission_sees_no_list(staff: Callable[..., Client], name: str) -> None:
    assert staff().get(list_of(name)).status_code == 403


def test_staff_who_may_only_look_has_no_actions(staff: Callable[..., Client], user: Any) -> None:
    pair = sessions.start(user)
    mail.ask("confirm", user.email)
    MailRequest.objects.update(failed_at=Now(), error="SMTPDataError 552")
    make_node()
    client = staff(*(f"view_{name}" for name in LISTS))
    for name in LISTS:
        answer = client.get(list_of(name))
        assert len(shown(answer)) == 1
        assert actions(answer) == set()
    for name, action, pk in (
        ("session", "revoke", pair.session_id),
        ("account", "revoke_sessions", user.pk),
        ("mailrequest", "retry", MailRequest.objects.get().pk),
    ):
        client.post(list_of(name), {"action": action, "_selected_action": [str(pk)]})
    assert not is_refused(pair.access_token)
    assert MailRequest.objects.get().failed_at is not None


def test_changing_accounts_is_no_right_to_revoke_sessions(
    staff: Callable[..., Client], user: Any
) -> None:
    pair = sessions.start(user)
    client = staff("view_account", "change_account")
    answer = client.get(list_of("account"))
    assert "revoke_sessions" not in actions(answer)
    assert b"?user=" not in answer.content
    body = {"action": "revoke_sessions", "_selected_action": [str(user.pk)]}
    client.post(list_of("account"), body)
    assert not is_refused(pair.access_token)


def test_all_sessions_of_the_selected_accounts_are_revoked(
    staff: Callable[..., Client], make_user: MakeUser
) -> None:
    bob, eve = make_user("bob"), make_user("eve")
    ended, kept = [sessions.start(bob), sessions.start(bob)], sessions.start(eve)
    client = staff("view_account", "change_session")
    body = {"action": "revoke_sessions", "_selected_action": [str(bob.pk)]}
    answer = client.post(list_of("account"), body, follow=True)
    assert b"All sessions of 1 user were revoked." in answer.content
    assert all(is_refused(pair.access_token) for pair in ended)
    assert not is_refused(kept.access_token)
    assert Session.objects.filter(revoked_reason="admin").count() == 2


def test_a_projects_own_admin_of_users_has_the_link_and_the_action(
    root: Client, user: Any, settings: Any
) -> None:
    settings.ROOT_URLCONF = __name__
    pair, other = sessions.start(user), sessions.start(get_user_model().objects.get(is_staff=True))
    app, model = get_user_model()._meta.app_label, get_user_model()._meta.model_name
    users = reverse(f"admin:{app}_{model}_changelist", current_app="own")
    answer = root.get(users)
    link = f"{reverse('admin:accesspass_session_changelist', current_app='own')}?user={user.pk}"
    assert f'href="{link}"' in answer.content.decode()
    assert shown(root.get(link)) == {pair.session_id}
    root.post(users, {"action": "revoke_sessions", "_selected_action": [str(user.pk)]})
    assert is_refused(pair.access_token)
    assert not is_refused(other.access_token)


@pytest.mark.skipif(get_user_model()._meta.label != "accesspass.User", reason="needs its admin")
def test_the_admin_of_our_users_has_the_action(root: Client, user: Any) -> None:
    answer = root.get(reverse("admin:accesspass_user_changelist"), {"is_staff__exact": "0"})
    assert shown(answer) == {user.pk}
    assert "revoke_sessions" in actions(answer)


def test_sessions_are_found_by_their_user_name_address_and_id(
    root: Client, make_user: MakeUser
) -> None:
    bob, eve = make_user("bob"), make_user("eve")
    pair = sessions.start(bob, name="kitchen phone")
    sessions.start(eve, name="laptop")
    Session.objects.filter(pk=pair.session_id).update(ip="192.0.2.77")
    for term in (bob.get_username(), bob.email, "kitchen", "192.0.2.77", str(pair.session_id)):
        assert shown(root.get(list_of("session"), {"q": term})) == {pair.session_id}, term


def test_sessions_are_filtered_by_state(root: Client, user: Any) -> None:
    live, idle = sessions.start(user), sessions.start(user)
    expired, revoked = sessions.start(user, lifetime=60), sessions.start(user, lifetime=60)
    sessions.revoke(revoked.session_id)
    for pair in (expired, revoked):
        age(pair, 61)
    age(idle, 7_300)

    def in_state(state: str) -> set[Any]:
        return shown(root.get(list_of("session"), {"state": state}))

    with options(SESSION_IDLE_LIFETIME=7_200):
        assert in_state("live") == {live.session_id}
        assert in_state("expired") == {idle.session_id, expired.session_id}
        assert in_state("revoked") == {revoked.session_id}
    assert in_state("live") == {live.session_id, idle.session_id}
    assert len(in_state("nonsense")) == 4


def test_accounts_are_found_by_name_address_and_alias(root: Client, make_user: MakeUser) -> None:
    bob, eve = make_user("bob"), make_user("eve")
    for user in (bob, eve):
        Account.objects.for_user(user)
    Account.objects.get(pk=bob.pk).claim_aliases(["robert"])
    Account.objects.filter(pk=bob.pk).update(confirmed_at=Now())
    for term in (bob.get_username(), bob.email, "robert"):
        assert shown(root.get(list_of("account"), {"q": term})) == {bob.pk}, term
    assert shown(root.get(list_of("account"), {"confirmed_at__isempty": "0"})) == {bob.pk}


def test_e_mails_are_found_by_what_was_asked_for_and_for_whom(
    root: Client, make_user: MakeUser
) -> None:
    bob, eve = make_user("bob"), make_user("eve")
    mail.ask("confirm", bob.email)
    mail.ask("confirm", eve.email)
    row = MailRequest.objects.get(identifier=bob.email)
    assert shown(root.get(list_of("mailrequest"), {"q": bob.email})) == {row.pk}
    MailRequest.objects.filter(pk=row.pk).update(user=bob, identifier="")
    assert shown(root.get(list_of("mailrequest"), {"q": bob.email})) == {row.pk}


def test_an_e_mail_that_waits_for_its_next_attempt_is_hurried(
    root: Client, user: Any, mailoutbox: list[Any]
) -> None:
    mail.ask("password_reset", user.email)
    later = Now() + timedelta(hours=1)
    MailRequest.objects.update(lease_until=later, attempts=7, error="SMTPDataError 451")
    ids = list(MailRequest.objects.values_list("pk", flat=True))
    body = {"action": "retry", "_selected_action": ids}
    assert (
        b"1 e-mail is tried again" in root.post(list_of("mailrequest"), body, follow=True).content
    )
    assert mail.deliver() == 1
    assert len(mailoutbox) == 1


def test_an_e_mail_that_is_being_sent_or_was_sent_is_not_sent_twice(
    root: Client, user: Any, mailoutbox: list[Any]
) -> None:
    mail.ask("password_reset", user.email)
    MailRequest.objects.update(attempts=1, error="SMTPDataError 451")
    row = MailRequest.objects.get()
    # Somebody takes it up, for the second time.
    assert mail._claim("default", row.pk) is not None
    body = {"action": "retry", "_selected_action": [row.pk]}
    assert (
        b"0 e-mails are tried again" in root.post(list_of("mailrequest"), body, follow=True).content
    )
    assert mail.deliver() == 0
    MailRequest.objects.update(sent_at=Now(), error="SMTPDataError 451")
    root.post(list_of("mailrequest"), body)
    assert mail.deliver() == 0
    assert mailoutbox == []


def test_the_page_of_nodes_shows_what_they_report(root: Client) -> None:
    make_node(20, host="web-1", pid=1001, applied=100, head=100)
    make_node(10, host="web-2", pid=1002, applied=93, head=93, fresh=False, staleness=7.24)
    make_node(40, host="web-3", pid=1003, epoch="old", last_resync=Now())
    make_node(300, host="web-4", pid=1004)
    answer = root.get(list_of("node"))
    text = answer.content.decode()
    said = "Fresh: 2 · Stale: 1 · Gone: 1 · Of another epoch: 1 · Greatest lag: 7"
    assert said in text
    rows = {row.host: row for row in answer.context["cl"].result_list}
    assert [rows[f"web-{x}"].report.state for x in (1, 2, 3, 4)] == [
        "fresh",
        "stale",
        "fresh",
        "gone",
    ]
    assert "7.2 s" in text
    assert "icon-no" in text  # of another epoch
    for state, count in (("fresh", 2), ("stale", 1), ("gone", 1), ("nonsense", 4)):
        answer = root.get(list_of("node"), {"state": state})
        assert len(shown(answer)) == count
        assert said in answer.content.decode()
    change = reverse("admin:accesspass_node_change", args=[rows["web-3"].pk])
    assert b"1003" in root.get(change).content


def test_nobody_adds_changes_or_deletes_a_node(root: Client) -> None:
    node = make_node()
    change = reverse("admin:accesspass_node_change", args=[node.pk])
    assert root.get(reverse("admin:accesspass_node_add")).status_code == 403
    assert root.post(change, {"host": "else"}).status_code == 403
    delete = reverse("admin:accesspass_node_delete", args=[node.pk])
    assert root.post(delete, {"post": "yes"}).status_code == 403
    body = {"action": "delete_selected", "_selected_action": [str(node.pk)], "post": "yes"}
    root.post(list_of("node"), body)
    assert Node.objects.get().host == "web-1"


def test_an_empty_page_of_nodes_is_a_page(root: Client) -> None:
    assert b"Fresh: 0" in root.get(list_of("node")).content
    assert root.get(list_of("node"), {"nonsense": "1"}).status_code == 302


def test_no_list_asks_more_queries_for_more_rows(root: Client, make_user: MakeUser) -> None:
    def fill(begin: int, end: int) -> None:
        for number in range(begin, end):
            user = make_user(f"user{number}")
            sessions.start(user)
            mail.notify("password_changed", user)
            make_node(host=f"web-{number}")

    def count(name: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert root.get(list_of(name)).status_code == 200
        return len(captured)

    fill(0, 2)
    for name in LISTS:
        count(name)  # content types are read once
    few = {name: count(name) for name in LISTS}
    fill(2, 12)
    assert {name: count(name) for name in LISTS} == few


@pytest.mark.django_db
@pytest.mark.parametrize("model", [Session, MailRequest])
def test_saving_a_page_on_which_nothing_can_be_changed_writes_nothing(
    root: Client, make_user: MakeUser, model: Any
) -> None:
    """Whatever the page was made of may have changed since, as by a revocation."""
    user = make_user("ann")
    sessions.start(user)
    mail.notify(mail.PASSWORD_CHANGED, user)
    row = model.objects.get()
    page = reverse(f"admin:accesspass_{model._meta.model_name}_change", args=[row.pk])
    assert 'name="_' not in root.get(page).content.decode()  # no button
    with CaptureQueriesContext(connection) as captured:
        assert root.post(page, {"_save": "Save"}).status_code == 302
    table = f'UPDATE "{model._meta.db_table}"'
    assert [x["sql"] for x in captured if x["sql"].startswith(table)] == []


@pytest.mark.django_db
@pytest.mark.parametrize("many", [False, True])
def test_who_deletes_an_account_ends_its_sessions_whose_claims_would_go_on(
    root: Client, make_user: MakeUser, many: bool
) -> None:
    user = make_user("ann")
    accounts.set_claims(user, {"role": "admin"})
    pair = sessions.start(user)
    if many:
        page = reverse("admin:accesspass_account_changelist")
        body = {"action": "delete_selected", "_selected_action": [user.pk], "post": "yes"}
    else:
        page = reverse("admin:accesspass_account_delete", args=[user.pk])
        body = {"post": "yes"}
    assert root.post(page, body).status_code == 302
    assert not Account.objects.filter(pk=user.pk).exists()
    assert is_refused(pair.access_token)
