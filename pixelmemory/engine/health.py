"""How an open store is: its figures, and what is wrong with it at the moment. From memory: no disk, no database."""

from __future__ import annotations

from pixelmemory.log.contract import LogCapability
from pixelmemory.models import Health, Stats
from pixelmemory.store.store import OpenStore

__all__ = ["health_of", "stats_of"]


def stats_of(store: OpenStore, last_lsn: int) -> Stats:
    """The figures of ``store``; ``last_lsn`` is the last that was acknowledged."""
    log = None if LogCapability.STATISTICS in store.log.lacks else store.log.stats()
    projector = store.projection.projector.stats()
    return Stats(
        durable_lsn=store.log.durable_lsn,
        watermark=projector.watermark,
        lag_events=store.log.durable_lsn - projector.watermark,
        last_lsn=last_lsn,
        log_events=store.log.durable_lsn - store.log.first_lsn + 1,
        log_bytes=0 if log is None else log.bytes,
        log_segments=0 if log is None else log.segments,
        log_syncs=0 if log is None else log.syncs,
        batches=projector.batches,
        events_applied=projector.events,
        texts_embedded=projector.texts_embedded,
        texts_unembeddable=projector.texts_unembeddable,
        texts_truncated=projector.texts_truncated,
        embed_seconds=projector.embed_seconds,
        apply_seconds=projector.apply_seconds,
        dead_letters=projector.dead_letters,
    )


def health_of(store: OpenStore) -> Health:
    """What is wrong with ``store``, if anything."""
    problems: list[str] = []
    if (failure := store.log.failure) is not None:
        problems.append(f"writes are refused: {failure}")
    elif (problem := store.log.problem) is not None:
        problems.append(f"writes fail: {problem}")
    if store.eraser.problem is not None:
        problems.append(store.eraser.problem)
    projector = store.projection.projector
    if projector.blocked is not None:
        problems.append(projector.blocked)
    letters = list(projector.dead_letters.values())  # a copy: the projector goes on
    if letters:
        first = min(letters, key=lambda letter: letter.lsn)
        problems.append(
            f"{len(letters)} events could not be applied; the first, LSN {first.lsn}: {first.error}. Mend the "
            "cause and call retry_dead_letters()"
        )
    return Health(not problems, tuple(problems))
