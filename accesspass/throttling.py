"""How often somebody may try: `count` before the attempt, `Attempt.succeed` after a good one.

Three things are counted, each over the window of its rate in ``THROTTLES``:

``account_network``
    Attempts for one name from one network. More are refused.
``account``
    Failed attempts for one name from anywhere. More are refused, but not from a network from which
    somebody has logged in to that account within 30 days: nobody can lock the owner out.
``network``
    Attempts from one network for any name. More are logged and signalled, never refused.

A name is what the client sent, in its canonical form. Whether it belongs to anybody is not looked
at, so a limit tells nothing about that. Nor are two names of one account counted together: who
exhausts the one would see by the other that they belong together.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from django.db import Error
from django.utils.crypto import salted_hmac

from accesspass.conf import Rate, conf
from accesspass.exceptions import Throttled, Unavailable
from accesspass.identifiers import canonical
from accesspass.models import Throttle, aliases
from accesspass.networks import UNKNOWN, client_network
from accesspass.signals import network_over_limit

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest

__all__ = ["Attempt", "count", "key_came_back", "remember"]

logger = logging.getLogger("accesspass.throttling")

Scope = Literal["login", "register", "mail"]

_KNOWN_FOR = 30 * 86_400  # seconds


class Attempt:
    """An attempt that was counted as a failure until it is said to have succeeded."""

    __slots__ = ("_failure", "_name", "_request")

    def __init__(self, request: HttpRequest, name: str, failure: str | None) -> None:
        self._request = request
        self._name = name
        self._failure = failure

    def succeed(self, user: AbstractBaseUser) -> None:
        """Take this one failure back and `remember` the network. No other failure is forgotten."""
        if self._failure is not None:
            Throttle.objects.give_back(self._failure)
        remember(self._request, user, self._name)


def count(scope: Scope, request: HttpRequest, name: str) -> Attempt:
    """Count an attempt before it is made; `name` is the username or address that was sent.

    Call it outside of transactions, or a rollback would forget it.

    Raises:
        Throttled: there were too many. Its `wait` is the number of seconds until the next one can
            be let through.
        Unavailable: the database cannot count, so nothing is let through.
    """
    rates = conf.THROTTLES[scope]
    network, name = client_network(request), canonical(name)
    if network == UNKNOWN:
        extra = {"event": "throttle.address_unknown", "scope": scope}
        logger.warning("throttle.address_unknown: %s: see TRUSTED_PROXIES", scope, extra=extra)
    failure = None
    try:
        if rate := rates["account_network"]:
            _take(_key(scope, "account_network", network, name), rate)
        if rate := rates["account"]:
            failure = _take_unless_known(scope, rate, network, name)
        if rate := rates["network"]:
            _warn_if_over(scope, rate, network, request)
    except Error as error:
        raise Unavailable from error
    return Attempt(request, name, failure)


def remember(request: HttpRequest | None, user: AbstractBaseUser, name: str = "") -> None:
    """Let the limit of the account not refuse this network for 30 days.

    Call it when the user has proved who they are, by a password or by a key from an e-mail; `name`
    is a further name under which they log in. Addresses that are unknown are never remembered.
    """
    network = client_network(request)
    if network == UNKNOWN or not any(rates["account"] for rates in conf.THROTTLES.values()):
        return
    names = dict.fromkeys([*aliases(user), canonical(name)])
    Throttle.objects.remember([_known(network, x) for x in names if x], _KNOWN_FOR)


def key_came_back(user: AbstractBaseUser, request: HttpRequest | None, **_: Any) -> None:
    """Remember the network of somebody who reads the user's mail. Receiver of two signals."""
    remember(request, user)


def _take(key: str, rate: Rate) -> None:
    if not Throttle.objects.take(key, *rate):
        raise Throttled(wait=Throttle.objects.wait(key))


def _take_unless_known(scope: Scope, rate: Rate, network: str, name: str) -> str | None:
    """Return the key if the attempt was counted, None if it is let through uncounted."""
    key = _key(scope, "account", "", name)
    if Throttle.objects.take(key, *rate):
        return key
    if not Throttle.objects.holds(_known(network, name)):
        raise Throttled(wait=Throttle.objects.wait(key))
    return None


def _warn_if_over(scope: str, rate: Rate, network: str, request: HttpRequest) -> None:
    key = _key(scope, "network", network)
    if Throttle.objects.take(key, *rate) or not Throttle.objects.first_over(key, rate.limit):
        return
    logger.warning(
        "throttle.network_over_limit: %s from %s",
        scope,
        network,
        extra={"event": "throttle.network_over_limit", "scope": scope, "network": network},
    )
    network_over_limit.send_robust(sender=Throttle, scope=scope, network=network, request=request)


def _known(network: str, name: str) -> str:
    return _key("login", "known", network, name)


def _key(scope: str, kind: str, network: str, name: str = "") -> str:
    # Hashed under a key, since there are few enough names and addresses to try them all.
    text = "\0".join((scope, kind, network, name)).encode("utf-8", "surrogatepass")
    return salted_hmac("accesspass.throttling", text, algorithm="sha256").hexdigest()
