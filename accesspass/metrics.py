"""Metrics and traces. They are counted always, and handed to Prometheus or OpenTelemetry if
``ACCESSPASS["TELEMETRY"]`` names them; nothing of either is imported before.

An authorised request pays one step of an ``itertools.count`` and nothing else: no lock, no I/O, no
library. What it counts stays in its process until somebody asks: OpenTelemetry's reader does,
through observable instruments, and for Prometheus `flush` brings what has been added since the last
time into prometheus_client's own objects. Those write to the files of its multiprocess mode, which
knows no custom collectors, so that one scrape tells of all workers.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured

from accesspass import __version__
from accesspass.conf import Conf, conf
from accesspass.exceptions import AccessPassError, InvalidToken

__all__ = [
    "CHECKS",
    "HASHES",
    "HASHING",
    "HASH_WAIT",
    "MAIL",
    "MAILS",
    "MAILS_GIVEN_UP",
    "MAILS_WAITING",
    "METRICS",
    "PUBLISH",
    "READ_THROUGH",
    "REUSES",
    "SESSIONS_PENDING",
    "Counter",
    "Duration",
    "Gauge",
    "flush",
    "is_on",
    "reading_through",
    "switch_on",
]

logger = logging.getLogger("accesspass.metrics")


class Counter:
    """How often something has happened in this process, by its outcome.

    Steps of ``itertools.count`` are counted, because one is a single call into C that no thread can
    interrupt. ``x += 1`` reads, adds and writes, and may lose what another thread adds in between;
    a lock would make requests wait for each other. Such a count is read only by stepping it, so
    the steps of the readers are taken off again.
    """

    def __init__(self, name: str, help: str, outcomes: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help
        self.outcomes = tuple(outcomes)
        self._steps = {x: itertools.count().__next__ for x in self.outcomes or ("",)}
        self._read = dict.fromkeys(self._steps, 0)
        METRICS.append(self)

    def of(self, outcome: str = "") -> Callable[[], int]:
        """Return what counts one when it is called."""
        return self._steps[outcome]

    def count(self, outcome: str = "") -> None:
        self._steps[outcome]()

    def totals(self) -> dict[str, float]:
        """Return what was counted in this process, by outcome."""
        found: dict[str, float] = {}
        with _reading:
            for outcome, step in self._steps.items():
                found[outcome] = step() - self._read[outcome]
                self._read[outcome] += 1
        return found

    def begin(self) -> None:
        """In the child of a fork: what the parent has counted is the parent's."""
        for outcome, step in self._steps.items():
            self._read[outcome] = step() + 1


class _CacheCounter(Counter):
    """One of those that `status()` of the cache has: the name of each outcome's there."""

    def __init__(self, name: str, help: str, of: str | Mapping[str, str]) -> None:
        self._of = {"": of} if isinstance(of, str) else of
        self._before: dict[str, float] = {}
        super().__init__(name, help, () if isinstance(of, str) else tuple(of))

    def totals(self) -> dict[str, float]:
        counters = _status().get("counters", {})
        return {
            outcome: counters.get(name, 0) - self._before.get(outcome, 0)
            for outcome, name in self._of.items()
        }

    def begin(self) -> None:
        self._before = {}
        self._before = self.totals()


class Gauge:
    """A number that goes up and down.

    ``mode`` is how Prometheus makes one number of those of many processes
    (``multiprocess_mode`` of prometheus_client).
    """

    def __init__(self, name: str, help: str, *, unit: str = "", mode: str) -> None:
        self.name = name
        self.help = help
        self.unit = unit
        self.mode = mode
        self._value: float | None = None
        METRICS.append(self)

    def set(self, value: float | None) -> None:
        self._value = value

    def value(self) -> float | None:
        """Return the number, None if it is not known in this process."""
        return self._value


class _CacheGauge(Gauge):
    """One of those that `status()` of the cache has."""

    def __init__(self, name: str, help: str, of: str, *, unit: str = "", mode: str) -> None:
        self._of = of
        super().__init__(name, help, unit=unit, mode=mode)

    def value(self) -> float | None:
        status = _status()
        # Of a process that has read nothing yet there is nothing to say.
        return float(status[self._of]) if status.get("staleness") is not None else None


