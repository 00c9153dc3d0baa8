"""A project with its own user model: a UUID for a key, the e-mail address for a name."""

from tests.settings.base import *
from tests.settings.base import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.uuidapp"]
AUTH_USER_MODEL = "uuidapp.User"
