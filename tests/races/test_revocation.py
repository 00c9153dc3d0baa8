"""Revocations against whatever still says that the session lives: queries and publications."""

from __future__ import annotations

import itertools

import pytest

from tests.races.claims import DEAD, assert_ended, pairs_of
from tests.races.conftest import MakeStore
from tests.races.nodes import Node, gaps, long, user_name
from tests.servers import wait_until

ENDINGS = ["log_out", "delete"]
ENDINGS += long(
    "revoke_all", "change_password", "deactivate", "deactivate_and_sync", "delete_queryset"
)


# A miss


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_miss_that_a_revocation_overtakes_remembers_nothing(
    near: Node, far: Node, ending: str
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        far.forget(pair["session"])
        miss, end = gap.meet(
            far.order("authenticate", token=pair["access"]),
            near.order(ending, user=user, token=pair["access"]),
        )
        end.end()
        # Whoever asked before the end may be told either; whoever asks after it may not.
        miss.end()
        assert_ended([far, near], [pair], gap.name)


@pytest.mark.parametrize("ending", ["log_out", *long("delete"), *ENDINGS[2:]])
def test_a_miss_in_the_middle_of_a_revocation_remembers_nothing(
    near: Node, far: Node, ending: str
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        far.forget(pair["session"])
        end, miss = gap.meet(
            near.order(ending, user=user, token=pair["access"]),
            far.order("authenticate", token=pair["access"]),
        )
        end.end()
        miss.end()
        assert_ended([far, near], [pair], gap.name)


def test_a_miss_that_a_change_overtakes_remembers_nothing_old(near: Node, far: Node) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        near.set_staff(user=user, value=True)
        pair = near.start(user)
        far.forget(pair["session"])
        miss, change = gap.meet(
            far.order("authenticate", token=pair["access"]),
            near.order("set_staff", user=user, value=False),
        )
        change.end()
        assert miss.end()
        for node in (near, far):
            wait_until(lambda: not node.look(pair["access"])["is_staff"])  # noqa: B023
            assert not node.look(pair["access"])["is_staff"], gap.name


# Publications that come late, again, and in another order


def test_a_publication_that_comes_after_the_revocation_loses(near: Node, far: Node) -> None:
    user = near.make_user(user_name())
    pair = near.start(user)
    late = near.begin("refresh", "publish", token=pair["refresh"])
    assert late.is_held()
    # Inside the grace the other tab gets the pair that the first one still waits for.
    new = far.refresh(token=pair["refresh"])
    newer = far.refresh(token=new["refresh"])
    far.log_out(token=newer["access"])
    assert late.let_go().end()["refresh"] == new["refresh"]
    assert_ended([near, far], [pair, new, newer])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_publications_in_any_order_end_with_the_revocation(
    near: Node, far: Node, order: tuple[int, ...]
) -> None:
    user = near.make_user(user_name())
    pair = near.start(user)
    first = near.begin("refresh", "publish", token=pair["refresh"])
    assert first.is_held()
    new = far.refresh(token=pair["refresh"])
    second = far.begin("refresh", "publish", token=new["refresh"])
    assert second.is_held()
    end = near.begin("log_out", "publish", token=pair["access"])
    assert end.is_held()
    held = [first, second, end]
    for number in order:
        held[number].let_go().end()
    assert_ended([near, far], [pair, new, *pairs_of(second)])


def test_publications_that_are_sent_again_change_nothing(near: Node, far: Node) -> None:
    near.publish_again()
    far.publish_again()
    user = near.make_user(user_name())
    pair = near.start(user)
    new = far.refresh(token=pair["refresh"])
    near.set_staff(user=user, value=True)
    newer = near.refresh(token=new["refresh"])
    far.log_out(token=newer["access"])
    for node in (near, far):
        assert node.publish_again() >= 2
    assert_ended([near, far], [pair, new, newer])


@pytest.mark.parametrize("change_first", [False, *long(True)])
def test_a_change_and_a_revocation_leave_the_session_dead(
    near: Node, far: Node, change_first: bool
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        orders = [
            near.order("set_staff_in_transaction", user=user, value=True),
            far.order("log_out", token=pair["access"]),
        ]
        for actor in gap.meet(*(orders if change_first else orders[::-1])):
            actor.end()
        assert_ended([near, far], [pair], gap.name)


def test_a_ban_in_a_transaction_and_a_deletion_do_not_wait_for_each_other(
    near: Node, far: Node
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        for actor in gap.meet(
            near.order("deactivate_in_transaction", user=user), far.order("delete", user=user)
        ):
            actor.end()
        assert_ended([near, far], [pair], gap.name)


def test_two_revocations_at_once_leave_the_session_dead_and_nothing_pending(
    near: Node, far: Node
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair, other = near.start(user), near.start(user)
        for actor in gap.meet(
            near.order("log_out", token=pair["access"]), far.order("revoke_all", user=user)
        ):
            assert actor.end() is True, gap.name
        assert_ended([near, far], [pair], gap.name)
        assert_ended([near, far], [other], gap.name)


# The log is emptied meanwhile


def test_a_publication_held_up_while_the_log_was_emptied_is_refused(make_store: MakeStore) -> None:
    store = make_store()
    near, far = store.node(), store.node()
    pair = near.start(near.make_user(user_name()))
    late = near.begin("refresh", "publish", token=pair["refresh"])
    assert late.is_held()
    assert far.log_out(token=pair["access"])
    # The only word of the end is gone, so the revision has nothing to lose to.
    far.clear()
    assert far.at_engine(pair["session"]) is None
    new = late.let_go().end()
    assert far.at_engine(pair["session"]) is None
    for node in (near, far):
        assert not node.authenticate(new["access"])
        assert not node.authenticate(pair["access"])


def test_a_miss_held_up_while_the_log_was_emptied_remembers_nothing(make_store: MakeStore) -> None:
    store = make_store()
    near, far = store.node(), store.node()
    pair = near.start(near.make_user(user_name()))
    wait_until(lambda: far.held(pair["session"]))
    far.forget(pair["session"])
    miss = far.begin("authenticate", "fill", token=pair["access"])
    assert miss.is_held()
    assert near.log_out(token=pair["access"])
    near.clear()
    wait_until(lambda: far.join() and far.status()["epoch"] == near.status()["epoch"])
    miss.let_go().end()
    assert not far.authenticate(pair["access"])
    assert not near.authenticate(pair["access"])


def test_a_revocation_held_up_while_the_log_was_emptied_holds_before_it_is_published(
    make_store: MakeStore,
) -> None:
    store = make_store()
    near, far = store.node(), store.node()
    pair = near.start(near.make_user(user_name()))
    wait_until(lambda: far.look(pair["access"])["queries"] == 0)
    end = near.begin("log_out", "publish", token=pair["access"])
    assert end.is_held()
    far.clear()
    # A new replica looks for what is pending before it answers anything.
    wait_until(lambda: far.held(pair["session"]) == DEAD)
    assert far.look(pair["access"]) == {"good": False, "queries": 0}
    assert far.at_engine(pair["session"]) is None
    assert end.let_go().end() is True
    assert_ended([near, far], [pair])


# A process dies, or the engine is out of reach


def test_a_revocation_whose_process_was_killed_is_published_by_another(
    make_store: MakeStore,
) -> None:
    store = make_store()
    near, far, third = store.node(), store.node(), store.node()
    pair = near.start(near.make_user(user_name()))
    for node in (far, third):
        wait_until(lambda: node.look(pair["access"])["queries"] == 0)  # noqa: B023 - called here
    end = near.begin("log_out", "publish", token=pair["access"])
    assert end.is_held()
    near.kill()
    # It was never acknowledged, so what the replicas hold is still good.
    assert far.look(pair["access"])["good"]
    assert third.tidy() == 1
    assert third.tidy() == 0
    assert_ended([far, third], [pair])


def test_a_refresh_whose_process_was_killed_costs_a_query_and_no_session(
    make_store: MakeStore,
) -> None:
    store = make_store()
    near, far = store.node(), store.node()
    pair = near.start(near.make_user(user_name()))
    lost = near.begin("refresh", "publish", token=pair["refresh"])
    assert lost.is_held()
    near.kill()
    # The answer never came, so the client sends the same token again.
    new = far.refresh(token=pair["refresh"])
    assert far.authenticate(new["access"])
    assert far.log_out(token=new["access"])
    assert_ended([far, store.node()], [pair, new])


def test_a_revocation_without_the_engine_holds_at_once_here_and_soon_elsewhere(
    make_store: MakeStore,
) -> None:
    store = make_store(apart=True)
    options = {"MAX_STALENESS": 0.6, "HEARTBEAT": 0.1}
    near, far = store.node(**options), store.node(**options)
    pair = near.start(near.make_user(user_name()))
    wait_until(lambda: far.look(pair["access"])["queries"] == 0)
    with store.cut_off():
        assert near.log_out(token=pair["access"]) is False
        assert near.row(pair["session"])["publication_pending"]
        assert not near.authenticate(pair["access"])
        # A replica that can no longer vouch for itself asks the row.
        wait_until(lambda: not far.authenticate(pair["access"]))
        wait_until(lambda: not far.status()["fresh"])
        assert near.post("/auth/logout/", {"refresh_token": pair["refresh"]}) == (
            202,
            {"sessions_ended": "pending"},
        )
    # The engine still holds the session as live, and nobody has tidied up.
    wait_until(lambda: far.join())
    assert far.look(pair["access"]) == {"good": False, "queries": 0}
    assert far.at_engine(pair["session"])[1] != DEAD
    assert far.tidy() == 1
    assert_ended([near, far], [pair])


def test_a_user_deleted_without_the_engine_is_refused_wherever_the_replica_is_stale(
    make_store: MakeStore,
) -> None:
    store = make_store(apart=True)
    options = {"MAX_STALENESS": 0.6, "HEARTBEAT": 0.1}
    near, far = store.node(**options), store.node(**options)
    user = near.make_user(user_name())
    pair = near.start(user)
    wait_until(lambda: far.look(pair["access"])["queries"] == 0)
    with store.cut_off():
        near.delete(user=user)
        assert not near.authenticate(pair["access"])
        wait_until(lambda: not far.authenticate(pair["access"]))
    wait_until(lambda: far.join())
    assert not far.authenticate(pair["access"])
    assert far.tidy() == 1
    assert_ended([near, far], [pair])
