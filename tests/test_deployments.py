"""The promise under every way of running Django: really started, really stopped.

Each server runs ``tests.deployments``, which is the example project on SQLite, PostgreSQL or
Valkey. Where an application may have threads before workers are forked, it reads from the cache
while it is loaded, so that there is something to inherit.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Answer, Cluster
from tests.servers import (
    Server,
    family,
    free_port,
    make_folder,
    require_postgresql,
    require_valkey,
    shared_postgresql,
    shared_valkey,
    wait_until,
)

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery staple"
STOPS_WITHIN = 3.0
# By themselves, without Django: gunicorn looks once a second whether a gevent worker is to end, and
# Celery takes five seconds.
GEVENT_STOPS_WITHIN = 6.0
CELERY_STOPS_WITHIN = 12.0
WORKERS = 2

# What a process must not say, whoever says it: Python, a library, or our own loggers.
TROUBLE = re.compile(
    r"Traceback|Fatal|Exception|[A-Z]\w*Error\b|ResourceWarning|RuntimeWarning"
    r"|\b(cache|background|session)\.[a-z]"
)

pytestmark = [pytest.mark.fault, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

_numbers = itertools.count()


# What the servers work with --------------------------------------------------------------------


def environment(store: str, folder: Path) -> dict[str, str]:
    """The environment of a deployment; ``store`` says where sessions are kept and shared."""
    made = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DEPLOYMENT_", "DJANGO_", "ACCESSPASS_", "PYTHON", "COV"))
    }
    made |= {
        "ACCESSPASS_DEMO_DIR": str(folder),
        "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
        "DJANGO_SETTINGS_MODULE": "deployed",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PYTHONUNBUFFERED": "1",
    }
    (folder / "deployed.py").write_text("from tests.deployments.settings import *\n")
    if store == "sqlite":
        shutil.copy(migrated_sqlite(), folder / "db.sqlite3")
    else:
        require_postgresql()
        made["DEPLOYMENT_DATABASE"] = new_database()
    if store == "valkey":
        require_valkey()
        made["DEPLOYMENT_CACHE"] = shared_valkey().url(next(_numbers) % 16)
    return made


@functools.cache
def migrated_sqlite() -> Path:
    folder = make_folder()
    migrate({"ACCESSPASS_DEMO_DIR": str(folder)})
    return folder / "db.sqlite3"


@functools.cache
def migrated_postgresql() -> str:
    name = f"migrated_{os.getpid()}"
    migrate({"DEPLOYMENT_DATABASE": shared_postgresql().create_database(name)})
    return name


def new_database() -> str:
    name, template = f"deployed_{os.getpid()}_{next(_numbers)}", migrated_postgresql()
    shared_postgresql().execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return shared_postgresql().url(name)


def migrate(variables: Mapping[str, str]) -> None:
    subprocess.run(
        [sys.executable, ROOT / "manage.py", "migrate", "--verbosity=0"],
        env={**os.environ, **variables, "DJANGO_SETTINGS_MODULE": "tests.deployments.settings"},
        check=True,
        capture_output=True,
    )


def require(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}, which is not installed")


class Deployment(Cluster):
    """The project under some server, and a client for it.

    Args:
        store: ``sqlite``, ``postgresql`` or ``valkey``.
        command: what starts it; ``{port}`` stands for the port.
        workers: how many processes answer.
        variables: of the environment, beside what ``store`` needs.
    """

    def __init__(
        self,
        store: str,
        command: Sequence[str],
        *,
        workers: int = WORKERS,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        Server.__init__(self, make_folder(), free_port())
        self.workers = workers
        self.store = store
        self.environment = {**environment(store, self.folder), **(variables or {})}
        self.popen_options = {"env": self.environment}
        self._command = [word.format(port=self.port) for word in command]

    def command(self) -> list[str]:
        return self._command

    def is_ready(self) -> bool:
        return self.once("GET", "/hello/").status == 401

    def register(self) -> tuple[str, str]:
        """Sign a user up; returns the access token and the user's name."""
        name = f"user{next(_numbers)}"
        body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        answer = self.once("POST", "/auth/register/", body=body)
        assert answer.status == 201, answer
        return answer.body["access_token"], name

    def all_answer(self, path: str, token: str) -> list[Answer]:
        """Ask until each worker has answered, twice as many at once as there are workers."""
        answers: list[Answer] = []
        give_up = time.monotonic() + 30
        while len({answer.worker for answer in answers}) < self.workers:
            assert time.monotonic() < give_up, f"only { ({x.worker for x in answers}) } answer"
            answers += self.at_once(2 * self.workers, "GET", path, token=token)
        return answers

    def ends_quietly(self, within: float = STOPS_WITHIN) -> None:
        """Assert that SIGTERM ends it soon, with all its processes and nothing but its own words.

        Args:
            within: in how many seconds, on a machine that has time for it.

        Raises:
            AssertionError: it does not.
        """
        assert self.process is not None
        within *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        members = family(self.pid)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {within:.1f} s:\n{self.log[-3000:]}")
        status = self.process.returncode
        self.process = None
        said = [line for line in self.log.splitlines() if TROUBLE.search(line)]
        assert said == [], self.log[-5000:]
        assert status in (0, -signal.SIGTERM), (status, self.log[-3000:])
        wait_until(lambda: not any(_runs(member) for member in members), 2)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def play(deployment: Deployment, path: str = "/hello/") -> None:
    """One session, from its beginning to its end, on all workers.

    With SQLite all of them know of it at once, with the others within a second.
    """
    token, name = deployment.register()
    # Each of them joins, if it has not yet; nobody is refused meanwhile.
    answers = deployment.all_answer(path, token)
    assert {(answer.status, answer.body["hello"]) for answer in answers} == {(200, name)}
    on_a_loop = path.startswith("/async")
    if deployment.store == "sqlite" and not on_a_loop:
        assert [answer.queries for answer in answers] == [0] * len(answers)
    wait_until(lambda: sum(x.queries for x in deployment.all_answer(path, token)) == 0, 1)
    answers = [answer for _ in range(5) for answer in deployment.all_answer(path, token)]
    assert {(answer.status, answer.queries) for answer in answers} == {(200, 0)}
    assert len({answer.worker for answer in answers}) == deployment.workers

    answer = deployment.once("POST", "/auth/logout/", token=token, body={})
    acknowledged = time.monotonic()
    assert answer.status == 204, answer
    last_accepted = acknowledged
    while time.monotonic() < acknowledged + (0 if deployment.store == "sqlite" else 1):
        answers = deployment.all_answer(path, token)
        if {answer.status for answer in answers} == {401}:
            break
        last_accepted = time.monotonic()
    assert last_accepted - acknowledged < 1
    answers = [answer for _ in range(3) for answer in deployment.all_answer(path, token)]
    assert {(answer.status, answer.queries) for answer in answers} == {(401, 0)}
    assert {answer.body["code"] for answer in answers} == {"invalid_token"}


