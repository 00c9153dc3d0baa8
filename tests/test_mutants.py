"""That every mutant is found out by its test, and that this is a proof."""

from __future__ import annotations

import pytest

from tests.mutants import cache, sessions
from tests.mutants.cache import CACHE, FOLLOWER
from tests.mutants.judge import collected, judge
from tests.mutants.mutant import Moved, Mutant

MUTANTS = [*cache.MUTANTS, *sessions.MUTANTS]


def test_there_are_fifteen_mutants_or_more_and_each_is_another_one() -> None:
    assert len(cache.MUTANTS) >= 15
    assert len(sessions.MUTANTS) >= 8
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({mutant.broken() for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_code_and_replaces_what_stands_there_once(mutant: Mutant) -> None:
    compile(mutant.broken(), mutant.file, "exec")


@pytest.mark.parametrize("text", ["what no file has", "replica"])
def test_a_mutant_of_code_that_has_moved_is_refused(text: str) -> None:
    mutant = Mutant("moved", "", f"{CACHE}/follower.py", {text: ""}, "")
    with pytest.raises(Moved, match="moved: not once"):
        mutant.broken()


def test_the_tests_that_mutants_name_are_run_by_default() -> None:
    named = {mutant.test for mutant in MUTANTS}
    assert set(collected(sorted(named))) == named


@pytest.mark.pipeline
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_killed_by_its_test(mutant: Mutant) -> None:
    verdict = judge(mutant)
    assert verdict.killed, f"{mutant.breaks} {verdict.word}:\n{verdict.said}"


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("new", "test", "word"),
    [
        ("return True", "an_engine_that_is_read_in_microseconds_has_no_thread", "SURVIVED"),
        (
            "return nonsense",
            "on_an_event_loop_a_stale_replica_misses_until_the_thread_has_pulled",
            "no verdict",
        ),
        ("return", "there_is_no_such_test", "no verdict"),
        ("return (", "only_a_read_starts_the_thread", "no verdict"),
    ],
    ids=["unnoticed", "another exception", "no test", "no code"],
)
def test_only_a_claim_that_fails_kills(new: str, test: str, word: str) -> None:
    end = "\n\n\ndef _after_fork_in_child"
    edits = {f"    return True{end}": f"    {new}{end}"}
    mutant = Mutant("other", "", f"{CACHE}/follower.py", edits, FOLLOWER + test)
    assert judge(mutant).word == word
