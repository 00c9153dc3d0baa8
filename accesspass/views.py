"""The HTTP interface: JSON in, JSON out, and every error as `{"detail", "code"}`."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from django.core.exceptions import PermissionDenied, RequestDataTooBig, TooManyFieldsSent
from django.db import InterfaceError, OperationalError, connections, router, transaction
from django.http import Http404, UnreadablePostError
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.debug import SafeExceptionReporterFilter
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from rest_framework import exceptions as drf
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.views import APIView

from accesspass import accounts, background, cookies, mail, sessions, throttling
from accesspass.authentication import (
    AuthenticatedRequest,
    TokenAuthentication,
    sent_token,
    service_of,
)
from accesspass.bearer import challenge
from accesspass.conf import conf
from accesspass.exceptions import (
    AccessPassError,
    Invalid,
    InvalidClient,
    InvalidToken,
    NotFound,
    TokenRequired,
    Unavailable,
)
from accesspass.models import Session
from accesspass.serializers import (
    AccountDeleteSerializer,
    AccountSerializer,
    EmailChangeSerializer,
    KeySerializer,
    LoginSerializer,
    LogoutSerializer,
    PasswordChangeSerializer,
    PasswordResetSerializer,
    RefreshSerializer,
    RegisterSerializer,
    ServiceTokenSerializer,
    SessionSerializer,
    StrictFormParser,
    StrictJSONParser,
    UsernameForgotSerializer,
    UsernameSerializer,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.http import HttpRequest
    from rest_framework.request import Request
    from rest_framework.serializers import Serializer

    from accesspass.sessions import TokenPair

__all__ = [
    "AccountDeleteView",
    "AccountView",
    "CheckView",
    "ConfirmResendView",
    "ConfirmView",
    "EmailChangeConfirmView",
    "EmailChangeView",
    "ExchangeView",
    "IntrospectView",
    "LoginView",
    "LogoutAllView",
    "LogoutView",
    "PasswordChangeView",
    "PasswordResetConfirmView",
    "PasswordResetView",
    "RefreshView",
    "RegisterView",
    "RevokeView",
    "SessionDetailView",
    "SessionListView",
    "UsernameForgotView",
]

_Errors = dict[str, list[dict[str, str]]]


class _ReportFilter(SafeExceptionReporterFilter):
    """Shows no variable of any frame, on the page of a developer (``DEBUG``) neither.

    Everything below these views is handed passwords and tokens, down to the project's hashers,
    and ``sensitive_variables`` is overridden by the next one further down.
    """

    def get_traceback_frame_variables(self, request: Any, tb_frame: Any) -> Any:
        return [(name, self.cleansed_substitute) for name in tb_frame.f_locals]


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

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        request.exception_reporter_filter = _ReportFilter()
        return super().initialize_request(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        background.start()
        # Joining may cost a query. Whoever logs in pays for it, so that authorised requests do not.
        sessions.join()
        super().initial(request, *args, **kwargs)
        if conf.REFRESH_COOKIE is not None and request.method == "POST":
            cookies.check_origin(request._request)

    @sensitive_variables()
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
        error = translated(exc)
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
            headers["WWW-Authenticate"] = challenge(refused)
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
    """POST: a new user, with the tokens of a first session.

    With REQUIRE_CONFIRMED_EMAIL an e-mail instead of tokens, and the same answer for taken names.
    """

    serializer_class = RegisterSerializer

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        body = self.body(request)
        values, further = _split(body, RegisterSerializer)
        name = values["email"] or values["username"]
        throttling.count("register", request._request, name)
        values["fields"] = accounts.user_fields(further)
        values["data"] = {**_without_secrets(request), **further}
        values["request"] = request._request
        if conf.REQUIRE_CONFIRMED_EMAIL:
            accounts.register_quietly(**values)
            return _on_its_way()
        user, pair = accounts.register(**values)
        throttling.remember(request._request, user)
        shown = accounts.describe(user, values.get("meta") or {})
        tokens = {} if pair is None else _token_answer(request, user, pair)
        return Response({"user": shown, **tokens}, status=201)


class LoginView(_AuthView):
    """POST: name and password for tokens."""

    serializer_class = LoginSerializer

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        values, further = _split(self.body(request), LoginSerializer)
        attempt = throttling.count("login", request._request, values["username"])
        data = {**_without_secrets(request), **further}
        user, pair = accounts.log_in(**values, data=data, request=request._request)
        attempt.succeed(user)
        return Response(_token_answer(request, user, pair))


class RefreshView(_AuthView):
    """POST: a refresh token for a new pair."""

    serializer_class = RefreshSerializer

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        token = self.refresh_token(request)
        if token is None:
            raise TokenRequired
        pair = sessions.refresh(token, request=request._request)
        return Response(_token_answer(request, pair.user, pair))


class ExchangeView(_AuthView):
    """POST: what a client has from another package, for a token pair. A base for migrations.

    It has no route; a project subclasses it while it moves here.
    """

    @sensitive_variables()
    def exchange(self, request: Request) -> AbstractBaseUser:
        """Return the user whom the client's old token stands for, and make that good for nothing.

        It runs in the transaction in which the session begins. Raise InvalidToken to refuse; of
        two requests with one token, refuse one.
        """
        raise NotImplementedError

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        database = router.db_for_write(Session)
        request.data  # noqa: B018 - whoever sends it slowly must not hold the transaction open
        with transaction.atomic(using=database):
            # On SQLite whoever reads first cannot wait for the writers of the others any more. So
            # this writes, to no row.
            Session.objects.using(database).filter(pk=uuid.UUID(int=0)).update(generation=0)
            user = self.exchange(request)
            pair = sessions.start(user, request=request._request)
        return Response(_token_answer(request, user, pair))


class CheckView(_AuthView):
    """GET: who the access token stands for, without a query: what the session record holds."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        record = request.auth
        return Response(
            {
                "user": accounts.describe(request.user, record.meta),
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
    everywhere = False

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response = _ended(
            sessions.logout(
                access_token=sent_token(request._request),
                refresh_token=self.refresh_token(request),
                everywhere=self.everywhere,
                request=request._request,
            )
        )
        if conf.REFRESH_COOKIE is not None:
            cookies.delete_token(request._request, response)
        return response


class LogoutAllView(LogoutView):
    """POST: end every session of the user whose token it is."""

    everywhere = True


class SessionListView(_AuthView):
    """GET: the user's live sessions, the one used last first."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        live = sessions.live(request.user)
        context = {"current": request.auth.id}
        return Response([SessionSerializer(x, context=context).data for x in live])


class SessionDetailView(_AuthView):
    """DELETE: end one of the user's live sessions; anybody else's is not found."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def delete(self, request: AuthenticatedRequest, session_id: str, **kwargs: Any) -> Response:
        live = sessions.live(request.user)
        found = next((x for x in live if str(x.pk) == session_id.lower()), None)
        if found is None:
            raise NotFound
        return _ended(sessions.revoke(found.pk, request=request._request))


class _ServiceView(_AuthView):
    """For registered services: a form, with HTTP Basic credentials.

    Errors carry `error` too, as RFC 6749 §5.2 names it.
    """

    parser_classes = [StrictFormParser]
    serializer_class = ServiceTokenSerializer

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if service_of(request._request) is None:
            raise InvalidClient
        super().initial(request, *args, **kwargs)

    def handle_exception(self, exc: Exception) -> Response:
        response = super().handle_exception(exc)
        if response.status_code == 401:
            response["WWW-Authenticate"] = 'Basic realm="accesspass", charset="UTF-8"'
            response.data["error"] = InvalidClient.code
        elif response.status_code == 400:
            response.data["error"] = "invalid_request"
        return response


class IntrospectView(_ServiceView):
    """POST: what an access token stands for (RFC 7662). Of any other token nothing is told."""

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        try:
            user, session = sessions.introspect(self.body(request)["token"])
        except InvalidToken:
            return Response({"active": False})
        shown = accounts.describe(user, session.meta)
        answer: dict[str, Any] = {
            "active": True,
            "token_type": "Bearer",
            "sub": shown["id"],
            "username": shown["username"],
            "exp": session.access_expires_at,
            "sid": str(session.id),
            "email": shown["email"],
            "email_confirmed": session.email_confirmed,
            "claims": session.claims,
            "meta": session.meta,
            "session_exp": session.expires_at,
        }
        if isinstance(scope := session.claims.get("scope"), str):
            answer["scope"] = scope
        return Response(answer)


class RevokeView(_ServiceView):
    """POST: end the session of an access or refresh token (RFC 7009).

    The answer is 200 for every token, since a token that is not good is what was asked for.
    """

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        token = self.body(request)["token"]
        try:
            response = _ended(sessions.logout(access_token=token, refresh_token=token))
        except InvalidToken:  # an access token that has expired proves nothing, and ends nothing
            return Response({})
        return Response(response.data or {})


def _ended(acknowledged: bool) -> Response:
    """The answer of a view that ends sessions."""
    # These views run outside of transactions but in a TestCase, where nothing is ever committed, so
    # nothing acknowledged; the session is refused at once all the same.
    in_test_case = connections[router.db_for_write(Session)].in_atomic_block
    return Response(status=204) if acknowledged or in_test_case else _pending()


def _split(
    body: dict[str, Any], serializer: type[Serializer[Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of our own serializer's fields, and those that a subclass has added."""
    ours = serializer().get_fields()
    return (
        {name: value for name, value in body.items() if name in ours},
        {name: value for name, value in body.items() if name not in ours},
    )


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
def _without_secrets(request: Request) -> dict[str, Any]:
    """Return the body as the client sent it, for hooks."""
    data = dict(request.data)
    for secret in ("password", "password_confirm", "key"):
        data.pop(secret, None)
    return data


def translated(exc: Exception) -> tuple[int, str, str, _Errors | None, float | None] | None:
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
        return 413, drf.ParseError.default_code, _("The body is too large."), None, None
    elif isinstance(exc, TooManyFieldsSent):  # in the query, which DRF looks into
        return 400, drf.ParseError.default_code, _("The query has too many fields."), None, None
    elif isinstance(exc, UnreadablePostError):
        return 400, drf.ParseError.default_code, _("The body could not be read."), None, None
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


# The account and what travels by e-mail -------------------------------------------------------


class _SignedInView(_AuthView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]


class _AskView(_AuthView):
    """POST: an e-mail for whoever has that name. The answer is the same if nobody has it."""

    purpose: ClassVar[str]
    field: ClassVar[str] = "username"
    serializer_class: ClassVar[type[Serializer[Any]]] = UsernameSerializer

    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        name = self.body(request)[self.field]
        throttling.count("mail", request._request, name)
        mail.ask(self.purpose, name, request=request._request)
        return _on_its_way()


class ConfirmView(_AuthView):
    """POST: a key from an e-mail confirms the address. With CONFIRM_LOGS_IN it gives tokens."""

    serializer_class = KeySerializer

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = self.body(request)["key"]
        data = _without_secrets(request)
        user, pair = accounts.confirm(key, request=request._request, data=data)
        return Response({} if pair is None else _token_answer(request, user, pair))


class ConfirmResendView(_AskView):
    """POST: the e-mail that asks for confirmation once more, if the address is not confirmed."""

    purpose = mail.CONFIRM


class PasswordResetView(_AskView):
    """POST: an e-mail with a key for a new password."""

    purpose = mail.PASSWORD_RESET


class PasswordResetConfirmView(_AuthView):
    """POST: a key from an e-mail sets a new password and ends every session."""

    serializer_class = PasswordResetSerializer

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        values, _further = _split(self.body(request), PasswordResetSerializer)
        return _ended(accounts.reset_password(**values, request=request._request))


class PasswordChangeView(_SignedInView):
    """POST: the present password sets a new one and ends every other session."""

    serializer_class = PasswordChangeSerializer

    @sensitive_variables()
    def post(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        values, _further = _split(self.body(request), PasswordChangeSerializer)
        acknowledged = accounts.change_password(
            request.user, **values, session_id=request.auth.id, request=request._request
        )
        return _ended(acknowledged)


class UsernameForgotView(_AskView):
    """POST: an e-mail that says which username belongs to an address."""

    purpose = mail.USERNAME
    field = "email"
    serializer_class = UsernameForgotSerializer


class EmailChangeView(_SignedInView):
    """POST: an e-mail with a key to a new address, which is not the user's before it comes back."""

    serializer_class = EmailChangeSerializer

    @sensitive_variables()
    def post(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        values, _further = _split(self.body(request), EmailChangeSerializer)
        # By the new address: nobody is to be written to again and again by strangers.
        throttling.count("mail", request._request, values["email"])
        accounts.change_email(request.user, **values, request=request._request)
        return _on_its_way()


class EmailChangeConfirmView(_AuthView):
    """POST: a key from an e-mail makes the address that it was sent to the user's own."""

    serializer_class = KeySerializer

    @sensitive_variables()
    def post(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        accounts.confirm_email_change(self.body(request)["key"], request=request._request)
        return Response(status=204)


class AccountView(_SignedInView):
    """GET: the user. PATCH: change meta, further fields, and with the password the username."""

    serializer_class = AccountSerializer

    def get(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        return self.show(request.user, request.auth.meta)

    @sensitive_variables()
    def patch(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        body = self.body(request)
        values, fields = _split(body, AccountSerializer)
        return self.show(
            *accounts.update(request.user, **values, fields=fields, request=request._request)
        )

    def show(self, user: AbstractBaseUser, meta: Mapping[str, Any]) -> Response:
        serializer: Any = self.serializer_class
        return Response({"user": serializer(user, context={"meta": meta}).data})


class AccountDeleteView(_SignedInView):
    """POST: the present password deletes the account and ends every session."""

    serializer_class = AccountDeleteSerializer

    @sensitive_variables()
    def post(self, request: AuthenticatedRequest, *args: Any, **kwargs: Any) -> Response:
        values, _further = _split(self.body(request), AccountDeleteSerializer)
        return _ended(accounts.delete(request.user, **values, request=request._request))


def _on_its_way() -> Response:
    """The one answer to all who ask for an e-mail, whether or not there is somebody to send it."""
    text = _("If there is somebody to send it to, an e-mail is on its way.")
    return Response({"detail": text}, status=202)
