"""Ways to break the cache, and the test that then fails."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

__all__ = ["CACHE", "FOLLOWER", "MUTANTS"]

CACHE = "accesspass/cache"
CONTRACT = "tests/cache/test_cache_contract.py::test_"
ENGINES = "tests/cache/test_engine_contract.py::test_"
FOLLOWER = "tests/cache/test_follower.py::test_"
POSTGRESQL = "tests/cache/test_postgresql.py::test_"
REDIS = "tests/cache/test_redis.py::test_"
SQLITE = "tests/cache/test_sqlite.py::test_"

MUTANTS = [
    # The replica and its follower ------------------------------------------------------------
    Mutant(
        "no-floor",
        "A replica that missed purged deletions goes on as if it had seen them.",
        f"{CACHE}/follower.py",
        {"            or page.floor > max(replica.applied, replica.began)\n": ""},
        f"{CONTRACT}a_replica_below_the_floor_starts_again_exactly_once[memory]",
    ),
    Mutant(
        "no-epoch",
        "A replica goes on into another history.",
        f"{CACHE}/follower.py",
        {"page.epoch != replica.epoch\n": "False\n"},
        f"{CONTRACT}s5_a_new_epoch_empties_every_node[memory]",
    ),
    Mutant(
        "no-head",
        "A replica keeps what a log that was set back no longer has.",
        f"{CACHE}/follower.py",
        {"            or page.head < max(replica.applied, top)\n": ""},
        f"{FOLLOWER}a_head_below_what_was_applied_starts_again",
    ),
    Mutant(
        "freshness-at-receipt",
        "A replica is as fresh as the moment at which a page came, not as its request.",
        f"{CACHE}/follower.py",
        {"return replica, sent\n": "return replica, clock()\n"},
        f"{FOLLOWER}freshness_is_when_the_page_was_asked_for_not_when_it_came",
    ),
    Mutant(
        "clock-before-value",
        "A read looks at the clock before it takes the value.",
        f"{CACHE}/follower.py",
        {
            "        found = replica.find(key)\n": "        now = clock()\n"
            "        found = replica.find(key)\n",
            "        _, _, expires, taken, absent, _ = held\n        now = clock()\n": ""
            "        _, _, expires, taken, absent, _ = held\n",
        },
        f"{FOLLOWER}a_process_stopped_after_it_took_the_value_does_not_serve_it[by_get]",
    ),
    Mutant(
        "snapshot-for-ever",
        "What was made of an entry is good although another one has replaced it.",
        f"{CACHE}/follower.py",
        {"        if replica.find(key) is not found:\n            return False\n": ""},
        f"{FOLLOWER}a_snapshot_holds_until_anything_is_written_to_its_key",
    ),
    Mutant(
        "stale-snapshot",
        "A replica that cannot vouch for itself says that a snapshot still holds.",
        f"{CACHE}/follower.py",
        {
            "        if now - fresh_at > self._followed_within and "
            "self._must_look(now, fresh_at):\n            return False\n": ""
        },
        f"{FOLLOWER}a_process_stopped_after_it_took_the_value_does_not_serve_it[by_snapshot]",
    ),
    Mutant(
        "stale-hits",
        "A replica that cannot vouch for itself answers all the same.",
        f"{CACHE}/follower.py",
        {"now - fresh_at > self.max_staleness and": "fresh_at == float('-inf') and"},
        f"{CONTRACT}s4_a_node_cut_off_answers_for_max_staleness_then_misses_then_heals[memory]",
    ),
    Mutant(
        "no-expiry-at-read",
        "An entry lives on until somebody sweeps it away.",
        f"{CACHE}/follower.py",
        {"absent or expires <= now + (self._offset or 0.0)": "absent"},
        f"{CONTRACT}expiry_is_checked_at_each_read[memory]",
    ),
    Mutant(
        "no-callbacks",
        "A replica vouches for itself before the callbacks of before_fresh have run.",
        f"{CACHE}/follower.py",
        {"not replica.vouched or (stale and not self._sync_on_read)": "False"},
        f"{CONTRACT}callbacks_run_before_a_replica_answers_for_the_first_time[memory]",
    ),
    Mutant(
        "no-carry-over",
        "An own write that was acknowledged during a resync is lost at the swap.",
        f"{CACHE}/follower.py",
        {"        self._apply(replica, newer)\n": ""},
        f"{CONTRACT}an_own_write_during_a_resync_survives_the_swap[memory]",
    ),
    Mutant(
        "carry-over-across-epochs",
        "An own write of a history that has ended is carried into the next one.",
        f"{CACHE}/follower.py",
        {"if epoch == replica.epoch and entry.seq": "if entry.seq"},
        f"{FOLLOWER}an_own_write_of_a_lost_history_is_not_carried_into_the_next_one",
    ),
    Mutant(
        "own-writes-move-applied",
        "An own write makes a replica jump over what others wrote before it.",
        f"{CACHE}/follower.py",
        {
            "if entry.seq > replica.applied])\n": "if entry.seq > replica.applied])\n"
            "            replica.applied = replica.top\n"
        },
        f"{CONTRACT}s2_own_writes_never_move_what_was_applied[memory]",
    ),
    Mutant(
        "foreign-epoch-kept",
        "A write that was answered from another history leaves the replica as it was.",
        f"{CACHE}/follower.py",
        {"                self._replica = Replica()  # what was held is of another history\n": ""},
        f"{CONTRACT}a_write_answered_from_another_epoch_forces_a_pull[memory]",
    ),
    Mutant(
        "bad-entries-dropped",
        "An entry whose seal is broken is passed over, so the older value lives on.",
        f"{CACHE}/follower.py",
        {"if type(key) is not bytes:\n": "if value is not None or type(key) is not bytes:\n"},
        f"{CONTRACT}in_a_key_change_without_the_first_step_the_older_value_does_not_live_on[memory]",
    ),
    Mutant(
        "no-fork-hook",
        "Nobody tells the child of a fork that it is one.",
        f"{CACHE}/follower.py",
        {"os.register_at_fork(after_in_child=_after_fork_in_child)\n": ""},
        f"{FOLLOWER}a_child_starts_warm_trusts_nothing_and_the_parent_goes_on[MemoryEngine]",
    ),
    Mutant(
        "no-pid-check",
        "A read does not notice a fork that Python was not told of.",
        f"{CACHE}/follower.py",
        {
            "        if self._pid != os.getpid():\n            self._enter()\n"
            "        replica = self._replica\n"
            "        if self._sync_on_read:\n": "        replica = self._replica\n"
            "        if self._sync_on_read:\n"
        },
        f"{FOLLOWER}a_fork_that_ran_no_hooks_is_noticed_whatever_is_called_first[get]",
    ),
    Mutant(
        "repeated-writes",
        "A write whose answer was lost is sent once more.",
        f"{CACHE}/follower.py",
        {
            "            written = self.engine.write(changes, condition)\n": "            try:\n"
            "                written = self.engine.write(changes, condition)\n"
            "            except CacheError:\n"
            "                written = self.engine.write(changes, condition)\n"
        },
        f"{CONTRACT}s1_a_write_of_unknown_outcome_is_said_to_be_so_and_not_repeated[memory]",
    ),
    Mutant(
        "old-fills",
        "A fill is held though the replica was begun anew since its mark was taken.",
        f"{CACHE}/follower.py",
        {"                mark.generation != replica.generation\n                or ": " " * 16},
        f"{CONTRACT}a_fill_is_refused_if_its_mark_is_from_before_a_swap[memory]",
    ),
    Mutant(
        "fills-for-ever",
        "A fill answers until it expires, however stale the replica is.",
        f"{CACHE}/follower.py",
        {"and now - taken > self.max_staleness": "and taken < 0"},
        f"{CONTRACT}a_fill_answers_for_max_staleness_while_the_engine_is_out_of_reach[memory]",
    ),
    Mutant(
        "no-sequence-comparison",
        "What is applied last is held, not what was written last.",
        f"{CACHE}/replica.py",
        {"if seq < old_seq or again:": "if again:"},
        "tests/cache/test_replica.py::test_in_whatever_order_versions_come_the_latest_is_held",
    ),
    Mutant(
        "no-revisions-in-replicas",
        "A publication that somebody replays into the engine is held again.",
        f"{CACHE}/replica.py",
        {"elif revision and revision < old_revision:": "elif False:"},
        f"{CONTRACT}a_replayed_publication_loses_on_every_node_that_saw_a_newer_one[memory]",
    ),
    Mutant(
        "fill-without-revision",
        "A fill replaces what was published at the same revision.",
        f"{CACHE}/replica.py",
        {
            "            or held.revision > revision\n"
            "            or (held.revision == revision and not held.absent)\n": ""
        },
        f"{CONTRACT}a_fill_is_refused_if_its_revision_is_not_greater[memory-2]",
    ),
    Mutant(
        "markers-culled",
        "Making room throws away the markers of revocations too.",
        f"{CACHE}/replica.py",
        {
            "                if not held[_SIZE - 1]:\n                    yield key\n": ""
            "                yield key\n"
        },
        f"{CONTRACT}each_node_culls_by_itself_and_markers_stay[memory]",
    ),
    # The backend and the seal ----------------------------------------------------------------
    Mutant(
        "publish-without-revision",
        "The publication that comes last wins, however old it is.",
        f"{CACHE}/backend.py",
        {"Condition(newer=True, epoch=": "Condition(epoch="},
        f"{CONTRACT}a_late_publication_loses[memory]",
    ),
    Mutant(
        "publish-without-mark",
        "A live record of before an emptying is published after it.",
        f"{CACHE}/backend.py",
        {"epoch=None if mark is None else mark.epoch": "epoch=None"},
        f"{CONTRACT}a_live_record_with_an_old_mark_is_refused_in_a_new_epoch[memory]",
    ),
    Mutant(
        "no-authentication",
        "Whoever can write to the engine makes entries that replicas hold.",
        f"{CACHE}/codec.py",
        {"if _equal(mac, outer.digest()):": "if mac:"},
        f"{CONTRACT}what_no_key_of_ours_sealed_is_an_absence_at_its_number[memory-a bit flipped]",
    ),
    Mutant(
        "key-not-sealed",
        "A sealed entry is good for any other key too.",
        f"{CACHE}/codec.py",
        {
            "_bind(_FORMAT, flags, revision, until, len(key)) + key + payload": "_bind("
            "_FORMAT, flags, revision, until, 0) + payload",
            "_FOREVER if expires is None else expires, len(key))\n                + key\n": ""
            "_FOREVER if expires is None else expires, 0)\n",
        },
        f"{CONTRACT}an_entry_moved_prolonged_or_of_another_revision_is_refused[memory]",
    ),
    # The engines -----------------------------------------------------------------------------
    Mutant(
        "bigserial",
        "Numbers come from a sequence without a lock, so not in the order of commit.",
        f"{CACHE}/engines/postgresql.py",
        {
            "    seq bigint NOT NULL PRIMARY KEY,\n": "    seq bigserial PRIMARY KEY,\n",
            "    PERFORM pg_advisory_xact_lock({lock}, '{meta}'::regclass::oid::int);\n": "",
            "greatest(m.floor, (SELECT max(e.seq) FROM {entries} e)),\n": ""
            "nextval(pg_get_serial_sequence('{entries}', 'seq')) - 1,\n",
        },
        f"{POSTGRESQL}a_commit_held_open_cannot_be_passed_by_a_later_one",
    ),
    Mutant(
        "no-tombstone",
        "Deleting a key that is not there leaves nothing behind.",
        f"{CACHE}/engines/postgresql.py",
        {
            "        IF cardinality(keys) = 1 THEN": "        IF vals[1] IS NULL AND NOT EXISTS"
            " (SELECT 1 FROM {entries} o WHERE sha256(o.key) = sha256(keys[1])) THEN\n"
            "            held := 0;\n        ELSIF cardinality(keys) = 1 THEN"
        },
        f"{ENGINES}deleting_an_absent_key_leaves_a_tombstone_too[postgresql]",
    ),
    Mutant(
        "expired-revisions-forgotten",
        "A publication is compared with live versions alone.",
        f"{CACHE}/engines/postgresql.py",
        {"if_newer AND old_seq IS NOT NULL AND": "if_newer AND held = 1 AND"},
        f"{ENGINES}newer_compares_with_expired_versions_too[postgresql]",
    ),
    Mutant(
        "adds-all-win",
        "The engine stores what is added though the key is held.",
        f"{CACHE}/engines/postgresql.py",
        {"            AND NOT (if_absent AND held = 1)\n": ""},
        f"{ENGINES}absent_refuses_what_is_held_and_shows_it[postgresql]",
    ),
    Mutant(
        "lost-answers-denied",
        "A write whose answer was lost is said not to have happened.",
        f"{CACHE}/engines/postgresql.py",
        {"            if writes and error.sent:\n": "            if False:\n"},
        f"{POSTGRESQL}a_frozen_backend_holds_up_nobody_else",
    ),
    Mutant(
        "no-deadline",
        "A server that has fallen silent is waited for far beyond the deadline.",
        f"{CACHE}/engines/postgresql.py",
        {
            "                    if not _poll([libpq.socket], select.POLLIN, until):\n": ""
            "                    if not _poll([libpq.socket], select.POLLIN, until + 5):\n"
        },
        f"{POSTGRESQL}every_call_ends_in_time_when_the_server_falls_silent[black hole]",
    ),
    Mutant(
        "server-ignored",
        "A promoted standby or a restored table is written to as if nothing had been lost.",
        f"{CACHE}/engines/postgresql.py",
        {
            "           m.server <> {server}\n        INTO epoch": ""
            "           false\n        INTO epoch"
        },
        f"{POSTGRESQL}a_write_to_a_changed_server_is_never_of_the_old_epoch",
    ),
    Mutant(
        "identity-ignored",
        "A replica that took over for a dead master goes on with the numbers of that one.",
        f"{CACHE}/engines/redis.py",
        {"if state[4] ~= identity or not (epoch": "if not (epoch"},
        f"{REDIS}the_first_write_after_a_failover_cannot_land_in_the_old_epoch",
    ),
    Mutant(
        "replicas-asked",
        "A replica answers in place of the master.",
        f"{CACHE}/engines/redis.py",
        {"if not string.find(replication, '\\\\nrole:master', 1, true)": "if false"},
        f"{REDIS}not_even_a_replica_that_takes_writes_is_asked",
    ),
    Mutant(
        "min-replicas-ignored",
        "A write is acknowledged though fewer replicas have it than were asked for.",
        f"{CACHE}/engines/redis.py",
        {"        if reached < self._min_replicas:\n": "        if False:\n"},
        f"{REDIS}more_replicas_than_there_are_never_confirm",
    ),
    Mutant(
        "tombstones-not-replicated",
        "Deletions are kept by the engine and told to nobody.",
        f"{CACHE}/engines/sqlite.py",
        {'"WHERE seq > ? ORDER BY': '"WHERE seq > ? AND value IS NOT NULL ORDER BY'},
        f"{CONTRACT}s2_a_deletion_reaches_the_other_nodes[sqlite]",
    ),
    Mutant(
        "unstamped-write",
        "A write leaves the stamp by which the other processes tell that there was one.",
        f"{CACHE}/engines/sqlite.py",
        {"                memory[:] = stamp": "                pass"},
        f"{SQLITE}a_read_asks_the_file_after_a_write_and_twice_a_second",
    ),
    Mutant(
        "stamp-before-commit",
        "A write is told of before it can be seen.",
        f"{CACHE}/engines/sqlite.py",
        {
            "                    yield connection\n                    connection.execute"
            '("COMMIT")\n': "                    yield connection\n"
            "                    memory[:] = stamp\n"
            '                    connection.execute("COMMIT")\n',
            "                memory[:] = stamp\n        finally:": "        finally:",
        },
        f"{SQLITE}who_reads_while_a_write_is_committed_reads_it_afterwards",
    ),
    Mutant(
        "stamp-after-the-question",
        "What was written while the file was asked is taken for known.",
        f"{CACHE}/follower.py",
        {"        replica.stamp = stamp\n": "        replica.stamp = self.engine.stamp()\n"},
        f"{SQLITE}a_write_beside_a_question_is_seen_by_the_next_read[after]",
    ),
    Mutant(
        "stamp-believed-for-ever",
        "A commit whose writer was killed before it could tell of it is never found.",
        f"{CACHE}/engines/sqlite.py",
        {" or self._checked < oldest or self._asked < oldest:": ":"},
        f"{SQLITE}a_commit_whose_writer_died_before_the_stamp_is_found",
    ),
    Mutant(
        "stamp-by-the-path-alone",
        "Such a commit is not found where something else looks at the paths all the time.",
        f"{CACHE}/engines/sqlite.py",
        {"self._checked < oldest or self._asked < oldest": "self._checked < oldest"},
        f"{SQLITE}such_a_commit_is_found_while_something_else_asks_the_file",
    ),
    Mutant(
        "stamp-beside-the-link",
        "Who has the log by a link has a stamp of its own, and hears of no write.",
        f"{CACHE}/engines/sqlite.py",
        {"        path = os.path.realpath(self.path)\n": "        path = self.path\n"},
        f"{SQLITE}who_has_the_file_by_a_link_lags_no_more_than_others",
    ),
    Mutant(
        "stamp-without-vouching",
        "A replica answers because nobody has written, though a callback has yet to run.",
        f"{CACHE}/follower.py",
        {"stamp == replica.stamp and replica.vouched": "stamp == replica.stamp"},
        f"{SQLITE}a_new_callback_runs_although_nobody_has_written",
    ),
    Mutant(
        "floor-raised-late",
        "A purge raises the floor some time after what it forgot is gone.",
        f"{CACHE}/engines/sqlite.py",
        {
            '                connection.execute("UPDATE meta SET floor = max(floor, ?)", '
            "max(dead))\n": "                pass\n"
            "        time.sleep(0.3)\n"
            "        with self._transaction() as connection:\n"
            "            if dead:\n"
            '                connection.execute("UPDATE meta SET floor = max(floor, ?)", '
            "max(dead))\n"
        },
        f"{ENGINES}no_page_shows_a_purge_without_its_floor[sqlite]",
    ),
]
