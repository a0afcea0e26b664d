"""What every log owes, as tests: a log's own test subclasses :class:`LogContract`.

The obligations are those of :class:`pixelmemory.log.contract.EventLog`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelmemory import InvalidArgumentError, LimitExceededError, Options, StoreClosedError, StoreForkedError, SyncMode
from pixelmemory.log.contract import Append, EventLog, LogCapability, StoredEvent
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded, MemoryDeleted, MemoryUpdated

WAIT_SECONDS = 30.0


def added(number: int, content: str | None = None) -> MemoryAdded:
    return MemoryAdded("n", f"m{number}", f"text {number}" if content is None else content, number)


class Commits:
    """What ``on_commit`` was told."""

    def __init__(self) -> None:
        self.told: list[list[tuple[Append, int | None]]] = []
        self.threads: set[int] = set()
        self.log: EventLog | None = None
        self.wrong: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, appends: Sequence[Append]) -> None:
        with self._changed:
            self.threads.add(threading.get_ident())
            self.told.append([(append, append.first_lsn) for append in appends])
            for append in appends:
                if self.log is not None and (append.last_lsn or 0) > self.log.durable_lsn:
                    self.wrong.append(f"LSN {append.last_lsn} was told before durable_lsn had moved there")
            self._changed.notify_all()

    @property
    def appends(self) -> list[Append]:
        return [append for commit in self.told for append, _ in commit]

    def wait(self, append: Append) -> Append:
        with self._changed:
            assert self._changed.wait_for(lambda: append in self.appends, WAIT_SECONDS)
        return append


class OpenLog:
    def __init__(self, log: EventLog, commits: Commits) -> None:
        self.log, self.commits = log, commits

    def append(self, *events: Event) -> Append:
        append = self.commits.wait(self.log.submit(events))
        assert append.error is None
        return append

    def read_all(self, events_max: int = 1000, bytes_max: int = 1 << 20) -> list[StoredEvent]:
        events: list[StoredEvent] = []
        lsn = self.log.first_lsn
        while part := self.log.read(lsn, events_max=events_max, bytes_max=bytes_max):
            events += part
            lsn = part[-1].lsn + 1
        return events


class LogContract:
    """The suite. A subclass opens the log; what it lacks it says in ``lacks``."""

    #: what this log does not have
    lacks: frozenset[LogCapability] = frozenset()
    #: whether what was acknowledged is there when it is opened again
    is_durable = True

    def open(
        self, folder: Path, options: Options, on_commit: Callable[[Sequence[Append]], None], epoch: int
    ) -> EventLog:
        """Open the log in ``folder``."""
        raise NotImplementedError

    @contextlib.contextmanager
    def opened(self, folder: Path, options: Options | None = None, epoch: int = 1) -> Iterator[OpenLog]:
        commits = Commits()
        log = self.open(folder, options or Options(), commits, epoch)
        commits.log = log
        try:
            yield OpenLog(log, commits)
        finally:
            log.close()
        assert commits.wrong == []

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[OpenLog]:
        with self.opened(tmp_path / "store") as store:
            yield store

    # -- durability

    @pytest.mark.parametrize("mode", SyncMode)
    def test_what_is_acknowledged_is_there(self, tmp_path: Path, mode: SyncMode) -> None:
        options = Options(sync_mode=mode)
        with self.opened(tmp_path / "store", options) as store:
            assert store.log.durable_lsn == 0
            assert store.append(added(1), added(2)).last_lsn == 2
            store.append(MemoryUpdated("n", "m1", "new", b'{"b":1,"a":[null]}'))
            store.append(MemoryDeleted("n", "m2"))
            assert store.log.durable_lsn == 4
            store.log.flush()
            assert store.log.synced_lsn == 4
            before = store.read_all()
        if self.is_durable:
            with self.opened(tmp_path / "store", options, epoch=2) as store:
                assert store.read_all() == before
                assert store.log.durable_lsn == 4
                assert store.append(added(3)).first_lsn == 5

    def test_a_close_makes_durable_what_was_submitted(self, tmp_path: Path) -> None:
        with self.opened(tmp_path / "store") as store:
            appends = [store.log.submit([added(number)]) for number in range(50)]
            store.log.close()
            assert [append.error for append in appends] == [None] * 50
            assert store.commits.appends == appends

    # -- order

    def test_an_append_is_whole_and_in_its_place(self, store: OpenLog) -> None:
        sizes = [1, 3, 1, 7, 2]
        appends = [store.log.submit([added(size * 10 + n) for n in range(size)]) for size in sizes]
        store.log.flush()
        lsn = 1
        for append, size in zip(appends, sizes, strict=True):
            assert (append.first_lsn, append.last_lsn) == (lsn, lsn + size - 1)
            lsn += size
        assert [stored.event for stored in store.read_all()] == [event for append in appends for event in append.events]

    def test_many_threads_share_one_order(self, store: OpenLog) -> None:
        def write(thread: int) -> None:
            for number in range(30):
                store.append(added(thread * 100 + number))

        threads = [threading.Thread(target=write, args=(thread,)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = store.read_all(events_max=7)
        assert [stored.lsn for stored in events] == list(range(1, 181))
        numbers = [stored.event.created_at_us for stored in events if isinstance(stored.event, MemoryAdded)]
        for first in range(0, 600, 100):
            own = [number for number in numbers if number // 100 == first // 100]
            assert own == list(range(first, first + 30)), "each in the order of its calls"
        assert len({stored.event_id for stored in events}) == 180

    def test_each_append_is_told_once_in_order_on_a_thread_of_the_logs_own(self, store: OpenLog) -> None:
        appends = [store.log.submit([added(n)], context=n) for n in range(100)]
        store.log.flush()
        store.commits.wait(appends[-1])
        assert store.commits.appends == appends
        assert [append.context for append in appends] == list(range(100))
        assert [lsn for commit in store.commits.told for _, lsn in commit] == list(range(1, 101))
        assert threading.get_ident() not in store.commits.threads

    def test_an_on_commit_that_raises_harms_nobody(self, tmp_path: Path) -> None:
        told: list[Append] = []

        def fail(appends: Sequence[Append]) -> None:
            told.extend(appends)
            raise ZeroDivisionError

        log = self.open(tmp_path / "store", Options(), fail, 1)
        for number in range(3):
            log.submit([added(number)])
            log.flush()
        assert len(log.read(1, events_max=9, bytes_max=1 << 20)) == 3
        log.close()
        assert len(told) == 3

    def test_times_never_decrease(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = time.time_ns
        with self.opened(tmp_path / "store") as store:
            store.append(added(1))
            monkeypatch.setattr(time, "time_ns", lambda: real() - 10**12)
            store.append(added(2))
            future = real() + 10**13
            store.commits.wait(store.log.submit([added(3)], not_before_ns=future))
            store.append(added(4))
            times = [stored.logged_at_ns for stored in store.read_all()]
            assert times == sorted(times)
            assert times[2] == times[3] == store.log.last_logged_at_ns == future
        if self.is_durable:
            with self.opened(tmp_path / "store", epoch=2) as store:
                assert store.log.last_logged_at_ns == future
                store.append(added(5))
                assert store.read_all()[-1].logged_at_ns >= future

    # -- reading

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12),
        from_lsn=st.integers(1, 40),
        events_max=st.integers(1, 12),
        bytes_max=st.integers(1, 2000),
    )
    def test_a_read_gives_whole_appends_within_its_bounds(
        self, store: OpenLog, sizes: list[int], from_lsn: int, events_max: int, bytes_max: int
    ) -> None:
        for size in sizes:
            store.append(*[added(n, "x" * 40) for n in range(size)])
        every = store.read_all()
        from_lsn = min(from_lsn, every[-1].lsn)
        part = store.log.read(from_lsn, events_max=events_max, bytes_max=bytes_max)
        assert part == every[from_lsn - 1 : from_lsn - 1 + len(part)]
        ends = {append.last_lsn for append in store.commits.appends}
        assert part[-1].lsn in ends
        first_end = min(end for end in ends if end is not None and end >= from_lsn)
        assert len(part) <= events_max or part[-1].lsn == first_end, "more than was asked for, and no single append"

    def test_reads_of_what_is_not_there(self, store: OpenLog) -> None:
        assert store.log.read(1, events_max=1, bytes_max=1) == []
        store.append(added(1))
        assert store.log.read(2, events_max=1, bytes_max=1) == []
        with pytest.raises(InvalidArgumentError):
            store.log.read(0, events_max=1, bytes_max=1)

    # -- what is refused

    def test_what_cannot_be_appended(self, tmp_path: Path) -> None:
        with self.opened(tmp_path / "store", Options(append_bytes_max=1024)) as store:
            with pytest.raises(InvalidArgumentError):
                store.log.submit([])
            with pytest.raises(LimitExceededError):
                store.log.submit([added(1, "x" * 2000)])
            assert store.append(added(2)).first_lsn == 1

    def test_a_withdrawn_append_never_was(self, store: OpenLog) -> None:
        """Whether it can be is a race with the writer; what it says holds."""
        withdrawn = []
        for number in range(200):
            append = store.log.submit([added(number)])
            if store.log.withdraw(append):
                withdrawn.append(append)
        store.log.flush()
        assert not set(map(id, withdrawn)) & set(map(id, store.commits.appends))
        assert len(store.read_all()) == 200 - len(withdrawn) == store.log.durable_lsn
        for append in store.commits.appends:
            assert not store.log.withdraw(append)

    # -- the end

    def test_after_a_close_every_call_is_refused(self, tmp_path: Path) -> None:
        with self.opened(tmp_path / "store") as store:
            store.append(added(1))
            store.log.close()
            store.log.close()
            for call in (
                lambda: store.log.submit([added(2)]),
                lambda: store.log.read(1, events_max=1, bytes_max=1),
                store.log.flush,
            ):
                with pytest.raises(StoreClosedError):
                    call()

    def test_a_child_of_a_fork_is_refused_and_takes_nothing_from_its_parent(self, store: OpenLog) -> None:
        store.append(added(1))
        if (pid := os.fork()) == 0:
            status = 1
            try:
                refused = 0
                for call in (
                    lambda: store.log.submit([added(2)]),
                    lambda: store.log.read(1, events_max=1, bytes_max=1),
                    store.log.flush,
                ):
                    try:
                        call()
                    except StoreForkedError:
                        refused += 1
                store.log.close()
                status = 0 if refused == 3 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert store.append(added(3)).first_lsn == 2
        assert len(store.read_all()) == 2

    # -- what a log may lack

    def test_it_says_what_it_lacks(self, store: OpenLog) -> None:
        assert set(store.log.lacks) == self.lacks
        assert all(store.log.lacks.values())

    def test_a_rewrite(self, tmp_path: Path) -> None:
        if LogCapability.REWRITE in self.lacks:
            pytest.skip("this log cannot be rewritten")
        removed = EventRemoved("erased", 7)
        with self.opened(tmp_path / "store") as store:
            store.append(*[added(n) for n in range(5)])
            store.append(*[added(n) for n in range(5, 20)])
            before = store.read_all()
            with pytest.raises(ZeroDivisionError):
                store.log.rewrite(lambda stored: added(stored.lsn // 0))
            assert store.read_all() == before
            report = store.log.rewrite(lambda stored: removed if stored.lsn % 2 else stored.event)
            assert report.events_changed == 10
            after = store.read_all()
            assert [(e.lsn, e.event_id, e.logged_at_ns) for e in after] == [
                (e.lsn, e.event_id, e.logged_at_ns) for e in before
            ]
            expected = [removed if stored.lsn % 2 else stored.event for stored in before]
            assert [stored.event for stored in after] == expected
            assert store.append(added(99)).first_lsn == 21
        if self.is_durable:
            with self.opened(tmp_path / "store", epoch=2) as store:
                assert [stored.event for stored in store.read_all()] == [*expected, added(99)]

    def test_figures(self, store: OpenLog) -> None:
        if LogCapability.STATISTICS in self.lacks:
            pytest.skip("this log has no figures")
        store.append(added(1), added(2))
        stats = store.log.stats()
        assert (stats.events, stats.durable_lsn) == (2, 2)
        assert stats.bytes > 0
        assert stats.segments >= 1
