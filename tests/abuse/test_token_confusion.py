"""A token is good for what it was made for, as it was made, and in its own place."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from urllib.parse import quote

import pytest

from tests.abuse.site import NEW_PASSWORD, PASSWORD, Person, Site
from tests.servers import wait_until


def jwt(site: Site, person: Person, algorithm: str) -> str:
    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head = part(json.dumps({"alg": algorithm, "typ": "JWT", "kid": "/dev/null"}).encode())
    claims = {"sub": person.id, "user_id": person.id, "token_type": "access", "exp": 2**31}
    signed = f"{head}.{part(json.dumps(claims).encode())}"
    if algorithm == "none":
        return f"{signed}."
    key = site.secret_key.encode()
    return f"{signed}.{part(hmac.digest(key, signed.encode(), 'sha256'))}"


def forgeries(site: Site, person: Person, token: str) -> dict[str, str | bytes]:
    """What is nearly that token, each of a kind that somebody's parser has let through."""
    prefix, body = token[:6], token[6:]
    raw = bytearray(base64.urlsafe_b64decode(body))
    later = bytearray(raw)
    later[16:20] = (2**32 - 1).to_bytes(4, "big")

    def spell(value: bytes) -> str:
        return prefix + base64.urlsafe_b64encode(value).decode()

    return {
        "cut": token[:-1],
        "cut to a whole group": token[:-4],
        "cut to its id": spell(bytes(raw[:16])),
        "longer": token + "A",
        "longer by a group": token + "AAAA",
        "twice": token + token,
        "padded": token + "=",
        "padded inside": token[:-4] + "====",
        "junk inside": prefix + body[:10] + "!" + body[10:],
        "junk at the end": token + "!",
        "a newline inside": prefix + body[:38] + "%0A" + body[38:],
        "the other alphabet": prefix
        + body.replace("-", "+").replace("_", "/")
        + ("" if re.search("[-_]", body) else "x"),
        "quoted": quote(token, safe="") + "%20",
        "in quotes": f'"{token}"',
        "upper case": token.upper(),
        "another prefix": "ak" + token[2:],
        "without prefix": body,
        "without type": f"ap_{body}",
        "other type": f"ap_ek_{body}",
        "full width": token.replace("a", "\uff41", 1),
        "not UTF-8": token.encode()[:-1] + b"\xff",
        "NUL at the end, decoded": token + "%00",
        "a later expiry": spell(bytes(later)),
        "a flipped bit of the mac": spell(bytes([*raw[:-1], raw[-1] ^ 1])),
        "a flipped bit of the id": spell(bytes([raw[0] ^ 1, *raw[1:]])),
        "no mac": spell(bytes([*raw[:-16], *bytes(16)])),
        "all zero": spell(bytes(57)),
        "its digest": hashlib.sha256(token.encode()).hexdigest(),
        "JWT without algorithm": jwt(site, person, "none"),
        "JWT under the secret key": jwt(site, person, "HS256"),
        "a list": f"x, {token}",
        "null": "null",
        "a username": person.username,
        "a user id": person.id,
        "SQL": "' OR 1=1 --",
        "a format": "{0.__class__} %s %(x)s ${jndi:ldap://127.0.0.1/}",
    }


def test_no_forgery_of_an_access_token_is_let_in(site: Site, person: Person) -> None:
    assert site.is_let_in(person.access)
    for kind, forged in forgeries(site, person, person.access).items():
        value = forged if isinstance(forged, bytes) else forged.encode()
        reply = site.send("GET", "/hello/", headers={"Authorization": b"Bearer " + value})
        assert (reply.status, reply.code) == (401, "invalid_token"), kind
        assert reply.queries == 0, kind
    assert site.is_let_in(person.access)


def test_no_forgery_of_a_refresh_token_is_exchanged(site: Site, person: Person) -> None:
    for kind, forged in forgeries(site, person, person.refresh).items():
        if isinstance(forged, bytes):
            continue
        reply = site.post("refresh", {"refresh_token": forged})
        assert (reply.status, reply.code) == (401, "invalid_token"), kind
        assert reply.queries == 0, kind
    assert site.post("refresh", {"refresh_token": person.refresh}).status == 200