# gunicorn --------------------------------------------------------------------------------------


def gunicorn(worker: str, *, preload: bool) -> list[str]:
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind=127.0.0.1:{port}"]
    command += [f"--workers={WORKERS}", f"--worker-class={worker}", f"--chdir={ROOT}"]
    if worker == "gthread":
        command.append("--threads=4")
    if preload:
        command.append("--preload")
    if preload and worker == "gevent":
        command.append("--config=python:tests.deployments.gevent_first")
    return [*command, "tests.deployments.wsgi:application"]


def _gunicorns() -> Iterator[Any]:
    short = {("sync", True, "postgresql"), ("gthread", False, "valkey")}
    for worker, preload, store in itertools.product(
        ("sync", "gthread", "gevent"), (False, True), ("sqlite", "postgresql", "valkey")
    ):
        name = f"{worker}-{'preload' if preload else 'each'}-{store}"
        marks = [] if (worker, preload, store) in short else [pytest.mark.pipeline]
        yield pytest.param(worker, preload, store, id=name, marks=marks)


@pytest.mark.parametrize(("worker", "preload", "store"), list(_gunicorns()))
def test_under_gunicorn_all_workers_agree(worker: str, preload: bool, store: str) -> None:
    require("gunicorn", *(["gevent"] if worker == "gevent" else []))
    # Under gevent, a thread that is there before the fork is there in the child too, where Python
    # has forgotten it: whatever it was started for, its end is not silent.
    reads = {"DEPLOYMENT_READS": "1" if worker != "gevent" else "0"}
    command = gunicorn(worker, preload=preload)
    with Deployment(store, command, variables=reads) as deployment:
        play(deployment)
        play(deployment)
        deployment.ends_quietly(GEVENT_STOPS_WITHIN if worker == "gevent" else STOPS_WITHIN)


