"""What pages show without a test of their own does what they say.

tests/test_documents.py knows which block of which page is run, and where.
"""

from __future__ import annotations

import doctest
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from django.contrib import admin
from django.contrib.admin.sites import AdminSite
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import PBKDF2PasswordHasher, identify_hasher
from django.core import checks
from django.core.cache import caches
from django.core.management import CommandError, call_command
from django.http import HttpResponse, JsonResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import include, path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from accesspass import health, sessions, views
from accesspass.cache import ReplicatedCache
from accesspass.conf import conf
from accesspass.exceptions import InvalidToken
from accesspass.models import Account, Session
from accesspass.testing import assert_no_queries, login, mailed_key
from tests.conftest import PASSWORD
from tests.documents import commands, fetched, module_of, settings_of, shown
from tests.sessions import cache_settings, make_node, replicated
from tests.test_introspection import basic

__all__ = ["replicated"]

pytestmark = pytest.mark.django_db
ADA = {"username": "ada", "email": "ada@example.org", "password": PASSWORD}


def register(api: APIClient) -> Any:
    answer = api.post("/auth/register/", ADA, format="json")
    assert answer.status_code == 201, answer.content
    return answer.json()


def form_of(value: Any) -> Any:
    """The names in their order and the types of what stands in JSON."""
    if isinstance(value, dict):
        return [(name, form_of(part)) for name, part in value.items()]
    if isinstance(value, list):
        return [form_of(part) for part in value]
    return type(value)


def manage(command: str) -> str:
    python, program, *arguments = command.split()
    assert (python, program) == ("python", "manage.py")
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=out)
    return out.getvalue()


# docs/how-to ----------------------------------------------------------------------------------


def test_plain_views_for_tokens_alone_refuse_whoever_has_none(user: Any) -> None:
    middleware, code = shown("docs/how-to/async-and-channels.rst", "python")
    given = {"JsonResponse": JsonResponse, "View": View, "method_decorator": method_decorator}
    made = module_of(code, **given)
    made.Export.get = lambda self, request: HttpResponse("of a class")
    made.urlpatterns = [
        path("export/", made.export),
        path("aexport/", made.aexport),
        path("class/", made.Export.as_view()),
    ]
    with override_settings(**settings_of(middleware), ROOT_URLCONF=made):
        client = Client()
        for place in ("export", "aexport", "class"):
            refused = client.get(f"/{place}/")
            assert (refused.status_code, refused.json()["code"]) == (401, "token_required"), place
        login(client, user, claims={"role": "admin"})
        export = client.get("/export/").json()
        assert export == {"owner": str(user.pk), "claims": {"role": "admin"}}
        assert client.get("/class/").content == b"of a class"
        with pytest.raises(ValueError, match="didn't return an HttpResponse"):
            client.get("/aexport/")  # it was let in; the page leaves its body out


def test_a_page_refreshes_by_the_cookie(user: Any) -> None:
    (code,) = shown("docs/how-to/browsers.rst", "python")
    script, _of_many_tabs = shown("docs/how-to/browsers.rst", "javascript")
    asked = fetched(script)
    assert asked["credentials"] == "include"
    page = {"Origin": "https://app.example.com"}
    client = Client(headers={"Host": "api.example.com"})
    with override_settings(**settings_of(code)):
        body = {"username": user.get_username(), "password": PASSWORD}
        made = client.post("/auth/login/", body, "application/json", secure=True, headers=page)
        assert "refresh_token" not in made.json()
        assert made.cookies["__Secure-refresh"]["httponly"]
        route = asked["url"].removeprefix("https://api.example.com")
        again = client.generic(asked["method"], route, secure=True, headers=page)
    assert (again.status_code, set(again.json())) == (200, set(made.json()))


def test_a_page_confirms_by_the_key_in_its_address(api: APIClient, mailoutbox: list[Any]) -> None:
    (script,) = shown("docs/how-to/emails.rst", "javascript")
    register(api)
    location = {"hash": f"#key={mailed_key()}", "pathname": "/confirm"}
    asked = fetched(script, location=location)
    assert asked["replaced"] == "/confirm"
    kind = asked["headers"]["Content-Type"]
    answer = api.generic(asked["method"], asked["url"], asked["body"], content_type=kind)
    assert answer.status_code == 200
    assert Account.objects.get().confirmed_at