def test_no_forgery_of_a_key_is_taken(site: Site, person: Person) -> None:
    key = site.key_for(person.email)
    for kind, forged in forgeries(site, person, key).items():
        if isinstance(forged, bytes) or kind == "other type":
            continue
        reply = site.post("confirm", {"key": forged})
        assert reply.status == 400, kind
        assert reply.code in ("invalid_key", "invalid"), kind
        assert reply.queries == 0, kind
    assert site.post("confirm", {"key": key}).status == 200


@pytest.mark.parametrize("kind", ["refresh", "key"])
def test_only_an_access_token_is_one(site: Site, person: Person, kind: str) -> None:
    token = person.refresh if kind == "refresh" else site.key_for(person.email)
    disguised = f"ap_at_{token[6:]}"
    for path in ("/hello/", "/auth/check/", "/auth/sessions/", "/auth/account/"):
        for value in (token, disguised):
            reply = site.send("GET", path, token=value)
            assert (reply.status, reply.code) == (401, "invalid_token")
    for value in (token, disguised):
        body = f"token={value}".encode()
        form = "application/x-www-form-urlencoded"
        told = site.send(
            "POST", "/auth/introspect/", content=body, content_type=form, headers=site.service
        )
        assert told.body == {"active": False}


@pytest.mark.parametrize("kind", ["access", "key"])
def test_only_a_refresh_token_is_exchanged(site: Site, person: Person, kind: str) -> None:
    token = person.access if kind == "access" else site.key_for(person.email)
    for value in (token, f"ap_rt_{token[6:]}"):
        assert site.post("refresh", {"refresh_token": value}).code == "invalid_token"
    assert site.is_let_in(person.access)


def test_a_key_is_good_for_its_own_purpose_alone(site: Site, person: Person) -> None:
    confirm = site.key_for(person.email)
    site.post("password/reset", {"username": person.email})
    reset = site.key_for(person.email)
    change = {"current_password": PASSWORD, "email": f"new-{person.email}"}
    site.post("email/change", change, token=person.access)
    changing = site.key_for(change["email"])
    routes = {"confirm": confirm, "password/reset/confirm": reset, "email/change/confirm": changing}
    tokens = [*routes.values(), person.access, person.refresh]
    tokens += [f"ap_ek_{person.access[6:]}", f"ap_ek_{person.refresh[6:]}"]
    for route, right in routes.items():
        for token in tokens:
            if token != right:
                body = {"key": token, "new_password": NEW_PASSWORD}
                assert site.post(route, body).code == "invalid_key", route
    for route, right in routes.items():
        if route != "email/change/confirm":
            body = {"key": right, "new_password": NEW_PASSWORD}
            assert site.post(route, body).status < 300, route


@pytest.mark.parametrize(
    "place", ["query", "cookie", "body", "basic", "no scheme", "other scheme", "other header"]
)
def test_an_access_token_counts_in_its_header_alone(site: Site, person: Person, place: str) -> None:
    path, headers, body = "/hello/", {}, None
    if place == "query":
        path = f"/hello/?access_token={person.username}-in-place-of-a-token"
        path = path.replace(f"{person.username}-in-place-of-a-token", person.access)
    elif place == "cookie":
        headers["Cookie"] = f"access_token={person.access}; Authorization={person.access}"
    elif place == "body":
        body = {"access_token": person.access}
    elif place == "basic":
        pair = base64.b64encode(f"{person.access}:".encode()).decode()
        headers["Authorization"] = f"Basic {pair}"
    elif place == "no scheme":
        headers["Authorization"] = person.access
    elif place == "other scheme":
        headers["Authorization"] = f"Token {person.access}"
    else:
        headers["X-Access-Token"] = headers["X-Authorization"] = person.access
    reply = site.send("GET", path, headers=headers, body=body)
    assert reply.status == 401


def test_a_refusal_has_the_challenge_of_rfc_6750(site: Site, person: Person) -> None:
    none = site.send("GET", "/auth/check/")
    assert (none.status, none.header("WWW-Authenticate")) == (401, "Bearer")
    refused = site.send("GET", "/auth/check/", token="ap_at_x")
    assert refused.header("WWW-Authenticate") == 'Bearer error="invalid_token"'
    answers = [refused, none, site.log_in(person.username), site.register()]
    assert {x.header("Cache-Control") for x in answers} == {"no-store"}