@pytest.mark.pipeline
@pytest.mark.parametrize("store", ["sqlite", "postgresql", "valkey"])
def test_greenlets_that_a_fork_has_copied_do_no_harm(store: str) -> None:
    require("gunicorn", "gevent")
    command = gunicorn("gevent", preload=True)
    with Deployment(store, command, variables={"DEPLOYMENT_READS": "1"}) as deployment:
        play(deployment)
        time.sleep(1)  # for those that wait until the next heartbeat
        play(deployment)


# An event loop ---------------------------------------------------------------------------------


def uvicorn() -> list[str]:
    command = [sys.executable, "-m", "uvicorn", f"--workers={WORKERS}", "--port={port}"]
    return [*command, "--lifespan=off", "tests.deployments.asgi:application"]


@pytest.mark.parametrize(
    "store",
    [
        pytest.param("sqlite", marks=pytest.mark.pipeline),
        "postgresql",
        pytest.param("valkey", marks=pytest.mark.pipeline),
    ],
)
def test_under_uvicorn_all_workers_agree_on_the_event_loop_and_in_threads(store: str) -> None:
    require("uvicorn")
    with Deployment(store, uvicorn()) as deployment:
        play(deployment, "/async-hello/")
        play(deployment, "/hello/")
        deployment.ends_quietly()


# uWSGI, whose threads stand still between requests ---------------------------------------------


def uwsgi(*options: str) -> list[str]:
    program = Path(sys.executable).with_name("uwsgi")
    if not program.exists():
        pytest.skip("needs uWSGI beside the Python that runs the tests")
    command = [str(program), "--http-socket=127.0.0.1:{port}", "--master", "--die-on-term"]
    command += [f"--processes={WORKERS}", f"--virtualenv={sys.prefix}", f"--chdir={ROOT}"]
    return [*command, "--need-app", "--module=tests.deployments.wsgi", *options]


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("store", "options"),
    [
        pytest.param("sqlite", [], id="sqlite"),
        pytest.param("postgresql", [], id="postgresql"),
        pytest.param("valkey", [], id="valkey"),
        pytest.param("postgresql", ["--lazy-apps"], id="lazy"),
        pytest.param("postgresql", ["--enable-threads"], id="threads"),
    ],
)
def test_under_uwsgi_reads_keep_a_process_current_whose_threads_stand_still(
    store: str, options: list[str]
) -> None:
    # Without --lazy-apps nothing may start a thread while the application is loaded: uWSGI would
    # fork with Python's own lock held.
    variables = {
        "DEPLOYMENT_READS": "1" if options == ["--lazy-apps"] else "0",
        "DEPLOYMENT_STALENESS": "1",
    }
    with Deployment(store, uwsgi(*options), variables=variables) as deployment:
        play(deployment)
        # Nobody asks for longer than a replica may answer: it catches up when it is asked again.
        alive, _ = deployment.register()
        ended, _ = deployment.register()
        for token in (alive, ended):
            answers = deployment.all_answer("/hello/", token)
            assert {answer.status for answer in answers} == {200}
        answer = deployment.once("POST", "/auth/logout/", token=ended, body={})
        assert answer.status == 204, answer
        time.sleep(1.5)
        for token, status in ((ended, 401), (alive, 200)):
            answers = deployment.all_answer("/hello/", token)
            assert {answer.status for answer in answers} == {status}
        began = time.monotonic()
        answers = [x for _ in range(20) for x in deployment.all_answer("/hello/", alive)]
        took = time.monotonic() - began
        hits = [answer for answer in answers if answer.queries == 0]
        assert len(hits) >= 0.9 * len(answers), (len(hits), len(answers), took)
        deployment.ends_quietly()


