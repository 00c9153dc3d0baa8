"""A new project with the user model that comes along."""

from tests.settings.base import *

AUTH_USER_MODEL = "accesspass.User"
