"""Guessing is limited, whatever is forged, and the limit keeps nobody from their own account."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.abuse.site import PASSWORD, Person, Site, request

DEFAULTS: dict[str, Any] = {}  # all limits as a project has them that says nothing
TRIES = 14


@pytest.fixture(autouse=True)
def _fresh(site: Site) -> Iterator[None]:
    site.sql("DELETE FROM accesspass_throttle")
    yield
    site.sql("DELETE FROM accesspass_throttle")


def guesses(site: Site, names: list[str], headers: list[dict[str, str]]) -> list[int]:
    """Guess one password after another, each with its own name and headers."""
    return [
        site.log_in(names[n % len(names)], f"guess {n}", headers=headers[n % len(headers)]).status
        for n in range(TRIES)
    ]


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For",
        "X-Real-IP",
        "Forwarded",
        "CF-Connecting-IP",
        "True-Client-IP",
        "X-Client-IP",
    ],
)
def test_an_address_that_the_client_forges_passes_no_limit(
    site: Site, person: Person, header: str
) -> None:
    forged = [
        {header: f"for=198.51.{n}.7" if header == "Forwarded" else f"198.51.{n}.7"}
        for n in range(TRIES)
    ]
    with site.settings(THROTTLES=DEFAULTS):
        assert guesses(site, [person.username], forged) == [401] * 10 + [429] * 4


def test_what_stands_left_of_the_proxys_own_entry_passes_no_limit(
    site: Site, person: Person
) -> None:
    forged = [{"X-Forwarded-For": f"198.51.{n}.7, 203.0.113.9"} for n in range(TRIES)]
    with site.settings(THROTTLES=DEFAULTS, TRUSTED_PROXIES=1):
        assert guesses(site, [person.username], forged) == [401] * 10 + [429] * 4


@pytest.mark.parametrize("kind", ["junk", "empty", "too few", "hosts"])
def test_an_address_that_cannot_be_parsed_skips_no_check(
    site: Site, person: Person, kind: str
) -> None:
    forged = {
        "junk": [{"X-Forwarded-For": f"x{n}"} for n in range(TRIES)],
        "empty": [{"X-Forwarded-For": " "}],
        "too few": [{}],
        "hosts": [{"X-Forwarded-For": f"{n}.example, [::1]:{n}"} for n in range(TRIES)],
    }[kind]
    with site.settings(THROTTLES=DEFAULTS, TRUSTED_PROXIES=1 if kind != "too few" else 2):
        assert guesses(site, [person.username], forged) == [401] * 10 + [429] * 4


def test_another_case_or_spelling_passes_no_limit(site: Site, person: Person) -> None:
    name = person.username
    spellings = [name, name.upper(), name.title(), name.replace("k", "\u212a"), "\uff4d" + name[1:]]
    with site.settings(THROTTLES=DEFAULTS):
        assert guesses(site, spellings, [{}]) == [401] * 10 + [429] * 4


def test_a_spelling_that_the_database_alone_takes_for_a_name_passes_no_limit(
    site: Site, person: Person
) -> None:
    """Each would have a limit of its own, so with none of them is anybody logged in."""
    with accents_ignored(site):
        for place in range(1, 5):
            name = person.username[:place] + "\u0301" + person.username[place:]
            (found,) = site.sql("SELECT count(*) FROM accesspass_user WHERE username = %s", name)
            assert found == (1,)
            refused = site.log_in(name, PASSWORD)
            assert refused.seen == site.log_in("nobody-of-this-name", PASSWORD).seen
            assert refused.status == 401
        assert site.log_in(person.username, PASSWORD).status == 200


@contextlib.contextmanager
def accents_ignored(site: Site) -> Iterator[None]:
    """Let the database tell accents no more apart in usernames, as MySQL does by default."""
    if not site.sql("SELECT 1 FROM pg_collation WHERE collprovider = 'i'"):
        pytest.skip("this PostgreSQL has no ICU")
    indexes = site.sql(
        "SELECT indexname, indexdef FROM pg_indexes "
        "WHERE tablename = 'accesspass_user' AND indexdef LIKE '%%varchar_pattern_ops%%'"
    )
    for name, _definition in indexes:  # which PostgreSQL refuses to such a collation
        site.sql(f'DROP INDEX "{name}"')
    site.sql(
        "CREATE COLLATION IF NOT EXISTS no_accents "
        "(provider = icu, locale = 'und-u-ks-level1', deterministic = false)"
    )
    alter = "ALTER TABLE accesspass_user ALTER username TYPE varchar(150) COLLATE"
    site.sql(f"{alter} no_accents")
    try:
        yield
    finally:
        site.sql(f'{alter} "default"')
        for _name, definition in indexes:
            site.sql(definition)


def test_a_limit_says_nothing_of_whether_a_name_is_known(site: Site, person: Person) -> None:
    with site.settings(THROTTLES=DEFAULTS):
        site.log_in("who-comes-first", "makes the row of the network")
        known = [site.log_in(person.username, f"guess {n}") for n in range(TRIES)]
        unknown = [site.log_in("nobody-of-this-name", f"guess {n}") for n in range(TRIES)]
    for one, other in zip(known, unknown, strict=True):
        assert (one.status, one.content, one.queries) == (
            other.status,
            other.content,
            other.queries,
        )
    # The right password is refused like a wrong one, too.
    with site.settings(THROTTLES=DEFAULTS):
        assert site.log_in(person.username, PASSWORD).code == "throttled"


def test_a_good_login_takes_no_failures_back(site: Site, person: Person) -> None:
    """Nor do logins to an account of the attacker's own, from the same network."""
    own = site.person()
    rates = {"login": {"account_network": None, "account": "5/h"}}
    with site.settings(THROTTLES=rates):
        for n in range(5):
            assert site.log_in(person.username, f"guess {n}").status == 401
            assert site.log_in(own.username, PASSWORD).status == 200
        assert site.log_in(person.username, "one more").status == 429


