"""The SQLite file: who may read it, and what happens when it is locked, lost or spoilt."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accesspass.cache import ReplicatedCache
from accesspass.cache.engines import sqlite as sqlite_module
from accesspass.cache.engines.base import Change, Page
from accesspass.cache.engines.sqlite import SQLiteEngine
from accesspass.cache.exceptions import EngineUnavailable
from tests.cache.conftest import MakeNode, eventually

MakeSQLite = Callable[..., SQLiteEngine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.accesspass"


@pytest.fixture
def make_engine(path: Path) -> Iterator[MakeSQLite]:
    made = []

    def make(**options: Any) -> SQLiteEngine:
        made.append(SQLiteEngine(str(path), **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def make_node(path: Path, make_node_at: MakeNode) -> MakeNode:
    def make(**options: Any) -> ReplicatedCache:
        made: ReplicatedCache = make_node_at(f"sqlite:///{path}", **options)
        return made

    return make


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}*"))


# Whose it is ---------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone(make_engine: MakeSQLite, path: Path) -> None:
    engine = make_engine()
    before = os.umask(0)
    try:
        engine.write([Change(b"key", b"value")])
    finally:
        os.umask(before)
    assert len(files(path)) == 4  # SQLite's two beside it, and the stamp
    assert {mode(file) for file in files(path)} == {0o600}


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o664, 0o755])
def test_the_file_has_the_mode_of_the_projects_database(
    make_engine: MakeSQLite, path: Path, tmp_path: Path, bits: int
) -> None:
    database = tmp_path / "project.sqlite3"
    database.touch()
    database.chmod(bits)
    make_engine(like=str(database)).write([Change(b"key", b"value")])
    assert {mode(file) for file in files(path)} == {bits & 0o666}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_the_file_has_the_owner_of_the_projects_database(
    make_engine: MakeSQLite, path: Path, tmp_path: Path
) -> None:
    database = tmp_path / "project.sqlite3"
    database.touch()
    os.chown(database, 12345, 23456)
    make_engine(like=str(database)).write([Change(b"key", b"value")])
    assert {(os.stat(file).st_uid, os.stat(file).st_gid) for file in files(path)} == {
        (12345, 23456)
    }


def test_a_database_that_is_not_there_yet_is_no_matter(
    make_engine: MakeSQLite, path: Path, tmp_path: Path
) -> None:
    make_engine(like=str(tmp_path / "none.sqlite3")).write([Change(b"key", b"value")])
    assert mode(path) == 0o600


def test_nothing_is_left_beside_the_file(make_engine: MakeSQLite, path: Path) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    engine.close()
    assert sorted(path.parent.iterdir()) == [path, Path(f"{path}-stamp")]


def test_a_writer_inside_a_transaction_of_the_project_does_not_wait_for_itself(
    tmp_path: Path, path: Path, make_node: MakeNode
) -> None:
    database = sqlite3.connect(tmp_path / "project.sqlite3", isolation_level=None)
    try:
        database.execute("CREATE TABLE t (a)")
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO t VALUES (1)")
        begun = time.monotonic()
        node = make_node()
        node.set("key", 1)
        assert node.get("key") == 1
        assert time.monotonic() - begun < 1
        database.execute("ROLLBACK")
    finally:
        database.close()


# Locked --------------------------------------------------------------------------------------


def test_a_locked_file_refuses_writes_within_the_deadline_and_answers_reads(
    make_node: MakeNode, path: Path
) -> None:
    node = make_node()
    node.set("key", "value")
    assert node.get("key") == "value"
    engine = node._follower.engine
    engine.deadline = 0.3
    engine.close()  # open connections keep the deadline they were made with
    blocker = sqlite3.connect(path, isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        with pytest.raises(EngineUnavailable, match="locked"):
            node.set("key", "new")
        assert 0.2 < time.monotonic() - begun < 1.5
        assert node.get("key") == "value"
        assert node.status()["fresh"]
    finally:
        blocker.close()
    node.set("key", "new")
    assert node.get("key") == "new"


def test_a_file_locked_against_readers_ends_in_misses_and_heals(
    make_node: MakeNode, make_engine: MakeSQLite, path: Path
) -> None:
    node = make_node(MAX_STALENESS=0.5, HEARTBEAT=0.1)
    node.set("key", "value")
    assert node.get("key") == "value"
    node._follower.engine.deadline = 0.1
    node._follower.engine.close()
    blocker = sqlite3.connect(path, isolation_level=None)
    try:
        blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
        blocker.execute("BEGIN IMMEDIATE")
        blocker.execute("UPDATE meta SET seq = seq")
        blocker.execute("COMMIT")  # which keeps the lock, in this mode
        assert node.get("key") == "value"
        time.sleep(0.6)
        assert node.get("key") is None
        assert not node.status()["fresh"]
    finally:
        blocker.close()
    assert eventually(lambda: node.get("key") == "value")


# Lost, replaced, spoilt ----------------------------------------------------------------------


def settle() -> None:
    """Let the time pass after which it is looked whether the path is still the same file."""
    time.sleep(0.55)


@pytest.mark.parametrize("all_of_them", [True, False], ids=["all files", "the file alone"])
def test_a_deleted_file_is_made_again_empty_and_of_another_epoch(
    make_node: MakeNode, path: Path, all_of_them: bool
) -> None:
    node, other = make_node(), make_node()
    node.set_many({f"key-{i}": "x" * 500 for i in range(50)})
    assert other.get("key-1")
    epoch = node.status()["epoch"]
    for file in files(path) if all_of_them else [path]:
        file.unlink()
    settle()
    assert node.get("key-1") is None
    assert other.get("key-1") is None
    assert node.status()["epoch"] == other.status()["epoch"] != epoch
    node.set("new", 1)
    assert other.get("new") == 1
    other.set("new", 2)
    assert node.get("new") == 2
    assert check(path) == "ok"


def check(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        return str(found)
    finally:
        connection.close()


def test_a_write_right_after_the_deletion_goes_to_the_new_file(
    make_node: MakeNode, path: Path
) -> None:
    node = make_node()
    node.set("old", 1)
    assert node.get("old") == 1
    path.unlink()
    node.set("new", 2)
    assert (node.get("new"), node.get("old")) == (2, None)
    assert make_node().get("new") == 2


def test_who_opens_a_file_that_was_just_deleted_leaves_no_empty_one(
    make_engine: MakeSQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    engine.close()
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_check_path", lambda: None)  # it was there when it was looked at
        with pytest.raises(EngineUnavailable):
            engine.changes(0, 0)
    assert not path.exists()
    assert engine.changes(0, 0).head == 0
    engine.close()
    path.unlink()
    assert engine.changes(0, 0).head == 0  # whoever opens a file looks at the path first
    engine.write([Change(b"key", b"value")])


@pytest.mark.parametrize("odd", [b"a ?#%41&mode=memory", b"\xff\xfe", b"./../log/x", b"/x"])
def test_a_file_may_have_any_name(tmp_path: Path, odd: bytes) -> None:
    (tmp_path / "log").mkdir()
    name = os.fsdecode(os.fsencode(tmp_path / "log") + b"/" + odd)
    for path in (name, f"/{name}", os.path.relpath(name)):
        engine = SQLiteEngine(path)
        engine.write([Change(b"key", b"value")])
        assert engine.changes(0, 10).changes
        engine.close()
    assert engine.changes(0, 0).head == 3
    engine.close()
    assert len(list((tmp_path / "log").iterdir())) == 2


def test_the_log_of_a_killed_writer_is_not_read_into_a_new_file(
    make_engine: MakeSQLite, path: Path
) -> None:
    in_child(lambda: fill_and_die(path), killed=True)
    assert len(files(path)) == 4
    path.unlink()
    engine = make_engine()
    assert engine.changes(0, 10).head == 0
    engine.write([Change(b"key", b"value")])
    assert [entry.key for entry in engine.changes(0, 10).changes] == [b"key"]
    assert check(path) == "ok"


def fill_and_die(path: Path) -> bool:
    engine = SQLiteEngine(str(path))
    for number in range(100):
        engine.write([Change(b"old-%d" % number, b"x" * 1000)])
    os.kill(os.getpid(), signal.SIGKILL)
    return False


def test_a_spoilt_file_ends_in_misses_and_says_where_it_is(make_node: MakeNode, path: Path) -> None:
    node = make_node(MAX_STALENESS=0.8, HEARTBEAT=0.1)
    node.set("key", "value")
    assert node.get("key") == "value"
    node._follower.engine.close()
    path.write_bytes(os.urandom(8192))
    assert node.get("key") == "value"
    with pytest.raises(EngineUnavailable, match=r"log\.accesspass: .*not a database"):
        node.set("key", "new")
    time.sleep(0.9)
    assert node.get("key") is None
    path.unlink()
    settle()
    node.set("key", "new")
    assert node.get("key") == "new"


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "not a cache file"), ("PRAGMA user_version = 7", "found 7, need 1")],
    ids=["empty", "of another version"],
)
def test_a_file_of_another_kind_is_left_alone(
    make_engine: MakeSQLite, path: Path, content: str, said: str
) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(content)
    connection.close()
    path.touch()
    before = path.read_bytes()
    with pytest.raises(EngineUnavailable, match=said):
        make_engine().changes(0, 0)
    assert path.read_bytes() == before


def test_a_file_without_its_record_is_out_of_reach_and_no_more(
    make_engine: MakeSQLite, path: Path
) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DELETE FROM meta")
    connection.close()
    for call in (
        lambda: engine.changes(0, 0),
        lambda: engine.write([Change(b"key", b"value")]),
        lambda: engine.changes(0, 10),
    ):
        with pytest.raises(EngineUnavailable, match="gone"):
            call()


def test_a_folder_that_is_not_there_is_out_of_reach(tmp_path: Path) -> None:
    engine = SQLiteEngine(str(tmp_path / "none" / "log"))
    with pytest.raises(EngineUnavailable, match="none"):
        engine.changes(0, 0)


def test_rows_that_no_engine_of_ours_wrote_are_refused_by_the_table(
    make_engine: MakeSQLite, path: Path
) -> None:
    make_engine().write([Change(b"key", b"value")])
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for row in (
            (5, "text", 0, None, b""),
            (5, b"k", "x", None, b""),
            (5, b"k", 0, "soon", b""),
            (5, b"k", 0, None, "text"),
        ):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
    finally:
        connection.close()


# The stamp -----------------------------------------------------------------------------------


def questions(node: ReplicatedCache, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a node asks its file from now on: the number after which it wants to know."""
    asked = []
    changes = node._follower.engine.changes

    def ask(after: int, limit: int) -> Page:
        asked.append(after)
        return changes(after, limit)

    monkeypatch.setattr(node._follower.engine, "changes", ask)
    return asked


