"""mutation gate: bugs of the ground a store stands on: its paths, its folder, its disk. See ``mutation_gate``."""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

PATHS, MOVED, PROBLEM = ("store/test_paths.py",), ("store/test_folder_moved.py",), ("log/test_problem.py",)
MOVES = ("faults/test_log_moved_folder.py",)
ENGINE = ("faults/test_ground.py",)
HEALTH = ("faults/test_log_failures.py::test_a_full_disk_refuses_writes_until_there_is_room",)
CACHE = ("embedding/test_vector_cache.py::test_a_cache_whose_folder_was_replaced_touches_nothing_there",)

MUTATIONS = (
    Mutation(
        "a home is not made absolute",
        "paths",
        "Path(text if os.path.isabs(text) else os.path.join(os.getcwd(), text))",
        "Path(text)",
        PATHS,
    ),
    Mutation("two dots are taken out of a path as text", "paths", 'if ".." not in parts:', "if True:", PATHS),
    Mutation("a tilde is a name", "paths", 'if text.startswith("~"):', "if False:", PATHS),
    Mutation(
        "a folder that another process just made is an error",
        "log/file/files",
        "    except FileExistsError:\n        if not files.is_folder(path):",
        "    except FileExistsError:\n        if True:",
        PATHS,
    ),
    Mutation(
        "no check of the folder before a segment",
        "log/file/active_segment",
        "        self.check_folder()\n        old, end",
        "        old, end",
        MOVED,
    ),
    Mutation(
        "no check of the folder before a rewrite",
        "log/file/file_log",
        "            self._check_folder()\n            remove_leftovers",
        "            remove_leftovers",
        MOVED,
    ),
    Mutation(
        "no check of the folder before a switch",
        "log/file/file_log",
        "                self._check_folder()\n                switch_logs",
        "                switch_logs",
        MOVED,
    ),
    Mutation(
        "no check of the folder before a manifest",
        "store/manifest",
        "            check_folder()\n",
        "",
        MOVED,
    ),
    Mutation(
        "no check of the folder before quarantine",
        "log/file/file_log",
        "            check_folder()  # verifying took its time\n",
        "",
        MOVED,
    ),
    Mutation(
        "no check of the folder while writes come",
        "log/file/group_commit",
        "if (now := time.monotonic()) >= self._folder_check_due:",
        "if (now := time.monotonic()) < 0:",
        MOVED,
    ),
    Mutation("any LOCK is ours", "store/lock", "if _identity(there) != self._identity:", "if there is None:", MOVED),
    Mutation(
        "a segment is read by its path",
        "log/file/files",
        "        return self._open_at(path, os.O_RDONLY)\n",
        "        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)\n",
        MOVED,
    ),
    Mutation(
        "a segment is made by its path",
        "log/file/files",
        "        return self._open_at(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)\n",
        "        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)\n",
        MOVES,
    ),
    Mutation("a folder that is gone is damage", "log/file/reader", "            self._check_moved(error)\n", "", MOVED),
    Mutation(
        "an engine does not hold its folder",
        "store/opening",
        "        files.hold_folder(folder, lock.folder_fd)\n",
        "",
        ENGINE,
    ),
    Mutation(
        "the cache uses what stands in the place of the store",
        "embedding/vector_cache",
        "            self._check_folder()\n            action",
        "            action",
        CACHE,
    ),
    Mutation(
        "the cache deletes what stands in the place of the store",
        "embedding/vector_cache",
        "        usable = not self._closed\n        self._check_folder()\n",
        "        usable = not self._closed\n",
        CACHE,
    ),
    Mutation(
        "health forgets that writes fail",
        "engine/health",
        "elif (problem := store.log.problem) is not None:",
        "elif (problem := store.log.failure) is not None:",
        HEALTH,
    ),
    Mutation(
        "a probe that succeeds clears nothing",
        "log/file/group_commit",
        '            _logger.info("the log can be written again")\n            self.problem = self._probe_due = None\n',
        '            _logger.info("the log can be written again")\n',
        PROBLEM,
    ),
    Mutation(
        "a probe asks for less room than the write that failed",
        "log/file/active_segment",
        "        end_bytes = start + self._tried_bytes\n",
        "        end_bytes = start + 64\n",
        PROBLEM,
    ),
    Mutation(
        "a probe keeps what it could not fill",
        "log/file/active_segment",
        "                self._files.truncate(self._fd, max(start, self._reserved_bytes))\n",
        "                pass\n",
        PROBLEM,
    ),
    Mutation(
        "a probe does not try the rotation that failed",
        "log/file/active_segment",
        "        self.check_folder()\n        self._make_room_in_segment()\n",
        "        self.check_folder()\n",
        PROBLEM,
    ),
    Mutation(
        "a probe that fails half-way does not poison",
        "log/file/group_commit",
        "            if self._active.broken:\n                self._poison(error)\n            else:\n"
        "                self._note_problem(error)\n        else:\n",
        "            self._note_problem(error)\n        else:\n",
        PROBLEM,
    ),
    Mutation(
        "no room is reserved any more after a full disk",
        "log/file/active_segment",
        "        self._reserves = self._may_reserve\n",
        "",
        PROBLEM,
    ),
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)


@needs_the_long_form
@pytest.mark.timeout(1800)
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)
