"""What is counted, who is refused, and that nobody can lock anybody out."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection, connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient, APIRequestFactory

from accesspass import background, mail, sessions, throttling
from accesspass.email_keys import CONFIRM, PASSWORD_RESET
from accesspass.exceptions import Throttled, Unavailable
from accesspass.models import Account, MailRequest, Throttle, ThrottleManager
from accesspass.signals import network_over_limit
from tests.conftest import PASSWORD, MakeUser
from tests.servers import Missing, shared_postgresql
from tests.test_mail import key_in

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.1"
HOUR = 3_600
User: Any = get_user_model()


def request_from(address: str, **more: str) -> Any:
    return APIRequestFactory().post("/auth/login/", REMOTE_ADDR=address, **more)


def throttles(**scopes: Any) -> Any:
    return override_settings(ACCESSPASS={"THROTTLES": scopes})


def log_in(api: APIClient, name: str, password: str, address: str = HOME, **more: Any) -> Any:
    body = {"username": name, "password": password}
    return api.post("/auth/login/", body, format="json", REMOTE_ADDR=address, **more)


def signed_in(api: APIClient, user: Any, path: str, body: Any, address: str = HOME) -> Any:
    bearer = f"Bearer {sessions.start(user).access_token}"
    send = api.patch if path == "account" else api.post
    return send(
        f"/auth/{path}/", body, format="json", REMOTE_ADDR=address, HTTP_AUTHORIZATION=bearer
    )


def statuses(answers: list[Any]) -> list[int]:
    return [x.status_code for x in answers]


def let_pass(seconds: float) -> None:
    """Age every window, as the database's clock would."""
    Throttle.objects.update(expires_at=F("expires_at") - timedelta(seconds=seconds))


# Counting, on each database


class _ToAlias:
    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "throttles" if model is Throttle else None

    db_for_read = db_for_write


@contextmanager
def alias(**parameters: Any) -> Iterator[None]:
    connections.settings["throttles"] = {**connections.settings["default"], **parameters}
    try:
        with override_settings(DATABASE_ROUTERS=[_ToAlias()]):
            with connections["throttles"].schema_editor() as editor:
                editor.create_model(Throttle)
            yield
    finally:
        connections["throttles"].close()
        del connections["throttles"], connections.settings["throttles"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: Any, tmp_path: Path, django_db_blocker: Any) -> Iterator[str]:
    """A database of its own that holds the table alone, for all threads."""
    if request.param == "sqlite":
        parameters: dict[str, Any] = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "db.sqlite3"),
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30},
        }
    else:
        try:
            server = shared_postgresql()
        except Missing as error:
            pytest.skip(str(error))
        name = f"throttles_{secrets.token_hex(4)}"
        server.create_database(name)
        parameters = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": "postgres",
            "PASSWORD": "",
            "HOST": server.host,
            "PORT": str(server.port),
            "OPTIONS": {},
        }
    with django_db_blocker.unblock(), alias(**parameters):
        yield request.param


def at_once(count: int, what: Any) -> list[Any]:
    """Call `what` on as many threads, and return what it has returned or raised."""
    found: list[Any] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait(30)
            found.append(what(number))
        except Exception as error:  # noqa: BLE001 - the test judges it
            found.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_twenty_threads_are_counted_exactly(database: str) -> None:
    for limit in (1, 7, 19, 20, 21):
        key = f"{limit:064}"
        found = at_once(20, lambda _, key=key, limit=limit: Throttle.objects.take(key, limit, HOUR))
        assert found.count(True) == min(limit, 20), found
        assert found.count(False) == 20 - min(limit, 20)
        assert Throttle.objects.get(pk=key).count == min(limit, 20)


def test_of_twenty_threads_one_is_told_that_the_limit_is_passed(database: str) -> None:
    key = "k" * 64
    for _ in range(3):
        Throttle.objects.take(key, 3, HOUR)
    assert at_once(20, lambda _: Throttle.objects.first_over(key, 3)).count(True) == 1


def test_twenty_guesses_at_once_get_no_further_than_ten(database: str) -> None:
    found = at_once(20, lambda _: throttling.count("login", request_from(HOME), "bob"))
    assert sum(isinstance(x, throttling.Attempt) for x in found) == 10, found
    assert sum(isinstance(x, Throttled) for x in found) == 10


