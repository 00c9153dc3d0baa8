"""Tries the whole path on the live configuration and says in sentences what is wrong.

Nothing is left behind: what is written to tables is rolled back, and what is published to the cache
is over after a minute. Only who listens to the signals of a login that was asked for, as an audit
log does, keeps what it heard. No secret, and no error text that could quote one, is shown.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core import mail as django_mail
from django.core.cache import CacheHandler, InvalidCacheBackendError, caches
from django.core.checks import WARNING
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, router, transaction
from django.db.models.functions import Now
from django.urls import NoReverseMatch

from accesspass import accounts, mail, sessions
from accesspass.checks import has_errors
from accesspass.conf import conf
from accesspass.exceptions import InvalidToken
from accesspass.model_checks import are_included, auth_routes, unapplied_migrations
from accesspass.models import (
    Lease,
    MailRequest,
    Session,
    email_field,
    in_utc,
    is_possible_username,
)

__all__ = ["Finding", "examine"]

_OVERDUE = 60.0  # seconds that a mail, a publication or the housekeeping may be late
_CLOCKS = 60.0  # seconds by which clocks may differ: what the sweep allows for, and keys in mail
_PROBE = 60.0  # seconds that a probe lives in the cache
_PATIENCE = 5.0  # seconds until a probe has to be seen, and for a connection to BASE_URL
_DEADLINE = 30.0  # seconds for each thing that is tried
_SHOWN = 10  # names that collide
_QUOTE_NOTHING = (Error, ImproperlyConfigured, InvalidCacheBackendError, ssl.SSLError)


class Finding(NamedTuple):
    """What was found out about one thing: a sentence, and how to mend it."""

    subject: str
    state: Literal["ok", "warning", "broken", "skipped"]
    says: str
    hint: str = ""


def examine(*, send_to: str = "", try_login: bool = False) -> Iterator[Finding]:
    """Try everything, and yield what is found as it is found.

    With an address in `send_to` an e-mail is sent there. `try_login` inserts a user, begins, uses
    and ends a session of theirs, and deletes both.
    """
    yield from _guarded("settings", _settings)
    if has_errors():
        yield Finding("settings", "skipped", "Nothing else was tried: mend these first.")
        return
    yield from _guarded("routes", _routes)
    reachable = True
    for finding in _guarded("database", _database):
        reachable &= finding.state != "broken"
        yield finding
    yield from _guarded("cache", _cache)
    yield from _guarded("mail", lambda: _mail(send_to))
    if reachable:
        yield from _guarded("mail", _mail_queue)
        yield from _guarded("housekeeping", _housekeeping)
        yield from _guarded("names", _names, deadline=600)  # reads every user
    else:
        yield Finding("housekeeping", "skipped", "Not looked at: it needs the database.")
    yield from _guarded("passwords", _passwords)
    yield from _guarded("links", _links)
    if try_login and reachable:
        yield from _guarded("login", _login)
    else:
        yield Finding("login", "skipped", "No session was begun: --try-login does, if it can.")


def _guarded(
    subject: str, look: Callable[[], Iterator[Finding]], deadline: float | None = None
) -> Iterator[Finding]:
    deadline = _DEADLINE if deadline is None else deadline
    try:
        with _at_most(deadline):
            yield from look()
    except TimeoutError:
        yield Finding(subject, "broken", f"There was no answer within {_seconds(deadline)}.")
    except Exception as error:  # noqa: BLE001 - what others look at is to be looked at all the same
        yield Finding(subject, "broken", f"It fails: {_explained(error)}.")


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so long: a server that hangs is reported to nobody by TCP.

    Signals, by which it is done, reach the main thread alone, which runs commands.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _explained(error: BaseException) -> str:
    """Say what an error is, without the text of those that might quote a secret."""
    kind = type(error).__name__
    text = ""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        number = getattr(error, "smtp_code", None)
        text = error.strerror or ("" if number is None else str(number))
    elif isinstance(error, _QUOTE_NOTHING) or type(error).__module__.startswith("accesspass."):
        text = str(error)
    lines = text.strip().splitlines()
    return f"{kind}: {lines[0].rstrip('.')}" if lines else kind


def _seconds(value: float) -> str:
    if abs(value) < 1:
        return f"{value * 1000:.1f} ms"
    return f"{value:.0f} s" if abs(value) < 600 else f"{value / 60:.0f} minutes"


# The configuration ----------------------------------------------------------------------------


def _settings() -> Iterator[Finding]:
    found = [
        message
        for check in registry.get_checks(include_deployment_checks=True)
        if check.__module__ in ("accesspass.checks", "accesspass.model_checks")
        for message in check(app_configs=None, databases=[_database_alias()])
        if message.level >= WARNING and not message.is_silenced()
    ]
    for message in found:
        state: Literal["warning", "broken"] = "broken" if message.is_serious() else "warning"
        yield Finding("settings", state, f"{message.msg} ({message.id})", message.hint or "")
    if not found:
        yield Finding("settings", "ok", "The system checks, deployment included, find nothing.")


def _routes() -> Iterator[Finding]:
    try:
        routes = auth_routes()
    except NoReverseMatch:
        if are_included():
            says = "They stand in a namespace, or below arguments, and were not resolved."
            yield Finding("routes", "skipped", says)
            return
        yield Finding(
            "routes",
            "warning",
            "The views cannot be reached: no urls include 'accesspass.urls'.",
            "Add path('auth/', include('accesspass.urls')), unless your own views do their work.",
        )
        return
    yield Finding("routes", "ok", f"{len(routes)} routes resolve, such as {routes['login']}.")


def _links() -> Iterator[Finding]:
    """Whether readers of e-mails get to BASE_URL, and for how much longer its certificate is good.

    Who cannot reach it from here may still do so from elsewhere, so that is a warning.
    """
    if not conf.BASE_URL:
        yield Finding("links", "skipped", "There is no BASE_URL, so e-mails have no links.")
        return
    parts = urlsplit(conf.BASE_URL)
    host, port = parts.hostname or "", parts.port or 443
    if parts.scheme != "https":
        yield Finding("links", "skipped", f"BASE_URL is http, on this machine: {conf.BASE_URL}")
        return
    try:
        with (
            socket.create_connection((host, port), _PATIENCE) as connection,
            ssl.create_default_context().wrap_socket(connection, server_hostname=host) as secure,
        ):
            certificate: Any = secure.getpeercert()
    except ssl.SSLCertVerificationError as error:
        yield Finding(
            "links",
            "broken",
            f"Browsers refuse the certificate of {host}: {error.verify_message}.",
            "Renew it, with the certificates between it and one that browsers know.",
        )
        return
    except OSError as error:
        yield Finding(
            "links",
            "warning",
            f"{host} cannot be reached from here on port {port}: {_explained(error)}.",
            "If it can be from where the readers of e-mails are, that is all right.",
        )
        return
    days = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // 86_400)
    yield Finding(
        "links",
        "warning" if days < 7 else "ok",
        f"{host} has a certificate that is good for {days} more days.",
        "Renew it." if days < 7 else "",
    )


def _passwords() -> Iterator[Finding]:
    began = time.perf_counter()
    make_password(secrets.token_urlsafe(16))
    took = time.perf_counter() - began
    slow = took > 1
    yield Finding(
        "passwords",
        "warning" if slow else "ok",
        f"Hashing one takes {_seconds(took)}, at most {conf.HASHING_CONCURRENCY} at a time in each "
        "process.",
        "Nobody waits that long with pleasure: choose cheaper parameters." if slow else "",
    )


# The database ---------------------------------------------------------------------------------


def _database_alias() -> str:
    return router.db_for_write(Session)


def _database() -> Iterator[Finding]:
    alias = _database_alias()
    connection = connections[alias]
    try:
        connection.ensure_connection()
    except Error as error:
        yield Finding(
            "database",
            "broken",
            f"{alias!r} cannot be reached: {_explained(error)}.",
            "Look at DATABASES, and whether the server runs and lets this machine in.",
        )
        return
    missing = unapplied_migrations(alias)
    if missing is None or missing:
        names = "all" if missing is None else ", ".join(missing)
        yield Finding(
            "database",
            "broken",
            f"Migrations of accesspass are to be run: {names}.",
            "Run manage.py migrate.",
        )
        return
    tables = [model._meta.db_table for model in apps.get_app_config("accesspass").get_models()]
    for table in tables:
        try:
            _try_table(alias, table)
        except Error as error:
            yield Finding(
                "database",
                "broken",
                f"{table} cannot be read and written: {_explained(error)}.",
                "Give the role of the project SELECT, INSERT, UPDATE and DELETE on it; if it is "
                "missing, it was dropped since it was migrated.",
            )
            return
    off = _clock(alias) - time.time()
    if abs(off) > _CLOCKS:
        yield Finding(
            "database",
            "broken",
            f"The clock of {connection.display_name} is {_seconds(off)} off this machine's: keys "
            "in e-mails expire too early or too late.",
            "Let both follow a time server.",
        )
        return
    yield Finding(
        "database",
        "ok",
        f"{connection.display_name} answers; {len(tables)} tables can be read and written; its "
        f"clock is {_seconds(abs(off))} off.",
    )


def _try_table(alias: str, table: str) -> None:
    """Read and write no row, which takes the rights and the locks of one that is there."""
    connection = connections[alias]
    name = connection.ops.quote_name(table)
    with transaction.atomic(using=alias), connection.cursor() as cursor:
        description = connection.introspection.get_table_description(cursor, table)
        column = connection.ops.quote_name(description[0].name)
        cursor.execute(f"INSERT INTO {name} SELECT * FROM {name} WHERE 1 = 0")  # noqa: S608
        cursor.execute(f"UPDATE {name} SET {column} = {column} WHERE 1 = 0")  # noqa: S608
        cursor.execute(f"DELETE FROM {name} WHERE 1 = 0")  # noqa: S608
        transaction.set_rollback(True, using=alias)


def _clock(alias: str) -> float:
    """The database's clock, in seconds since 1970, by a row that is rolled back."""
    leases = Lease.objects.using(alias)
    with transaction.atomic(using=alias):
        name = f"doctor {secrets.token_hex(8)}"
        leases.create(name=name, until=Now())
        now = in_utc(leases.get(name=name).until).timestamp()
        transaction.set_rollback(True, using=alias)
    return now