# runserver -------------------------------------------------------------------------------------


def runserver() -> list[str]:
    return [sys.executable, str(ROOT / "manage.py"), "runserver", "127.0.0.1:{port}"]


@pytest.mark.pipeline
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_runserver_reloads_and_knows_every_session(store: str) -> None:
    with Deployment(store, runserver(), workers=1) as deployment:
        play(deployment)
        token, name = deployment.register()
        before = deployment.once("GET", "/hello/", token=token)
        settings = deployment.folder / "deployed.py"
        settings.write_text(settings.read_text() + "RELOADED = True\n")
        after = wait_until(lambda: _answer_of_another(deployment, before.worker, token), 20)
        assert (after.status, after.queries, after.body) == (200, 0, {"hello": name})
        play(deployment)
        if store == "postgresql":
            database = deployment.environment["DEPLOYMENT_DATABASE"].rpartition("/")[2]
            # Who follows and who writes; the process before the reload has left nobody.
            assert len(connections(database)) <= 3
        deployment.ends_quietly()


def _answer_of_another(deployment: Deployment, worker: int, token: str) -> Answer | None:
    with contextlib.suppress(OSError):
        answer = deployment.once("GET", "/hello/", token=token)
        if answer.worker != worker:
            return answer
    return None


def connections(database: str) -> list[tuple[Any, ...]]:
    """The caches' connections to a database."""
    return shared_postgresql().execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'accesspass'",
        [database],
    )


# Celery ----------------------------------------------------------------------------------------


class CeleryWorker(Server):
    """Celery with two forked processes."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(make_folder(), 0)
        self.popen_options = {"env": deployment.environment}

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "celery", "--app=tests.deployments.tasks", "worker"]
        command += ["--pool=prefork", f"--concurrency={WORKERS}", "--loglevel=INFO"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [*command, "--hostname=test@localhost"]

    def is_ready(self) -> bool:
        return " ready." in self.log


ASK_CELERY = """
import json, sys
from tests.deployments.tasks import check
for line in sys.stdin:
    token, times = json.loads(line)
    results = [check.delay(token) for _ in range(times)]
    print(json.dumps([result.get(timeout=20, interval=0.01) for result in results]), flush=True)
