"""A project that keeps `django.contrib.auth.models.User`."""

from tests.settings.base import *

AUTH_USER_MODEL = "auth.User"
