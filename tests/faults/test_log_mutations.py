"""mutation gate: bugs put into a copy of the log, each of which the battery must catch.

The long form runs the battery on each copy; the short one only checks that each bug can still be put in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from fault_report import LONG_FORM, FaultReport

ROOT = Path(__file__).parent.parent.parent


class Mutation(NamedTuple):
    """One bug: ``old`` becomes ``new`` in ``module`` of the log; ``tests`` catch it."""

    name: str
    module: str
    old: str
    new: str
    tests: str


POWER, IO, DAMAGE, KILL, OWNERS, CLOCK = "powerloss", "io_faults", "damage", "kill9", "owners", "clock"

MUTATIONS = (
    Mutation("no sync", "appender", "            self._files.sync(fd)\n", "            pass\n", POWER),
    Mutation("no sync of a new segment", "segment", "            files.sync(fd)\n", "", POWER),
    Mutation("no folder sync", "segment", "            files.sync_folder(path.parent)\n", "", POWER),
    Mutation(
        "no sync of the folders above", "files", "            files.sync_folder(parent)\n", "            pass\n", POWER
    ),
    Mutation(
        "no folder sync before a seal",
        "renewal",
        "        files.sync_folder(log_folder)  #",
        "        pass  #",
        POWER,
    ),
    Mutation(
        "a seal in the page cache is believed",
        "renewal",
        "(following.segment.header.recovered or not following.frames)",
        "False",
        POWER,
    ),
    Mutation(
        "a failed sync is tried again",
        "appender",
        "            self.broken = True\n            raise UnknownOutcomeError(",
        "            return self._files.sync(fd)\n            raise UnknownOutcomeError(",
        IO,
    ),
    Mutation(
        "a failed sync does not poison",
        "appender",
        "            self.broken = True\n            raise UnknownOutcomeError(",
        "            raise UnknownOutcomeError(",
        IO,
    ),
    Mutation("acknowledged without a sync", "writer", "if self._sync_mode is SyncMode.ALWAYS:", "if False:", POWER),
    Mutation("a part of a frame is left", "appender", "            self._files.truncate(self._fd, place)\n", "", IO),
    Mutation("a short write is not continued", "files", "    while view:\n", "    if view:\n", IO),
    Mutation("no checksum of the body", "walk", "!= header.body_checksum", "!= header.body_checksum and False", DAMAGE),
    Mutation("no checksum of a header", "record", "header.checksum == crc32(", "header.checksum != -crc32(", DAMAGE),
    Mutation(
        "a bad checksum is the end of the log",
        "recovery",
        "        if bad is not None and not self._is_torn(found) and not drop_damaged:\n",
        "        if False:\n",
        DAMAGE,
    ),
    Mutation(
        "damage before intact frames is the end of the log",
        "recovery",
        "            if last and not error.foreign:\n",
        "            if False:\n",
        DAMAGE,
    ),
    Mutation(
        "a missing last segment is not seen", "recovery", "        if found.sealed:\n", "        if False:\n", DAMAGE
    ),
    Mutation("a missing log is a new one", "log", "not verified.segments and has_log", "False", DAMAGE),
    Mutation(
        "frames are not chained",
        "walk",
        "header.first_lsn != lsn or header.previous_checksum != checksum",
        "False",
        DAMAGE,
    ),
    Mutation("a foreign segment is taken", "recovery", "header.store_id != self.store_id", "False", DAMAGE),
    Mutation(
        "the torn tail is not kept",
        "renewal",
        "    write_file(files, target, data,",
        "    write_file(files, target, b'',",
        DAMAGE,
    ),
    Mutation(
        "what was not attested is not copied",
        "renewal",
        "            if header.kind != FrameKind.EVENTS:\n",
        "            if header.kind != FrameKind.EVENTS or header.durable_lsn == 0:\n",
        POWER,
    ),
    Mutation(
        "a seal is written before the next segment is made",
        "appender",
        "        fd = self._create(path, header)\n",
        "        write_mark(self._files, self._fd or 0, old, end, FrameKind.SEAL, 'seal')\n"
        "        fd = self._create(path, header)\n",
        KILL,
    ),
    Mutation("two owners", "lock", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", OWNERS),
    Mutation("a child of a fork writes", "writer", "os.getpid() != self._pid", "False", OWNERS),
    Mutation(
        "time goes back at an open", "renewal", "max((found.logged_at_ns for", "min((found.logged_at_ns for", CLOCK
    ),
    Mutation("time goes back", "writer", "if logged_at_ns < self.last_logged_at_ns:", "if False:", CLOCK),
)


def _source(mutation: Mutation) -> str:
    return (ROOT / "pixelmemory" / "log" / f"{mutation.module}.py").read_text()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "_"))
def test_mutation_gate(mutation: Mutation, fault_report: FaultReport, tmp_path: Path) -> None:
    source = _source(mutation)
    assert mutation.old in source, "the log has changed: put the bug into what stands there now"
    if not LONG_FORM:
        return
    shutil.copytree(ROOT / "pixelmemory", tmp_path / "pixelmemory", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "tests" / "faults", tmp_path / "tests" / "faults", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / "pixelmemory" / "log" / f"{mutation.module}.py"
    target.write_text(source.replace(mutation.old, mutation.new))
    environment = {name: value for name, value in os.environ.items() if name != "PIXELMEMORY_SOAK_SECONDS"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/faults/test_log_{mutation.tests}.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    fault_report.add("mutation gate: bug caught" if done.returncode == 1 else "mutation gate: bug missed")
    # 1: tests ran, and failed
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "ImportError" not in done.stdout
    assert "NameError" not in done.stdout
