"""The access token of a request: where it is sent, and how a refusal is answered (RFC 6750).

Who it stands for is decided elsewhere, by the rows of a node or for a resource server, so nothing
here needs a user model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, JsonResponse
from django.utils.functional import SimpleLazyObject
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, AuthenticationFailed
from rest_framework.request import Request

from accesspass.conf import conf
from accesspass.exceptions import AccessPassError, InvalidToken, TokenRequired, Unavailable

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpResponse
    from typing_extensions import TypeVar as TypeVarWithDefault

    from accesspass.session_cache import SessionRecord

    _Found = tuple[Any, SessionRecord]
    _User = TypeVarWithDefault("_User", default=AbstractBaseUser)
else:
    _User = TypeVar("_User")

_View = TypeVar("_View", bound=Callable[..., Any])

__all__ = [
    "AuthenticatedHttpRequest",
    "AuthenticatedRequest",
    "BearerAuthentication",
    "BearerMiddleware",
    "ServiceUnavailable",
    "challenge",
    "sent_token",
    "token_required",
]

_REFUSED = "_accesspass_refused"
_BEARER = "_accesspass_bearer"


class _SentToken(str):
    """What a client has sent. Its repr, and so an error report, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<token>"


def sent_token(request: HttpRequest) -> str | None:
    """Return what was sent where an access token belongs, or None. It may be any text."""
    name = conf.ACCESS_TOKEN_HEADER
    value = request.META.get(_meta_key(name))
    if not value:
        return None
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if name.lower() != "authorization":
        return _SentToken(value)
    scheme, _space, token = value.partition(" ")
    return _SentToken(token) if scheme.lower() == "bearer" else None


