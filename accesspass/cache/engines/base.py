"""What every engine is: one ordered log of the latest version of each key.

An engine keeps, for each key, its latest version (a deletion is a version too) and one record
``(epoch, head, floor)``. Each write gets a *sequence number* greater than every earlier one, in
the order of commit. A replica joins, follows, catches up and heals with the same call:
``changes(after, limit)``.

The *epoch* names one unbroken history. It changes when history was lost or thrown away, and tells
every replica to start again from nothing. The *floor* is the greatest number among the versions
that were purged: a replica that stopped below it has missed deletions and starts again too.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

__all__ = ["Change", "Condition", "Engine", "Entry", "Page", "Written", "is_live"]


class Entry(NamedTuple):
    """The latest version of one key, as the engine keeps it.

    ``expires`` is in seconds of the engine's clock, ``None`` for never; of a deletion it is the
    time of the deletion. ``value`` is sealed bytes (see ``codec.Seal``), ``None`` for a deletion.
    ``revision`` is 0 but for what was published.
    """

    key: bytes
    seq: int
    revision: int
    expires: float | None
    value: bytes | None


class Page(NamedTuple):
    """An atomic read of the log: the versions after a number, in order, at most ``limit``.

    ``head`` is the number of the last write, ``now`` the engine's clock in seconds since 1970, and
    ``more`` tells that there are versions after the last of ``changes``.
    """

    epoch: str
    head: int
    floor: int
    now: float
    changes: Sequence[Entry]
    more: bool


class Change(NamedTuple):
    """One write, before it has a number. ``value=None`` deletes; ``expires`` as in ``Entry``."""

    key: bytes
    value: bytes | None
    expires: float | None = None
    revision: int = 0


class Condition(NamedTuple):
    """When a single change may happen; what is left at its default is not asked.

    - ``absent``: only if the key is not held (never written, deleted or expired).
    - ``seq``: only if the latest version of the key has this number.
    - ``newer``: only if the change's revision is greater than that of the latest version, expired
      and deleted versions included.
    - ``epoch``: only in this epoch.
    """

    absent: bool = False
    seq: int | None = None
    newer: bool = False
    epoch: str | None = None

    def allows(self, revision: int, current: Entry | None, epoch: str, now: float) -> bool:
        """Whether a change of ``revision`` may replace ``current`` in ``epoch`` at ``now``."""
        if self.epoch is not None and self.epoch != epoch:
            return False
        if self.absent and is_live(current, now):
            return False
        if self.seq is not None and (0 if current is None else current.seq) != self.seq:
            return False
        return not (self.newer and current is not None and current.revision >= revision)


def is_live(entry: Entry | None, now: float) -> bool:
    """Whether an entry is held at ``now``: written, not deleted, not expired."""
    return (
        entry is not None
        and entry.value is not None
        and (entry.expires is None or entry.expires > now)
    )


class Written(NamedTuple):
    """What a write did.

    ``done`` is false if the condition refused it; ``current`` is then the version that stood in
    the way, ``None`` if the key was never written. The changes of one write have consecutive
    numbers that end in ``seq``. ``held`` counts the keys that were held just before.
    """

    epoch: str
    seq: int
    done: bool
    held: int
    current: Entry | None


class Engine(abc.ABC):
    """Where the log lives. Every call either answers within ``deadline`` seconds or raises.

    ``EngineUnavailable`` means that nothing happened, ``EngineUncertain`` that a write may have.
    """

    #: What ``status`` calls it.
    name: ClassVar[str]
    #: True if asking for changes costs microseconds, so that it is done at each read instead of
    #: by a thread.
    sync_on_read: ClassVar[bool] = False
    #: How many entries a page holds at most.
    page_size: ClassVar[int] = 10_000

    def __init__(self, *, deadline: float = 2.0) -> None:
        self.deadline = deadline
        #: What the server said it was when it was last asked for changes: "primary", or "replica",
        #: which answers nothing here; ``None`` before that.
        self.role: str | None = None

    @abc.abstractmethod
    def changes(self, after: int, limit: int) -> Page:
        """Read, atomically, the versions numbered above ``after``. ``limit=0`` reads none."""

    @abc.abstractmethod
    def read(self, key: bytes) -> Entry | None:
        """Read the latest version of one key, deleted and expired ones too."""

    @abc.abstractmethod
    def write(self, changes: Sequence[Change], condition: Condition | None = None) -> Written:
        """Write all changes, of as many different keys, atomically; a condition goes with one."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Throw everything away and begin a new epoch."""

    @abc.abstractmethod
    def purge(self, before: float, limit: int) -> int:
        """Forget at most ``limit`` versions that died before ``before`` (engine's clock).

        The floor is raised in the same transaction. Returns how many were forgotten.
        """

    def schema(self) -> str:
        """Return what an administrator runs where the project's role may not make tables."""
        return ""

    def ask_ahead(self, after: int, limit: int) -> Callable[[], Page] | None:
        """Begin ``changes`` without waiting for the answer.

        Returns what waits for it and answers as ``changes`` does, as of some time after this call;
        ``None`` if nothing was begun. It need not be called.
        """
        return None

    def stamp(self) -> bytes | None:
        """Return what is another one after each acknowledged write, without I/O.

        While it is the one that was there before ``changes`` was asked, there is nothing new.
        ``None`` says that ``changes`` has to be asked. Only engines with ``sync_on_read`` need it.
        """
        return None

    def wait(self, timeout: float) -> None:
        """Sleep until there may be something new, at most ``timeout`` seconds.

        Only the follower's thread calls it, and only of engines without ``sync_on_read``.
        """
        raise NotImplementedError

    def drop_hints(self) -> None:
        """Let ``wait`` return for what comes from now on; the follower's thread pulls the rest."""

    def forget_connections(self) -> None:
        """Drop everything inherited through a fork without touching it. No I/O."""

    def close(self) -> None:
        """Give back what is held open. The engine can be used again afterwards."""
