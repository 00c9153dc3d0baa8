"""No token, secret, nonce or password is in anything that somebody else gets to see.

Everything that can be done over HTTP is done, and goes wrong at every statement and every write to
the engine. All secrets that came up on the way are then looked for in log records, reprs, error
pages and reports, admin pages, and in all that the database and the engine hold.
"""

from __future__ import annotations

import base64
import contextlib
import html
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.db import OperationalError, connection
from django.db.models import F
from django.test import Client, override_settings
from django.urls import reverse
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from accesspass import accounts, exceptions, sessions
from accesspass.cache.follower import Follower
from accesspass.models import Session
from accesspass.tokens import Token, TokenType, mint

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORDS = ["canary-right-horse-battery", "canary-wrong-horse-battery"]


class Boom(Exception):
    """Something that nobody expects."""


class Canaries:
    """Every secret that came up, and where any of them was seen."""

    def __init__(self) -> None:
        self.texts = set(PASSWORDS)
        self.nonces: set[str] = set()

    def add_token(self, token: Token) -> Token:
        # The last 40 of 76 characters hold most of the secret, and the mac.
        self.texts |= {token.text[-60:], *spellings(token.secret)}
        return token

    def add_nonces(self) -> None:
        for nonce in Session.objects.exclude(nonce="").values_list("nonce", flat=True):
            self.nonces |= spellings(bytes.fromhex(nonce))

    def seen_in(self, place: object, *, nonces: bool = True) -> list[str]:
        """Which of them stand in a text, in bytes, or in the repr of anything else."""
        text = place.decode("latin-1") if isinstance(place, bytes) else place
        text = text if isinstance(text, str) else repr(text)
        text += html.unescape(text)
        wanted = self.texts | (self.nonces if nonces else set())
        return [secret for secret in wanted if secret in text]


def spellings(secret: bytes) -> set[str]:
    """How bytes look raw, in hexadecimal, in base64, and in a repr."""
    return {
        secret.decode("latin-1"),
        secret.hex(),
        base64.b64encode(secret).decode().rstrip("="),
        base64.urlsafe_b64encode(secret).decode().rstrip("="),
        # Error pages wrap the repr of bytes, so a part of it is looked for.
        repr(secret[:8])[2:-1],
    }


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Canaries:
    made = Canaries()
    for name in ("mint", "derive"):
        real = getattr(sessions, name)
        monkeypatch.setattr(sessions, name, lambda *args, _real=real: made.add_token(_real(*args)))
    return made


@pytest.fixture(autouse=True)
def _short_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the settings, which are most of every report and always the same."""
    monkeypatch.setattr(SafeExceptionReporterFilter, "get_safe_settings", lambda self: {})


class _Recorder(logging.Handler):
    """Everything that any logger says."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        shown = {key: value for key, value in vars(record).items() if key != "exc_info"}
        self.said += [record.getMessage(), repr(shown)]
        if record.exc_info:
            self.said.append("".join(traceback.format_exception(*record.exc_info)))


class _Mail(AdminEmailHandler):
    """The reports that the project's administrators get."""

    def __init__(self) -> None:
        super().__init__(include_html=True)
        self.sent: list[Any] = []

    def send_mail(self, subject: str, message: str, *_: Any, **more: Any) -> None:
        self.sent += [subject, message, more["html_message"]]


def reports(exc_info: Any, request: Any = None) -> list[str]:
    """A traceback, and the error report with the locals of every frame, as text and HTML."""
    reporter = ExceptionReporter(request, *exc_info, is_email=True)
    return [
        "".join(traceback.format_exception(*exc_info)),
        reporter.get_traceback_text(),
        reporter.get_traceback_html(),
    ]


@pytest.fixture
def log() -> Iterator[_Recorder]:
    recorder = _Recorder()
    names = [None, *logging.root.manager.loggerDict]
    before = []
    for logger in map(logging.getLogger, names):
        if logger.name == "django.template":
            continue  # the templates of the error pages look up what is not there
        before.append((logger, logger.level, logger.propagate))
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    logging.root.addHandler(recorder)
    yield recorder
    logging.root.removeHandler(recorder)
    for logger, level, propagate in before:
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def engine_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log.accesspass"
    alias = {"BACKEND": "accesspass.cache.ReplicatedCache", "LOCATION": f"sqlite:///{path}"}
    with override_settings(CACHES={**settings.CACHES, "accesspass": alias}):
        yield path


