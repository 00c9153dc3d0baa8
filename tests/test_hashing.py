"""How many passwords are hashed at a time, and for whom."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import check_password, identify_hasher, make_password
from django.test import override_settings
from rest_framework.test import APIClient, APIRequestFactory

from accesspass import accounts, hashing, sessions
from accesspass.exceptions import Busy
from tests.conftest import PASSWORD
from tests.servers import wait_until

FLOOD = 16


def request_from(address: str) -> Any:
    return APIRequestFactory().post("/auth/login/", REMOTE_ADDR=address)


@pytest.fixture
def slots() -> Iterator[hashing._Slots]:
    """Two slots, and nobody who holds or wants one of them."""
    hashing._slots.cache_clear()
    with override_settings(ACCESSPASS={"HASHING_CONCURRENCY": 2}):
        yield hashing._slots(2)
    hashing._slots.cache_clear()


class Hasher(threading.Thread):
    """Takes a slot, says so in `served`, and holds it until `go`."""

    def __init__(self, address: str, served: list[Hasher]) -> None:
        super().__init__(daemon=True)
        self.address, self.served = address, served
        self.go = threading.Event()
        self.refused = False
        self.start()

    def run(self) -> None:
        try:
            with hashing.slot(request_from(self.address)):
                self.served.append(self)
                self.go.wait(30)
        except Busy:
            self.refused = True


def waiting(slots: hashing._Slots) -> int:
    return sum(map(len, slots._waiting.values()))


def is_idle(slots: hashing._Slots, size: int = 2) -> bool:
    return (slots._free, slots._held, slots._waiting) == (size, {}, {})


def test_no_more_are_hashed_at_a_time_than_allowed(slots: hashing._Slots) -> None:
    now, most, lock = 0, 0, threading.Lock()

    def run(address: str) -> None:
        nonlocal now, most
        with hashing.slot(request_from(address)):
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.005)
            with lock:
                now -= 1

    threads = [threading.Thread(target=run, args=(f"192.0.{n % 5}.1",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    assert is_idle(slots)


def test_a_flood_from_one_network_does_not_delay_another_by_its_queue(
    slots: hashing._Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WAIT", 30)
    served: list[Hasher] = []
    # Two addresses of one network.
    flood = [Hasher(f"192.0.2.{1 + n % 2}", served) for n in range(FLOOD)]
    wait_until(lambda: waiting(slots) == FLOOD - 2)
    other = Hasher("198.51.100.1", served)
    wait_until(lambda: waiting(slots) == FLOOD - 1)
    # As soon as one of the flood is done it is the turn of the other, which came last.
    served[0].go.set()
    wait_until(lambda: len(served) == 3)
    assert served[2] is other
    for hasher in (*flood, other):
        hasher.go.set()
        hasher.join(30)
    assert len(served) == FLOOD + 1
    assert is_idle(slots)


def test_networks_that_wait_are_served_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_WAIT", 30)
    first, second, third = "192.0.2.1", "198.51.100.1", "203.0.113.1"
    with override_settings(ACCESSPASS={"HASHING_CONCURRENCY": 1}):
        hashing._slots.cache_clear()
        slots = hashing._slots(1)
        served: list[Hasher] = []
        everybody = [Hasher(first, served)]
        wait_until(lambda: served)
        for address in (first, first, first, second, second, third):
            everybody.append(Hasher(address, served))
            wait_until(lambda: waiting(slots) == len(everybody) - 1)
        for hasher in everybody:
            hasher.go.set()
        for hasher in everybody:
            hasher.join(30)
    addresses = [hasher.address for hasher in served]
    assert addresses == [first, first, second, third, first, second, first]
    assert is_idle(slots, 1)
    hashing._slots.cache_clear()


def test_who_waits_too_long_is_told_that_it_is_busy(
    slots: hashing._Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WAIT", 0.01)
    with hashing.slot(None), hashing.slot(None):
        for _ in range(3):
            with pytest.raises(Busy) as error, hashing.slot(None):
                pass
            assert error.value.wait > 0
    assert is_idle(slots)


def test_a_slot_is_given_back_whatever_happens(slots: hashing._Slots) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), hashing.slot(None):
            raise ZeroDivisionError
    assert is_idle(slots)


def test_a_wait_that_is_broken_off_leaves_nothing_behind(
    slots: hashing._Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(self: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with hashing.slot(None), hashing.slot(None):
        monkeypatch.setattr(threading.Event, "wait", broken_off)
        with pytest.raises(KeyboardInterrupt), hashing.slot(None):
            pass
        # And if the slot was given at the very moment:
        give = hashing._Slots.release

        def given_then_broken_off(self: threading.Event, timeout: float | None = None) -> bool:
            give(slots, "unknown")
            raise KeyboardInterrupt

        monkeypatch.setattr(threading.Event, "wait", given_then_broken_off)
        with pytest.raises(KeyboardInterrupt), hashing.slot(None):
            pass
        slots._free -= 1  # what the test has released is still held by the outer block
        slots._held["unknown"] += 1
    assert is_idle(slots)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_begins_with_all_its_slots(slots: hashing._Slots) -> None:
    with hashing.slot(None), hashing.slot(None):
        child = os.fork()
        if child == 0:
            with hashing.slot(None), hashing.slot(None):
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


GEVENT = """
from gevent import monkey
monkey.patch_all()
import django, gevent
from django.conf import settings
settings.configure(ACCESSPASS={"HASHING_CONCURRENCY": 1}, PASSWORD_HASHERS=[])
from accesspass import hashing
from accesspass.exceptions import Busy
from django.http import HttpRequest
served = []
def come(address, seconds):
    request = HttpRequest()
    request.META["REMOTE_ADDR"] = address
    with hashing.slot(request):
        served.append(address)
        gevent.sleep(seconds)
