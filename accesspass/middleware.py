"""Access tokens for plain and async Django views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import AnonymousUser

from accesspass import background, sessions
from accesspass.bearer import AuthenticatedHttpRequest, BearerMiddleware, token_required

if TYPE_CHECKING:
    from accesspass.sessions import SessionRecord

__all__ = ["AuthenticatedHttpRequest", "TokenAuthenticationMiddleware", "token_required"]


class TokenAuthenticationMiddleware(BearerMiddleware):
    """What `TokenAuthentication` is for Django REST framework. Put it after Django's own
    AuthenticationMiddleware, if that is there."""

    def find(self, token: str) -> tuple[Any, SessionRecord]:
        background.start()
        return sessions.authenticate(token)

    async def afind(self, token: str) -> tuple[Any, SessionRecord]:
        background.start()
        return await sessions.aauthenticate(token)

    def anonymous(self) -> AnonymousUser:
        return AnonymousUser()
