"""The recipe for WebSockets in the documentation, under Channels."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator

from accesspass import accounts, sessions
from accesspass.exceptions import Unavailable
from accesspass.tokens import TokenType, mint

_PATH = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "token_consumer.py"
_spec = importlib.util.spec_from_file_location("token_consumer", _PATH)
assert _spec is not None
assert _spec.loader is not None
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)

REFUSED, TRY_AGAIN_LATER = recipe.REFUSED, recipe.TRY_AGAIN_LATER

pytestmark = pytest.mark.django_db(transaction=True)


class Echo(recipe.TokenConsumer):  # type: ignore[misc, name-defined]
    async def handle(self, content: Any) -> None:
        await self.send_json(
            {"to": str(self.user.pk), "claims": self.session.claims, "said": content}
        )


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "LOOK_EVERY", 0.02)


@pytest.fixture
def pair(user: Any) -> sessions.TokenPair:
    return sessions.start(user)


class Socket(ApplicationCommunicator):
    """A client, at the ASGI interface. (``channels.testing`` needs Daphne for its live server.)"""

    def __init__(self, *offered: str, query: str = "") -> None:
        scope = {
            "type": "websocket",
            "path": "/chat/",
            "query_string": query.encode(),
            "headers": [],
            "subprotocols": list(offered),
        }
        super().__init__(Echo.as_asgi(), scope)

    async def connect(self) -> Any:
        """Return the subprotocol that was chosen, or False if the handshake was refused."""
        await self.send_input({"type": "websocket.connect"})
        answer = await self.receive_output(timeout=5)
        return answer["subprotocol"] if answer["type"] == "websocket.accept" else False

    async def say(self, content: Any) -> None:
        await self.send_input({"type": "websocket.receive", "text": json.dumps(content)})

    async def hear(self) -> Any:
        message = await self.receive_output(timeout=5)
        assert message["type"] == "websocket.send", message
        return json.loads(message["text"])

    async def closed(self) -> int:
        """Return the code with which the server closes it."""
        message = await self.receive_output(timeout=5)
        assert message["type"] == "websocket.close", message
        await self.leave()
        code: int = message["code"]
        return code

    async def leave(self) -> None:
        await self.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wait(timeout=5)


def run(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(play())


async def opened(pair: sessions.TokenPair) -> Socket:
    made = Socket("accesspass", pair.access_token)
    assert await made.connect() == "accesspass"
    return made


def test_a_socket_opens_with_a_token_and_knows_its_user(user: Any, pair: Any) -> None:
    async def play() -> None:
        made = await opened(pair)
        await made.say("hello")
        assert await made.hear() == {"to": str(user.pk), "claims": {}, "said": "hello"}
        await made.leave()

    run(play)


@pytest.mark.parametrize(
    "offered",
    [
        [],
        ["accesspass"],
        ["accesspass", "nonsense"],
        ["accesspass", "ap_at_" + "A" * 76],
        ["accesspass", "a", "b"],
        ["chat", "{token}"],
        ["{token}"],
    ],
)
def test_a_socket_without_a_good_token_does_not_open(pair: Any, offered: list[str]) -> None:
    async def play() -> None:
        made = Socket(*(x.format(token=pair.access_token) for x in offered))
        assert await made.connect() is False

    run(play)


def test_a_token_in_the_url_opens_nothing(pair: Any) -> None:
    async def play() -> None:
        made = Socket("accesspass", query=f"access_token={pair.access_token}")
        assert await made.connect() is False

    run(play)


def test_a_revocation_closes_a_live_socket(pair: Any, user: Any) -> None:
    async def play() -> None:
        other = await sync_to_async(sessions.start)(user)
        ended, stays = await opened(pair), await opened(other)
        await sync_to_async(sessions.revoke)(pair.session_id)
        assert await ended.closed() == REFUSED
        await stays.say("still here")
        assert (await stays.hear())["said"] == "still here"
        await stays.leave()

    run(play)


def test_a_token_that_expires_closes_the_socket_unless_a_new_one_came(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        first, second = await opened(pair), await opened(pair)
        fresh = await sync_to_async(sessions.refresh)(pair.refresh_token)
        await second.say({"type": "token", "access_token": fresh.access_token})
        await second.say("taken")
        assert (await second.hear())["said"] == "taken"
        judge = sessions.aauthenticate

        async def later(token: Any) -> Any:
            """As if the first token's time had come."""
            return await judge("over" if token == pair.access_token else token)

        monkeypatch.setattr(sessions, "aauthenticate", later)
        assert await first.closed() == REFUSED
        await second.say("still here")
        assert (await second.hear())["said"] == "still here"
        await second.leave()

    run(play)


@pytest.mark.parametrize("kind", ["other", "forged", "none", "list"])
def test_a_socket_takes_no_other_sessions_token(pair: Any, user: Any, kind: str) -> None:
    async def play() -> None:
        other = await sync_to_async(sessions.start)(user)
        sent = {
            "other": other.access_token,
            "forged": mint(TokenType.ACCESS, pair.session_id.bytes, 2**32 - 1).text,
            "none": None,
            "list": [],
        }
        made = await opened(pair)
        await made.say({"type": "token", "access_token": sent[kind]})
        assert await made.closed() == REFUSED

    run(play)


def test_a_changed_claim_is_seen_by_a_live_socket(pair: Any, user: Any) -> None:
    async def play() -> None:
        made = await opened(pair)
        await sync_to_async(accounts.set_claims)(user, {"role": "admin"})
        for _ in range(100):
            await made.say("who")
            if (await made.hear())["claims"] == {"role": "admin"}:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("the claim has not arrived")
        await made.leave()

    run(play)


def test_where_nothing_can_be_said_the_socket_closes_to_be_tried_again(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(token: Any) -> Any:
        raise Unavailable

    async def play() -> None:
        made = await opened(pair)
        monkeypatch.setattr(sessions, "aauthenticate", unavailable)
        assert await made.closed() == TRY_AGAIN_LATER

    run(play)