# What clients do


class Caller:
    """A client, and the tokens that it has at the moment."""

    def __init__(self, name: str) -> None:
        self.client = Client(raise_request_exception=False)
        self.name = name
        self.access = self.refresh = ""

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        headers.setdefault("authorization", f"Bearer {self.access}")
        answer = self.client.post(
            f"/auth/{path}/", body, content_type="application/json", headers=headers
        )
        if answer.status_code in (200, 201):
            self.access, self.refresh = (
                answer.json()[f"{kind}_token"] for kind in ("access", "refresh")
            )
        return answer

    def register(self) -> Any:
        body = {"email": f"{self.name}@example.com", "password": PASSWORDS[0]}
        if get_user_model().USERNAME_FIELD == "username":
            body["username"] = self.name
        return self.post("register", {**body, "password_confirm": PASSWORDS[0]})

    def log_in(self) -> Any:
        return self.post(
            "login", {"username": f"{self.name}@example.com", "password": PASSWORDS[0]}
        )

    def log_in_wrongly(self) -> Any:
        return self.post(
            "login", {"username": f"{self.name}@example.com", "password": PASSWORDS[1]}
        )

    def rotate(self) -> Any:
        return self.post("refresh", {"refresh_token": self.refresh})

    def check(self) -> Any:
        """A miss, so that the database is asked too."""
        token = self.access
        caches["accesspass"].clear()
        return self.client.get("/auth/check/", headers={"authorization": f"Bearer {token}"})

    def visit(self) -> Any:
        """The same in a view of the project's."""
        caches["accesspass"].clear()
        headers = {"authorization": f"Bearer {self.access}"}
        return self.client.get("/protected/", headers=headers)

    def log_out(self) -> Any:
        return self.post("logout", {"refresh_token": self.refresh})


STEPS: list[Callable[[Caller], Any]] = [
    Caller.register,
    Caller.log_in,
    Caller.log_in_wrongly,
    Caller.rotate,
    Caller.check,
    Caller.visit,
    Caller.log_out,
]
# The pipeline tries them all.
SHORT = {Caller.log_in, Caller.rotate}
each_step = pytest.mark.parametrize(
    "step",
    [pytest.param(x, marks=[] if x in SHORT else [pytest.mark.pipeline]) for x in STEPS],
    ids=lambda step: step.__name__,
)


@contextlib.contextmanager
def failing(at: int, error: Exception) -> Iterator[list[int]]:
    """Let the n-th statement, or write to the engine, raise. Gives how many there were."""
    count = [0]

    def next_one() -> None:
        count[0] += 1
        if count[0] == at:
            raise error

    def statement(execute: Any, *args: Any) -> Any:
        next_one()
        return execute(*args)

    real = Follower.write

    def write(*args: Any) -> Any:
        next_one()
        return real(*args)

    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(statement):
        patch.setattr(Follower, "write", write)
        yield count


def everything(caller: Caller) -> list[Any]:
    """All that goes well, and all that is refused; returns the objects that it brought up."""
    answers = [caller.register(), caller.log_in(), caller.log_in_wrongly()]
    old = caller.refresh
    answers += [caller.rotate(), caller.post("refresh", {"refresh_token": old})]
    answers += [caller.check(), caller.visit(), caller.rotate()]
    answers += [caller.post("refresh", {"refresh_token": old})]  # reuse
    answers += [caller.rotate(), caller.log_in(), caller.post("login", {"password": PASSWORDS[0]})]
    answers += [caller.post("refresh", {"refresh_token": caller.access}), caller.log_out()]
    assert [answer.status_code for answer in answers] == [
        *(201, 200, 401, 200, 200, 200, 200, 200),
        *(401, 401, 200, 400, 401, 204),
    ]
    return answers


# Where they are looked for


def database_dump() -> Iterator[tuple[str, str, object]]:
    """Every value of every column of every table."""
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")  # noqa: S608
            columns = [column[0] for column in cursor.description]
            for row in cursor.fetchall():
                for column, value in zip(columns, row, strict=True):
                    yield table, column, bytes(value) if isinstance(value, memoryview) else value