def test_the_suite_runs_with_the_user_models_of_the_page() -> None:
    from tests.settings import own_user, uuid_user

    ready_made, own, _fields = shown("docs/how-to/custom-user.rst", "python")
    assert settings_of(ready_made)["AUTH_USER_MODEL"] == own_user.AUTH_USER_MODEL
    own = own.replace("shop", "uuidapp")  # whose model the page shows
    assert settings_of(own)["AUTH_USER_MODEL"] == uuid_user.AUTH_USER_MODEL


def test_more_fields_of_the_user_cost_no_query(user: Any) -> None:
    _ready_made, _own, code = shown("docs/how-to/custom-user.rst", "python")
    with override_settings(**settings_of(code)):
        said = [x.msg for x in checks.run_checks() if "USER_FIELDS" in x.msg]
    assert any("language" in text for text in said), said
    # The model of the suite has other ones.
    code = code.replace("language", "date_joined").replace("tenant_id", "last_login")
    with override_settings(**settings_of(code)):
        token = login(APIClient(), user).access_token
        with assert_no_queries():
            known, _record = sessions.authenticate(token)
            assert (known.date_joined, known.last_login) == (user.date_joined, None)


def test_a_signing_key_is_changed_in_two_steps_without_a_miss(tmp_path: Path) -> None:
    (code,) = shown("docs/how-to/engines.rst", "python")
    steps = [{"SECRET_KEY": "old", "SECRET_KEY_FALLBACKS": []}]
    steps += [settings_of(step) for step in code.split("\n\n")]
    assert steps[-1] == {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": []}

    def node(step: int, of: str) -> ReplicatedCache:
        with override_settings(**steps[step]):
            return ReplicatedCache(f"sqlite:///{tmp_path}/{of}", {})

    for step in range(3):
        # While a step is rolled out, some nodes have made it and others have not.
        for writer, reader in ((step, step + 1), (step + 1, step)):
            of = f"{writer}-{reader}"
            node(writer, of).set("key", "sealed")
            assert node(reader, of).get("key") == "sealed", of
    node(0, "in one step").set("key", "sealed")
    assert node(3, "in one step").get("key") is None


@pytest.mark.django_db(transaction=True)
def test_the_last_step_of_a_change_of_keys_logs_out_who_has_not_refreshed(user: Any) -> None:
    (code,) = shown("docs/how-to/engines.rst", "python")
    steps = [settings_of(step) for step in code.split("\n\n")]
    with override_settings(SECRET_KEY="old", SECRET_KEY_FALLBACKS=[]):
        busy, idle = sessions.start(user), sessions.start(user)
    for step in steps[:2]:
        with override_settings(**step):
            busy = sessions.refresh(busy.refresh_token)
            sessions.authenticate(idle.access_token)
    with override_settings(**steps[2]):
        sessions.refresh(busy.refresh_token)
        with pytest.raises(InvalidToken):
            sessions.refresh(idle.refresh_token)


def test_status_says_how_much_a_process_holds() -> None:
    (console,) = shown("docs/how-to/engines.rst", "pycon")
    *before, last = doctest.DocTestParser().get_examples(console)
    caches["accesspass"].set("key", "value")
    names: dict[str, Any] = {}
    for example in before:
        exec(example.source, names)
    exec(f"said = {last.source}", names)
    entries, size = names["said"]
    assert entries == 1
    assert size > len("keyvalue")


def test_a_load_balancer_is_told_that_the_process_is_ready(client: Client) -> None:
    _telemetry, code = shown("docs/how-to/monitoring.rst", "python")
    (said,) = shown("docs/how-to/monitoring.rst", "json")
    health._forget()
    made = module_of(code, urlpatterns=[], path=path, include=include)
    caches["accesspass"].get("anything")
    with override_settings(ROOT_URLCONF=made):
        answer = client.get("/health/")
    assert (answer.status_code, answer.json()) == (200, json.loads(said))


def test_a_view_that_is_annotated_keeps_the_rest_of_its_description() -> None:
    app, code = shown("docs/how-to/openapi.rst", "python")
    with override_settings(**settings_of(app)):
        made = module_of(code, extend_schema=extend_schema, views=views)
        described = {}
        for view in (views.LoginView, made.LoginView):
            patterns = [path("auth/login/", view.as_view())]
            schema = SchemaGenerator(patterns=patterns).get_schema(public=True)
            (described[view],) = (x["post"] for x in schema["paths"].values())
    ours, annotated = described.values()
    assert annotated == {**ours, "tags": ["people"], "summary": "Come in"}
    assert set(annotated["responses"]) >= {"200", "400", "401", "429"}


def test_status_prints_what_the_page_shows(tmp_path: Path) -> None:
    (console,) = shown("docs/how-to/operate.rst", "console")
    (command,) = commands(console)
    facts, table, error = console.partition("\n")[2].split("\n\n")
    titles, *rows = [re.split(r" {2,}", line) for line in table.splitlines()]
    with cache_settings(f"sqlite:///{tmp_path}/log"):
        cache: Any = caches["accesspass"]
        cache.mark()
        epoch = cache.status()["epoch"]
        for row in (dict(zip(titles, row, strict=True)) for row in rows):
            make_node(
                float(row["report age"]),
                pid=int(row["pid"]),
                role=row["role"],
                epoch=epoch if row["in epoch"] == "yes" else "another",
                fresh=row["state"] != "stale",
                staleness=float(row["staleness"]),
                version=row["version"],
                **{name: int(row[name]) for name in ("applied", "entries", "bytes")},
            )
        out = io.StringIO()
        with pytest.raises(CommandError) as raised:
            call_command(*command.split()[2:], stdout=out)
    printed, its_table = out.getvalue().split("\n\n")
    names = [[re.split(r" {2,}", x)[0] for x in text.splitlines()] for text in (facts, printed)]
    assert names[0] == names[1]
    its_titles, *its_rows = [re.split(r" {2,}", line) for line in its_table.splitlines()]
    age = titles.index("report age")
    for row in [*rows, *its_rows]:
        row[age] = ""  # it goes on
    assert (its_titles, its_rows) == (titles, rows)
    assert f"CommandError: {raised.value}\n" == error


def test_the_users_of_the_admin_lead_to_their_sessions() -> None:
    (code,) = shown("docs/how-to/operate.rst", "python")
    model = get_user_model()
    code = code.replace("django.contrib.auth.models import User", "accesspass.models import User")
    site = AdminSite()
    site.register(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admin, "site", site)
        patch.setattr("django.contrib.admin.sites.site", site)
        made = module_of(code)
    assert type(site._registry[model]) is made.MyUserAdmin


def test_a_login_hashes_a_password_anew_by_the_first_hasher(api: APIClient, user: Any) -> None:
    (code,) = shown("docs/how-to/passwords.rst", "python")
    user.password = PBKDF2PasswordHasher().encode(PASSWORD, "salt", iterations=1)
    user.save()
    with override_settings(**settings_of(code)):
        body = {"username": user.get_username(), "password": PASSWORD}
        assert api.post("/auth/login/", body, format="json").status_code == 200
        user.refresh_from_db()
        hasher: Any = identify_hasher(user.password)
    made = f"{type(hasher).__module__}.{type(hasher).__qualname__}"
    assert made == settings_of(code)["PASSWORD_HASHERS"][0]


def test_a_service_is_registered_by_the_digest_of_its_secret(api: APIClient, user: Any) -> None:
    (command,) = shown("docs/how-to/resource-servers.rst", "sh")
    code, _authlib = shown("docs/how-to/resource-servers.rst", "python")
    script = command.replace("python", sys.executable, 1)
    printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    secret, digest = printed.stdout.split()
    token = sessions.start(user, claims={"role": "admin"}).access_token
    with override_settings(**settings_of(code.replace("<SHA-256 in hex>", digest))):
        answer = api.post(
            "/auth/introspect/",
            f"token={token}",
            content_type="application/x-www-form-urlencoded",
            HTTP_AUTHORIZATION=basic("notes", secret),
        )
    (*_, introspected, _error) = shown("docs/reference/http.rst", "json")
    assert form_of(answer.json()) == form_of(json.loads(introspected))


def test_rates_that_are_left_out_keep_their_defaults() -> None:
    (code,) = shown("docs/how-to/throttling.rst", "python")
    usual = conf.THROTTLES
    with override_settings(**settings_of(code)):
        found = conf.THROTTLES
    assert found["login"] == {**usual["login"], "account": (50, 3600)}
    assert found["mail"] == {**usual["mail"], "network": None}
    assert set(found["register"].values()) == {None}


def refused_in(language: str) -> str:
    headers = {"Accept-Language": language}
    body = {"username": "ada", "password": "wrong"}
    answer = Client().post("/auth/login/", body, "application/json", headers=headers)
    assert answer.status_code == 401
    detail: str = answer.json()["detail"]
    return detail


def test_answers_are_in_a_language_of_the_project_and_in_its_words(tmp_path: Path) -> None:
    languages, paths = shown("docs/how-to/translations.rst", "python")
    (catalogue,) = shown("docs/how-to/translations.rst", "po")
    english = "Wrong username or password."
    with override_settings(**settings_of(languages)):
        german = refused_in("de")
        assert german not in (english, refused_in("ar"))
        assert refused_in("fr") == refused_in("en") == english
        first, _, source = catalogue.partition("\n")
        file = tmp_path / first.removeprefix("# ")
        file.parent.mkdir(parents=True)
        with file.with_suffix(".mo").open("wb") as compiled:
            write_mo(compiled, read_po(io.StringIO(source), locale="de"))
        with override_settings(**settings_of(paths, BASE_DIR=tmp_path)):
            assert refused_in("de") == "Das passt nicht zusammen."
            assert refused_in("ar") != english


def test_a_record_is_known_by_its_type(user: Any) -> None:
    (code,) = shown("docs/how-to/typing.rst", "python")
    _user, record = sessions.authenticate(sessions.start(user).access_token)
    for auth, told in ((record, True), (None, False)):
        request = SimpleNamespace(auth=auth)
        given = {"request": request, "SessionRecord": sessions.SessionRecord, "told": False}
        assert module_of(code.replace("...", "told = True"), **given).told is told


def test_an_upgrade_is_looked_at_before_it_is_made() -> None:
    (console,) = shown("docs/how-to/upgrading.rst", "console")
    install, check, plan = commands(console)
    assert install == "pip install --upgrade django-accesspass"
    assert "W0" in manage(check)  # the settings of the suite are not for deployment
    assert "No planned migration operations." in manage(plan)


# docs/tutorial/quickstart.rst, beyond what tests/test_release.py types --------------------------


def test_permissions_let_in_whom_they_name(user: Any) -> None:
    code, _start = shown("docs/tutorial/quickstart.rst", "python")
    imports, *classes = re.split(r"^permission_classes = ", code, flags=re.MULTILINE)

    def status(permissions: str, token: str) -> int:
        made = module_of(f"{imports}permission_classes = {permissions}")
        allowed = {"permission_classes": made.permission_classes}
        view = type("Page", (APIView,), {**allowed, "get": lambda self, request: Response()})
        made.urlpatterns = [path("page/", view.as_view())]
        with override_settings(ROOT_URLCONF=made):
            answer = Client().get("/page/", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code

    confirmed, admins = classes
    token = sessions.start(user).access_token
    assert (status(confirmed, token), status(admins, token)) == (403, 403)
    token = sessions.start(user, claims={"role": "admin"}).access_token
    assert (status(confirmed, token), status(admins, token)) == (403, 200)
    Account.objects.update(confirmed_at=timezone.now(), confirmed_email=user.email)
    assert status(confirmed, sessions.start(user).access_token) == 200


def test_somebody_is_signed_in_from_python(user: Any, rf: RequestFactory) -> None:
    _permissions, code = shown("docs/tutorial/quickstart.rst", "python")
    pair = module_of(code, user=user, request=rf.get("/", REMOTE_ADDR="192.0.2.7")).pair
    assert sessions.authenticate(pair.access_token)[0] == user
    session = Session.objects.get()
    assert (session.name, session.ip) == ("import job", "192.0.2.7")


# docs/reference/http.rst ----------------------------------------------------------------------


def test_answers_have_the_form_that_the_reference_shows(api: APIClient) -> None:
    pair, user, listed, _introspected, error = map(
        json.loads, shown("docs/reference/http.rst", "json")
    )
    firefox = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0"
    api.credentials(HTTP_USER_AGENT=firefox, REMOTE_ADDR="192.0.2.7")
    made = register(api)
    assert {**made.pop("user"), "id": "…"} == user
    assert form_of(made) == form_of(pair)
    assert {name: made[name][:6] for name in ("access_token", "refresh_token")} == {
        name: pair[name][:6] for name in ("access_token", "refresh_token")
    }
    assert made["expires_in"] == pair["expires_in"]

    api.credentials(HTTP_USER_AGENT=firefox, HTTP_AUTHORIZATION=f"Bearer {made['access_token']}")
    answer = api.get("/auth/sessions/")
    assert form_of(answer.json()) == form_of(listed)
    for name in ("device", "ip", "expires_at", "current"):
        assert answer.json()[0][name] == listed[0][name]
    assert re.sub(r"\d", "0", answer.json()[0]["created_at"]) == "0000-00-00T00:00:00Z"

    api.credentials()
    refused = api.post("/auth/register/", {"username": "bob", "password": PASSWORD}, format="json")
    assert form_of(refused.json()) == form_of(error)
    assert refused.json()["code"] == error["code"]
    assert refused.json()["errors"]["email"][0]["code"] == error["errors"]["email"][0]["code"]
