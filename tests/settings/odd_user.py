"""A project with one of the user models of `tests.oddusers`."""

import os

from tests.settings.base import *
from tests.settings.base import ACCESSPASS, INSTALLED_APPS

_MODEL = os.environ["ACCESSPASS_TEST_USER"]

INSTALLED_APPS = [x for x in INSTALLED_APPS if x != "django.contrib.admin"] + ["tests.oddusers"]
AUTH_USER_MODEL = f"oddusers.{_MODEL}"
ROOT_URLCONF = "accesspass.urls"
MIDDLEWARE = []
ACCESSPASS = {
    **ACCESSPASS,
    "USER_FIELDS": ["level", "club"] if _MODEL == "Member" else [],
    "USER_FROM_RECORD": _MODEL != "Stubborn",
}
