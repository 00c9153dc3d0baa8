"""E-mails through real servers: SMTP, and the APIs of providers by way of django-anymail."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import override_settings

from accesspass import email_keys, mail
from accesspass.email_keys import PASSWORD_RESET
from accesspass.models import MailRequest
from tests import mail_servers
from tests.documents import settings_of, shown
from tests.mail_servers import SILENT, Provider, SMTPServer
from tests.servers import free_port, wait_until
from tests.test_mail import KEY

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = "Choose a new password for app.example.com"


def make_due() -> None:
    MailRequest.objects.update(lease_until=Now() - timedelta(seconds=1))


def deliver_again() -> str:
    """Deliver what is due by now; returns the last error of the only row."""
    make_due()
    mail.deliver()
    return MailRequest.objects.get().error


# SMTP


@pytest.fixture
def smtp() -> Iterator[SMTPServer]:
    backend = {
        "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "EMAIL_HOST": "127.0.0.1",
        "EMAIL_TIMEOUT": 1,
        "DEFAULT_FROM_EMAIL": "AccessPass <auth@app.example.com>",
    }
    with SMTPServer() as server, override_settings(**backend, EMAIL_PORT=server.port):
        yield server


def test_an_email_arrives_by_smtp_in_both_parts(user: Any, smtp: SMTPServer) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    mail.deliver()
    (message,) = smtp.accepted
    assert message["X-Rcpt"] == message["To"] == user.email
    assert message["From"] == "AccessPass <auth@app.example.com>"
    assert message["Subject"] == SUBJECT
    assert message["Auto-Submitted"] == "auto-generated"
    text, html = (message.get_body((x,)).get_content() for x in ("plain", "html"))
    (key,) = set(KEY.findall(text) + KEY.findall(html))
    assert email_keys.read(key, PASSWORD_RESET).user == user
    assert MailRequest.objects.get().sent_at is not None


def test_what_an_smtp_server_refuses_is_sent_later(user: Any, smtp: SMTPServer) -> None:
    smtp.answers = ["451 Try again", "552 Too much mail", SILENT, "421 Going away"]
    mail.ask(PASSWORD_RESET, user.email)
    errors = [deliver_again() for _ in range(5)]
    assert errors == [
        "SMTPDataError 451",
        "SMTPDataError 552",
        "SMTPServerDisconnected",
        "SMTPDataError 421",
        "",
    ]
    assert len(smtp.accepted) == 1
    assert MailRequest.objects.get().attempts == 5


def test_a_server_that_is_not_there_loses_nothing(user: Any, smtp: SMTPServer) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    with override_settings(EMAIL_PORT=1):
        assert deliver_again() == "ConnectionRefusedError"
    assert deliver_again() == ""
    assert len(smtp.accepted) == 1


# Providers


def test_the_page_sets_up_a_provider(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = shown("docs/how-to/emails.rst", "python")
    monkeypatch.setenv("POSTMARK_SERVER_TOKEN", "token")
    made = settings_of(code, os=os)
    with mail_servers.postmark() as server:
        made["ANYMAIL"]["POSTMARK_API_URL"] = server.url
        with override_settings(**made):
            mail.ask(PASSWORD_RESET, user.email)
            mail.deliver()
        ((to, subject, _text),) = server.accepted
    assert (to, subject) == (user.email, SUBJECT)


def anymail(name: str, url: str) -> dict[str, Any]:
    from botocore.config import Config

    short = Config(connect_timeout=0.5, read_timeout=0.5, retries={"max_attempts": 0})
    return {
        "EMAIL_BACKEND": f"anymail.backends.{name}.EmailBackend",
        "DEFAULT_FROM_EMAIL": "auth@app.example.com",
        "ANYMAIL": {
            "REQUESTS_TIMEOUT": 0.5,
            "MAILGUN_API_KEY": "key",
            "MAILGUN_API_URL": url,
            "MAILGUN_SENDER_DOMAIN": "app.example.com",
            "POSTMARK_API_URL": url,
            "POSTMARK_SERVER_TOKEN": "token",
            "AMAZON_SES_CLIENT_PARAMS": {
                "aws_access_key_id": "id",
                "aws_secret_access_key": "secret",
                "region_name": "eu-west-1",
                "endpoint_url": url,
                "config": short,
            },
        },
    }


@pytest.fixture(params=["mailgun", "postmark", "amazon_ses"])
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    make = {"amazon_ses": mail_servers.ses}.get(request.param) or getattr(
        mail_servers, request.param
    )
    with make() as server, override_settings(**anymail(request.param, server.url)):
        yield server


def test_an_email_goes_out_by_a_providers_api(user: Any, provider: Provider) -> None:
    mail.ask(PASSWORD_RESET, user.email)
    mail.deliver()
    ((to, subject, text),) = provider.accepted
    assert (to, subject) == (user.email, SUBJECT)
    assert email_keys.read(KEY.findall(text)[0], PASSWORD_RESET).user == user


def test_what_a_provider_refuses_is_sent_later(
    user: Any, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.answers = [503, 429, SILENT, 400]
    mail.ask(PASSWORD_RESET, user.email)
    errors = [deliver_again() for _ in range(5)]
    assert all(errors[:4]), errors
    assert errors[4] == ""
    assert len(provider.accepted) == 1
    # What the libraries say of a failure quotes the message; what we log does not.
    ours = [x.getMessage() for x in caplog.records if x.name.startswith("accesspass")]
    assert len(ours) == 4
    assert not any(KEY.search(x) for x in ours)


# Workers in processes of their own

SETTINGS = """
from tests.settings.own_user import *
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r},
    "OPTIONS": {{"transaction_mode": "IMMEDIATE", "timeout": 20}}}}}}
EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
EMAIL_HOST, EMAIL_PORT = "127.0.0.1", {port}
"""
QUEUE = """
import django
django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from accesspass import mail
call_command("migrate", verbosity=0)
for i in range({count}):
    user = get_user_model().objects.create_user(f"user{{i}}", f"user{{i}}@example.com")
    mail.notify("password_changed", user)
"""


class Project:
    """A project on a SQLite file with e-mails in its queue, and workers that are processes."""

    def __init__(self, folder: Path, port: int, count: int) -> None:
        self.database = str(folder / "db.sqlite3")
        self.log = folder / "log"
        (folder / "mail_settings.py").write_text(SETTINGS.format(database=self.database, port=port))
        self.environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
        self.environment["DJANGO_SETTINGS_MODULE"] = "mail_settings"
        assert self.run("-c", QUEUE.format(count=count)).wait(60) == 0, self.log.read_text()

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words], env=self.environment, stdout=log, stderr=log
            )

    def worker(self, *words: str) -> subprocess.Popen[bytes]:
        return self.run("-m", "django", "accesspass_mail", *words)

    def query(self, sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as connection:
            found = connection.execute(sql).fetchall()
            connection.commit()
            return found

    def waiting(self) -> int:
        sql = "SELECT COUNT(*) FROM accesspass_mailrequest WHERE sent_at IS NULL"
        return int(self.query(sql)[0][0])


@pytest.mark.pipeline
@pytest.mark.fault
def test_kill_9_loses_nothing_and_doubles_only_what_was_accepted_unheard(tmp_path: Path) -> None:
    with SMTPServer() as smtp:
        project = Project(tmp_path, smtp.port, 1)
        worker: subprocess.Popen[bytes]

        def kill() -> None:
            worker.kill()
            worker.wait(30)

        # 1: killed before the server has accepted the message.
        smtp.before, smtp.answers = kill, ["451 Nobody hears this"]
        worker = project.worker()
        assert worker.wait(60) == -signal.SIGKILL
        assert (len(smtp.accepted), project.waiting()) == (0, 1)
        # 2: within the lease nobody else sends it.
        smtp.before = lambda: None
        assert project.worker("--once").wait(60) == 0
        assert (len(smtp.accepted), project.waiting()) == (0, 1)
        # 3: killed after acceptance, before it could hear of it.
        lapse = "UPDATE accesspass_mailrequest SET lease_until = '2000-01-01 00:00:00'"
        project.query(lapse)
        smtp.after = kill
        worker = project.worker()
        assert worker.wait(60) == -signal.SIGKILL
        assert (len(smtp.accepted), project.waiting()) == (1, 1)
        # 4: so it is sent again: once more than needed, rather than never.
        project.query(lapse)
        smtp.after = lambda: None
        assert project.worker("--once").wait(60) == 0
        assert (len(smtp.accepted), project.waiting()) == (2, 0)
        assert project.query("SELECT attempts FROM accesspass_mailrequest") == [(3,)]


@pytest.mark.pipeline
@pytest.mark.fault
def test_two_workers_never_send_one_request_twice(tmp_path: Path) -> None:
    with SMTPServer() as smtp:
        project = Project(tmp_path, smtp.port, 30)
        workers = [project.worker() for _ in range(2)]
        try:
            wait_until(lambda: project.waiting() == 0, 60, 0.1)
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        assert [x.wait(30) for x in workers] == [0, 0]
        assert project.log.read_text() == ""
        recipients = sorted(x["To"] for x in smtp.accepted)
        assert recipients == sorted(f"user{i}@example.com" for i in range(30))
        assert project.query("SELECT DISTINCT attempts FROM accesspass_mailrequest") == [(1,)]


@pytest.mark.fault
def test_a_serving_process_delivers_by_its_own_thread(tmp_path: Path) -> None:
    with SMTPServer() as smtp:
        project = Project(tmp_path, smtp.port, 1)
        project.query("DELETE FROM accesspass_mailrequest")
        port = free_port()
        server = project.run("-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}")

        def ask() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            with contextlib.closing(connection), contextlib.suppress(ConnectionRefusedError):
                body = json.dumps({"username": "USER0@example.com"})
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/auth/confirm/resend/", body, headers)
                assert connection.getresponse().status == 202
                return True
            return False

        try:
            wait_until(ask, 60, 0.1)
            wait_until(lambda: smtp.accepted and not project.waiting(), 30, 0.1)
        finally:
            server.kill()
            server.wait(30)
        assert [x["To"] for x in smtp.accepted] == ["user0@example.com"]
        (key,) = set(KEY.findall(smtp.accepted[0].get_body(("plain",)).get_content()))
        assert key not in project.log.read_text()
