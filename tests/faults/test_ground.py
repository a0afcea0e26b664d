"""chdir, moved_folder: the working directory changes, and the store's folder is moved, under a running engine."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pixelmemory import LogWriteError, Memory, StoreError
from tests.harness.engine_oracle import check_store, events_of, fold_events
from tests.harness.engine_tools import open_memory, vector
from tests.harness.fault_report import FaultReport, Verdict, timed_rounds
from tests.harness.ground_tools import MOVED, MOVES, contents, make_store, put_back

WAIT_SECONDS = 30.0


class _Restless:
    """A thread that changes the working directory to any of ``folders`` again and again; one of them is gone."""

    def __init__(self, folders: list[Path], gone: Path, seed: int) -> None:
        self._folders = folders
        self._gone = gone
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.changes = 0

    def __enter__(self) -> _Restless:
        self._home = Path.cwd()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()
        os.chdir(self._home)

    def _run(self) -> None:
        while not self._stopping.wait(0.001):
            with self._lock:
                if self._rng.random() < 0.2:
                    self._gone.mkdir()
                    os.chdir(self._gone)
                    self._gone.rmdir()
                else:
                    os.chdir(self._rng.choice(self._folders))
                self.changes += 1

    @contextlib.contextmanager
    def at(self, folder: Path) -> Iterator[None]:
        """The working directory is ``folder`` meanwhile."""
        with self._lock:
            os.chdir(folder)
            yield


class _Told:
    """What was acknowledged: the memories by id, of one namespace."""

    def __init__(self) -> None:
        self.contents: dict[str, str] = {}
        self.acknowledged = 0

    def step(self, memory: Memory, rng: random.Random) -> None:
        """One call, as likely to change as to add."""
        memory_ids = sorted(self.contents)
        kind = rng.randrange(8) if memory_ids else 0
        if kind < 4:
            texts = [f"{self.acknowledged} {'x' * rng.randrange(900)}" for _ in range(rng.choice((1, 1, 5)))]
            entries = [{"content": text, "embedding": vector(len(text))} for text in texts]
            self.contents |= dict(zip(memory.add_entries(entries), texts, strict=True))
            self.acknowledged += len(texts)
            return
        memory_id = rng.choice(memory_ids)
        self.acknowledged += 1
        if kind < 6:
            text = f"updated {self.acknowledged} {'y' * rng.randrange(900)}"
            assert memory.update_memory(memory_id, content=text, embedding=vector(len(text)))
            self.contents[memory_id] = text
        elif kind < 7:
            assert memory.delete_memory(memory_id)
            del self.contents[memory_id]
        elif rng.random() < 0.5:
            assert memory.erase_memory(memory_id)
            del self.contents[memory_id]
        else:
            memory.compact()

    def judge(self, folder: Path, report: FaultReport) -> None:
        """Against the fold of what the independent reader finds in the log of the closed store."""
        events = events_of(folder)
        found = {key[1]: memory.content for key, memory in fold_events(events).items()}
        lost = sum(memory_id not in found for memory_id in self.contents)
        changed = sum(self.contents.get(memory_id) != text for memory_id, text in found.items())
        verdict = Verdict(self.acknowledged, lost=lost, silent_changes=changed)
        report.judge(verdict)
        assert verdict.good, verdict


def test_chdir(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    """Every directory has a store at the same relative path; the working directory changes all the time."""
    opened, others = tmp_path / "opened", [tmp_path / f"other {n}" for n in range(3)]
    opened.mkdir()
    for other in others:
        make_store(other / "mem" / store_name, appends=9)
    before = {other: contents(other) for other in others}
    told = _Told()
    with _Restless([*others, opened, Path("/")], tmp_path / "gone", 0) as restless:
        for seed in timed_rounds("chdir", 3):
            rng = random.Random(seed)
            with restless.at(opened):
                memory = open_memory(rng.choice(("mem", "./mem", "../opened/mem")), store_name, segment_bytes_max=4096)
            try:
                for _ in range(30):
                    told.step(memory, rng)
                assert {record["memory_id"] for record in memory.search(limit=10_000)} == set(told.contents)
                assert memory.health().ok
            finally:
                memory.close()
            assert {other: contents(other) for other in others} == before
            told.judge(opened / "mem" / store_name, fault_report)
    fault_report.add("chdir: change of the working directory", restless.changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["opened", *sorted(other.name for other in others)]
    check_store(opened / "mem", store_name)


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _add_a_segment(memory: Memory, told: _Told) -> None:
    """More than fits into a segment of 8 KiB."""
    for number in range(100):
        memory_id = memory.add_entry("z" * 500, embedding=vector(number))
        told.contents[memory_id] = "z" * 500
        told.acknowledged += 1


@pytest.mark.parametrize("kind", MOVES)
def test_moved_folder_under_an_engine(tmp_path: Path, store_name: str, kind: str, fault_report: FaultReport) -> None:
    rng, told, folder = random.Random(0), _Told(), tmp_path / store_name
    make_store(tmp_path / "other")
    other = contents(tmp_path / "other")
    with open_memory(tmp_path, store_name, segment_bytes_max=8192) as memory:
        for _ in range(15):
            told.step(memory, rng)
        memory.flush()
        victim = min(told.contents)
        MOVES[kind](folder)
        standing = contents(folder)
        with pytest.raises(LogWriteError, match=MOVED):
            _add_a_segment(memory, told)
        problems = memory.health().problems
        assert any("writes fail" in problem and MOVED in problem for problem in problems), problems
        assert {record["memory_id"] for record in memory.search(limit=1000)} == set(told.contents)  # reads go on
        for call in (lambda: memory.erase_memory(victim), memory.compact):
            with pytest.raises((StoreError, LogWriteError), match=MOVED):
                call()
        assert contents(folder) == standing
        put_back(folder)
        _wait_until(lambda: memory.health().ok)  # without a write
        assert memory.erase_memory(victim)  # its delete may have been recorded the first time
        del told.contents[victim]
        memory.compact()
        for _ in range(15):
            told.step(memory, rng)
    fault_report.add(f"moved_folder: {kind}, under an engine")
    assert contents(tmp_path / "other") == other
    told.judge(folder, fault_report)
    with open_memory(tmp_path, store_name) as memory:
        assert memory.health().ok
        assert {record["memory_id"] for record in memory.search(limit=1000)} == set(told.contents)
    check_store(tmp_path, store_name)
