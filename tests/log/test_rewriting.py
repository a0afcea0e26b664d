"""Rewriting a log that is open: what stays, what goes, and who else may be at work meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pixelmemory.doctor.comparison import Fold
from pixelmemory.doctor.export import event_fields, event_name
from pixelmemory.doctor.inspection import Damage, LogInspection
from pixelmemory.doctor.repair import apply_repair
from pixelmemory.doctor.repair_plan import plan_repair
from pixelmemory.errors import (
    LogCorruptError,
    LogPoisonedError,
    LogWriteError,
    ManifestError,
    StoreClosedError,
    StoreError,
    WrongThreadError,
)
from pixelmemory.faults import set_fault_hook
from pixelmemory.log.contract import StoredEvent
from pixelmemory.log.file.switch import finish_switch
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded, MemoryUpdated
from pixelmemory.options import SyncMode
from pixelmemory.projection.changes import fold
from pixelmemory.store.manifest import Manifest
from tests.harness.independent_reader import DiskEvent, read_folder
from tests.harness.log_tools import (
    WAIT_SECONDS,
    FailingFiles,
    OpenLog,
    added,
    looked_into,
    opened,
    plain,
    sample_events,
)
from tests.harness.logs import STORE_ID, read_events

CANARY = "c4n4ry"
REMOVED = EventRemoved("erased", 123)


def erase(stored: StoredEvent) -> Event:
    event = stored.event
    return REMOVED if isinstance(event, MemoryAdded) and CANARY in event.content else event


def keep(stored: StoredEvent) -> Event:
    return stored.event


def is_canary(event: DiskEvent) -> bool:
    return CANARY in str(event.fields.get("content"))


def fill(store: OpenLog, rounds: int = 8) -> None:
    """Frames of one event and of many, with and without canaries."""
    for number in range(rounds):
        store.append_each(sample_events(6))
        store.append(*sample_events(5), added(number, CANARY * 40), *sample_events(3))
        store.append(added(number, CANARY))


def hits(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def logs(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("log"))


def check_rewritten(before: list[DiskEvent], after: list[DiskEvent]) -> None:
    """Everything is as it was, but for what was taken out."""
    assert any(map(is_canary, before))
    assert len(after) >= len(before)
    for old, new in zip(before, after, strict=False):
        if is_canary(old):
            assert new == old._replace(type_code=4, fields={"reason": "erased", "removed_at_us": 123})
        else:
            assert new == old


@contextmanager
def hooked(hook: Callable[[str], None]) -> Iterator[None]:
    set_fault_hook(hook)
    try:
        yield
    finally:
        set_fault_hook(None)


@pytest.mark.parametrize("mode", list(SyncMode))
@pytest.mark.parametrize("reopened", [False, True], ids=["", "reopened"])
@pytest.mark.parametrize("segment_bytes_max", [4096, 1 << 20])
def test_changed_events_are_gone_and_all_others_as_they_were(
    mode: SyncMode, reopened: bool, segment_bytes_max: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"segment_bytes_max": segment_bytes_max, "sync_mode": mode}
    epoch = 1
    if reopened:
        with opened(tmp_path, **options) as store:
            fill(store)
        epoch = 2
    with opened(tmp_path, epoch=epoch, **options) as store:
        fill(store)
        before = read_folder(tmp_path)
        shapes = [(frame.first_lsn, frame.event_count) for frame in before.frames if frame.event_count]
        bytes_before = store.log.stats().bytes
        report = store.log.rewrite(erase)
        assert hits(tmp_path) == []
        assert logs(tmp_path) == ["log"]
        after = read_folder(tmp_path)
        assert after.stopped is None
        check_rewritten(before.events, after.events)
        assert len(after.events) == len(before.events)
        assert [(frame.first_lsn, frame.event_count) for frame in after.frames if frame.event_count] == shapes
        assert set(after.epochs) == {epoch}
        assert report.events_changed == sum(map(is_canary, before.events))
        assert (report.bytes_before, report.bytes_after) == (bytes_before, store.log.stats().bytes)
        assert report.seconds > 0
        assert store.log.synced_lsn == store.log.durable_lsn == len(before.events)
        given = plain(read_events(store.log))
        assert given.count(REMOVED) == report.events_changed
        last = store.append(added(1, "after it")).last_lsn
        assert last == len(before.events) + 1
    with opened(tmp_path, epoch=epoch + 1, **options) as store:
        assert store.log.recovery.clean
        assert plain(read_events(store.log)) == [*given, added(1, "after it")]
    assert looked_into(tmp_path)[1] == []


def test_nothing_changed(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=4096) as store:
        fill(store)
        before = read_folder(tmp_path).events
        report = store.log.rewrite(keep)
        # what was the last segment is sealed, and the active one begins behind it
        assert (report.events_changed, report.bytes_after - report.bytes_before) == (0, 128)
        assert read_folder(tmp_path).events == before
        # again, since it may be done as often as one likes
        assert store.log.rewrite(keep).bytes_after == report.bytes_after
        assert read_folder(tmp_path).events == before


def test_an_empty_log(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.log.rewrite(erase)[:3] == (0, 128, 128)
        assert store.append(added(1)).first_lsn == 1
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == [added(1)]


def test_an_event_may_become_any_other(tmp_path: Path) -> None:
    """Larger than a segment, too."""
    larger = added(9, "y" * 9000)
    with opened(tmp_path, segment_bytes_max=4096) as store:
        store.append(added(1), added(2), added(3))
        store.append(added(4))
        store.log.rewrite(lambda stored: larger if stored.lsn in (2, 4) else stored.event)
        assert plain(read_events(store.log)) == [added(1), larger, added(3), larger]
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == [added(1), larger, added(3), larger]


def test_what_is_kept_in_memory_is_not_given_out_any_more(tmp_path: Path) -> None:
    with opened(tmp_path, tail_bytes_max=1 << 20) as store:
        store.append(added(1, CANARY))
        assert store.log.stats().tail_bytes
        store.log.rewrite(erase)
        assert plain(read_events(store.log)) == [REMOVED]
        store.append(added(2))
        assert plain(read_events(store.log)) == [REMOVED, added(2)]
        assert plain(store.log.read(2, events_max=1, bytes_max=1)) == [added(2)]


def test_a_read_that_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Across a switch, in the middle of a segment that is gone."""
    with opened(tmp_path, segment_bytes_max=4096, tail_bytes_max=0) as store:
        fill(store)
        before = read_events(store.log)
        events: list[StoredEvent] = []
        while part := store.log.read(len(events) + 1, events_max=3, bytes_max=1):
            events += part
            if len(events) % 3 == 0:
                store.log.rewrite(keep)
        assert events == before
        descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        assert not [path for path in descriptors if "log.old" in path or ("(deleted)" in path and "log" in path)]