class Duration:
    """How long something takes that leaves the process or costs a core: never a hit."""

    def __init__(self, name: str, help: str, buckets: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self.unit = "seconds"
        self.buckets = buckets
        #: Who wants to be told.
        self.sinks: list[Callable[[float], object]] = []
        self._failed = False
        METRICS.append(self)

    def observe(self, seconds: float) -> None:
        """Tell whoever wants to know. One who fails, as on a full disk, ends no login."""
        for sink in self.sinks:
            try:
                sink(seconds)
            except Exception as error:  # noqa: BLE001 - a library's, whatever it is
                if not self._failed:  # once in each process
                    self._failed = True
                    extra = {"event": "metrics.failed", "metric": self.name}
                    logger.error(
                        "metrics.failed: %s: %s", self.name, type(error).__name__, extra=extra
                    )

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Measure this block, as a span too."""
        began = time.monotonic()
        try:
            with _span(_dotted(self.name)):
                yield
        finally:
            self.observe(time.monotonic() - began)


@contextmanager
def reading_through() -> Iterator[None]:
    """Measure a check that memory could not answer, and count what came of it."""
    outcome = "unavailable"
    try:
        with READ_THROUGH.measure():
            yield
        outcome = "miss"
    except InvalidToken:
        outcome = "refused"
        raise
    finally:
        CHECKS.count(outcome)


def _status() -> dict[str, Any]:
    """What the cache says of this process's replica; nothing if it is of another kind."""
    cache: Any = caches[conf.CACHE]
    status: dict[str, Any] = cache.status() if hasattr(cache, "publish") else {}
    return status


def _dotted(name: str) -> str:
    """The name as OpenTelemetry writes it: ``accesspass.read_through``."""
    return name.replace("_", ".", 1)


_reading = threading.Lock()
_span: Callable[[str], AbstractContextManager[Any]] = nullcontext

# The metrics ----------------------------------------------------------------------------------

#: All of them. Prometheus adds the unit to a name, and ``_total`` to a counter's.
METRICS: list[Counter | Gauge | Duration] = []

_IO = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_HASH = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SMTP = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)

CHECKS = Counter(
    "accesspass_checks",
    "Access tokens that were checked.",
    ("hit", "miss", "malformed", "forged", "expired", "revoked", "refused", "unavailable"),
)
READ_THROUGH = Duration(
    "accesspass_read_through", "Checks that memory could not answer, to their end.", _IO
)
PUBLISH = Duration("accesspass_publish", "Publications of one session to the engine.", _IO)
REUSES = Counter("accesspass_refresh_token_reuses", "Refresh tokens that were sent a second time.")
SESSIONS_PENDING = Gauge(
    "accesspass_sessions_pending",
    "Ends of sessions, and changes of users, that the engine has not acknowledged.",
    mode="mostrecent",
)
HASHES = Counter(
    "accesspass_hashes", "Passwords that were to be hashed or compared.", ("done", "busy")
)
HASH_WAIT = Duration("accesspass_hash_wait", "Waiting for one of HASHING_CONCURRENCY slots.", _HASH)
HASHING = Duration("accesspass_hash", "Hashing or comparing a password.", _HASH)
MAILS = Counter(
    "accesspass_mails", "Attempts to deliver an e-mail.", ("sent", "dropped", "failed", "given_up")
)
MAIL = Duration("accesspass_mail", "Handing an e-mail to the mail server.", _SMTP)
MAILS_WAITING = Gauge("accesspass_mails_waiting", "E-mails that wait.", mode="mostrecent")
MAILS_GIVEN_UP = Gauge(
    "accesspass_mails_given_up", "E-mails that were given up and still stand.", mode="mostrecent"
)
_CacheCounter(
    "accesspass_cache_writes",
    "Writes to the engine of the sessions cache.",
    {
        "done": "writes_done",
        "refused": "writes_refused",
        "unavailable": "writes_unavailable",
        "uncertain": "writes_uncertain",
    },
)
_CacheCounter("accesspass_cache_applied", "Versions of entries that replicas have seen.", "applied")
_CacheCounter("accesspass_cache_bad_seals", "Entries whose seal was broken.", "refused")
_CacheCounter("accesspass_cache_resyncs", "Replicas that began again from nothing.", "resyncs")
_CacheCounter("accesspass_cache_failures", "Pulls that the engine did not answer.", "failures")
_CacheCounter("accesspass_cache_reconnects", "Times that it answered again.", "reconnects")
_CacheGauge(
    "accesspass_cache_staleness",
    "How long ago the replica was last known to be current; the oldest one.",
    "staleness",
    unit="seconds",
    mode="livemax",
)
_CacheGauge(
    "accesspass_cache_fresh",
    "1 if every replica vouches for itself, else 0.",
    "fresh",
    mode="livemin",
)
_CacheGauge(
    "accesspass_cache_position",
    "Number of the last write that the replica has applied; the one behind all others.",
    "applied",
    mode="livemin",
)
_CacheGauge(
    "accesspass_cache_entries", "Entries in the largest replica.", "entries", mode="livemax"
)
_CacheGauge(
    "accesspass_cache_memory",
    "Bytes of the entries of all replicas.",
    "bytes",
    unit="bytes",
    mode="livesum",
)


# Prometheus and OpenTelemetry -----------------------------------------------------------------


