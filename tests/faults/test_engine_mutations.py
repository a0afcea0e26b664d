"""mutation gate: bugs of the engine, the projector, the projection and the vector cache. See ``mutation_gate``."""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

CONTRACT = "contract/test_faces.py::test_"
REBUILD = "projection/test_rebuild.py::test_"
SEARCH = "projection/test_search_model.py::test_"
VECTORS = "store/test_schema_and_embedding.py::test_"
OWNERS = "store/test_owners.py::test_"
PROCESSES = "engine/test_processes.py::test_"
CACHE = "embedding/test_vector_cache.py::test_"
CRASH = "faults/test_projection_crash.py::test_a_kill_at_each_point"
CANCELLED = "faults/test_cancellation.py::test_"
REFUSED = "faults/test_refused.py::test_"
FAILURES = "faults/test_log_failures.py::test_"
REPLAY = "faults/test_replay.py"
DEATH = "faults/test_projector_death.py"
DATABASE = "faults/test_engine_database.py"
BATCHES = "faults/test_engine_batches.py::test_"
WAITS = "engine/test_reads_that_wait.py::test_"
HOLD = "engine/test_memtable.py::test_"
SEVERAL = "engine/test_several_namespaces.py::test_"
LAYOUTS = "projection/test_layouts.py::test_"

ONE_REFUSED = f"{REFUSED}one_refused_event_in_a_batch[default]"
AILS = f"{DATABASE}::test_what_ails_the_database_is_no_fault_of_the_events[default]"
REBUILT = f"{REBUILD}a_deleted_projection_is_rebuilt[per namespace]"
OWN_WRITES = f"{CONTRACT}a_reader_sees_its_own_writes"
ORDINARY = f"{PROCESSES}an_ordinary_run_prints_nothing_listens_nowhere_and_keeps_its_files_to_the_owner"

