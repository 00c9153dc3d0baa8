"""Settings of the example: SQLite, one machine, many workers.

From the environment: ``ACCESSPASS_DEMO_DIR``, the folder of the database (default: this one),
``DJANGO_SECRET_KEY``, ``DJANGO_DEBUG`` (``1`` or ``0``, default ``0``), and what it shares with the
resource server beside it: ``ACCESSPASS_SHARED_KEY`` and ``ACCESSPASS_SERVICE_SECRET``.
"""

import hashlib
import os
from pathlib import Path

DATA = Path(os.environ.get("ACCESSPASS_DEMO_DIR", Path(__file__).resolve().parent))

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
]
AUTH_USER_MODEL = "accesspass.User"
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "accesspass": {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        "LOCATION": "database:default",
        "OPTIONS": {"SIGNING_KEYS": SHARED_KEYS},
    },
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accesspass.authentication.TokenAuthentication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}
ACCESSPASS = {
    "BASE_URL": "http://localhost:8000",
    "TOKEN_KEYS": SHARED_KEYS,
    "INTROSPECTION_CLIENTS": {"notes": hashlib.sha256(SERVICE_SECRET.encode()).hexdigest()},
}

# E-mails become files, so that the example needs no mail server.
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = DATA / "mails"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA / "db.sqlite3",
        "OPTIONS": {
            # Several workers write: each waits its turn instead of failing with "locked".
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL;",
        },
    }
}
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
