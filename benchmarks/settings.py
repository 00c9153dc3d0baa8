"""One project for all variants, so that they differ by their authenticator alone.

It is kind to the alternatives: no middleware, which would make every request slower and every
ratio smaller; a database in the same process, so that a query costs no network; and connections
that stay open.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from tests.settings.base import database_from

FOLDER = os.environ["ACCESSPASS_BENCH_FOLDER"]
SECRET_KEY = secrets.token_urlsafe(50)
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "accesspass",
    "knox",
    "rest_framework_simplejwt",
    "rest_framework_simplejwt.token_blacklist",
]
AUTH_USER_MODEL = "accesspass.User"
MIDDLEWARE: list[str] = []
ROOT_URLCONF = "benchmarks.variants"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{FOLDER}/db.sqlite3",
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL;",
        },
    }
}
if "ACCESSPASS_BENCH_DATABASE" in os.environ:
    DATABASES = {
        "default": {**database_from(os.environ["ACCESSPASS_BENCH_DATABASE"]), "CONN_MAX_AGE": None}
    }
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
    "memory": {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": "memory://benchmarks"},
    "database": {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": os.environ.get("ACCESSPASS_BENCH_LOG", "database:default"),
    },
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.AllowAny"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}
SIMPLE_JWT = {"ROTATE_REFRESH_TOKENS": True, "BLACKLIST_AFTER_ROTATION": True}
# The alias is set to "memory" or "database" before each measurement.
ACCESSPASS: dict[str, Any] = {"CACHE": "database", "BASE_URL": "http://127.0.0.1"}
