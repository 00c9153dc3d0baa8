"""Projects that begin with another package move here as docs/how-to/migrate/ says, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.documents import commands, continued, files_of, shown
from tests.guides import Project, typed

INDEX = files_of("docs/how-to/migrate/index.rst")
KNOX = files_of("docs/how-to/migrate/knox.rst")
JWT = files_of("docs/how-to/migrate/simplejwt.rst")
AUTHTOKEN = files_of("docs/how-to/migrate/authtoken.rst")
DJOSER = files_of("docs/how-to/migrate/djoser.rst")
# The commands that these pages type.
(FIRST,) = shown("docs/how-to/migrate/index.rst", "console")
(KNOX_LAST,) = shown("docs/how-to/migrate/knox.rst", "console")
(JWT_LAST,) = shown("docs/how-to/migrate/simplejwt.rst", "console")

BEFORE = """
SECRET_KEY = "tests-only-tests-only-tests-only-tests-only"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "rest_framework", {apps}]
MIDDLEWARE = []
ROOT_URLCONF = "shop.urls_before"
TEMPLATES = [{{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}}]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}}}
CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
REST_FRAMEWORK = {{
    "DEFAULT_AUTHENTICATION_CLASSES": ["{authentication}"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
}}
"""
VIEWS = """
from rest_framework.response import Response
from rest_framework.views import APIView

class Hello(APIView):
    def get(self, request):
        return Response({"hello": request.user.get_username()})
"""
URLS = """
from django.urls import include, path
from shop.views import Hello
urlpatterns = [path("hello/", Hello.as_view())]
"""
# What every step begins with.
START = """
import json, pathlib
import django
django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
User = get_user_model()
kept = pathlib.Path("kept.json")

def hello(authorization):
    return Client().get("/hello/", headers={"Authorization": authorization}).status_code

def post(path, body=None, **headers):
    answer = Client().post(path, body or {}, "application/json", headers=headers)
    return answer.status_code, answer.json() if answer.content else {}
"""


def project_at(folder: Path, apps: str, authentication: str) -> Project:
    project = Project(folder)
    before = BEFORE.format(apps=apps, authentication=authentication)
    project.write(
        {
            "shop/__init__.py": "",
            "shop/views.py": VIEWS,
            "shop/before.py": before,
            "shop/urls_before.py": URLS,
        }
    )
    return project


def step(project: Project, settings: str, code: str) -> None:
    project.run("-Werror", "-c", START + code, DJANGO_SETTINGS_MODULE=f"shop.{settings}")


def kept(project: Project) -> Any:
    return json.loads((project.folder / "kept.json").read_text())


KNOX_BEFORE = """
from knox.models import AuthToken
call_command("migrate", verbosity=0)
tokens = {}
for name in ("ada", "bob", "eve"):
    user = User.objects.create_user(name, f"{name.title()}@example.com", "a horse, a nail")
    tokens[name] = "Token " + AuthToken.objects.create(user)[1]
User.objects.create_user("zoe", "zoe@example.com", "a horse, a nail", is_active=False)
assert {hello(token) for token in tokens.values()} == {200}
kept.write_text(json.dumps(tokens))
"""
KNOX_BOTH = """
call_command("check", fail_level="WARNING")
exec(pathlib.Path("start.py").read_text())
exec(pathlib.Path("waiting.py").read_text())
exec(pathlib.Path("adopt.py").read_text())
from accesspass.models import Account, Session
confirmed = {x.user.username: x.is_confirmed(x.user) for x in Account.objects.all()}
assert confirmed == {"ada": True, "bob": True, "eve": True, "zoe": False}, confirmed

tokens = json.loads(kept.read_text())
pairs = {}
# Whoever logs in anew has a pair, beside the clients that go on with what they have.
name = {"username": "EVE@example.COM", "password": "a horse, a nail"}
status, pairs["eve"] = post("/auth/login/", name)
assert status == 200
assert hello(tokens["eve"]) == hello("Bearer " + pairs["eve"]["access_token"]) == 200
# The others exchange, and their old token is good for nothing any more.
for name in ("ada", "bob"):
    status, pairs[name] = post("/auth/exchange/", Authorization=tokens[name])
    assert status == 200 and pairs[name]["token_type"] == "Bearer", pairs[name]
    assert hello("Bearer " + pairs[name]["access_token"]) == 200
    assert hello(tokens[name]) == 401
    status, body = post("/auth/exchange/", Authorization=tokens[name])
    assert status == 401 and set(body) == {"detail", "code"}, body
assert post("/auth/exchange/")[1]["code"] == "token_required"
assert post("/auth/exchange/", Authorization="Token nonsense")[0] == 401
assert hello("Bearer nonsense") == hello("Token nonsense") == 401
# A token that another request has used up meanwhile ends nothing and begins nothing.
from unittest import mock
from django.db.models import QuerySet
before = Session.objects.count()
with mock.patch.object(QuerySet, "delete", lambda self: (0, {})):
    status, body = post("/auth/exchange/", Authorization=tokens["eve"])
assert (status, body["code"], Session.objects.count()) == (401, "invalid_token", before)
assert hello(tokens["eve"]) == 200
kept.write_text(json.dumps({"tokens": tokens, "pairs": pairs}))
exec(pathlib.Path("end.py").read_text())
"""
KNOX_AFTER = """
from django.apps import apps
from django.db import connection
assert not apps.is_installed("knox")
assert not [x for x in connection.introspection.table_names() if "knox" in x]
found = json.loads(kept.read_text())
for pair in found["pairs"].values():
    assert hello("Bearer " + pair["access_token"]) == 200
    status, young = post("/auth/refresh/", {"refresh_token": pair["refresh_token"]})
    assert status == 200 and hello("Bearer " + young["access_token"]) == 200
for token in found["tokens"].values():
    assert hello(token) == 401
call_command("migrate", "accesspass", "zero", verbosity=0)
"""
KNOX_AGAIN = """
from django.db import connection
from knox.models import AuthToken
call_command("migrate", verbosity=0)
assert not [x for x in connection.introspection.table_names() if "accesspass" in x]
ada = User.objects.get(username="ada")
assert ada.check_password("a horse, a nail") and ada.email == "Ada@example.com"
assert hello("Token " + AuthToken.objects.create(ada)[1]) == 200
"""


@pytest.mark.pipeline
def test_from_knox_to_here_and_back_with_nobody_logged_out(tmp_path: Path) -> None:
    *start, adopt = commands(FIRST)
    project = project_at(tmp_path, '"knox"', "knox.auth.TokenAuthentication")
    both = continued(INDEX["settings, while both are accepted"])
    after = "from shop.both import *\nINSTALLED_APPS.remove('knox')\nROOT_URLCONF = 'shop.urls'\n"
    project.write(
        {
            "shop/both.py": "from shop.before import *\nROOT_URLCONF = 'shop.urls_both'\n"
            + both
            + continued(KNOX["settings, while knox is accepted"]),
            "shop/urls_both.py": URLS + continued(KNOX["urls, while knox is accepted"]),
            "shop/exchange.py": KNOX["shop/exchange.py"],
            "shop/after.py": after + continued(KNOX["settings, without knox"]),
            "shop/urls.py": URLS + "urlpatterns += [path('auth/', include('accesspass.urls'))]\n",
            "waiting.py": DJOSER["users who wait"],
            "start.py": typed(start),
            "adopt.py": typed([f"{adopt} --confirmed"]),
            "end.py": typed(commands(KNOX_LAST)),
        }
    )
    step(project, "before", KNOX_BEFORE)
    old = kept(project)
    step(project, "both", KNOX_BOTH)
    assert kept(project)["tokens"] == old
    # Nobody who has stayed needs the file of the exchange any more.
    (project.folder / "shop" / "exchange.py").unlink()
    step(project, "after", KNOX_AFTER)
    step(project, "before", KNOX_AGAIN)


JWT_BOTH = """
from rest_framework_simplejwt.tokens import RefreshToken
from accesspass import serializers
from shop.exchange import Exchange
call_command("migrate", verbosity=0)
call_command("check", fail_level="WARNING")
ada = User.objects.create_user("ada", "ada@example.com", "a horse, a nail")
old = RefreshToken.for_user(ada)
assert hello(f"Bearer {old.access_token}") == 200
status, pair = post("/auth/login/", {"username": "ada", "password": "a horse, a nail"})
assert status == 200 and hello("Bearer " + pair["access_token"]) == 200
status, pair = post("/auth/exchange/", {"refresh": str(old)})
assert status == 200 and hello("Bearer " + pair["access_token"]) == 200
for body in ({"refresh": str(old)}, {"refresh": str(old.access_token)}, {"refresh": "nonsense"}):
    status, answer = post("/auth/exchange/", body)
    assert status == 401 and answer["code"] == "invalid_token", (status, answer)
assert post("/auth/exchange/")[1]["code"] == "invalid"
# Two components of one name would spoil the OpenAPI description.
assert not hasattr(serializers, Exchange.serializer_class.__name__)
ada.is_active = False
ada.save()
another = RefreshToken.for_user(ada)
assert post("/auth/exchange/", {"refresh": str(another)})[0] == 401
for token in (pair["access_token"], another.access_token, "nonsense", "ap_at_nonsense"):
    assert hello(f"Bearer {token}") == 401
exec(pathlib.Path("end.py").read_text())
"""


AUTHTOKEN_BOTH = """
from rest_framework.authtoken.models import Token
call_command("migrate", verbosity=0)
call_command("check", fail_level="WARNING")
ada = User.objects.create_user("ada", "ada@example.com", "a horse, a nail")
old = "Token " + Token.objects.create(user=ada).key
assert hello(old) == 200
exec(pathlib.Path("left.py").read_text())
assert left == 1
for device in range(2):
    status, pair = post("/auth/exchange/", Authorization=old)
    assert status == 200 and hello("Bearer " + pair["access_token"]) == hello(old) == 200
exec(pathlib.Path("left.py").read_text())
assert left == 0
assert post("/auth/exchange/", Authorization="Token nonsense")[0] == 401
assert hello("Token nonsense") == hello("Bearer nonsense") == 401
call_command("migrate", "authtoken", "zero", verbosity=0)
"""


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("app", "authentication", "page", "settings", "code"),
    [
        (
            "rest_framework_simplejwt.token_blacklist",
            "rest_framework_simplejwt.authentication.JWTAuthentication",
            JWT,
            "settings, while simplejwt is accepted",
            JWT_BOTH,
        ),
        (
            "rest_framework.authtoken",
            "rest_framework.authentication.TokenAuthentication",
            AUTHTOKEN,
            "settings, while authtoken is accepted",
            AUTHTOKEN_BOTH,
        ),
    ],
    ids=["simplejwt", "authtoken"],
)
def test_both_are_accepted_side_by_side(
    tmp_path: Path, app: str, authentication: str, page: dict[str, str], settings: str, code: str
) -> None:
    project = project_at(tmp_path, f'"{app}"', authentication)
    project.write(
        {
            "shop/both.py": "from shop.before import *\nROOT_URLCONF = 'shop.urls_both'\n"
            + continued(INDEX["settings, while both are accepted"])
            + continued(page[settings]),
            "shop/urls_both.py": URLS + continued(KNOX["urls, while knox is accepted"]),
            "shop/authentication.py": INDEX["shop/authentication.py"],
            "shop/exchange.py": page["shop/exchange.py"],
            "end.py": typed(commands(JWT_LAST)),
            "left.py": AUTHTOKEN["who has not come by"].replace("\nToken", "\nleft = Token"),
        }
    )
    step(project, "both", code)
