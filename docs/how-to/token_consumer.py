"""A WebSocket that is opened with an access token and closed when its session ends.

In a browser: ``new WebSocket(url, ["accesspass", accessToken])``, and before that token expires
``socket.send(JSON.stringify({type: "token", access_token: newAccessToken}))``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from channels.generic.websocket import AsyncJsonWebsocketConsumer

from accesspass import sessions
from accesspass.exceptions import InvalidToken, Unavailable

SUBPROTOCOL = "accesspass"
REFUSED, TRY_AGAIN_LATER = 4401, 1013  # the first is ours, the second of RFC 6455's registry
LOOK_EVERY = 1.0  # seconds


class TokenConsumer(AsyncJsonWebsocketConsumer):
    """``self.user`` and ``self.session`` are what ``request.user`` and ``request.auth`` are."""

    user: Any = None
    session: Any = None
    _token = ""
    _watch: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        name, *tokens = self.scope["subprotocols"] or [""]
        if name != SUBPROTOCOL or len(tokens) != 1 or await self._refusal(tokens[0]):
            await self.close()  # before accept: the handshake is answered with 403
            return
        # The name alone is sent back, never the token.
        await self.accept(SUBPROTOCOL)
        self._watch = asyncio.create_task(self._end_with_the_session())

    async def disconnect(self, code: int) -> None:
        if self._watch is not None:
            self._watch.cancel()

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if isinstance(content, dict) and content.get("type") == "token":
            if code := await self._refusal(content.get("access_token")):
                await self.close(code)
        else:
            await self.handle(content)

    async def handle(self, content: Any) -> None:
        """What your own consumer does."""

    async def _refusal(self, token: Any) -> int | None:
        """Take a token of the same session, or return the code to close with."""
        try:
            user, session = await sessions.aauthenticate(token)
        except InvalidToken:
            return REFUSED
        except Unavailable:
            return TRY_AGAIN_LATER
        if self.session is not None and session.id != self.session.id:
            return REFUSED
        self.user, self.session, self._token = user, session, token
        return None

    async def _end_with_the_session(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if code := await self._refusal(self._token):
                await self.close(code)
                return
