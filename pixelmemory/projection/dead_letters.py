"""Finding the event that a batch was refused for."""

from __future__ import annotations

from collections.abc import Sequence

from pixelmemory.errors import ProjectionUnavailableError, UnavailableCause
from pixelmemory.projection.changes import Change
from pixelmemory.projection.contract import DeadLetter, Host, Vectors, letters_of
from pixelmemory.projection.sql.failures import first_line

__all__ = ["apply_what_can_be"]

#: characters of an error that a dead letter keeps
REASON_CHARS_MAX = 500

#: memories refused one after the other, and none accepted, from which the fault is not looked for in the events
REFUSED_MAX = 8


def apply_what_can_be(
    host: Host, changes: Sequence[Change], vectors: Vectors, *, revive: bool = False
) -> list[DeadLetter]:
    """Apply what can be applied of ``changes`` by halving them, and return the dead letters of the rest.

    Args:
        revive: whether ``changes`` are dead letters: those that are applied are none any more, in the same transaction,
            and every one of them may be at fault.

    Raises:
        ProjectionUnavailableError: so many were refused and none accepted that the fault must lie elsewhere.
        Exception: an error of the infrastructure, as it came.
    """
    dead: list[DeadLetter] = []
    refused, accepted = 0, 0
    waiting = [list(changes)] if changes else []
    while waiting:
        part = waiting.pop()
        try:
            host.prepare(part)
            revived = [lsn for change in part for lsn in change.lsns] if revive else []
            dead += host.apply(part, vectors, checkpoint_lsn=None, replace=True, revived_lsns=revived)
            accepted += len(part)
        except Exception as error:
            if host.is_infrastructure_error(error):
                raise
            reason = first_line(error)[:REASON_CHARS_MAX]
            if len(part) > 1:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
                continue
            refused += 1
            if refused >= REFUSED_MAX and accepted == 0 and not revive:
                raise ProjectionUnavailableError(
                    f"{refused} memories were refused, one by one: {reason}", UnavailableCause.ROWS_REFUSED
                ) from error
            dead += letters_of(part[0], reason)
    return dead
