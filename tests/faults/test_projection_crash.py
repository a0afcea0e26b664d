"""projection_crash: a kill at each named point of the projector and at random; the tables equal the fold of the log."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pixeltable.exceptions import NotFoundError

from pixelmemory.faults import PROJECTION_FAULT_POINTS
from tests.harness.engine_lives import Life, Lives, acknowledged_in, lives
from tests.harness.engine_oracle import check_store, events_of
from tests.harness.engine_tools import open_memory
from tests.harness.fault_report import FaultReport, Verdict, timed_rounds
from tests.harness.refusals import accept_marked

#: batches of a few events, so that there are many
SMALL: dict[str, Any] = {"batch_events_max": 5, "linger_seconds": 0.0, "segment_bytes_max": 16_384}


@pytest.fixture(scope="module")
def forked() -> Iterator[Lives]:
    with lives() as running:
        yield running


def _mend(name: str) -> None:
    """Let the refused memory in, where the kill came before the life did so itself, and left a table."""
    with contextlib.suppress(psycopg.errors.UndefinedObject, ValueError, NotFoundError):
        accept_marked(name, "a")


def _judge(home: Path, name: str, fault_report: FaultReport, **options: Any) -> None:
    """Open what a kill has left, let it catch up, and compare."""
    with open_memory(home, name, **options) as memory:
        memory.flush()
        if not memory.health().ok:
            check_store(home, name)
            _mend(name)
            memory.retry_dead_letters()
        assert memory.health().ok, memory.health()
        check_store(home, name)
        memory.add_entries([{"content": "usable", "embedding": [1.0] + [0.0] * 7}], "a")
        memory.flush()
        assert memory.count() == len(check_store(home, name))
    events = [
        (event.lsn, event.type_code, event.fields["namespace"], event.fields["memory_id"])
        for event in events_of(home / name)
    ]
    acknowledged = acknowledged_in(home)
    lost = set(acknowledged) - set(events)
    fault_report.judge(Verdict(acknowledged=len(acknowledged), lost=len(lost)))
    assert not lost
    assert acknowledged == sorted(acknowledged)


@pytest.mark.parametrize("point", PROJECTION_FAULT_POINTS)
def test_a_kill_at_each_point(
    point: str, tmp_path: Path, store_name: str, forked: Lives, fault_report: FaultReport
) -> None:
    for number in timed_rounds("projection_crash", 1, len(PROJECTION_FAULT_POINTS)):
        source = random.Random(f"{point} {number}")
        home, name = tmp_path / str(number), f"{store_name}_{number}"
        nth = source.randint(1, 2) if point.startswith("table") else source.randint(1, 8)
        if point.startswith("projection.before_drop"):
            nth = 2  # the first finds nothing to drop
        elif point.startswith(("projection", "projector.bisect", "projector.retry", "move")):
            nth = 1
        life = Life(str(home), name, source.randrange(10**6), point=point, nth=nth, options=SMALL)
        answer = forked.live(life)
        assert answer.exit_code == -signal.SIGKILL, f"{point}: {nth} hits did not come; a whole life has {answer.hits}"
        fault_report.add(f"projection_crash: SIGKILL at {point.partition('.')[0]}.*")
        if source.random() < 0.5:
            _mend(name)  # while the store is closed: nothing is refused any more when it comes again
        _judge(home, name, fault_report, batch_events_max=source.choice([2, 2000]))


def test_kills_at_random(tmp_path: Path, store_name: str, forked: Lives, fault_report: FaultReport) -> None:
    """Two in a row, so that what the first has left is killed again on its way."""
    for number in timed_rounds("random_kills", 4):
        source = random.Random(number)
        home, name = tmp_path / str(number), f"{store_name}_{number}"
        options = SMALL | {"direct_sql": source.random() < 0.7}
        killed = 0
        for attempt in range(2):
            seconds = 0.001 + source.random() * (1.0 if attempt == 0 else 0.4)
            life = Life(str(home), name, number * 10 + attempt, False, kill_after_seconds=seconds, options=options)
            killed += forked.live(life).exit_code == -signal.SIGKILL
        fault_report.add("projection_crash: random SIGKILL", killed)
        _judge(home, name, fault_report)


def test_a_life_without_a_kill_meets_every_point(
    tmp_path: Path, store_name: str, forked: Lives, fault_report: FaultReport
) -> None:
    answer = forked.live(Life(str(tmp_path), store_name, 1, options=SMALL))
    assert answer.exit_code == 0
    assert set(PROJECTION_FAULT_POINTS) <= set(answer.hits)
    _judge(tmp_path, store_name, fault_report)