def test_two_headers_are_no_token(site: Site, person: Person) -> None:
    other = site.person()
    pair = [("Authorization", f"Bearer {x.access}") for x in (person, other)]
    assert site.send("GET", "/hello/", headers=pair).status in (400, 401)
    joined = {"Authorization": f"Bearer {person.access}, Bearer {other.access}"}
    assert site.send("GET", "/hello/", headers=joined).status == 401


@pytest.mark.parametrize("stale", ["dead", "junk", "NUL", "not UTF-8", "huge"])
def test_a_stale_header_breaks_no_login(site: Site, person: Person, stale: str) -> None:
    header: dict[str, str | bytes] = {
        "dead": {"Authorization": f"Bearer {person.access}"},
        "junk": {"Authorization": "Bearer x"},
        "NUL": {"Authorization": "Bearer %00"},
        "not UTF-8": {"Authorization": b"Bearer \xff\xfe"},
        "huge": {"Authorization": "Bearer " + "a" * 7000},
    }[stale]
    assert site.post("logout", token=person.access).status == 204
    body = {"username": person.username, "password": PASSWORD}
    assert site.post("login", body, headers=header).status == 200


@pytest.mark.parametrize("how", ["disabled", "deleted"])
def test_a_user_who_is_disabled_or_gone_is_refused_with_every_token(
    site: Site, person: Person, how: str
) -> None:
    if how == "deleted":
        body = {"current_password": PASSWORD}
        assert site.post("account/delete", body, token=person.access).status == 204
    else:
        site.sql("UPDATE accesspass_user SET is_active = false WHERE id = %s", person.id)
    # By SQL, so the database decides at the refresh; the admin and the ORM end sessions at once.
    assert site.post("refresh", {"refresh_token": person.refresh}).code == "invalid_token"
    assert site.log_in(person.username).code == "invalid_credentials"
    if how == "deleted":
        assert not site.is_let_in(person.access)


def test_after_a_password_change_access_and_refresh_agree(site: Site, person: Person) -> None:
    other = site.log_in(person.username).body
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert site.post("password/change", body, token=person.access).status == 204
    assert not site.is_let_in(other["access_token"])
    refused = site.post("refresh", {"refresh_token": other["refresh_token"]})
    assert refused.code == "invalid_token"
    assert site.is_let_in(person.access)
    assert site.post("refresh", {"refresh_token": person.refresh}).status == 200


@pytest.mark.parametrize("body", [{}, {"current_password": ""}, {"current_password": "wrong"}])
def test_no_password_is_changed_without_the_present_one(
    site: Site, person: Person, body: dict[str, str]
) -> None:
    for route, more in [
        ("password/change", {"new_password": NEW_PASSWORD}),
        ("email/change", {"email": "evil@example.com"}),
        ("account/delete", {}),
    ]:
        refused = site.post(route, {**body, **more}, token=person.access)
        assert (refused.status, refused.code) == (400, "invalid")
        assert refused.body["errors"]["current_password"]
        assert site.post(route, {**body, **more}).code == "token_required"
    assert site.log_in(person.username).status == 200


def rotated_long_ago(site: Site, person: Person) -> None:
    site.sql(
        "UPDATE accesspass_session SET rotated_at = now() - interval '1 minute' WHERE user_id = %s",
        person.id,
    )


def test_a_refresh_token_used_again_after_the_grace_ends_the_session(
    site: Site, person: Person
) -> None:
    new = site.post("refresh", {"refresh_token": person.refresh}).body
    rotated_long_ago(site, person)
    assert site.post("refresh", {"refresh_token": person.refresh}).code == "invalid_token"
    assert site.post("refresh", {"refresh_token": new["refresh_token"]}).code == "invalid_token"
    assert not site.is_let_in(new["access_token"])
    told = [x for x in site.mail() if x.to == [person.email] and x.key is None]
    assert len(told) == 1


def test_reuse_within_the_grace_makes_no_second_branch(site: Site, person: Person) -> None:
    answers = [site.post("refresh", {"refresh_token": person.refresh}).body for _ in range(5)]
    assert len({x["refresh_token"] for x in answers}) == 1
    assert len({x["access_token"] for x in answers}) == 1