def _names() -> Iterator[Finding]:
    lost = list(accounts.collisions())
    if not lost:
        yield Finding("names", "ok", "No user's name is that of another in another spelling.")
        return
    shown = "; ".join(f"{x.name!r} of {x.user_id} is {x.held_by}'s" for x in lost[:_SHOWN])
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    yield Finding(
        "names",
        "warning",
        f"Names of users are held by others, in another spelling: {shown}{more}.",
        "The first of each two logs in by the exact username alone, and is sent nothing by such a "
        "name. Rename one of them.",
    )


# The cache ------------------------------------------------------------------------------------


def _cache() -> Iterator[Finding]:
    cache: Any = caches[conf.CACHE]
    if not hasattr(cache, "publish"):
        yield from _plain_cache(cache)
        return
    try:
        yield from _replicated_cache(cache)
    except cache.CacheError as error:
        yield Finding(
            "cache",
            "broken",
            f"The {cache.status()['engine']} engine fails: {_explained(error)}.",
            "Sessions go on meanwhile, each request at the cost of a query; what is revoked counts "
            "as pending. Look at LOCATION, and whether its server runs and lets this machine in.",
        )


def _plain_cache(cache: Any) -> Iterator[Finding]:
    kind = type(cache).__name__
    key, value = f"accesspass-doctor-{secrets.token_hex(8)}", secrets.token_hex(8)
    try:
        cache.set(key, value, _PROBE)
        held = cache.get(key) == value
        cache.delete(key)
    except Exception as error:  # noqa: BLE001 - each backend has errors of its own
        yield Finding("cache", "broken", f"The {kind} fails: {_explained(error)}.")
        return
    if held:
        yield Finding("cache", "ok", f"The {kind} keeps what it is given; it has no engine.")
    else:
        yield Finding("cache", "warning", f"The {kind} did not keep what it was given.")


