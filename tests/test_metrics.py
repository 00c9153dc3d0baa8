"""What is counted, and that it arrives: in Prometheus from all workers, in OpenTelemetry."""

from __future__ import annotations

import atexit
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import OperationalError
from django.test import override_settings
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from accesspass import accounts, background, hashing, mail, metrics, sessions
from accesspass.exceptions import Busy, InvalidToken, Unavailable
from accesspass.metrics import Counter, Duration, Gauge
from accesspass.tokens import TokenType, mint
from tests.cluster import Answer, Cluster, exchange
from tests.documents import settings_of, shown
from tests.servers import wait_until
from tests.sessions import forget, options, replicated

__all__ = ["replicated"]

ROOT = Path(__file__).resolve().parent.parent
HOW_TO = ROOT / "docs" / "how-to"
PASSWORD = "correct horse battery"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Counted:
    """What a block has added to the metrics."""

    def __init__(self) -> None:
        self._before = {x.name: x.totals() for x in metrics.METRICS if isinstance(x, Counter)}

    def of(self, counter: Counter) -> dict[str, float]:
        before = self._before[counter.name]
        added = {x: total - before[x] for x, total in counter.totals().items()}
        return {outcome: number for outcome, number in added.items() if number}


def is_refused(token: str) -> bool:
    try:
        sessions.authenticate(token)
    except (InvalidToken, Unavailable):
        return True
    return False


# What is counted ------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_each_check_is_counted_once_by_its_outcome(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = sessions.start(user)
    sessions.authenticate(pair.access_token)
    other = sessions.start(user)
    forget(other)
    counted = Counted()
    for _ in range(3):
        sessions.authenticate(pair.access_token)
    sessions.authenticate(other.access_token)
    assert is_refused("no token")
    with options(TOKEN_KEYS=["k" * 32]):
        foreign = mint(TokenType.ACCESS, uuid.uuid4().bytes, 2**31).text
    assert is_refused(foreign)
    assert is_refused(mint(TokenType.ACCESS, uuid.uuid4().bytes, 1).text)
    unknown = mint(TokenType.ACCESS, uuid.uuid4().bytes, 2**31).text
    assert [is_refused(unknown), is_refused(unknown)] == [True, True]
    sessions.revoke(pair.session_id)
    assert is_refused(pair.access_token)
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "_select", fail)
        assert is_refused(mint(TokenType.ACCESS, uuid.uuid4().bytes, 2**31).text)
    assert counted.of(metrics.CHECKS) == {
        "hit": 3,
        "miss": 1,
        "malformed": 1,
        "forged": 1,
        "expired": 1,
        "refused": 2,
        "revoked": 1,
        "unavailable": 1,
    }


def fail(*_: Any) -> None:
    raise OperationalError("out of reach")


def test_no_count_is_lost_between_threads_and_readers_add_none() -> None:
    counted = Counted()
    count = metrics.CHECKS.of("hit")
    over = threading.Event()

    def add() -> None:
        for _ in range(20_000):
            count()

    def read() -> None:
        while not over.is_set():
            metrics.CHECKS.totals()

    reader = threading.Thread(target=read)
    reader.start()
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    reader.join()
    assert counted.of(metrics.CHECKS) == {"hit": 80_000}


@pytest.mark.django_db(transaction=True)
def test_writes_reuses_and_mails_are_counted(user: Any) -> None:
    counted = Counted()
    with options(REFRESH_GRACE=0):
        pair = sessions.start(user)
        second = sessions.refresh(pair.refresh_token)
        sessions.refresh(second.refresh_token)
        with pytest.raises(InvalidToken):
            sessions.refresh(pair.refresh_token)
    assert counted.of(metrics.REUSES) == {"": 1}
    writes = next(x for x in metrics.METRICS if x.name == "accesspass_cache_writes")
    assert isinstance(writes, Counter)
    assert counted.of(writes) == {"done": 4}
    mail.ask(mail.PASSWORD_RESET, "nobody-is-called-that")
    mail.ask(mail.PASSWORD_RESET, user.email)
    mail.deliver()
    # The notice of the token that was reused is the other one.
    assert counted.of(metrics.MAILS) == {"dropped": 1, "sent": 2}