flood = [gevent.spawn(come, "192.0.2.1", 0.01) for _ in range(50)]
gevent.sleep(0)
other = gevent.spawn(come, "198.51.100.1", 0)
try:
    with gevent.Timeout(0.015):
        come("203.0.113.1", 5)
except gevent.Timeout:
    pass
gevent.joinall([*flood, other], raise_error=True)
slots = hashing._slots(1)
assert (slots._free, slots._held, slots._waiting) == (1, {}, {}), vars(slots)
print(served.index("198.51.100.1"), len(served))
"""


def test_greenlets_wait_by_turns_too() -> None:
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", GEVENT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    place, served = map(int, done.stdout.split())
    assert place <= 3
    assert served in (51, 52)


# Logging in


@pytest.mark.django_db
def test_a_login_from_elsewhere_gets_through_a_flood(
    user: Any, api: APIClient, slots: hashing._Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WAIT", 30)
    served: list[Hasher] = []
    flood = [Hasher("192.0.2.1", served) for _ in range(FLOOD)]
    wait_until(lambda: waiting(slots) == FLOOD - 2)

    def end_one() -> None:
        wait_until(lambda: waiting(slots) == FLOOD - 1)
        served[0].go.set()

    ender = threading.Thread(target=end_one)
    ender.start()
    body = {"username": user.get_username(), "password": PASSWORD}
    answer = api.post("/auth/login/", body, format="json", REMOTE_ADDR="198.51.100.1")
    assert answer.status_code == 200
    for hasher in flood:
        hasher.go.set()
    for thread in (ender, *flood):
        thread.join(30)


# Argon2

ARGON2 = override_settings(
    PASSWORD_HASHERS=[
        "accesspass.hashing.Argon2PasswordHasher",
        "django.contrib.auth.hashers.MD5PasswordHasher",
    ]
)


@ARGON2
def test_argon2_is_argon2id_with_parameters_for_servers() -> None:
    pytest.importorskip("argon2")
    encoded = make_password(PASSWORD)
    assert encoded.startswith("argon2$argon2id$v=19$m=47104,t=1,p=1$")
    assert check_password(PASSWORD, encoded)
    assert not check_password(PASSWORD + " ", encoded)


@pytest.mark.django_db(transaction=True)
def test_a_login_upgrades_the_hash_and_ends_no_session(user: Any, api: APIClient) -> None:
    pytest.importorskip("argon2")
    before = sessions.start(user)
    with ARGON2:
        _user, pair = accounts.log_in(user.get_username(), PASSWORD)
        stored = get_user_model()._default_manager.get().password
        assert identify_hasher(stored).algorithm == "argon2"
        for each in (before, pair):
            header = f"Bearer {each.access_token}"
            assert api.get("/auth/check/", HTTP_AUTHORIZATION=header).status_code == 200
            sessions.refresh(each.refresh_token)


@pytest.mark.django_db(transaction=True)
def test_a_login_upgrades_the_parameters_of_djangos_argon2(user: Any) -> None:
    pytest.importorskip("argon2")
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.Argon2PasswordHasher"]):
        user.set_password(PASSWORD)
        user.save()
    with ARGON2:
        accounts.log_in(user.get_username(), PASSWORD)
    assert "$m=47104,t=1,p=1$" in get_user_model()._default_manager.get().password
