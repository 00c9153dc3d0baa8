"""The refresh token in a cookie, where ``REFRESH_COOKIE`` names one, and then nowhere else.

The cookie is HttpOnly, Secure and SameSite=Strict (RFC 6265bis §4.1.2), and goes to the path that
``refresh/`` and ``logout/`` share. A sibling subdomain is the same site and can set cookies for the
whole domain, so these attributes are not relied on alone: the Origin is checked, and a request with
two cookies of the name is refused.
"""

from __future__ import annotations

import posixpath
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from accesspass.conf import conf
from accesspass.exceptions import Invalid, OriginNotAllowed

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

__all__ = ["check_origin", "delete_token", "sent_token", "set_token"]

# Browsers keep no cookie for longer (RFC 6265bis §5.5).
_LONGEST = 400 * 86_400


def sent_token(request: HttpRequest) -> str | None:
    """Return the refresh token that the request's cookie carries, or None without one.

    Raises:
        OriginNotAllowed: there is one, but the request comes from elsewhere, or does not say where
            from, as every browser does.
        Invalid: there are two cookies of that name; one of them is not ours.
    """
    # Read from the header itself: of two cookies of one name Django keeps the last.
    header: str = request.META.get("HTTP_COOKIE", "")
    pairs = (pair.split("=", 1) for pair in header.split(";") if "=" in pair)
    found = [value.strip() for name, value in pairs if name.strip() == conf.REFRESH_COOKIE]
    if not found:
        return None
    check_origin(request, required=True)
    if len(found) > 1:
        message = _("There is more than one cookie of this name.")
        raise Invalid({"refresh_token": [{"message": message, "code": "ambiguous"}]})
    return found[0].strip('"')


def check_origin(request: HttpRequest, *, required: bool = False) -> None:
    """Raise OriginNotAllowed for a request that a page of another origin has sent.

    Allowed are the request's own origin, that of BASE_URL, and those in CSRF_TRUSTED_ORIGINS that
    have no ``*``. `required` refuses requests without an Origin too.
    """
    # Browsers before 2023 do not send it. "none" is a navigation, and none of ours is a POST.
    if request.META.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "same-site"):
        raise OriginNotAllowed
    origin = request.META.get("HTTP_ORIGIN")
    if required if origin is None else origin not in _allowed_origins(request):
        raise OriginNotAllowed


def set_token(
    request: HttpRequest, response: HttpResponseBase, token: str, expires_in: int | None
) -> None:
    """Put the refresh token into the response's cookie; `expires_in` is in seconds, or None."""
    ends = [x for x in (expires_in, conf.SESSION_IDLE_LIFETIME) if x is not None]
    response.set_cookie(
        conf.REFRESH_COOKIE or "",
        token,
        max_age=int(min([*ends, _LONGEST])),
        path=_path(request),
        secure=True,
        httponly=True,
        samesite="Strict",
    )


def delete_token(request: HttpRequest, response: HttpResponseBase) -> None:
    """Let the browser forget the cookie."""
    set_token(request, response, "", 0)


def _allowed_origins(request: HttpRequest) -> set[str]:
    allowed = {x for x in settings.CSRF_TRUSTED_ORIGINS if "*" not in x}
    if conf.BASE_URL:
        base = urlsplit(conf.BASE_URL)
        allowed.add(f"{base.scheme}://{base.netloc}".lower())
    with suppress(DisallowedHost):
        allowed.add(f"{request.scheme}://{request.get_host()}")
    return allowed


def _path(request: HttpRequest) -> str:
    """Return the longest path below which the refresh and the logout views are."""
    if (conf.REFRESH_COOKIE or "").startswith("__Host-"):
        return "/"  # browsers accept no other with this prefix
    match = request.resolver_match
    # A version or a tenant, say, in the path before that of the views.
    before = {} if match is None else match.kwargs
    # A view of the project's own may stand in another namespace, or in none, and elsewhere.
    found = (
        _paths_in(match.namespace if match is not None else "", before)
        or _paths_in("accesspass", before)
        or _paths_in("accesspass", {})
    )
    common = posixpath.commonpath(found) if found else "/"
    return common if common.endswith("/") else f"{common}/"


def _paths_in(namespace: str, before: dict[str, Any]) -> list[str]:
    found = []
    for name in ("refresh", "logout", "logout-all"):
        with suppress(NoReverseMatch):  # the project has switched it off
            found.append(reverse(f"{namespace}:{name}", kwargs=before))
    return found
