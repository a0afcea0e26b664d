"""mutation gate: bugs of what erases memories and compacts history. See ``mutation_gate``."""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

ERASE = "faults/test_erase.py::test_"
PURGE = "projection/test_purge.py::test_"

LEFT = (f"{PURGE}nothing_of_erased_memories_is_left[a table each]",)
VECTORS = (f"{ERASE}vectors_leave_the_cache_and_the_quarantine_is_emptied",)
MISSED = (f"{ERASE}a_projection_that_missed_what_was_taken_out_is_rebuilt",)
FOLD = ("memory/test_state.py",)
COMPACTED = (f"{ERASE}compaction_changes_no_memory[Layout.PER_NAMESPACE]",)


def _killed(point: str) -> tuple[str]:
    return (f"{ERASE}erase_canary[{point}]",)


MUTATIONS = (
    # -- an erase and its intent
    Mutation(
        "the intent is not written before the log is",
        "store/erase",
        "self._maintenance.save(erasing=erasure, rewritten_lsn",
        "self._maintenance.save(rewritten_lsn",
        _killed("erase.after_log"),
    ),
    Mutation(
        "the intent is cleared before the tables are purged",
        "store/erase",
        '            on_tables(erasure)\n            fault_point("erase.after_projection")\n'
        "            self._maintenance.save(erasing=None)\n",
        "            self._maintenance.save(erasing=None)\n            on_tables(erasure)\n"
        '            fault_point("erase.after_projection")\n',
        _killed("purge.committed"),
    ),
    Mutation(
        "an open does not finish an erase",
        "store/erase",
        "            if self._maintenance.manifest.erasing is None:\n                return\n",
        "            if True:\n                return\n",
        _killed("erase.after_intent"),
    ),
    Mutation(
        "an erase does not say up to where it rewrote",
        "store/erase",
        "erasing=erasure, rewritten_lsn=rewritten_lsn)",
        "erasing=erasure)",
        MISSED,
    ),
    Mutation(
        "an erase takes the same id of other namespaces",
        "memory/erasure",
        "            and event.namespace == self._namespace\n",
        "",
        (f"{ERASE}an_id_of_another_namespace_stays",),
    ),
    Mutation("vectors are not discarded", "store/erase", "            self._discard_vectors(erasure)\n", "", VECTORS),
    Mutation("quarantine is kept", "store/erase", "            self._empty_quarantine()\n", "", VECTORS),
    Mutation(
        "dead letters of erased memories wait on",
        "projection/projection",
        "self.projector.forget_dead_letters(erasure.namespace, erasure.memory_ids, erasure.up_to_lsn)",
        "pass",
        (f"{ERASE}an_erase_takes_dead_letters_with_it",),
    ),
    Mutation(
        "a projection older than what was taken out is kept",
        "projection/projection",
        "if checkpoint_lsn == 0 or checkpoint_lsn >= rewritten_lsn:",
        "if True:",
        MISSED,
    ),
    # -- the tables and what PostgreSQL keeps
    Mutation(
        "old versions of a row are kept",
        "projection/pixeltable/purge",
        "f\"({column['lsn']} <= %(lsn)s OR {column['lsn']} IS NULL)\"",
        "f\"({column['lsn']} <= %(lsn)s OR {column['lsn']} IS NULL) AND {internals.LIVE}\"",
        LEFT,
    ),
    Mutation(
        "rows that a user inserted are kept",
        "projection/pixeltable/purge",
        " OR {column['lsn']} IS NULL)",
        ")",
        (f"{PURGE}a_whole_namespace[a table each]",),
    ),
    Mutation(
        "rows in views are kept",
        "projection/pixeltable/purge",
        "    for view in internals.derived_tables(connection, table):\n",
        "    for view in ():\n",
        LEFT,
    ),
    Mutation(
        "rows of dead letters are kept",
        "projection/pixeltable/purge",
        '        _execute(connection, f"DELETE FROM {dead.name} WHERE {where}", parameters)\n',
        "",
        LEFT,
    ),
    Mutation(
        "tables are not rewritten",
        "projection/pixeltable/purge",
        "                    _rewrite(connection, each)\n",
        "    " * 5 + "pass\n",
        LEFT,
    ),
    Mutation(
        "the planner's statistics are kept",
        "projection/pixeltable/purge",
        "            _delete_statistics(connection, touched)\n",
        "            pass\n",
        LEFT,
    ),
    Mutation(
        "the table of statistics is not rewritten",
        "projection/pixeltable/purge",
        '    for catalog in ("pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data"):\n',
        "    for catalog in ():\n",
        LEFT,
    ),
    Mutation(
        "PostgreSQL's log is kept",
        "projection/pixeltable/purge",
        "            os.truncate(log, 0)  #",
        "            pass  #",
        LEFT,
    ),
    Mutation(
        "the write-ahead log is kept",
        "projection/pixeltable/purge",
        "    while _current_segment(connection) <= max(segments):\n",
        "    while False:\n",
        LEFT,
    ),
    Mutation(
        "transactions that still see a row are not waited for",
        "projection/pixeltable/purge",
        "    while older := connection.execute(",
        "    while older := [] and connection.execute(",
        (f"{PURGE}tables_in_use",),
    ),
    # -- compaction
    Mutation(
        "compaction does not say up to where it rewrote",
        "store/compaction",
        "        maintenance.save(rewritten_lsn=max(maintenance.manifest.rewritten_lsn, up_to_lsn))\n",
        "",
        MISSED,
    ),
    Mutation(
        "compaction takes the history of a dead letter",
        "store/compaction",
        "Compaction(up_to_lsn, {(each.namespace, each.memory_id) for each in dead})",
        "Compaction(up_to_lsn, ())",
        (f"{ERASE}memories_with_a_dead_letter_keep_their_history",),
    ),
    Mutation(
        "the fold loses an update's metadata",
        "memory/state",
        "        if event.metadata_json is not None:\n",
        "        if False:\n",
        FOLD,
    ),
    Mutation(
        "the fold loses the vector of an update",
        "memory/state",
        "            content, embedding = event.content, event.embedding\n",
        "            content = event.content\n",
        FOLD,
    ),
    Mutation(
        "compaction brings a deleted memory back",
        "store/compaction",
        "                del self._last[key]\n",
        "                pass\n",
        COMPACTED,
    ),
    Mutation(
        "compaction writes a memory before its last event",
        "store/compaction",
        "        if stored.lsn < last_lsn:\n",
        "        if False:\n",
        COMPACTED,
    ),
)


@needs_the_long_form
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)
