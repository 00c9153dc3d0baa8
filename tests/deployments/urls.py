from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path

from accesspass import sessions
from accesspass.exceptions import InvalidToken
from example_project.urls import urlpatterns as of_the_example


async def hello(request: HttpRequest) -> JsonResponse:
    """The example's view without DRF, for an event loop."""
    _, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        user, _ = await sessions.aauthenticate(token)
    except InvalidToken:
        return JsonResponse({"code": "invalid_token"}, status=401)
    return JsonResponse({"hello": user.get_username()})


urlpatterns = [path("async-hello/", hello), *of_the_example]
