"""The example of docs/how-to/social-login.rst."""

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST

from accesspass import sessions


@require_POST
@csrf_protect
@never_cache
def tokens(request: HttpRequest) -> JsonResponse:
    """Exchange Django's session, which allauth has begun, for a token pair."""
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "Log in first.", "code": "not_authenticated"}, status=401)
    pair = sessions.start(request.user, request=request, name="social login")
    request.session.flush()  # it has done its work; from here on the tokens count
    return JsonResponse(pair.as_dict())
