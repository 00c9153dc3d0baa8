"""Management commands."""

from __future__ import annotations

import io
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.db.models.functions import Now
from django.test import override_settings

from accesspass import background, email_keys, mail, nodes, sessions
from accesspass.management.commands import accesspass_status
from accesspass.models import EmailKey, MailRequest, Node, Session, Throttle
from accesspass.testing import age
from tests.sessions import engine_out_of_reach, is_refused, make_node


def run(*args: str, command: str = "accesspass_status") -> str:
    out = io.StringIO()
    call_command(command, *args, stdout=out)
    return out.getvalue()


def cache_at(location: str) -> Any:
    alias = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": location}
    return override_settings(CACHES={**settings.CACHES, "accesspass": alias})


@pytest.mark.django_db(transaction=True)
def test_status_counts_live_sessions_and_pending_publications(make_user: Any) -> None:
    user = make_user()
    with cache_at(f"memory://{uuid.uuid4()}"):
        ended = sessions.start(user)
        sessions.start(user)
        sessions.revoke(ended.session_id)
        found = json.loads(run("--json"))
        assert found["engine"] == "memory"
        assert (found["live_sessions"], found["pending_publications"]) == (1, 0)
        assert f"epoch                  {found['epoch']}" in run()


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
    out = io.StringIO()
    with (
        cache_at(f"sqlite:///{tmp_path}/absent/cache.db"),
        pytest.raises(CommandError, match="The engine cannot be reached") as caught,
    ):
        call_command("accesspass_status", "--json", stdout=out)
    # What is known is said all the same.
    found = json.loads(out.getvalue())
    assert found["problems"] == [str(caught.value)]
    assert (found["epoch"], found["live_sessions"], found["nodes"]) == (None, 0, [])


def test_status_fails_with_a_sentence_if_the_database_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> Any:
        raise OperationalError("connection failed:\n    nobody listens")

    monkeypatch.setattr(nodes, "overview", fail)
    monkeypatch.setattr(accesspass_status, "_sessions", dict)
    monkeypatch.setattr(accesspass_status, "_mails", dict)
    expected = "^The database cannot be used: connection failed: nobody listens$"
    with cache_at(f"memory://{uuid.uuid4()}"), pytest.raises(CommandError, match=expected):
        run()


@pytest.mark.django_db(transaction=True)
def test_status_counts_reused_refresh_tokens_of_the_last_day(make_user: Any) -> None:
    user = make_user()
    with cache_at(f"memory://{uuid.uuid4()}"):
        pairs = [sessions.start(user) for _ in range(3)]
        for pair in pairs[:2]:
            sessions.revoke(pair.session_id, reason="refresh_token_reused")
        age(pairs[0], 90_000)
        sessions.revoke(pairs[2].session_id)
        assert json.loads(run("--json"))["reuse_events_last_day"] == 1


@pytest.mark.django_db(transaction=True)
def test_status_does_not_call_an_expired_or_idle_session_live(make_user: Any) -> None:
    user = make_user()
    with cache_at(f"memory://{uuid.uuid4()}"):
        expired, idle = sessions.start(user, lifetime=60), sessions.start(user)
        age(expired, 61)
        age(idle, 7_300)
        assert json.loads(run("--json"))["live_sessions"] == 1
        with override_settings(ACCESSPASS={"SESSION_IDLE_LIFETIME": 7_200}):
            assert json.loads(run("--json"))["live_sessions"] == 0


@pytest.mark.django_db
def test_status_shows_what_the_nodes_report() -> None:
    make_node(20, host="web-1", pid=1, applied=100, head=100)
    make_node(10, host="web-2", pid=2, applied=93, head=93, fresh=False, staleness=7.26)
    make_node(300, host="web-3", pid=3, epoch="old")
    with cache_at(f"memory://{uuid.uuid4()}"):
        found, shown = json.loads(run("--json")), run()
    assert [(x["host"], x["state"], x["lag"], x["in_epoch"]) for x in found["nodes"]] == [
        ("web-1", "fresh", 0, True),
        ("web-2", "stale", 7, True),
        ("web-3", "gone", 0, False),
    ]
    assert 10 <= found["nodes"][1]["report_age"] < 60
    assert found["problems"] == []
    lines = [line.split() for line in shown.splitlines()]
    assert ["web-2", "2", "stale", "primary", "yes", "93", "7", "7.3", "3", "300"] in [
        line[:10] for line in lines
    ]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("--max-lag=7", None),
        ("--max-lag=6", "Node web-2:2 is 7 writes behind."),
        ("--max-staleness=8", None),
        ("--max-staleness=5", "Node web-2:2 has been stale for 7.2 s."),
        ("--max-queue=1", None),
        ("--max-queue=0", "1 e-mails wait."),
    ],
)
def test_status_fails_beyond_the_limits_that_it_is_given(limit: str, problem: str | None) -> None:
    make_node(20, host="web-1", pid=1, applied=100, head=100)
    make_node(10, host="web-2", pid=2, applied=93, head=93, staleness=7.2)
    make_node(300, host="web-3", pid=3, staleness=100, applied=0, head=10)  # gone
    mail.ask("confirm", "nobody@example.com")
    with cache_at(f"memory://{uuid.uuid4()}"):
        if problem is None:
            run(limit)
            return
        with pytest.raises(CommandError) as caught:
            run(limit)
    assert (str(caught.value), caught.value.returncode) == (problem, 1)


