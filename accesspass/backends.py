"""`IdentifierBackend` lets the admin and `authenticate()` take any spelling of a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.views.decorators.debug import sensitive_variables

from accesspass.accounts import resolve_name
from accesspass.conf import conf
from accesspass.identifiers import is_plain_text
from accesspass.models import is_possible_username

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest

__all__ = ["IdentifierBackend"]


class IdentifierBackend(ModelBackend):
    """Django's ModelBackend, but the name may be the username or e-mail address in any case.

    An unknown name hashes a password like a known one. Text that no database takes, passwords over
    PASSWORD_MAX_LENGTH, and spellings that only the database takes for a name are refused.
    """

    @sensitive_variables()
    def authenticate(  # type: ignore[override] # the stubs know one user model
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> AbstractBaseUser | None:
        """Return the user, or None."""
        if username is None:
            username = kwargs.get(get_user_model().USERNAME_FIELD)
        if username is None or password is None:
            return None
        if len(password) > conf.PASSWORD_MAX_LENGTH:
            return None
        if not (is_plain_text(username) and is_plain_text(password)):
            return None
        key, is_loose = resolve_name(username)
        if not is_possible_username(key):
            get_user_model()().set_password(password)  # as long as any other unknown name
            return None
        user = super().authenticate(request, username=key, password=password)
        return None if is_loose else user

    async def aauthenticate(  # type: ignore[override]
        self,
        request: HttpRequest | None,
        username: str | None = None,
        password: str | None = None,
        **kwargs: Any,
    ) -> AbstractBaseUser | None:
        """See authenticate()."""
        return await sync_to_async(self.authenticate)(request, username, password, **kwargs)
