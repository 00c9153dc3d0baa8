"""The promise between processes: four gunicorn workers on one machine, and kill -9.

``pytest -rP`` shows who answered how often.
"""

from __future__ import annotations

import collections
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests.cluster import Answer, Cluster
from tests.servers import wait_until

USES = 20
USERS = 40
CLIENTS = 4
PASSWORD = "correct horse battery staple"
CHECK = ("GET", "/auth/check/")

pytestmark = pytest.mark.fault


class Login(NamedTuple):
    """What a client holds, and which worker gave it."""

    access: str
    refresh: str
    worker: int


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(workers=4) as running:
        yield running


def register(cluster: Cluster, count: int) -> None:
    for number in range(count):
        names = {"username": f"user{number}", "email": f"user{number}@example.com"}
        answer = cluster.once("POST", "/auth/register/", body={**names, "password": PASSWORD})
        assert answer.status == 201, answer


def log_in(cluster: Cluster, number: int) -> Login:
    credentials = {"username": f"user{number}", "password": PASSWORD}
    answer = cluster.insist("POST", "/auth/login/", body=credentials)
    assert answer.status == 200, answer
    return Login(answer.body["access_token"], answer.body["refresh_token"], answer.worker)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def tally(title: str, answers: list[Answer]) -> collections.Counter[int]:
    """Say and return how many answers each worker gave."""
    workers = collections.Counter(answer.worker for answer in answers)
    statuses = dict(collections.Counter(answer.status for answer in answers))
    say(f"{title}: {statuses}, by worker {dict(sorted(workers.items()))}")
    return workers


@pytest.mark.parametrize("logins", [30, pytest.param(200, marks=pytest.mark.pipeline)])
def test_each_login_is_good_and_each_logout_final_on_all_workers_at_once(
    cluster: Cluster, logins: int
) -> None:
    register(cluster, min(USERS, logins))

    def begin(number: int) -> tuple[Login, list[Answer]]:
        login = log_in(cluster, number % USERS)
        return login, cluster.at_once(USES, *CHECK, token=login.access)

    def end(login: Login) -> list[Answer]:
        answer = cluster.once("POST", "/auth/logout/", token=login.access, body={})
        assert answer.status == 204, answer
        return cluster.at_once(USES, *CHECK, token=login.access)

    with ThreadPoolExecutor(CLIENTS) as clients:
        try:
            begun = list(clients.map(begin, range(logins)))
            ended = list(clients.map(end, [login for login, _ in begun]))
        except BaseException:
            clients.shutdown(cancel_futures=True)
            raise

    accepted = [answer for _, answers in begun for answer in answers]
    refused = [answer for answers in ended for answer in answers]
    for title, answers, status in (("uses", accepted, 200), ("after logout", refused, 401)):
        assert len(tally(title, answers)) == cluster.workers
        assert [answer for answer in answers if answer.status != status] == []
        assert len(answers) == logins * USES
        assert sum(answer.queries for answer in answers) == 0
    assert {answer.body["code"] for answer in refused} == {"invalid_token"}
    # Most were answered by a worker that has not seen the login.
    elsewhere = sum(answer.worker != login.worker for login, them in begun for answer in them)
    say(f"answered by another worker than the login: {elsewhere} of {len(accepted)}")
    assert elsewhere > len(accepted) / 4


@pytest.mark.pipeline
def test_kill_9_of_a_worker_and_of_the_server_logs_nobody_out_and_lets_nobody_back_in(
    cluster: Cluster,
) -> None:
    register(cluster, 8)
    live: list[Login] = []
    dead: list[Login] = []
    answers: list[Answer] = []

    def expect(status: int, method: str, path: str, **options: Any) -> Answer:
        answer = cluster.insist(method, path, **options)
        assert answer.status == status, answer
        answers.append(answer)
        return answer

    def refresh(login: Login) -> Login:
        answer = expect(200, "POST", "/auth/refresh/", body={"refresh_token": login.refresh})
        return Login(answer.body["access_token"], answer.body["refresh_token"], answer.worker)

    def one_session(number: int) -> None:
        login = log_in(cluster, number % 8)
        expect(200, *CHECK, token=login.access)
        login = refresh(login)
        expect(200, *CHECK, token=login.access)
        if number % 2:
            expect(204, "POST", "/auth/logout/", token=login.access, body={})
            expect(401, *CHECK, token=login.access)
            dead.append(login)
        else:
            live.append(login)

    def after(count: int, what: Callable[[], Any]) -> None:
        """Do something as soon as that many sessions have been played through."""
        wait_until(lambda: len(live) + len(dead) >= count or not clients_run(), timeout=60)
        assert failures == []
        assert clients_run(), "the clients ended before the kill"
        what()

    failures: list[BaseException] = []
    numbers = iter(range(100))
    turn = threading.Lock()

    def client() -> None:
        try:
            while True:
                with turn:
                    number = next(numbers, None)
                if number is None:
                    return
                one_session(number)
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]

    def clients_run() -> bool:
        return not failures and any(thread.is_alive() for thread in threads)

    def kill_the_server() -> None:
        cluster.kill()
        cluster.start()

    victim = cluster.once(*CHECK).worker
    for thread in threads:
        thread.start()
    try:
        after(20, lambda: os.kill(victim, signal.SIGKILL))
        after(50, kill_the_server)
    finally:
        for thread in threads:
            thread.join(60)
    assert failures == []
    assert (len(live), len(dead)) == (50, 50)
    # Each worker before, the one that came for the victim, and each one after the restart.
    assert len(tally("while they were killed", answers)) >= cluster.workers + 3
    last = next(n for n, answer in reversed(list(enumerate(answers))) if answer.worker == victim)
    assert last < len(answers) / 2

    assert victim not in refuse_and_accept(cluster, live[0], dead[0])
    # Once more, with nobody asking: what is known is only on disk.
    cluster.kill()
    cluster.start()
    refuse_and_accept(cluster, live[0], dead[0])
    seen = [cluster.at_once(3, *CHECK, token=login.access) for login in live]
    seen_dead = [cluster.at_once(3, *CHECK, token=login.access) for login in dead]
    assert {answer.status for them in seen for answer in them} == {200}
    assert {answer.status for them in seen_dead for answer in them} == {401}
    for login in live[:10]:
        login = refresh(login)
        assert {x.status for x in cluster.at_once(4, *CHECK, token=login.access)} == {200}
    for login in dead:
        expect(401, "POST", "/auth/refresh/", body={"refresh_token": login.refresh})


def refuse_and_accept(cluster: Cluster, live: Login, dead: Login) -> set[int]:
    """Ask every worker for a live and a dead session; return their process ids."""
    good = cluster.all_workers(*CHECK, token=live.access)
    bad = cluster.all_workers(*CHECK, token=dead.access)
    assert {answer.status for answer in good.values()} == {200}
    assert {answer.status for answer in bad.values()} == {401}
    assert set(good) == set(bad)
    return set(good)
