"""Settings of the resource server: what it shares with the first project, and nothing else.

From the environment: ``ACCESSPASS_DEMO_DIR`` and ``ACCESSPASS_SHARED_KEY`` as for the first
project, ``ACCESSPASS_SERVICE_SECRET``, and ``ACCESSPASS_AUTH_URL``, where the first project's
``auth/`` is.
"""

import os
from pathlib import Path

DATA = Path(os.environ.get("ACCESSPASS_DEMO_DIR", Path(__file__).resolve().parent.parent))
SHARED_KEYS = [os.environ.get("ACCESSPASS_SHARED_KEY", "insecure-for-the-example-alone-" * 2)]

# Its own: nobody else needs to know it.
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "django-insecure-for-the-resource-server-alone")
ALLOWED_HOSTS = ["127.0.0.1", "[::1]", "localhost"]

INSTALLED_APPS = ["rest_framework", "accesspass.resource"]
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "accesspass": {
        "BACKEND": "accesspass.cache.ReplicatedCache",
        # What database:default is for the first project, on SQLite.
        "LOCATION": os.environ.get(
            "ACCESSPASS_LOCATION", f"sqlite:///{DATA}/db.sqlite3.accesspass"
        ),
        "OPTIONS": {"SIGNING_KEYS": SHARED_KEYS},
    },
}
ACCESSPASS = {
    "TOKEN_KEYS": SHARED_KEYS,
    "INTROSPECTION_URL": os.environ.get("ACCESSPASS_AUTH_URL", "http://127.0.0.1:8000/auth/")
    + "introspect/",
    "INTROSPECTION_ID": "notes",
    "INTROSPECTION_SECRET": os.environ.get("ACCESSPASS_SERVICE_SECRET", "insecure-secret"),
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accesspass.resource.ResourceServerAuthentication"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": "accesspass.resource.AnonymousPrincipal",
}
MIDDLEWARE = [
    "example_project.middleware.ReportCost",
    "django.middleware.common.CommonMiddleware",
    "accesspass.resource.ResourceServerMiddleware",
]
ROOT_URLCONF = "example_project.resource_server.urls"
WSGI_APPLICATION = "example_project.resource_server.wsgi.application"
USE_TZ = True
