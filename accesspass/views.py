"""The HTTP interface: JSON in, JSON out, and every error as `{"detail", "code"}`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import InterfaceError, OperationalError, connections, router, transaction
from django.http import Http404, UnreadablePostError
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from rest_framework import exceptions as drf
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.views import APIView

from accesspass import accounts, background, cookies, sessions, throttling
from accesspass.authentication import TokenAuthentication, sent_token
from accesspass.conf import conf
from accesspass.exceptions import (
    AccessPassError,
    Invalid,
    InvalidToken,
    NotFound,
    TokenRequired,
    Unavailable,
)
from accesspass.models import Session
from accesspass.serializers import (
    LoginSerializer,
    LogoutSerializer,
    RefreshSerializer,
    RegisterSerializer,
    StrictJSONParser,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from rest_framework.request import Request
    from rest_framework.serializers import Serializer

    from accesspass.sessions import SessionRecord, TokenPair

__all__ = ["CheckView", "LoginView", "LogoutView", "RefreshView", "RegisterView"]

_Errors = dict[str, list[dict[str, str]]]


@method_decorator(sensitive_post_parameters(), name="dispatch")
class _AuthView(APIView):
    """What all views here share.

    Nothing is left to the project's DRF defaults, which are open: parsers, renderers,
    authenticators, permissions and throttles are given, and errors look the same whatever
    EXCEPTION_HANDLER says. Public views look at no credentials, so a stale header breaks no login.
    """

    authentication_classes: Any = []
    permission_classes: Any = [AllowAny]
    throttle_classes: Any = []
    parser_classes: Any = [StrictJSONParser]
    renderer_classes: Any = [JSONRenderer]
    content_negotiation_class = DefaultContentNegotiation
    versioning_class = None
    metadata_class = None
    serializer_class: ClassVar[type[Serializer[Any]]]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:  # type: ignore[override]
        # What a refusal has recorded must stay, which ATOMIC_REQUESTS would roll back.
        view: Callable[..., Any] = super().as_view(**initkwargs)
        for alias in connections:
            view = transaction.non_atomic_requests(alias)(view)
        return view

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        background.start()
        # Joining may cost a query. Whoever logs in pays for it, so that authorised requests do not.
        sessions.join()
        super().initial(request, *args, **kwargs)
        if conf.REFRESH_COOKIE is not None and request.method == "POST":
            cookies.check_origin(request._request)

    @sensitive_variables("serializer")
    def body(self, request: Request) -> dict[str, Any]:
        """Return the validated body. Raises what `handle_exception` turns into a 400."""
        serializer = self.serializer_class(data=request.data)
        serializer.is_valid(raise_exception=True)
        return cast(dict[str, Any], serializer.validated_data)

    @sensitive_variables()
    def refresh_token(self, request: Request) -> str | None:
        """Return the refresh token that was sent, in the cookie or else in the body.

        Where REFRESH_COOKIE names the one, the other is refused: a token that scripts can send is
        a token that scripts can read.
        """
        if conf.REFRESH_COOKIE is None:
            return self.body(request).get("refresh_token")
        if "refresh_token" in request.data:
            message = _("The refresh token is accepted in its cookie only.")
            raise Invalid({"refresh_token": [{"message": message, "code": "cookie_only"}]})
        return cookies.sent_token(request._request)

    def handle_exception(self, exc: Exception) -> Response:
        error = _translated(exc)
        if error is None:
            self.raise_uncaught_exception(exc)
        status, code, detail, errors, wait = error
        body: dict[str, Any] = {"detail": detail, "code": code}
        if errors is not None:
            body["errors"] = errors
        elif isinstance(exc, drf.APIException) and isinstance(exc.detail, dict):
            body = {**exc.detail, **body}  # what Hooks.unauthenticated has added
        headers = {}
        if wait is not None:
            headers["Retry-After"] = str(max(1, math.ceil(wait)))
        if status == 401:
            refused = code == InvalidToken.code
            headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if refused else "Bearer"
        response = Response(body, status=status, headers=headers)
        response.exception = True
        return response

    def raise_uncaught_exception(self, exc: Exception) -> NoReturn:
        # DRF reads accepted_renderer here under DEBUG, which an early failure has not set.
        raise exc

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response["Cache-Control"] = "no-store"
        data = getattr(response, "data", None)
        if conf.REFRESH_COOKIE is not None and isinstance(data, dict) and "refresh_token" in data:
            token, expires_in = data.pop("refresh_token"), data.get("refresh_expires_in")
            cookies.set_token(request._request, response, token, expires_in)
        return response


class RegisterView(_AuthView):
    """POST: a new user, with the tokens of a first session."""

    serializer_class = RegisterSerializer

    @sensitive_variables()
    def post(self, request: Request) -> Response:
        body = self.body(request)
        throttling.count("register", request._request, body["email"])
        data = _without_passwords(request)
        user, pair = accounts.register(**body, data=data, request=request._request)
        throttling.remember(request._request, user)
        shown = accounts.describe(user, body.get("meta") or {})
        return Response({"user": shown, **_token_answer(request, user, pair)}, status=201)


class LoginView(_AuthView):
    """POST: name and password for tokens."""

    serializer_class = LoginSerializer

    @sensitive_variables()
    def post(self, request: Request) -> Response:
        body = self.body(request)
        attempt = throttling.count("login", request._request, body["username"])
        data = _without_passwords(request)
        user, pair = accounts.log_in(**body, data=data, request=request._request)
        attempt.succeed(user)
        return Response(_token_answer(request, user, pair))


class RefreshView(_AuthView):
    """POST: a refresh token for a new pair."""

    serializer_class = RefreshSerializer

    @sensitive_variables()
    def post(self, request: Request) -> Response:
        token = self.refresh_token(request)
        if token is None:
            raise TokenRequired
        pair = sessions.refresh(token)
        return Response(_token_answer(request, pair.user, pair))


class CheckView(_AuthView):
    """GET: who the access token stands for, without a query: what the session record holds."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        record = cast("SessionRecord", request.auth)
        return Response(
            {
                "user": accounts.describe(cast("AbstractBaseUser", request.user), record.meta),
                "claims": record.claims,
                "email_confirmed": record.email_confirmed,
                "expires_in": record.expires_in,
            }
        )


