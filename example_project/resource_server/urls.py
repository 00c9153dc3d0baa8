"""What the resource server serves."""

from django.urls import path

from example_project.resource_server.views import AdminView, NotesView, plain

urlpatterns = [
    path("notes/", NotesView.as_view()),
    path("admins/", AdminView.as_view()),
    path("plain/", plain),
]