@pytest.mark.django_db
def test_a_node_that_was_never_current_is_too_stale_for_any_limit() -> None:
    make_node(host="web-1", pid=1, staleness=None, fresh=False, head=None, epoch="", applied=0)
    with cache_at(f"memory://{uuid.uuid4()}"), pytest.raises(CommandError, match="never been"):
        run("--max-staleness=60")


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


@pytest.mark.django_db(transaction=True)
def test_purge_publishes_sweeps_and_deletes(make_user: Any) -> None:
    user, other = make_user("bob"), make_user("eve")
    with cache_at(f"memory://{uuid.uuid4()}"):
        old, pair, banned = sessions.start(user), sessions.start(user), sessions.start(other)
        sessions.revoke(old.session_id)
        age(old, 31 * 86_400)
        with engine_out_of_reach():
            sessions.revoke(pair.session_id)
        type(other)._default_manager.filter(pk=other.pk).update(is_active=False)
        said = run(command="accesspass_purge")
        assert said == "1 pending publications, 1 changed users, 1 sessions deleted.\n"
        assert is_refused(banned.access_token)


def test_purge_in_a_loop_does_the_jobs_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(background, "run", done.append)
    run("--loop", command="accesspass_purge")
    # All that deletes, or sees to what others left; what each process says of itself is not for it.
    left_out = {"mail", "report", "queues", "metrics"}
    assert set(done[0]) | left_out == {job.name for job in background.JOBS} | {"audit"}
    assert not left_out & set(done[0])


@pytest.mark.django_db(transaction=True)
def test_purge_deletes_old_emails_keys_counts_and_nodes(user: Any) -> None:
    mail.notify(mail.PASSWORD_CHANGED, user)
    MailRequest.objects.update(sent_at=Now() - timedelta(days=8))
    email_keys.mint(user, email_keys.CONFIRM, user.email)
    EmailKey.objects.update(expires_at=Now() - timedelta(days=31))
    Throttle.objects.take("key", 10, 60)
    Throttle.objects.update(expires_at=Now() - timedelta(seconds=1))
    make_node(7200)
    run(command="accesspass_purge")
    for model in (MailRequest, EmailKey, Throttle, Node):
        assert not model._default_manager.exists(), model


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("spelling", ["BOB@Example.com", "bob@example.com"])
def test_revoke_ends_all_sessions_of_a_user(make_user: Any, spelling: str) -> None:
    user = make_user()
    with cache_at(f"memory://{uuid.uuid4()}"):
        pairs = [sessions.start(user), sessions.start(user)]
        kept = sessions.start(make_user("eve"))
        assert run(spelling, command="accesspass_revoke") == "2 sessions ended.\n"
        assert all(is_refused(pair.access_token) for pair in pairs)
        assert not is_refused(kept.access_token)
        assert run(spelling, command="accesspass_revoke") == "0 sessions ended.\n"


@pytest.mark.django_db(transaction=True)
def test_revoke_says_so_if_the_engine_has_not_acknowledged_it(make_user: Any) -> None:
    user = make_user()
    with cache_at(f"memory://{uuid.uuid4()}"):
        pair = sessions.start(user)
        with engine_out_of_reach(), pytest.raises(CommandError, match="recorded") as caught:
            run(user.email, command="accesspass_revoke")
        assert caught.value.returncode == 3
        assert Session.objects.get(pk=pair.session_id).revoked_reason == "admin"
        assert is_refused(pair.access_token)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["nobody", "", "x" * 300, "a\0b"])
def test_revoke_of_nobody_is_an_error(name: str) -> None:
    with pytest.raises(CommandError, match="no user"):
        run(name, command="accesspass_revoke")