def test_a_window_ends_by_the_clock_of_the_database(database: str) -> None:
    key = "k" * 64
    assert Throttle.objects.take(key, 1, 60)
    assert not Throttle.objects.take(key, 1, 60)
    assert 55 < Throttle.objects.wait(key) <= 60
    let_pass(50)
    assert not Throttle.objects.take(key, 1, 60)
    assert 5 < Throttle.objects.wait(key) <= 10
    let_pass(11)
    assert Throttle.objects.wait(key) == 0
    assert Throttle.objects.take(key, 1, 60)
    assert 55 < Throttle.objects.wait(key) <= 60
    assert not Throttle.objects.take(key, 1, 60)


def test_an_attempt_that_is_refused_writes_nothing(database: str) -> None:
    key, taken = "k" * 64, []
    with CaptureQueriesContext(connections["throttles"]) as queries:
        for _ in range(3):
            before = len(queries)
            taken.append((Throttle.objects.take(key, 2, HOUR), len(queries) - before))
    assert taken == [(True, 3), (True, 1), (False, 2)]
    kinds = [query["sql"].split()[0] for query in queries]
    assert kinds == ["UPDATE", "SELECT", "INSERT", "UPDATE", "UPDATE", "SELECT"]


def test_to_lose_the_race_for_the_first_one_spoils_no_transaction(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ThrottleManager._begin

    def late(manager: ThrottleManager, key: str, period: float) -> None:
        Throttle.objects.create(key=key, count=1, expires_at=Now() + timedelta(hours=1))
        begin(manager, key, period)

    monkeypatch.setattr(ThrottleManager, "_begin", late)
    with transaction.atomic(using="throttles"):
        assert Throttle.objects.take("k" * 64, 2, HOUR)
        assert not Throttle.objects.take("k" * 64, 2, HOUR)
    assert Throttle.objects.get().count == 2


def test_what_is_remembered_is_held_for_its_time(database: str) -> None:
    key, other = "k" * 64, "o" * 64
    assert not Throttle.objects.holds(key)
    for keys in ([key], [other, key], [key, other]):
        Throttle.objects.remember(keys, 60)
        assert all(map(Throttle.objects.holds, keys))
        let_pass(30)
        assert Throttle.objects.holds(key)
    let_pass(31)
    assert not Throttle.objects.holds(key)


def test_purging_deletes_what_is_over_and_nothing_else(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accesspass.models._PURGE_BATCH", 2)
    for number in range(5):
        Throttle.objects.take(f"{number:064}", 1, 60)
    let_pass(61)
    Throttle.objects.take("k" * 64, 1, 60)
    Throttle.objects.purge()
    assert list(Throttle.objects.values_list("pk", flat=True)) == ["k" * 64]


def test_background_purges() -> None:
    # By name: another app registry makes another manager.
    names = [getattr(job.run, "__qualname__", "") for job in background.JOBS]
    assert Throttle.objects.purge.__qualname__ in names


# Logging in


def test_an_account_is_refused_from_one_network_after_ten_in_a_minute(
    api: APIClient, user: Any
) -> None:
    name = user.get_username()
    answers = [log_in(api, name, "wrong", f"192.0.2.{n}") for n in range(1, 13)]
    assert statuses(answers) == [401] * 10 + [429] * 2
    refused = answers[-1]
    assert refused.json()["code"] == "throttled"
    assert refused["Cache-Control"] == "no-store"
    assert 50 < int(refused["Retry-After"]) <= 60
    # The right password opens nothing now, or guessing would go on behind the limit.
    assert log_in(api, name, PASSWORD).status_code == 429
    assert log_in(api, name, PASSWORD, ELSEWHERE).status_code == 200
    # Retry-After is honest.
    let_pass(int(refused["Retry-After"]))
    assert log_in(api, name, PASSWORD).status_code == 200


def test_a_good_login_forgets_no_failure(api: APIClient, user: Any) -> None:
    name = user.get_username()
    with throttles(login={"account_network": "6/min", "account": "4/h"}):
        answers = [log_in(api, name, x) for x in ["wrong"] * 4 + [PASSWORD] * 2]
        assert statuses(answers[:4]) == [401] * 4
        assert answers[4].status_code == 429
        let_pass(HOUR)
        answers = [log_in(api, name, x) for x in [*["wrong"] * 3, PASSWORD, "wrong", "wrong"]]
        # The good one is not counted as a failure itself, so the fourth failure is let through.
        assert statuses(answers) == [401, 401, 401, 200, 401, 401]
        assert log_in(api, name, "wrong").status_code == 429  # the seventh attempt
        assert log_in(api, name, "wrong", ELSEWHERE).status_code == 429  # the fifth failure


@pytest.mark.parametrize("known", [True, False])
def test_nobody_can_lock_the_owner_out(api: APIClient, user: Any, known: bool) -> None:
    name = user.get_username()
    with throttles(login={"account": "20/h"}):
        if known:
            assert log_in(api, name, PASSWORD, HOME).status_code == 200
        attack = [log_in(api, name, "wrong", f"203.0.{n}.1") for n in range(25)]
        assert statuses(attack) == [401] * 20 + [429] * 5
        assert 3_500 < int(attack[-1]["Retry-After"]) <= 3_600
        # Another address of the network counts as well, and so does the other name.
        for written in (name, "bob@example.com", "BOB@Example.com") if known else (name,):
            answer = log_in(api, written, PASSWORD, "192.0.2.77")
            assert answer.status_code == (200 if known else 429)
        assert log_in(api, name, PASSWORD, "203.0.24.1").status_code == 429


def test_a_network_is_known_for_thirty_days(api: APIClient, user: Any) -> None:
    name = user.get_username()
    day = 24 * HOUR

    def attack() -> None:
        assert log_in(api, name, "wrong", ELSEWHERE).status_code == 401
        assert log_in(api, name, "wrong", ELSEWHERE).status_code == 429

    with throttles(login={"account": "1/h"}):
        assert log_in(api, name, PASSWORD).status_code == 200
        for _ in range(2):
            let_pass(29 * day)
            attack()
            assert log_in(api, name, PASSWORD).status_code == 200
        let_pass(31 * day)
        attack()
        assert log_in(api, name, PASSWORD).status_code == 429


def test_who_has_registered_is_known_where_they_did(
    api: APIClient, transactional_db: None, username_is_email: bool
) -> None:
    body = {"username": "bob", "email": "bob@example.com", "password": PASSWORD}
    if username_is_email:
        del body["username"]
    with throttles(login={"account": "2/h"}):
        answer = api.post("/auth/register/", body, format="json", REMOTE_ADDR=HOME)
        assert answer.status_code == 201
        attack = [log_in(api, "bob@example.com", "wrong", f"203.0.{n}.1") for n in range(3)]
        assert statuses(attack) == [401, 401, 429]
        assert log_in(api, "bob@example.com", PASSWORD, HOME).status_code == 200


@pytest.mark.parametrize("path", ["confirm", "password/reset/confirm"])
def test_a_key_from_an_e_mail_lets_the_owner_in_under_attack(
    api: APIClient, user: Any, path: str, mailoutbox: list[Any]
) -> None:
    name, password = user.get_username(), PASSWORD
    options = {"BASE_URL": "https://app.example.com", "THROTTLES": {"login": {"account": "2/h"}}}
    with override_settings(ACCESSPASS=options):
        attack = [log_in(api, name, "wrong", f"203.0.{n}.1") for n in range(3)]
        assert statuses(attack) == [401, 401, 429]
        assert log_in(api, name, PASSWORD).status_code == 429
        mail.notify(CONFIRM if path == "confirm" else PASSWORD_RESET, user)
        mail.deliver()
        body = {"key": key_in(mailoutbox.pop())}
        if path != "confirm":
            body["new_password"] = password = "another horse battery"
        answer = api.post(f"/auth/{path}/", body, format="json", REMOTE_ADDR=HOME)
        assert answer.status_code in (200, 204)
        assert log_in(api, name, password, ELSEWHERE).status_code == 429
        assert log_in(api, name, password, HOME).status_code == 200


@pytest.mark.django_db
def test_unknown_names_are_limited_exactly_alike(api: APIClient, make_user: MakeUser) -> None:
    user = make_user("bob")
    Account.objects.for_user(user)
    seen: list[list[Any]] = []
    with throttles(login={"account_network": "3/min", "account": "5/h"}):
        for name in ("bob@example.com", "eve@example.com"):
            # Networks of their own, or the rows of the first would be there for the second.
            place = ord(name[0])
            for address in (*[f"192.0.{place}.1"] * 5, *[f"198.51.{place}.1"] * 5):
                with CaptureQueriesContext(connection) as captured:
                    answer = log_in(api, name, "wrong", address)
                kinds = [x["sql"].split(" WHERE ")[0].split(" VALUES ")[0] for x in captured]
                kinds = [x for x in kinds if "POINT" not in x and "login_count" not in x]
                seen.append([answer.status_code, answer.json(), sorted(answer.headers), kinds])
    assert seen[:10] == seen[10:]
    assert [x[0] for x in seen[:10]] == [401] * 3 + [429] * 2 + [401] * 2 + [429] * 3


@pytest.mark.parametrize(
    "spellings",
    [
        ["bob@example.com", "BOB@example.com", " bob@example.com ", "bob@EXAMPLE.com"],
        ["ｂｏｂ@example.com", "bob＠example.com", "bob@example.com"],
        ["stra\u00dfe", "STRASSE", "strasse"],
        ["\u212belvin", "\u00e5elvin", "A\u030aelvin"],
    ],
)
@pytest.mark.django_db
def test_another_spelling_passes_no_limit(api: APIClient, spellings: list[str]) -> None:
    with throttles(login={"account_network": "1/min"}):
        answers = [log_in(api, name, "wrong") for name in spellings]
    assert statuses(answers) == [401] + [429] * (len(spellings) - 1)


@pytest.mark.django_db
def test_a_body_that_is_refused_is_not_counted(api: APIClient) -> None:
    for _ in range(20):
        answer = api.post("/auth/login/", {"username": "bob"}, format="json")
        assert answer.status_code == 400
    assert not Throttle.objects.exists()


# The present password of whoever is signed in


def guess(path: str, password: str) -> dict[str, str]:
    return {
        "password/change": {"current_password": password, "new_password": "another horse battery"},
        "email/change": {"current_password": password, "email": "new@example.com"},
        "account": {"current_password": password, "username": "other"},
        "account/delete": {"current_password": password},
    }[path]


@pytest.mark.parametrize("path", ["password/change", "email/change", "account", "account/delete"])
def test_a_stolen_access_token_guesses_no_more_than_a_login(
    api: APIClient, user: Any, path: str, username_is_email: bool
) -> None:
    if path == "account" and username_is_email:
        pytest.skip("the username cannot be changed")
    with throttles(login={"account_network": "4/min"}, mail=None):
        assert log_in(api, user.get_username(), "wrong").status_code == 401
        answers = [signed_in(api, user, path, guess(path, "wrong")) for _ in range(4)]
        assert statuses(answers) == [400] * 3 + [429]
        assert answers[-1].json()["code"] == "throttled"
        assert signed_in(api, user, path, guess(path, PASSWORD)).status_code == 429
        assert log_in(api, user.get_username(), PASSWORD).status_code == 429
    assert type(user)._default_manager.get().check_password(PASSWORD)


def test_only_a_password_that_was_checked_makes_a_network_known(api: APIClient, user: Any) -> None:
    name = user.get_username()
    with throttles(login={"account": "1/h"}):
        body = {"current_password": "wrong", "meta": {}}
        assert signed_in(api, user, "account", body, ELSEWHERE).status_code == 200
        change = guess("email/change", PASSWORD)
        assert signed_in(api, user, "email/change", change).status_code == 202
        assert log_in(api, name, "wrong", "203.0.113.1").status_code == 401
        assert log_in(api, name, PASSWORD, ELSEWHERE).status_code == 429
        assert log_in(api, name, PASSWORD, HOME).status_code == 200


# Asking for mail


ASKED = ["confirm/resend", "password/reset", "username/forgot"]


def ask(api: APIClient, path: str, name: str, address: str = HOME) -> Any:
    body = {"email" if path == "username/forgot" else "username": name}
    return api.post(f"/auth/{path}/", body, format="json", REMOTE_ADDR=address)


@pytest.mark.parametrize("path", ASKED)
def test_asking_for_mail_is_limited_alike_for_all_names(
    api: APIClient, user: Any, path: str
) -> None:
    seen: list[list[Any]] = []
    for name in (user.email, "eve@example.com"):
        for _ in range(12):
            with CaptureQueriesContext(connection) as captured:
                answer = ask(api, path, name)
            kinds = [x["sql"].split(" WHERE ")[0].split(" VALUES ")[0] for x in captured]
            # The total of the network has its row once the first name was counted.
            kinds = [x for x in kinds if "POINT" not in x and "INSERT" not in x]
            headers = {k: v for k, v in answer.headers.items() if k != "Retry-After"}
            seen.append([answer.status_code, answer.json(), headers, kinds])
        assert 50 < int(answer["Retry-After"]) <= 60
    assert [x[0] for x in seen[:12]] == [202] * 10 + [429] * 2
    assert seen[1:12] == seen[13:]


def test_what_is_refused_asks_for_nothing(api: APIClient, user: Any) -> None:
    with throttles(mail={"account_network": "1/h"}):
        assert ask(api, "password/reset", user.email).status_code == 202
        MailRequest.objects.all().delete()
        # One counter for all that writes to an address, in whatever spelling.
        for path in ASKED:
            assert ask(api, path, user.email.upper()).status_code == 429
        assert not MailRequest.objects.exists()
        assert ask(api, "password/reset", user.email, ELSEWHERE).status_code == 202


def test_a_new_address_is_not_written_to_again_and_again(api: APIClient, user: Any) -> None:
    body = {"current_password": PASSWORD, "email": "victim@example.com"}
    with throttles(mail={"account_network": "2/h"}):
        for status in (202, 202, 429):
            assert signed_in(api, user, "email/change", body).status_code == status
        other = {**body, "email": "other@example.com"}
        assert signed_in(api, user, "email/change", other).status_code == 202


# Addresses


@pytest.mark.parametrize(
    "addresses",
    [
        ["192.0.2.1", "192.0.2.254", "::ffff:192.0.2.9", "::ffff:c000:207"],
        ["2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:0db8:0::7%eth0"],
        ["", "unknown", "_hidden", "192.0.2.1:443", "1", "\0", "192.0.2.1, 192.0.2.2"],
    ],
)
@pytest.mark.django_db
def test_one_network_is_counted_as_one(api: APIClient, addresses: list[str]) -> None:
    with throttles(login={"account_network": "1/min"}):
        answers = [log_in(api, "bob", "wrong", x) for x in addresses]
    assert statuses(answers) == [401] + [429] * (len(addresses) - 1)


@pytest.mark.parametrize(
    "forged", ["203.0.113.1", "::1", "nonsense", "", "a" * 10_000, "192.0.2.1"]
)
@pytest.mark.parametrize("proxies", [0, 1, 2])
@pytest.mark.django_db
def test_a_forged_header_passes_no_limit(api: APIClient, forged: str, proxies: int) -> None:
    limits = {"login": {"account_network": "1/min"}}
    behind = ["198.51.100.7", "10.0.0.1"][:proxies]
    with override_settings(ACCESSPASS={"THROTTLES": limits, "TRUSTED_PROXIES": proxies}):
        first = log_in(api, "bob", "wrong", HTTP_X_FORWARDED_FOR=", ".join(behind) or "x")
        header = ", ".join([forged, *behind])
        second = log_in(api, "bob", "wrong", HTTP_X_FORWARDED_FOR=header)
    assert statuses([first, second]) == [401, 429]


@pytest.mark.parametrize("header", [None, "", "nonsense", "192.0.2.1:80", ",", "10.0.0.1"])
@pytest.mark.django_db
def test_whoever_has_no_address_shares_one_limit(api: APIClient, header: str | None) -> None:
    limits = {"login": {"account_network": "1/min"}}
    more = {} if header is None else {"HTTP_X_FORWARDED_FOR": header}
    with override_settings(ACCESSPASS={"THROTTLES": limits, "TRUSTED_PROXIES": 2}):
        assert log_in(api, "bob", "wrong", HTTP_X_FORWARDED_FOR="?, 10.0.0.1").status_code == 401
        assert log_in(api, "bob", "wrong", **more).status_code == 429


def test_an_unknown_address_is_never_a_known_network(api: APIClient, user: Any) -> None:
    name = user.get_username()
    with throttles(login={"account": "1/h"}):
        assert log_in(api, name, PASSWORD, "").status_code == 200
        assert log_in(api, name, "wrong", ELSEWHERE).status_code == 401
        assert log_in(api, name, PASSWORD, "").status_code == 429


# Networks


def test_a_network_over_its_total_is_announced_once_and_never_refused(
    api: APIClient, user: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[dict[str, Any]] = []

    def receiver(**kwargs: Any) -> None:
        heard.append(kwargs)
        raise RuntimeError("a receiver's bug")

    network_over_limit.connect(receiver)
    try:
        with throttles(login={"network": "3/h"}):
            answers = [log_in(api, f"eve{n}", "wrong") for n in range(6)]
            answers.append(log_in(api, user.get_username(), PASSWORD))
    finally:
        network_over_limit.disconnect(receiver)
    assert statuses(answers) == [401] * 6 + [200]
    assert len(heard) == 1
    assert heard[0]["network"] == "192.0.2.0/24"
    assert heard[0]["scope"] == "login"
    assert heard[0]["request"].META["REMOTE_ADDR"] == HOME
    assert caplog.text.count("throttle.network_over_limit: login from 192.0.2.0/24") == 1


# Scopes


def test_a_scope_or_a_rate_of_none_is_off(api: APIClient, user: Any) -> None:
    name = user.get_username()
    with throttles(login=None):
        assert statuses([log_in(api, name, "wrong") for _ in range(12)]) == [401] * 12
        assert not Throttle.objects.exists()
    with throttles(login={"account_network": None}):
        assert statuses([log_in(api, name, "wrong") for _ in range(12)]) == [401] * 12
        assert Throttle.objects.count() == 2


@pytest.mark.django_db
def test_registrations_are_limited_by_address(api: APIClient) -> None:
    body = {"username": "bob", "email": "bob@example.com", "password": "short"}
    if User.USERNAME_FIELD == "email":
        del body["username"]
    with throttles(register={"account_network": "2/min"}):
        answers = [api.post("/auth/register/", body, format="json") for _ in range(3)]
    assert statuses(answers) == [400, 400, 429]


@pytest.mark.django_db
def test_scopes_are_counted_apart() -> None:
    with throttles(mail={"account_network": "1/min"}, login={"account_network": "1/min"}):
        throttling.count("mail", request_from(HOME), "bob")
        throttling.count("login", request_from(HOME), "bob")
        with pytest.raises(Throttled):
            throttling.count("mail", request_from(HOME), "bob")


# What a rollback, a fault or a look into the table tells


@pytest.mark.django_db(transaction=True)
def test_counts_survive_atomic_requests(
    user: Any, api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    with throttles(login={"account_network": "2/min"}):
        answers = [log_in(api, user.get_username(), "wrong") for _ in range(3)]
    assert statuses(answers) == [401, 401, 429]


@pytest.mark.django_db(transaction=True)
def test_counts_survive_an_internal_error(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("accesspass.accounts.log_in", fail)
    client = APIClient(raise_request_exception=False)
    with throttles(login={"account_network": "2/min"}):
        answers = [log_in(client, user.get_username(), "wrong") for _ in range(3)]
    assert statuses(answers) == [500, 500, 429]


def test_a_login_that_is_vetoed_is_a_failure(user: Any, api: APIClient) -> None:
    hooks = {"HOOKS": "tests.test_hooks.Vetoing"}
    limits = {"login": {"account": "2/h"}}
    with override_settings(ACCESSPASS={**hooks, "THROTTLES": limits}):
        answers = [log_in(api, user.get_username(), PASSWORD) for _ in range(3)]
    assert statuses(answers) == [401, 401, 429]


@pytest.mark.django_db
def test_a_table_that_is_out_of_reach_lets_nobody_through(
    api: APIClient, user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OperationalError("no route to host 10.0.0.1")

    monkeypatch.setattr(type(Throttle.objects), "take", fail)
    answer = log_in(api, user.get_username(), PASSWORD)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer["Retry-After"]) >= 1


@pytest.mark.django_db(transaction=True)
def test_a_table_that_is_missing_lets_nobody_through() -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(Throttle)
    try:
        with pytest.raises(Unavailable), transaction.atomic():
            throttling.count("login", request_from(HOME), "bob")
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(Throttle)


def test_the_table_tells_neither_names_nor_addresses(api: APIClient, user: Any) -> None:
    log_in(api, user.get_username(), PASSWORD)
    log_in(api, user.get_username(), "wrong")
    rows = list(Throttle.objects.annotate(clock=Now()).values_list())
    assert len(rows) >= 4
    for text in ("bob", HOME, "192.0.2", PASSWORD):
        assert text not in str(rows)
    with override_settings(SECRET_KEY="another key"):  # so nobody can try all addresses
        assert throttling._key("login", "network", "192.0.2.0/24") not in {x[0] for x in rows}


@pytest.mark.django_db
def test_any_text_can_be_counted() -> None:
    for name in ("\0", "\ud800", "\ufdfa" * 255, "", "x" * 100_000):
        throttling.count("login", request_from(HOME), name)
