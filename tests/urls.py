"""A small project: the library's routes, and views behind each permission."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.urls import include, path
from rest_framework.authentication import BasicAuthentication
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accesspass.authentication import TokenAuthentication
from accesspass.permissions import HasClaim, IsEmailConfirmed


class Open(APIView):
    permission_classes = [AllowAny]

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.pk and str(request.user.pk)})


class Unauthenticated(APIView):
    authentication_classes: Any = []
    permission_classes = [AllowAny]

    def get(self, request: Request) -> Response:
        return Response({"hello": "world"})


class Protected(APIView):
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response({"user": str(request.user.pk), "username": request.user.get_username()})


class Confirmed(Protected):
    permission_classes = [IsEmailConfirmed]


class Admins(Protected):
    permission_classes = [IsAuthenticated, HasClaim(role="admin")]


class Staff(Protected):
    permission_classes = [HasClaim(role=["admin", "editor"], level=3)]


class Outsiders(Protected):
    permission_classes = [IsAuthenticated & ~HasClaim(role="admin")]


class AdminsOrConfirmed(Protected):
    permission_classes = [HasClaim(role="admin") | IsEmailConfirmed]


class _Lenient(TokenAuthentication):
    pass_foreign = True


class SideBySide(Protected):
    authentication_classes = [_Lenient, BasicAuthentication]


urlpatterns = [
    path("admin/", admin.site.urls),
    path("auth/", include("accesspass.urls")),
    path("open/", Open.as_view()),
    path("unauthenticated/", Unauthenticated.as_view()),
    path("protected/", Protected.as_view()),
    path("confirmed/", Confirmed.as_view()),
    path("admins/", Admins.as_view()),
    path("staff/", Staff.as_view()),
    path("outsiders/", Outsiders.as_view()),
    path("admins-or-confirmed/", AdminsOrConfirmed.as_view()),
    path("side-by-side/", SideBySide.as_view()),
]
