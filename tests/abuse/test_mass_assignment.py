"""What only the server may decide cannot be sent along, wherever it is sent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.abuse.site import NEW_PASSWORD, PASSWORD, Person, Site

LATER = "2099-01-01T00:00:00Z"
COVETED: dict[str, Any] = {
    "id": "1",
    "pk": "1",
    "user": {"is_staff": True},
    "user_id": "1",
    "is_staff": True,
    "is_superuser": True,
    "is_active": False,
    "groups": [1],
    "user_permissions": [1],
    "role": "admin",
    "claims": {"role": "admin"},
    "account": {"claims": {"role": "admin"}},
    "account__claims": {"role": "admin"},
    "accesspass_account": {"claims": {"role": "admin"}},
    "confirmed_at": LATER,
    "confirmed_email": "evil@example.com",
    "email_confirmed": True,
    "date_joined": "2001-01-01T00:00:00Z",
    "last_login": LATER,
    "login_count": 7,
    "reset_key": "mine",
    "reset_id": "mine",
    "confirmation_key": "mine",
    "state": "mine",
    "expires_at": LATER,
    "expires_in": 10**9,
    "lifetime": 10**9,
    "session_id": "0b6f0c9e-0000-4000-8000-000000000000",
    "session": "0b6f0c9e-0000-4000-8000-000000000000",
    "generation": 10**9,
    "auth_hash": "",
    "password_hash": "md5$x$y",
    "fields": {"is_staff": True},
    "data": {"is_staff": True},
    "request": None,
    "name": "x",
    "__class__": "x",
    "_state": {},
}
PLAIN = (True, False, False)  # active, staff, superuser


def rights(site: Site, person_id: str) -> tuple[Any, ...]:
    (row,) = site.sql(
        "SELECT u.is_active, u.is_staff, u.is_superuser FROM accesspass_user u WHERE id = %s",
        person_id,
    )
    return tuple(row)


def test_a_registration_decides_nothing_but_its_own_fields(site: Site) -> None:
    reply = site.register(**COVETED, meta={"role": "admin", "claims": {"role": "admin"}})
    assert reply.status == 201
    user = reply.body["user"]
    assert user["id"] != COVETED["id"]
    assert rights(site, user["id"]) == PLAIN
    checked = site.get("check", token=reply.body["access_token"]).body
    assert checked["claims"] == {}
    assert checked["email_confirmed"] is False
    assert reply.body["expires_in"] == 300
    found = site.sql(
        "SELECT claims::text, confirmed_at, login_count FROM accesspass_account WHERE user_id = %s",
        user["id"],
    )
    assert found == [("{}", None, 1)]
    joined = site.sql(
        "SELECT date_joined > now() - interval '1 hour' FROM accesspass_user WHERE id = %s",
        user["id"],
    )
    assert joined == [(True,)]


def test_a_quiet_registration_decides_nothing_but_its_own_fields(site: Site) -> None:
    name = site.name()
    with site.settings(REQUIRE_CONFIRMED_EMAIL=True):
        assert site.register(name, **COVETED).status == 202
    (row,) = site.sql(
        "SELECT u.is_active, u.is_staff, u.is_superuser, a.claims::text, a.confirmed_at "
        "FROM accesspass_user u JOIN accesspass_account a ON a.user_id = u.id "
        "WHERE u.username = %s",
        name,
    )
    assert tuple(row) == (*PLAIN, "{}", None)


@pytest.mark.parametrize("alone", [True, False])
def test_the_account_takes_nothing_but_meta_and_the_username(
    site: Site, person: Person, alone: bool
) -> None:
    before = site.rows_of(person)
    coveted = {**COVETED, "email": "evil@example.com", "password": NEW_PASSWORD}
    for body in [{name: value} for name, value in coveted.items()] if alone else [coveted]:
        reply = site.send("PATCH", "/auth/account/", token=person.access, body=body)
        assert reply.status == 200, body
    assert site.rows_of(person) == before
    assert site.get("check", token=person.access).body["claims"] == {}


@pytest.mark.parametrize("route", ["login", "refresh", "logout", "email/change", "password/change"])
def test_no_other_view_takes_what_only_the_server_decides(
    site: Site, person: Person, route: str
) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "login": {"username": person.username, "password": PASSWORD},
        "refresh": {"refresh_token": person.refresh},
        "logout": {"refresh_token": person.refresh},
        "email/change": {"current_password": PASSWORD, "email": f"new-{person.email}"},
        "password/change": {"current_password": PASSWORD, "new_password": NEW_PASSWORD},
    }
    token = person.access if "change" in route else ""
    before = site.rows_of(person)
    reply = site.post(route, {**COVETED, **bodies[route]}, token=token)
    assert reply.status < 300, reply
    after = site.rows_of(person)
    if route == "password/change":
        before, after = ([(*r[:7], *r[8:]) for r in rows] for rows in (before, after))
    assert after == before
    if "access_token" in (reply.body or {}):
        checked = site.get("check", token=reply.body["access_token"]).body
        assert checked["claims"] == {}
        assert checked["expires_in"] <= 300


def test_a_reset_takes_nothing_but_the_password(site: Site, person: Person) -> None:
    other = site.person()
    site.mail()
    site.post("password/reset", {"username": person.username, "address": other.email, **COVETED})
    (mail,) = site.mail()
    assert mail.to == [person.email]
    body = {"key": mail.key, "new_password": NEW_PASSWORD, "username": other.username}
    assert site.post("password/reset/confirm", {**COVETED, **body}).status == 204
    assert site.log_in(other.username, PASSWORD).status == 200
    assert site.log_in(person.username, NEW_PASSWORD).status == 200
    assert rights(site, person.id) == PLAIN
    assert site.sql("SELECT claims::text FROM accesspass_account") != []
    assert (
        site.get("check", token=site.log_in(other.username).body["access_token"]).body["claims"]
        == {}
    )


def test_a_key_and_its_expiry_cannot_be_cast_at_registration(site: Site) -> None:
    key = "ap_ek_" + "A" * 76
    name = site.name()
    cast = {"reset_key": key, "reset_expires": LATER, "key": key, "password_reset_key": key}
    assert site.register(name, **cast).status == 201
    refused = site.post("password/reset/confirm", {"key": key, "new_password": NEW_PASSWORD})
    assert refused.code == "invalid_key"
    assert site.log_in(name, PASSWORD).status == 200


def test_meta_never_becomes_a_claim(site: Site, person: Person) -> None:
    meta = {"role": "admin", "claims": {"role": "admin"}, "is_staff": True}
    reply = site.send("PATCH", "/auth/account/", token=person.access, body={"meta": meta})
    assert reply.body["user"]["meta"] == meta
    again = site.log_in(person.username).body["access_token"]
    assert site.get("check", token=again).body["claims"] == {}
    assert rights(site, person.id) == PLAIN


def test_a_session_chosen_by_the_client_is_ignored(site: Site, person: Person) -> None:
    (mine,) = site.get("sessions", token=person.access).body
    fixed = {"session_id": mine["id"], "id": mine["id"], "refresh_token": person.refresh}
    cookie = {"Cookie": f"sessionid={mine['id']}; refresh_token={person.refresh}"}
    reply = site.post(
        "login",
        {"username": person.username, "password": PASSWORD, **fixed},
        token=person.access,
        headers=cookie,
    )
    assert reply.status == 200
    listed = site.get("sessions", token=reply.body["access_token"]).body
    assert len(listed) == 2
    assert reply.body["refresh_token"] != person.refresh
    assert [x["current"] for x in listed if x["id"] == mine["id"]] == [False]
