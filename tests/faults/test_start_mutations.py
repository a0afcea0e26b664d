"""mutation gate: bugs of the database's start, of forks, of tables that cannot be built, of connections.

See ``mutation_gate``.
"""

from __future__ import annotations

import pytest

from tests.harness.mutation_gate import Mutation, check_mutation, check_without_a_bug, mutation_id, needs_the_long_form

START = "faults/test_database_start.py::test_"
FORKS = "faults/test_forks.py::test_"
TABLES = "faults/test_unbuildable_tables.py::test_"
CONNECTIONS = "faults/test_connections.py::test_"
DATABASE = "faults/test_engine_database.py::test_"

BUSY_FORKS = (f"{FORKS}children_are_refused_and_the_parent_is_not_disturbed[os.fork-busy]",)
GONE = (f"{TABLES}a_database_that_is_gone",)

MUTATIONS = (
    # -- the start of the database
    Mutation(
        "a pid file is believed without asking the socket",
        "projection/pixeltable/server",
        '            self._refusal = str(error).strip().partition("\\n")[0]\n            return is_exhausted(error)\n',
        "            return psutil.pid_exists(running.pid)\n",
        (f"{START}a_stale_pid_file_whose_number_lives[the same user's]",),
    ),
    Mutation(
        "a stale pid file is left to PostgreSQL",
        "projection/pixeltable/server",
        "        self._mark_stale()\n        account",
        "        account",
        (f"{START}a_stale_pid_file_whose_number_lives[the same user's]",),
    ),
    Mutation(
        "the lock file of a stale socket is left to PostgreSQL",
        "projection/pixeltable/server",
        '        (sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)\n',
        "",
        (f"{START}a_stale_pid_file_whose_number_lives[the same user's]",),
    ),
    Mutation(
        "starts are not serialised",
        "projection/pixeltable/start_lock",
        "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n    except BlockingIOError:",
        "        pass\n    except BlockingIOError:",
        (f"{START}starts_at_once[first start-6]", f"{START}a_start_that_waits_is_bounded_and_can_be_ended"),
    ),
    Mutation(
        "initdb works in place",
        "projection/pixeltable/server",
        "        in_place = os.path.ismount(self.pgdata)\n",
        "        self.pgdata.mkdir(mode=0o700, exist_ok=True)\n"
        "        if account.uid is not None:\n"
        "            os.chown(self.pgdata, account.uid, account.gid)\n"
        "        in_place = True\n",
        (f"{START}a_creation_that_is_killed_in_its_middle", f"{START}two_creations_never_work_in_one_folder"),
    ),
    Mutation(
        "initdb outlives the lock of its start",
        "projection/pixeltable/server",
        "keep = () if lock is None else (lock,)",
        "keep = ()",
        (f"{START}two_creations_never_work_in_one_folder",),
    ),
    Mutation(
        "what a killed server left behind is waited for",
        "projection/pixeltable/server",
        "                if self._locked_by() in processes:\n",
        '                if (self.pgdata / "postmaster.pid").exists():\n',
        (f"{START}a_killed_server_whose_backends_live_on[busy]",),
    ),
    Mutation(
        "the server's own reason is not told",
        "projection/pixeltable/server",
        "did not start: {self._log_end(log_bytes)}",
        "did not start: {self.pgdata}",
        (f"{START}a_server_that_cannot_start_says_why",),
    ),
    Mutation(
        "a locale that is not installed ends the start",
        "projection/pixeltable/server",
        'if done.returncode != 0 and "locale" in done.stderr:',
        "if False:",
        (f"{START}a_locale_that_is_not_installed",),
    ),
    Mutation(
        "an open does not bring a server back that is gone",
        "projection/pixeltable/startup",
        "        if Env._instance is not None:  # of an earlier open; its server may be gone meanwhile\n",
        "        if False:\n",
        GONE,
    ),
    # -- forks
    Mutation(
        "a child keeps the sockets of its parent",
        "projection/sql/session",
        "            os.dup2(null, connection.pgconn.socket, inheritable=False)\n",
        "            pass\n",
        (f"{FORKS}a_child_that_outlives_a_killed_parent_keeps_nothing[a fork]",),
    ),
    Mutation(
        "a child is not refused",
        "projection/pixeltable/startup",
        "    if parent is not None and parent != os.getpid():\n",
        "    if False:\n",
        BUSY_FORKS,
    ),
    Mutation(
        "a child keeps the lock of its parent's store",
        "store/lock",
        "os.register_at_fork(after_in_child=_after_fork_in_child)\n",
        "",
        (f"{FORKS}a_child_that_outlives_a_killed_parent_keeps_nothing[a fork]",),
    ),
    # -- tables that cannot be built
    Mutation(
        "a rebuild that is blocked is waited for",
        "engine/engine",
        "if failure is not None or time.monotonic() - moved_at > self.options.wait_timeout_seconds:",
        "if failure is not None:",
        (f"{TABLES}an_open_whose_rebuild_is_blocked_ends_with_the_cause[projector.apply.before]",),
    ),
    Mutation(
        "health says nothing of tables that are missing",
        "engine/health",
        "    if projector.blocked is not None:\n        problems.append(projector.blocked)\n",
        "    if projector.blocked is not None and not store.projection.is_missing:\n"
        "        problems.append(projector.blocked)\n",
        GONE,
    ),
    Mutation(
        "that the database does not answer hides why it does not start",
        "projection/projector",
        "                    revived = self._try_revive()\n",
        "                    revived = self._try_revive() or True\n",
        GONE,
    ),
    Mutation(
        "a cancelled read is waited for",
        "engine/engine",
        "run_sync(run, limiter=self._readers, abandon_on_cancel=True)",
        "run_sync(run, limiter=self._readers)",
        (f"{TABLES}a_cancelled_read_ends_though_nothing_answers",),
    ),
    Mutation(
        "a read waits for the database for ever",
        "engine/engine",
        "        with anyio.move_on_after(seconds), reading():\n",
        "        with anyio.move_on_after(9e9), reading():\n",
        (f"{DATABASE}a_read_that_the_database_does_not_answer_ends",),
    ),
    Mutation(
        "the claim is not taken again",
        "projection/pixeltable/claim",
        "            self._keys = {key for key in self._keys if _try_lock(connection, key)}\n",
        "            pass\n",
        (f"{DATABASE}the_claim_on_a_projection_outlives_a_restart_of_the_server",),
    ),
    # -- connections
    Mutation(
        "the pool has no limit",
        "projection/sql/session",
        "lambda: self._in_use < size_max, timeout_seconds",
        "lambda: True, timeout_seconds",
        (f"{CONNECTIONS}connections_are_bounded_under_many_threads",),
    ),
    Mutation(
        "idle connections are kept",
        "projection/sql/session",
        "                while self._idle and self._idle[0][1] < before:\n",
        "                while False:\n",
        (f"{CONNECTIONS}idle_connections_are_let_go",),
    ),
    Mutation(
        "exhaustion does not say what to do",
        "projection/sql/failures",
        'return f"{line}. {EXHAUSTED_REMEDY}" if is_exhausted(error) else line',
        "return line",
        (f"{CONNECTIONS}exhaustion_is_an_error_that_says_what_to_do_and_heals",),
    ),
)


@needs_the_long_form
def test_without_a_bug() -> None:
    check_without_a_bug(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=mutation_id)
def test_mutation_gate(mutation: Mutation) -> None:
    check_mutation(mutation)
