"""Processes that follow one log on one server, as events on a clock that is only a number.

The server is some processors and a queue. A write holds the log's counter until it is committed,
so that writes come one after the other; then the server tells each process that listens, and each
of these pulls: never sooner than a *breath* after its last pull began, as
``accesspass.cache.follower`` does. All times are in seconds.
"""

from __future__ import annotations

import bisect
import collections
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from accesspass.cache.replica import Replica

__all__ = ["Engine", "Pool", "Result", "Setup", "read_through", "simulate"]

# For how many processes it is noted when each write reaches them.
_WATCHED = 16
_CULL_FREQUENCY = 3
_NEVER = 1e12


class Engine(NamedTuple):
    """What things cost on a server and in the processes that follow it.

    ``write``, ``pull``, ``row`` and ``hint`` are the server's processor time for a write, an empty
    pull, each row of one and telling one process; ``own_…`` are the process's. ``hold`` is how
    long a write keeps the next one waiting, 0 where one processor does that by itself; ``cores``
    is how many processors serve.
    """

    cores: int
    write: float
    hold: float
    pull: float
    row: float
    hint: float
    own_pull: float = 0.0
    own_row: float = 0.0
    own_hint: float = 0.0
    own_write: float = 0.0
    #: How much longer than it was asked to a process sleeps.
    oversleep: float = 0.0
    #: From the server's end of telling to the process's beginning to pull, without the network.
    wake: float = 0.0
    #: How much later a process that computes applies what it is told of: a sample of it.
    busy_lags: Sequence[float] = (0.0,)


class Setup(NamedTuple):
    """What is simulated: so many processes, so many writes a second, on an engine.

    ``longest``: to where the breath doubles as long as news comes before it is over. ``polls``: a
    process whose breath has grown is told of no writes; it looks. ``busy``: which share of the
    pulls finds its process computing. ``shared``: whether the processes have no processors but the
    server's. ``regular``: evenly spaced writes, not random ones.
    """

    engine: Engine
    processes: int
    rate: float
    seconds: float
    seed: int = 0
    breath: float = 0.002
    longest: float = 0.010
    polls: bool = False
    heartbeat: float = 0.5
    network: float = 0.0
    busy: float = 0.0
    shared: bool = False
    regular: bool = False


class Result(NamedTuple):
    """What came of it, after the first fifth, in which nothing is counted but ``applied``."""

    arrived: int
    committed: int
    write_delays: Sequence[float]
    lags: Sequence[float]
    pulls: float
    rows: float
    hints: float
    server_cores: float
    own_cpu: float
    #: How far each process had applied the log at the end.
    applied: Sequence[int]
    #: Commits that were more than a tenth of the time old and not applied everywhere.
    behind: int


class Pool:
    """Some processors, and a queue of jobs in the order in which they came."""

    def __init__(self, events: _Events, cores: int) -> None:
        self._events, self._free = events, cores
        self._waiting: collections.deque[tuple[Callable[[], float], Callable[[], None]]]
        self._waiting = collections.deque()
        self.busy = 0.0

    def serve(self, begin: Callable[[], float], done: Callable[[], None]) -> None:
        """Call ``begin``, which says how long it takes, when a processor is free; then ``done``."""
        self._waiting.append((begin, done))
        if self._free:
            self._free -= 1
            self._next()

    def _next(self) -> None:
        begin, done = self._waiting.popleft()
        duration = begin()
        self.busy += duration

        def end() -> None:
            if self._waiting:
                self._next()
            else:
                self._free += 1
            done()

        self._events.after(duration, end)


