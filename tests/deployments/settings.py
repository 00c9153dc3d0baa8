"""The example project with what varies between deployments taken from the environment.

``DEPLOYMENT_DATABASE``: a ``postgresql://`` URL (default: the SQLite of the example project).
``DEPLOYMENT_CACHE``: LOCATION of the cache (default ``database:default``).
``DEPLOYMENT_STALENESS``: its MAX_STALENESS in seconds.
``DEPLOYMENT_BROKER``: the Redis that carries Celery's messages.
"""

from __future__ import annotations

import os

from example_project.settings import *  # noqa: F403
from example_project.settings import ACCESSPASS, CACHES, MIDDLEWARE
from tests.settings.base import database_from

ACCESSPASS = {**ACCESSPASS, "REFRESH_COOKIE": None}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if "DEPLOYMENT_DATABASE" in os.environ:
    DATABASES = {"default": database_from(os.environ["DEPLOYMENT_DATABASE"])}
CACHES = {
    **CACHES,
    "accesspass": {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": os.environ.get("DEPLOYMENT_CACHE", "database:default"),
        "OPTIONS": {"MAX_STALENESS": float(os.environ.get("DEPLOYMENT_STALENESS", "5"))},
    },
}
MIDDLEWARE = ["tests.deployments.cost.report_cost", *MIDDLEWARE[1:]]
ROOT_URLCONF = "tests.deployments.urls"
TEST_RUNNER = "tests.deployments.runner.Runner"