def _is_open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_appends_and_reads_go_on_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=4096, tail_bytes_max=2000) as store:
        fill(store)
        before = read_folder(tmp_path).events
        stop, problems, reads = threading.Event(), list[BaseException](), [0]

        def read_on(start_lsn: int) -> None:
            try:
                while not stop.is_set():
                    lsn = start_lsn
                    while part := store.log.read(lsn, events_max=5, bytes_max=4000):
                        assert [stored.lsn for stored in part] == list(range(lsn, lsn + len(part)))
                        lsn += len(part)
                    reads[0] += 1
            except BaseException as error:  # noqa: BLE001 - reported below
                problems.append(error)

        def append_on() -> None:
            number = 0
            try:
                while not stop.is_set():
                    number += 1
                    append = store.append(added(number, "meanwhile"), added(number, "meanwhile"))
                    assert append.error is None
            except BaseException as error:  # noqa: BLE001 - reported below
                problems.append(error)

        threads = [threading.Thread(target=read_on, args=(lsn,)) for lsn in (1, 7, len(before))]
        threads.append(threading.Thread(target=append_on))
        for thread in threads:
            thread.start()
        for _ in range(6):
            store.log.rewrite(erase)
        stop.set()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        assert problems == []
        assert reads[0]
        after = read_folder(tmp_path)
        assert after.stopped is None
        check_rewritten(before, after.events)
        meanwhile = after.events[len(before) :]
        assert {event.fields["content"] for event in meanwhile} == {"meanwhile"}
        assert len(meanwhile) == 2 * sum(
            append.events[0] == added(append.events[0].created_at_us, "meanwhile")
            for append in store.outcomes.appends
            if isinstance(append.events[0], MemoryAdded)
        )
        assert hits(tmp_path) == []


