"""What the fault battery injected and what came of it, and how long it goes on.

The short form is part of the test suite. ``PIXELMEMORY_SOAK_SECONDS=600`` asks for the long form. Its exhaustive rows
(every bit instead of a stride) take what they take, ten minutes or more; each of its random rows goes on for its share
of those seconds.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["LONG_FORM", "SOAK_SECONDS", "FaultReport", "Verdict", "rounds", "timed_rounds"]

SOAK_SECONDS = float(os.environ.get("PIXELMEMORY_SOAK_SECONDS") or 0)
LONG_FORM = SOAK_SECONDS > 0

#: parts of a thousand of the soak's seconds that each random row has, and its tests share evenly; the other 180 go to
#: the exhaustive rows, which take what they take
SHARES = {
    # the log, 320
    "powerloss": 140,
    "kill9": 110,
    "owners": 25,
    "clock": 25,
    "moved_folder": 20,
    # the engine, 500
    "projection_crash": 160,
    "random_kills": 80,
    "database": 20,
    "forks": 15,
    "database_start": 25,
    "model": 75,
    "cancel_storm": 75,
    "chdir": 20,
    "ctrl_c": 30,
}


def rounds(short: int, long: int) -> int:
    """How many rounds a row makes whose rounds are tests of their own: ``long`` from 600 seconds on."""
    return round(short + (long - short) * min(1.0, SOAK_SECONDS / 600))


def timed_rounds(row: str, short: int, tests: int = 1) -> Iterator[int]:
    """0, 1, 2, ...: the rounds of one test of the random row ``row``, which has ``tests`` tests.

    ``short`` of them in the test suite; in the long form one, and more until the test's share of the time is over.
    """
    if not LONG_FORM:
        yield from range(short)
        return
    end = time.monotonic() + SOAK_SECONDS * SHARES[row] / 1000 / tests
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1


class Verdict(NamedTuple):
    """What an oracle counted after a fault; all zero but ``acknowledged`` where the contract holds."""

    #: events that were acknowledged under a promise that covers the fault
    acknowledged: int = 0
    #: of those, events that are not there
    lost: int = 0
    #: events that are there more than once
    doubled: int = 0
    #: events that stand before one that they should follow
    reordered: int = 0
    #: events that are not what was written, or that nobody wrote, or that were refused
    silent_changes: int = 0

    @property
    def good(self) -> bool:
        """Whether the contract holds."""
        return not (self.lost or self.doubled or self.reordered or self.silent_changes)


class FaultReport:
    """Counters of one run; the terminal summary prints them. Tests get the run's from the fixture ``fault_report``."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.total = Verdict()
        self.verdicts = 0

    def add(self, kind: str, count: int = 1) -> None:
        """``count`` faults of ``kind`` were injected, such as ``"kill9: random SIGKILL"``."""
        self.injected[kind] += count

    def judge(self, verdict: Verdict) -> None:
        """An oracle has looked; called before the test asserts, so that a failed run is counted too."""
        self.verdicts += 1
        self.total = Verdict(*(a + b for a, b in zip(self.total, verdict, strict=True)))

    def lines(self) -> list[str]:
        """For a person: what was injected, and what came of it."""
        if not self.injected and not self.verdicts:
            return []
        found = self.total
        rows = [(kind, count) for kind, count in sorted(self.injected.items())]
        rows.append(("faults injected", self.injected.total()))
        rows += [("verdicts", self.verdicts), ("acknowledged", found.acknowledged)]
        rows += [("lost", found.lost), ("doubled", found.doubled), ("reordered", found.reordered)]
        rows.append(("silent changes", found.silent_changes))
        width = max(len(kind) for kind, _ in rows)
        return [f"{kind:<{width}}  {count:>13,}" for kind, count in rows]
