"""What is measured in this one process. Each function returns rows that are not rounded yet.

Django must be set up before this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from django.core.cache import caches
from rest_framework_simplejwt.serializers import TokenRefreshSerializer
from rest_framework_simplejwt.tokens import RefreshToken

from accesspass import sessions
from benchmarks.timing import Call, Effort, Result, interleave, sample
from benchmarks.variants import BASE, VARIANTS, Server, Variant

__all__ = [
    "authenticators",
    "changes",
    "miss_of",
    "refresh_jwt_of",
    "refresh_of",
    "requests",
    "row_of",
]


def requests(effort: Effort, user: Any) -> list[dict[str, Any]]:
    """Whole requests through Django's WSGI handler, against the view without authentication."""
    server, calls = Server(), {}
    for variant in VARIANTS:
        login = variant.log_in(user)
        variant.select()
        variant.check(partial(server.ask, variant), login, user)
        calls[variant.name] = Call(partial(server.send, variant, login), variant.select)
    return _interleaved(calls, effort, BASE)


def authenticators(effort: Effort, user: Any) -> list[dict[str, Any]]:
    """``authenticate()`` alone, repeated on one request, against knox's."""
    calls = {}
    for variant in VARIANTS:
        if variant.authenticators:
            run = variant.authenticate(variant.log_in(user))
            variant.select()
            found, _ = run()
            assert found.pk == user.pk, variant.name
            calls[variant.name] = Call(run, variant.select)
    return _interleaved(calls, effort, "knox")


def changes(effort: Effort, user: Any) -> list[dict[str, Any]]:
    """Login, logout and refresh: what is done once a session, or once in the life of a token."""
    rows = []
    for variant in VARIANTS:
        if not variant.authenticators or variant.log_in(user).log_out is None:
            continue
        variant.select()
        started: list[Any] = []
        runs: dict[str, Callable[[], object]] = {
            "login": lambda: started.append(variant.log_in(user)),  # noqa: B023 - called at once
            "logout": lambda: started.pop().log_out(),  # noqa: B023
        }
        if variant.alias:
            runs["refresh"] = refresh_of(user)
            runs["request that misses"] = miss_of(variant, user)
        rows.append(_singles(variant.name, runs, effort))
    rows.append(_singles("simplejwt, with blacklist", {"refresh": refresh_jwt_of(user)}, effort))
    return rows


def _singles(name: str, runs: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, Any]:
    samples: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(effort.singles):
        # In turn, so that there are never more sessions than a user may have.
        for kind, run in runs.items():
            samples[kind] += sample(run, 1)
    return {"name": name, **{kind: Result.of(took)._asdict() for kind, took in samples.items()}}


def refresh_of(user: Any) -> Callable[[], object]:
    """Return what refreshes one session of AccessPass, each time with its newest token."""
    pair = sessions.start(user)

    def refresh() -> None:
        nonlocal pair
        pair = sessions.refresh(pair.refresh_token)

    return refresh


def miss_of(variant: Variant, user: Any) -> Callable[[], object]:
    """Return what authenticates with a session that this process has just forgotten."""
    cache: Any = caches[variant.alias]
    pair = sessions.start(user)

    def miss() -> None:
        cache.forget(f"session:{pair.session_id.hex}")
        sessions.authenticate(pair.access_token)

    return miss


def refresh_jwt_of(user: Any) -> Callable[[], object]:
    """Return what rotates one refresh token of simplejwt, with its blacklist."""
    token = str(RefreshToken.for_user(user))

    def refresh() -> None:
        nonlocal token
        serializer = TokenRefreshSerializer(data={"refresh": token})
        serializer.is_valid(raise_exception=True)
        token = serializer.validated_data["refresh"]

    return refresh


def _interleaved(calls: Mapping[str, Call], effort: Effort, base: str) -> list[dict[str, Any]]:
    samples = interleave(calls, rounds=effort.rounds, batch_seconds=effort.batch_seconds)
    return [row_of(name, measured, samples[base]) for name, measured in samples.items()]


def row_of(name: str, measured: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Return a row: quartiles, and those of the ratios of each round, measured together."""
    ratios = [one / other for one, other in zip(measured, base, strict=True)]
    return {
        "name": name,
        "ratio": Result.of(ratios)._asdict(),
        "us": Result.of(measured)._asdict(),
    }
