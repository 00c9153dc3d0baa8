"""An account that an attacker had a hand in before its owner took it is the owner's alone."""

from __future__ import annotations

import pytest

from tests.abuse.site import NEW_PASSWORD, PASSWORD, Person, Site


def reset(site: Site, person: Person, password: str = NEW_PASSWORD) -> None:
    """What the owner does, who has the mailbox and never knew the password."""
    site.mail()
    assert site.post("password/reset", {"username": person.email}).status == 202
    body = {"key": site.key_for(person.email), "new_password": password}
    assert site.post("password/reset/confirm", body).status == 204


def assert_shut_out(site: Site, person: Person, *pairs: tuple[str, str]) -> None:
    for access, refresh in [(person.access, person.refresh), *pairs]:
        assert not site.is_let_in(access)
        assert site.post("refresh", {"refresh_token": refresh}).code == "invalid_token"
    assert site.log_in(person.username, PASSWORD).status == 401


def test_a_change_key_from_before_a_reset_is_void(site: Site, person: Person) -> None:
    body = {"current_password": PASSWORD, "email": f"evil-{person.email}"}
    assert site.post("email/change", body, token=person.access).status == 202
    key = site.key_for(body["email"])
    reset(site, person)
    assert site.post("email/change/confirm", {"key": key}).code == "invalid_key"
    assert site.rows_of(person)[0][2] == person.email


def test_a_change_that_waits_to_be_mailed_does_not_outlive_a_reset(
    site: Site, person: Person
) -> None:
    site.mail()
    assert site.post("password/reset", {"username": person.email}).status == 202
    key = site.key_for(person.email)
    body = {"current_password": PASSWORD, "email": f"evil-{person.email}"}
    assert site.post("email/change", body, token=person.access).status == 202
    reset_body = {"key": key, "new_password": NEW_PASSWORD}
    assert site.post("password/reset/confirm", reset_body).status == 204
    assert [body["email"]] not in [x.to for x in site.mail()]


def test_a_session_from_before_a_reset_ends(site: Site, person: Person) -> None:
    pairs = []
    for _ in range(3):
        pair = site.log_in(person.username).body
        pairs.append((pair["access_token"], pair["refresh_token"]))
    rotated = site.post("refresh", {"refresh_token": pairs[0][1]}).body
    pairs.append((rotated["access_token"], rotated["refresh_token"]))
    reset(site, person)
    assert_shut_out(site, person, *pairs)


def test_a_registration_with_somebody_elses_address_is_theirs_after_a_reset(site: Site) -> None:
    attacker = site.person()  # who never confirms, since the mail goes to the owner
    assert site.rows_of(attacker)[0][9] is None
    reset(site, attacker)
    assert_shut_out(site, attacker)
    assert site.log_in(attacker.email, NEW_PASSWORD).status == 200


def test_an_unconfirmed_registration_lets_nobody_in_where_confirmation_is_required(
    site: Site,
) -> None:
    victim = f"{site.name()}@example.com"
    with site.settings(REQUIRE_CONFIRMED_EMAIL=True):
        assert site.register(email=victim).status == 202
        site.mail()
        assert site.log_in(victim).status == 401
        # The owner registers too, is told, and takes the account over by a reset.
        assert site.register(email=victim, password=NEW_PASSWORD).status == 202
        (told,) = [x for x in site.mail() if x.to == [victim]]
        assert told.key is None
        assert site.log_in(victim, NEW_PASSWORD).status == 401
        assert site.post("password/reset", {"username": victim}).status == 202
        body = {"key": site.key_for(victim), "new_password": NEW_PASSWORD}
        assert site.post("password/reset/confirm", body).status == 204
        assert site.log_in(victim, PASSWORD).status == 401
        assert site.log_in(victim, NEW_PASSWORD).status == 200


@pytest.mark.parametrize("change", ["password", "email", "reset"])
def test_a_reset_key_is_void_after_any_change(site: Site, person: Person, change: str) -> None:
    site.mail()
    assert site.post("password/reset", {"username": person.email}).status == 202
    old = site.key_for(person.email)
    if change == "password":
        body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        assert site.post("password/change", body, token=person.access).status == 204
    elif change == "email":
        body = {"current_password": PASSWORD, "email": f"new-{person.email}"}
        assert site.post("email/change", body, token=person.access).status == 202
        key = site.key_for(body["email"])
        assert site.post("email/change/confirm", {"key": key}).status == 204
    else:
        body = {"key": old, "new_password": NEW_PASSWORD}
        assert site.post("password/reset/confirm", body).status == 204
    late = {"key": old, "new_password": "a third good phrase"}
    assert site.post("password/reset/confirm", late).code == "invalid_key"


def test_a_reset_key_is_bound_to_the_address_it_went_to(site: Site, person: Person) -> None:
    site.mail()
    assert site.post("password/reset", {"username": person.email}).status == 202
    old = site.key_for(person.email)
    site.sql("UPDATE accesspass_user SET email = 'moved@example.com' WHERE id = %s", person.id)
    body = {"key": old, "new_password": NEW_PASSWORD}
    assert site.post("password/reset/confirm", body).code == "invalid_key"


def test_a_mail_scanner_that_follows_links_uses_no_key_up(site: Site, person: Person) -> None:
    key = site.key_for(person.email)
    for method in ("GET", "HEAD", "OPTIONS", "PUT"):
        for path in (f"/auth/confirm/?key={key}", f"/auth/confirm/{key}/", "/auth/confirm/"):
            reply = site.send(method, path, body={"key": key} if method == "PUT" else None)
            assert reply.status in (404, 405)
    assert site.post("confirm", {"key": key}).status == 200


def test_a_key_for_one_account_opens_no_other(site: Site, person: Person) -> None:
    other = site.person()
    site.mail()
    assert site.post("password/reset", {"username": person.email}).status == 202
    body = {"key": site.key_for(person.email), "new_password": NEW_PASSWORD}
    more = {"username": other.username, "email": other.email, "user": other.id}
    assert site.post("password/reset/confirm", {**body, **more}).status == 204
    assert site.log_in(other.username, NEW_PASSWORD).status == 401


def test_who_takes_an_account_over_is_not_followed_by_the_old_address(
    site: Site, person: Person
) -> None:
    """The owner is told of a change of address, at the old one, and that mail has no key in it."""
    site.mail()
    body = {"current_password": PASSWORD, "email": f"new-{person.email}"}
    assert site.post("email/change", body, token=person.access).status == 202
    key = site.key_for(body["email"])
    assert site.post("email/change/confirm", {"key": key}).status == 204
    (told,) = site.mail()
    assert (told.to, told.key) == ([person.email], None)
    site.post("password/reset", {"username": person.email})
    assert site.mail() == []
