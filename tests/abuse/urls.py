"""The example project, and what the tests ask of the process that serves it."""

from __future__ import annotations

import json
from typing import Any

from django.core import mail as django_mail
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.views import SpectacularAPIView

from accesspass import mail
from example_project.urls import urlpatterns as of_the_example

_overridden: list[Any] = []


@csrf_exempt
def change_settings(request: HttpRequest) -> JsonResponse:
    """Change settings of this process until the next call. ACCESSPASS is merged, not replaced."""
    while _overridden:
        _overridden.pop().disable()
    changes = json.loads(request.body)
    if changes:
        from django.conf import settings

        changes["ACCESSPASS"] = {**settings.ACCESSPASS, **changes.get("ACCESSPASS", {})}
        override = override_settings(**changes)
        override.enable()
        _overridden.append(override)
    return JsonResponse({})


@csrf_exempt
def deliver(request: HttpRequest) -> JsonResponse:
    """Send what waits, and show it as a mail server would get it."""
    mail.deliver(limit=1000)
    outbox = getattr(django_mail, "outbox", [])
    sent = [
        {"to": message.recipients(), "source": message.message().as_bytes().decode("latin-1")}
        for message in outbox
    ]
    outbox.clear()
    return JsonResponse({"sent": sent})


urlpatterns = [
    path("lab/settings/", change_settings),
    path("lab/deliver/", deliver),
    path("schema/", SpectacularAPIView.as_view(authentication_classes=[], permission_classes=[])),
    *of_the_example,
]