def test_a_read_asks_the_file_after_a_write_and_twice_a_second(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "_CHECK_PATH_EVERY", 60.0)
    node, other = make_node(), make_node()
    node.set("key", 1)
    assert [node.get("key"), node.get("key")] == [1, 1]
    asked = questions(node, monkeypatch)
    assert {node.get("key") for _ in range(1000)} == {1}
    assert asked == []
    for number in range(2, 20):
        other.set("key", number)
        assert node.get("key") == number
    assert other.delete("key")
    assert node.get("key") is None
    asked.clear()
    assert {node.get("key") for _ in range(1000)} == {None}
    assert len(asked) <= 1
    monkeypatch.setattr(sqlite_module, "_CHECK_PATH_EVERY", 0.0)
    assert {node.get("key") for _ in range(10)} == {None}
    assert len(asked) >= 10


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_beside_a_question_is_seen_by_the_next_read(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(sqlite_module, "_CHECK_PATH_EVERY", 60.0)
    node, other = make_node(), make_node()
    other.set("key", "old")
    assert node.get("key") == "old"
    engine = node._follower.engine
    changes = engine.changes

    def ask(after: int, limit: int) -> Page:
        monkeypatch.setattr(engine, "changes", changes)
        if when == "before":
            other.set("key", "new")
        page = changes(after, limit)
        if when == "after":
            other.set("key", "new")
        return page

    other.set("another", 1)
    assert node.get("another") == 1  # and the next question tells nothing new
    monkeypatch.setattr(engine, "changes", ask)
    assert node.get("key") == ("old" if when == "after" else "new")
    assert engine.changes == changes
    assert node.get("key") == "new"


def test_who_reads_while_a_write_is_committed_reads_it_afterwards(make_node: MakeNode) -> None:
    node, other = make_node(), make_node()
    other.set("key", "old")
    engine = other._follower.engine
    assert isinstance(engine, SQLiteEngine)
    seen = []

    def before(statement: str) -> None:
        if statement == "COMMIT":
            seen.extend(node.get("key") for _ in range(3))

    engine._pool[-1].set_trace_callback(before)
    other.set("key", "new")
    assert seen == ["old"] * 3
    assert node.get("key") == "new"


def test_a_new_callback_runs_although_nobody_has_written(make_node: MakeNode) -> None:
    node = make_node()
    node.set("key", 1)
    assert [node.get("key"), node.get("key")] == [1, 1]
    ran = []
    node.before_fresh(lambda: ran.append(1))
    assert node.get("key") == 1
    assert ran == [1]


def test_a_commit_whose_writer_died_before_the_stamp_is_found(make_node: MakeNode) -> None:
    node, dying = make_node(), make_node()
    node.set("key", "old")
    assert {node.get("key") for _ in range(3)} == {"old"}
    engine = dying._follower.engine
    assert isinstance(engine, SQLiteEngine)
    dying.get("key")
    assert engine._stamp is not None
    # A mapping of its own in place of the shared one: what is put there nobody sees.
    engine._stamp = engine._stamp._replace(memory=mmap.mmap(-1, 8))
    dying.set("key", "new")
    assert eventually(lambda: node.get("key") == "new", seconds=2.0)


def test_such_a_commit_is_found_while_something_else_asks_the_file(make_node: MakeNode) -> None:
    node, dying = make_node(), make_node()
    node.set("key", "old")
    assert {node.get("key") for _ in range(3)} == {"old"}
    engine, writing = node._follower.engine, dying._follower.engine
    assert isinstance(engine, SQLiteEngine)
    assert isinstance(writing, SQLiteEngine)
    dying.get("key")
    assert writing._stamp is not None
    writing._stamp = writing._stamp._replace(memory=mmap.mmap(-1, 8))
    dying.set("key", "new")
    engine._checked = float("inf")  # as if somebody had always just looked at the paths
    assert eventually(lambda: node.get("key") == "new", seconds=2.0)


def test_who_has_the_file_by_a_link_lags_no_more_than_others(
    make_node_at: MakeNode, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "app").mkdir()
    file, link = tmp_path / "data" / "log", tmp_path / "app" / "log"
    link.symlink_to(file)  # which is not there yet
    node, other = make_node_at(f"sqlite:///{link}"), make_node_at(f"sqlite:///{file}")
    for number in range(10):
        other.set("key", number)
        assert [node.get("key") for _ in range(3)] == [number] * 3
        node.set("key", -number)
        assert [other.get("key") for _ in range(3)] == [-number] * 3
    assert link.is_symlink()
    assert list(link.parent.iterdir()) == [link]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_the_stamp_is_whose_the_log_is(make_engine: MakeSQLite, path: Path) -> None:
    """As after an upgrade, when root runs a command before the servers start."""
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    engine.close()
    os.chown(path, 12345, 23456)
    path.chmod(0o640)
    stamp = Path(f"{path}-stamp")
    stamp.unlink()
    make_engine().changes(0, 0)
    assert (stamp.stat().st_uid, stamp.stat().st_gid, mode(stamp)) == (12345, 23456, 0o640)


def test_without_a_stamp_reads_ask_the_file_and_writes_are_refused(
    make_node: MakeNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a user who may read the files only, or where the disk is full."""
    node, other = make_node(), make_node()
    other.set("key", 0)
    engine = node._follower.engine
    assert isinstance(engine, SQLiteEngine)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(engine, "_map", refuse)
    for number in range(5):
        other.set("key", number)
        assert [node.get("key") for _ in range(3)] == [number] * 3
    assert engine.stamp() is None
    with pytest.raises(EngineUnavailable, match=f"{path}: .*Permission denied: '{path}-stamp'"):
        node.set("key", "untold")
    assert other.get("key") == 4


def test_a_stamp_for_which_there_is_no_room_leaves_nothing_behind(
    make_engine: MakeSQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    Path(f"{path}-stamp").unlink()

    def refuse(handle: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(EngineUnavailable, match="No space left on device"):
        engine.write([Change(b"key", b"value")])
    assert engine.changes(0, 0).head == 1
    assert len(os.listdir("/proc/self/fd")) <= len(before)
    assert not list(path.parent.glob(".accesspass-*"))
    monkeypatch.undo()
    engine.write([Change(b"key", b"value")])


def test_who_locks_the_folder_stops_nobody_for_longer_than_the_deadline(
    make_engine: MakeSQLite, path: Path
) -> None:
    make_engine().write([Change(b"key", b"value")])
    lock = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newcomer = make_engine(deadline=0.2)
        newcomer.write([Change(b"key", b"value")])  # nothing has to be made
        Path(f"{path}-stamp").unlink()
        began = time.monotonic()
        assert newcomer.changes(0, 0).head == 2
        with pytest.raises(EngineUnavailable, match="somebody locks it"):
            newcomer.write([Change(b"key", b"value")])
        assert time.monotonic() - began < 2.0
    finally:
        os.close(lock)
    newcomer.write([Change(b"key", b"value")])
    assert newcomer.stamp() is not None


def test_a_child_that_is_forked_meanwhile_does_not_keep_the_folder_locked(
    make_engine: MakeSQLite, path: Path, tmp_path: Path
) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    made, over = tmp_path / "made", tmp_path / "over"

    def child() -> bool:
        made.touch()
        return eventually(over.exists, seconds=10.0)

    inside, go_on = threading.Event(), threading.Event()

    def lock() -> None:
        with sqlite_module._locked(str(path.parent), 2.0):
            inside.set()
            go_on.wait(10.0)

    locking = threading.Thread(target=lock)
    locking.start()
    assert inside.wait(10.0)
    forking = threading.Thread(target=in_child, args=(child,))
    forking.start()
    assert eventually(made.exists, seconds=10.0)
    go_on.set()
    locking.join()
    Path(f"{path}-stamp").unlink()
    try:
        make_engine(deadline=0.5).write([Change(b"key", b"value")])
    finally:
        over.touch()
        forking.join()


def test_what_is_closed_holds_neither_files_nor_memory(make_engine: MakeSQLite, path: Path) -> None:
    def held() -> list[str]:
        names = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        with open("/proc/self/maps") as maps:
            return [line for line in [*names, *maps] if str(path) in line]

    engine = make_engine()
    for _ in range(2):
        engine.write([Change(b"key", b"value")])
        assert engine.changes(0, 0).head > 0
        assert held()
        engine.close()
        assert held() == []
        assert engine.stamp() is None


def test_a_stamp_that_is_lost_or_spoilt_is_made_again(make_node: MakeNode, path: Path) -> None:
    stamp = Path(f"{path}-stamp")
    stamp.write_bytes(b"odd")  # as by hand
    node, other = make_node(), make_node()
    node.set("key", 1)
    assert other.get("key") == 1
    assert len(stamp.read_bytes()) == 8
    for number in range(3):
        stamp.unlink()
        node.set("key", number)  # the writer is the first to see it
        assert stamp.exists()
        assert eventually(lambda number=number: other.get("key") == number, seconds=2.0)
    seen = [stamp.read_bytes()]
    for number in range(10):
        other.set("key", number)
        assert node.get("key") == number
        seen.append(stamp.read_bytes())
    assert len(set(seen)) == 11


def test_a_write_that_fails_leaves_the_stamp(make_engine: MakeSQLite, path: Path) -> None:
    engine = make_engine()
    engine.write([Change(b"key", b"value")])
    engine.changes(0, 0)
    before = engine.stamp()
    assert before == Path(f"{path}-stamp").read_bytes()
    with pytest.raises(EngineUnavailable):
        engine.write([Change(b"key", "text")])  # type: ignore[arg-type]
    assert Path(f"{path}-stamp").read_bytes() == before
    engine.write([Change(b"key", b"value")])
    assert Path(f"{path}-stamp").read_bytes() != before


# Processes -----------------------------------------------------------------------------------


def in_child(claim: Callable[[], bool], *, killed: bool = False) -> None:
    run_children([claim], killed=killed)


def run_children(claims: list[Callable[[], bool]], *, killed: bool = False) -> None:
    """Fork once for each claim, all at once, and fail if one does not hold."""
    children = []
    go_reader, go_writer = os.pipe()
    for claim in claims:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                os.close(go_writer)
                os.read(go_reader, 1)  # until the parent closes it
                assert claim()
                os.write(writer, b"ok")
            except BaseException:  # noqa: BLE001 - it is told to the parent
                os.write(writer, traceback.format_exc()[-3000:].encode())
            finally:
                os._exit(0)
        os.close(writer)
        children.append((pid, reader))
    os.close(go_reader)
    os.close(go_writer)
    said = []
    for pid, reader in children:
        with os.fdopen(reader, "rb") as pipe:
            said.append(pipe.read().decode())
        os.waitpid(pid, 0)
    assert set(said) == ({""} if killed else {"ok"}), said


def test_twenty_processes_that_start_together_share_one_file(path: Path) -> None:
    def work(number: int) -> bool:
        engine = SQLiteEngine(str(path), deadline=10.0)
        written = engine.write([Change(b"key-%d" % number, b"value")])
        return engine.changes(0, 0).epoch == written.epoch

    run_children([lambda number=number: work(number) for number in range(20)])  # type: ignore[misc]
    engine = SQLiteEngine(str(path))
    page = engine.changes(0, 100)
    assert sorted(entry.key for entry in page.changes) == sorted(b"key-%d" % n for n in range(20))
    assert page.head == 20
    engine.close()
    assert sorted(path.parent.iterdir()) == [path, Path(f"{path}-stamp")]


def test_a_child_opens_the_file_for_itself(make_node: MakeNode) -> None:
    node = make_node()
    node.set("key", 1)
    assert node.get("key") == 1
    engine = node._follower.engine
    assert isinstance(engine, SQLiteEngine)
    assert engine._pool

    def child() -> bool:
        assert (engine._pool, engine._live, engine._inherited) == ([], set(), [])
        assert node.get("key") == 1
        node.set("key", 2)
        return bool(node.get("key") == 2)

    in_child(child)
    assert node.get("key") == 2
    node.set("key", 3)
    assert node.get("key") == 3


def test_what_a_child_writes_is_not_lost_when_its_parent_lets_go_of_the_file(
    make_engine: MakeSQLite, path: Path, tmp_path: Path
) -> None:
    engine = make_engine()
    engine.write([Change(b"parent", b"v")])
    child_wrote, parent_let_go = tmp_path / "1", tmp_path / "2"

    def let_go() -> None:
        assert eventually(child_wrote.exists)
        engine.close()
        # The last process that closes a file deletes its log, if it believes to be the last.
        visitor = SQLiteEngine(str(path))
        assert visitor.read(b"child-1") is not None
        visitor.close()
        parent_let_go.touch()

    def child() -> bool:
        engine.write([Change(b"child-1", b"v")])
        child_wrote.touch()
        assert eventually(parent_let_go.exists)
        engine.write([Change(b"child-2", b"v")])
        return True

    thread = threading.Thread(target=let_go)
    thread.start()
    in_child(child)
    thread.join()
    assert [entry.key for entry in engine.changes(0, 10).changes] == [
        b"parent",
        b"child-1",
        b"child-2",
    ]


def test_a_fork_waits_for_the_connections_in_use(make_engine: MakeSQLite) -> None:
    engine = make_engine()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            engine.changes(0, 10)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            in_child(lambda: engine._live == set() and engine.changes(0, 0).head == 0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_one_busy_writer_does_not_shut_out_the_others(path: Path, tmp_path: Path) -> None:
    """Each gets its share, however slow the machine is; SQLite's own waiting starves some."""

    def work() -> bool:
        engine = SQLiteEngine(str(path), deadline=10.0)
        end, writes = time.monotonic() + 1.5, 0
        while time.monotonic() < end:
            engine.write([Change(b"%d" % os.getpid(), b"v" * 200)])
            writes += 1
        (tmp_path / f"{os.getpid()}.writes").write_text(str(writes))
        return True

    run_children([work] * 4)
    shares = [int(file.read_text()) for file in tmp_path.glob("*.writes")]
    assert len(shares) == 4
    assert max(shares) <= 4 * min(shares), shares


def test_children_forked_in_the_middle_of_writes_work(make_node: MakeNode) -> None:
    node = make_node()
    node.set("n", 0)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            node.incr("n")
            node.get("n")

    thread = threading.Thread(target=busy)
    thread.start()
    try:

        def child() -> bool:
            assert isinstance(node.get("n"), int)
            node.incr("n")
            return True

        for _ in range(5):
            in_child(child)
    finally:
        stop.set()
        thread.join()
    assert node.get("n") > 5


CUT_SHORT = """
import os, sys
from accesspass.cache.engines.base import Change
from accesspass.cache.engines.sqlite import SQLiteEngine
engine = SQLiteEngine(sys.argv[1])
engine.write([Change(b"key", b"value")])
engine.changes(0, 10)
os.truncate(sys.argv[1] + sys.argv[2], 0)
engine.changes(0, 10)
engine.stamp()
"""


@pytest.mark.parametrize("suffix", ["-shm", "-stamp"])
def test_a_file_that_is_cut_short_ends_who_looks_at_its_memory(path: Path, suffix: str) -> None:
    """As the page of failures says. SQLite's own file is no better."""
    command = [sys.executable, "-c", CUT_SHORT, str(path), suffix]
    assert subprocess.run(command).returncode == -signal.SIGBUS


WRITER = """
import sys
from accesspass.cache.engines import sqlite as sqlite_module
from accesspass.cache.engines.base import Change, Page
from accesspass.cache.engines.sqlite import SQLiteEngine
engine = SQLiteEngine(sys.argv[1])
number = 0
while True:
    number += 1
    engine.write([Change(b"key-%d" % number, b"v" * 200)])
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_killed_writer(
    make_engine: MakeSQLite, path: Path
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    acknowledged = 0
    while acknowledged < 30:
        acknowledged = int(writer.stdout.readline())
    writer.kill()
    rest = writer.communicate()[0].split()
    acknowledged = int(rest[-1]) if rest and rest[-1].isdigit() else acknowledged
    page = make_engine().changes(0, 10_000)
    numbers = [int(entry.key.removeprefix(b"key-")) for entry in page.changes]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= acknowledged
    assert check(path) == "ok"


NODE = """
import json, sys
from django.conf import settings
settings.configure(SECRET_KEY="cache-tests")
from accesspass.cache import ReplicatedCache
cache = ReplicatedCache(sys.argv[1], {})
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(getattr(cache, name)(*arguments)), flush=True)
"""


def test_processes_see_each_others_writes_at_once(path: Path, make_node: MakeNode) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NODE, f"sqlite:///{path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]

    def ask(number: int, *call: Any) -> Any:
        process = processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    here = make_node()
    for turn in range(20):
        ask(turn % 2, "set", "key", turn)
        assert ask(1 - turn % 2, "get", "key") == turn
        assert here.get("key") == turn
    assert here.publish("session", "live", 1, 60, here.mark())
    assert ask(0, "get", "session") == ask(1, "get", "session") == "live"
    assert ask(0, "publish", "session", "dead", 2, 60) is True
    assert (ask(1, "get", "session"), here.get("session")) == ("dead", "dead")
    processes[0].kill()
    assert ask(1, "add", "key", 0) is False
    assert ask(1, "incr", "key") == here.get("key") == 20
    for process in processes:
        process.kill()
        process.communicate()


def test_closed_connections_are_closed(make_engine: MakeSQLite) -> None:
    engine = make_engine()
    threads = [threading.Thread(target=lambda: engine.changes(0, 0)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (connection, *_) = engine._pool
    engine.close()
    assert engine._pool == []
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")
    assert engine.changes(0, 0).head == 0


def test_a_child_that_python_was_not_told_of_can_open_and_fork_again(
    make_engine: MakeSQLite,
) -> None:
    engine = make_engine()

    def child() -> bool:
        sqlite_module._after_fork_in_child()  # as a server does that forks by itself
        engine.forget_connections()
        engine.write([Change(b"child", b"v")])
        in_child(lambda: engine.read(b"child") is not None)
        return engine.read(b"child") is not None

    in_child(child)
    assert engine.read(b"child") is not None
