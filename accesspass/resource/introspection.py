"""The client of the authorization server's `introspect/` (RFC 7662)."""

from __future__ import annotations

import json
import ssl
from base64 import b64encode
from functools import lru_cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.views.decorators.debug import sensitive_variables

from accesspass.conf import conf

__all__ = ["Introspection", "IntrospectionFailed"]

_TIMEOUT = 2.0
"""Seconds to wait for the connection, and for each piece of the answer."""

_MAX_BYTES = 1 << 20


class IntrospectionFailed(Exception):
    """The authorization server gave no answer that says yes or no. Names no secret."""


class Introspection:
    """Asks one authorization server.

    It is one POST on a connection of its own, by the standard library: misses are rare, and here no
    proxy of the environment and no redirect may carry a token and a secret elsewhere.
    """

    def __init__(self, url: str, client: str, secret: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path or "/"
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        credentials = b64encode(f"{client}:{secret}".encode()).decode("ascii")
        self._headers = {
            "Authorization": f"Basic {credentials}",
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }

    @classmethod
    def configured(cls) -> Introspection:
        """Return the client that the settings describe. Raises IntrospectionFailed without any."""
        url, client, secret = (
            conf.INTROSPECTION_URL,
            conf.INTROSPECTION_ID,
            conf.INTROSPECTION_SECRET,
        )
        if not (url and client and secret):
            raise IntrospectionFailed("INTROSPECTION_URL, _ID and _SECRET must be set")
        return _client(url, client, secret)

    @sensitive_variables()
    def ask(self, token: str) -> dict[str, Any]:
        """Return the answer for a token, or raise IntrospectionFailed."""
        connection = (
            HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
            if self._context is None
            else HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=self._context)
        )
        body = urlencode({"token": token, "token_type_hint": "access_token"})
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            status, content = response.status, response.read(_MAX_BYTES + 1)
        except (OSError, HTTPException) as error:
            raise IntrospectionFailed(f"no answer: {type(error).__name__}") from None
        finally:
            connection.close()
        if status != 200:
            raise IntrospectionFailed(f"it answered with status {status}")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if len(content) > _MAX_BYTES or not isinstance(answer, dict):
            raise IntrospectionFailed("the answer is no JSON object")
        return answer


@lru_cache(maxsize=4)
def _client(url: str, client: str, secret: str) -> Introspection:
    return Introspection(url, client, secret)
