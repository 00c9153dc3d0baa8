"""Nothing that a client sends changes whom an e-mail goes to, what headers it has, or where its
link leads."""

from __future__ import annotations

import re

import pytest

from tests.abuse.site import PASSWORD, Mail, Person, Site

BREAKS = {
    "CRLF": "\r\nBcc: evil@example.com\r\n\r\n",
    "LF": "\nBcc: evil@example.com",
    "CR": "\rBcc: evil@example.com",
    "a folded line": "\r\n Bcc: evil@example.com",
    "a line separator": "\u2028Bcc: evil@example.com",
    "a next line": "\u0085Bcc: evil@example.com",
    "a vertical tab": "\x0bBcc: evil@example.com",
    "a quoted end": '"\r\nBcc: evil@example.com',
    "an encoded word": "=?utf-8?q?=0d=0aBcc:_evil@example.com?=",
}
EVIL_HOSTS: dict[str, dict[str, str]] = {
    "Host": {"Host": "evil.example.net"},
    "Host with the right one in it": {"Host": "app.example.com.evil.example.net"},
    "Host with credentials": {"Host": "app.example.com@evil.example.net"},
    "X-Forwarded-Host": {"X-Forwarded-Host": "evil.example.net"},
    "X-Forwarded-Host and Proto": {
        "X-Forwarded-Host": "evil.example.net",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Server": "evil.example.net",
    },
    "X-Host": {"X-Host": "evil.example.net", "X-Original-Host": "evil.example.net"},
    "Forwarded": {"Forwarded": "for=1.1.1.1;host=evil.example.net;proto=http"},
    "X-Original-URL": {
        "X-Original-URL": "//evil.example.net/",
        "X-Rewrite-URL": "//evil.example.net/",
    },
    "Origin": {"Origin": "https://evil.example.net", "Referer": "https://evil.example.net/"},
}


def assert_goes_to_one(mail: Mail, address: str) -> None:
    message = mail.message
    assert mail.to == [address]
    assert message.get_all("To") == [address]
    assert not {"cc", "bcc", "reply-to"} & {x.lower() for x in message}
    assert "evil" not in str(message["Subject"])


@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("field", ["username", "email", "password", "meta"])
def test_no_field_of_a_registration_adds_a_header(site: Site, kind: str, field: str) -> None:
    name, broken = site.name(), BREAKS[kind]
    value = {
        "username": name + broken,
        "email": f"{name}@example.com{broken}",
        "password": PASSWORD + broken,
        "meta": {broken: broken},
    }[field]
    reply = site.register(**{"username": name, "email": f"{name}@example.com", field: value})
    mails = site.mail()
    if reply.status == 201:
        (mail,) = mails
        assert_goes_to_one(mail, f"{name}@example.com")
        assert field in ("password", "meta")
    else:
        assert (reply.status, mails) == (400, [])
        assert reply.body["errors"][field]


@pytest.mark.parametrize("kind", BREAKS)
def test_no_change_of_name_or_address_adds_a_header(site: Site, person: Person, kind: str) -> None:
    site.mail()
    body = {"current_password": PASSWORD, "email": person.email + BREAKS[kind]}
    assert site.post("email/change", body, token=person.access).status == 400
    body = {"current_password": PASSWORD, "username": person.username + BREAKS[kind]}
    reply = site.send("PATCH", "/auth/account/", token=person.access, body=body)
    assert reply.status == 400
    for route, field in [("password/reset", "username"), ("username/forgot", "email")]:
        assert site.post(route, {field: person.email + BREAKS[kind]}).status in (202, 400)
        assert site.mail() == []
        assert site.post(route, {field: person.email}).status == 202
        (mail,) = site.mail()
        assert_goes_to_one(mail, person.email)


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept-Language": "de\x0bBcc: evil@example.com"},
        {"Accept-Language": "../../../../etc/passwd"},
        {"User-Agent": "x (Bcc: evil@example.com)"},
        {"From": "evil@example.com", "Reply-To": "evil@example.com"},
        {"X-Forwarded-For": "evil@example.com"},
    ],
    ids=["language", "path", "agent", "from", "address"],
)
def test_no_header_of_a_request_becomes_one_of_an_email(
    site: Site, person: Person, headers: dict[str, str]
) -> None:
    site.mail()
    assert site.post("password/reset", {"username": person.email}, headers=headers).status in (
        202,
        400,
    )
    for mail in site.mail():
        assert_goes_to_one(mail, person.email)
        assert "evil" not in mail.source


@pytest.mark.parametrize("kind", EVIL_HOSTS)
def test_no_host_of_a_request_gets_into_a_link(site: Site, person: Person, kind: str) -> None:
    site.mail()
    reply = site.post("password/reset", {"username": person.email}, headers=EVIL_HOSTS[kind])
    if reply.status == 400:  # what is no host at all, Django itself refuses
        assert site.mail() == []
        return
    (mail,) = site.mail()
    assert "evil" not in mail.source
    for kind_of_part in ("plain", "html"):
        links = re.findall(r"https?://[^\s\"<]+", mail.part(kind_of_part))
        assert [x for x in links if "ap_ek_" in x]
        assert {x.split("/")[2] for x in links} == {"app.example.com"}


def test_an_absolute_request_line_gets_into_no_link(site: Site, person: Person) -> None:
    site.mail()
    reply = site.send(
        "POST", "http://evil.example.net/auth/password/reset/", body={"username": person.email}
    )
    for mail in site.mail():
        assert "evil" not in mail.source
    assert reply.status < 500


def test_a_key_stands_in_the_fragment_of_an_https_link(site: Site, person: Person) -> None:
    for mail in site.mail():
        (link,) = re.findall(r"\S*ap_ek_\S+", mail.part("plain"))
        before, _, fragment = link.partition("#")
        assert before.startswith("https://app.example.com/")
        assert "ap_ek_" not in before
        assert fragment.startswith("key=ap_ek_")


def test_markup_in_a_name_stays_text(site: Site, person: Person) -> None:
    """Our own user model has no such names; others do."""
    name = f"<a href='//x.example.net'>{{{{7*7}}}}{{% now 'Y' %}}</a>{person.username}"
    site.sql("UPDATE accesspass_user SET username = %s WHERE id = %s", name, person.id)
    site.mail()
    assert site.post("username/forgot", {"email": person.email}).status == 202
    (mail,) = site.mail()
    assert "<a href='//x.example.net'>" not in mail.part("html")
    assert "&lt;a href=" in mail.part("html")
    assert "{{7*7}}" in mail.part("html")
    assert name in mail.part("plain")
