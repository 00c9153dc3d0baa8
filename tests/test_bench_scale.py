"""The simulation of many processes: what it must keep, and where paper says what comes out."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import plan
from benchmarks.scale.parameters import NAMES, assumed, capacity, engine, writes
from benchmarks.scale.plan import cell
from benchmarks.scale.simulation import Engine, Result, Setup, read_through, simulate

DOCS = Path(__file__).resolve().parent.parent / "docs"
SEED = 7
FREE = Engine(cores=64, write=0.0, hold=0.0, pull=0.0, row=0.0, hint=0.0)
POSTGRESQL = Engine(
    cores=8, write=0.2e-3, hold=0.3e-3, pull=60e-6, row=0.9e-6, hint=50e-6, own_pull=60e-6
)


def _live(breath: float, writes: float, pulls: float, pull: float, hint: float) -> dict[str, float]:
    """What would be measured if a pull and a hint cost this, and a row nothing."""
    spent = pulls * pull + writes * hint
    return {
        "breath": breath,
        "followers": 4,
        "writes_per_second": writes,
        "pulls_per_second": pulls,
        "client_cpu": spent,
        "server_cpu": 4 * spent + writes * 200e-6,
    }


def _costs(pull: float = 60e-6, hint: float = 20e-6) -> dict[str, Any]:
    one = {
        "write": {"client_cpu": 150e-6, "server_cpu": 200e-6},
        "pull": {"seconds": 140e-6},
        "live": [_live(0.002, 1000, 430, pull, hint), _live(0.010, 1000, 95, pull, hint)],
        "untold": _live(0.010, 1000, 95, pull, 0.0),
        "busy_lag": {"curve": [0.001, 0.015, 0.035]},
        "connections": {"each_process": 2, "bytes": 3e6},
        "bytes": {"write": 800, "pull": 340, "row": 280, "hint": 50},
        "row_server_cpu": 0.0,
        "log_bytes": 420,
    }
    return dict.fromkeys(NAMES, one)


def test_the_same_seed_has_the_same_result() -> None:
    setup = Setup(POSTGRESQL, processes=10, rate=500, seconds=1, seed=SEED, busy=0.5)
    assert simulate(setup) == simulate(setup)
    assert simulate(setup).lags != simulate(setup._replace(seed=SEED + 1)).lags


@pytest.mark.parametrize("polls", [False, True])
def test_every_commit_reaches_every_process_once(polls: bool) -> None:
    setup = Setup(POSTGRESQL, 8, 300, seconds=2, seed=SEED, longest=0.01, polls=polls)
    found = simulate(setup)
    assert found.behind == 0, SEED
    span = setup.seconds * 0.8
    assert found.rows * span == pytest.approx(found.committed, abs=0.02 * 300), SEED
    # All eight are watched, so each row has a lag.
    assert len(found.lags) == round(found.rows * span * setup.processes), SEED


def test_the_server_works_for_what_it_did_and_nothing_else() -> None:
    setup = Setup(POSTGRESQL, 10, 200, seconds=5, seed=SEED)
    found = simulate(setup)
    work = 200 * POSTGRESQL.write + setup.processes * (
        found.pulls * POSTGRESQL.pull + found.rows * POSTGRESQL.row + 200 * POSTGRESQL.hint
    )
    assert found.server_cores == pytest.approx(work, rel=0.1), SEED


def test_writes_queue_as_the_m_d_1_formula_says() -> None:
    """The mean wait before a fixed service s at load u is u·s / (2·(1 - u))."""
    service, load = 1e-3, 0.7
    engine = FREE._replace(cores=1, write=service)
    found = simulate(Setup(engine, processes=0, rate=load / service, seconds=120, seed=SEED))
    expected = service + load * service / (2 * (1 - load))
    assert statistics.mean(found.write_delays) == pytest.approx(expected, rel=0.05), SEED


def test_a_lone_write_takes_the_sum_of_its_ways() -> None:
    engine = POSTGRESQL._replace(wake=100e-6, own_row=3e-6)
    found = simulate(Setup(engine, 1, rate=5, seconds=10, network=1e-3, regular=True))
    ways = 1e-3 * 1.5 + 50e-6 + 100e-6 + 60e-6 + 60e-6 + 0.9e-6 + 3e-6
    assert statistics.median(found.lags) == pytest.approx(ways)


def test_without_hints_the_heartbeat_bounds_the_lag() -> None:
    engine = FREE._replace(wake=1e9)
    found = simulate(Setup(engine, 4, rate=50, seconds=10, seed=SEED, heartbeat=0.5))
    assert 0.45 < max(found.lags) <= 0.5 + 1e-9, SEED
    assert found.pulls == pytest.approx(2, rel=0.1)


def test_pulls_are_limited_by_the_breath() -> None:
    found = simulate(Setup(FREE, 4, rate=5000, seconds=1, seed=SEED, breath=0.004, longest=0.004))
    assert found.pulls == pytest.approx(250, rel=0.02), SEED


def test_a_breath_that_grows_pulls_less_only_while_changes_go_on() -> None:
    def pulls(rate: float, longest: float) -> float:
        return simulate(Setup(POSTGRESQL, 4, rate, 2, SEED, longest=longest)).pulls

    assert pulls(1000, longest=0.01) < 0.3 * pulls(1000, longest=0.0), SEED
    assert pulls(20, longest=0.01) == pytest.approx(pulls(20, longest=0.0), rel=0.1), SEED


def test_a_breath_that_has_grown_is_short_again_once_writes_come_further_apart() -> None:
    found = simulate(Setup(POSTGRESQL, 4, rate=200, seconds=5, seed=SEED))
    assert statistics.median(found.lags) < 0.001, SEED


def test_beyond_the_log_s_pace_writes_wait_ever_longer() -> None:
    def commits(rate: float) -> Result:
        return simulate(Setup(POSTGRESQL, 2, rate, seconds=1, seed=SEED))

    assert commits(10_000).committed == pytest.approx(0.8 / POSTGRESQL.hold, rel=0.02)
    assert max(commits(10_000).write_delays) > 20 * max(commits(500).write_delays), SEED


def test_room_for_all_reads_nothing_through_and_room_for_few_nearly_all() -> None:
    def misses(room: int, skew: float = 0.0) -> float:
        return read_through(500, room, processes=10, requests=30, skew=skew, seed=SEED)

    assert misses(501) < 0.05, SEED
    assert misses(25) > 0.9, SEED
    assert misses(250, skew=1.0) < misses(250), SEED


@pytest.mark.parametrize("name", NAMES)
def test_what_a_pull_costs_is_told_from_what_a_hint_costs(name: str) -> None:
    found = engine(name, _costs(pull=60e-6, hint=20e-6))
    assert found.pull == pytest.approx(60e-6)
    assert found.hint == pytest.approx(20e-6)
    assert found.write == pytest.approx(200e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_size_holds_and_too_many_writes_break_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_EVENTS", 20_000)
    small = cell(name, _costs(), sessions=1_000, processes=2)
    assert small.breaks == ""
    assert small.connections == 4
    assert small.host_bytes == small.process_bytes * assumed("per_host")
    sessions = round(3 * capacity(name) / writes(1))
    big = cell(name, _costs(), sessions=sessions, processes=2, busy=False)
    assert big.breaks == "writes"
    assert big.limits["writes"] == pytest.approx(3, rel=0.01)


def test_memory_breaks_where_replicas_outgrow_the_host() -> None:
    found = cell("valkey", _costs(), sessions=1_000, processes=2, busy=False, per_host=1e9)
    assert found.breaks == "memory"


@pytest.mark.parametrize("name", NAMES)
def test_the_measurements_in_the_docs_say_what_everything_costs(name: str) -> None:
    found = json.loads((DOCS / "images" / "scale.json").read_text(encoding="utf-8"))
    here = engine(name, found["costs"])
    assert min(here.write, here.pull, here.row, here.own_pull, here.own_row) > 0
    assert min(here.hint, here.own_hint, here.wake, here.oversleep) >= 0
    assert len(here.busy_lags) > 2
