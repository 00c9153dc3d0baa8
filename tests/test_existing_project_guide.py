"""A project that has users takes AccessPass in, as docs/how-to/existing-project.rst shows."""

from __future__ import annotations

from pathlib import Path

from tests.documents import commands, files_of, shown
from tests.guides import Project, typed

SHOWN = files_of("docs/how-to/existing-project.rst")
FAST = "PASSWORD_HASHERS = ['django.contrib.auth.hashers.MD5PasswordHasher']\n"
BEFORE = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
call_command("migrate", verbosity=0)
User.objects.create_user("Ada", "Ada@example.com", "a horse, a nail")
"""
AFTER = """
import django
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check", fail_level="WARNING")
MIGRATE

def send(method, name, body=None, token=""):
    headers = {"Authorization": "Bearer " + token} if token else {}
    client = Client(headers={"Host": "localhost"})
    answer = getattr(client, method)(f"/auth/{name}/", body, "application/json", headers=headers)
    return answer.status_code, answer.json() if answer.content else {}

# A user from before logs in at once, and after accesspass_adopt by any spelling.
password = "a horse, a nail"
assert send("post", "login", {"username": "Ada", "password": password})[0] == 200
ADOPT
for name in ("ADA", "ada@EXAMPLE.com"):
    assert send("post", "login", {"username": name, "password": password})[0] == 200

# A new one registers, is known, and logs out.
person = {"username": "bob", "email": "bob@example.com", "password": "a horse, a shoe"}
status, made = send("post", "register", person)
assert status == 201, made
token = made["access_token"]
status, known = send("get", "check", token=token)
assert (status, known["user"]["username"]) == (200, "bob")
assert send("post", "logout", token=token)[0] == 204
assert send("get", "check", token=token)[0] == 401

call_command("migrate", "accesspass", "zero", verbosity=0)
"""
AGAIN = """
import django
django.setup()
from django.contrib.auth.models import User
assert {x.username: x.check_password("a horse, a nail") for x in User.objects.all()} == {
    "Ada": True, "bob": False,
}
"""


def apply(diff: str, text: str) -> str:
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        assert text.count(old) == 1, old
        text = text.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))
    return text


def test_ten_lines_and_nothing_of_the_projects_is_lost(tmp_path: Path) -> None:
    diffs = {name: SHOWN[name] for name in ("shop/settings.py", "shop/urls.py")}
    assert sum(line[0] == "+" for x in diffs.values() for line in x.splitlines()) <= 10
    project = Project(tmp_path)
    project.run("-m", "django", "startproject", "shop", ".")
    before = {name: (tmp_path / name).read_text() for name in diffs}
    before["shop/settings.py"] += FAST
    project.write(before)
    project.run("-c", BEFORE, DJANGO_SETTINGS_MODULE="shop.settings")
    project.write({name: apply(diff, before[name]) for name, diff in diffs.items()})
    (console,) = shown("docs/how-to/existing-project.rst", "console")
    *migrate, adopt = commands(console)
    after = AFTER.replace("MIGRATE\n", typed(migrate)).replace("ADOPT\n", typed([adopt]))
    project.run("-c", after, DJANGO_SETTINGS_MODULE="shop.settings")
    project.write(before)
    project.run("-c", AGAIN, DJANGO_SETTINGS_MODULE="shop.settings")