def test_nobody_is_locked_out_where_they_are_known(site: Site, person: Person) -> None:
    rates = {"login": {"account_network": "10/min", "account": "20/h"}}
    home = {"X-Forwarded-For": "203.0.113.9"}
    with site.settings(THROTTLES=rates, TRUSTED_PROXIES=1):
        assert site.log_in(person.username, PASSWORD, headers=home).status == 200
        for n in range(30):
            attacker = {"X-Forwarded-For": f"198.51.{n}.7"}
            site.log_in(person.username, f"guess {n}", headers=attacker)
        elsewhere = {"X-Forwarded-For": "198.51.99.7"}
        assert site.log_in(person.username, PASSWORD, headers=elsewhere).status == 429
        assert site.log_in(person.username, PASSWORD, headers=home).status == 200


def test_guesses_at_once_get_no_further_than_one_after_the_other(
    site: Site, person: Person
) -> None:
    bodies = [{"username": person.username, "password": f"guess {n}"} for n in range(40)]
    with site.settings(THROTTLES=DEFAULTS, HASHING_CONCURRENCY=24):
        replies = site.at_once([request("POST", "/auth/login/", body=x) for x in bodies])
    assert sorted(x.status for x in replies) == [401] * 10 + [429] * 30


def test_a_refusal_says_honestly_when_to_come_back(site: Site, person: Person) -> None:
    with site.settings(THROTTLES={"login": {"account_network": "1/s"}}):
        replies = site.at_once(
            [request("POST", "/auth/login/", body={"username": person.username, "password": "x"})]
            * 6
        )
        refused = [x for x in replies if x.status == 429]
        assert refused
        for reply in refused:
            assert reply.code == "throttled"
            assert reply.header("Retry-After") == "1"
    with site.settings(THROTTLES=DEFAULTS):
        for n in range(11):
            last = site.log_in(person.username, f"guess {n}")
    assert 1 <= int(last.header("Retry-After")) <= 60


@pytest.mark.parametrize(
    ("route", "field"),
    [("password/reset", "username"), ("confirm/resend", "username"), ("username/forgot", "email")],
)
def test_asking_for_mail_is_limited_alike_for_everybody(
    site: Site, person: Person, route: str, field: str
) -> None:
    with site.settings(THROTTLES=DEFAULTS):
        site.post(route, {field: "who-comes-first@example.com"})
        known = [site.post(route, {field: person.email}) for _ in range(TRIES)]
        unknown = [site.post(route, {field: "nobody@example.com"}) for _ in range(TRIES)]
    assert [x.status for x in known] == [202] * 10 + [429] * 4
    assert [(x.status, x.content, x.queries) for x in known] == [
        (x.status, x.content, x.queries) for x in unknown
    ]


def test_registrations_for_one_address_are_limited(site: Site) -> None:
    with site.settings(THROTTLES=DEFAULTS, REQUIRE_CONFIRMED_EMAIL=True):
        replies = [site.register(email="flooded@example.com") for _ in range(TRIES)]
    assert [x.status for x in replies] == [202] * 10 + [429] * 4


def test_the_counts_tell_no_names(site: Site, person: Person) -> None:
    with site.settings(THROTTLES=DEFAULTS):
        site.log_in(person.username, "guess")
    held = str(site.sql("SELECT t::text FROM accesspass_throttle t"))
    assert person.username not in held
    assert "127.0.0" not in held


@pytest.mark.parametrize(
    ("method", "route", "more"),
    [
        ("POST", "password/change", {"new_password": "purple monkey dishwasher"}),
        ("POST", "email/change", {"email": "evil@example.com"}),
        ("POST", "account/delete", {}),
        ("PATCH", "account", {"username": "another"}),
    ],
)
def test_a_stolen_access_token_guesses_no_password_without_limit(
    site: Site, person: Person, method: str, route: str, more: dict[str, str]
) -> None:
    with site.settings(THROTTLES=DEFAULTS):
        replies = [
            site.send(
                method,
                f"/auth/{route}/",
                token=person.access,
                body={"current_password": f"guess {n}", **more},
            )
            for n in range(TRIES)
        ]
        assert [x.status for x in replies] == [400] * 10 + [429] * 4
        # Logins count with them, so a thief does not get both.
        assert site.log_in(person.username, "guess").status == 429
