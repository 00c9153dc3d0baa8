"""How passwords are hashed: with which parameters, and how many at a time.

A good hash costs tens of milliseconds of a core and tens of megabytes, and anybody may ask for one
by logging in. So each process hashes ``HASHING_CONCURRENCY`` passwords at a time at most, which
bounds its memory, and shares these slots fairly between the networks that want one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from django.contrib.auth import hashers

from accesspass import metrics
from accesspass.conf import conf
from accesspass.exceptions import Busy
from accesspass.networks import client_network

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["Argon2PasswordHasher", "slot"]

_WAIT = 1.0  # seconds: shorter than a client's patience, longer than one hash


class Argon2PasswordHasher(hashers.Argon2PasswordHasher):
    """Argon2id (RFC 9106) with parameters for a server on which many people log in at once.

    46 MiB, one pass and one lane: one of the equally strong settings that OWASP's Password Storage
    Cheat Sheet lists. Django's own takes 100 MiB and eight threads for each password. Needs
    ``argon2-cffi``, the extra ``argon2``.
    """

    time_cost = 1
    memory_cost = 47_104  # KiB
    parallelism = 1


@contextmanager
def slot(request: HttpRequest | None) -> Iterator[None]:
    """Hash inside this block only: it waits for one of this process's slots.

    While several networks wait, the next slot goes to the one that holds the fewest, so a flood
    from one network delays a login from another by one hash, not by its whole queue.

    Raises:
        Busy: no slot came free within a second.
    """
    network = client_network(request)
    slots = _slots(conf.HASHING_CONCURRENCY)
    began = time.monotonic()
    try:
        slots.acquire(network)
    except Busy:
        metrics.HASHES.count("busy")
        raise
    finally:
        metrics.HASH_WAIT.observe(time.monotonic() - began)
    try:
        with metrics.HASHING.measure():
            yield
    finally:
        slots.release(network)
        metrics.HASHES.count("done")


class _Slots:
    """A semaphore that serves those who wait by turns of their networks."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._free = size  # 0 whenever somebody waits
        self._held: Counter[str] = Counter()
        # The network that was served longest ago comes first.
        self._waiting: dict[str, deque[threading.Event]] = {}

    def acquire(self, network: str) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                self._held[network] += 1
                return
            turn = threading.Event()
            self._waiting.setdefault(network, deque()).append(turn)
        try:
            turn.wait(_WAIT)
        except BaseException:  # a timeout of gevent's, say
            if self._was_given(turn, network):
                self.release(network)
            raise
        if not self._was_given(turn, network):
            raise Busy

    def release(self, network: str) -> None:
        with self._lock:
            self._held[network] -= 1
            if not self._held[network]:
                del self._held[network]
            if not self._waiting:
                self._free += 1
                return
            chosen = min(self._waiting, key=lambda waiting: self._held[waiting])
            queue = self._waiting.pop(chosen)
            queue.popleft().set()
            self._held[chosen] += 1
            if queue:
                self._waiting[chosen] = queue

    def _was_given(self, turn: threading.Event, network: str) -> bool:
        """Tell whether the wait ended with a slot; if not, the place in the queue is given up."""
        with self._lock:
            if not turn.is_set():
                queue = self._waiting[network]
                queue.remove(turn)
                if not queue:
                    del self._waiting[network]
                return False
        return True


@cache
def _slots(size: int) -> _Slots:
    return _Slots(size)


# A slot that another thread held when the process forked would never be given back.
os.register_at_fork(after_in_child=_slots.cache_clear)
