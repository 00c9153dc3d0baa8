"""Whether time tells that an account exists: ``python -m benchmarks.enumeration`` (``--quick``).

The site of ``tests.abuse`` is asked over sockets, one request at a time, for names that are known
and names that are not, in random order. Two samples are compared by Mann-Whitney's test, which
assumes nothing of their distribution. Its effect is the chance that an answer for a known name
took longer than one for an unknown name (AUC); 0.5 is no difference. The exit status is 1 where a
difference is both certain (p < 0.001) and of a size that could be used (an effect of 0.6 or more,
or 0.4 or less).
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.abuse.site import PASSWORD, Site, request

__all__ = ["Comparison", "compare", "main"]

_SEED = 20_260
_CERTAIN = 0.001
_USABLE = 0.1  # beyond 0.5, on either side
_ARGON2 = ["accesspass.hashing.Argon2PasswordHasher"]  # what the docs advise


class Comparison(NamedTuple):
    """``effect`` is P(a > b) + P(a = b) / 2, ``p`` two-sided."""

    effect: float
    p: float

    @property
    def tells(self) -> bool:
        return self.p < _CERTAIN and abs(self.effect - 0.5) >= _USABLE


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Mann-Whitney's U by the normal approximation, with the correction for ties.

    Good from about 20 values in each sample.
    """
    values = sorted([(x, 0) for x in a] + [(x, 1) for x in b])
    n, m, total = len(a), len(b), len(a) + len(b)
    ranks, ties, first = 0.0, 0, 0
    while first < total:
        last = first
        while last + 1 < total and values[last + 1][0] == values[first][0]:
            last += 1
        rank, count = (first + last) / 2 + 1, last - first + 1
        ranks += rank * sum(1 for x in values[first : last + 1] if x[1] == 0)
        ties += count**3 - count
        first = last + 1
    u = ranks - n * (n + 1) / 2
    deviation = math.sqrt(n * m / 12 * (total + 1 - ties / (total * (total - 1))))
    z = (u - n * m / 2) / deviation if deviation else 0.0
    return Comparison(u / (n * m), math.erfc(abs(z) / math.sqrt(2)))


class _Case(NamedTuple):
    """What is sent for a known and for an unknown name, and how often."""

    name: str
    known: Callable[[int], bytes]
    unknown: Callable[[int], bytes]
    times: int


def _seconds(site: Site, message: bytes) -> float:
    with socket.create_connection((site.host, site.port), 30) as connection:
        began = time.perf_counter()
        connection.sendall(message)
        received = connection.recv(65536)
        taken = time.perf_counter() - began
        while piece := connection.recv(65536):
            received += piece
    status = int(received.split(b" ", 2)[1])
    assert status in (202, 401), received[:300]
    return taken


def _post(route: str, body: dict[str, str]) -> bytes:
    return request("POST", f"/auth/{route}/", body=body)


def _cases(site: Site, times: int, logins: int) -> list[_Case]:
    """Names are used once where a repetition would find another path."""
    person, disabled, unusable = (site.person() for _ in range(3))
    site.sql("UPDATE accesspass_user SET is_active = false WHERE id = %s", disabled.id)
    site.sql("UPDATE accesspass_user SET password = '!' WHERE id = %s", unusable.id)
    known = [site.person() for _ in range(times)]

    def login(name: str, password: str) -> bytes:
        return _post("login", {"username": name, "password": password})

    def register(name: str, email: str) -> bytes:
        return _post("register", {"username": name, "email": email, "password": PASSWORD})

    def nobody(n: int) -> bytes:
        return login(f"nobody{n:05d}", "wrong")

    cases = [
        _Case("login, wrong password", lambda n: login(person.username, "wrong"), nobody, logins),
        _Case("login, disabled", lambda n: login(disabled.username, PASSWORD), nobody, logins),
        _Case("login, no password", lambda n: login(unusable.username, "wrong"), nobody, logins),
    ]
    for route, field in [
        ("password/reset", "username"),
        ("confirm/resend", "username"),
        ("username/forgot", "email"),
    ]:
        cases.append(
            _Case(
                route,
                lambda n, route=route, field=field: _post(route, {field: known[n].email}),  # type: ignore[misc]
                lambda n, route=route, field=field: _post(  # type: ignore[misc]
                    route, {field: f"none{n:05d}@example.com"}
                ),
                times,
            )
        )
    cases += [
        _Case(
            "register, taken address",
            lambda n: register(f"taken{n:05d}", person.email),
            lambda n: register(f"free{n:05d}", f"free{n:05d}@example.com"),
            logins,
        ),
        _Case(
            "login, unconfirmed",
            lambda n: login(person.username, PASSWORD),
            lambda n: login(f"nobody{n:05d}", PASSWORD),
            logins,
        ),
    ]
    return cases


def _measure(site: Site, case: _Case, shuffle: random.Random) -> tuple[list[float], list[float]]:
    order = [(send, n) for n in range(case.times) for send in (0, 1)]
    shuffle.shuffle(order)
    found: tuple[list[float], list[float]] = ([], [])
    for n in range(3):
        _seconds(site, case.unknown(99_990 + n))  # warm
    gc.disable()
    for which, n in order:
        found[which].append(_seconds(site, (case.known, case.unknown)[which](n)))
    gc.enable()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.enumeration")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--seed", type=int, default=_SEED, help="of the order of requests")
    options = parser.parse_args(arguments)
    times, logins = (40, 25) if options.quick else (400, 100)
    print(
        f"seed {options.seed}; {times} requests of each kind, {logins} where passwords are hashed"
    )
    print(f"{'':26}{'known':>10}{'unknown':>10}{'effect':>8}{'p':>9}")
    shuffle, told = random.Random(options.seed), False
    with Site() as site:
        for case in _cases(site, times, logins):
            slow = case.name.startswith(("login", "register"))
            django = {"PASSWORD_HASHERS": _ARGON2} if slow else {}
            confirmed = case.name.startswith("register") or case.name.endswith("unconfirmed")
            with site.settings(django=django, REQUIRE_CONFIRMED_EMAIL=confirmed):
                if slow:  # the hashes that are compared with are of that kind too
                    _rehash(site)
                known, unknown = _measure(site, case, shuffle)
            found = compare(known, unknown)
            told |= found.tells
            a, b = (statistics.median(x) * 1000 for x in (known, unknown))
            verdict = "  tells them apart" if found.tells else ""
            print(
                f"{case.name:26}{a:7.2f} ms{b:7.2f} ms{found.effect:8.3f}{found.p:9.4f}{verdict}",
                flush=True,
            )
    return int(told)


def _rehash(site: Site) -> None:
    """Give all users of the site the same password under Argon2."""
    fresh = site.register()
    name = fresh.body.get("user", {}).get("username")
    if name is None:  # registered quietly: it is the last one
        ((name,),) = site.sql(
            "SELECT username FROM accesspass_user ORDER BY date_joined DESC LIMIT 1"
        )
    site.sql(
        "UPDATE accesspass_user SET password = (SELECT password FROM accesspass_user "
        "WHERE username = %s) WHERE password LIKE 'md5$%%'",
        name,
    )


if __name__ == "__main__":
    raise SystemExit(main())
