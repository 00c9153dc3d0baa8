"""One tree of errors. Each has a stable `code`, the one that clients see."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django.utils.functional import _StrPromise

__all__ = [
    "AccessPassError",
    "Busy",
    "EmailNotConfirmed",
    "EmailTaken",
    "Invalid",
    "InvalidClient",
    "InvalidCredentials",
    "InvalidKey",
    "InvalidToken",
    "NotFound",
    "OriginNotAllowed",
    "Throttled",
    "TokenRequired",
    "Unavailable",
    "UsernameTaken",
]


class AccessPassError(Exception):
    """The base of every error raised on purpose.

    `code` is stable and meant for programs, `status` is the HTTP status that the views answer
    with, `detail` is a sentence for people.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400
    default_detail: ClassVar[str | _StrPromise] = _("The request could not be carried out.")

    def __init__(self, detail: str | _StrPromise | None = None) -> None:
        self.detail: str | _StrPromise = self.default_detail if detail is None else detail
        super().__init__(self.detail)


class Invalid(AccessPassError):
    """A value was refused. `errors` names the fields: `{field: [{"message", "code"}]}`."""

    code = "invalid"
    default_detail = _("The request has invalid values.")

    def __init__(
        self,
        errors: Mapping[str, list[dict[str, str]]] | None = None,
        detail: str | _StrPromise | None = None,
    ) -> None:
        super().__init__(detail)
        self.errors: dict[str, list[dict[str, str]]] = dict(errors or {})


class InvalidCredentials(AccessPassError):
    """The name and password belong to nobody who may log in; which of them is never said."""

    code = "invalid_credentials"
    status = 401
    default_detail = _("Wrong username or password.")


class InvalidClient(AccessPassError):
    """A service that did not prove to be one of INTROSPECTION_CLIENTS (RFC 6749 §5.2)."""

    code = "invalid_client"
    status = 401
    default_detail = _("The client is not known.")


class InvalidToken(AccessPassError):
    """An access or refresh token that is malformed, forged, expired, used up or revoked."""

    code = "invalid_token"
    status = 401
    default_detail = _("The token is not valid.")


class InvalidKey(AccessPassError):
    """A one-time key from an e-mail that is malformed, expired, used up or voided."""

    code = "invalid_key"
    default_detail = _("The key is not valid.")


class UsernameTaken(AccessPassError):
    """The canonical form of the username belongs to another account."""

    code = "username_taken"
    default_detail = _("This username is taken.")


class EmailTaken(AccessPassError):
    """The canonical form of the e-mail address belongs to another account."""

    code = "email_taken"
    default_detail = _("This e-mail address is taken.")


class EmailNotConfirmed(AccessPassError):
    """What was asked for needs a confirmed e-mail address."""

    code = "email_not_confirmed"
    status = 403
    default_detail = _("The e-mail address is not confirmed.")


class TokenRequired(AccessPassError):
    """A token was needed and none was sent."""

    code = "token_required"
    default_detail = _("A token is required.")


class NotFound(AccessPassError):
    """There is no such thing, or it is not the caller's."""

    code = "not_found"
    status = 404
    default_detail = _("Not found.")


class OriginNotAllowed(AccessPassError):
    """A request with the refresh cookie that no page of the project's own can have sent."""

    code = "origin_not_allowed"
    status = 403
    default_detail = _("Requests with a cookie are not accepted from this origin.")


class _TryLater(AccessPassError):
    """`wait` is the number of seconds after which it makes sense to try again."""

    def __init__(self, detail: str | _StrPromise | None = None, *, wait: float = 1) -> None:
        super().__init__(detail)
        self.wait = wait


class Throttled(_TryLater):
    """Too many attempts."""

    code = "throttled"
    status = 429
    default_detail = _("Too many attempts. Try again later.")


class Busy(_TryLater):
    """This process is hashing as many passwords as it may."""

    code = "busy"
    status = 503
    default_detail = _("The server is busy. Try again in a moment.")


class Unavailable(_TryLater):
    """The database cannot be reached, so nothing can be said about the token."""

    code = "unavailable"
    status = 503
    default_detail = _("The service is unavailable. Try again in a moment.")
