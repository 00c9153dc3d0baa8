"""`TokenAuthentication` for Django REST framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accesspass import background, sessions
from accesspass.bearer import BearerAuthentication, ServiceUnavailable, sent_token

if TYPE_CHECKING:
    from accesspass.sessions import SessionRecord

__all__ = ["ServiceUnavailable", "TokenAuthentication", "sent_token"]


class TokenAuthentication(BearerAuthentication):
    """Authenticate by the access token in `Authorization: Bearer` (RFC 6750 §2.1).

    `request.user` is a user instance made without a query, `request.auth` the `SessionRecord`.
    """

    def find(self, token: str) -> tuple[Any, SessionRecord]:
        background.start()
        return sessions.authenticate(token)
