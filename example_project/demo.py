"""The demo: three workers, one user, and what each request costs.

``python example_project/demo.py`` makes a SQLite project in a temporary folder (or in
``ACCESSPASS_DEMO_DIR``, which it keeps), serves it with gunicorn and three workers on a free
port, and talks to it over new connections. Every answer is checked: the exit status is 1 and the
reason is printed as soon as one is not what AccessPass promises. The server then stays until
Ctrl-C, with a page for browsers and with ``DEBUG``, so that the page shows the e-mails.

``--exit`` stops it at once, ``--readme`` also rewrites the block in README.md, ``--page`` does
nothing but serve, ``--settings`` takes another settings module, one with another cache say.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.cookies import SimpleCookie
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
README_BLOCK = re.compile(
    r"(?<=<!-- demo begins -->\n```text\n).*?(?=```\n<!-- demo ends -->)", re.DOTALL
)
WORKERS = 3
PATIENCE = 30.0  # seconds, for anything that is waited for
COOKIE = "refresh"  # REFRESH_COOKIE of the settings
PASSWORD = "correct horse battery staple"  # noqa: S105 - of a user who lives for a second


class DemoFailed(Exception):
    """Something did not happen as promised; the message says what."""


class Answer(NamedTuple):
    """What one request brought back."""

    status: int
    body: dict[str, Any]
    worker: int
    queries: int
    milliseconds: float
    refresh: str | None  # the refresh token, out of its cookie


class Client:
    """Speaks JSON to the server; every request has a connection of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)

    def send(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, str] | None = None,
        token: str | None = None,
        refresh: str | None = None,
    ) -> Answer:
        """Send one request to whichever worker takes it; ``refresh`` goes in its cookie."""
        connection = self._connect()
        try:
            self._request(connection, method, path, body=body, token=token, refresh=refresh)
            return self._answer(connection.getresponse())
        finally:
            connection.close()

    def send_to_all(
        self, method: str, path: str, *, token: str | None = None, gone: int | None = None
    ) -> list[Answer]:
        """Send the same request until each of the workers has answered; return all the answers.

        As many connections as there are workers are opened before the first request is sent: a
        worker that has taken one waits for its request, so that the others take the rest.
        ``gone`` is the process id of a worker that must not answer any more.
        """
        answers: list[Answer] = []
        deadline = time.monotonic() + PATIENCE
        while len({answer.worker for answer in answers}) < WORKERS:
            if time.monotonic() > deadline:
                raise DemoFailed(f"only {len({a.worker for a in answers})} workers have answered")
            if answers:
                time.sleep(0.01)  # a new worker is starting
            connections = [self._connect() for _ in range(WORKERS)]
            try:
                for connection in connections:
                    self._request(connection, method, path, token=token)
                answers += [self._answer(connection.getresponse()) for connection in connections]
            finally:
                for connection in connections:
                    connection.close()
        if gone in {answer.worker for answer in answers}:
            raise DemoFailed(f"worker {gone} was killed, and answered")
        return answers

    def _connect(self) -> HTTPConnection:
        connection = HTTPConnection(*self.address, timeout=PATIENCE)
        connection.connect()
        return connection

    @staticmethod
    def _request(
        connection: HTTPConnection,
        method: str,
        path: str,
        *,
        body: dict[str, str] | None = None,
        token: str | None = None,
        refresh: str | None = None,
    ) -> None:
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if refresh is not None:
            headers["Cookie"] = f"{COOKIE}={refresh}"
            headers["Origin"] = f"http://{connection.host}:{connection.port}"
        if body is None:
            connection.request(method, path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            connection.request(method, path, json.dumps(body), headers)

    @staticmethod
    def _answer(response: HTTPResponse) -> Answer:
        content = response.read()
        try:
            body = json.loads(content) if content else {}
            cookie = SimpleCookie(response.headers.get("Set-Cookie")).get(COOKIE)
            return Answer(
                response.status,
                body,
                int(response.headers["X-Demo-Worker"]),
                int(response.headers["X-Demo-Queries"]),
                int(response.headers["X-Demo-Time"]) / 1000,
                None if cookie is None else cookie.value,
            )
        except (ValueError, TypeError) as error:
            shown = f"{response.status} {content!r:.200}"
            raise DemoFailed(f"not an answer of the example project: {shown}") from error


def tell(line: str) -> None:
    """Print one line at once; end where nobody reads any more, as after ``| head``."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries again at its end
        sys.exit(128 + signal.SIGPIPE)


class Transcript:
    """Prints the table, and remembers it for README.md."""

    LINE = "  {:<41} {:<28} {:>7} {:>10} {:>3}"

    def __init__(self) -> None:
        self.text = ""

    def say(self, line: str = "") -> None:
        """Print one line at once."""
        self.text += line.rstrip() + "\n"
        tell(line.rstrip())

    def head(self) -> None:
        """Print the names of the columns."""
        self.say(self.LINE.format("request", "answer", "worker", "time", "SQL"))

    def row(self, request: str, answer: Answer, meaning: str) -> None:
        """Print one request, its answer and what it cost."""
        took = f"{answer.milliseconds:.2f} ms"
        text = f"{answer.status} {meaning}"
        self.say(self.LINE.format(request, text, answer.worker, took, answer.queries))


def short(token: str) -> str:
    """Return the kind of a token and its end, enough to tell two of them apart."""
    return f"{token[:6]}…{token[-4:]}"


def store() -> str:
    """Return what the settings keep everything in."""
    scheme = os.environ.get("ACCESSPASS_DEMO_STORE", "sqlite").partition(":")[0]
    return {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(scheme, "SQLite and Valkey")


def pair(answer: Answer) -> tuple[str, str]:
    """Return the access token and the refresh token of an answer."""
    if "access_token" not in answer.body or answer.refresh is None:
        raise DemoFailed(f"no tokens in the answer, which has {sorted(answer.body)}")
    return answer.body["access_token"], answer.refresh


def expect(
    answer: Answer, status: int, *, code: str | None = None, queries: int | None = None
) -> None:
    """Raise DemoFailed unless the answer is what was promised."""
    if answer.status != status:
        raise DemoFailed(f"expected {status}, got {answer.status} {answer.body.get('code', '')}")
    if code is not None and answer.body.get("code") != code:
        raise DemoFailed(f"expected the code {code}, got {answer.body.get('code')}")
    if queries is not None and answer.queries != queries:
        raise DemoFailed(f"expected {queries} SQL queries, counted {answer.queries}")


def play(client: Client, out: Transcript) -> None:
    """Act out the whole life of a session, checking every answer.

    Raises:
        DemoFailed: at the first answer that is not what AccessPass promises.
    """
    auth = "/auth/"

    def good_everywhere(token: str, *, gone: int | None = None) -> list[Answer]:
        answers = client.send_to_all("GET", f"{auth}check/", token=token, gone=gone)
        for answer in answers:
            expect(answer, 200, queries=0)
            if answer.body["user"]["username"] != "Ada":
                raise DemoFailed("the token is good for somebody else")
        show(answers, token, "username Ada")
        return answers

    def refused_everywhere(token: str) -> None:
        answers = client.send_to_all("GET", f"{auth}check/", token=token)
        for answer in answers:
            expect(answer, 401, code="invalid_token", queries=0)
        show(answers, token, "invalid_token")

    def show(answers: list[Answer], token: str, meaning: str) -> None:
        first = {answer.worker: answer for answer in reversed(answers)}
        for worker in sorted(first):
            out.row(f"GET {auth}check/ {short(token)}", first[worker], meaning)

    def log_in(name: str) -> tuple[str, str]:
        answer = client.send("POST", f"{auth}login/", body={"username": name, "password": PASSWORD})
        expect(answer, 200)
        access, refresh = pair(answer)
        out.row(f"POST {auth}login/ {name}", answer, f"{short(access)} {short(refresh)}")
        return access, refresh

    out.say("A user registers, and is signed in")
    person = {"username": "Ada", "email": "ada@example.org", "password": PASSWORD}
    answer = client.send("POST", f"{auth}register/", body=person)
    if answer.body.get("code") == "username_taken":
        sys.exit("\nAn earlier demo has left its user there: take an empty store, or --page.")
    expect(answer, 201)
    access, refresh = pair(answer)
    shown = f"{short(access)} {short(refresh)}"
    out.row(f"POST {auth}register/ Ada ada@example.org", answer, shown)
    answer = client.send("GET", "/hello/", token=access)
    expect(answer, 200, queries=0)
    out.row(f"GET /hello/ {short(access)}", answer, json.dumps(answer.body))

    out.say("and logs in on a phone, by e-mail and in another case")
    access, refresh = log_in("ADA@Example.ORG")

    out.say("One worker made the session: all of them know it, without a query")
    workers = {answer.worker for answer in good_everywhere(access)}

    out.say("A token that nobody issued costs no query either")
    forged = access[:-1] + ("A" if access[-1] != "A" else "B")
    answer = client.send("GET", f"{auth}check/", token=forged)
    expect(answer, 401, code="invalid_token", queries=0)
    out.row(f"GET {auth}check/ {short(forged)}", answer, "invalid_token")

    out.say("The refresh token is exchanged for a new pair")
    answer = client.send("POST", f"{auth}refresh/", body={}, refresh=refresh)
    expect(answer, 200)
    used = refresh
    access, refresh = pair(answer)
    shown = f"{short(access)} {short(refresh)}"
    out.row(f"POST {auth}refresh/ {short(used)}", answer, shown)
    good_everywhere(access)

    out.say("Logout is handled by one worker: every worker refuses, at once")
    answer = client.send("POST", f"{auth}logout/", token=access)
    expect(answer, 204)
    out.row(f"POST {auth}logout/ {short(access)}", answer, "")
    refused_everywhere(access)
    answer = client.send("POST", f"{auth}refresh/", body={}, refresh=refresh)
    expect(answer, 401, code="invalid_token")
    out.row(f"POST {auth}refresh/ {short(refresh)}", answer, "invalid_token")

    access, refresh = log_in("ada")
    victim = min(workers)
    os.kill(victim, signal.SIGKILL)
    out.say(f"kill -9 worker {victim}: the session lives, and the new worker knows it")
    good_everywhere(access, gone=victim)


@contextmanager
def server(folder: Path, settings: str) -> Iterator[Client]:
    """Migrate a project in ``folder``, serve it, and stop everything at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    environment = {
        "ACCESSPASS_BASE_URL": f"http://{host}:{port}",
        "DJANGO_DEBUG": "1",
        **os.environ,
        "ACCESSPASS_DEMO_DIR": str(folder),
        "DJANGO_SECRET_KEY": secrets.token_urlsafe(50),
        "DJANGO_SETTINGS_MODULE": settings,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
    }
    migrate = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity=0"]
    log_path = folder / "gunicorn.log"
    with listener, log_path.open("wb") as log:
        done = subprocess.run(migrate, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoFailed(f"the migration failed:\n{done.stderr}")
        command = [sys.executable, "-m", "gunicorn", "--workers", str(WORKERS)]
        command += ["--bind", f"fd://{listener.fileno()}", "--no-control-socket"]
        command += ["--chdir", str(ROOT), "example_project.wsgi:application"]
        gunicorn = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        try:
            client = Client(host, port)
            try:
                client.send_to_all("GET", "/hello/")
            except (OSError, HTTPException, DemoFailed) as error:
                text = log_path.read_text(errors="replace")[-2000:]
                raise DemoFailed(f"the server does not answer: {error}\n{text}") from error
            yield client
        finally:
            stop(gunicorn)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and all of that group."""
    try:
        process.terminate()
        process.wait(timeout=10)
    except BaseException as error:  # a second Ctrl-C too
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


@contextmanager
def demo_folder() -> Iterator[Path]:
    """Give the folder named by the environment, which is kept, or a temporary one."""
    named = os.environ.get("ACCESSPASS_DEMO_DIR")
    if named:
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named).resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="accesspass-demo-") as name:
            yield Path(name)


def write_readme(text: str) -> None:
    """Put the transcript between the markers of README.md."""
    old = README.read_text(encoding="utf-8")
    new, count = README_BLOCK.subn(lambda _: text, old)
    if count != 1:
        raise DemoFailed("README.md has no block for the demo's output")
    README.write_text(new, encoding="utf-8")


def run(*, script: bool, leave: bool, readme: bool, settings: str) -> None:
    """Serve, and act out the script; with ``leave`` stop after it, else wait for Ctrl-C."""
    out = Transcript()
    with demo_folder() as folder, server(folder, settings) as client:
        if script:
            out.say(
                f"Django {version('Django')}, Python {platform.python_version()}, {store()}, "
                f"gunicorn with {WORKERS} workers"
            )
            out.head()
            play(client, out)
            out.say("All as promised.")
            if readme:
                write_readme(out.text)
        if not leave:
            host, port = client.address
            tell(f"\nThe server stays at http://{host}:{port}/ until Ctrl-C.")
            person = f", as ada with the password {PASSWORD!r}" if script else ""
            tell(f"Open it in a browser{person}.")
            signal.pause()


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--exit", action="store_true", help="stop the server after the script")
    parser.add_argument("--page", action="store_true", help="leave the script out, only serve")
    parser.add_argument("--readme", action="store_true", help="rewrite the block in README.md")
    parser.add_argument("--settings", default="example_project.settings", help="settings module")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has an ellipsis
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        run(
            script=not options.page,
            leave=options.exit,
            readme=options.readme,
            settings=options.settings,
        )
    except DemoFailed as failure:
        print(f"\nNot as promised: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