class LogoutView(_AuthView):
    """POST: end the session of the access token in the header or the refresh token in the body.

    It looks at its tokens itself: a dead or unknown one is no error (RFC 7009 §2.2).
    """

    serializer_class = LogoutSerializer

    @sensitive_variables()
    def post(self, request: Request) -> Response:
        acknowledged = sessions.logout(
            access_token=sent_token(request._request),
            refresh_token=self.refresh_token(request),
            request=request._request,
        )
        # This view runs outside of transactions but in a TestCase, where nothing is ever
        # committed, so nothing acknowledged; the session is refused at once all the same.
        in_test_case = connections[router.db_for_write(Session)].in_atomic_block
        response = Response(status=204) if acknowledged or in_test_case else _pending()
        if conf.REFRESH_COOKIE is not None:
            cookies.delete_token(request._request, response)
        return response


def _pending() -> Response:
    """The revocation is recorded, but not every node can be known to have heard of it yet."""
    return Response({"sessions_ended": "pending"}, status=202)


@sensitive_variables()
def _token_answer(request: Request, user: AbstractBaseUser, pair: TokenPair) -> dict[str, Any]:
    tokens = pair.as_dict()
    shown = dict(tokens)
    if conf.REFRESH_COOKIE is not None:
        del shown["refresh_token"]  # a hook could only put it where it must not be
    return {**tokens, **conf.hooks().login_response(user, shown, request._request)}


@sensitive_variables()
def _without_passwords(request: Request) -> dict[str, Any]:
    """Return the body as the client sent it, for hooks."""
    data = dict(request.data)
    for secret in ("password", "password_confirm"):
        data.pop(secret, None)
    return data


def _translated(exc: Exception) -> tuple[int, str, str, _Errors | None, float | None] | None:
    """Return status, code, detail, errors by field, and seconds to wait; None if unexpected."""
    if isinstance(exc, (OperationalError, InterfaceError)):
        exc = Unavailable()
    elif isinstance(exc, drf.NotAuthenticated):
        return 401, TokenRequired.code, str(TokenRequired.default_detail), None, None
    elif isinstance(exc, Http404):
        exc = NotFound()
    elif isinstance(exc, PermissionDenied):
        exc = drf.PermissionDenied()
    elif isinstance(exc, RequestDataTooBig):
        return 413, drf.ParseError.default_code, "The body is too large.", None, None
    elif isinstance(exc, UnreadablePostError):
        return 400, drf.ParseError.default_code, "The body could not be read.", None, None
    if isinstance(exc, AccessPassError):
        errors = exc.errors if isinstance(exc, Invalid) else None
        return exc.status, exc.code, str(exc.detail), errors, getattr(exc, "wait", None)
    if isinstance(exc, drf.ValidationError):
        errors = _by_field(exc.get_full_details())
        return 400, Invalid.code, str(Invalid.default_detail), errors, None
    if isinstance(exc, drf.APIException):
        wait = getattr(exc, "wait", None)
        if isinstance(exc.detail, dict) and "code" in exc.detail:
            detail = str(exc.detail.get("detail", exc.default_detail))
            code = str(exc.detail["code"])
        else:
            detail, code = str(exc.detail), str(exc.get_codes())
        return exc.status_code, code, detail, None, wait
    return None


def _by_field(details: Any) -> _Errors:
    if not isinstance(details, Mapping):
        details = {"non_field_errors": details}
    return {
        str(field): [
            {"message": str(x["message"]), "code": str(x["code"])}
            for x in (found if isinstance(found, list) else [found])
        ]
        for field, found in details.items()
    }
