"""What must be true after a race, whoever won it."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.races.nodes import Actor, Node, Refused
from tests.servers import wait_until

__all__ = ["DEAD", "assert_ended", "pairs_of", "refuses_refresh"]

DEAD = "dead"


def pairs_of(*actors: Actor) -> list[dict[str, Any]]:
    """The token pairs that operations returned; of the others only a plain refusal is right."""
    found = []
    for actor in actors:
        with contextlib.suppress(Refused):
            found.append(actor.end())
    return found


def assert_ended(nodes: list[Node], pairs: list[dict[str, Any]], gap: str = "") -> None:
    """None of these tokens is good for anything, on any node, now and later."""
    session = pairs[0]["session"]
    # By what the replicas hold, and by the row alone.
    for node in nodes:
        wait_until(lambda: not node.authenticate(pairs[-1]["access"]))  # noqa: B023 - called here
        assert not any(node.authenticate(pair["access"]) for pair in pairs), gap
    for node in nodes:
        node.forget(session)
        assert not any(node.authenticate(pair["access"]) for pair in pairs), gap
    for node in nodes:
        assert all(refuses_refresh(node, pair) for pair in pairs), gap
    row = nodes[0].row(session)
    assert row["revoked_at"] is not None, gap
    assert not row["publication_pending"], gap
    assert nodes[0].at_engine(session) == (row["revision"], DEAD), gap


def refuses_refresh(node: Node, pair: dict[str, Any]) -> bool:
    """Whether a node refuses the refresh token of a pair, and plainly so."""
    try:
        node.refresh(token=pair["refresh"])
    except Refused as refusal:
        if refusal.name != "InvalidToken":
            raise
        return True
    return False
