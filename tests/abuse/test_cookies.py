"""Where the refresh token travels in a cookie, another site gets nowhere with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.abuse.site import PASSWORD, Person, Reply, Site

NAME = "__Secure-refresh"
HOME = {"Origin": "https://app.example.com"}


@pytest.fixture(autouse=True)
def _cookies(site: Site, person: Person) -> Iterator[None]:
    with site.settings(REFRESH_COOKIE=NAME):
        yield


def cookie(token: str) -> dict[str, str]:
    return {"Cookie": f"{NAME}={token}"}


def refresh(site: Site, headers: dict[str, str]) -> Reply:
    return site.post("refresh", headers=headers)


def test_the_token_is_in_no_body_and_out_of_reach_of_scripts(site: Site, person: Person) -> None:
    for reply in (
        site.log_in(person.username, headers=HOME),
        site.register(),
        refresh(site, {**HOME, **cookie(person.refresh)}),
    ):
        assert reply.status < 300
        assert b"ap_rt_" not in reply.content
        (sent,) = [value for name, value in reply.headers if name == "set-cookie"]
        assert sent.startswith(f"{NAME}=ap_rt_")
        attributes = {x.strip().lower() for x in sent.split(";")}
        assert {"httponly", "secure", "samesite=strict", "path=/auth/"} <= attributes
        assert not any(x.startswith("domain") for x in attributes)


def test_a_token_in_the_body_is_refused(site: Site, person: Person) -> None:
    body = {"refresh_token": person.refresh}
    for route in ("refresh", "logout", "logout/all"):
        for headers in ({}, HOME, {**HOME, **cookie(person.refresh)}):
            reply = site.post(route, body, headers=headers)
            assert (reply.status, reply.code) == (400, "invalid"), route
    assert refresh(site, {**HOME, **cookie(person.refresh)}).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "",
        "https://evil.example.net",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://sibling.example.com",
        "https://app.example.com.evil.example.net",
        "https://evil.example.net/app.example.com",
        "https://app.example.com@evil.example.net",
        "https://app.example.com, https://evil.example.net",
        "file://",
    ],
)
def test_the_cookie_counts_on_no_page_but_the_projects(
    site: Site, person: Person, origin: str | None
) -> None:
    headers = cookie(person.refresh) | ({} if origin is None else {"Origin": origin})
    for route in ("refresh", "logout", "logout/all"):
        reply = site.post(route, headers=headers)
        assert (reply.status, reply.code) == (403, "origin_not_allowed")
    assert site.is_let_in(person.access)
    assert refresh(site, {**HOME, **cookie(person.refresh)}).status == 200


@pytest.mark.parametrize("where", ["cross-site", "none", "x"])
def test_what_the_browser_says_of_a_request_counts(site: Site, person: Person, where: str) -> None:
    headers = {**HOME, **cookie(person.refresh), "Sec-Fetch-Site": where}
    assert refresh(site, headers).code == "origin_not_allowed"


def test_another_page_logs_nobody_in(site: Site, person: Person) -> None:
    """Which would have the visitor work in the attacker's account."""
    evil = {"Origin": "https://sibling.example.com"}
    reply = site.log_in(person.username, PASSWORD, headers=evil)
    assert (reply.status, reply.code) == (403, "origin_not_allowed")
    assert reply.header("Set-Cookie") == ""
    form = site.send(
        "POST",
        "/auth/login/",
        content=f"username={person.username}&password={PASSWORD}".encode(),
        content_type="text/plain",
    )
    assert form.status == 415


@pytest.mark.parametrize("order", ["before", "behind", "twice", "quoted", "spaced"])
def test_a_cookie_that_a_sibling_has_tossed_in_is_refused(
    site: Site, person: Person, order: str
) -> None:
    attacker = site.log_in(site.person_in_cookies().username, headers=HOME)
    (sent,) = [value for name, value in attacker.headers if name == "set-cookie"]
    tossed = sent.partition(";")[0].partition("=")[2]
    mine, theirs = f"{NAME}={person.refresh}", f"{NAME}={tossed}"
    header = {
        "before": f"{theirs}; {mine}",
        "behind": f"{mine}; {theirs}",
        "twice": f"{mine};{mine}",
        "quoted": f'{mine}; {NAME}="{tossed}"',
        "spaced": f"{mine} ;  {NAME} = {tossed}",
    }[order]
    for route in ("refresh", "logout"):
        reply = site.post(route, headers={**HOME, "Cookie": header})
        assert (reply.status, reply.code) == (400, "invalid"), route
    assert site.is_let_in(person.access)


def test_two_cookie_headers_are_two_cookies(site: Site, person: Person) -> None:
    other = site.person_in_cookies()
    pairs = [
        ("Origin", HOME["Origin"]),
        ("Cookie", f"{NAME}={other.refresh}"),
        ("Cookie", f"{NAME}={person.refresh}"),
    ]
    reply = site.post("refresh", headers=pairs)
    assert reply.status in (400, 401)
    assert site.is_let_in(person.access)


def test_the_cookie_is_no_access_token(site: Site, person: Person) -> None:
    for path in ("/hello/", "/auth/check/", "/auth/account/"):
        reply = site.send("GET", path, headers={**HOME, **cookie(person.access)})
        assert reply.status == 401
    assert refresh(site, {**HOME, **cookie(person.access)}).code == "invalid_token"


@pytest.mark.parametrize(
    "name", ["refresh", "__secure-refresh", "__Secure-refresh ", "x__Secure-refresh"]
)
def test_a_cookie_of_another_name_is_none(site: Site, person: Person, name: str) -> None:
    if name.endswith(" "):
        name = name + "\u00a0"
    headers = {**HOME, "Cookie": f"{name}={person.refresh}"}
    assert refresh(site, headers).code == "token_required"


@pytest.mark.parametrize("value", ["", "x", '"', "\xff", "ap_rt_" + "A" * 76, "a" * 7000, "\x01"])
def test_a_cookie_that_is_no_token_is_refused(site: Site, person: Person, value: str) -> None:
    reply = refresh(site, {**HOME, **cookie(value)})
    assert reply.status in (400, 401)
    assert reply.code in ("invalid_token", "token_required", None)
