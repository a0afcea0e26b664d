from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pixelmemory.options import SyncMode
from tests.harness.log_tools import added, looked_into, opened, plain, sample_events
from tests.harness.logs import read_events, segment_paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with opened(tmp_path, segment_bytes_max=8192) as store:
        store.append_each(sample_events(100))
    return tmp_path


def test_a_sound_log_has_no_findings(folder: Path) -> None:
    events, findings = looked_into(folder)
    assert findings == []
    assert plain(events) == sample_events(100)
    with opened(folder, epoch=2) as store:
        assert events == read_events(store.log)


@pytest.mark.parametrize("mode", SyncMode)
def test_a_log_that_is_open_can_be_looked_into(tmp_path: Path, mode: SyncMode) -> None:
    with opened(tmp_path, sync_mode=mode) as store:
        store.append_each(sample_events(20))
        before = {p: p.read_bytes() for p in segment_paths(tmp_path)}
        events, findings = looked_into(tmp_path)
        assert findings == []
        assert plain(events) == sample_events(20)
        assert before == {p: p.read_bytes() for p in segment_paths(tmp_path)}
        assert store.append(added(1)).error is None


def test_around_damage_everything_else_is_given(folder: Path) -> None:
    path = segment_paths(folder)[1]
    data = bytearray(path.read_bytes())
    data[128 + 70] ^= 1
    path.write_bytes(data)
    events, findings = looked_into(folder)
    lsn = int(path.stem)
    assert [(f.path, f.byte_offset, f.first_lsn, f.last_lsn) for f in findings] == [(path, 128, lsn, lsn)]
    assert [e.lsn for e in events] == [n for n in range(1, 101) if n != lsn]


def test_a_missing_a_foreign_and_a_headless_segment_are_found(folder: Path) -> None:
    paths = segment_paths(folder)
    paths[1].unlink()
    damaged = bytearray(paths[3].read_bytes())
    damaged[20] ^= 1
    paths[3].write_bytes(damaged)
    shutil.copy(paths[2], folder / "log" / "copy.log")
    events, findings = looked_into(folder)
    assert {f.path.name for f in findings} == {"copy.log", paths[2].name, paths[3].name}
    missing = set(range(int(paths[1].stem), int(paths[2].stem)))  # a header is all that the other one lacks
    assert {e.lsn for e in events} == set(range(1, 101)) - missing


def test_a_cut_end_is_found(folder: Path) -> None:
    path = segment_paths(folder)[-1]
    path.write_bytes(path.read_bytes()[:-100])
    events, findings = looked_into(folder)
    assert len(findings) == 1
    assert findings[0].first_lsn == len(events) + 1
