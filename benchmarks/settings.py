"""One project for all variants, so that they differ by their authenticator alone.

It is kind to the alternatives: no more middleware than Django's sessions need, since each one
would make every request slower and every ratio smaller; servers on the same machine, so that a
query crosses no network; and connections that stay open.
"""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from typing import Any

from tests.settings.base import database_from

FOLDER = os.environ["ACCESSPASS_BENCH_FOLDER"]
VALKEY = os.environ["ACCESSPASS_BENCH_VALKEY"]
# The servers that are started later must take the tokens that were made here.
SECRET_KEY = os.environ.setdefault("ACCESSPASS_BENCH_SECRET_KEY", secrets.token_urlsafe(50))
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rest_framework",
    "rest_framework.authtoken",
    "accesspass",
    "durin",
    "knox",
    "rest_framework_simplejwt",
    "rest_framework_simplejwt.token_blacklist",
]
# durin and knox give the user's tokens the same reverse name, which nothing here uses.
SILENCED_SYSTEM_CHECKS = ["fields.E304", "fields.E305"]
AUTH_USER_MODEL = "accesspass.User"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "benchmarks.variants"
DATABASES = {
    "default": {**database_from(os.environ["ACCESSPASS_BENCH_DATABASE"]), "CONN_MAX_AGE": None}
}
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
_ENGINE = {"BACKEND": "accesspass.cache.ReplicatedCache"}
CACHES = {
    # Also where durin's tokens and Django's sessions are cached.
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"{VALKEY}/1",
    },
    "django_redis": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": f"{VALKEY}/2"},
    "memory": {**_ENGINE, "LOCATION": "memory://benchmarks"},
    "sqlite": {**_ENGINE, "LOCATION": f"sqlite:///{FOLDER}/log.sqlite3"},
    "postgresql": {**_ENGINE, "LOCATION": os.environ["ACCESSPASS_BENCH_LOG"]},
    "valkey": {**_ENGINE, "LOCATION": f"{VALKEY}/0"},
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}
# Tokens are to outlive the run.
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(hours=2),
    "ROTATE_REFRESH_TOKENS": True,
    "BLACKLIST_AFTER_ROTATION": True,
}
# The alias is set to another one before each measurement; a server keeps that of its variant.
ACCESSPASS: dict[str, Any] = {
    "CACHE": os.environ.get("ACCESSPASS_BENCH_ALIAS", "postgresql"),
    "BASE_URL": "http://127.0.0.1",
    "ACCESS_TOKEN_LIFETIME": timedelta(hours=2),
}