@pytest.mark.django_db(transaction=True)
def test_the_queues_are_looked_at_only_if_somebody_wants_to_know(
    user: Any, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    mail.ask(mail.PASSWORD_RESET, user.email)
    with django_assert_num_queries(0):
        background._count_queues()
    monkeypatch.setattr(metrics, "_on", {"prometheus": None})
    background._count_queues()
    assert metrics.MAILS_WAITING.value() == 1
    assert metrics.MAILS_GIVEN_UP.value() == metrics.SESSIONS_PENDING.value() == 0


def test_the_mail_worker_brings_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def deliver(**_: Any) -> int:
        if done:
            raise KeyboardInterrupt
        done.append("deliver")
        return 1

    monkeypatch.setattr(mail, "deliver", deliver)
    monkeypatch.setattr(metrics, "flush", lambda: done.append("flush"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        call_command("accesspass_mail")
    assert done == ["deliver", "flush"]


@options(HASHING_CONCURRENCY=1)
def test_waiting_for_a_slot_is_measured_and_a_refusal_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(metrics.HASH_WAIT, "sinks", [waits.append])
    monkeypatch.setattr(hashing, "_WAIT", 0.05)
    counted = Counted()
    with hashing.slot(None), pytest.raises(Busy), hashing.slot(None):
        pass
    assert counted.of(metrics.HASHES) == {"busy": 1, "done": 1}
    assert waits[0] < 0.05 <= waits[1]


@needs_fork
def test_the_child_of_a_fork_begins_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_on", {"opentelemetry": metrics._OpenTelemetry})
    monkeypatch.setattr(metrics._OpenTelemetry, "begin", lambda: None)
    metrics.CHECKS.count("hit")
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        metrics.CHECKS.count("hit")
        os.write(write, json.dumps(metrics.CHECKS.totals()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    found = json.loads(os.read(read, 10_000))
    os.close(read)
    os.close(write)
    assert found == {**dict.fromkeys(metrics.CHECKS.outcomes, 0), "hit": 1}


def test_nothing_of_either_is_imported_unless_it_is_asked_for() -> None:
    code = """
import sys, django
django.setup()
from accesspass import urls, resource
found = [x for x in sys.modules if x.partition(".")[0] in ("prometheus_client", "opentelemetry")]
sys.exit(", ".join(found) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["prometheus", "opentelemetry"])
def test_a_library_that_is_not_installed_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_on", {})
    for module in ("prometheus_client", "opentelemetry", "opentelemetry.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    with (
        options(TELEMETRY=[name]),
        pytest.raises(ImproperlyConfigured, match=rf"django-accesspass\[{name}\]"),
    ):
        metrics.switch_on()


# Prometheus -----------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    """Return each number of a scrape, as ``name{outcome}``."""
    return {
        s.name + (f"{{{s.labels['outcome']}}}" if "outcome" in s.labels else ""): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if "le" not in s.labels and not s.name.endswith("_created")
    }


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    registry = prometheus_client.REGISTRY
    before = set(registry._collector_to_names)
    sinks = {x: list(x.sinks) for x in metrics.METRICS if isinstance(x, Duration)}
    monkeypatch.setattr(metrics, "_on", {})
    telemetry, _urls = shown("docs/how-to/monitoring.rst", "python")
    with override_settings(**settings_of(telemetry)):
        metrics.switch_on()
    yield
    atexit.unregister(metrics._on["prometheus"].flush)
    for duration, was in sinks.items():
        duration.sinks = was
    for collector in set(registry._collector_to_names) - before:
        registry.unregister(collector)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("prometheus")
def test_a_scrape_of_one_process_has_every_documented_metric(user: Any, rf: Any) -> None:
    view = runpy.run_path(str(HOW_TO / "metrics_view.py"))["scrape"]
    before = samples(view(rf.get("/metrics")).content.decode())
    pair = sessions.start(user)
    for _ in range(3):
        sessions.authenticate(pair.access_token)
    forget(pair)
    sessions.authenticate(pair.access_token)
    background._count_queues()
    found = samples(view(rf.get("/metrics")).content.decode())

    def added(name: str) -> float:
        return found[name] - before.get(name, 0)

    assert added("accesspass_checks_total{hit}") == 3
    assert added("accesspass_checks_total{miss}") == 1
    assert added("accesspass_read_through_seconds_count") == 1
    assert added("accesspass_publish_seconds_count") == 1
    assert added("accesspass_cache_writes_total{done}") == 1
    assert found["accesspass_cache_fresh"] == 1
    assert found["accesspass_cache_staleness_seconds"] < 60
    ours = {re.sub(r"\{.*|_(count|sum)$", "", x) for x in found if x.startswith("accesspass_")}
    assert ours == {shown_name(x) for x in metrics.METRICS}


class Monitored(Cluster):
    """The example project with what the documentation says for Prometheus under gunicorn."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        (self.folder / "monitored.py").write_text(
            "from cluster_settings import *\n"
            'ACCESSPASS = {**ACCESSPASS, "TELEMETRY": ["prometheus"]}\n'
            'ROOT_URLCONF = "monitored_urls"\n'
        )
        (self.folder / "monitored_urls.py").write_text(
            "from django.urls import path\n"
            "from example_project.urls import urlpatterns\n"
            "from metrics_view import scrape\n"
            'urlpatterns = [*urlpatterns, path("metrics", scrape)]\n'
        )
        (self.folder / "numbers").mkdir()
        self.environment["DJANGO_SETTINGS_MODULE"] = "monitored"
        self.environment["PYTHONPATH"] += f"{os.pathsep}{HOW_TO}"
        self.environment["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder / "numbers")

    def command(self) -> list[str]:
        command = super().command()
        # Preloaded, so there is one process more, which loads the application and serves nobody.
        command[-1:-1] = ["--preload", "--config", str(HOW_TO / "gunicorn_metrics.py")]
        return command

    def scrape(self) -> dict[str, float]:
        request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        (received,) = exchange(self.host, self.port, [request])
        head, _, body = received.partition(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], head
        return samples(body.decode())

    def checks(self) -> dict[str, float]:
        """Return the checks of all workers, by outcome."""
        found = self.scrape()
        counted = {x: found[f"accesspass_checks_total{{{x}}}"] for x in metrics.CHECKS.outcomes}
        return {outcome: number for outcome, number in counted.items() if number}


@pytest.mark.pipeline
@needs_fork
def test_one_scrape_of_three_workers_has_the_sum_of_all() -> None:
    person = {"username": "ann", "email": "ann@example.com", "password": PASSWORD}
    with Monitored(workers=3) as cluster:
        registered = cluster.once("POST", "/auth/register/", body=person)
        assert registered.status == 201, registered
        token = registered.body["access_token"]
        uses: list[Answer] = []

        def use() -> bool:
            uses.extend(cluster.at_once(60, "GET", "/hello/", token=token))
            return len({x.worker for x in uses}) == cluster.workers

        wait_until(use)
        bad = cluster.at_once(30, "GET", "/hello/", token="nothing")
        assert ({x.status for x in uses}, {x.status for x in bad}) == ({200}, {401})
        expected = {"hit": len(uses), "malformed": len(bad)}
        # The worker that answers brings its own at once, the others theirs within a second.
        wait_until(lambda: cluster.checks() == expected)
        # One that ends brings its last ones, and what it counted stays.
        last = cluster.at_once(20, "GET", "/hello/", token=token)
        os.kill(last[0].worker, signal.SIGTERM)
        expected["hit"] += len(last)
        wait_until(lambda: cluster.checks() == expected)
        assert cluster.scrape()["accesspass_cache_fresh"] == 1


# OpenTelemetry --------------------------------------------------------------------------------


_reader = InMemoryMetricReader()
_spans = InMemorySpanExporter()


@pytest.fixture(scope="module")
def providers() -> None:
    """A process has one provider of each kind."""
    otel_metrics.set_meter_provider(MeterProvider([_reader]))
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(_spans))
    trace.set_tracer_provider(tracers)


@pytest.fixture
def telemetry(providers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    sinks = {x: list(x.sinks) for x in metrics.METRICS if isinstance(x, Duration)}
    monkeypatch.setattr(metrics, "_on", {})
    monkeypatch.setattr(metrics, "_span", metrics._span)
    with options(TELEMETRY=["opentelemetry"]):
        metrics.switch_on()
    _spans.clear()
    yield
    for duration, was in sinks.items():
        duration.sinks = was


def read() -> dict[str, Any]:
    """Return the data points of each metric."""
    data = _reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("telemetry")
def test_opentelemetry_gets_the_metrics(user: Any) -> None:
    pair = sessions.start(user)
    sessions.authenticate(pair.access_token)
    found = read()
    hits = {x.attributes["outcome"]: x.value for x in found["accesspass.checks"]}
    assert hits == metrics.CHECKS.totals()
    (published,) = found["accesspass.publish"]
    assert published.count >= 1
    assert published.explicit_bounds == metrics.PUBLISH.buckets
    assert found["accesspass.cache_fresh"][0].value == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("telemetry")
def test_a_hit_has_no_span_and_whatever_leaves_the_process_has_one(user: Any) -> None:
    _, pair = accounts.log_in(user.get_username(), PASSWORD)
    sessions.authenticate(pair.access_token)
    _spans.clear()
    sessions.authenticate(pair.access_token)
    assert _spans.get_finished_spans() == ()
    forget(pair)
    sessions.authenticate(pair.access_token)
    accounts.log_in(user.get_username(), PASSWORD)
    mail.ask(mail.PASSWORD_RESET, user.email)
    mail.deliver()
    names = [span.name for span in _spans.get_finished_spans()]
    assert names == [
        "accesspass.read_through",
        "accesspass.hash",
        "accesspass.publish",
        "accesspass.mail",
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("telemetry")
def test_no_span_says_a_token_or_an_address(user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        pass

    class Quoting:
        timeout = 1

        def send_messages(self, messages: Any) -> None:
            raise Refused(f"550 {messages[0].to} {messages[0].body}")

    monkeypatch.setattr(mail, "connection", Quoting)
    pair = sessions.start(user)
    sessions.revoke(pair.session_id)
    forget(pair)
    assert is_refused(mint(TokenType.ACCESS, uuid.uuid4().bytes, 2**31).text)
    mail.ask(mail.PASSWORD_RESET, user.email)
    mail.deliver()
    spans = {span.name: span for span in _spans.get_finished_spans()}
    refused, failed = spans["accesspass.read_through"], spans["accesspass.mail"]
    assert dict(refused.attributes or {}) == {"accesspass.refused": "invalid_token"}
    assert refused.status.is_unset
    assert dict(failed.attributes or {}) == {"error.type": "Refused"}
    assert not failed.status.is_ok
    said = "".join(span.to_json() for span in spans.values())
    assert user.email not in said
    assert "ap_" not in said


# The documents --------------------------------------------------------------------------------


def shown_name(metric: Counter | Gauge | Duration) -> str:
    """The name as Prometheus has it."""
    if isinstance(metric, Counter):
        return f"{metric.name}_total"
    return f"{metric.name}_{metric.unit}" if metric.unit else metric.name


def test_every_metric_is_documented_with_its_outcomes() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.rst").read_text(encoding="utf-8")
    rows = re.findall(r"\* - ``(accesspass_\w+)``\n((?: {5}- .*\n|       .*\n)+)", page)
    assert {name for name, _ in rows} == {shown_name(x) for x in metrics.METRICS}
    said = dict(rows)
    for metric in metrics.METRICS:
        if isinstance(metric, Counter):
            for outcome in metric.outcomes:
                assert f"``{outcome}``" in said[shown_name(metric)], (metric.name, outcome)


BOARD: Any = json.loads((ROOT / "docs/grafana/accesspass.json").read_text(encoding="utf-8"))
SELECTOR = re.compile(r"(accesspass_\w+)\{([^}]*)\}")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    metrics_by_series: dict[str, Counter | Gauge | Duration] = {}
    for metric in metrics.METRICS:
        ends = ("_bucket", "_count", "_sum") if isinstance(metric, Duration) else ("",)
        metrics_by_series.update((shown_name(metric) + end, metric) for end in ends)
    queries = [x["expr"] for panel in BOARD["panels"] for x in panel.get("targets", ())]
    asked = set()
    for query in queries:
        selectors = SELECTOR.findall(query)
        assert len(selectors) == query.count("accesspass_"), query
        for series, matchers in selectors:
            metric = metrics_by_series[series]
            asked.add(metric)
            outcomes = metric.outcomes if isinstance(metric, Counter) else ()
            matched = dict(re.findall(r'(\w+)=~"([^"]*)"', matchers))
            assert matched.pop("job") == "$job", query
            assert set(matched) <= {"outcome"}, query
            assert set(matched.get("outcome", "").split("|")) - {""} <= set(outcomes), query
            assert outcomes or "by (outcome)" not in query, query
    assert asked == set(metrics.METRICS)


def test_the_dashboards_panels_have_their_own_ids_places_and_the_chosen_data_source() -> None:
    names = {x["name"] for x in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(BOARD))) <= names
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        across = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in across for y in range(place["y"], place["y"] + place["h"])}
        assert across.stop <= 24, panel["title"]
        assert cells.isdisjoint(taken), panel["title"]
        taken |= cells
        if panel["type"] != "row":
            sources = [panel["datasource"], *(x["datasource"] for x in panel["targets"])]
            assert {x["uid"] for x in sources} == {"${datasource}"}, panel["title"]
            targets = [x["refId"] for x in panel["targets"]]
            assert len(set(targets)) == len(targets) > 0, panel["title"]


def test_a_time_that_cannot_be_noted_ends_nothing_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: float) -> None:
        raise OSError("no space left on device")

    noted: list[float] = []
    monkeypatch.setattr(metrics.HASH_WAIT, "sinks", [full, noted.append])
    monkeypatch.setattr(metrics.HASH_WAIT, "_failed", False)
    for _ in range(2):
        metrics.HASH_WAIT.observe(1.0)
    assert noted == [1.0, 1.0]
    assert caplog.text.count("metrics.failed: ") == 1
