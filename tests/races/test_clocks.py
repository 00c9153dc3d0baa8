"""A node's wall clock decides nothing: the database's and the engine's do."""

from __future__ import annotations

import time

import pytest

from tests.races.claims import pairs_of, refuses_refresh
from tests.races.conftest import MakeStore
from tests.races.nodes import Node, Refused, Store, long, user_name
from tests.servers import wait_until

# Fifteen seconds are more than the grace, an hour more than an access token lives.
SHIFTS = [15.0, -3600.0, *long(-15.0, 3600.0)]


@pytest.fixture(params=SHIFTS)
def shifted(request: pytest.FixtureRequest, store: Store) -> Node:
    """A node whose clock is wrong, and which has never heard of the others'."""
    node = store.node()
    node.shift_clock(request.param)
    return node


def test_a_wrong_clock_changes_no_verdict_on_the_grace(near: Node, shifted: Node) -> None:
    for first, second in ((near, shifted), (shifted, near)):
        pair = first.start(first.make_user(user_name()))
        new = first.refresh(token=pair["refresh"])
        again = pairs_of(second.begin("refresh", token=pair["refresh"]))
        assert [one["refresh"] for one in again] == [new["refresh"]]
        first.age(pair["session"], "rotated_at", 11)
        with pytest.raises(Refused, match="InvalidToken"):
            second.refresh(token=pair["refresh"])
        assert first.row(pair["session"])["revoked_reason"] == "refresh_token_reused"


def test_a_wrong_clock_changes_no_expiry(near: Node, shifted: Node) -> None:
    for first, second in ((near, shifted), (shifted, near)):
        pair = first.start(first.make_user(user_name()), lifetime=1000)
        assert 295 <= pair["expires_in"] <= 300
        assert 995 <= pair["refresh_expires_in"] <= 1000
        for node in (first, second):
            # By the record, and by the row.
            wait_until(lambda: node.look(pair["access"])["queries"] == 0)  # noqa: B023
            seen = node.look(pair["access"])
            assert seen["good"]
            assert 290 <= seen["expires_in"] <= 300
            node.forget(pair["session"])
            assert node.look(pair["access"])["good"]
        assert second.refresh(token=pair["refresh"])["expires_in"] >= 295


def test_a_wrong_clock_lets_no_token_live_longer(make_store: MakeStore) -> None:
    store = make_store(ACCESS_TOKEN_LIFETIME=1)
    near, fast, slow = store.node(), store.node(), store.node()
    fast.shift_clock(3600)
    slow.shift_clock(-3600)
    nodes = [near, fast, slow]
    user = near.make_user(user_name())
    pairs = [node.start(user) for node in nodes]
    for pair in pairs:
        for node in nodes:
            wait_until(lambda: not node.authenticate(pair["access"]))  # noqa: B023 - called here
            assert not node.authenticate(pair["access"])


def test_a_wrong_clock_changes_no_end_of_a_session(near: Node, shifted: Node) -> None:
    for left, ends in ((600, False), (-1, True)):
        for first, second in ((near, shifted), (shifted, near)):
            pair = first.start(first.make_user(user_name()), lifetime=7200)
            first.age(pair["session"], "expires_at", 7200 - left)
            for node in (first, second):
                node.forget(pair["session"])
                assert node.authenticate(pair["access"]) is not ends
            assert refuses_refresh(second, pair) is ends


@pytest.mark.parametrize("jump", [3600.0, *long(-3600.0)])
def test_a_clock_that_is_set_makes_no_replica_stale_and_none_fresh(
    make_store: MakeStore, jump: float
) -> None:
    store = make_store(apart=True)
    near = store.node()
    far = store.node(MAX_STALENESS=0.6, HEARTBEAT=0.1)
    pair = near.start(near.make_user(user_name()))
    wait_until(lambda: far.look(pair["access"])["queries"] == 0)
    far.shift_clock(jump)
    assert far.look(pair["access"]) == {**far.look(pair["access"]), "good": True, "queries": 0}
    with store.cut_off():
        wait_until(lambda: not far.join())
        far.shift_clock(-jump)
        assert not far.join()


def test_a_machine_that_was_suspended_trusts_no_replica(make_store: MakeStore) -> None:
    """CLOCK_MONOTONIC stands still meanwhile; freshness is measured on CLOCK_BOOTTIME."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this system has no CLOCK_BOOTTIME")
    store = make_store(apart=True)
    near, far = store.node(), store.node()
    pair = near.start(near.make_user(user_name()))
    wait_until(lambda: far.look(pair["access"])["queries"] == 0)
    with store.cut_off():
        assert near.log_out(token=pair["access"]) is False
        wait_until(lambda: far.join() and far.status()["counters"]["failures"])
        # What it held a moment ago is still good for five seconds. Those are over now.
        assert far.look(pair["access"])["queries"] == 0
        far.suspend(60)
        assert not far.authenticate(pair["access"])
