"""mutation gate: bugs of the log. See ``mutation_gate``."""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

POWER, IO, DAMAGE, KILL, OWNERS, CLOCK = (
    (f"faults/test_log_{name}.py",) for name in ("powerloss", "io_faults", "damage", "kill9", "owners", "clock")
)

REWRITE, REWRITING = ("faults/test_log_rewrite.py",), ("log/test_rewriting.py",)

MUTATIONS = (
    Mutation("no sync", "log/file/active_segment", "            self._files.sync(fd)\n", "            pass\n", POWER),
    Mutation("no sync of a new segment", "log/file/segment", "            files.sync(fd)\n", "", POWER),
    Mutation("no folder sync", "log/file/segment", "            files.sync_folder(path.parent)\n", "", POWER),
    Mutation(
        "no sync of the folders above",
        "log/file/files",
        "            files.sync_folder(parent)\n",
        "            pass\n",
        POWER,
    ),
    Mutation(
        "no folder sync before a seal",
        "log/file/recovery",
        "        files.sync_folder(log_folder)  #",
        "        pass  #",
        POWER,
    ),
    Mutation(
        "a seal in the page cache is believed",
        "log/file/recovery",
        "(following.segment.header.recovered or not following.frames)",
        "False",
        POWER,
    ),
    Mutation(
        "a failed sync is tried again",
        "log/file/active_segment",
        "            self.broken = True\n            raise UnknownOutcomeError(",
        "            return self._files.sync(fd)\n            raise UnknownOutcomeError(",
        IO,
    ),
    Mutation(
        "a failed sync does not poison",
        "log/file/active_segment",
        "            self.broken = True\n            raise UnknownOutcomeError(",
        "            raise UnknownOutcomeError(",
        IO,
    ),
    Mutation(
        "acknowledged without a sync",
        "log/file/group_commit",
        "if self._sync_mode is SyncMode.ALWAYS:",
        "if False:",
        POWER,
    ),
    Mutation(
        "a part of a frame is left",
        "log/file/active_segment",
        "            self._files.truncate(self._fd, place)\n",
        "",
        IO,
    ),
    Mutation("a short write is not continued", "log/file/files", "    while view:\n", "    if view:\n", IO),
    Mutation(
        "no checksum of the body",
        "log/file/walk",
        "!= header.body_checksum",
        "!= header.body_checksum and False",
        DAMAGE,
    ),
    Mutation(
        "no checksum of a header", "log/file/frame", "header.checksum == crc32(", "header.checksum != -crc32(", DAMAGE
    ),
    Mutation(
        "a bad checksum is the end of the log",
        "log/file/verification",
        "        if bad is not None and not self._is_torn(found) and not drop_damaged:\n",
        "        if False:\n",
        DAMAGE,
    ),
    Mutation(
        "damage before intact frames is the end of the log",
        "log/file/verification",
        "            if last and not error.foreign:\n",
        "            if False:\n",
        DAMAGE,
    ),
    Mutation(
        "a missing last segment is not seen",
        "log/file/verification",
        "        if found.sealed:\n",
        "        if False:\n",
        DAMAGE,
    ),
    Mutation("a missing log is a new one", "log/file/file_log", "not verified.segments and has_log", "False", DAMAGE),
    Mutation(
        "frames are not chained",
        "log/file/walk",
        "header.first_lsn != lsn or header.previous_checksum != checksum",
        "False",
        DAMAGE,
    ),
    Mutation(
        "a foreign segment is taken", "log/file/verification", "header.store_id != self.store_id", "False", DAMAGE
    ),
    Mutation(
        "the torn tail is not kept",
        "log/file/recovery",
        "    write_file(files, target, data,",
        "    write_file(files, target, b'',",
        DAMAGE,
    ),
    Mutation(
        "what was not attested is not copied",
        "log/file/recovery",
        "            if header.kind != FrameKind.EVENTS:\n",
        "            if header.kind != FrameKind.EVENTS or header.durable_lsn == 0:\n",
        POWER,
    ),
    Mutation(
        "a seal is written before the next segment is made",
        "log/file/active_segment",
        "        fd = self._create(path, header)\n",
        "        self._writer.write_mark(self._files, self._fd or 0, FrameKind.SEAL, 'seal')\n"
        "        fd = self._create(path, header)\n",
        KILL,
    ),
    Mutation("two owners", "store/lock", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", OWNERS),
    Mutation(
        "a child of a fork writes",
        "log/file/group_commit",
        "        if forks() != self._forks:\n            raise",
        "        if False:\n            raise",
        OWNERS,
    ),
    Mutation(
        "time goes back at an open",
        "log/file/recovery",
        "max((found.logged_at_ns for",
        "min((found.logged_at_ns for",
        CLOCK,
    ),
    Mutation(
        "no sync of a rewritten log's name",
        "log/file/rewrite",
        '        self._files.sync_folder(self._folder)\n        fault_point("rewrite.after_create")',
        '        fault_point("rewrite.after_create")',
        REWRITE,
    ),
    Mutation(
        "no sync of the names in a rewritten log",
        "log/file/rewrite",
        '        self._files.sync_folder(self._folder)\n        fault_point("rewrite.after_folder_sync")',
        '        fault_point("rewrite.after_folder_sync")',
        REWRITE,
    ),
    Mutation(
        "no sync of a rewritten segment",
        "log/file/rewrite",
        '        self._files.sync(self._fd)\n        fault_point("rewrite.after_segment_sync")',
        '        fault_point("rewrite.after_segment_sync")',
        REWRITE,
    ),
    Mutation(
        "a switch that was cut short is not finished",
        "log/file/file_log",
        "            finish_switch(files, folder)\n",
        "",
        REWRITE,
    ),
    Mutation(
        "an old log is left",
        "log/file/file_log",
        "            remove_leftovers(files, folder)\n            ready",
        "            ready",
        REWRITE,
    ),
    Mutation(
        "reads go on while logs are switched", "log/file/file_log", "with self._reader.paused():", "if True:", REWRITING
    ),
    Mutation("what was taken out stays in memory", "log/file/file_log", "        self._tail.clear()\n", "", REWRITING),
    Mutation(
        "the rest is not copied",
        "log/file/file_log",
        "        rewriting.copy(self._active.last_lsn)\n",
        "",
        REWRITING,
    ),
    Mutation(
        "time goes back", "log/file/group_commit", "if logged_at_ns < self.last_logged_at_ns:", "if False:", CLOCK
    ),
    Mutation(
        "a writer does not chain its frames",
        "log/file/segment_writer",
        "        self._next = Place(end.lsn + event_count, end.byte_offset + len(frame), checksum)\n",
        "        self._next = Place(end.lsn + event_count, end.byte_offset + len(frame), end.previous_checksum)\n",
        ("log/test_commit.py", "log/test_recovery.py"),
    ),
    Mutation(
        "a writer goes on behind a frame that was not written",
        "log/file/active_segment",
        "            raise self._undo(error) from error\n        fault_point",
        "            self._writer.advance()\n            raise self._undo(error) from error\n        fault_point",
        IO,
    ),
    Mutation(
        "a bad frame is no damage to whoever reads",
        "log/file/walk",
        "            raise LogCorruptError(self.path, bad.byte_offset, bad.lsn, bad.reason) from bad\n",
        "            yield None\n",
        ("log/test_read.py",),
    ),
)


@needs_the_long_form
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)