def test_a_token_two_generations_old_is_refused_within_the_grace_too(
    site: Site, person: Person
) -> None:
    second = site.post("refresh", {"refresh_token": person.refresh}).body["refresh_token"]
    third = site.post("refresh", {"refresh_token": second}).body
    assert site.post("refresh", {"refresh_token": person.refresh}).code == "invalid_token"
    assert site.post("refresh", {"refresh_token": third["refresh_token"]}).code == "invalid_token"
    assert not site.is_let_in(third["access_token"])


def test_an_access_token_is_refused_at_once_after_its_logout(site: Site, person: Person) -> None:
    assert site.is_let_in(person.access)
    assert site.post("logout", token=person.access).status == 204
    assert not site.is_let_in(person.access)
    assert site.post("refresh", {"refresh_token": person.refresh}).code == "invalid_token"


def test_expiry_is_looked_at_on_each_read(site: Site) -> None:
    with site.settings(ACCESS_TOKEN_LIFETIME=1):
        person = site.person()
    assert site.is_let_in(person.access)
    wait_until(lambda: not site.is_let_in(person.access), 5, every=0.1)
    refused = site.send("GET", "/auth/check/", token=person.access)
    assert refused.code == "invalid_token"
    key = site.key_for(person.email)
    site.sql("UPDATE accesspass_emailkey SET expires_at = now() WHERE user_id = %s", person.id)
    assert site.post("confirm", {"key": key}).code == "invalid_key"
    site.sql("UPDATE accesspass_session SET expires_at = now() WHERE user_id = %s", person.id)
    assert site.post("refresh", {"refresh_token": person.refresh}).code == "invalid_token"


def test_keys_live_no_longer_than_advised(site: Site, person: Person) -> None:
    site.mail()
    site.post("password/reset", {"username": person.email})
    site.mail()
    lifetimes = dict(
        site.sql(
            "SELECT purpose, extract(epoch FROM expires_at - created_at)::int "
            "FROM accesspass_emailkey WHERE user_id = %s",
            person.id,
        )
    )
    assert lifetimes["password_reset"] <= 2 * 3600 + 1
    assert lifetimes["confirm"] <= 24 * 3600 + 1


def test_users_end_their_own_sessions_and_no_others(site: Site, person: Person) -> None:
    other = site.person()
    second = site.log_in(person.username).body
    listed = site.get("sessions", token=person.access).body
    assert len(listed) == 2
    (theirs,) = site.get("sessions", token=other.access).body
    assert theirs["id"] not in [x["id"] for x in listed]
    (rest,) = [x["id"] for x in listed if not x["current"]]
    path = f"/auth/sessions/{rest}/"
    assert site.send("DELETE", path, token=other.access).status == 404
    assert site.is_let_in(second["access_token"])
    assert site.send("DELETE", path, token=person.access).status == 204
    assert not site.is_let_in(second["access_token"])
    assert site.post("logout/all", token=person.access).status == 204
    assert not site.is_let_in(person.access)
    assert site.is_let_in(other.access)


@pytest.mark.parametrize("route", ["introspect", "revoke"])
def test_services_authenticate(site: Site, person: Person, route: str) -> None:
    right = site.service["Authorization"]
    for header in (
        {},
        {"Authorization": f"Bearer {person.access}"},
        {"Authorization": "Basic " + base64.b64encode(b"notes:wrong").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"notes:").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"notes").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:\0").decode()},
        {"Authorization": "Basic \xff"},
        {"Authorization": right[:-4]},
        {"Authorization": f"{right}, {right}"},
    ):
        reply = site.send(
            "POST",
            f"/auth/{route}/",
            content=f"token={person.access}".encode(),
            content_type="application/x-www-form-urlencoded",
            headers=header,
        )
        assert (reply.status, reply.code) == (401, "invalid_client"), header
    assert site.is_let_in(person.access)


def test_the_number_of_queries_tells_no_forgery_from_another(site: Site, person: Person) -> None:
    began = time.monotonic()
    replies = [site.send("GET", "/hello/", token=f"ap_at_{n:076d}") for n in range(50)]
    assert {(x.status, x.queries) for x in replies} == {(401, 0)}
    assert time.monotonic() - began < 60
