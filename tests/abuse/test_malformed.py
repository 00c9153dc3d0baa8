"""Every route, each with everything that a parser may choke on: no 5xx, and a code that is known.

What gunicorn refuses by itself, a NUL in a header for one, has no body of ours: those answers are
told by their media type, and are below 500 as well.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.abuse.site import PASSWORD, Person, Reply, Site, request

FORM = "application/x-www-form-urlencoded"
SERVICES = ("introspect", "revoke")
#: Route, method, and whether it wants the access token.
ROUTES: dict[str, tuple[str, bool]] = {
    "register": ("POST", False),
    "login": ("POST", False),
    "refresh": ("POST", False),
    "check": ("GET", True),
    "logout": ("POST", False),
    "logout/all": ("POST", False),
    "sessions": ("GET", True),
    "sessions/0b6f0c9e-0000-4000-8000-000000000000": ("DELETE", True),
    "introspect": ("POST", False),
    "revoke": ("POST", False),
    "confirm": ("POST", False),
    "confirm/resend": ("POST", False),
    "password/reset": ("POST", False),
    "password/reset/confirm": ("POST", False),
    "password/change": ("POST", True),
    "username/forgot": ("POST", False),
    "email/change": ("POST", True),
    "email/change/confirm": ("POST", False),
    "account": ("PATCH", True),
    "account/delete": ("POST", True),
}
CODES = {
    "invalid",
    "invalid_client",
    "invalid_credentials",
    "invalid_key",
    "invalid_token",
    "method_not_allowed",
    "not_acceptable",
    "email_taken",
    "not_found",
    "parse_error",
    "token_required",
    "unsupported_media_type",
    "username_taken",
}
DEEP = 50_000
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \r\n\t",
    "nonsense": b"nonsense",
    "cut off": b'{"username": "bob',
    "two objects": b"{}{}",
    "a list": b"[1]",
    "an empty list": b"[]",
    "a string": b'"username"',
    "a number": b"12",
    "null": b"null",
    "a raw NUL": b'{"username": "b\0b"}',
    "an escaped NUL": b'{"%s": "b\\u0000b"}',
    "a NUL in a key": b'{"user\\u0000name": "bob"}',
    "not UTF-8": b'{"%s": "\xff\xfe"}',
    "only not UTF-8": b"\xff\xfe",
    "UTF-16": '{"username": "bob"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"username": "bob"}',
    "a lone surrogate": b'{"%s": "\\ud800"}',
    "a surrogate as bytes": b'{"%s": "\xed\xa0\x80"}',
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"%s":' * 2000 + b"1" + b"}" * 2000,
    "a huge number": b'{"%s": ' + b"9" * 6000 + b"}",
    "an exponent": b'{"%s": 1e999999}',
    "NaN": b'{"%s": NaN}',
    "Infinity": b'{"%s": -Infinity}',
    "a key twice": b'{"%s": "a", "%s": ["b"], "%s": null}',
    "many keys": json.dumps({f"k{n}": n for n in range(5000)}).encode(),
    "an empty key": b'{"": ""}',
    "a prototype": b'{"__proto__": {"is_staff": true}, "constructor": 1}',
    "a form": b"username=a&password=b&token=c",
    "a form of many": b"&".join(b"a%d=1" % n for n in range(3000)),
    "a form with NUL": b"token=%00&username=%00",
    "a form that is not UTF-8": b"token=%ff%fe&username=\xff\xfe",
    "a form with one twice": b"token=a&token=b",
    "multipart": b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\nbob\r\n--x--\r\n',
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
}
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**63,
    10**300,
    "",
    " ",
    "\n",
    [],
    ["x"],
    [[]],
    {},
    {"x": ["y"]},
    "x" * 100_000,
    "\u202e\u200b\ufeff",
    "\U0010ffff",
    "%00%ff",
    "\\x00",
    "../../etc/passwd",
    "{{ 7*7 }}{% debug %}",
]
#: The fields that a route reads; the value of any other is thrown away.
FIELDS: dict[str, list[str]] = {
    "register": ["username", "email", "password", "password_confirm", "meta"],
    "login": ["username", "password"],
    "refresh": ["refresh_token"],
    "logout": ["refresh_token"],
    "logout/all": ["refresh_token"],
    "introspect": ["token"],
    "revoke": ["token"],
    "confirm": ["key"],
    "confirm/resend": ["username"],
    "password/reset": ["username"],
    "password/reset/confirm": ["key", "new_password", "password_confirm"],
    "password/change": ["current_password", "new_password", "password_confirm"],
    "username/forgot": ["email"],
    "email/change": ["current_password", "email"],
    "email/change/confirm": ["key"],
    "account": ["username", "meta", "current_password"],
    "account/delete": ["current_password"],
}
HEADERS: dict[str, dict[str, str | bytes]] = {
    "not UTF-8": {"Authorization": b"Bearer \xff\xfe"},
    "NUL": {"Authorization": b"Bearer \0"},
    "only NUL": {"Authorization": b"\0"},
    "empty": {"Authorization": ""},
    "scheme alone": {"Authorization": "Bearer"},
    "scheme and spaces": {"Authorization": "Bearer    "},
    "three words": {"Authorization": "Bearer a b"},
    "a long token": {"Authorization": "Bearer " + "a" * 8000},
    "too long a token": {"Authorization": "Bearer " + "a" * 100_000},
    "a basic that is none": {"Authorization": "Basic !!!"},
    "a basic that is not UTF-8": {"Authorization": "Basic //79/Q=="},
    "a surrogate": {"Authorization": b"Bearer \xed\xa0\x80"},
    "an unknown scheme": {"Authorization": "Digest username=x"},
    "languages": {"Accept-Language": "x" * 4000 + ",\xff;q=nan,*;q=1e999,../../x"},
    "a language that is a path": {"Accept-Language": "../../../etc/passwd"},
    "what is accepted": {"Accept": "text/html;q=x, */\xff, application/xml"},
    "nothing is accepted": {"Accept": "application/x-nothing"},
    "a host that is none": {"Host": "a b\xff"},
    "a host with a port that is none": {"Host": "127.0.0.1:99999999"},
    "no host": {"Host": ""},
    "cookies": {"Cookie": b"a=\xff\xfe; \0; sessionid=" + b"x" * 3000},
    "an agent": {"User-Agent": b"\xff\xfe" + b"x" * 5000},
    "addresses": {"X-Forwarded-For": "x, ,, 1.2.3.4.5, ::ffff:%00, " + "1.1.1.1," * 300},
    "an origin": {"Origin": "http://[::1"},
    "a referer": {"Referer": "http://[\xff"},
    "a method override": {"X-HTTP-Method-Override": "DELETE"},
    "a content encoding": {"Content-Encoding": "gzip"},
    "a range": {"Range": "bytes=0-", "If-Modified-Since": "x", "If-Match": "\xff"},
    "a content length that is none": {"Content-Length": "x"},
    "a negative content length": {"Content-Length": "-1"},
    "an expectation": {"Expect": "100-continue"},
}
QUERIES = [
    "?page=" + "9" * 3000,
    "?a=%00",
    "?a=%ff%fe",
    "?a=%ed%a0%80",
    "?" + "a&" * 1500,
    "?format=xml",
    "?limit=-1&offset=1e999&cursor=%ff&ordering=password&search=%00",
    "?%",
    "?key[$ne]=1&username[]=x",
]
MEDIA_TYPES = [
    "",
    "text/plain",
    FORM,
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "application/xml",
    "application/json; charset=utf-16",
    "application/json; charset=nonsense",
    "application/json; charset=\xff",
    "application/json;" + "x" * 3000,
    "application/merge-patch+json",
    "application/x-python-pickle",
    "nonsense",
    "\xff\xfe",
    "*/*",
]


def send(site: Site, route: str, person: Person, **more: Any) -> bytes:
    """A request to a route as it should be, but for what is given."""
    method, wants_token = ROUTES[route]
    headers = dict(more.pop("headers", {}))
    if wants_token:
        headers = {"Authorization": f"Bearer {person.access}", **headers}
    if route in SERVICES:
        headers = {**site.service, **headers}
        more.setdefault("content_type", FORM)
    more.setdefault("content", b"{}")
    query = more.pop("query", "")
    return request(more.pop("method", method), f"/auth/{route}/{query}", headers=headers, **more)


def assert_plain(reply: Reply, what: object, *, server: bool = False) -> None:
    """Assert that a reply is a refusal with a code, or a success; never an error of ours."""
    assert reply.status < 500, (what, reply)
    if reply.status >= 400:
        if server and not reply.header("Content-Type").startswith("application/json"):
            return
        if reply.status == 413:
            assert reply.code == "parse_error", (what, reply)
            return
        assert reply.code in CODES, (what, reply)
        assert isinstance(reply.body["detail"], str)


@pytest.mark.parametrize("route", ROUTES)
def test_no_body_is_an_internal_error(site: Site, person: Person, route: str) -> None:
    # The field that the route reads first, so that the value reaches the deepest.
    field = b"token" if route in SERVICES else b"username"
    bodies = {name: body.replace(b"%s", field) for name, body in BODIES.items()}
    replies = site.at_once([send(site, route, person, content=x) for x in bodies.values()])
    for name, reply in zip(bodies, replies, strict=True):
        assert_plain(reply, name)
        if ROUTES[route][0] == "POST" and route not in ("logout", "logout/all"):
            assert reply.status >= 400 or route in SERVICES or "a key twice" in name, name


@pytest.mark.pipeline
@pytest.mark.parametrize("route", FIELDS)
def test_no_value_of_a_field_is_an_internal_error(site: Site, person: Person, route: str) -> None:
    good = {
        "username": person.username,
        "email": person.email,
        "password": "wrong",
        "refresh_token": "x",
        "key": "x",
        "new_password": "x",
        "current_password": "wrong",
    }
    requests, names = [], []
    for field in FIELDS[route]:
        for value in VALUES:
            body = json.dumps({**good, field: value}).encode()
            requests.append(send(site, route, person, content=body))
            names.append((field, value))
    replies: list[Reply] = []
    for first in range(0, len(requests), 60):
        replies += site.at_once(requests[first : first + 60])
    for name, reply in zip(names, replies, strict=True):
        assert_plain(reply, str(name)[:100])


@pytest.mark.parametrize("route", ROUTES)
def test_no_header_is_an_internal_error(site: Site, person: Person, route: str) -> None:
    replies = site.at_once([send(site, route, person, headers=x) for x in HEADERS.values()])
    for name, reply in zip(HEADERS, replies, strict=True):
        assert_plain(reply, name, server=True)


@pytest.mark.pipeline
@pytest.mark.parametrize("route", ROUTES)
def test_no_query_and_no_media_type_is_an_internal_error(
    site: Site, person: Person, route: str
) -> None:
    requests = [send(site, route, person, query=x) for x in QUERIES]
    requests += [send(site, route, person, content_type=x) for x in MEDIA_TYPES]
    for what, reply in zip([*QUERIES, *MEDIA_TYPES], site.at_once(requests), strict=True):
        assert_plain(reply, what[:100], server=what == "")


@pytest.mark.parametrize("route", ROUTES)
def test_no_other_method_does_anything(site: Site, person: Person, route: str) -> None:
    others = [
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "TRACE",
        "PROPFIND",
        "BREW",
    ]
    allowed = {ROUTES[route][0]} | ({"GET"} if route == "account" else set())
    allowed |= {"HEAD"} if "GET" in allowed else set()
    others = [x for x in others if x not in allowed]
    replies = site.at_once([send(site, route, person, method=x) for x in others])
    for method, reply in zip(others, replies, strict=True):
        assert reply.status == 405, (method, reply)
        if method != "HEAD":
            assert reply.code == "method_not_allowed"
    assert site.is_let_in(person.access)


@pytest.mark.parametrize("route", FIELDS)
def test_a_body_that_is_too_large_is_refused(site: Site, person: Person, route: str) -> None:
    huge = b'{"username": "' + b"x" * 3_000_000 + b'"}'
    reply = site.at_once([send(site, route, person, content=huge)])[0]
    assert (reply.status, reply.code) == (413, "parse_error")


@pytest.mark.pipeline
@pytest.mark.parametrize("route", ROUTES)
def test_a_chunked_or_broken_body_is_no_internal_error(
    site: Site, person: Person, route: str
) -> None:
    chunked = {"Transfer-Encoding": "chunked"}
    pieces = {
        "whole": b'5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
        "cut off": b'5\r\n{"a',
        "no number": b"x\r\n{}\r\n0\r\n\r\n",
        "a huge number": b"ffffffffffffffff\r\n{}\r\n",
    }
    requests = [send(site, route, person, content=x, headers=chunked) for x in pieces.values()]
    # The length of the body in the headers beside it would be smuggling, which gunicorn refuses.
    without_length = [
        b"\r\n".join(x for x in r.split(b"\r\n") if not x.lower().startswith(b"content-length"))
        for r in requests
    ]
    too_long = send(site, route, person, headers={"Content-Length": "1000"})
    for raw in [*requests, *without_length, too_long]:
        with socket.create_connection((site.host, site.port), 30) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while piece := connection.recv(65536):
                received += piece
        if received:
            status = int(received.split(b" ", 2)[1])
            assert status < 500, (raw[-60:], received)


def test_no_path_below_the_include_is_an_internal_error(site: Site, person: Person) -> None:
    paths = ["sessions/%00/", "sessions/%ff%fe/", "sessions/" + "x" * 3000 + "/", "sessions/../"]
    paths += ["sessions/1/", "sessions/%7B%7D/", "sessions/..%2f..%2fadmin/", "sessions/None/"]
    for path in paths:
        for method in ("GET", "DELETE"):
            reply = site.send(method, f"/auth/{path}", token=person.access)
            assert reply.status in (404, 405), path


def test_a_json_bomb_costs_little_memory(site: Site, person: Person) -> None:
    """Two and a half megabytes of the smallest values, from many clients at once."""
    bombs = [b'{"meta": [' + b"[]," * 600_000 + b"1]}", b'{"a":' * 400_000]
    before = site.memory()
    for reply in site.at_once([send(site, "register", person, content=x) for x in bombs * 2]):
        assert reply.status == 400
        assert reply.code in ("invalid", "parse_error")
    assert site.memory() - before < 400, "MB"


def test_a_password_longer_than_the_limit_is_hashed_nowhere(site: Site, person: Person) -> None:
    bomb = "x" * 1_000_000
    key = site.key_for(person.email)
    replies = {
        "register": site.register(password=bomb),
        "login": site.log_in(person.username, bomb),
        "reset": site.post("password/reset/confirm", {"key": key, "new_password": bomb}),
    }
    for route, more in {
        "password/change": {"new_password": bomb},
        "email/change": {"email": "new@example.com"},
        "account/delete": {},
    }.items():
        body = {"current_password": bomb, **more}
        replies[route] = site.post(route, body, token=person.access)
    for route, reply in replies.items():
        assert (reply.status, reply.code) == (400, "invalid"), route
        codes = {x["code"] for errors in reply.body["errors"].values() for x in errors}
        assert "max_length" in codes, (route, reply)
        assert codes <= {"max_length", "required"}, (route, reply)


def test_passwords_are_taken_as_they_are(site: Site) -> None:
    """As long as 1,024 characters, with spaces at both ends, in any script; none is a prefix."""
    for password in (
        "  two spaces at both ends  ",
        "p\u00e4ssw\u00f6rter \u5bc6\u7801 \U0001f511",
        "x y" * 341,
    ):
        name = site.name()
        assert site.register(name, password=password).status == 201
        assert site.log_in(name, password).status == 200
        for other in (password.strip(), password[:-1], password[:72], password + " "):
            if other != password:
                assert site.log_in(name, other).status == 401


@pytest.mark.parametrize("password", ["short", "1234567", "password", "12345678901", "{name}@"])
def test_validators_hear_every_new_password(site: Site, person: Person, password: str) -> None:
    fresh = site.name()
    refused = site.register(fresh, password=password.format(name=fresh))
    assert refused.body["errors"]["password"]
    password = password.format(name=person.username)
    body = {"current_password": PASSWORD, "new_password": password}
    changed = site.post("password/change", body, token=person.access)
    assert changed.body["errors"]["new_password"]
    body = {"key": site.key_for_reset(person), "new_password": password}
    assert site.post("password/reset/confirm", body).body["errors"]["new_password"]
