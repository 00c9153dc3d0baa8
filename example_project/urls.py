"""AccessPass under ``auth/``, one view of the project's own, the admin, and a page for browsers."""

from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

from example_project.page import outbox, page
from example_project.views import HelloView

urlpatterns = [
    path("auth/", include("accesspass.urls")),
    path("hello/", HelloView.as_view(), name="hello"),
    path("admin/", admin.site.urls),
    # The page chooses by the path what it shows. Three of them are in ACCESSPASS["LINKS"].
    path("", page, name="page"),
    path("register", page),
    path("forgot", page),
    path("confirm", page),
    path("reset-password", page),
    path("confirm-email", page),
    # A real project has a web server, or WhiteNoise, for these.
    path("static/<path:path>", serve, {"insecure": True}),
]
if settings.DEBUG:
    urlpatterns += [path("outbox", page), path("outbox/mails/", outbox)]
