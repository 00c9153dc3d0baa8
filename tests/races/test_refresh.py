"""A refresh against itself, and against everything that ends or changes its session."""

from __future__ import annotations

import pytest

from tests.races.claims import assert_ended, pairs_of, refuses_refresh
from tests.races.nodes import Node, Refused, Store, gaps, long, user_name
from tests.servers import wait_until

# The rest goes the same way through the code as one of the first.
ENDINGS = ["log_out", "change_password_in_transaction", "delete"]
ENDINGS += long(
    "revoke_all",
    "change_password",
    "deactivate",
    "deactivate_in_transaction",
    "deactivate_and_sync",
    "delete_queryset",
)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_session_that_ends_during_a_refresh_stays_ended(
    near: Node, far: Node, ending: str
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        refresh, end = gap.meet(
            near.order("refresh", token=pair["refresh"]),
            far.order(ending, user=user, token=pair["access"]),
        )
        end.end()
        assert_ended([near, far], [pair, *pairs_of(refresh)], gap.name)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_refresh_during_the_end_of_a_session_does_not_keep_it(
    near: Node, far: Node, ending: str
) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        end, refresh = gap.meet(
            far.order(ending, user=user, token=pair["access"]),
            near.order("refresh", token=pair["refresh"]),
        )
        end.end()
        assert_ended([near, far], [pair, *pairs_of(refresh)], gap.name)


def test_no_refresh_succeeds_once_a_user_was_deleted_by_sql(near: Node, far: Node) -> None:
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        refresh, delete = gap.meet(
            near.order("refresh", token=pair["refresh"]), far.order("delete_by_sql", user=user)
        )
        delete.end()
        for held in (pair, *pairs_of(refresh)):
            assert refuses_refresh(near, held), gap.name
            for node in (near, far):
                node.forget(held["session"])
                assert not node.authenticate(held["access"]), gap.name


def test_of_two_refreshes_with_one_token_both_get_one_pair(near: Node, far: Node) -> None:
    for gap in gaps():
        pair = near.start(near.make_user(user_name()))
        meeting = gap.meet(
            near.order("refresh", token=pair["refresh"]),
            far.order("refresh", token=pair["refresh"]),
        )
        first, second = (one.end() for one in meeting)
        assert first == second, gap.name
        assert near.row(pair["session"])["generation"] == 1, gap.name
        assert far.refresh(token=first["refresh"]), gap.name


def test_of_twenty_refreshes_with_one_token_all_get_one_pair(near: Node, far: Node) -> None:
    pair = near.start(near.make_user(user_name()))
    # Ten threads in each of two processes stand before their first statement.
    actors = [
        node.begin("refresh", 0, token=pair["refresh"]) for node in (near, far) for _ in range(10)
    ]
    assert all(actor.is_held() for actor in actors)
    for actor in actors:
        actor.let_go()
    got = [actor.end() for actor in actors]
    tokens = {(one["access"], one["refresh"]) for one in got}
    assert len(tokens) == 1
    row = near.row(pair["session"])
    assert (row["generation"], row["revision"]) == (1, 2)
    # Whoever comes later, but inside the grace, gets it too, and nothing is written.
    assert far.refresh(token=pair["refresh"])["refresh"] == got[0]["refresh"]
    assert near.row(pair["session"]) == row
    for node in (near, far):
        wait_until(lambda: node.look(got[0]["access"])["good"])  # noqa: B023 - called here


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_reuse_after_the_grace_ends_the_session_although_the_answer_is_an_error(
    store: Store, near: Node, far: Node, atomic_requests: bool
) -> None:
    web = store.node(atomic_requests=atomic_requests)
    pair = near.start(near.make_user(user_name()))
    new = near.refresh(token=pair["refresh"])
    assert far.refresh(token=pair["refresh"]) == new
    near.age(pair["session"], "rotated_at", 11)
    status, body = web.post("/auth/refresh/", {"refresh_token": pair["refresh"]})
    assert (status, body.get("code")) == (401, "invalid_token")
    assert near.row(pair["session"])["revoked_reason"] == "refresh_token_reused"
    assert_ended([web, near, far], [pair, new])


def test_reuse_during_a_refresh_by_the_other_holder_ends_the_session(near: Node, far: Node) -> None:
    for gap in gaps():
        pair = near.start(near.make_user(user_name()))
        new = near.refresh(token=pair["refresh"])
        near.age(pair["session"], "rotated_at", 11)
        refresh, reuse = gap.meet(
            near.order("refresh", token=new["refresh"]),
            far.order("refresh", token=pair["refresh"]),
        )
        with pytest.raises(Refused, match="InvalidToken"):
            reuse.end()
        assert_ended([near, far], [pair, new, *pairs_of(refresh)], gap.name)


def test_a_purge_during_a_refresh_leaves_its_grace_alone(near: Node, far: Node) -> None:
    for gap in gaps():
        pair = near.start(near.make_user(user_name()))
        new = near.refresh(token=pair["refresh"])
        near.age(pair["session"], "rotated_at", 11)
        refresh, purge = gap.meet(far.order("refresh", token=new["refresh"]), near.order("purge"))
        purge.end()
        # Only what the grace of this very rotation needs is still there.
        again = near.begin("refresh", token=new["refresh"])
        assert pairs_of(again) == [refresh.end()], gap.name


@pytest.mark.parametrize("change", [*long("set_staff"), "set_staff_in_transaction"])
@pytest.mark.parametrize("refresh_first", [True, *long(False)])
def test_what_changes_during_a_refresh_is_what_every_node_comes_to_see(
    near: Node, far: Node, change: str, refresh_first: bool
) -> None:
    """In a transaction the user's row is locked too, and nobody may wait in a circle."""
    for gap in gaps():
        user = near.make_user(user_name())
        pair = near.start(user)
        orders = [
            near.order("refresh", token=pair["refresh"]),
            far.order(change, user=user, value=True),
        ]
        meeting = gap.meet(*(orders if refresh_first else orders[::-1]))
        for actor in meeting:
            actor.end()
        new = meeting[0 if refresh_first else 1].end()
        for node in (near, far):
            wait_until(lambda: node.look(new["access"])["is_staff"])  # noqa: B023 - called here
            assert node.look(new["access"])["is_staff"], gap.name
        revision, record = near.at_engine(pair["session"])
        assert revision == near.row(pair["session"])["revision"], gap.name
        assert record != "dead", gap.name
