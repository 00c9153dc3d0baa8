"""Nobody learns from an answer whether an account exists: not from status, body, headers, the
number of queries or the mail. Times are compared by ``benchmarks.enumeration``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.abuse.site import NEW_PASSWORD, PASSWORD, Person, Site
from tests.servers import free_port

ASKING = {"confirm/resend": "username", "password/reset": "username", "username/forgot": "email"}


def test_a_login_says_the_same_of_an_unknown_name_and_a_wrong_password(
    site: Site, person: Person
) -> None:
    unknown = site.log_in("nobody-of-this-name", "wrong")
    assert (unknown.status, unknown.code) == (401, "invalid_credentials")
    assert site.log_in(person.username, "wrong").seen == unknown.seen
    assert site.log_in(person.email, "wrong").seen == unknown.seen


def test_a_login_says_nothing_of_a_disabled_account(site: Site, person: Person) -> None:
    site.sql("UPDATE accesspass_user SET is_active = false WHERE id = %s", person.id)
    right = site.log_in(person.username, PASSWORD)
    assert right.status == 401
    assert right.seen == site.log_in("nobody-of-this-name", PASSWORD).seen


@pytest.mark.parametrize("by", ["username", "email"])
def test_a_login_says_nothing_of_an_unconfirmed_account(
    site: Site, person: Person, by: str
) -> None:
    with site.settings(REQUIRE_CONFIRMED_EMAIL=True):
        right = site.log_in(getattr(person, by), PASSWORD)
        assert right.status == 401
        assert right.seen == site.log_in(getattr(person, by), "wrong").seen
        assert right.seen == site.log_in("nobody-of-this-name", PASSWORD).seen


def test_a_login_says_nothing_of_an_account_without_a_password(site: Site, person: Person) -> None:
    site.sql("UPDATE accesspass_user SET password = '!unusable' WHERE id = %s", person.id)
    assert (
        site.log_in(person.username, PASSWORD).seen
        == site.log_in("nobody-of-this-name", PASSWORD).seen
    )


@pytest.mark.parametrize("route", ASKING)
def test_asking_for_mail_says_the_same_for_everybody(
    site: Site, person: Person, route: str
) -> None:
    site.mail()
    field = ASKING[route]
    known = site.post(route, {field: person.email})
    unknown = site.post(route, {field: "nobody@example.com"})
    assert known.status == 202
    assert known.seen == unknown.seen
    assert len({x.queries for x in (known, unknown)}) == 1
    assert [x.to for x in site.mail()] == [[person.email]]


def test_asking_for_mail_says_nothing_of_an_unusable_password(site: Site, person: Person) -> None:
    site.mail()
    site.sql("UPDATE accesspass_user SET password = '!unusable' WHERE id = %s", person.id)
    known = site.post("password/reset", {"username": person.username})
    assert known.seen == site.post("password/reset", {"username": "nobody-at-all"}).seen
    assert site.mail() == []


@pytest.mark.parametrize("route", ASKING)
def test_asking_again_at_once_says_the_same_for_everybody(
    site: Site, person: Person, route: str
) -> None:
    field = ASKING[route]
    seen = []
    for name in (person.email, "nobody-at-all@example.com"):
        for _ in range(3):
            seen.append(site.post(route, {field: name}).seen)
            site.mail()
    assert len(set(map(str, seen))) == 1


def test_a_mail_server_that_fails_is_invisible(site: Site, person: Person) -> None:
    site.mail()
    down = {
        "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "EMAIL_HOST": "127.0.0.1",
        "EMAIL_PORT": free_port(),
    }
    with site.settings(django=down):
        known = site.post("password/reset", {"username": person.username})
        assert site.mail() == []
        unknown = site.post("password/reset", {"username": "nobody-at-all"})
        again = site.post("password/reset", {"username": person.username})
    assert known.status == 202
    assert known.seen == unknown.seen == again.seen
    site.sql("UPDATE accesspass_mailrequest SET lease_until = now()")
    assert [x.to for x in site.mail()] == [[person.email]]


@pytest.mark.parametrize("taken", ["username", "email"])
def test_a_registration_says_the_same_of_a_taken_name_where_confirmation_is_required(
    site: Site, person: Person, taken: str
) -> None:
    site.mail()
    with site.settings(REQUIRE_CONFIRMED_EMAIL=True):
        free = site.register()
        fresh = f"{site.name()}@example.com"
        same = site.register(
            **({"username": person.username, "email": fresh} if taken == "username" else {}),
            **({"email": person.email} if taken == "email" else {}),
        )
    assert free.status == 202
    visible = [x for x in free.seen[1] if x[0] != "x-demo-queries"]  # type: ignore[attr-defined]
    assert [x for x in same.seen[1] if x[0] != "x-demo-queries"] == visible  # type: ignore[attr-defined]
    assert (same.status, same.content) == (free.status, free.content)
    told = person.email if taken == "email" else fresh
    mails = site.mail()
    assert len(mails) == 2
    assert [x.to for x in mails if x.to == [told]] == [[told]]


def test_a_change_of_address_says_nothing_of_a_taken_one(site: Site, person: Person) -> None:
    other = site.person()
    site.mail()
    body = {"current_password": PASSWORD}
    taken = site.post("email/change", {**body, "email": other.email}, token=person.access)
    free = site.post("email/change", {**body, "email": "free@example.com"}, token=person.access)
    assert taken.status == 202
    assert taken.seen == free.seen


def test_every_refused_key_gets_the_same_answer(site: Site, person: Person) -> None:
    used = site.key_for(person.email)
    assert site.post("confirm", {"key": used}).status == 200
    site.post("password/reset", {"username": person.username})
    other = site.key_for(person.email)
    expired = site.person()
    late = site.key_for(expired.email)
    site.sql("UPDATE accesspass_emailkey SET expires_at = now() WHERE user_id = %s", expired.id)
    keys = [used, other, late, "", "x", used[:-1] + ("A" if used[-1] != "A" else "B")]
    seen = {str(site.post("confirm", {"key": key}).content) for key in keys if key}
    assert len(seen) == 1
    assert site.post("confirm", {"key": late}).code == "invalid_key"


def test_somebody_elses_session_is_as_unknown_as_none(site: Site, person: Person) -> None:
    other = site.person()
    (session,) = site.get("sessions", token=other.access).body
    path = "/auth/sessions/{}/"
    theirs = site.send("DELETE", path.format(session["id"]), token=person.access)
    nobodys = site.send(
        "DELETE", path.format("0b6f0c9e-0000-4000-8000-000000000000"), token=person.access
    )
    assert theirs.status == 404
    assert theirs.seen == nobodys.seen
    assert site.is_let_in(other.access)


def test_logout_says_the_same_of_every_token(site: Site, person: Person) -> None:
    dead = site.person()
    assert site.post("logout", token=dead.access).status == 204
    bodies: list[dict[str, Any]] = [
        {"refresh_token": x}
        for x in (person.refresh, dead.refresh, "ap_rt_" + "A" * 76, "x", person.access)
    ]
    replies = [site.post("logout", body) for body in bodies]
    assert {x.status for x in replies} == {204}
    assert {x.content for x in replies} == {b""}


def test_introspection_says_nothing_of_a_token_that_is_not_active(
    site: Site, person: Person
) -> None:
    dead = site.person()
    assert site.post("logout", token=dead.access).status == 204
    seen = set()
    for token in (dead.access, person.refresh, "ap_at_" + "A" * 76, "x"):
        reply = site.send(
            "POST",
            "/auth/introspect/",
            content=f"token={token}".encode(),
            content_type="application/x-www-form-urlencoded",
            headers=site.service,
        )
        seen.add((reply.status, reply.content))
    assert seen == {(200, b'{"active":false}')}
    assert site.is_let_in(person.access)


def test_a_reset_says_nothing_of_the_user_before_the_key_is_right(
    site: Site, person: Person
) -> None:
    body = {"key": "ap_ek_" + "A" * 76, "new_password": person.username}
    assert site.post("password/reset/confirm", body).code == "invalid_key"
    body["new_password"] = NEW_PASSWORD
    assert site.post("password/reset/confirm", body).code == "invalid_key"