@lru_cache(maxsize=16)
def _meta_key(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


def _is_foreign(token: str) -> bool:
    return not token.startswith(conf.TOKEN_PREFIX + "_")


def challenge(refused: bool) -> str:
    """Return the challenge of a 401 (RFC 6750 §3): the error is named only if there was one."""
    return 'Bearer error="invalid_token"' if refused else "Bearer"


# For annotations ------------------------------------------------------------------------------


class AuthenticatedRequest(Request, Generic[_User]):
    """The type of a request in a view of Django REST framework that wants an access token.

    For annotations alone: `request: AuthenticatedRequest[User]`. What stands in the brackets is
    the type of `request.user`, by default Django's AbstractBaseUser.
    """

    if TYPE_CHECKING:
        user: _User  # type: ignore[assignment]
        auth: SessionRecord


class AuthenticatedHttpRequest(HttpRequest, Generic[_User]):
    """The same for a plain or async Django view behind `token_required`."""

    if TYPE_CHECKING:
        user: _User  # type: ignore[assignment]
        auth: SessionRecord


# Django REST framework ------------------------------------------------------------------------


class ServiceUnavailable(APIException):
    """503 with Retry-After: neither yes nor no can be said about the token now."""

    status_code = 503

    def __init__(self, error: Unavailable) -> None:
        super().__init__({"detail": str(error.detail), "code": error.code})
        self.wait = max(1, round(error.wait))


class BearerAuthentication(BaseAuthentication):
    """Authenticate by the access token in `Authorization: Bearer` (RFC 6750 §2.1).

    A refused token is a 401 with code `invalid_token`; a request without one is left to others.
    With another ACCESS_TOKEN_HEADER, that header carries the bare token. A subclass says by `find`
    whom a token stands for.
    """

    pass_foreign = False
    """Whether a Bearer value that does not begin with our prefix is left to the next class."""

    def find(self, token: str) -> _Found:
        """Return the user and the session record, or raise InvalidToken or Unavailable."""
        raise NotImplementedError

    def authenticate(self, request: Request) -> _Found | None:
        """Return the user and the session record, or None without credentials.

        Raises AuthenticationFailed (401) and ServiceUnavailable (503).
        """
        # DRF's request proxies META through __getattr__, twenty times slower.
        token = sent_token(request._request)
        if token is None or (self.pass_foreign and _is_foreign(token)):
            return None
        try:
            return self.find(token)
        except InvalidToken as error:
            # DRF asks another instance for the header of the 401, so the request has to remember.
            setattr(request, _REFUSED, True)
            body = conf.hooks().unauthenticated(error, request._request)
            raise AuthenticationFailed(dict(body)) from None
        except Unavailable as error:
            raise ServiceUnavailable(error) from error

    def authenticate_header(self, request: Request) -> str:
        """Return the challenge of a 401."""
        return challenge(getattr(request, _REFUSED, False))


# Plain and async Django views -----------------------------------------------------------------


class BearerMiddleware:
    """Set `request.user`, `request.auser` and `request.auth` by the access token.

    A request without one keeps the user that Django's own AuthenticationMiddleware gave it, and
    has None for `request.auth`. A refused token never becomes an anonymous user: the answer is a
    401 before the view is called, or a 503 where nothing can be said of the token. Views of Django
    REST framework are left to their own authentication classes, so a stale header breaks no login.

    A subclass says by `find`, `afind` and `anonymous` whom a token stands for.
    """

    sync_capable = True
    async_capable = True

    pass_foreign = True
    """Whether a Bearer value that does not begin with our prefix is left alone. It stands before
    every view of a project, and some may take the tokens of others."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
            # A plain one would be called in a thread, at each request.
            self.process_view = self._process_view_async  # type: ignore[method-assign]

    def find(self, token: str) -> _Found:
        """Return the user and the session record, or raise InvalidToken or Unavailable."""
        raise NotImplementedError

    async def afind(self, token: str) -> _Found:
        """The same on an event loop."""
        return await sync_to_async(self.find)(token)

    def anonymous(self) -> Any:
        """Return who is behind a request without a token, and without Django's middleware."""
        raise NotImplementedError

    def __call__(self, request: HttpRequest) -> Any:
        token = sent_token(request)
        request.auth = None  # type: ignore[attr-defined]
        if token is not None and not (self.pass_foreign and _is_foreign(token)):
            bearer = _Bearer(self, request, token)
            setattr(request, _BEARER, bearer)
            # Whoever asks before the view is known is told too.
            request.user = SimpleLazyObject(bearer.user)  # type: ignore[assignment]
            request.auser = bearer.auser
        elif not hasattr(request, "user"):
            request.user = SimpleLazyObject(self.anonymous)  # type: ignore[assignment]
            request.auser = self._anobody
        # In an async stack this hands the coroutine through, which costs nothing.
        return self.get_response(request)

    async def _anobody(self) -> Any:
        return self.anonymous()

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Find the user, or refuse before the view is called."""
        bearer: _Bearer | None = getattr(request, _BEARER, None)
        if bearer is None or _is_rest_framework(view):
            return None
        bearer.decide()
        return bearer.settle()

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        bearer: _Bearer | None = getattr(request, _BEARER, None)
        if bearer is None or _is_rest_framework(view):
            return None
        await bearer.adecide()
        return bearer.settle()


class _Bearer:
    """A request's token and, once somebody has asked, what was decided about it."""

    def __init__(self, middleware: BearerMiddleware, request: Any, token: str) -> None:
        self._middleware = middleware
        self._request = request
        self._token = token
        self._found: _Found | None = None
        self._error: AccessPassError | None = None

    def decide(self) -> None:
        if self._found is None and self._error is None:
            try:
                self._accept(self._middleware.find(self._token))
            except AccessPassError as error:
                self._error = error

    async def adecide(self) -> None:
        if self._found is None and self._error is None:
            try:
                self._accept(await self._middleware.afind(self._token))
            except AccessPassError as error:
                self._error = error

    def _accept(self, found: _Found) -> None:
        self._found = found
        self._request.auth = found[1]

    def user(self) -> Any:
        self.decide()
        return self._middleware.anonymous() if self._found is None else self._found[0]

    async def auser(self) -> Any:
        await self.adecide()
        return self.user()

    def settle(self) -> HttpResponse | None:
        """Give the request its user, or return the refusal."""
        if self._found is None:
            assert self._error is not None  # noqa: S101 - one of the two is there once decided
            return _refusal(self._error)
        # Both anew: Django's own middleware, if it stands behind ours, has set them since.
        self._request.user = self._found[0]
        self._request.auser = self.auser
        return None


def _is_rest_framework(view: Any) -> bool:
    # APIView itself cannot be imported here: it imports the authentication classes.
    return hasattr(getattr(view, "cls", None), "authentication_classes")


def _refusal(error: AccessPassError) -> JsonResponse:
    """The error as the views of `accesspass` say it."""
    response = JsonResponse({"detail": str(error.detail), "code": error.code})
    response["Cache-Control"] = "no-store"
    if isinstance(error, Unavailable):
        response.status_code = error.status
        response["Retry-After"] = str(max(1, round(error.wait)))
    else:
        response.status_code = 401
        response["WWW-Authenticate"] = challenge(isinstance(error, InvalidToken))
    return response


def token_required(view: _View) -> _View:
    """Let a plain view, sync or async, be called with a good access token alone.

    Without one the answer is a 401 with code `token_required`, whoever is signed in by a cookie.
    Therefore the view is exempt from Django's CSRF check: no other site can make a browser send a
    token. The middleware must be installed. Raises ImproperlyConfigured if it is not.
    """

    def refuse(request: HttpRequest) -> JsonResponse | None:
        if not hasattr(request, "auth"):
            raise ImproperlyConfigured("token_required needs AccessPass's middleware in MIDDLEWARE")
        return _refusal(TokenRequired()) if request.auth is None else None

    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return refuse(request) or view(request, *args, **kwargs)

    async def aguarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return refuse(request) or await view(request, *args, **kwargs)

    wrapped: Any = wraps(view)(aguarded if iscoroutinefunction(view) else guarded)
    wrapped.csrf_exempt = True
    # Django's LoginRequiredMiddleware would send a client to a login page.
    wrapped.login_required = False
    return wrapped  # type: ignore[no-any-return]
