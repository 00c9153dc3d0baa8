"""Management commands."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db.models.functions import Now
from django.test import override_settings

from accesspass import mail, sessions
from accesspass.models import MailRequest


def run(*args: str) -> str:
    out = io.StringIO()
    call_command("accesspass_status", *args, stdout=out)
    return out.getvalue()


def cache_at(location: str) -> Any:
    alias = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": location}
    return override_settings(CACHES={**settings.CACHES, "accesspass": alias})


@pytest.mark.django_db(transaction=True)
def test_status_counts_live_sessions_and_pending_revocations(make_user: Any) -> None:
    user = make_user()
    with cache_at(f"memory://{uuid.uuid4()}"):
        ended = sessions.start(user)
        sessions.start(user)
        sessions.revoke(ended.session_id)
        found = json.loads(run("--json"))
        assert found["engine"] == "memory"
        assert (found["live_sessions"], found["pending_revocations"]) == (1, 0)
        assert f"epoch                {found['epoch']}" in run()


def test_status_counts_e_mails(user: Any) -> None:
    mail.ask("confirm", user.email)
    mail.ask("confirm", "nobody@example.com")
    MailRequest.objects.filter(identifier=user.email).update(failed_at=Now())
    with cache_at(f"memory://{uuid.uuid4()}"):
        found = json.loads(run("--json"))
    assert (found["waiting_mails"], found["failed_mails"]) == (1, 1)


def test_mail_once_delivers_what_is_due_and_ends(user: Any, mailoutbox: list[Any]) -> None:
    mail.ask("confirm", user.email)
    mail.ask("password_reset", user.email)
    call_command("accesspass_mail", "--once")
    assert len(mailoutbox) == 2
    call_command("accesspass_mail", "--once")
    assert len(mailoutbox) == 2


@pytest.mark.django_db
def test_status_fails_if_the_engine_cannot_be_reached(tmp_path: Path) -> None:
    with (
        cache_at(f"sqlite:///{tmp_path}/absent/cache.db"),
        pytest.raises(CommandError, match="cannot be reached"),
    ):
        run()


def test_create_makes_what_the_engine_needs(tmp_path: Path) -> None:
    with cache_at(f"sqlite:///{tmp_path}/cache.db"):
        assert "sqlite" in run("--create")
    assert (tmp_path / "cache.db").exists()


def test_schema_is_what_an_administrator_of_postgresql_runs() -> None:
    pytest.importorskip("psycopg")
    with cache_at("postgresql://nobody@127.0.0.1:1/none"):
        assert "CREATE TABLE IF NOT EXISTS" in run("--schema")
    with cache_at(f"memory://{uuid.uuid4()}"):
        assert "needs no schema" in run("--schema")


def test_a_cache_without_an_engine_is_said_to_have_none() -> None:
    alias = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    with (
        override_settings(CACHES={**settings.CACHES, "accesspass": alias}),
        pytest.raises(CommandError, match="has no engine"),
    ):
        run()
