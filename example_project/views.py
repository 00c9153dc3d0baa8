"""A protected view, as any project writes it: nothing in it knows of AccessPass."""

from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

__all__ = ["HelloView"]


class HelloView(APIView):
    """Greet the signed-in user."""

    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        """Return ``{"hello": username}``."""
        return Response({"hello": request.user.get_username()})
