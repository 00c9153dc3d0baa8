"""The example project for attackers: on PostgreSQL, and with nothing in front that would help.

``DEPLOYMENT_DATABASE`` is the database. Any host is allowed, so that a forged one gets through to
the views, and everything that is logged goes to standard error, where the tests look for secrets.
"""

from __future__ import annotations

from tests.deployments.settings import *  # noqa: F403
from tests.deployments.settings import ACCESSPASS, DATABASES, INSTALLED_APPS, REST_FRAMEWORK

ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [*INSTALLED_APPS, "drf_spectacular"]
REST_FRAMEWORK = {
    **REST_FRAMEWORK,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
DATABASES["default"]["CONN_MAX_AGE"] = 600
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
ROOT_URLCONF = "tests.abuse.urls"
ACCESSPASS = {
    **ACCESSPASS,
    "BASE_URL": "https://app.example.com",
    "MAIL_DELIVERY": "worker",  # by the tests, when they want it
    # Tests that are about limits set them; the others try more often than anybody may.
    "THROTTLES": {"login": None, "register": None, "mail": None},
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"accesspass": {"level": "DEBUG"}, "django": {"handlers": [], "level": "INFO"}},
}
