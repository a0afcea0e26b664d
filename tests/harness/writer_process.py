"""The parent's side of :mod:`log_writer`: starts it, kills it, and writes down what it saw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.harness.fault_report import FaultReport, Verdict
from tests.harness.independent_reader import read_folder
from tests.harness.log_harness import Book, Recovered, judge, recovered

__all__ = ["WriterProcess", "judge_folder"]

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 60.0


class WriterProcess:
    """One run of the writer on the store in ``folder``; ``book`` learns what it says.

    Attributes:
        lines: what it said, in words.
    """

    def __init__(
        self,
        book: Book,
        folder: Path,
        *arguments: object,
        fault_point: str | None = None,
        wrapper: tuple[str, ...] = (),
    ) -> None:
        self.book = book
        self.lines: list[list[str]] = []
        #: what the log held before; an open must say the same
        self.before = recovered(read_folder(folder).events)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
        environment.pop("PIXELMEMORY_FAULT_POINT", None)
        if fault_point is not None:
            environment["PIXELMEMORY_FAULT_POINT"] = fault_point
        self.first_number = book.next_number
        command = [*wrapper, sys.executable, str(HERE / "log_writer.py"), str(folder), f"--number={self.first_number}"]
        command += map(str, arguments)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    def __enter__(self) -> WriterProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def read_line(self) -> list[str]:
        """The next thing that it says; empty at its end."""
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        if words:
            self.lines.append(words)
            self._note(words)
        return words

    def read_until(self, *wanted: str) -> list[str]:
        """Read on to a line that begins with one of ``wanted``, or to the end."""
        while words := self.read_line():
            if words[0] in wanted:
                return words
        return []

    def end(self) -> int:
        """Read what is left; returns the exit status."""
        self.read_until()
        return self.process.wait(TIMEOUT_SECONDS)

    def kill(self) -> None:
        """SIGKILL, and what it had said before."""
        self.process.kill()
        self.end()

    def said(self, word: str) -> list[list[str]]:
        """The lines that begin with ``word``."""
        return [line for line in self.lines if line[0] == word]

    def _note(self, words: list[str]) -> None:
        book = self.book
        if words[0] == "open":
            assert int(words[1]) == len(self.before)
            book.settle(self.before)
        elif words[0] == "try":
            assert book.new(int(words[2])) == int(words[1])
        elif words[0] == "ack":
            book.acked.add(int(words[1]))
        elif words[0] == "err" and words[2] in ("LogWriteError", "LogPoisonedError"):
            book.gone.add(int(words[1]))


def judge_folder(book: Book, folder: Path, report: FaultReport) -> list[Recovered]:
    """What the log in ``folder`` holds, held against ``book``: everything acknowledged is there."""
    found = recovered(read_folder(folder).events)
    verdict: Verdict = judge(book, found, book.acked)
    report.judge(verdict)
    assert verdict.good, verdict
    return found
