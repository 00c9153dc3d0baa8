"""Many requests cost what they may cost, and no more."""

from __future__ import annotations

import pytest

from tests.abuse.site import PASSWORD, Person, Site, request


def test_a_flood_of_forged_tokens_asks_the_database_nothing(site: Site, person: Person) -> None:
    forged = [f"ap_at_{n:06d}{person.access[12:]}" for n in range(200)]
    replies = site.at_once([request("GET", "/hello/", token=x) for x in forged])
    assert {(x.status, x.code, x.queries) for x in replies} == {(401, "invalid_token", 0)}


def test_a_flood_of_refreshes_with_junk_asks_the_database_nothing(
    site: Site, person: Person
) -> None:
    junk = [f"ap_rt_{n:06d}{person.refresh[12:]}" for n in range(200)]
    replies = site.at_once(
        [request("POST", "/auth/refresh/", body={"refresh_token": x}) for x in junk]
    )
    assert {(x.status, x.code, x.queries) for x in replies} == {(401, "invalid_token", 0)}


def test_a_flood_of_requests_for_mail_leaves_one_row_for_each_name(
    site: Site, person: Person
) -> None:
    site.mail()
    body = {"username": person.email}
    flood = [request("POST", "/auth/password/reset/", body=body)] * 100
    assert {x.status for x in site.at_once(flood)} == {202}
    waiting = site.sql("SELECT count(*) FROM accesspass_mailrequest WHERE sent_at IS NULL")
    assert waiting == [(1,)]
    assert len(site.mail()) == 1


@pytest.mark.pipeline
def test_a_flood_of_logins_stays_within_its_memory(site: Site, person: Person) -> None:
    """80 logins at once, each of which takes 46 MB to hash, two at a time."""
    django = {"PASSWORD_HASHERS": ["accesspass.hashing.Argon2PasswordHasher"]}
    with site.settings(django=django, HASHING_CONCURRENCY=2):
        hungry = site.person()
        before = site.memory()
        bodies = [{"username": hungry.username, "password": f"wrong {n}"} for n in range(40)]
        bodies += [{"username": site.name(), "password": PASSWORD} for _ in range(40)]
        replies = site.at_once([request("POST", "/auth/login/", body=x) for x in bodies])
        assert {x.code for x in replies} <= {"invalid_credentials", "busy"}
        for busy in [x for x in replies if x.code == "busy"]:
            assert (busy.status, int(busy.header("Retry-After")) >= 1) == (503, True)
        # Two hashes are the budget; without a limit 24 threads would take 1.1 GB.
        assert site.memory() - before < 2 * 46 + 100, "MB"
        assert site.log_in(hungry.username).status == 200
