"""Two spellings of one name are one name, and nobody's mail goes to a look-alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.abuse.site import NEW_PASSWORD, PASSWORD, Person, Site

# Each is the same as "mikes" followed by the same end, under NFKC and casefold.
SPELLINGS = {
    "casing": "MIKES{}",
    "a long s": "mike\u017f{}",
    "a Kelvin sign": "mi\u212aes{}",
    "full width": "\uff4d\uff49\uff4b\uff45\uff53{}",
    "mathematical bold": "\U0001d426ikes{}",
}
LOOK_ALIKES = {
    "a dotless i": "m\u0131kes{}",
    "a Cyrillic e": "mik\u0435s{}",
    "a Greek kappa": "mi\u03baes{}",
}
INVISIBLE = {
    "zero-width space": "\u200b",
    "zero-width joiner": "\u200d",
    "word joiner": "\u2060",
    "soft hyphen": "\u00ad",
    "right-to-left override": "\u202e",
    "byte order mark": "\ufeff",
}


def both(site: Site) -> tuple[str, str]:
    """The end of a name that nobody has, and the name."""
    end = site.name().removeprefix("mike")
    return end, f"mikes{end}"


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_username_is_taken_in_every_spelling(site: Site, kind: str) -> None:
    end, name = both(site)
    assert site.register(name).status == 201
    other = SPELLINGS[kind].format(end)
    assert other != name
    reply = site.register(other, email=f"other{end}@example.com")
    assert (reply.status, reply.code) == (400, "username_taken")
    assert site.log_in(other).status == 200


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("stra\u00dfe", "STRASSE"),
        ("\ufb00", "ff"),
        ("caf\u00e9", "cafe\u0301"),
        ("\u03c2", "\u03a3"),
    ],
    ids=["sharp s", "ligature", "accent", "final sigma"],
)
def test_a_username_that_folds_onto_another_is_taken(site: Site, one: str, other: str) -> None:
    end = site.name()
    assert site.register(one + end, email=f"{end}@example.com").status == 201
    reply = site.register(other + end, email=f"other{end}@example.com")
    assert reply.code == "username_taken"


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_a_look_alike_is_another_user_who_gets_no_mail_of_ours(site: Site, kind: str) -> None:
    end, name = both(site)
    assert site.register(name).status == 201
    other = LOOK_ALIKES[kind].format(end)
    site.mail()
    for asked in (other, f"{other}@example.com", f"{name}@ex\u0430mple.com"):
        assert site.post("password/reset", {"username": asked}).status == 202
        assert site.post("username/forgot", {"email": asked}).status == 202
    assert site.mail() == []
    assert site.log_in(other).status == 401
    refused = site.register(f"x{end}", email=f"{other}@example.com")
    assert refused.body["errors"]["email"]


@pytest.mark.parametrize("spelling", ["upper", "title", "domain"])
def test_an_address_is_taken_in_any_case(site: Site, person: Person, spelling: str) -> None:
    local, _, domain = person.email.partition("@")
    address = {
        "upper": person.email.upper(),
        "title": person.email.title(),
        "domain": f"{local}@{domain.upper()}",
    }[spelling]
    reply = site.register(email=address)
    assert (reply.status, reply.code) == (400, "email_taken")


def test_a_reset_goes_to_the_stored_address_alone(site: Site) -> None:
    end, name = both(site)
    assert site.register(name, email=f"Mikes{end}@example.com").status == 201
    site.mail()
    kelvin = f"mi\u212ae\u017f{end}@example.com"
    assert site.post("password/reset", {"username": kelvin}).status == 202
    assert [x.to for x in site.mail()] == [[f"Mikes{end}@example.com"]]


@pytest.mark.parametrize("kind", INVISIBLE)
def test_what_cannot_be_seen_is_in_no_name(site: Site, person: Person, kind: str) -> None:
    hidden = INVISIBLE[kind]
    name = person.username[:3] + hidden + person.username[3:]
    reply = site.register(name, email=f"{site.name()}@example.com")
    assert reply.body["errors"]["username"]
    reply = site.register(email=f"{site.name()}{hidden}@example.com")
    assert reply.body["errors"]["email"]
    body = {"username": name, "current_password": PASSWORD}
    changed = site.send("PATCH", "/auth/account/", token=person.access, body=body)
    assert changed.body["errors"]["username"]


@pytest.mark.parametrize("at", ["@", "\uff20", "\ufe6b"], ids=["@", "full width", "small"])
def test_a_username_cannot_be_somebody_elses_address(site: Site, person: Person, at: str) -> None:
    name = person.email.replace("@", at)
    fresh = site.name()
    reply = site.register(name, email=f"{fresh}@example.com")
    assert reply.status == 400
    assert site.log_in(person.email).status == 200
    other = site.person()
    body = {"username": name, "current_password": PASSWORD}
    assert site.send("PATCH", "/auth/account/", token=other.access, body=body).status == 400
    # Nor the address that somebody is going to have.
    reply = site.register(f"future{at}example.com", email=f"{fresh}@example.com")
    assert reply.status == 400


def test_an_old_username_equal_to_an_address_breaks_nobodys_login(
    site: Site, person: Person
) -> None:
    """From before the installation: the row was not made by a registration."""
    squatter = site.person()
    site.sql("UPDATE accesspass_user SET username = %s WHERE id = %s", person.email, squatter.id)
    reply = site.log_in(person.username)
    assert reply.status == 200
    site.mail()
    assert site.post("password/reset", {"username": person.username}).status == 202
    assert [x.to for x in site.mail()] == [[person.email]]


@pytest.mark.parametrize("separator", [",", ", ", ";", " ", "%2c", "\t"])
def test_a_list_of_addresses_reaches_nobody(site: Site, person: Person, separator: str) -> None:
    site.mail()
    both = f"{person.email}{separator}evil@example.com"
    for route, field in [
        ("password/reset", "username"),
        ("confirm/resend", "username"),
        ("username/forgot", "email"),
    ]:
        assert site.post(route, {field: both}).status == 202
    assert site.mail() == []
    assert site.register(email=both).body["errors"]["email"]
    body = {"email": both, "current_password": PASSWORD}
    assert site.post("email/change", body, token=person.access).body["errors"]["email"]
    assert site.mail() == []


@pytest.mark.parametrize(
    "shape",
    ["list", "nested", "object", "pairs"],
)
def test_an_array_of_addresses_reaches_nobody(site: Site, person: Person, shape: str) -> None:
    site.mail()
    addresses = [person.email, "evil@example.com"]
    value: Any = {
        "list": addresses,
        "nested": [addresses],
        "object": dict(enumerate(addresses)),
        "pairs": {"email": addresses},
    }[shape]
    for route, field in [("password/reset", "username"), ("username/forgot", "email")]:
        reply = site.post(route, {field: value})
        assert (reply.status, reply.code) == (400, "invalid")
    assert site.mail() == []


@pytest.mark.parametrize(
    "address",
    [
        "Mike <{}>",
        '"{}"@evil.example.net',
        "{}@evil.example.net",
        "{}\u0000@evil.example.net",
        "evil@evil.example.net\n{}",
        "{}(comment)",
        "<{}>",
        "\u043c{}",
        "a@b@{}",
        "a@b\uff20{}",
    ],
)
def test_an_address_that_is_not_exactly_one_is_refused(
    site: Site, person: Person, address: str
) -> None:
    wanted = address.format(person.email)
    reply = site.register(email=wanted)
    assert reply.status == 400
    body = {"email": wanted, "current_password": PASSWORD}
    assert site.post("email/change", body, token=person.access).status == 400
    site.mail()
    site.post("password/reset", {"username": wanted})
    assert site.mail() == []


def test_a_change_to_the_address_of_another_in_any_case_gives_no_key(
    site: Site, person: Person
) -> None:
    other = site.person()
    site.mail()
    body = {"email": other.email.upper(), "current_password": PASSWORD}
    assert site.post("email/change", body, token=person.access).status == 202
    mails = site.mail()
    assert [x.to for x in mails] == [[other.email]]
    assert [x.key for x in mails] == [None]


def test_a_name_that_was_given_up_is_free_and_leads_to_its_new_owner(
    site: Site, person: Person
) -> None:
    new = site.name()
    body = {"username": new, "current_password": PASSWORD}
    assert site.send("PATCH", "/auth/account/", token=person.access, body=body).status == 200
    assert site.log_in(person.username).status == 401
    heir = site.register(person.username, email=f"{new}@example.org", password=NEW_PASSWORD)
    assert heir.status == 201
    assert site.log_in(person.username, PASSWORD).status == 401
    assert site.log_in(person.username, NEW_PASSWORD).status == 200
    assert site.log_in(new, PASSWORD).status == 200
