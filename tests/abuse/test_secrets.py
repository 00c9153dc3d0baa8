"""No secret that went over the wire is in a log or in a column."""

from __future__ import annotations

import base64
import hashlib
import logging

from tests.abuse.site import Site


def spellings(secret: str) -> set[str]:
    """How a secret may have been written down."""
    raw = secret.encode()
    spelled = {secret, base64.b64encode(raw).decode().rstrip("="), raw.hex(), secret[::-1]}
    spelled |= {hashlib.md5(raw, usedforsecurity=False).hexdigest()}
    if secret.startswith("ap_"):
        body = base64.urlsafe_b64decode(secret[6:])
        spelled |= {secret[6:], secret[-40:], body[20:41].hex(), repr(body[20:41])[2:-1]}
    return spelled


def lived(site: Site) -> list[str]:
    """Do everything that can be done, and what goes wrong of it; return the secrets of it."""
    passwords = [f"canary {n} {site.name()} of the battery" for n in range(4)]
    first, second, third, wrong, short = [*passwords, "cNry7!q"]  # too short
    name = site.name()
    address = f"{name}@example.com"
    reply = site.register(name, password=first)
    tokens = [reply.body["access_token"], reply.body["refresh_token"]]

    def post(route: str, body: dict[str, str], token: str = "") -> None:
        body = site.post(route, body, token=token).body or {}
        tokens.extend(body[x] for x in ("access_token", "refresh_token") if x in body)

    confirm = site.key_for(address)
    post("login", {"username": name, "password": wrong})
    post("login", {"username": name, "password": first})
    post("login", {"username": wrong, "password": name})  # mixed up by the user
    post("refresh", {"refresh_token": tokens[1]})
    post("refresh", {"refresh_token": tokens[1] + "x"})
    post("register", {"username": name, "email": address, "password": short})
    post("confirm", {"key": confirm})
    post("confirm", {"key": confirm})
    site.post("password/reset", {"username": name})
    reset = site.key_for(address)
    post("password/reset/confirm", {"key": reset, "new_password": short})
    post("password/reset/confirm", {"key": reset, "new_password": second})
    post("login", {"username": name, "password": second})
    access = tokens[-2]
    post("password/change", {"current_password": wrong, "new_password": third}, access)
    post("password/change", {"current_password": second, "new_password": third}, access)
    post("email/change", {"current_password": third, "email": f"new-{address}"}, access)
    change = site.key_for(f"new-{address}")
    post("email/change/confirm", {"key": change})
    site.get("check", token=access)
    site.get("sessions", token=access)
    site.send("GET", "/hello/", token=access)
    form = "application/x-www-form-urlencoded"
    for token in (access, tokens[-1]):
        for route in ("introspect", "revoke"):
            content = f"token={token}".encode()
            path = f"/auth/{route}/"
            site.send("POST", path, content=content, content_type=form, headers=site.service)
    post("account/delete", {"current_password": third}, access)
    post("logout", {"refresh_token": tokens[-1]})
    basic = base64.b64decode(site.service["Authorization"].removeprefix("Basic ")).decode()
    return [*passwords, short, *tokens, confirm, reset, change, basic.partition(":")[2]]


def columns(site: Site) -> str:
    """All that the database holds, the log of the cache included."""
    tables = site.sql(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    return "\n".join(
        str(row)
        for (table,) in tables
        for row in site.sql(f"SELECT t::text FROM {table} t")  # noqa: S608
    )


def test_no_secret_is_logged_or_stored(site: Site) -> None:
    before = len(site.log)
    secrets = lived(site)
    assert len(secrets) > 15
    # Before anything is revoked or forgotten too: a user who is still signed in.
    person = site.person()
    site.post("password/reset", {"username": person.email})
    (reset,) = [
        x.key for x in site.mail() if x.to == [person.email] and "reset" in x.source.lower()
    ]
    assert reset is not None
    secrets += [person.access, person.refresh, reset]
    said, held = site.log[before:], columns(site)
    assert "/auth/login/" in said
    assert person.email in held
    for secret in secrets:
        for spelled in spellings(secret):
            assert spelled not in said, secret[:6]
            # The site hashes passwords by MD5, salted: this spelling is nowhere either.
            assert spelled not in held, secret[:6]


def test_a_secret_that_is_logged_would_be_found(site: Site) -> None:
    """The check of the check: gunicorn does log the query."""
    before = len(site.log)
    site.send("GET", "/hello/?token=canary-in-a-query")
    assert "canary-in-a-query" in site.log[before:]
    assert logging.getLogger("accesspass") is not None
