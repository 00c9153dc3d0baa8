"""One view of Django REST framework and one plain one, as any project writes them."""

from typing import Any

from django.http import HttpRequest, JsonResponse
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accesspass.permissions import HasClaim
from accesspass.resource import token_required

__all__ = ["AdminView", "NotesView", "plain"]


class NotesView(APIView):
    """The notes of the signed-in user."""

    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        """Return ``{"owner": id, "username": name, "notes": []}``."""
        return Response({"owner": request.user.pk, "username": str(request.user), "notes": []})


class AdminView(NotesView):
    """Only for those whom the authorization server calls an admin."""

    permission_classes: Any = [HasClaim(role="admin")]


@token_required
def plain(request: HttpRequest) -> JsonResponse:
    """The same without Django REST framework."""
    return JsonResponse({"owner": request.user.pk})