def _replicated_cache(cache: Any) -> Iterator[Finding]:
    """Publish as one node and read as another, which follows the engine by its own connections."""
    mark = cache.mark()
    # Other options make another replica. The one that writes does not join, so that no more than
    # one is in memory.
    alias: dict[str, Any] = settings.CACHES[conf.CACHE]
    options: dict[str, Any] = alias.get("OPTIONS", {})
    other = {**options, "HEARTBEAT": 0.9 * float(options.get("HEARTBEAT", 0.5))}
    reader: Any = CacheHandler({conf.CACHE: {**alias, "OPTIONS": other}})[conf.CACHE]
    try:
        yield from _from_node_to_node(cache, reader, mark)
    finally:
        reader.leave()


def _from_node_to_node(cache: Any, reader: Any, mark: Any) -> Iterator[Finding]:
    key, value = f"accesspass-doctor-{secrets.token_hex(8)}", secrets.token_hex(8)
    began = time.perf_counter()
    reader.get(key)
    joined = time.perf_counter() - began
    state = reader.status()
    engine = state["engine"]
    if not state["fresh"]:
        yield Finding(
            "cache",
            "broken",
            f"A node that joins is not current after {_seconds(joined)}, and so asks the database "
            "at each request.",
            "The log of 'accesspass.cache' says what is in its way.",
        )
        return
    if not cache.publish(key, value, 1, _PROBE, mark):
        mark = reader.mark()  # the engine's history has ended since
        cache.publish(key, value, 1, _PROBE, mark)
    began = time.perf_counter()
    while reader.get(key) != value:
        if time.perf_counter() - began > _PATIENCE:
            yield Finding(
                "cache",
                "broken",
                f"The {engine} engine took what was published, but another node did not hold it "
                f"after {_seconds(_PATIENCE)}.",
                "If 'refused' in its status grows, SIGNING_KEYS differ between nodes.",
            )
            return
        time.sleep(0.0005)
    lag = time.perf_counter() - began
    yield Finding(
        "cache",
        "ok",
        f"The {engine} engine (role: {state['role'] or 'none'}) answers. A node joined in "
        f"{_seconds(joined)} with {state['entries']} entries, and held what another had published "
        f"{_seconds(lag)} after that was acknowledged.",
    )
    off = reader.now() - time.time()
    if abs(off) > _CLOCKS:
        yield Finding(
            "cache",
            "broken",
            f"The clock of the {engine} engine is {_seconds(off)} off this machine's.",
            "Tokens are judged by it, rows by the database's. Let all follow a time server.",
        )
    else:
        yield Finding("cache", "ok", f"The engine's clock is {_seconds(abs(off))} off.")


