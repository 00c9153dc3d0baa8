"""What Django's own test runner runs; the name keeps pytest from it."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from django.core.cache import caches
from django.db import connection
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

PERSON = {"username": "ada", "email": "ada@example.org", "password": "correct horse battery"}


class Scenario:
    """Registers, checks and logs out; the test class says how requests are sent."""

    commits = True

    def send(self, method: str, path: str, *, token: str = "", body: Any = None) -> Any:
        raise NotImplementedError

    def play(self) -> None:
        status, body, _ = self.send("POST", "/auth/register/", body=PERSON)
        assert status == 201, body
        token = body["access_token"]
        statuses = [self.send("GET", "/hello/", token=token) for _ in range(3)]
        assert [status for status, *_ in statuses] == [200, 200, 200]
        if self.commits:  # what is not committed is told to nobody, so it is asked for
            assert statuses[-1][2] == 0, "queries"
        status, body, _ = self.send("POST", "/auth/logout/", token=token, body={})
        assert status in (202, 204), body
        status, body, _ = self.send("GET", "/hello/", token=token)
        assert (status, body["code"]) == (401, "invalid_token")

    def test_a_session_lives_and_ends(self) -> None:
        self.play()

    def test_the_same_user_in_another_test(self) -> None:
        self.play()

    def test_the_cache_is_in_the_database_of_the_tests(self) -> None:
        name = connection.settings_dict["NAME"]
        assert name.startswith("test_")
        caches["accesspass"].set("key", name)
        assert caches["accesspass"].get("key") == name
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name = 'accesspass' AND datname = current_database()"
            )
            (connections,) = cursor.fetchone()
        assert connections >= 1
        running = [t.name for t in threading.enumerate()].count("accesspass-follower")
        assert running == 1


class WithDjangosClient(Scenario):
    def send(self, method: str, path: str, *, token: str = "", body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = self.client.generic(
            method, path, json.dumps(body), "application/json", headers=headers
        )
        content = response.json() if response.content else {}
        return response.status_code, content, int(response["X-Demo-Queries"])


class InATestCase(WithDjangosClient, TestCase):
    """A transaction that is never committed."""

    commits = False


class InATransactionTestCase(WithDjangosClient, TransactionTestCase):
    """Tables are emptied after each test."""


class OnALiveServer(Scenario, LiveServerTestCase):
    """Threads that answer requests beside the test's own."""

    def send(self, method: str, path: str, *, token: str = "", body: Any = None) -> Any:
        request = Request(self.live_server_url + path, method=method)  # noqa: S310 - of the live server
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            response = urlopen(request, timeout=10)  # noqa: S310
        except HTTPError as error:
            response = error
        with response:
            content = response.read()
            queries = int(response.headers["X-Demo-Queries"])
            return response.status, json.loads(content) if content else {}, queries
