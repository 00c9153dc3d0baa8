"""What a project overrides: subclass `Hooks` and name the class in `ACCESSPASS["HOOKS"]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from django.utils.crypto import get_random_string

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest
    from typing_extensions import TypeVar as TypeVarWithDefault

    from accesspass.exceptions import AccessPassError
    from accesspass.models import Account

    _User = TypeVarWithDefault("_User", bound=AbstractBaseUser, default=AbstractBaseUser)
else:
    _User = TypeVar("_User")

__all__ = ["Hooks"]


class Hooks(Generic[_User]):
    """The defaults. One instance serves the whole process, so keep no state in it.

    A method may raise any `accesspass.exceptions.AccessPassError` to refuse; the client gets its
    status and code. Where types are checked, subclass `Hooks[User]` with your user model.
    """

    refusals: ClassVar[Mapping[str, Sequence[type[AccessPassError]]]] = {}
    """The errors of its own that the hooks raise, as `{"login": [CodeRequired]}`: what the OpenAPI
    description of an operation names beside the errors of AccessPass."""

    def user_id(self) -> str:
        """Return a new primary key for `accesspass.User`: at most 32 characters.

        It is asked again when the key is in use already.
        """
        return get_random_string(12)

    def prepare_user(self, user: _User, data: Mapping[str, Any]) -> None:
        """Change a user who is about to be validated and inserted.

        `data` is the body of the request without its passwords: what the serializer declares as the
        serializer made it, the rest as the client sent it. Trust nothing in the rest.
        """

    def create_user(self, user: _User, data: Mapping[str, Any]) -> _User:
        """Insert the user, whose password is hashed already, and return who was inserted.

        Runs inside the transaction of the registration; `data` is as in `prepare_user`. An
        IntegrityError over the username or the e-mail address becomes a 400.
        """
        user.save(force_insert=True)
        return user

    def may_login(self, user: _User, data: Mapping[str, Any], request: HttpRequest | None) -> None:
        """Refuse a login by raising, after the password was found to be right.

        With CONFIRM_LOGS_IN it is asked after an address was confirmed, too: who is refused there
        gets no tokens. The place of second factors: `data` is the body of the request without its
        password or key, so a code may be sent beside it. Raise a subclass of AccessPassError with a
        `code` and `status` of your own, so that clients know what to ask for; the attempt counts as
        a failed one.
        """

    def claims(
        self, user: _User, account: Account, session_claims: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what `request.auth.claims` will hold: plain types only.

        Called whenever a session's record is made, so it must make no query.
        """
        return {**account.claims, **session_claims}

    def may_reset_password(self, user: _User) -> bool:
        """Tell whether an e-mail that asks for a new password may give one to `user`.

        By default not to users without a password of ours, who log in by LDAP or single sign-on.
        """
        return user.has_usable_password()

    def delete_user(self, user: _User) -> None:
        """Delete a user who asked for it. Runs in a transaction, after every session has ended.

        Override it to keep the row: take away what is personal and set `is_active` to False.
        """
        user.delete()

    def email_language(self, user: _User | None, language: str) -> str:
        """Return the language code in which an e-mail is written.

        `language` is what the user's client asked for at registration, for users from elsewhere
        what the request for this e-mail asked for; it may be empty. `user` is None for somebody
        who has no account. An empty string is LANGUAGE_CODE.
        """
        return language

    def email_from(self, purpose: str, user: _User | None) -> str | None:
        """Return the sender of an e-mail; None is DEFAULT_FROM_EMAIL."""
        return None

    def email_context(
        self, purpose: str, user: _User | None, context: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return what the templates of an e-mail get, or None to send none.

        `purpose` is the name of its templates, one of `accesspass.mail.PURPOSES`. `context` has
        `user`, `address`, `site` (the host of BASE_URL), `base_url`, `link` and `lifetime` (where
        there is a key), and what the occasion adds. Log nothing of it: the link has the key.
        """
        return context

    def login_response(
        self, user: _User, pair: Mapping[str, Any], request: HttpRequest | None
    ) -> dict[str, Any]:
        """Return what is added to the body of an answer that carries the token pair `pair`."""
        return {}

    def unauthenticated(self, error: AccessPassError, request: HttpRequest) -> Mapping[str, Any]:
        """Return the body with which an authentication class refuses a token: a dict of texts.

        The status is 401; to answer otherwise raise a `rest_framework.exceptions.APIException`.
        """
        return {"detail": str(error.detail), "code": error.code}

    def unconfirmed(self, error: AccessPassError, request: HttpRequest) -> Mapping[str, Any]:
        """Return the body with which `IsEmailConfirmed` refuses somebody: a dict of texts.

        The status is 403, otherwise as for `unauthenticated`.
        """
        return {"detail": str(error.detail), "code": error.code}
