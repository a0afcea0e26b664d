"""What the fault battery injected and what came of it, and how long it goes on.

The short form is part of the test suite. ``PIXELMEMORY_SOAK_SECONDS=600`` asks for the long form: every bit instead of
a stride, thousands of rounds instead of hundreds. 600 is what the stated numbers of rounds are about; more seconds add
rounds in proportion.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import NamedTuple

__all__ = ["LONG_FORM", "SOAK_SECONDS", "FaultReport", "Planted", "Verdict", "rounds"]

SOAK_SECONDS = float(os.environ.get("PIXELMEMORY_SOAK_SECONDS") or 0)
LONG_FORM = SOAK_SECONDS > 0
STATED_SOAK_SECONDS = 600.0


def rounds(short: int, long: int) -> int:
    """How many rounds a random row makes: ``short`` in the test suite, at least ``long`` in the long form."""
    if not LONG_FORM:
        return short
    return math.ceil(long * max(1.0, SOAK_SECONDS / STATED_SOAK_SECONDS))


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


class Planted(NamedTuple):
    """One bug of the mutation gate, and what came of it."""

    name: str
    #: the file it was put into
    place: str
    #: the test that failed, or None
    caught_by: str | None
    seconds: float


class FaultReport:
    """Counters of one run; the terminal summary prints them. Tests get the run's from the fixture ``fault_report``."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.total = Verdict()
        self.verdicts = 0
        self.planted: list[Planted] = []

    def add(self, kind: str, count: int = 1) -> None:
        """``count`` faults of ``kind`` were injected, such as ``"kill9: random SIGKILL"``."""
        self.injected[kind] += count

    def judge(self, verdict: Verdict) -> None:
        """An oracle has looked; called before the test asserts, so that a failed run is counted too."""
        self.verdicts += 1
        self.total = Verdict(*(a + b for a, b in zip(self.total, verdict, strict=True)))

    def plant(self, planted: Planted) -> None:
        """A bug was put in and looked for."""
        self.planted.append(planted)

    def mutation_lines(self) -> list[str]:
        """The mutation gate's table, in Markdown."""
        if not self.planted:
            return []
        lines = ["| bug | put into | caught by | seconds |", "|---|---|---|---:|"]
        for name, place, caught_by, seconds in self.planted:
            lines.append(f"| {name} | `{place}` | {f'`{caught_by}`' if caught_by else '**missed**'} | {seconds:.0f} |")
        caught = sum(each.caught_by is not None for each in self.planted)
        return [*lines, "", f"{caught} of {len(self.planted)} bugs were caught."]

    def lines(self) -> list[str]:
        """For a person."""
        if not self.injected and not self.verdicts:
            return []
        width = max((len(kind) for kind in self.injected), default=0)
        lines = [f"{kind:<{width}}  {count:>9,}" for kind, count in sorted(self.injected.items())]
        lines.append(f"{'faults injected':<{width}}  {self.injected.total():>9,}")
        lines.append(
            f"{self.verdicts:,} verdicts over {self.total.acknowledged:,} acknowledged events: "
            f"{self.total.lost:,} lost, {self.total.doubled:,} doubled, {self.total.reordered:,} reordered; "
            f"{self.total.silent_changes:,} silent changes"
        )
        return lines