def test_appends_gather_while_the_rest_is_copied(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(added(1))
        late = []

        def append_late(point: str) -> None:
            if point == "rewrite.before_switch":
                late.append(store.log.submit([added(2)]))
                assert store.log.durable_lsn == 1

        with hooked(append_late):
            store.log.rewrite(keep)
        store.outcomes.wait_for(2)
        assert [append.first_lsn for append in late] == [2]
        assert plain(read_events(store.log)) == [added(1), added(2)]


@pytest.mark.parametrize("in_the_rest", [False, True], ids=["while it is open", "in the rest"])
def test_a_transform_that_raises_leaves_the_log_as_it_was(in_the_rest: bool, tmp_path: Path) -> None:
    def refuse(stored: StoredEvent) -> Event:
        if stored.lsn == (21 if in_the_rest else 20):
            raise ValueError("no")
        return REMOVED

    with opened(tmp_path, segment_bytes_max=4096) as store:
        store.append_each(added(n, CANARY * 30) for n in range(20))
        before = read_folder(tmp_path)

        def add_one(point: str) -> None:
            if point == "rewrite.before_rest" and in_the_rest:
                set_fault_hook(None)
                store.append(added(21))

        with hooked(add_one), pytest.raises(ValueError, match="no"):
            store.log.rewrite(refuse)
        assert logs(tmp_path) == ["log"]
        assert read_folder(tmp_path).events[:20] == before.events
        assert store.append(added(2)).error is None
        store.log.rewrite(erase)
        assert hits(tmp_path) == []


def test_a_close_ends_a_rewrite_and_waits_for_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append_each(added(n, CANARY) for n in range(5))
        entered, go_on = threading.Event(), threading.Event()
        errors: list[BaseException] = []

        def slow(_: StoredEvent) -> Event:
            entered.set()
            assert go_on.wait(WAIT_SECONDS)
            return REMOVED

        def rewrite() -> None:
            try:
                store.log.rewrite(slow)
            except BaseException as error:  # noqa: BLE001 - looked at below
                errors.append(error)

        rewriter, closer = threading.Thread(target=rewrite), threading.Thread(target=store.log.close)
        rewriter.start()
        assert entered.wait(WAIT_SECONDS)
        closer.start()
        closer.join(0.05)
        assert closer.is_alive()
        assert logs(tmp_path) == ["log", "log.new"]
        go_on.set()
        closer.join(WAIT_SECONDS)
        assert logs(tmp_path) == ["log"]
        rewriter.join(WAIT_SECONDS)
        assert [type(error) for error in errors] == [StoreClosedError]
        with pytest.raises(StoreClosedError):
            store.log.rewrite(erase)


def test_one_rewrite_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append_each(added(n, CANARY) for n in range(50))
        threads = [threading.Thread(target=store.log.rewrite, args=(erase,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
        assert plain(read_events(store.log)) == [REMOVED] * 50
        assert logs(tmp_path) == ["log"]


def test_from_within_it_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(added(1))

        def again(_: StoredEvent) -> Event:
            store.log.rewrite(keep)
            return REMOVED

        def close(_: StoredEvent) -> Event:
            store.log.close()
            return REMOVED

        for transform in (again, close):
            with pytest.raises(WrongThreadError):
                store.log.rewrite(transform)
        assert plain(read_events(store.log)) == [added(1)]


def test_a_poisoned_log_is_not_rewritten(tmp_path: Path) -> None:
    files = FailingFiles()
    with opened(tmp_path, files=files) as store:
        store.append(added(1, CANARY))
        files.fail["sync"] = OSError(5, "Input/output error")
        store.append(added(2))
        files.fail.clear()
        with pytest.raises(LogPoisonedError):
            store.log.rewrite(erase)
        assert logs(tmp_path) == ["log"]


class _KeepsOld(FailingFiles):
    """Does not let go of the old log."""

    stubborn = True

    def unlink(self, path: Path) -> None:
        if self.stubborn and path.parent.name == "log.old":
            raise OSError(16, "Device or resource busy")
        super().unlink(path)


@pytest.mark.parametrize("reopen", [False, True], ids=["rewritten again", "reopened"])
def test_an_old_log_that_cannot_be_removed(reopen: bool, tmp_path: Path) -> None:
    files = _KeepsOld()
    with opened(tmp_path, files=files) as store:
        store.append_each(added(n, CANARY) for n in range(3))
        with pytest.raises(LogWriteError, match="could not be removed"):
            store.log.rewrite(erase)
        assert plain(read_events(store.log)) == [REMOVED] * 3
        assert hits(tmp_path)
        assert store.append(added(3)).error is None
        files.stubborn = False
        if not reopen:
            store.log.rewrite(keep)
            assert hits(tmp_path) == []
    with opened(tmp_path, epoch=2) as store:
        assert plain(read_events(store.log)) == [REMOVED] * 3 + [added(3)]
        assert hits(tmp_path) == []


def test_damage_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes_max=4096, tail_bytes_max=0) as store:
        store.append_each(added(n, "x" * 500) for n in range(20))
        path = sorted((tmp_path / "log").iterdir())[1]
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
        with pytest.raises(LogCorruptError) as caught:
            store.log.rewrite(erase)
        assert caught.value.path == path
        assert logs(tmp_path) == ["log"]
        assert store.append(added(1)).error is None


# -- in the middle of a switch


@pytest.fixture
def middle(tmp_path: Path) -> Path:
    """A store whose rewriting was cut short between the two renames."""
    folder, copy = tmp_path / "live", tmp_path / "middle"
    folder.mkdir()
    Manifest(store_id=STORE_ID, epoch=1, has_log=True).save(folder)

    def copy_it(point: str) -> None:
        if point == "rewrite.after_old_sync":
            shutil.copytree(folder, copy)

    with opened(folder, segment_bytes_max=4096) as store:
        fill(store)
        with hooked(copy_it):
            store.log.rewrite(erase)
    assert logs(copy) == ["log.new", "log.old"]
    return copy


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tools_that_only_read_find_the_log(middle: Path) -> None:
    before = contents(middle)
    assert plain(looked_into(middle)[0]).count(REMOVED) == 16
    found = list(LogInspection(middle).items(thorough=True))
    assert [item for item in found if isinstance(item, Damage)] == []
    assert not plan_repair(middle).needed
    assert contents(middle) == before
    (middle / "MANIFEST").unlink()
    with pytest.raises(ManifestError, match="is missing"):
        Manifest.load(middle)


def test_a_look_at_a_log_that_is_rewritten_meanwhile(tmp_path: Path) -> None:
    """What went away is said to be gone, and another look finds everything."""
    with opened(tmp_path, segment_bytes_max=4096) as store:
        fill(store)
        store.append_each(added(n, "x" * 3000) for n in range(4))
        Manifest(store_id=STORE_ID, epoch=1, has_log=True).save(tmp_path)
        inspection = LogInspection(tmp_path)
        items = inspection.items()
        before = inspection.listing()
        next(items)
        store.log.rewrite(lambda _: REMOVED)
        gone = [item for item in items if isinstance(item, Damage)]
        assert "the segment went away while it was looked at" in [damage.reason for damage in gone]
        assert inspection.listing() != before
        assert [item for item in LogInspection(tmp_path).items() if isinstance(item, Damage)] == []


def test_an_open_finishes_the_switch(middle: Path) -> None:
    with opened(middle, epoch=2) as store:
        assert plain(read_events(store.log)).count(REMOVED) == 16
        assert hits(middle) == []
        assert logs(middle) == ["log"]


def test_a_repair_comes_after_the_switch(middle: Path) -> None:
    segment = sorted((middle / "log.new").iterdir())[1]
    segment.write_bytes(segment.read_bytes()[:-700])
    plan = plan_repair(middle)
    assert plan.needed
    with pytest.raises(StoreError, match="cut short"):
        apply_repair(plan)
    with pytest.raises(LogCorruptError), opened(middle, epoch=2):
        pass
    assert logs(middle) == ["log", "log.old"]  # which someone may want to look at
    apply_repair(plan_repair(middle))
    with opened(middle, epoch=2) as store:
        assert {each.reason for each in plain(read_events(store.log)) if isinstance(each, EventRemoved)} == {
            "erased",
            "lost",
        }
    assert logs(middle) == ["log"]


@pytest.mark.parametrize("left", ["log.new", "log.old"])
def test_half_of_a_switch_is_refused(left: str, middle: Path) -> None:
    """No kill leaves this, so it is not guessed what it means."""
    shutil.rmtree(middle / ("log.old" if left == "log.new" else "log.new"))
    before = contents(middle)
    with pytest.raises(LogCorruptError, match=f"only {left} is there"), opened(middle, epoch=2):
        pass
    with pytest.raises(LogCorruptError):
        finish_switch(FailingFiles(), middle)
    assert contents(middle) == before


# -- the event


def test_what_a_removed_event_is_shown_as() -> None:
    for reason in ("erased", "compacted", "lost"):
        stored = StoredEvent(7, bytes(16), 1_000_000_000, EventRemoved(reason, 2_000_000))
        assert event_name(stored) == reason
        assert event_fields(stored) == {
            "lsn": 7,
            "logged_at": "1970-01-01T00:00:01Z",
            "event_id": "00" * 16,
            "type": reason,
            "removed_at": "1970-01-01T00:00:02Z",
        }


def test_a_removed_event_is_folded_to_nothing() -> None:
    events: list[Event] = [REMOVED, added(1), REMOVED, MemoryUpdated("work", "id-1", content="new"), REMOVED]
    stored = [StoredEvent(lsn, bytes(16), 1, event) for lsn, event in enumerate(events, 1)]
    changes = fold(stored)
    assert [(change.key, change.lsns, change.content) for change in changes.values()] == [
        (("work", "id-1"), [2, 4], "new")
    ]
    expected = Fold(set())
    for each in stored:
        expected.add(each)
    assert list(expected.memories) == [("work", "id-1")]
    assert fold(stored[:1]) == {}
