"""What mypy must know in a project that has no django-stubs, where Django is Any.

Checked by tests/test_typing.py, and never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from accesspass import sessions
from accesspass.authentication import AuthenticatedRequest
from accesspass.exceptions import AccessPassError
from accesspass.hooks import Hooks
from accesspass.permissions import HasClaim
from accesspass.sessions import SessionRecord, TokenPair


class CodeRequired(AccessPassError):
    code = "code_required"


class User:
    email: str


class ShopHooks(Hooks[User]):
    refusals = {"login": [CodeRequired]}

    def may_login(self, user: User, data: Mapping[str, Any], request: Any) -> None:
        raise CodeRequired

    def may_reset_password(self, user: User) -> str:  # type: ignore[override]
        return ""


class View:
    permission_classes = [HasClaim(role="admin")]

    def get(self, request: AuthenticatedRequest[User]) -> None:
        assert_type(request.user, User)
        assert_type(request.auth, SessionRecord)
        _ = request.auth.role  # type: ignore[attr-defined]


def use_sessions(user: User) -> None:
    # A decorator of Django's makes it Any for mypy, until somebody says what it is.
    pair: TokenPair = sessions.start(user, claims={"role": "admin"})
    assert_type(pair.access_token, str)
    sessions.revoke(pair)  # type: ignore[arg-type]
