from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db.models.functions import Now
from django.test import Client
from django.urls import reverse

from accesspass import mail, sessions
from accesspass.admin import AccountAdmin
from accesspass.exceptions import InvalidToken
from accesspass.models import Account, EmailKey, MailRequest, Session
from tests.conftest import PASSWORD, MakeUser


@pytest.fixture
def root(make_user: MakeUser, client: Client) -> Client:
    user = make_user("root")
    user.is_staff = user.is_superuser = True
    user.save()
    client.force_login(user)
    return client


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
