"""Ways to break the order in which sessions do things, each with the race that then is lost."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["MUTANTS"]

SESSIONS = "accesspass/sessions.py"
LOGIN = "tests/races/test_login.py::test_"
REFRESH = "tests/races/test_refresh.py::test_"
REVOCATION = "tests/races/test_revocation.py::test_"

MUTANTS = [
    Mutant(
        "refresh-without-lock",
        "A refresh reads the row before it has locked it.",
        SESSIONS,
        {'    rows.update(generation=F("generation"))\n': ""},
        f"{REFRESH}of_two_refreshes_with_one_token_both_get_one_pair[postgresql]",
    ),
    Mutant(
        "refusal-rolled-back",
        "A refresh raises inside the transaction that has recorded the reuse.",
        SESSIONS,
        {
            "_rotate(cache, mark, database, token, changed, request)\n    for": "_rotate("
            "cache, mark, database, token, changed, request)\n"
            "        if isinstance(outcome, AccessPassError):\n            raise outcome\n    for"
        },
        f"{REFRESH}reuse_after_the_grace_ends_the_session_although_the_answer_is_an_error"
        "[sqlite-True]",
    ),
    Mutant(
        "endless-grace",
        "A used refresh token gets its successor at any time.",
        SESSIONS,
        {
            "        and session.nonce\n        and session.clock - session.rotated_at < "
            "timedelta(seconds=conf.REFRESH_GRACE)\n": ""
        },
        f"{REFRESH}reuse_after_the_grace_ends_the_session_although_the_answer_is_an_error"
        "[sqlite-False]",
    ),
    Mutant(
        "purge-forgets-all",
        "Housekeeping forgets the nonce of a rotation whose grace is not over.",
        SESSIONS,
        {'.exclude(nonce="").filter(rotated_at__lt=over)': '.exclude(nonce="")'},
        f"{REFRESH}a_purge_during_a_refresh_leaves_its_grace_alone[sqlite]",
    ),
    Mutant(
        "save-without-lock",
        "Saving a user inside a transaction locks the user's row before the account's.",
        "accesspass/receivers.py",
        {
            "        Account.objects.lock(instance.pk, database)\n    if old": "        pass\n"
            "    if old"
        },
        f"{REVOCATION}a_ban_in_a_transaction_and_a_deletion_do_not_wait_for_each_other[postgresql]",
    ),
    Mutant(
        "login-without-lock",
        "A login counts the account's sessions without holding its lock.",
        SESSIONS,
        {
            '        known = accounts.update(login_count=F("login_count") + 1)\n': "        "
            "known = accounts.exists()\n"
        },
        f"{LOGIN}logins_at_once_do_not_exceed_the_limit[postgresql]",
    ),
    Mutant(
        "first-login-without-lock",
        "A first login holds nothing that a change of the user would wait for.",
        SESSIONS,
        {
            "            _lock_user(database, user.pk)\n        current = ": "            pass\n"
            "        current = "
        },
        f"{LOGIN}a_login_that_is_overtaken_leaves_no_session[postgresql-deactivate-True]",
    ),
    Mutant(
        "login-believes-the-caller",
        "A login does not look at the password and the ban again once it has the lock.",
        SESSIONS,
        {"        _refuse_if_changed(user, current)\n": ""},
        f"{LOGIN}a_login_that_is_overtaken_leaves_no_session[sqlite-reset_password-False]",
    ),
    Mutant(
        "delete-keeps-late-rows",
        "A deletion leaves what a login has inserted since the collector looked.",
        SESSIONS,
        {"        Account.objects.using(database).filter(pk=user.pk).delete()\n": ""},
        f"{LOGIN}a_login_that_is_overtaken_leaves_no_session[postgresql-delete-True]",
    ),
    Mutant(
        "late-publication-wins",
        "A refresh publishes under a greater number than the row has.",
        SESSIONS,
        {"    session.revision += 1\n": "    session.revision += 10\n"},
        f"{REVOCATION}a_publication_that_comes_after_the_revocation_loses[sqlite]",
    ),
    Mutant(
        "publication-without-mark",
        "A live record may be published into another history than the row was changed under.",
        SESSIONS,
        {"(session, record)], mark), using=rows.db)": "(session, record)], None), using=rows.db)"},
        f"{REVOCATION}a_publication_held_up_while_the_log_was_emptied_is_refused[sqlite]",
    ),
    Mutant(
        "fill-of-a-greater-revision",
        "A miss remembers a record as newer than whatever ended the session.",
        SESSIONS,
        {
            "cache.fill(key, record, session.revision, conf.ACCESS_TOKEN_LIFETIME, mark)\n": (
                "cache.fill(key, record, session.revision + 10, conf.ACCESS_TOKEN_LIFETIME, mark)\n"
            )
        },
        f"{REVOCATION}a_miss_that_a_revocation_overtakes_remembers_nothing[sqlite-log_out]",
    ),
    Mutant(
        "same-revision-for-the-end",
        "A revocation does not raise the revision.",
        SESSIONS,
        {
            '        revoked_reason=reason,\n        revision=F("revision") + 1,\n': "        "
            "revoked_reason=reason,\n"
        },
        f"{REFRESH}a_refresh_during_the_end_of_a_session_does_not_keep_it[sqlite-log_out]",
    ),
    Mutant(
        "nothing-pending",
        "A revocation is not noted as pending, so nobody publishes what a dead process owed.",
        SESSIONS,
        {"        publication_pending=True,\n    )\n": "    )\n"},
        f"{REVOCATION}a_revocation_whose_process_was_killed_is_published_by_another[sqlite]",
    ),
    Mutant(
        "published-before-commit",
        "A revocation is published before it is committed.",
        SESSIONS,
        {
            "transaction.on_commit(partial(_publish, cache, dead, None, ended), using=database)": ""
            "_publish(cache, dead, None, ended)"
        },
        f"{REVOCATION}a_revocation_whose_process_was_killed_is_published_by_another[sqlite]",
    ),
    Mutant(
        "fresh-without-looking",
        "A replica vouches for itself without looking for what is pending.",
        SESSIONS,
        {"    cache.before_fresh(_doubt_pending)\n": ""},
        f"{REVOCATION}a_revocation_held_up_while_the_log_was_emptied_holds_before_it_is_published"
        "[sqlite]",
    ),
    Mutant(
        "clock-without-suspension",
        "Freshness is measured on a clock that stands still while the machine is suspended.",
        "accesspass/cache/follower.py",
        {"functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)": "time.monotonic"},
        "tests/races/test_clocks.py::test_a_machine_that_was_suspended_trusts_no_replica[sqlite]",
    ),
    Mutant(
        "grace-by-the-nodes-clock",
        "The grace is measured by the node's clock.",
        SESSIONS,
        {
            "session.clock - session.rotated_at < timedelta(seconds=conf.REFRESH_GRACE)": "time"
            ".time() - session.rotated_at.timestamp() <= conf.REFRESH_GRACE"
        },
        "tests/races/test_clocks.py::test_a_wrong_clock_changes_no_verdict_on_the_grace"
        "[sqlite-15.0]",
    ),
    Mutant(
        "expiry-by-the-nodes-clock",
        "An access token ends by the clock of the node that made it.",
        SESSIONS,
        {"math.ceil(cache.now() + conf": "math.ceil(time.time() + conf"},
        "tests/races/test_clocks.py::test_a_wrong_clock_changes_no_expiry[sqlite--3600.0]",
    ),
    Mutant(
        "entry-for-token",
        "What was made of a token is good for as long as its entry, which may outlive it.",
        "accesspass/recent.py",
        {"until: float = session.access_expires_at\n": 'until = float("inf")\n'},
        "tests/test_recent.py::test_a_remembered_token_expires_before_its_entry",
    ),
]