"""


@pytest.mark.pipeline
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_celerys_forked_workers_agree_with_the_web_server(store: str) -> None:
    require("celery")
    require_valkey()
    variables = {"DEPLOYMENT_BROKER": shared_valkey().url(next(_numbers) % 16)}
    with Deployment(store, gunicorn("sync", preload=False), variables=variables) as deployment:
        with (
            CeleryWorker(deployment) as worker,
            subprocess.Popen(
                [sys.executable, "-c", ASK_CELERY],
                env=deployment.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as asker,
        ):

            def ask(token: str) -> list[dict[str, Any]]:
                assert asker.stdin is not None
                assert asker.stdout is not None
                asker.stdin.write(json.dumps([token, 8]) + "\n")
                asker.stdin.flush()
                answers: list[dict[str, Any]] = json.loads(asker.stdout.readline())
                return answers

            token, _ = deployment.register()
            first = ask(token)
            again = ask(token)
            assert {answer["status"] for answer in first + again} == {200}
            assert len({answer["worker"] for answer in first + again}) == WORKERS
            assert {answer["queries"] for answer in again} == {0}
            answer = deployment.once("POST", "/auth/logout/", token=token, body={})
            assert answer.status == 204
            time.sleep(0 if store == "sqlite" else 1)
            refused = ask(token)
            assert {(x["status"], x["queries"]) for x in refused} == {(401, 0)}
            assert asker.stdin is not None
            asker.stdin.close()
            asker.wait(10)
            Deployment.ends_quietly(worker, CELERY_STOPS_WITHIN)  # type: ignore[arg-type]
        deployment.ends_quietly()


# A fork by the project itself ------------------------------------------------------------------

FORKS = """
import multiprocessing, os, threading, time, sys
import django
django.setup()
from django.core.cache import caches

def status():
    return caches["accesspass"].status()

def child(answers, go):
    began = time.monotonic()
    first = caches["accesspass"].get("before")
    fresh = status()["fresh"]
    took = time.monotonic() - began
    caches["accesspass"].set(f"by-{os.getpid()}", os.getpid())
    go.wait()
    give_up = time.monotonic() + 1
    while caches["accesspass"].get("after") != 2 and time.monotonic() < give_up:
        time.sleep(0.01)
    answers.put((os.getpid(), first, fresh, took, caches["accesspass"].get("after")))

cache = caches["accesspass"]
cache.set("before", 1)
assert cache.get("before") == 1
failures = status()["counters"]["failures"]
context = multiprocessing.get_context("fork")
answers, go = context.Queue(), context.Event()
children = [context.Process(target=child, args=(answers, go)) for _ in range(4)]
for one in children:
    one.start()
time.sleep(0.3)
cache.set("after", 2)
go.set()
told = [answers.get(timeout=10) for _ in children]
for one in children:
    one.join(10)
assert [one.exitcode for one in children] == [0] * 4
for pid, first, fresh, took, after in told:
    assert (first, fresh, after) == (1, True, 2), (first, fresh, after)
    assert took < 1, took
give_up = time.monotonic() + 1
keys = [f"by-{pid}" for pid, *_ in told]
while len(cache.get_many(keys)) < 4 and time.monotonic() < give_up:
    time.sleep(0.01)
assert len(cache.get_many(keys)) == 4
assert status()["counters"]["failures"] == failures, status()
assert status()["counters"]["resyncs"] == 0, status()
print("parent and children agree")
"""


@pytest.mark.parametrize("store", ["sqlite", "postgresql", "valkey"])
def test_after_a_fork_the_child_is_current_at_once_and_the_parent_goes_on(store: str) -> None:
    folder = make_folder()
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        env=environment(store, folder),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("parent and children agree\n", "")


FORK_IN_SECRET = """
import ctypes, os, sys, threading, time
import django
django.setup()
from django.core.cache import caches
cache = caches["accesspass"]
cache.set("key", "parent")  # a connection, and no thread: that might hold the interpreter's lock
assert threading.active_count() == 1
child = ctypes.PyDLL(None).fork()
mine = "child" if child == 0 else "parent"
for number in range(200):
    # A connection that both use would mix up their answers.
    cache.set(mine, number)
    assert cache.get(mine) == number
counters = cache.status()["counters"]
assert counters["failures"] == counters["resyncs"] == 0, counters
if child == 0:
    assert cache.status()["pid"] == os.getpid()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
