"""Ctrl-C at any moment of a call. Imported by scripts, in whose main thread the calls are made."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Keys"]


class Keys:
    """Presses Ctrl-C during the calls that are made through :meth:`during`, one press at a time.

    The interrupt is raised nowhere else, so that it cannot tear what tests with it. For the same reason the two threads
    have plain attributes in common, and no lock: each change of one is a single step.

    Args:
        pauses_seconds: a press comes after a part of one of these.

    Attributes:
        raised: interrupts that were raised.
        arrived: those that came out of a call.
        dropped: those that Python dropped in a callback of the garbage collector's, and the like.
    """

    def __init__(self, seed: int, pauses_seconds: Sequence[float]) -> None:
        self.raised = self.arrived = self.dropped = 0
        self._in_call = False
        self._number = 0
        self._stopped = False
        self._source = random.Random(seed)
        self._pauses = pauses_seconds
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable
        signal.signal(signal.SIGINT, self._interrupt)
        threading.Thread(target=self._press, name="keys", daemon=True).start()

    def during(self, call: Callable[[], object]) -> bool:
        """Whether ``call`` was interrupted."""
        self._number += 1
        try:
            self._in_call = True
            call()
            self._in_call = False
        except KeyboardInterrupt:
            self._in_call = False
            self.arrived += 1
            return True
        except BaseException:
            self._in_call = False
            raise
        return False

    def stop(self) -> None:
        """No more presses."""
        self._stopped = True

    def _interrupt(self, *_: object) -> None:
        if self._in_call:
            self.raised += 1
            raise KeyboardInterrupt

    def _unraisable(self, what: Any) -> None:
        self._in_call, was = False, self._in_call
        if what.exc_type is KeyboardInterrupt:
            self.dropped += 1
        else:
            self._hook(what)
        self._in_call = was

    def _press(self) -> None:
        while not self._stopped:
            if not self._in_call:
                time.sleep(0.0002)
                continue
            time.sleep(self._source.choice(self._pauses) * self._source.random())
            number, dropped = self._number, self.dropped
            os.kill(os.getpid(), signal.SIGINT)
            while self._waits(number, dropped):
                time.sleep(0.0005)

    def _waits(self, number: int, dropped: int) -> bool:
        """Whether the call ``number`` goes on, and the last press is still to come out of it."""
        return self._in_call and self._number == number and self.dropped == dropped