def engine_dump(path: Path) -> bytes:
    return b"".join(found.read_bytes() for found in sorted(path.parent.glob(path.name + "*")))


def admin_pages() -> Iterator[str]:
    model: Any = get_user_model()
    names = {"email": "root@example.com", "password": "x"}
    if model.USERNAME_FIELD == "username":
        names["username"] = "root"
    client = Client()
    client.force_login(
        model._default_manager.create_superuser(**names),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    shown = [x for x in admin.site._registry if x._meta.app_label == "accesspass" or x is model]
    assert Session in shown
    for registered in shown:
        options = registered._meta
        place = f"admin:{options.app_label}_{options.model_name}"
        answers = [client.get(reverse(f"{place}_changelist"))]
        for pk in registered._base_manager.values_list("pk", flat=True):
            answers.append(client.get(reverse(f"{place}_change", args=[pk])))
            answers.append(client.get(reverse(f"{place}_history", args=[pk])))
        for answer in answers:
            assert answer.status_code == 200, answer
            yield answer.content.decode()


def lines_of(report: str, secret: str) -> list[str]:
    return [line for line in report.splitlines() if secret in line]


# The tests


def test_nothing_secret_is_logged_shown_or_stored(
    canaries: Canaries, log: _Recorder, engine_file: Path
) -> None:
    answers = everything(Caller("ann"))
    bob = Caller("bob")
    bob.register()
    bob.rotate()
    canaries.add_nonces()
    assert len(canaries.texts) > 40
    assert canaries.nonces
    # In the row of a session the nonce stands until the grace is over: alone it is worth nothing.
    for table, column, value in database_dump():
        is_nonce = (table, column) == ("accesspass_session", "nonce")
        assert not canaries.seen_in(value, nonces=not is_nonce), (table, column)
    Session.objects.update(rotated_at=F("rotated_at") - sessions.timedelta(seconds=11))
    sessions.purge()
    for table, column, value in database_dump():
        assert not canaries.seen_in(value), (table, column)
    assert not canaries.seen_in(engine_dump(engine_file))
    for page in admin_pages():
        assert not canaries.seen_in(page)
    assert len(log.said) > 10
    for said in log.said:
        assert not canaries.seen_in(said)
    # What the clients were given is where the tokens do stand.
    assert canaries.seen_in(answers[0].content)


def test_nothing_secret_is_in_a_repr(canaries: Canaries, engine_file: Path) -> None:
    caller = Caller("ann")
    caller.register()
    pair = sessions.start(get_user_model()._base_manager.get())
    user, record = sessions.authenticate(pair.access_token)
    row = Session.objects.get(pk=pair.session_id)
    token = canaries.add_token(mint(TokenType.REFRESH, pair.session_id.bytes, 7))
    errors = [error() for error in vars(exceptions).values() if isinstance(error, type)]
    with pytest.raises(exceptions.InvalidToken) as refused:
        sessions.refresh(token.text)
    shown = [pair, user, record, row, token, user.accesspass_account, refused.value, *errors]
    for thing in shown:
        assert not canaries.seen_in(repr(thing))
        assert not canaries.seen_in(str(thing))


@each_step
def test_nothing_secret_is_in_the_report_of_an_error(
    canaries: Canaries, log: _Recorder, engine_file: Path, step: Any
) -> None:
    handler = _Mail()
    logging.getLogger("django.request").addHandler(handler)
    try:
        pages = list(failures(step))
    finally:
        logging.getLogger("django.request").removeHandler(handler)
    assert any(page.status_code == 500 for page in pages)
    canaries.add_nonces()
    assert handler.sent
    leaks = [lines_of(said, x) for said in handler.sent + log.said for x in canaries.seen_in(said)]
    assert leaks == []


@each_step
def test_nothing_secret_is_on_the_error_page_of_a_developer(
    canaries: Canaries, log: _Recorder, engine_file: Path, step: Any
) -> None:
    with override_settings(DEBUG=True):
        pages = [page.content.decode() for page in failures(step) if page.status_code == 500]
    canaries.add_nonces()
    assert pages
    leaks = [lines_of(page, x) for page in pages for x in canaries.seen_in(page)]
    # Django logs every statement then, and one of them stores the nonce.
    leaks += [lines_of(x, y) for x in log.said for y in canaries.seen_in(x, nonces=False)]
    assert leaks == []


def failures(step: Callable[[Caller], Any]) -> Iterator[Any]:
    """Let a step fail at each of its statements and writes; yield the answers."""
    for at in range(1, 100):
        caller = Caller(f"user{at}")
        if step is not Caller.register:
            assert caller.register().status_code == 201
        with failing(at, Boom("in the middle")) as count:
            yield step(caller)
        if count[0] < at:
            assert at > 1
            return
    raise AssertionError("there is no end")


@each_step
def test_nothing_secret_is_logged_when_the_database_or_the_engine_is_down(
    canaries: Canaries, log: _Recorder, engine_file: Path, step: Any
) -> None:
    caches_error = caches["accesspass"].EngineUnavailable("the engine is down")
    for error in (OperationalError("the database is down"), caches_error):
        for at in range(1, 100):
            caller = Caller(f"user{at}{type(error).__name__}".lower())
            if step is not Caller.register:
                caller.register()
            with failing(at, error) as count:
                answer = step(caller)
            assert answer.status_code < 400 or not canaries.seen_in(answer.content)
            if count[0] < at:
                break
    for said in log.said:
        assert not canaries.seen_in(said)


def test_nothing_secret_is_in_the_report_of_an_error_in_a_callers_own_code(
    canaries: Canaries, engine_file: Path
) -> None:
    """The functions themselves hide what they were given, also outside of a request.

    But for a login: what Django's own ``authenticate`` calls, it shows with the password.
    """
    Caller("ann").register()
    user = get_user_model()._base_manager.get()
    pair = sessions.start(user)
    calls: list[Callable[[], Any]] = [
        lambda: sessions.start(user),
        lambda: sessions.refresh(pair.refresh_token),
        lambda: sessions.authenticate(pair.access_token),
        lambda: sessions.logout(refresh_token=pair.refresh_token),
        lambda: accounts.register(email="new@example.com", username="new", password=PASSWORDS[0]),
    ]
    found: list[Any] = []
    for call in calls:
        for at in range(1, 100):
            caches["accesspass"].clear()
            # Refused is a name that is taken by now, or a session that is over.
            refusals = contextlib.suppress(exceptions.AccessPassError)
            with failing(at, Boom("in the middle")) as count, refusals:
                try:
                    call()
                except Boom:
                    kind, error, tb = sys.exc_info()
                    assert tb is not None
                    assert tb.tb_next is not None
                    own = tb.tb_next.tb_next  # without this frame and the lambda's
                    for report in reports((kind, error, own)):
                        found += [lines_of(report, x) for x in canaries.seen_in(report)]
            if count[0] < at:
                break
    assert found == []


def test_a_planted_canary_is_found_wherever_it_is(
    canaries: Canaries, log: _Recorder, engine_file: Path
) -> None:
    caller = Caller("ann")
    caller.register()
    token = canaries.add_token(mint(TokenType.ACCESS, b"\0" * 16, 1))
    logging.getLogger("project").debug("got %s", token.text)
    logging.getLogger("project").debug("got it", extra={"token": token.secret})
    assert len([said for said in log.said if canaries.seen_in(said)]) >= 2
    for column in ("name", "user_agent", "nonce"):
        Session.objects.update(**{column: token.secret.hex()})
        assert [x for x in database_dump() if x[1] == column and canaries.seen_in(x[2])]
    Session.objects.update(name=token.text)
    assert any(canaries.seen_in(page) for page in admin_pages())
    caches["accesspass"].set("planted", token.secret)
    assert canaries.seen_in(engine_dump(engine_file))
    for planted in (token.text, token.secret, PASSWORDS[0], [token.secret], {"x": token.text}):
        try:
            raise Boom
        except Boom:
            plain, text, page = reports(sys.exc_info())
        assert planted
        assert not canaries.seen_in(plain)
        assert canaries.seen_in(text) or canaries.seen_in(page)
