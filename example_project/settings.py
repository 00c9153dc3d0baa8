"""Settings of the example, an authorization server: SQLite, one machine, many workers.

From the environment:

``ACCESSPASS_DEMO_STORE``
    What to keep everything in. Default: SQLite. A ``postgresql://`` URL: that database. A
    ``redis://`` URL: SQLite, and the replicated cache on that Redis or Valkey.
``ACCESSPASS_DEMO_DIR``
    The folder of SQLite's file and of the e-mails (default: this one).
``ACCESSPASS_BASE_URL``
    Where links in e-mails lead to (default: ``http://localhost:8000``).
``DJANGO_DEBUG``
    ``1`` or ``0`` (default). With ``1`` the page shows the e-mails to anybody.
``DJANGO_SECRET_KEY``, ``ACCESSPASS_SHARED_KEY``, ``ACCESSPASS_SERVICE_SECRET``
    Secrets. The last two are known to the resource server beside it too.
"""

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

DATA = Path(os.environ.get("ACCESSPASS_DEMO_DIR", Path(__file__).resolve().parent))
STORE = os.environ.get("ACCESSPASS_DEMO_STORE", "sqlite")

# Good on this machine alone, as ALLOWED_HOSTS is. The demo passes a random one.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "django-insecure-for-the-example-alone")
# Known to the resource server too, which needs no SECRET_KEY of ours for it.
SHARED_KEYS = [os.environ.get("ACCESSPASS_SHARED_KEY", "insecure-for-the-example-alone-" * 2)]
# A real project writes down the digest alone.
SERVICE_SECRET = os.environ.get("ACCESSPASS_SERVICE_SECRET", "insecure-secret")
DEBUG = os.environ.get("DJANGO_DEBUG", "0") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "[::1]", "localhost"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "accesspass",
    "example_project",
]
AUTH_USER_MODEL = "accesspass.User"
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "accesspass": {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": STORE if STORE.startswith(("redis:", "rediss:")) else "database:default",
        "OPTIONS": {"SIGNING_KEYS": SHARED_KEYS},
    },
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accesspass.authentication.TokenAuthentication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}
ACCESSPASS = {
    "BASE_URL": os.environ.get("ACCESSPASS_BASE_URL", "http://localhost:8000"),
    # For the page: no script can read it, so it outlives a reload in the safest place there is.
    # Without the prefix __Secure-, which browsers refuse to keep over plain HTTP.
    "REFRESH_COOKIE": "refresh",
    "TOKEN_KEYS": SHARED_KEYS,
    "INTROSPECTION_CLIENTS": {"notes": hashlib.sha256(SERVICE_SECRET.encode()).hexdigest()},
}

# E-mails become files, so that the example needs no mail server.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = DATA / "mails"

if STORE.startswith(("postgresql:", "postgres:")):
    _parts = urlsplit(STORE)
    _options = dict(parse_qsl(_parts.query))
    _database: dict[str, Any] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(_parts.path.lstrip("/")),
        "USER": unquote(_parts.username or ""),
        "PASSWORD": unquote(_parts.password or ""),
        "HOST": _options.pop("host", _parts.hostname or ""),
        "PORT": str(_parts.port or ""),
        "OPTIONS": _options,
    }
else:
    _database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA / "db.sqlite3",
        "OPTIONS": {
            # Several workers write: each waits its turn instead of failing with "locked".
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL;",
        },
    }
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

MIDDLEWARE = [
    "example_project.middleware.ReportCost",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"