assert cache.get("child") == 199 or time.sleep(0.5) or cache.get("child") == 199
"""


@pytest.mark.parametrize(
    "store", ["postgresql", pytest.param("valkey", marks=pytest.mark.pipeline)]
)
def test_a_fork_that_python_is_not_told_of_is_noticed_by_the_first_write_too(store: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK_IN_SECRET],
        env=environment(store, make_folder()),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


# The end of the interpreter --------------------------------------------------------------------

# Whoever waited for a heartbeat or for a deadline at the end would wait for long, so that it is
# told from a machine that is merely busy.
SCRIPT = """
import sys, threading, time
import django
from django.conf import settings
settings.CACHES["accesspass"]["OPTIONS"].update(HEARTBEAT=60, MAX_STALENESS=120)
django.setup()
from django.core.cache import caches
cache = caches["accesspass"]
cache._follower.engine.deadline = 60
cache.set("key", 1)
assert cache.get("key") == 1
assert "sqlite" in cache.status()["engine"] or threading.active_count() > 1
for number in range(int(sys.argv[1])):
    cache.set("key", number)  # so that the thread is busy at the end
def ended():
    print(time.monotonic(), flush=True)
"""
ENDINGS = {
    "end": (0, "", "ended()"),
    "exit": (3, "", "ended(); sys.exit(3)"),
    "exception": (1, "RuntimeError: of the script", "ended(); raise RuntimeError('of the script')"),
    "exit_in_a_thread": (0, "", "threading.Thread(target=sys.exit).start(); ended()"),
    "read_in_a_thread": (
        0,
        "",
        # A thread that is no daemon outlives the main one, and reads until then.
        "threading.Thread(target=lambda: [time.sleep(0.1), cache.get('key'), ended()]).start()",
    ),
    "read_at_exit": (0, "", "import atexit; atexit.register(cache.get, 'key'); ended()"),
}


@pytest.mark.parametrize(
    "store",
    [
        pytest.param("sqlite", marks=pytest.mark.pipeline),
        "postgresql",
        pytest.param("valkey", marks=pytest.mark.pipeline),
    ],
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_that_has_read_ends_at_once_and_in_silence(store: str, ending: str) -> None:
    status, last_words, code = ENDINGS[ending]
    variables = environment(store, make_folder())
    for writes in (0, 20):
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT + code, str(writes)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as script:
            said, complaints = script.communicate(timeout=60)
            took = time.monotonic() - float(said)
        assert script.returncode == status, complaints
        if last_words:
            assert complaints.startswith("Traceback"), complaints
            assert complaints.splitlines()[-1] == last_words
            assert complaints.count("Traceback") == 1
        else:
            assert complaints == ""
        assert took < 10, took


# Django's own test runner ----------------------------------------------------------------------


def run_django_tests(*options: str, **variables: str) -> tuple[int, str, str]:
    """Returns the exit status, the name of the project's database, and what was said."""
    folder = make_folder()
    known = {**environment("postgresql", folder), **variables}
    done = subprocess.run(
        [sys.executable, ROOT / "manage.py", "test", "tests.deployments.cases", *options],
        env=known,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, known["DEPLOYMENT_DATABASE"].rpartition("/")[2], done.stdout


@pytest.mark.pipeline
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--parallel=2"], id="parallel"),
        pytest.param(["--parallel=1"], id="serial"),
        pytest.param(["--keepdb"], id="keepdb"),
    ],
)
def test_djangos_runner_makes_clones_and_drops_databases_under_live_followers(
    options: list[str],
) -> None:
    status, database, said = run_django_tests(*options)
    assert status == 0, said
    assert "followers are where they belong" in said
    assert not TROUBLE.search(said), said
    left = shared_postgresql().execute(
        "SELECT datname FROM pg_database WHERE datname LIKE %s", [f"test\\_{database}%"]
    )
    assert left == ([(f"test_{database}",)] if "--keepdb" in options else [])
    wait_until(lambda: connections(database) == [], 2)


@pytest.mark.pipeline
def test_a_follower_that_held_on_would_keep_the_test_database_from_being_dropped() -> None:
    status, _, said = run_django_tests("--parallel=1", DEPLOYMENT_HOLD_ON="1")
    assert status != 0
    assert "is being accessed by other users" in said