class _Events:
    """What is to happen, by time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._numbers), call))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until


def simulate(setup: Setup) -> Result:
    """Run a setup once. The same setup, seed included, has the same result."""
    return _Simulation(setup).run()


class _Simulation:
    def __init__(self, setup: Setup) -> None:
        self.setup, self.engine = setup, setup.engine
        self.random = random.Random(setup.seed)
        self.events = _Events()
        self.server = Pool(self.events, setup.engine.cores)
        self.began = setup.seconds / 5
        # When each write was committed, in order; those that wait for the counter, by arrival.
        self.commits: list[float] = []
        self.waiting: collections.deque[float] = collections.deque()
        self.arrived = self.pulls = self.rows = self.hints = 0
        self.own = 0.0
        self.write_delays: list[float] = []
        self.lags: list[float] = []
        self.processes = [_Process(self, number) for number in range(setup.processes)]

    def run(self) -> Result:
        setup = self.setup
        for process in self.processes:
            # They do not go in step.
            self.events.after(self.random.uniform(0, setup.breath), process.pull)
        if setup.rate:
            self._arrive_later()
        self.events.run(self.began)
        committed, arrived, busy = len(self.commits), self.arrived, self.server.busy
        self.pulls = self.rows = self.hints = 0
        self.own = 0.0
        self.write_delays.clear()
        self.lags.clear()
        self.events.run(setup.seconds)
        span, count = setup.seconds - self.began, setup.processes or 1
        due = bisect.bisect(self.commits, setup.seconds * 0.9)
        applied = [process.applied for process in self.processes]
        return Result(
            arrived=self.arrived - arrived,
            committed=len(self.commits) - committed,
            write_delays=self.write_delays,
            lags=self.lags,
            pulls=self.pulls / span / count,
            rows=self.rows / span / count,
            hints=self.hints / span / count,
            server_cores=(self.server.busy - busy) / span,
            own_cpu=self.own / span / count,
            applied=applied,
            behind=max(0, due - min(applied, default=due)),
        )

    # Writes ----------------------------------------------------------------------------------

    def _arrive_later(self) -> None:
        rate = self.setup.rate
        self.events.after(
            1 / rate if self.setup.regular else self.random.expovariate(rate), self._arrive
        )

    def _arrive(self) -> None:
        self._arrive_later()
        self.arrived += 1
        if self.setup.shared:
            self.server.serve(lambda: self.engine.own_write, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self.waiting.append(self.events.now)
        if len(self.waiting) == 1 or not self.engine.hold:
            self._write()

    def _write(self) -> None:
        rest = max(0.0, self.engine.hold - self.engine.write)
        self.server.serve(lambda: self.engine.write, lambda: self.events.after(rest, self._commit))

    def _commit(self) -> None:
        now = self.events.now
        self.commits.append(now)
        self.write_delays.append(now - self.waiting.popleft() + self.setup.network)
        if self.waiting and self.engine.hold:
            self._write()
        for process in self.processes:
            process.tell()


class _Process:
    def __init__(self, all_: _Simulation, number: int) -> None:
        self.all, self.watched = all_, number < _WATCHED
        self.applied = self._seen = self._turn = 0
        self._began = self._ended = 0.0
        self._breath = all_.setup.breath
        self._waits = self._told = self._telling = False

    def tell(self) -> None:
        """Let the server say that there is something new, unless it is about to say so already."""
        if self._telling or self._polls():
            return
        self._telling = True
        self.all.server.serve(self._begin_telling, self._tell_later)

    def _begin_telling(self) -> float:
        self._telling = False
        return self.all.engine.hint

    def _tell_later(self) -> None:
        self.all.events.after(self.all.setup.network / 2 + self.all.engine.wake, self._hear)

    def _hear(self) -> None:
        self.all.hints += 1
        self.all.own += self.all.engine.own_hint
        self._told = True
        if self._waits:
            self._waits = False
            self._pull_later()

    def _polls(self) -> bool:
        return self.all.setup.polls and self._breath > self.all.setup.breath

    def _pull_later(self) -> None:
        """Pull when the breath is over. The next one is longer if news came within a short one."""
        setup, now = self.all.setup, self.all.events.now
        pause = self._began + self._breath - now
        if now < self._ended + setup.breath:
            self._breath = max(self._breath, min(setup.longest, self._breath * 2))
        else:
            self._breath = setup.breath
        self.all.events.after(pause + self.all.engine.oversleep if pause > 0 else 0.0, self.pull)

    def pull(self) -> None:
        """Ask what is new. What the request and its answer cost here is one amount, before it."""
        self._turn += 1
        self._told, self._began = False, self.all.events.now
        self._work(self.all.engine.own_pull, self._send)

    def _work(self, duration: float, done: Callable[[], None]) -> None:
        self.all.own += duration
        if self.all.setup.shared:
            self.all.server.serve(lambda: duration, done)
        else:
            self.all.events.after(duration, done)

    def _send(self) -> None:
        network = self.all.setup.network / 2
        self.all.events.after(
            network, lambda: self.all.server.serve(self._answer, self._receive_later)
        )

    def _answer(self) -> float:
        self._seen = len(self.all.commits)
        return self.all.engine.pull + (self._seen - self.applied) * self.all.engine.row

    def _receive_later(self) -> None:
        delay, setup = self.all.setup.network / 2, self.all.setup
        if setup.busy and self.all.random.random() < setup.busy:
            delay += self.all.random.choice(self.all.engine.busy_lags)
        rows = self._seen - self.applied
        self.all.events.after(
            delay, lambda: self._work(rows * self.all.engine.own_row, self._apply)
        )

    def _apply(self) -> None:
        now, new = self.all.events.now, self.all.commits[self.applied : self._seen]
        self.all.pulls += 1
        self.all.rows += len(new)
        if self.watched:
            self.all.lags.extend(now - committed for committed in new)
        self.applied, self._ended = self._seen, now
        if self._polls() and not new:
            self._breath = self.all.setup.breath
            self.pull()  # once more after it listens again
        elif self._told or self._polls():
            self._pull_later()
        else:
            self._waits = True
            turn = self._turn
            self.all.events.after(self.all.setup.heartbeat, lambda: self._beat(turn))

    def _beat(self, turn: int) -> None:
        if self._waits and turn == self._turn:
            self._waits = False
            self.pull()


def read_through(
    sessions: int, room: int, *, processes: int, requests: float, skew: float, seed: int
) -> float:
    """Return which share of a process's reads it has to ask the database for.

    A replica of ours hears of a refresh of any session in use, and is asked for those whose
    requests come to its process; which these are is no matter of the session.

    Args:
        sessions: how many are in use.
        room: ``MAX_ENTRIES``.
        processes: how many share the requests.
        requests: of each session, on average, between two of its refreshes.
        skew: of Zipf's law, by which some sessions make more requests than others; 0 for none.
        seed: of what is drawn.
    """
    draw, replica, payload = random.Random(seed), Replica("epoch", 0), b"x"
    keys = [b"session:%032x" % number for number in range(sessions)]
    draw.shuffle(keys)
    weights = list(itertools.accumulate((place + 1) ** -skew for place in range(sessions)))
    reads = missed = 0
    rounds = 4
    for seq in range(1, rounds * sessions + 1):
        replica.put(draw.choice(keys), seq, seq, None, payload)
        count = requests / processes
        for _ in range(int(count) + (draw.random() < count % 1)):
            (key,) = draw.choices(keys, cum_weights=weights)
            held = replica.get(key) is not None
            if seq > sessions:
                reads += 1
                missed += not held
            if not held:
                replica.fill(key, seq, 0, _NEVER, payload, marker=False, taken=0.0)
        replica.cull(room, _CULL_FREQUENCY)
    return missed / reads if reads else 0.0
