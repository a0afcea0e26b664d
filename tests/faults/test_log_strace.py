"""The kernel itself reports the error, or kills, at the Nth system call; what came after it is read from its trace."""

from __future__ import annotations

import functools
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from pixelmemory.log.file.files import Files
from pixelmemory.options import Options
from tests.harness.fault_report import LONG_FORM, FaultReport
from tests.harness.log_harness import Book, Store
from tests.harness.writer_process import WriterProcess, judge_folder

CALLS = "openat,close,pwrite64,ftruncate,fdatasync,fsync,rename,renameat,unlink"
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((\d+)?.*?(?:= (-?\d+)(.*))?$")


class Call(NamedTuple):
    """One line of the trace."""

    name: str
    fd: int | None
    result: int | None
    injected: bool


@functools.cache
def _why_no_strace() -> str | None:
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(
        ["strace", "-qq", "-e", "trace=getpid", "-e", "inject=getpid:error=EIO", sys.executable, "-c", ""],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"strace cannot trace here: {done.stderr.strip()[-200:]}"


def _trace(path: Path) -> list[Call]:
    calls = []
    for line in path.read_text().splitlines():
        if "resumed>" in line or not (match := _CALL.match(line)):
            continue
        name, fd, result, rest = match.groups()
        calls.append(
            Call(
                name,
                None if fd is None else int(fd),
                None if result is None else int(result),
                "INJECTED" in (rest or ""),
            )
        )
    return calls


def _run(
    book: Book, folder: Path, trace: Path, inject: str, report: FaultReport, *arguments: str
) -> tuple[WriterProcess, int, list[Call]]:
    wrapper = ("strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={CALLS}", "-e", f"inject={inject}")
    arguments = (*arguments, "--appends=12", "--segment-bytes=4096", "--one-by-one")
    with WriterProcess(book, folder, *arguments, wrapper=wrapper) as writer:
        status = writer.end()
    calls = _trace(trace)
    judge_folder(book, folder, report)
    return writer, status, calls


def _check_opens(book: Book, folder: Path, report: FaultReport) -> None:
    store = Store(book, folder, Options(), Files())
    assert store.append(2)
    store.log.close()
    judge_folder(book, folder, report)


@pytest.mark.parametrize("nth", range(1, 45) if LONG_FORM else [5, 7, 12])
def test_a_sync_that_really_fails_is_never_repeated(nth: int, fault_report: FaultReport, tmp_path: Path) -> None:
    if (why := _why_no_strace()) is not None:
        pytest.skip(why)
    book, folder = Book(), tmp_path / "store"
    folder.mkdir()
    inject = f"fdatasync:error=EIO:when={nth}"
    writer, status, calls = _run(book, folder, tmp_path / "trace", inject, fault_report)
    failed = [place for place, call in enumerate(calls) if call.injected]
    if not failed:
        assert nth > 12  # beyond the end of the run
        assert writer.said("closed")
        return
    (place,) = failed
    fault_report.add("failed sync: EIO from the kernel")
    for call in calls[place + 1 :]:
        if call.fd == calls[place].fd:
            assert call.name == "close"
            break
    if writer.said("open") and writer.said("err"):
        outcomes = [line[2] for line in writer.said("err")]
        assert outcomes[0] in ("UnknownOutcomeError", "LogWriteError")
        assert set(outcomes[1:]) <= {"LogPoisonedError"}
        last_ack = max((writer.lines.index(line) for line in writer.said("ack")), default=-1)
        assert last_ack < writer.lines.index(writer.said("err")[0])  # nothing is acknowledged after it
    else:
        assert writer.said("failed") or writer.said("closed") or status != 0
    _check_opens(book, folder, fault_report)


@pytest.mark.parametrize(
    ("call", "nth"),
    [(call, nth) for call in ("pwrite64", "fdatasync", "fsync", "rename", "ftruncate") for nth in range(1, 40)]
    if LONG_FORM
    else [("pwrite64", 9), ("fsync", 5), ("rename", 3)],
)
def test_a_kill_at_the_nth_system_call(call: str, nth: int, fault_report: FaultReport, tmp_path: Path) -> None:
    if (why := _why_no_strace()) is not None:
        pytest.skip(why)
    book, folder = Book(), tmp_path / "store"
    folder.mkdir()
    _, status, _ = _run(book, folder, tmp_path / "trace", f"{call}:signal=KILL:when={nth}", fault_report)
    if status == 0:
        assert LONG_FORM  # beyond the end of the run
    else:
        assert status == -signal.SIGKILL
        fault_report.add(f"kill9: SIGKILL at a {call}")
    _check_opens(book, folder, fault_report)
