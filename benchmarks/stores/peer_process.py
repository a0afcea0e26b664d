"""A contender in a process of its own, asked for one operation at a time: so that rounds can be interleaved."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from benchmarks.place import Place
from benchmarks.report import WrongResultError
from benchmarks.stores.contenders import Timed
from benchmarks.stores.peers import installed

__all__ = ["PeerProcess", "installed"]

ROOT = Path(__file__).parent.parent.parent


class PeerProcess:
    """Runs ``benchmarks.stores.peers NAME --serve``; it has a folder of its own below the run's."""

    def __init__(self, place: Place, name: str, rows: int, calls: int) -> None:
        folder = place.new_folder(f"peer_{name}")
        self._name = name
        self._errors = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.stores.peers", name, "--serve"),
                *("--rows", str(rows), "--calls", str(calls), "--folder", str(folder)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.version = msgspec.json.decode(self._line(), type=dict[str, str])["version"]

    def _line(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # a library may print what it likes
                return line
        self._process.wait()
        raise WrongResultError(f"{self._name} failed: {self._last_error()}")

    def _last_error(self) -> str:
        self._errors.flush()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "no message"

    def run(self, operation: str, calls: int = 1) -> Timed:
        """One operation; no seconds if the contender does not offer it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{operation} {calls}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WrongResultError(f"{self._name} failed: {self._last_error()}") from error
        return msgspec.json.decode(self._line(), type=Timed)

    def close(self) -> None:
        """End the process, once it has counted its rows. Idempotent.

        Raises:
            WrongResultError: it failed, or the count was wrong.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(timeout=120)
            if self._process.returncode != 0:
                raise WrongResultError(f"{self._name} failed: {self._last_error()}")
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except WrongResultError:
            if kind is None:
                raise