MUTATIONS = (
    # -- the transaction of rows and checkpoint
    Mutation(
        "the checkpoint is committed before the rows",
        "projection/pixeltable/writer",
        "        with self._transaction([*opened, state, dead]) as connection:\n",
        "        if checkpoint_lsn is not None:\n"
        "            with self._transaction([state]) as early:\n"
        "                self._advance(early, state, checkpoint_lsn)\n"
        "        with self._transaction([*opened, state, dead]) as connection:\n",
        (f"{CRASH}[apply.rows]",),
    ),
    Mutation(
        "the checkpoint does not advance",
        "projection/pixeltable/writer",
        "            if checkpoint_lsn is not None:\n",
        "            if False:\n",
        ("cli/test_tables.py::test_clean_while_open_and_closed",),
    ),
    Mutation(
        "events of a killed life are not replaced but applied again",
        "projection/projector",
        "replace = batch.events[0].lsn <= self._replayed_lsn",
        "replace = False",
        (REPLAY,),
    ),
    Mutation(
        "a replayed batch leaves what it adds and deletes",
        "projection/pixeltable/writer",
        "(replace and not c.patch)",
        "(replace and c.insert)",
        (REPLAY,),
    ),
    Mutation(
        "a batch that is applied again does not replace its rows",
        "projection/pixeltable/writer",
        "[c for c in changes if c.delete or (replace and not c.patch)]",
        "[c for c in changes if c.delete]",
        (f"{BATCHES}a_batch_whose_commit_was_not_heard_of_is_applied_once",),
    ),
    Mutation(
        "a row of a user's keeps an add out",
        "projection/dead_letters",
        "checkpoint_lsn=None, replace=True, revived",
        "checkpoint_lsn=None, replace=False, revived",
        (f"{REFUSED}a_row_that_a_user_put_where_an_add_belongs_makes_way",),
    ),
    Mutation(
        "the watermark advances before the commit",
        "projection/projector",
        "            try:\n                self._apply(batch, replace=replace)",
        "            try:\n"
        "                self.watermark = batch.events[-1].lsn\n"
        "                self._on_watermark(self.watermark)\n"
        "                self._apply(batch, replace=replace)",
        (OWN_WRITES,),
    ),
    Mutation(
        "what is not flushed is projected",
        "projection/projector",
        "        if self._options.sync_mode is SyncMode.INTERVAL:\n",
        "        if False:\n",
        (f"{FAILURES}a_failed_sync_between_acknowledgements",),
    ),
    # -- dead letters
    Mutation(
        "a refused event is dropped",
        "projection/dead_letters",
        "            dead += letters_of(part[0], reason)\n",
        "",
        (ONE_REFUSED,),
    ),
    Mutation(
        "a dead letter is not written down",
        "projection/pixeltable/writer",
        "            if recorded:\n",
        "            if False:\n",
        (ONE_REFUSED,),
    ),
    Mutation(
        "a retried dead letter is not taken off the list",
        "projection/pixeltable/writer",
        "            if revived_lsns:\n",
        "            if False:\n",
        (ONE_REFUSED,),
    ),
    Mutation(
        "an update whose memory is not in the table is dropped",
        "projection/pixeltable/writer",
        "                missing += self._apply_table(",
        "                self._apply_table(",
        (f"{REFUSED}an_update_of_a_row_that_a_user_deleted_meanwhile_is_a_dead_letter",),
    ),
    Mutation(
        "events overtake a dead letter of their memory",
        "projection/projector",
        "if (blocked_by := self._dead_keys.get(key)) is not None:",
        "if (blocked_by := None) is not None:",
        (f"{REFUSED}an_update_that_is_refused_keeps_later_events_of_its_memory_in_order",),
    ),
    Mutation(
        "events overtake a dead letter of an earlier life",
        "projection/projector",
        "        self._dead_keys = _first_lsns(dead_letters)\n",
        "        self._dead_keys = _first_lsns([])\n",
        (f"{REFUSED}events_wait_behind_a_dead_letter_of_an_earlier_life",),
    ),
    Mutation(
        "every error of the database makes dead letters",
        "projection/sql/failures",
        "    for cause in _chain(error):\n        if isinstance(cause, psycopg.Error):\n",
        "    for cause in ():\n        if isinstance(cause, psycopg.Error):\n",
        (AILS,),
    ),
    Mutation(
        "a database without room makes dead letters",
        "projection/sql/failures",
        '("08", "53", "57", "58", "40", "55", "XX")',
        '("08", "57", "58", "40", "55", "XX")',
        (AILS,),
    ),
    Mutation(
        "an event that PostgreSQL refuses is tried again for ever",
        "projection/sql/failures",
        "            return cause.sqlstate[:2] in _INFRASTRUCTURE_CLASSES\n",
        "            return True\n",
        (f"{REFUSED}a_dead_letter_is_a_wait_for_nobody",),
    ),
    Mutation(
        "a text that the model refuses is tried again for ever",
        "projection/sql/failures",
        "        if also(cause):\n            return True\n    return False\n",
        "        if also(cause):\n            return True\n    return True\n",
        (f"{REFUSED}a_text_that_the_model_refuses",),
    ),
    # -- the fold
    Mutation(
        "the fold loses an update after an add",
        "projection/changes",
        "        self.state = MemoryState.evolve(UNKNOWN if self.state is None else self.state, event)\n",
        "        if not (self.insert and isinstance(event, MemoryUpdated)):\n"
        "            self.state = MemoryState.evolve(UNKNOWN if self.state is None else self.state, event)\n",
        (REBUILT,),
    ),
    Mutation(
        "the fold loses a delete after an update",
        "projection/changes",
        "self.delete = self.delete or not self.insert",
        "self.delete = self.delete or not (self.insert or self.patch)",
        (f"{BATCHES}events_of_a_memory_in_one_batch[default]",),
    ),
    Mutation(
        "the fold keeps the vector of the content before",
        "memory/state",
        "            content, embedding = event.content, event.embedding\n",
        "            content = event.content\n",
        (f"{BATCHES}events_of_a_memory_in_one_batch[default]",),
    ),
    Mutation(
        "a memory's time is rounded",
        "projection/rows",
        "return from_timestamp(value) if",
        "return from_timestamp(value // 1000 * 1000) if",
        (f"{CONTRACT}timestamps_of_ones_own_come_back_exactly",),
    ),
    Mutation(
        "an update changes a memory's time",
        "memory/state",
        "MemoryState(content, state.created_at_us, metadata_json",
        "MemoryState(content, 1, metadata_json",
        (f"{CONTRACT}an_update_replaces_what_is_given",),
    ),
    # -- rows and vectors
    Mutation(
        "a delete leaves the row",
        "projection/pixeltable/writer",
        "        if changes:\n            for predicate",
        "        if False:\n            for predicate",
        (f"{BATCHES}events_of_a_memory_in_one_batch[default]",),
    ),
    Mutation(
        "new content of an update is not embedded",
        "projection/batches",
        "            if change.content is None or self._dimensions is None:\n",
        "            if change.content is None or change.patch or self._dimensions is None:\n",
        (f"{CONTRACT}an_update_with_a_vector",),
    ),
    Mutation(
        "equal texts get one vector",
        "projection/pixeltable/writer",
        '            if _same(known, cast("np.ndarray | None", vector)):\n',
        "            if True:\n",
        (f"{VECTORS}equal_texts_keep_their_vectors",),
    ),
    Mutation(
        "the cache believes damaged vectors",
        "embedding/vector_cache",
        "    if zlib.crc32(vector, zlib.crc32(digest)) != ",
        "    if False and zlib.crc32(vector, zlib.crc32(digest)) != ",
        (f"{CACHE}any_flipped_byte_is_a_miss_and_never_another_vector",),
    ),
    Mutation(
        "the cache gives another text's vector",
        "embedding/vector_cache",
        "    if not isinstance(entry, bytes) or len(entry) != 20 + 4 * dimensions or",
        "    if isinstance(entry, bytes) and len(entry) == 20 + 4 * dimensions:\n"
        '        return np.frombuffer(entry[20:], dtype="<f4")\n'
        "    if not isinstance(entry, bytes) or len(entry) != 20 + 4 * dimensions or",
        (f"{CACHE}an_entry_moved_to_another_key_is_a_miss",),
    ),
    Mutation(
        "the cache gives another model's vector",
        "embedding/vector_cache",
        "hashlib.blake2b(fingerprint.encode(), digest_size=16)",
        "hashlib.blake2b(b'', digest_size=16)",
        (f"{CACHE}another_model_finds_nothing_and_leaves_nothing_of_the_first",),
    ),
    # -- opening
    Mutation(
        "a half-made table is taken as it is",
        "projection/pixeltable/tables",
        '        pxt.drop_table(path, force=True, if_not_exists="ignore")\n',
        "        if path in pxt.list_tables(self.path.replace('/', '.')) + pxt.list_tables(self.path):\n"
        "            return\n",
        (f"{CRASH}[table.after_create]",),
    ),
    Mutation(
        "a half-made projection is taken as it is",
        "projection/pixeltable/tables",
        '            for name in ("registry", "dead_letters"):\n',
        "            for name in ():\n",
        (f"{REBUILD}parts_of_the_projection_are_deleted",),
    ),
    Mutation(
        "a half-built index is left in the way",
        "projection/sql/hnsw",
        "            if _is_valid(connection, table.hnsw) is False:",
        "            if False:",
        ("faults/test_hnsw.py",),
    ),
    Mutation(
        "a projection that was made from something else is taken",
        "projection/projection",
        "if fits(found.layout, state.layout) and msgspec.structs.replace(found, layout=state.layout) == state:\n",
        "if fits(found.layout, state.layout):\n",
        ("projection/test_mismatches.py",),
    ),
    Mutation(
        "a checkpoint ahead of the log is accepted",
        "projection/projection",
        "            if checkpoint_lsn > log.durable_lsn:\n",
        "            if False:\n",
        (f"{REBUILD}a_checkpoint_ahead_of_the_log_is_refused",),
    ),
    Mutation(
        "two stores write one projection",
        "projection/pixeltable/claim",
        "                if _try_lock(connection, key):\n",
        "                if _try_lock(connection, key) or True:\n",
        (f"{OWNERS}the_claim_of_a_process_that_has_ended_is_waited_for",),
    ),
    Mutation(
        "stores of one name share their tables",
        "projection/pixeltable/tables",
        'return f"{slug}_{tables_id.hex}"',
        'return f"{slug}_{0:032x}"',
        (f"{OWNERS}stores_of_one_name_in_different_homes_do_not_touch_each_other",),
    ),
    Mutation(
        "a copy of a store shares its tables",
        "store/manifest",
        "        if not before.is_taken():\n",
        "        if True:\n",
        (f"{OWNERS}a_copy_of_a_store_has_tables_of_its_own",),
    ),
    Mutation(
        "tables of 0.1.0 are made again",
        "projection/pixeltable/host",
        "            if found is not None and found != folder:\n",
        "            if False:\n",
        (f"{OWNERS}tables_named_as_0_1_0_named_them_move_with_what_users_added",),
    ),
    Mutation(
        "the first handle that is closed closes the store",
        "engine/engine",
        "            if not self._handles:\n                await self.aclose()",
        "            await self.aclose()",
        (f"{OWNERS}a_second_handle_in_this_process_is_the_same_store",),
    ),
    Mutation(
        "the claim on a projection is not renewed after the server was away",
        "projection/pixeltable/host",
        "        self._claim.renew()\n",
        "",
        (f"{DATABASE}::test_the_claim_on_a_projection_outlives_a_restart_of_the_server",),
    ),
    Mutation(
        "Pixeltable's HTTP server is left open",
        "projection/pixeltable/startup",
        "with contextlib.nullcontext() if keep_http_server else",
        "with contextlib.nullcontext() if True or keep_http_server else",
        (ORDINARY,),
    ),
    Mutation(
        "the log's files are for everybody",
        "log/file/files",
        "os.O_CREAT | os.O_TRUNC, 0o600)",
        "os.O_CREAT | os.O_TRUNC, 0o644)",
        (ORDINARY,),
    ),
    Mutation(
        "the cache's files are for everybody",
        "embedding/vector_cache",
        "os.O_CREAT | os.O_CLOEXEC, 0o600)",
        "os.O_CREAT | os.O_CLOEXEC, 0o644)",
        (f"{CACHE}files_are_for_their_owner_alone",),
    ),
    # -- the engine: calls
    Mutation(
        "updates of one memory run at once",
        "aio",
        "engine.locked(checked_namespace, [checked_id])",
        "engine.locked(checked_namespace, [])",
        (f"{CANCELLED}updates_and_deletes_are_linearizable_per_memory",),
    ),
    Mutation(
        "deletes of one memory run at once",
        "aio",
        "engine.locked(checked_namespace, ids)",
        "engine.locked(checked_namespace, [])",
        (f"{CONTRACT}of_many_deletes_of_one_memory_one_counts",),
    ),
    Mutation(
        "adds of one id run at once",
        "aio",
        "engine.locked(namespace, given)",
        "engine.locked(namespace, [])",
        (f"{CONTRACT}of_many_adds_of_one_id_one_succeeds",),
    ),
    Mutation(
        "a memory that is not visible yet is unknown",
        "engine/memtable",
        "        return None if events is None else type(events[-1].event) is not MemoryDeleted\n",
        "        return None\n",
        (f"{CONTRACT}an_update_right_after_the_add",),
    ),
    Mutation(
        "a memory is forgotten before it is visible",
        "engine/memtable",
        "        while events and events[0][0] <= watermark:\n",
        "        while events:\n",
        (f"{CONTRACT}an_update_right_after_the_add",),
    ),
    Mutation(
        "ids are checked before the backlog of the life before is visible",
        "engine/engine",
        "        await self._visible.wait(self._opened_lsn, self.options.wait_timeout_seconds)\n        found",
        "        found",
        (f"{REBUILD}ids_of_a_backlog_are_known_to_the_first_call",),
    ),
    Mutation(
        "a dead letter's memory is taken from its row",
        "engine/engine",
        "    by_row = [memory_id for memory_id, exists in dead.items() if exists is None]\n",
        "    by_row = list(dead)\n    dead = {}\n",
        (f"{REFUSED}a_delete_waits_behind_a_dead_letter_and_answers_what_was_acknowledged",),
    ),
    Mutation(
        "a withdrawn append counts for ever",
        "engine/engine",
        "                self._room.made(len(events))\n",
        "                self._room.made(0)\n",
        (f"{CANCELLED}a_withdrawn_append_makes_room",),
    ),
    Mutation(
        "a withdrawn append wakes nobody",
        "engine/room",
        "        self._was_made.set()\n",
        "",
        (f"{CANCELLED}a_withdrawn_append_makes_room",),
    ),
    Mutation(
        "an append that was taken counts as withdrawn",
        "engine/engine",
        "            if store.log.withdraw(append):\n",
        "            if store.log.withdraw(append) or True:\n",
        (f"{CANCELLED}a_call_that_is_cancelled_again_and_again_keeps_its_memory_until_its_outcome_is_known",),
    ),
    Mutation(
        "a call that is cancelled twice lets go of its memory",
        "engine/engine",
        "            while not done.is_set():\n",
        "            if not done.is_set():\n",
        (f"{CANCELLED}a_call_that_is_cancelled_again_and_again_keeps_its_memory_until_its_outcome_is_known",),
    ),
    Mutation(
        "writers are not held back",
        "engine/engine",
        "        if not self._room.has(store, len(events)):\n",
        "        if False:\n",
        (DEATH,),
    ),
    Mutation(
        "times are the clock's, which steps back",
        "engine/engine",
        "max(time.time_ns() // 1000, self._last_created_us + 1)",
        "time.time_ns() // 1000",
        (f"{FAILURES}steps_of_the_clock_leave_the_newest_first",),
    ),
    # -- the engine: reads, waiting, health
    Mutation(
        "a session does not see its own writes",
        "engine/engine",
        "                if events is not None:\n                    return search, events\n",
        "                if events is not None:\n                    return search, []\n",
        (OWN_WRITES,),
    ),
    Mutation(
        "what a read does not lay over the tables is not waited for",
        "engine/engine",
        "lsn = max([self._opened_lsn, *map(self._visible.memtable.last_lsn, namespaces)])",
        "lsn = self._opened_lsn",
        (f"{WAITS}more_than_a_read_lays_over_the_tables_is_waited_for",),
    ),
    Mutation(
        "what a life left unprojected is forgotten",
        "engine/engine",
        "        await anyio.to_thread.run_sync(visibility.memtable.load, store.log, watermark + 1)\n",
        "",
        (f"{WAITS}what_a_life_left_unprojected_is_seen_without_a_wait",),
    ),
    Mutation(
        "the memtable forgets what the tables do not show",
        "engine/memtable",
        "while events and events[0][0] <= watermark:",
        "while events and events[0][0] <= watermark + 1:",
        (f"{HOLD}it_is_the_end_of_the_log",),
    ),
    Mutation(
        "a changed memory is found twice",
        "projection/overlay",
        "others = self._host.search(msgspec.structs.replace(search, without=self._keys, offset=0, limit=last))",
        "others = self._host.search(msgspec.structs.replace(search, offset=0, limit=last))",
        (f"{SEVERAL}they_see_what_the_tables_do_not_show_yet",),
    ),
    Mutation(
        "an offset is applied before the changes are laid over",
        "projection/overlay",
        "without=self._keys, offset=0, limit=last)",
        "without=self._keys)",
        (f"{SEVERAL}they_see_what_the_tables_do_not_show_yet",),
    ),
    Mutation(
        "a move and the registry commit apart",
        "projection/pixeltable/writer",
        "            registry.batch_update([registry_row(namespace, name)])\n",
        "",
        (f"{LAYOUTS}a_move_that_failed_leaves_every_memory_once[move.committed]",),
    ),
    Mutation(
        "a move leaves its vectors behind",
        "projection/pixeltable/writer",
        "        if own.vector is not None and shared.vector is not None:\n",
        "        if False and own.vector is not None and shared.vector is not None:\n",
        (f"{LAYOUTS}vectors_move_exactly",),
    ),
    Mutation(
        "a move that a kill cut short is not finished",
        "projection/pixeltable/host",
        "        for namespace in self.tables.unfinished_moves():\n",
        "        for namespace in ():\n",
        (f"{LAYOUTS}a_move_that_failed_leaves_every_memory_once[move.committed]",),
    ),
    Mutation(
        "a namespace is not purged where it was before it moved",
        "projection/pixeltable/tables",
        "            return [name, SHARED_TABLE]\n",
        "            return [name]\n",
        ("projection/test_purge.py::test_what_has_moved_is_purged_where_it_was",),
    ),
    Mutation(
        "a prefix is of characters",
        "memory/namespaces",
        "namespace.startswith(self.prefix + self.separator)",
        "namespace.startswith(self.prefix)",
        (f"{SEVERAL}a_prefix_is_whole_labels",),
    ),
    Mutation(
        "a cursor over several namespaces does not know them apart",
        "projection/sql/ranking",
        '    place = f"{key}, {asked.namespace}"\n',
        '    place = f"{key}, %(after_namespace)s"\n',
        (f"{SEVERAL}a_cursor_over_several_visits_each_memory_once",),
    ),
    Mutation(
        "those who wait are not told of the projector's end",
        "engine/visibility",
        "(self._waiting[0][0] <= watermark or self._projector.failure is not None)",
        "self._waiting[0][0] <= watermark",
        (DEATH,),
    ),
    Mutation(
        "those who wait are not told of a failed flush",
        "engine/visibility",
        "        if self._log.failure is not None:\n",
        "        if False:\n",
        (f"{FAILURES}a_reader_that_waits_for_the_flush_that_fails_is_told",),
    ),
    Mutation(
        "the filter comes after the limit",
        "projection/sql/ranking",
        'FROM {self.table.name} WHERE {self.where} ORDER BY {order} "',
        "FROM (SELECT * FROM {self.table.name} WHERE v_max = 9223372036854775807 ORDER BY {order} "
        'LIMIT %(limit)s) AS few WHERE {self.where} ORDER BY {order} "',
        (f"{SEARCH}filters_are_applied_before_the_limit",),
    ),
    Mutation(
        "the shared table shows other namespaces",
        "projection/sql/reads",
        "        if not self._tables.is_shared(table):\n            return LIVE, {}\n",
        "        if True:\n            return LIVE, {}\n",
        (f"{CONTRACT}namespaces_are_kept_apart",),
    ),
    Mutation(
        "reads do not outlive a restart of the server",
        "projection/sql/reads",
        "if attempt == 2 or not is_infrastructure_error(error):",
        "if True:",
        (f"{DATABASE}::test_the_claim_on_a_projection_outlives_a_restart_of_the_server",),
    ),
    Mutation(
        "health is green beside dead letters",
        "engine/health",
        "    if letters:\n",
        "    if False:\n",
        (ONE_REFUSED,),
    ),
    Mutation(
        "health is green while the projector is blocked",
        "engine/health",
        "    if projector.blocked is not None:\n        problems",
        "    if False:\n        problems",
        (DEATH,),
    ),
    Mutation(
        "health is green while writes are refused",
        "engine/health",
        "    if (failure := store.log.failure) is not None:\n",
        "    if False:\n",
        (f"{FAILURES}a_failed_sync",),
    ),
    Mutation(
        "a close does not wait for what is durable",
        "engine/engine",
        "await self._drain(store)\n        except",
        "pass\n        except",
        (f"{BATCHES}a_close_waits_until_all_is_visible",),
    ),
)


@needs_the_long_form
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)