class _Prometheus:
    """Keeps prometheus_client's objects up to date, in its default registry."""

    def __init__(self) -> None:
        import prometheus_client

        self._gauge = prometheus_client.Gauge
        self._counters: list[tuple[Counter, dict[str, Any]]] = []
        # Made when there is something to say: in multiprocess mode a gauge is 0 from the beginning,
        # also that of a process which only loads the application for others.
        self._gauges: dict[Gauge, Any] = {}
        for metric in METRICS:
            name, help = metric.name, metric.help
            if isinstance(metric, Counter):
                labels = ["outcome"] if metric.outcomes else []
                made: Any = prometheus_client.Counter(name, help, labels)
                children = {x: made.labels(x) for x in metric.outcomes} or {"": made}
                self._counters.append((metric, children))
            elif isinstance(metric, Duration):
                histogram = prometheus_client.Histogram(
                    name, help, unit=metric.unit, buckets=metric.buckets
                )
                metric.sinks.append(histogram.observe)
        self.begin()
        # What a worker has counted in its last second.
        atexit.register(self.flush)

    def begin(self) -> None:
        self._flushing = threading.Lock()
        self._flushed: dict[tuple[str, str], float] = {}

    def flush(self) -> None:
        with self._flushing:
            for metric, children in self._counters:
                for outcome, total in metric.totals().items():
                    added = total - self._flushed.get((metric.name, outcome), 0)
                    self._flushed[metric.name, outcome] = total
                    if added > 0:  # a cache that was exchanged begins at 0 again
                        children[outcome].inc(added)
            for gauge in METRICS:
                if isinstance(gauge, Gauge) and (value := gauge.value()) is not None:
                    self._made(gauge).set(value)

    def _made(self, gauge: Gauge) -> Any:
        if gauge not in self._gauges:
            mode: Any = gauge.mode
            self._gauges[gauge] = self._gauge(
                gauge.name, gauge.help, unit=gauge.unit, multiprocess_mode=mode
            )
        return self._gauges[gauge]


class _OpenTelemetry:
    """Instruments and spans of opentelemetry-api; which SDK takes them is up to the project."""

    def __init__(self) -> None:
        from opentelemetry import metrics, trace

        meter = metrics.get_meter("accesspass", __version__)
        for metric in METRICS:
            name, help = _dotted(metric.name), metric.help
            if isinstance(metric, Counter):
                meter.create_observable_counter(name, [_observing(metric)], "1", help)
            elif isinstance(metric, Gauge):
                unit = {"seconds": "s", "bytes": "By", "": "1"}[metric.unit]
                meter.create_observable_gauge(name, [_observing(metric)], unit, help)
            else:
                histogram = meter.create_histogram(
                    name, "s", help, explicit_bucket_boundaries_advisory=metric.buckets
                )
                metric.sinks.append(histogram.record)
        tracer = trace.get_tracer("accesspass", __version__)

        @contextmanager
        def span(name: str) -> Iterator[None]:
            # The text of an exception may quote an address or a message.
            options: Any = {"record_exception": False, "set_status_on_exception": False}
            with tracer.start_as_current_span(name, **options) as made:
                try:
                    yield
                except AccessPassError as error:  # an answer, if not a welcome one
                    made.set_attribute("accesspass.refused", error.code)
                    raise
                except BaseException as error:
                    made.set_attribute("error.type", type(error).__name__)
                    made.set_status(trace.StatusCode.ERROR)
                    raise

        global _span
        _span = span

    def begin(self) -> None:
        pass  # what it reads begins again by itself

    def flush(self) -> None:
        pass  # its reader asks


def _observing(metric: Counter | Gauge) -> Callable[[Any], Iterator[Any]]:
    from opentelemetry.metrics import Observation

    def observe(_options: Any) -> Iterator[Any]:
        if isinstance(metric, Counter):
            for outcome, total in metric.totals().items():
                yield Observation(max(total, 0), {"outcome": outcome} if outcome else {})
        elif (value := metric.value()) is not None:
            yield Observation(value)

    return observe


_KINDS: dict[str, Callable[[], _Prometheus | _OpenTelemetry]] = {
    "prometheus": _Prometheus,
    "opentelemetry": _OpenTelemetry,
}
_on: dict[str, _Prometheus | _OpenTelemetry] = {}


def switch_on() -> None:
    """Hand the metrics to what TELEMETRY names. Called when the app is loaded.

    Raises ImproperlyConfigured if a library is not installed.
    """
    given = getattr(settings, "ACCESSPASS", {})
    if not isinstance(given, dict) or Conf.TELEMETRY.problem(given.get("TELEMETRY", ())):
        return  # as a system check will say
    for name in conf.TELEMETRY:
        if name in _on:
            continue
        try:
            _on[name] = _KINDS[name]()
        except ImportError as error:
            raise ImproperlyConfigured(
                f"ACCESSPASS['TELEMETRY'] names {name!r}, which needs the extra of that name: "
                f"pip install 'django-accesspass[{name}]' ({error})"
            ) from error


def is_on() -> bool:
    """Whether anybody wants to know."""
    return bool(_on)


def flush() -> None:
    """Bring what was counted in this process to who does not ask for it. The background thread
    calls it every second."""
    for exporter in _on.values():
        exporter.flush()


def _begin_in_child() -> None:
    global _reading
    _reading = threading.Lock()
    if not _on:
        return
    for metric in METRICS:
        if isinstance(metric, Counter):
            metric.begin()
    for exporter in _on.values():
        exporter.begin()


os.register_at_fork(after_in_child=_begin_in_child)
