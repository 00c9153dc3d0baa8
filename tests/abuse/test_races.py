"""Twenty connections at once: a one-time thing happens once, and nothing slips in between."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.abuse.site import NEW_PASSWORD, PASSWORD, Person, Reply, Site, request

TIMES = 20


def post(route: str, body: Any, token: str = "") -> bytes:
    return request("POST", f"/auth/{route}/", body=body, token=token)


def statuses(replies: list[Reply]) -> Counter[tuple[int, str | None]]:
    return Counter((x.status, x.code) for x in replies)


def test_a_reset_key_is_used_once(site: Site, person: Person) -> None:
    site.mail()
    site.post("password/reset", {"username": person.email})
    key = site.key_for(person.email)
    passwords = [f"{NEW_PASSWORD} {n}" for n in range(TIMES)]
    replies = site.at_once(
        [post("password/reset/confirm", {"key": key, "new_password": x}) for x in passwords]
    )
    assert statuses(replies) == {(204, None): 1, (400, "invalid_key"): TIMES - 1}
    (winner,) = [x for x, reply in zip(passwords, replies, strict=True) if reply.status == 204]
    assert site.log_in(person.username, winner).status == 200


def test_a_confirmation_key_is_used_once(site: Site, person: Person) -> None:
    key = site.key_for(person.email)
    with site.settings(CONFIRM_LOGS_IN=True):
        replies = site.at_once([post("confirm", {"key": key})] * TIMES)
    assert statuses(replies) == {(200, None): 1, (400, "invalid_key"): TIMES - 1}
    assert len([x for x in replies if "access_token" in x.body]) == 1


def test_a_change_key_is_used_once(site: Site, person: Person) -> None:
    site.mail()
    body = {"current_password": PASSWORD, "email": f"new-{person.email}"}
    site.post("email/change", body, token=person.access)
    key = site.key_for(body["email"])
    replies = site.at_once([post("email/change/confirm", {"key": key})] * TIMES)
    assert statuses(replies) == {(204, None): 1, (400, "invalid_key"): TIMES - 1}
    assert [x.to for x in site.mail()] == [[person.email]]


def test_of_registrations_of_one_username_in_any_spelling_one_wins(site: Site) -> None:
    end = site.name()
    names = [f"{x}{end}" for x in ("kiss", "KISS", "\u212aiss", "ki\u017f\u017f", "ki\u00df")] * 4
    replies = site.at_once(
        [
            post(
                "register", {"username": x, "email": f"{end}-{n}@example.com", "password": PASSWORD}
            )
            for n, x in enumerate(names)
        ]
    )
    assert statuses(replies) == {(201, None): 1, (400, "username_taken"): TIMES - 1}
    left = site.sql("SELECT count(*) FROM accesspass_user WHERE email LIKE %s", f"{end}-%")
    assert left == [(1,)]


def test_of_registrations_of_one_address_one_wins(site: Site) -> None:
    address = f"{site.name()}@example.com"
    replies = site.at_once(
        [
            post("register", {"username": site.name(), "email": x, "password": PASSWORD})
            for x in [address, address.upper()] * (TIMES // 2)
        ]
    )
    assert statuses(replies) == {(201, None): 1, (400, "email_taken"): TIMES - 1}


def test_quiet_registrations_of_one_name_all_get_one_answer(site: Site) -> None:
    name = site.name()
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    with site.settings(REQUIRE_CONFIRMED_EMAIL=True):
        replies = site.at_once([post("register", body)] * TIMES)
    assert {(x.status, x.content) for x in replies} == {(202, replies[0].content)}
    assert site.sql("SELECT count(*) FROM accesspass_user WHERE username = %s", name) == [(1,)]


def test_of_changes_to_one_address_one_wins(site: Site) -> None:
    address = f"{site.name()}@example.org"
    keys = []
    for _ in range(4):
        person = site.person()
        site.mail()
        body = {"current_password": PASSWORD, "email": address}
        assert site.post("email/change", body, token=person.access).status == 202
        keys.append(site.key_for(address))
    replies = site.at_once([post("email/change/confirm", {"key": x}) for x in keys * 5])
    assert statuses(replies)[(204, None)] == 1
    assert set(statuses(replies)) <= {(204, None), (400, "invalid_key"), (400, "email_taken")}
    held = site.sql("SELECT count(*) FROM accesspass_user WHERE email = %s", address)
    assert held == [(1,)]


def test_of_refreshes_with_one_token_all_get_one_pair(site: Site, person: Person) -> None:
    replies = site.at_once([post("refresh", {"refresh_token": person.refresh})] * TIMES)
    assert {x.status for x in replies} == {200}
    pairs = {(x.body["access_token"], x.body["refresh_token"]) for x in replies}
    assert len(pairs) == 1
    rotations = site.sql("SELECT generation FROM accesspass_session WHERE user_id = %s", person.id)
    assert rotations == [(1,)]


def test_of_password_changes_with_one_present_password_one_wins(site: Site, person: Person) -> None:
    replies = site.at_once(
        [
            post(
                "password/change",
                {"current_password": PASSWORD, "new_password": f"{NEW_PASSWORD} {n}"},
                person.access,
            )
            for n in range(TIMES)
        ]
    )
    assert statuses(replies)[(204, None)] == 1
    # The token stays good, so whoever comes later is told that the password is another by now.
    assert statuses(replies)[(400, "invalid")] == TIMES - 1


def test_no_login_with_the_old_password_survives_a_reset(site: Site, person: Person) -> None:
    site.mail()
    site.post("password/reset", {"username": person.email})
    reset = {"key": site.key_for(person.email), "new_password": NEW_PASSWORD}
    login = post("login", {"username": person.username, "password": PASSWORD})
    replies = site.at_once([login] * 10 + [post("password/reset/confirm", reset)] + [login] * 9)
    assert replies[10].status == 204
    got_in = [x.body for x in replies if x.status == 200]
    for pair in got_in:
        assert not site.is_let_in(pair["access_token"])
        refused = site.post("refresh", {"refresh_token": pair["refresh_token"]})
        assert refused.code == "invalid_token"


def test_no_refresh_survives_a_logout(site: Site, person: Person) -> None:
    refresh = post("refresh", {"refresh_token": person.refresh})
    replies = site.at_once([refresh] * 10 + [post("logout", {}, person.access)] + [refresh] * 9)
    assert replies[10].status == 204
    for pair in [x.body for x in replies if x.status == 200]:
        assert not site.is_let_in(pair["access_token"])
        refused = site.post("refresh", {"refresh_token": pair["refresh_token"]})
        assert refused.code == "invalid_token"


def test_an_account_is_deleted_once_while_others_use_it(site: Site, person: Person) -> None:
    delete = post("account/delete", {"current_password": PASSWORD}, person.access)
    login = post("login", {"username": person.username, "password": PASSWORD})
    replies = site.at_once([delete, login] * (TIMES // 2))
    assert statuses(replies)[(204, None)] == 1
    late = {(401, "invalid_token"), (401, "invalid_credentials"), (400, "invalid")}
    assert set(statuses(replies)) <= {(204, None), (200, None), *late}
    for reply in replies:
        if reply.status == 200:
            assert not site.is_let_in(reply.body["access_token"])
    assert site.log_in(person.username).status == 401


def test_no_more_sessions_live_than_allowed(site: Site, person: Person) -> None:
    login = post("login", {"username": person.username, "password": PASSWORD})
    with site.settings(SESSIONS_PER_USER=5):
        replies = site.at_once([login] * TIMES)
        assert {x.status for x in replies} == {200}
        good = [x.body["access_token"] for x in replies if site.is_let_in(x.body["access_token"])]
    assert len(good) == 5


def test_first_logins_of_an_old_user_make_one_account(site: Site, person: Person) -> None:
    for table in ("mailrequest", "emailkey", "session", "account"):
        if table == "account":
            site.sql("DELETE FROM accesspass_identifier WHERE account_id = %s", person.id)
        site.sql(f"DELETE FROM accesspass_{table} WHERE user_id = %s", person.id)  # noqa: S608
    login = post("login", {"username": person.username, "password": PASSWORD})
    assert {x.status for x in site.at_once([login] * TIMES)} == {200}
    counted = site.sql("SELECT login_count FROM accesspass_account WHERE user_id = %s", person.id)
    assert counted == [(TIMES,)]


@pytest.mark.parametrize("route", ["password/reset", "username/forgot", "confirm/resend"])
def test_of_twenty_who_ask_one_mail_comes(site: Site, person: Person, route: str) -> None:
    site.mail()
    field = "email" if route == "username/forgot" else "username"
    spellings = [person.email, person.email.upper()] * (TIMES // 2)
    replies = site.at_once([post(route, {field: x}) for x in spellings])
    assert {(x.status, x.content) for x in replies} == {(202, replies[0].content)}
    assert [x.to for x in site.mail()] == [[person.email]]
