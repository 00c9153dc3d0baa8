"""A project that keeps an audit log."""

from tests.settings.own_user import *
from tests.settings.own_user import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "accesspass.audit"]
