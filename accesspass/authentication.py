"""`TokenAuthentication` for Django REST framework."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, AuthenticationFailed

from accesspass import background, sessions
from accesspass.conf import conf
from accesspass.exceptions import InvalidToken, Unavailable

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest
    from rest_framework.request import Request

    from accesspass.sessions import SessionRecord

__all__ = ["ServiceUnavailable", "TokenAuthentication", "sent_token"]

_REFUSED = "_accesspass_refused"


class ServiceUnavailable(APIException):
    """503 with Retry-After: neither yes nor no can be said about the token now."""

    status_code = 503

    def __init__(self, error: Unavailable) -> None:
        super().__init__({"detail": str(error.detail), "code": error.code})
        self.wait = max(1, round(error.wait))


class TokenAuthentication(BaseAuthentication):
    """Authenticate by the access token in `Authorization: Bearer` (RFC 6750 §2.1).

    `request.user` is a user instance made without a query, `request.auth` the `SessionRecord`. A
    refused token is a 401 with code `invalid_token`; a request without one is left to others.
    With another ACCESS_TOKEN_HEADER, that header carries the bare token.
    """

    pass_foreign = False
    """Whether a Bearer value that does not begin with our prefix is left to the next class."""

    def authenticate(self, request: Request) -> tuple[AbstractBaseUser, SessionRecord] | None:
        """Return the user and the session record, or None without credentials.

        Raises AuthenticationFailed (401) and ServiceUnavailable (503).
        """
        # DRF's request proxies META through __getattr__, twenty times slower.
        token = sent_token(request._request)
        if token is None:
            return None
        if self.pass_foreign and not token.startswith(conf.TOKEN_PREFIX + "_"):
            return None
        background.start()
        try:
            return sessions.authenticate(token)
        except InvalidToken as error:
            # DRF asks another instance for the header of the 401, so the request has to remember.
            setattr(request, _REFUSED, True)
            body = conf.hooks().unauthenticated(error, request._request)
            raise AuthenticationFailed(dict(body)) from None
        except Unavailable as error:
            raise ServiceUnavailable(error) from error

    def authenticate_header(self, request: Request) -> str:
        """Return the challenge of a 401 (RFC 6750 §3): the error is named only if there was one."""
        return 'Bearer error="invalid_token"' if getattr(request, _REFUSED, False) else "Bearer"


def sent_token(request: HttpRequest) -> str | None:
    """Return what was sent where an access token belongs, or None. It may be any text."""
    name = conf.ACCESS_TOKEN_HEADER
    value = request.META.get(_meta_key(name))
    if not value:
        return None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if name.lower() != "authorization":
        return str(value)
    scheme, _space, token = value.partition(" ")
    return str(token) if scheme.lower() == "bearer" else None


@lru_cache(maxsize=16)
def _meta_key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")
