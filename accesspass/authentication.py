"""`TokenAuthentication` for Django REST framework, and the credentials of registered services."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from django.views.decorators.debug import sensitive_variables

from accesspass import background, sessions
from accesspass.bearer import (
    AuthenticatedRequest,
    BearerAuthentication,
    ServiceUnavailable,
    sent_token,
)
from accesspass.conf import conf

if TYPE_CHECKING:
    from django.http import HttpRequest

    from accesspass.sessions import SessionRecord

__all__ = [
    "AuthenticatedRequest",
    "ServiceUnavailable",
    "TokenAuthentication",
    "sent_token",
    "service_of",
]


class TokenAuthentication(BearerAuthentication):
    """Authenticate by the access token in `Authorization: Bearer` (RFC 6750 §2.1).

    `request.user` is a user instance made without a query, `request.auth` the `SessionRecord`.
    """

    def find(self, token: str) -> tuple[Any, SessionRecord]:
        background.start()
        return sessions.authenticate(token)


@sensitive_variables()
def service_of(request: HttpRequest) -> str | None:
    """Return the id of the registered service that sent its HTTP Basic credentials, or None.

    Registered is who stands in INTROSPECTION_CLIENTS. Id and secret may be form-encoded, as RFC
    6749 §2.3.1 asks and most clients do not.
    """
    header = request.META.get("HTTP_AUTHORIZATION", "")
    scheme, _space, encoded = str(header).partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    clients = conf.INTROSPECTION_CLIENTS
    if client not in clients:
        client = unquote_plus(client)
    # An unknown client's secret is compared too, and both forms always, so that time tells nothing.
    expected = clients.get(client, "0" * 64).lower()
    digests = [hashlib.sha256(x.encode()).hexdigest() for x in (secret, unquote_plus(secret))]
    equal = [hmac.compare_digest(digest, expected) for digest in digests]
    return client if colon and client in clients and any(equal) else None