# E-mail and what is done in the background ----------------------------------------------------


def _mail(send_to: str) -> Iterator[Finding]:
    connection = mail.connection()
    kind = type(connection).__module__
    opened = False
    message = django_mail.EmailMessage(
        "A test of AccessPass",
        "manage.py accesspass_doctor has sent this. There is nothing to do.\n",
        None,
        [send_to],
        headers={"Auto-Submitted": "auto-generated"},
    )
    try:
        try:
            connection.open()
            opened = True
            if send_to:
                connection.send_messages([message])
        finally:
            connection.close()
    except Exception as error:  # noqa: BLE001 - each backend has errors of its own
        what = "lets itself be opened, but does not send" if opened else "cannot be opened"
        yield Finding(
            "mail",
            "broken",
            f"{kind} {what}: {_explained(error)}.",
            "E-mails wait and are tried again for some hours. Look at MAILERS or EMAIL_HOST.",
        )
        return
    sent = f"An e-mail went to {send_to}." if send_to else "Nothing was sent: --send-to does that."
    yield Finding("mail", "ok", f"{kind} was opened. {sent}")


def _mail_queue() -> Iterator[Finding]:
    rows = MailRequest.objects.using(_database_alias()).filter(sent_at=None, failed_at=None)
    late = rows.filter(lease_until__lt=Now() - timedelta(seconds=_OVERDUE)).count()
    if not late:
        yield Finding("mail", "ok", f"{rows.count()} e-mails wait, none too long.")
        return
    who = {
        "thread": "A thread of each serving process does, once it has had a request to the views "
        "here or with a token; where threads do not run, use MAIL_DELIVERY = 'worker'.",
        "worker": "Run manage.py accesspass_mail.",
        "inline": "MAIL_DELIVERY = 'inline' tries each once: run manage.py accesspass_mail --once.",
    }[conf.MAIL_DELIVERY]
    yield Finding(
        "mail",
        "broken",
        f"{late} e-mails should have been sent more than {_seconds(_OVERDUE)} ago, and nobody has "
        "tried.",
        who,
    )


