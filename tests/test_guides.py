"""What the guides on leaks, backups, personal data and clients say is what happens."""

from __future__ import annotations

import contextlib
import io
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import requests
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection
from django.db.models import ProtectedError
from django.db.models.signals import post_delete
from django.test import RequestFactory, override_settings
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient, RequestsClient

from accesspass import accounts, email_keys, mail, sessions, tokens
from accesspass.exceptions import InvalidKey, InvalidToken, Unavailable
from accesspass.hooks import Hooks
from accesspass.models import Account, EmailKey, Identifier, MailRequest, Session
from accesspass.testing import age, login, other_node, override_accesspass
from accesspass.tokens import TokenType
from tests.conftest import PASSWORD
from tests.documents import ROOT, commands, files_of, module_of, shown
from tests.sessions import cache_settings, forget, is_refused, replicated

__all__ = ["replicated"]

pytestmark = pytest.mark.django_db(transaction=True)
BASE = "http://testserver"
OLD_KEY, NEW_KEY = "o" * 50, "n" * 50


def refreshes(token: str) -> bool:
    with contextlib.suppress(InvalidToken):
        return bool(sessions.refresh(token))
    return False


# docs/how-to/leaks.rst ------------------------------------------------------------------------


def test_a_user_whose_password_leaked_is_logged_out_and_may_ask_for_a_reset(
    user: Any, mailoutbox: list[Any]
) -> None:
    (console,) = shown("docs/how-to/leaks.rst", "console")
    code = files_of("docs/how-to/leaks.rst")["manage.py shell: one user"]
    pair = sessions.start(user)
    out = io.StringIO()
    (command,) = commands(console)
    call_command(*command.replace("ada", user.get_username()).split()[2:], stdout=out)
    assert is_refused(pair.access_token)
    pair = sessions.start(user)
    module_of(code.replace("ada@example.org", user.email))
    assert is_refused(pair.access_token)
    user.refresh_from_db()
    assert not user.check_password(PASSWORD)
    mail.ask(mail.PASSWORD_RESET, user.email)
    mail.deliver()
    assert len(mailoutbox) == 1
    user.set_unusable_password()
    user.save()
    MailRequest.objects.all().delete()
    mail.ask(mail.PASSWORD_RESET, user.email)
    mail.deliver()
    assert len(mailoutbox) == 1


def test_everybody_is_logged_out_at_once(make_user: Callable[..., Any]) -> None:
    code = files_of("docs/how-to/leaks.rst")["manage.py shell: everybody"]
    pairs = [sessions.start(make_user(name)) for name in ("ada", "eve")]
    with other_node():
        for pair in pairs:
            sessions.authenticate(pair.access_token)
    module_of(code)
    assert all(is_refused(pair.access_token) for pair in pairs)
    with other_node():
        assert all(is_refused(pair.access_token) for pair in pairs)
    assert not any(refreshes(pair.refresh_token) for pair in pairs)
    assert sessions.pending() == 0
    assert caches["accesspass"].status()["fresh"]


def test_without_an_empty_log_an_end_waits_for_its_publication(user: Any) -> None:
    code = files_of("docs/how-to/leaks.rst")["manage.py shell: everybody"]
    pair = sessions.start(user)
    first, _clear, _rest = code.partition('caches["accesspass"].clear()\n')
    sessions.authenticate(pair.access_token)  # whoever joins later looks for what is pending
    module_of(first)
    sessions.authenticate(pair.access_token)
    sessions.tidy()
    assert is_refused(pair.access_token)


