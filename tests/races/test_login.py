"""A login against everything after which it must not have happened."""

from __future__ import annotations

import pytest

from tests.races.claims import pairs_of, refuses_refresh
from tests.races.conftest import MakeStore
from tests.races.nodes import Gap, Node, gaps, long, user_name
from tests.servers import wait_until

# With True it is the first login, which finds no Account to lock and makes it.
ENDINGS = [("reset_password", False), ("deactivate", True), ("delete", True)]
ENDINGS += long(
    ("reset_password", True),
    ("deactivate", False),
    ("delete", False),
    *(
        (ending, first_login)
        for first_login in (False, True)
        for ending in (
            "change_password",
            "change_password_in_transaction",
            "deactivate_in_transaction",
            "deactivate_and_sync",
            "delete_queryset",
        )
    ),
)


def user_of(node: Node, name: str, first_login: bool) -> object:
    user: object = node.make_user(name)
    if not first_login:
        node.log_out(token=node.start(user)["access"])
    return user


def assert_none_lives(
    nodes: list[Node], user: object, pairs: list[dict[str, str]], gap: Gap
) -> None:
    assert nodes[0].live_sessions(user) == 0, gap.name
    for pair in pairs:
        for node in nodes:
            wait_until(lambda: not node.authenticate(pair["access"]))  # noqa: B023 - called here
            node.forget(pair["session"])
            assert not node.authenticate(pair["access"]), gap.name
            assert refuses_refresh(node, pair), gap.name


@pytest.mark.parametrize(("ending", "first_login"), ENDINGS)
def test_a_login_that_is_overtaken_leaves_no_session(
    near: Node, far: Node, ending: str, first_login: bool
) -> None:
    for gap in gaps():
        name = user_name()
        user = user_of(near, name, first_login)
        log_in, end = gap.meet(near.order("log_in", name=name), far.order(ending, user=user))
        end.end()
        assert_none_lives([near, far], user, pairs_of(log_in), gap)


@pytest.mark.parametrize(("ending", "first_login"), ENDINGS)
def test_a_login_in_the_middle_of_an_end_leaves_no_session(
    near: Node, far: Node, ending: str, first_login: bool
) -> None:
    for gap in gaps():
        name = user_name()
        user = user_of(near, name, first_login)
        end, log_in = gap.meet(far.order(ending, user=user), near.order("log_in", name=name))
        end.end()
        assert_none_lives([near, far], user, pairs_of(log_in), gap)


@pytest.mark.parametrize("first_login", [True, *long(False)])
def test_two_logins_at_once_make_one_account_and_two_sessions(
    near: Node, far: Node, first_login: bool
) -> None:
    for gap in gaps():
        name = user_name()
        user = user_of(near, name, first_login)
        meeting = gap.meet(near.order("log_in", name=name), far.order("log_in", name=name))
        for pair in [actor.end() for actor in meeting]:
            assert near.authenticate(pair["access"]), gap.name
        assert near.live_sessions(user) == 2, gap.name


def test_logins_at_once_do_not_exceed_the_limit(make_store: MakeStore) -> None:
    store = make_store(SESSIONS_PER_USER=2)
    near, far = store.node(), store.node()
    for gap in gaps():
        user = near.make_user(user_name())
        old = [near.start(user), near.start(user)]
        meeting = gap.meet(near.order("start", user=user), far.order("start", user=user))
        new = [actor.end() for actor in meeting]
        assert near.live_sessions(user) == 2, gap.name
        for node in (near, far):
            for pair in new:
                assert node.authenticate(pair["access"]), gap.name
            for pair in old:
                wait_until(lambda: not node.authenticate(pair["access"]))  # noqa: B023
