"""enospc: a limit on the size of files, and a file system that is really full."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.fault_report import LONG_FORM, FaultReport
from tests.harness.log_harness import Book
from tests.harness.writer_process import HERE, judge_folder

TIMEOUT_SECONDS = 120.0


@functools.cache
def _why_no_tmpfs() -> str | None:
    """Why a small file system cannot be mounted here; None if it can."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"a tmpfs cannot be mounted: {done.stderr.strip()}"


def _run(wrapper: list[str], kind: str, folder: Path, copy: Path, reopen: bool, report: FaultReport) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    script = [
        sys.executable,
        str(HERE / "full_disk_writer.py"),
        kind,
        str(folder),
        str(copy),
        "reopen" if reopen else "-",
    ]
    done = subprocess.run(
        [*wrapper, *script], capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    book, failures, freed = Book(), 0, False
    for words in map(str.split, done.stdout.splitlines()):
        if words[0] == "try":
            assert book.new(int(words[2])) == int(words[1])
        elif words[0] == "ack":
            book.acked.add(int(words[1]))
        elif words[0] == "err":
            assert words[2] == "LogWriteError"
            assert not freed
            book.gone.add(int(words[1]))
            failures += 1
        elif words[0] == "refused":
            failures += 1
        elif words[0] == "read":
            assert int(words[1]) == sum(book.counts[number] for number in book.acked)
        freed = freed or words[0] == "open"
    assert failures >= 12
    report.add(f"enospc: {'file size limit' if kind == 'limit' else 'full file system'}", failures)
    judge_folder(book, copy, report)


@pytest.mark.parametrize("reopen", [False, True], ids=["", "reopened"])
def test_enospc_file_size_limit(reopen: bool, fault_report: FaultReport, tmp_path: Path) -> None:
    _run([], "limit", tmp_path, tmp_path / "copy", reopen, fault_report)


@pytest.mark.parametrize("reopen", [False, True], ids=["", "reopened"])
@pytest.mark.parametrize("kibibytes", range(300, 364, 4) if LONG_FORM else [300])
def test_enospc_small_tmpfs(kibibytes: int, reopen: bool, fault_report: FaultReport, tmp_path: Path) -> None:
    if (why := _why_no_tmpfs()) is not None:
        pytest.skip(why)
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size={kibibytes}k tmpfs {shlex.quote(str(small))}"
    wrapper = ["unshare", "-rm", "sh", "-c", mount + ' && exec "$@"', "sh"]
    _run(wrapper, "disk", small, tmp_path / "copy", reopen, fault_report)