def test_who_knows_the_key_alone_logs_in_as_nobody(user: Any) -> None:
    pair = sessions.start(user)
    of = pair.session_id.bytes
    assert is_refused(tokens.mint(TokenType.ACCESS, of, 2**32 - 1).text)
    for generation in (0, 1):
        assert not refreshes(tokens.mint(TokenType.REFRESH, of, generation).text)
    sessions.authenticate(pair.access_token)
    key = email_keys.mint(user, email_keys.PASSWORD_RESET, user.email)
    row = EmailKey.objects.get()
    forged = tokens.mint(TokenType.EMAIL_KEY, row.pk.bytes, int(row.expires_at.timestamp()))
    with pytest.raises(InvalidKey):
        email_keys.read(forged.text, email_keys.PASSWORD_RESET)
    email_keys.read(key, email_keys.PASSWORD_RESET)
    # But who has seen the id of a session that was refreshed ends it.
    sessions.refresh(pair.refresh_token)
    assert not refreshes(tokens.mint(TokenType.REFRESH, of, 0).text)
    assert Session.objects.get().revoked_reason == "refresh_token_reused"


def test_a_secret_key_that_is_changed_at_once_logs_everybody_out(user: Any) -> None:
    with override_settings(SECRET_KEY=OLD_KEY, SECRET_KEY_FALLBACKS=[]):
        pair = sessions.start(user)
    with override_settings(SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=[]), other_node():
        assert is_refused(pair.access_token)
        assert not refreshes(pair.refresh_token)


def test_token_keys_that_are_changed_at_once_leave_access_tokens_their_time(user: Any) -> None:
    with override_accesspass(TOKEN_KEYS=[OLD_KEY]):
        pair = sessions.start(user)
        key = email_keys.mint(user, email_keys.PASSWORD_RESET, user.email)
    with override_accesspass(TOKEN_KEYS=[NEW_KEY]), other_node():
        sessions.authenticate(pair.access_token)
        assert not refreshes(pair.refresh_token)
        with pytest.raises(InvalidKey):
            email_keys.read(key, email_keys.PASSWORD_RESET)


# docs/how-to/backups.rst ----------------------------------------------------------------------


def backup() -> list[dict[str, Any]]:
    return [{"model": x, "rows": list(x.objects.values())} for x in (Session, EmailKey)]


def restore(saved: list[dict[str, Any]]) -> None:
    for table in saved:
        table["model"].objects.all().delete()
        table["model"].objects.bulk_create([table["model"](**row) for row in table["rows"]])


