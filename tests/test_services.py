"""Other services, over HTTP: the two projects of the example under gunicorn, and Authlib."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
import pytest
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc6750.errors import InvalidTokenError
from authlib.oauth2.rfc7662 import IntrospectTokenValidator
from django.test import override_settings

from accesspass.cache import ReplicatedCache
from accesspass.tokens import TokenType, mint
from tests.cluster import Cluster, ResourceServer
from tests.documents import module_of, shown
from tests.servers import (
    free_port,
    require_postgresql,
    require_valkey,
    shared_postgresql,
    shared_valkey,
    wait_until,
)

pytestmark = pytest.mark.fault

PASSWORD = "correct horse battery staple"
ADA = {"username": "ada", "email": "ada@example.org", "password": PASSWORD}


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("valkey", marks=pytest.mark.pipeline)])
def test_a_second_project_takes_the_tokens_of_the_first(engine: str) -> None:
    location = ""
    if engine == "valkey":
        require_valkey()
        location = shared_valkey().url(15)
    with Cluster(1, location) as auth, ResourceServer(auth) as notes:
        assert notes.once("GET", "/notes/", token="nonsense").status == 401
        made = auth.once("POST", "/auth/register/", body=ADA).body
        text = made["access_token"]

        first = notes.once("GET", "/notes/", token=text)
        assert (first.status, first.body["username"]) == (200, "ada")
        assert first.body["owner"] == made["user"]["id"]
        for path in ("/notes/", "/plain/"):
            for _ in range(5):
                hit = notes.once("GET", path, token=text)
                assert (hit.status, hit.connects, hit.queries) == (200, 0, 0)
        assert notes.once("GET", "/admins/", token=text).status == 403
        assert notes.once("GET", "/plain/").body["code"] == "token_required"

        assert auth.once("POST", "/auth/logout/", token=text, body={}).status == 204
        wait_until(lambda: notes.once("GET", "/notes/", token=text).status == 401, timeout=1)
        for path in ("/notes/", "/plain/"):
            assert notes.once("GET", path, token=text).body["code"] == "invalid_token"

        # The authorization server goes away: what memory tells is still told, nothing else is.
        login = auth.once("POST", "/auth/login/", body=ADA).body
        wait_until(lambda: notes.once("GET", "/notes/", token=login["access_token"]).connects == 0)
        auth.stop()
        hit = notes.once("GET", "/notes/", token=login["access_token"])
        assert (hit.status, hit.connects) == (200, 0)
        for path in ("/notes/", "/plain/"):
            miss = notes.once("GET", path, token=unknown_to(auth))
            assert (miss.status, miss.body["code"]) == (503, "unavailable")


@pytest.mark.pipeline
def test_a_resource_server_that_cannot_reach_the_cache_asks_and_keeps_the_promise() -> None:
    """Its own LOCATION leads nowhere, so every token is a miss."""
    location = f"redis://127.0.0.1:{free_port()}/0"
    cut_off = f"CACHES['accesspass'] |= {{'LOCATION': '{location}'}}\n"
    cut_off += "CACHES['accesspass']['OPTIONS']['MAX_STALENESS'] = 1\n"
    with Cluster(1) as auth, ResourceServer(auth, cut_off) as notes:
        text = auth.once("POST", "/auth/register/", body=ADA).body["access_token"]
        first = notes.once("GET", "/notes/", token=text)
        assert (first.status, first.body["username"]) == (200, "ada")
        assert auth.once("POST", "/auth/logout/", token=text, body={}).status == 204
        wait_until(lambda: notes.once("GET", "/notes/", token=text).status == 401, timeout=2)


def test_on_postgresql_an_account_that_may_only_read_will_do(
    request: pytest.FixtureRequest,
) -> None:
    require_postgresql()
    server = shared_postgresql()
    url = server.create_database(f"read_only_{os.getpid()}")
    writer = ReplicatedCache(url, {})
    request.addfinalizer(writer._follower.stop)
    writer.set("key", 1)
    reader = f"reader_{os.getpid()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {reader} LOGIN PASSWORD 'x'")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}")
    host = url.rpartition("@")[2]
    cache = ReplicatedCache(f"postgresql://{reader}:x@{host}", {})
    request.addfinalizer(cache._follower.stop)
    assert cache.get("key") == 1
    writer.set("key", 2)
    wait_until(lambda: cache.get("key") == 2)
    with pytest.raises(cache.EngineUnavailable):
        cache.set("key", 3)


def unknown_to(auth: Cluster) -> str:
    """A token under the shared key, of a session that nobody holds."""
    with override_settings(ACCESSPASS={"TOKEN_KEYS": [auth.environment["ACCESSPASS_SHARED_KEY"]]}):
        return mint(TokenType.ACCESS, b"unknown session!", int(time.time() + 300)).text


@pytest.mark.pipeline
def test_authlib_introspects_and_revokes_unmodified() -> None:
    with Cluster(workers=1) as auth:
        secret = auth.environment["ACCESSPASS_SERVICE_SECRET"]
        base = f"http://{auth.host}:{auth.port}/auth"
        _clients, code = shown("docs/how-to/resource-servers.rst", "python")
        code = code.replace("https://auth.example.com/auth", base)
        code = code.replace("service.introspect", "said = service.introspect")
        example = module_of(code, OAuth2Session=OAuth2Session, secret=secret, token="nonsense")
        assert example.said == {"active": False}
        service = example.service

        class Validator(IntrospectTokenValidator):
            def introspect_token(self, token_string: str) -> Any:
                answer = service.introspect_token(f"{base}/introspect/", token=token_string)
                assert answer.status_code == 200
                return answer.json()

        made = auth.once("POST", "/auth/register/", body=ADA).body
        validator = Validator()
        found = validator.authenticate_token(made["access_token"])
        validator.validate_token(found, [], None)
        assert found["username"] == "ada"
        with pytest.raises(InvalidTokenError):
            validator.validate_token(validator.authenticate_token("nonsense"), [], None)

        answer = service.revoke_token(
            f"{base}/revoke/", token=made["refresh_token"], token_type_hint="refresh_token"
        )
        assert answer.status_code == 200
        assert validator.authenticate_token(made["access_token"]) == {"active": False}

        stranger = OAuth2Session("notes", "x", token_endpoint_auth_method="client_secret_basic")
        refused = stranger.introspect_token(f"{base}/introspect/", token="x")
        assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
