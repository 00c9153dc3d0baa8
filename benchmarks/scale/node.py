"""A node as the cache's benchmarks have it, which also counts its pulls and what they cost."""

from __future__ import annotations

import threading
import time
from typing import Any

from accesspass.cache import follower
from benchmarks.cache.node import Node, key_of, main, value_of

_DAY = 86_400.0


class CountingNode(Node):
    """Answers say processor time in seconds and how many pulls and rows it was for."""

    def renew(self) -> None:
        """Begin with an empty replica, whose pulls are counted."""
        super().renew()
        self._pulls = self._rows = 0
        changes = self._follower.engine.changes

        def counted(after: int, limit: int) -> Any:
            page = changes(after, limit)
            self._pulls += 1
            self._rows += len(page.changes)
            return page

        self._follower.engine.changes = counted

    def _spent(self) -> dict[str, float]:
        return {"cpu": time.process_time(), "pulls": self._pulls, "rows": self._rows}

    def pulls(self, count: int) -> dict[str, Any]:
        """Pull so often, one after the other."""
        self._follower.pull()
        before, began = self._spent(), time.perf_counter()
        for _ in range(count):
            self._follower.pull()
        return {**self._since(before), "seconds": time.perf_counter() - began}

    def sets(self, first: int, count: int) -> dict[str, Any]:
        """Write so many new keys, one after the other."""
        values = [value_of(number) for number in range(first, first + count)]
        self._cache.set(key_of(first - 1), values[0], _DAY)
        before, began = self._spent(), time.perf_counter()
        for number, value in enumerate(values, first):
            self._cache.set(key_of(number), value, _DAY)
        return {**self._since(before), "seconds": time.perf_counter() - began}

    def follow(
        self, seconds: float, breath: float | None = None, *, told: bool = True
    ) -> dict[str, Any]:
        """Follow for a while and do nothing else.

        ``breath`` is the pause between two pulls; who is not ``told`` of writes pulls after each.
        """
        if not told:
            self._follower.engine.wait = lambda timeout: None
        if breath is not None:
            follower._BREATH = follower._LONGEST_BREATH = breath
        self._cache.get(key_of(0))
        before = self._spent()
        time.sleep(seconds)
        return self._since(before)

    def _since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: now - before[name] for name, now in self._spent().items()}

    def watch(self, every: float | None = None) -> dict[str, Any]:
        """Also say how many pulls and rows there were."""
        before = self._spent()
        return {**super().watch(every), **self._since(before)}

    def toil(self, every: float | None = None) -> dict[str, Any]:
        """Watch, as ``watch`` does, while another thread computes without a pause."""
        stop = threading.Event()

        def compute() -> None:
            while not stop.is_set():
                sum(range(1000))

        thread = threading.Thread(target=compute)
        thread.start()
        try:
            return self.watch(every)
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    main(CountingNode)