def test_a_restore_brings_ended_sessions_back_and_loses_refreshed_ones(
    user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ended, refreshed = sessions.start(user), sessions.start(user)
    key = email_keys.mint(user, email_keys.CONFIRM, user.email)
    saved = backup()
    sessions.revoke(ended.session_id)
    newer = sessions.refresh(refreshed.refresh_token)
    begun = sessions.start(user)
    accounts.confirm(key)
    restore(saved)
    assert is_refused(ended.access_token)  # its marker
    assert not refreshes(newer.refresh_token)
    assert "session.refresh_token_unknown" in caplog.text
    assert not refreshes(begun.refresh_token)
    accounts.confirm(key)
    caches["accesspass"].clear()
    sessions.authenticate(ended.access_token)
    assert refreshes(ended.refresh_token)


def test_after_a_restore_all_sessions_can_be_ended(user: Any) -> None:
    pair = sessions.start(user)
    saved = backup()
    sessions.revoke(pair.session_id)
    restore(saved)
    module_of(files_of("docs/how-to/leaks.rst")["manage.py shell: everybody"])
    assert is_refused(pair.access_token)
    assert not refreshes(pair.refresh_token)


# docs/how-to/personal-data.rst ----------------------------------------------------------------


def test_what_is_stored_of_a_user_is_handed_out_and_let_go(user: Any, rf: RequestFactory) -> None:
    files = files_of("docs/how-to/personal-data.rst")
    request = rf.get("/", headers={"User-Agent": "Firefox"})
    sessions.start(user, request=request, name="at home", claims={"role": "seller"})
    email_keys.mint(user, email_keys.CONFIRM, user.email)
    mail.notify(mail.PASSWORD_CHANGED, user)
    said = module_of(files["shop/export.py"]).export(user)
    assert (said["email"], said["claims"]) == (user.email, {})
    (device,) = said["sessions"]
    assert device["user_agent"] == "Firefox"
    assert (device["name"], device["ip"]) == ("at home", "127.0.0.1")

    accounts.delete(user, PASSWORD)
    left = (Account, Identifier, EmailKey, MailRequest)
    assert [model._default_manager.count() for model in left] == [0, 0, 0, 0]
    session = Session.objects.get()
    assert (session.user_id, session.ip, session.user_agent) == (None, "127.0.0.1", "Firefox")


def test_a_receiver_lets_go_of_devices_when_their_user_is_deleted(
    user: Any, rf: RequestFactory
) -> None:
    code = files_of("docs/how-to/personal-data.rst")["shop/receivers.py"]
    sessions.start(user, request=rf.get("/"), name="at home", claims={"role": "seller"})
    module = module_of(code)
    try:
        user.delete()
    finally:
        post_delete.disconnect(module.forget_devices, sender=type(user))
    session = Session.objects.get()
    assert (session.ip, session.user_agent, session.name, session.claims) == (None, "", "", {})
    assert session.revoked_reason == "user_deleted"


# docs/how-to/clients.rst ----------------------------------------------------------------------


class Store:
    def __init__(self) -> None:
        self.token: str | None = None

    def load(self) -> str | None:
        return self.token

    def save(self, token: str | None) -> None:
        self.token = token


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the page, and what it asks of the server in turn: `asked`, and `lose` answers."""
    module = module_of(files_of("docs/how-to/clients.rst")["shop_client.py"])
    asked: list[str] = []
    lose: list[str] = []

    class Recorded(RequestsClient):
        def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
            answer = super().request(method, url, *args, **kwargs)
            route = str(url).removeprefix(BASE)
            asked.append(f"{route} {answer.status_code}")
            if route in lose:
                lose.remove(route)
                raise requests.ReadTimeout
            return answer

    monkeypatch.setattr(requests.sessions, "Session", Recorded)
    store = Store()
    made = module.Client(BASE, store)
    made.module, made.asked, made.lose = module, asked, lose
    return made


def test_a_client_keeps_its_session_over_expiry_restart_and_a_lost_answer(
    client_of: Any, user: Any
) -> None:
    client, check = client_of, "/auth/check/"
    client.log_in(user.get_username(), PASSWORD)
    assert client.request("GET", check).status_code == 200
    session = Session.objects.get()
    age(session.pk, 400)
    client.asked.clear()
    assert client.request("GET", check).status_code == 200
    assert client.asked == [f"{check} 401", "/auth/refresh/ 200", f"{check} 200"]

    again = client.module.Client(client.base, client.store)  # the app was started anew
    client.asked.clear()
    client.lose.append("/auth/refresh/")
    assert again.request("GET", check).status_code == 200
    assert client.asked.count("/auth/refresh/ 200") == 2

    used, before = again._access, client.store.load()
    assert again._renew("what another thread used")  # it takes what is there
    assert (again._access, client.store.load()) == (used, before)

    again.log_out()
    assert client.store.load() is None
    session.refresh_from_db()
    assert session.revoked_reason == "logout"


def test_a_client_forgets_its_tokens_only_when_they_are_refused(
    client_of: Any, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, check = client_of, "/auth/check/"
    client.log_in(user.get_username(), PASSWORD)
    age(Session.objects.get().pk, 400)
    with monkeypatch.context() as patch:
        patch.setattr("accesspass.views.sessions.refresh", unavailable)
        with pytest.raises(requests.HTTPError, match="503"):
            client.request("GET", check)
    assert client.store.load() is not None
    assert client.request("GET", check).status_code == 200
    sessions.revoke_all(user)
    assert client.request("GET", check).status_code == 401
    assert client.store.load() is None


def unavailable(*_: Any, **__: Any) -> None:
    raise Unavailable


def test_a_token_out_of_an_old_backup_of_the_device_ends_the_session(user: Any) -> None:
    pair = sessions.start(user)
    newer = sessions.refresh(pair.refresh_token)
    age(pair, 60)
    assert not refreshes(pair.refresh_token)
    assert not refreshes(newer.refresh_token)


# docs/explanation/session-costs.rst -----------------------------------------------------------


def test_the_statements_of_each_operation_are_those_on_the_page(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "explanation" / "session-costs.rst").read_text(encoding="utf-8")
    told = re.findall(r"   \* - (.+)\n     - (\d+)\n     - \d+\n     - \d+\n", page)
    # The suite has listeners of Django's signal, for which the page allows one more.
    monkeypatch.setattr(sessions, "_listened_for", lambda session_id: None)
    name = user.get_username()
    accounts.log_in(name, PASSWORD)

    def statements(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, int]:
        with CaptureQueriesContext(connection) as captured:
            answer = call(*args, **kwargs)
        return answer, sum(x["sql"] not in ("BEGIN", "COMMIT") for x in captured)

    (_, pair), login = statements(accounts.log_in, name, PASSWORD)
    newer, refresh = statements(sessions.refresh, pair.refresh_token)
    _, again = statements(sessions.refresh, pair.refresh_token)
    _, hit = statements(sessions.authenticate, newer.access_token)
    forget(newer)
    _, miss = statements(sessions.authenticate, newer.access_token)
    _, logout = statements(sessions.logout, access_token=newer.access_token)
    _, dead = statements(is_refused, newer.access_token)
    forget(newer)
    _, dead_miss = statements(is_refused, newer.access_token)
    counted = [login, refresh, again, hit, miss, logout, dead, dead_miss]
    assert counted == [int(count) for _operation, count in told]


# docs/reference/http.rst ----------------------------------------------------------------------


def test_every_code_of_a_field_on_the_page_is_one_that_answers_have(
    api: APIClient, user: Any, username_is_email: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if username_is_email:
        pytest.skip("the usernames below are none")
    page = (ROOT / "docs" / "reference" / "http.rst").read_text(encoding="utf-8")
    table = page.split("\nCodes of fields\n")[1].split("\nHeaders\n")[0]
    heads = "\n".join(re.findall(r"^   \* - (.*)$", table, re.MULTILINE))
    found = set()

    def refused(route: str, body: dict[str, Any], **headers: str) -> None:
        answer = api.post(f"/auth/{route}", body, format="json", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), answer.content
        found.update(x["code"] for errors in answer.json()["errors"].values() for x in errors)

    new = {"username": "new", "email": "new@example.org", "password": PASSWORD}
    refused("register/", {"username": "new"})
    for change in (
        {"username": None},
        {"username": ""},
        {"username": "x" * 256},
        {"password_confirm": "y"},
        {"password": "short"},
        {"password": "password"},
        {"password": "new@example.org"},
    ):
        refused("register/", {**new, **change})
    before = set(found)
    for change in (
        {"username": 1},
        {"username": "bob@example.com"},
        {"email": "r\xf6b@example.org"},
        {"meta": ["no object"]},
        {"meta": {"large": "x" * 5000}},
    ):
        refused("register/", {**new, **change})
    assert found - before <= {"invalid"}
    with override_accesspass(REFRESH_COOKIE="refresh"):
        refused("refresh/", {"refresh_token": "ap_rt_"})
        refused("refresh/", {}, Cookie="refresh=a; refresh=b", Origin="http://testserver")

    login(api, user)
    refused("account/delete/", {"current_password": "wrong"})

    def needed(*_: Any) -> None:
        raise ProtectedError("an order has this user", set())

    monkeypatch.setattr(Hooks, "delete_user", needed)
    refused("account/delete/", {"current_password": PASSWORD})
    assert found == set(re.findall(r"``(\w+)``", heads))


# docs/how-to/throttling.rst -------------------------------------------------------------------


def test_what_was_not_made_here_is_refused_without_a_query(api: APIClient, user: Any) -> None:
    with override_accesspass(TOKEN_KEYS=[OLD_KEY]):
        forged = {x: tokens.mint(x, bytes(16), 2**32 - 1).text for x in TokenType}
    sessions.join()
    with CaptureQueriesContext(connection) as captured:
        refresh = api.post("/auth/refresh/", {"refresh_token": forged[TokenType.REFRESH]}, "json")
        confirm = api.post("/auth/confirm/", {"key": forged[TokenType.EMAIL_KEY]}, "json")
        header = {"Authorization": f"Bearer {forged[TokenType.ACCESS]}"}
        check = api.get("/auth/check/", headers=header)
    codes = [x.json()["code"] for x in (refresh, confirm, check)]
    assert codes == ["invalid_token", "invalid_key", "invalid_token"]
    assert not captured.captured_queries


# docs/how-to/upgrading.rst --------------------------------------------------------------------


def test_a_log_that_is_gone_back_to_holds_what_was_true_until_it_is_cleared(user: Any) -> None:
    first, second = (f"memory://{uuid.uuid4()}" for _ in range(2))
    with cache_settings(first):
        pair = sessions.start(user)
        sessions.authenticate(pair.access_token)
    with cache_settings(second):
        sessions.authenticate(pair.access_token)
        sessions.revoke(pair.session_id)
        assert is_refused(pair.access_token)
    with cache_settings(first):
        sessions.authenticate(pair.access_token)
        caches["accesspass"].clear()
        assert is_refused(pair.access_token)


# docs/explanation/how-it-works.rst ------------------------------------------------------------


def test_a_session_that_nobody_uses_is_in_no_replica(user: Any) -> None:
    with override_accesspass(ACCESS_TOKEN_LIFETIME=1):
        pair = sessions.start(user)
        key = f"session:{pair.session_id.hex}"
        assert caches["accesspass"].get(key) is not None
        ends = time.monotonic() + 5
        while caches["accesspass"].get(key) is not None and time.monotonic() < ends:
            time.sleep(0.05)
        assert caches["accesspass"].get(key) is None
        newer = sessions.refresh(pair.refresh_token)
        assert caches["accesspass"].get(key) is not None
        sessions.authenticate(newer.access_token)


# docs/how-to/short-answers.rst ----------------------------------------------------------------


@override_accesspass(SESSIONS_PER_USER=1)
def test_with_one_session_per_user_a_login_ends_the_one_before(user: Any) -> None:
    first, second = sessions.start(user), sessions.start(user)
    assert is_refused(first.access_token)
    sessions.authenticate(second.access_token)


def test_claims_of_the_account_and_of_one_session_bite_where_they_should(user: Any) -> None:
    plain = sessions.start(user)
    support = sessions.start(user, claims={"by": "staff"}, lifetime=900, name="support")
    accounts.set_claims(user, {"role": "admin"})
    claims = [sessions.authenticate(x.access_token)[1].claims for x in (plain, support)]
    assert claims == [{"role": "admin"}, {"role": "admin", "by": "staff"}]
    assert {row.name for row in sessions.live(user)} == {"", "support"}
    user.is_active = False
    user.save()
    assert is_refused(plain.access_token)
    assert sessions.live(user) == []


@override_accesspass(ACCESS_TOKEN_HEADER="X-Access-Token")
def test_another_header_carries_the_bare_token(api: APIClient, user: Any) -> None:
    token = sessions.start(user).access_token
    assert api.get("/auth/check/", headers={"X-Access-Token": token}).status_code == 200
    basic = {"X-Access-Token": token, "Authorization": "Basic Ym9iOmJvYg=="}
    assert api.get("/auth/check/", headers=basic).status_code == 200
