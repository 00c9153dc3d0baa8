"""`accesspass_doctor`, on what works and on what was broken on purpose."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as project
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from django.test import override_settings
from django.urls import include, path

from accesspass import doctor, mail, sessions
from accesspass.models import Account, Identifier, Lease, MailRequest, Session, Throttle
from accesspass.testing import age
from tests.conftest import MakeUser
from tests.mail_servers import SMTPServer
from tests.servers import (
    HOST,
    Valkey,
    free_port,
    make_certificate,
    require_postgresql,
    require_valkey,
    shared_postgresql,
    shared_valkey,
)
from tests.sessions import engine_out_of_reach
from tests.test_checks import SOUND

ROOT = Path(__file__).resolve().parents[1]
User: Any = get_user_model()

pytestmark = pytest.mark.django_db(transaction=True)


def location(url: str, **more: Any) -> Any:
    alias = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": url, **more}
    return override_settings(CACHES={**project.CACHES, "accesspass": alias})


@pytest.fixture(autouse=True)
def _sound(tmp_path: Path) -> Iterator[None]:
    """A project without fault, whose mail server is out of the way."""
    options = {**SOUND["ACCESSPASS"], "BASE_URL": "http://localhost:3000"}  # type: ignore[dict-item]
    with (
        override_settings(**{**SOUND, "ACCESSPASS": options}),
        override_settings(SILENCED_SYSTEM_CHECKS=["accesspass.W008", "accesspass.W017"]),
        location(f"sqlite:///{tmp_path}/cache"),
    ):
        yield


def mail_by(port: int) -> override_settings:
    smtp = "django.core.mail.backends.smtp.EmailBackend"
    return override_settings(EMAIL_BACKEND=smtp, EMAIL_HOST=HOST, EMAIL_PORT=port)


def examined(**how: Any) -> list[doctor.Finding]:
    return list(doctor.examine(**how))


def about(subject: str, **how: Any) -> list[tuple[str, str]]:
    return [(x.state, x.says) for x in examined(**how) if x.subject == subject]


def test_nothing_is_wrong_with_what_works_and_nothing_is_left_behind() -> None:
    with (
        SMTPServer() as server,
        mail_by(server.port),
    ):
        found = examined(send_to="admin@example.com", try_login=True)
    subjects = ["settings", "routes", "database", "cache", "cache", "mail", "mail"]
    subjects += ["housekeeping", "names", "passwords", "links", "login"]
    assert [x.subject for x in found] == subjects
    assert [x.state for x in found if x.subject != "links"] == ["ok"] * 11, found
    (accepted,) = server.accepted
    assert accepted["X-Rcpt"] == "admin@example.com"
    for model in (User, Account, Session, Lease, MailRequest):
        assert not model._base_manager.exists()


# The command


def test_the_command_exits_with_1_if_anything_is_broken() -> None:
    with location("redis://:hidden-secret@127.0.0.1:1/0"):
        out = io.StringIO()
        with pytest.raises(CommandError, match=r"^1 thing is broken\.$"):
            call_command("accesspass_doctor", stdout=out)
        lines = out.getvalue()
        assert "broken   cache: The redis engine fails: EngineUnavailable: redis://" in lines
        assert "\n         Sessions go on meanwhile" in lines
        as_json = io.StringIO()
        with pytest.raises(CommandError):
            call_command("accesspass_doctor", "--json", stdout=as_json)
    assert "hidden-secret" not in lines + as_json.getvalue()
    answer = json.loads(as_json.getvalue())
    assert answer["broken"] == 1
    assert {x["subject"] for x in answer["findings"] if x["state"] == "broken"} == {"cache"}
    out = io.StringIO()
    call_command("accesspass_doctor", stdout=out)
    assert "ok       database: SQLite answers; 9 tables" in out.getvalue()


def test_routes_that_cannot_be_resolved_without_arguments_are_skipped() -> None:
    under = path("<str:version>/", include("accesspass.urls"))
    with override_settings(ROOT_URLCONF=(under,)):
        assert [state for state, _says in about("routes")] == ["skipped"]
    with override_settings(ROOT_URLCONF=()):
        assert [state for state, _says in about("routes")] == ["warning"]


def test_settings_that_cannot_be_read_come_first() -> None:
    with override_settings(ACCESSPASS={**project.ACCESSPASS, "NONSENSE": 1}):
        found = examined()
    assert {x.subject for x in found} == {"settings"}
    assert [x.state for x in found] == ["broken", "skipped"]
    assert "accesspass.E001" in found[0].says


def test_warnings_of_the_system_checks_are_said_and_break_nothing() -> None:
    with override_settings(ACCESSPASS={**project.ACCESSPASS, "MAIL_DELIVERY": "inline"}):
        (found,) = about("settings")
    assert found[0] == "warning"
    assert "accesspass.W013" in found[1]


# The database


@contextlib.contextmanager
def no_table() -> Iterator[None]:
    with connection.schema_editor() as editor:
        editor.delete_model(Throttle)
    yield
    with connection.schema_editor() as editor:
        editor.create_model(Throttle)


@contextlib.contextmanager
def nothing_writable() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA query_only = ON")
        yield
        cursor.execute("PRAGMA query_only = OFF")


@contextlib.contextmanager
def no_migration() -> Iterator[None]:
    recorder = MigrationRecorder(connection)
    rows = recorder.migration_qs.filter(app="accesspass")
    names = list(rows.values_list("name", flat=True))
    rows.delete()
    yield
    for name in names:
        recorder.record_applied("accesspass", name)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL is below")
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (no_table, "accesspass_throttle cannot be read and written: DatabaseError"),
        (nothing_writable, "cannot be read and written: OperationalError: attempt to write a rea"),
        (no_migration, "Migrations of accesspass are to be run: 0001_initial"),
    ],
)
def test_a_database_that_does_not_fit_is_broken(wrong: Callable[[], Any], words: str) -> None:
    with wrong():
        found = examined(try_login=True)
    ((state, says),) = [(x.state, x.says) for x in found if x.subject == "database"]
    assert state == "broken"
    assert words in says
    # What needs it is not tried.
    others = {x.subject: x.state for x in found}
    assert (others["housekeeping"], others["login"]) == ("skipped", "skipped")


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach it alone"
)
def test_a_server_that_hangs_is_broken_and_the_rest_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    monkeypatch.setattr(doctor, "_DEADLINE", 1.0)
    monkeypatch.setattr(doctor, "_clock", lambda alias: threading.Event().wait(60))
    found = {x.subject: x for x in examined(try_login=True)}
    assert found["database"].says == "There was no answer within 1 s."
    assert (found["database"].state, found["login"].state) == ("broken", "skipped")
    assert found["passwords"].state == "ok"
    assert signal.getsignal(signal.SIGALRM) is handler


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_a_project_without_time_zones_has_no_clock_that_is_off(zone: str) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE=zone):
        ((state, _says),) = about("database")
    assert state == "ok"


def test_a_clock_that_is_off_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = doctor._clock
    monkeypatch.setattr(doctor, "_clock", lambda alias: clock(alias) - 3600)
    ((state, says),) = about("database")
    assert state == "broken"
    assert "-60 minutes off" in says


@pytest.mark.pipeline
def test_on_postgresql_what_is_wrong_is_said(tmp_path: Path) -> None:
    require_postgresql()
    server, name = shared_postgresql(), f"doctor_{secrets.token_hex(4)}"
    server.create_database(name)
    limited = f"limited_{secrets.token_hex(4)}"
    server.execute(f"CREATE ROLE {limited} LOGIN")

    def run(url: str, *command: str) -> tuple[int, Any]:
        done = subprocess.run(
            [sys.executable, ROOT / "manage.py", *command],
            env={
                **os.environ,
                "ACCESSPASS_DEMO_DIR": str(tmp_path),
                "DEPLOYMENT_DATABASE": url,
                "DJANGO_SETTINGS_MODULE": "tests.deployments.settings",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "--json" not in command:
            return done.returncode, done.stderr
        findings = json.loads(done.stdout)["findings"]
        return done.returncode, {x["subject"]: x for x in findings if x["state"] == "broken"}

    assert run(server.url(name), "migrate", "--verbosity=0") == (0, "")
    assert run(server.url(name), "accesspass_doctor", "--json", "--try-login") == (0, {})
    assert server.execute("SELECT * FROM accesspass_user", database=name) == []

    code, broken = run(server.url(name, user=limited), "accesspass_doctor", "--json")
    assert code == 1
    assert "permission denied for table" in broken["database"]["says"]
    assert "permission denied" in broken["cache"]["says"]

    code, broken = run(server.url(name, port=free_port()), "accesspass_doctor", "--json")
    assert code == 1
    assert "cannot be reached: OperationalError" in broken["database"]["says"]
    assert "The postgresql engine fails: EngineUnavailable" in broken["cache"]["says"]


# The cache


def test_on_valkey_a_probe_reaches_another_node() -> None:
    require_valkey()
    with location(shared_valkey().url(), OPTIONS={"NAMESPACE": secrets.token_hex(4)}):
        (first, says), (clock, _) = about("cache")
    assert (first, clock) == ("ok", "ok")
    assert "The redis engine (role: primary) answers" in says


def test_a_server_that_may_forget_is_broken() -> None:
    require_valkey()
    with Valkey({"maxmemory-policy": "allkeys-lru"}) as server, location(server.url()):
        ((state, says),) = about("cache")
    assert state == "broken"
    assert "set maxmemory-policy to noeviction" in says


def test_nodes_whose_signing_keys_differ_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE", 0.05)
    handler = doctor.CacheHandler

    def other_keys(caches: Any) -> Any:
        (alias,) = caches.values()
        return handler({"accesspass": {**alias, "OPTIONS": {"SIGNING_KEYS": ["x" * 32]}}})

    monkeypatch.setattr(doctor, "CacheHandler", other_keys)
    ((state, says),) = about("cache")
    assert state == "broken"
    assert "another node did not hold it" in says


@pytest.mark.parametrize(("kind", "state"), [("locmem.LocMem", "ok"), ("dummy.Dummy", "warning")])
def test_a_cache_without_an_engine_is_tried_too(kind: str, state: str) -> None:
    backend = f"django.core.cache.backends.{kind}Cache"
    with override_settings(CACHES={**project.CACHES, "accesspass": {"BACKEND": backend}}):
        ((found, _says),) = about("cache")
    assert found == state


def test_a_cache_that_does_not_exist_is_broken() -> None:
    with override_settings(CACHES={**project.CACHES, "accesspass": {"BACKEND": "nowhere.Cache"}}):
        found = examined()
    (cache,) = [x for x in found if x.subject == "cache"]
    assert cache.state == "broken"
    assert "InvalidCacheBackendError" in cache.says


# E-mail


def test_a_mail_server_that_is_not_there_is_broken() -> None:
    with mail_by(free_port()):
        (found, _queue) = about("mail")
    assert found[0] == "broken"
    assert "smtp cannot be opened: ConnectionRefusedError: Connection refused" in found[1]


def test_a_mail_server_that_refuses_is_broken_and_quoted_by_its_code_alone() -> None:
    with (
        SMTPServer() as server,
        mail_by(server.port),
    ):
        server.answers = ["451 It was: hidden-secret"]
        (found, _queue) = about("mail", send_to="admin@example.com")
    assert found[0] == "broken"
    assert found[1].endswith("does not send: SMTPDataError: 451.")


@pytest.mark.parametrize("delivery", ["thread", "worker"])
def test_mail_that_nobody_sends_is_broken(delivery: str) -> None:
    mail.ask("confirm", "bob@example.com")
    assert about("mail")[1] == ("ok", "1 e-mails wait, none too long.")
    MailRequest.objects.update(lease_until=Now() - timedelta(minutes=2))
    with override_settings(ACCESSPASS={**project.ACCESSPASS, "MAIL_DELIVERY": delivery}):
        (found,) = [x for x in examined() if x.subject == "mail" and x.state == "broken"]
    assert found.says.startswith("1 e-mails should have been sent")
    assert ("accesspass_mail" in found.hint) == (delivery == "worker")


# What is done in the background


def test_housekeeping_that_nobody_does_is_said(make_user: MakeUser) -> None:
    pair = sessions.start(make_user())
    ((state, says),) = about("housekeeping")
    assert (state, "Nobody has looked ever" in says) == ("warning", True)
    assert Lease.objects.take("sweep", 50)
    assert about("housekeeping") == [("ok", "It is being done.")]
    Lease.objects.update(until=Now() - timedelta(hours=3))
    ((state, says),) = about("housekeeping")
    assert (state, "for 180 minutes" in says) == ("warning", True)
    with engine_out_of_reach():
        sessions.revoke(pair.session_id)
        age(pair, 120)
    ((state, says), _nothing) = about("housekeeping")
    assert state == "broken"
    assert says.startswith("1 sessions ended")


def test_names_that_collide_are_listed(make_user: MakeUser) -> None:
    one, other = make_user("bob"), make_user("eve")
    Account.objects.for_user(one)
    Account.objects.for_user(other)
    Identifier.objects.filter(value="eve@example.com").update(account=one.pk)
    ((state, says),) = about("names")
    assert state == "warning"
    assert f"'eve@example.com' of {other.pk} is {one.pk}'s" in says


# Links and logins


@contextlib.contextmanager
def https_server(folder: Path) -> Iterator[int]:
    """Something that answers a TLS handshake with a certificate of its own making."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(folder))
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # a client that refuses, or the end of the test
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        context.wrap_socket(client, server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_the_certificate_of_the_front_end_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(port: int) -> tuple[str, str]:
        base_url = {**project.ACCESSPASS, "BASE_URL": f"https://localhost:{port}"}
        with override_settings(ACCESSPASS=base_url):
            (one,) = about("links")
            return one

    with https_server(tmp_path) as port:
        state, says = found(port)
        assert state == "broken"
        assert "Browsers refuse the certificate of localhost: self" in says
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        assert found(port) == (
            "warning",
            "localhost has a certificate that is good for 1 more days.",
        )
    state, says = found(free_port())
    assert state == "warning"
    assert "cannot be reached from here" in says


def test_a_login_that_fails_leaves_no_user_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(token: object) -> None:
        assert User._base_manager.exists()
        raise RuntimeError("hidden-secret")

    monkeypatch.setattr(sessions, "refresh", fail)
    assert about("login", try_login=True) == [("broken", "It fails: RuntimeError.")]
    assert not User._base_manager.exists()
    assert not Session.objects.exists()


def test_an_end_that_is_not_acknowledged_is_broken() -> None:
    with engine_out_of_reach():
        found = {x.subject: x for x in examined(try_login=True)}
    assert found["login"].state == "broken"
    assert not User._base_manager.exists()


def test_users_that_cannot_be_made_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, **kwargs: Any) -> None:
        raise ValueError("a user needs an invoice")

    monkeypatch.setattr(User, "save", fail)
    ((state, says),) = about("login", try_login=True)
    assert state == "skipped"
    assert "can be made of a name alone: ValueError" in says