def _housekeeping() -> Iterator[Finding]:
    alias = _database_alias()
    rows = Session.objects.using(alias)
    hint = (
        "The background thread of each serving process does, once it has had a request to the "
        "views here or with a token; where threads do not run, run accesspass_purge --loop."
    )
    late = rows.filter(
        publication_pending=True, revoked_at__lt=Now() - timedelta(seconds=_OVERDUE)
    ).count()
    if late:
        yield Finding(
            "housekeeping",
            "broken",
            f"{late} sessions ended more than {_seconds(_OVERDUE)} ago, and no node was told: "
            "their access tokens may be taken until they expire.",
            hint,
        )
    if not rows.filter(revoked_at=None).exclude(user=None).exists():
        yield Finding("housekeeping", "ok", "There is nothing to keep: no session lives.")
        return
    lease = Lease.objects.using(alias).filter(name="sweep").annotate(now=Now()).first()
    # Whoever does it takes the lease for nearly as long as until the next time.
    idle = math.inf if lease is None else (lease.now - lease.until).total_seconds()
    if idle > _OVERDUE:
        ago = "ever" if lease is None else f"for {_seconds(idle)}"
        yield Finding(
            "housekeeping",
            "warning",
            f"Nobody has looked {ago} for users changed behind the ORM, nor deleted what is over.",
            hint,
        )
    else:
        yield Finding("housekeeping", "ok", "It is being done.")


# A login --------------------------------------------------------------------------------------


def _login() -> Iterator[Finding]:
    """Begin, use, refresh and end a session of a user who is deleted again whatever happens."""
    user, found = _throwaway_user(), []
    try:
        found.append(_session_of(user))
    except Exception as error:  # noqa: BLE001 - the user has to be deleted first
        found.append(Finding("login", "broken", f"It fails: {_explained(error)}."))
    finally:
        name = user.get_username()
        users = type(user)._base_manager.using(router.db_for_write(type(user)))
        try:
            if user.pk is not None and users.filter(pk=user.pk).exists():
                rows = Session.objects.using(_database_alias()).filter(user=user.pk)
                session_ids = list(rows.values_list("pk", flat=True))
                user.delete()
                Session.objects.using(rows.db).filter(pk__in=session_ids).delete()
        except Exception as error:  # noqa: BLE001 - whatever a project's receivers raise
            says = f"The user {name!r} could not be deleted again: {_explained(error)}."
            found.append(Finding("login", "broken", says, "Delete it."))
    return iter(found)


def _session_of(user: Any) -> Finding:
    try:
        user.save(using=router.db_for_write(type(user)))
    except Exception as error:  # noqa: BLE001 - whatever a project's model and receivers raise
        says = f"No {type(user)._meta.label} can be made of a name alone: {_explained(error)}."
        return Finding("login", "skipped", says)
    pair = sessions.start(user)
    began = time.perf_counter()
    sessions.authenticate(pair.access_token)
    took = time.perf_counter() - began
    pair = sessions.refresh(pair.refresh_token)
    sessions.authenticate(pair.access_token)
    acknowledged = sessions.revoke(pair.session_id)
    try:
        sessions.authenticate(pair.access_token)
    except InvalidToken:
        pass
    else:
        return Finding("login", "broken", "The token of a session that was ended is taken still.")
    if not acknowledged:
        says = "A session was ended, and the engine has not acknowledged it: others may not know."
        return Finding("login", "broken", says)
    says = f"A session was begun, used (in {_seconds(took)}), refreshed and ended."
    return Finding("login", "ok", f"{says} It is deleted, with its user.")


def _throwaway_user() -> Any:
    model: Any = get_user_model()
    user = model()
    token = secrets.token_hex(16)
    address = f"doctor-{token}@accesspass.invalid"  # RFC 2606 section 2: nobody's
    field = model._meta.get_field(model.USERNAME_FIELD)
    names = [f"doctor-{token[:10]}", str(secrets.randbelow(10**9)), token]  # a word, number or UUID
    name = next(x for x in names if is_possible_username(x))
    setattr(user, field.name, field.to_python(name))
    if (email := email_field()) is not None:
        setattr(user, email, address)
    user.set_unusable_password()
    return user
