"""Processes that rewrite a log again and again while a thread of theirs appends; killed by the tests.

For each line ``<fault point, or -> <last number> <store's folder>`` on stdin one process, forked from this one, so that
nothing has to be imported again. It says ``pid <pid>``, ``try <number>``, ``ack <number>``, ``rewriting`` and
``rewritten``, one line each, and when it has ended: ``ended <exit status, or the signal's number below zero>``.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pixelmemory import faults
from pixelmemory.log.file.append import Append
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.options import Options
from pixelmemory.store.lock import StoreLock
from pixelmemory.store.manifest import Manifest
from tests.harness.log_writer import say
from tests.harness.rewrite_tools import Entry, erase

REWRITES = 40


def rewrite(folder: Path, number: int) -> None:
    lock = StoreLock.acquire(folder / "LOCK")
    manifest = Manifest.load(folder)
    assert manifest is not None
    manifest = msgspec.structs.replace(manifest, epoch=manifest.epoch + 1)
    manifest.save(folder)
    settled = threading.Semaphore(0)

    def on_commit(appends: Sequence[Append]) -> None:
        for append in appends:
            assert append.error is None, append.error
            say("ack", append.context)
            settled.release()

    log = FileLog.open(
        folder,
        store_id=manifest.store_id,
        epoch=manifest.epoch,
        options=Options(segment_bytes_max=4096, tail_bytes_max=0),
        on_commit=on_commit,
        has_log=manifest.has_log,
    )
    done = threading.Event()

    def append_on() -> None:
        last = number
        while not done.is_set():
            last += 1
            say("try", last)
            log.submit(Entry(last, 1, canary=False).events(), last)
            settled.acquire()

    thread = threading.Thread(target=append_on)
    thread.start()
    say("rewriting")
    for _ in range(REWRITES):
        log.rewrite(erase)
    say("rewritten")
    done.set()
    thread.join()
    log.close()
    lock.release()


def main() -> None:
    for line in sys.stdin:
        point, number, folder = line.rstrip("\n").split(" ", 2)
        if (pid := os.fork()) == 0:
            if point != "-":
                faults.set_fault_hook(faults._hook_from_environment(point))
            say("pid", os.getpid())
            status = 1
            try:
                rewrite(Path(folder), int(number))
                status = 0
            finally:
                os._exit(status)
        say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
