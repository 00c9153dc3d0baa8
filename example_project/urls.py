"""AccessPass under ``auth/``, one view of the project's own, and the admin."""

from django.contrib import admin
from django.urls import include, path

from example_project.views import HelloView

urlpatterns = [
    path("auth/", include("accesspass.urls")),
    path("hello/", HelloView.as_view(), name="hello"),
    path("admin/", admin.site.urls),
]
