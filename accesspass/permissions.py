"""Permissions that read the session record alone, so they cost no query."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _
from rest_framework.permissions import BasePermission

from accesspass.conf import conf
from accesspass.exceptions import EmailNotConfirmed
from accesspass.session_cache import SessionRecord

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.views import APIView

__all__ = ["HasClaim", "IsEmailConfirmed"]

if TYPE_CHECKING:
    # What may stand in `permission_classes` beside classes, as far as the types go.
    from rest_framework.permissions import SingleOperandHolder as _PermissionHolder
else:
    from rest_framework.permissions import OperationHolderMixin as _PermissionHolder

_ABSENT = object()


class IsEmailConfirmed(BasePermission):
    """Lets in whoever confirmed the e-mail address that the account has now; 403 otherwise."""

    code = EmailNotConfirmed.code
    message: Any

    def has_permission(self, request: Request, view: APIView) -> bool:
        record = request.auth
        if isinstance(record, SessionRecord) and record.email_confirmed:
            return True
        # DRF drops the code of a plain message, so the whole body is given.
        self.message = dict(conf.hooks().unconfirmed(EmailNotConfirmed(), request._request))
        return False

    def has_object_permission(self, request: Request, view: APIView, obj: Any) -> bool:
        # `~` turns this around by itself, so the inherited True would refuse everybody.
        return self.has_permission(request, view)


class HasClaim(_PermissionHolder, BasePermission):
    """Lets in whose session has every one of these claims: `HasClaim(role="admin")`.

    A list, tuple or set as value means any of its members, and a member of an Enum, as of Django's
    TextChoices, its value. A claim is compared with its type: True is not 1. To be written as an
    instance in `permission_classes`; `&`, `|` and `~` work.
    """

    code = "permission_denied"
    message: Any = {
        "detail": _("You do not have permission to perform this action."),
        "code": code,
    }

    def __init__(self, **claims: Any) -> None:
        if not claims:
            raise TypeError("HasClaim needs a claim, as in HasClaim(role='admin')")
        self.claims = {
            name: tuple(map(_plain, value))
            if isinstance(value, (list, tuple, set, frozenset))
            else (_plain(value),)
            for name, value in claims.items()
        }

    def __call__(self, *args: Any, **kwargs: Any) -> HasClaim:
        """Return itself: DRF calls each member of `permission_classes`."""
        return self

    def has_permission(self, request: Request, view: APIView) -> bool:
        record = request.auth
        if not isinstance(record, SessionRecord):
            return False
        return all(
            any(_same(record.claims.get(name, _ABSENT), value) for value in wanted)
            for name, wanted in self.claims.items()
        )

    def has_object_permission(self, request: Request, view: APIView, obj: Any) -> bool:
        # `~` turns this around by itself, so the inherited True would refuse everybody.
        return self.has_permission(request, view)


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _same(claim: object, value: object) -> bool:
    return type(claim) is type(value) and claim == value
