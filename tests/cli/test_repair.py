"""``pixelmemory repair``, of logs without tables."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pixelmemory.doctor.repair import apply_repair
from pixelmemory.doctor.repair_plan import plan_repair
from pixelmemory.log.file.files import Buffer, Files
from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded
from pixelmemory.store.lock import StoreLock
from tests.harness.cli_tools import Program, append, contents, flip, frames, logged, make_log, open_log, sample
from tests.harness.logs import segment_paths
from tests.harness.mishaps import MISHAPS, delete, later_manifest, later_version


def is_lost(event: Event) -> bool:
    return isinstance(event, EventRemoved) and event.reason == "lost"


def repair(program: Program, store: Path) -> Path:
    """Repair after a dry run that changed nothing. Returns the new folder in quarantine/."""
    before = contents(store)
    dry = program("repair", store, "--log-only")
    assert (dry.status, dry.err) == (1, "")
    assert dry.out.endswith("Nothing was changed. Copy the store's folder, then add --yes to do this.\n")
    assert contents(store) == before
    run = program("repair", store, "--log-only", "--yes")
    assert (run.status, run.err) == (0, "")
    assert dry.out.rpartition("\n\n")[0] in run.out  # what was announced is what was done
    (quarantine,) = (store / "quarantine").iterdir()
    check_that_nothing_is_gone(before, store)
    assert program("verify", store, "--log-only").status == 0
    again = program("repair", store, "--log-only")
    assert again.status == 0
    assert "nothing to repair" in again.out
    return quarantine


def check_that_nothing_is_gone(before: dict[str, bytes], store: Path) -> None:
    """Every byte that was in the log is in a file of the store still, under whatever name."""
    after = list(contents(store).values())
    for name, data in before.items():
        if not name.endswith(".log") or data in after:
            continue
        # its seal was rewritten: the old one is a file of its own, and everything before it is as it was
        seal = next(rest for rest in after if rest and data.endswith(rest))
        assert any(other.startswith(data[: -len(seal)]) for other in after), name


def check_log(store: Path, events: list[Event], first_lost: int, last_lost: int) -> None:
    """The log holds ``events``, placeholders for what is lost, and gives the next LSN to the next event."""
    found = logged(store)
    assert found[: first_lost - 1] == events[: first_lost - 1]
    assert list(map(is_lost, found[first_lost - 1 :])) == [True] * (last_lost - first_lost + 1)
    with open_log(store) as log:
        assert log.durable_lsn == last_lost
        append(log, [MemoryAdded("work", "new", "", 0)])
        (new,) = log.read(last_lost + 1, events_max=1, bytes_max=1)
        assert isinstance(new.event, MemoryAdded)
        assert new.event.memory_id == "new"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ------------------------------------------------------------------------------------------------- what costs nothing

FREE = [name for name, (_, kinds) in MISHAPS.items() if "events" not in kinds]


@pytest.mark.parametrize("mishap", FREE)
def test_what_costs_no_event(program: Program, store: Path, events: list[Event], mishap: str) -> None:
    MISHAPS[mishap][0](store)
    quarantine = repair(program, store)
    assert logged(store) == events
    assert not (quarantine / "events.jsonl").exists()
    note = json.loads((quarantine / "note.json").read_text())
    assert [damage["kind"] for damage in note["damage"]] == MISHAPS[mishap][1]
    assert "cut" not in note


def test_several_mishaps_at_once(program: Program, store: Path, events: list[Event]) -> None:
    for mishap in ("foreign segment", "stray file", "swapped segments", "damaged seal", "damaged MANIFEST"):
        MISHAPS[mishap][0](store)
    repair(program, store)
    assert logged(store) == events


# ------------------------------------------------------------------------------------------------------- what is cut


def test_a_flipped_byte(program: Program, store: Path, events: list[Event]) -> None:
    path, *behind = segment_paths(store)[1:]
    frame, lsn, last = frames(path)[2], int(path.stem) + 2, len(events)
    flip(path, frame + 80)
    damaged = path.read_bytes()
    dry = program("repair", store, "--log-only")
    assert f"cut the log in {path.name} at byte {frame}, before LSN {lsn}\n" in dry.out
    assert f"LSN {lsn} to {last}: {last - lsn + 1} events\n" in dry.out
    assert f"{last - lsn} of them can still be read" in dry.out
    assert " 1 of them cannot be read\n" in dry.out
    kept = {path.name: path.read_bytes() for path in behind}
    quarantine = repair(program, store)
    assert contents(quarantine).keys() == {"note.json", "events.jsonl", path.name, *kept}
    assert (quarantine / path.name).read_bytes() == damaged
    assert all((quarantine / name).read_bytes() == data for name, data in kept.items())
    found = lines(quarantine / "events.jsonl")
    assert [line["lsn"] for line in found] == list(range(lsn + 1, last + 1))
    assert [line["memory_id"] for line in found] == [
        msgspec.structs.asdict(event)["memory_id"] for event in events[lsn:]
    ]
    note = json.loads((quarantine / "note.json").read_text())
    assert note["cut"] == {
        "segment": path.name,
        "byte_offset": frame,
        "first_lsn": lsn,
        "last_lsn": last,
        "last_lsn_is_exact": True,
    }
    assert note["segments"] == list(kept)
    assert note["events_in_events_jsonl"] == last - lsn
    check_log(store, events, lsn, last)


def _header_of(number: int) -> Callable[[Path], int]:
    def damage(store: Path) -> int:
        path = segment_paths(store)[number]
        flip(path, 60)
        return int(path.stem)

    return damage


def _missing(number: int) -> Callable[[Path], int]:
    def damage(store: Path) -> int:
        lsn = int(segment_paths(store)[number].stem)
        delete(number)(store)
        return lsn

    return damage


def _cut_short(store: Path) -> int:
    path = segment_paths(store)[0]
    path.write_bytes(path.read_bytes()[: frames(path)[3]])
    return 4


def _last_frame(store: Path) -> int:
    path = segment_paths(store)[-1]
    flip(path, frames(path)[-2] + 70)
    return int(path.stem) + len(frames(path)) - 2


def _zeroed_segment(store: Path) -> int:
    path = segment_paths(store)[1]
    path.write_bytes(bytes(path.stat().st_size))
    return int(path.stem)


LOSSES: dict[str, Callable[[Path], int]] = {
    "first header": _header_of(0),
    "a header": _header_of(1),
    "last header": _header_of(-1),
    "first segment missing": _missing(0),
    "a segment missing": _missing(1),
    "segment cut short": _cut_short,
    "last frame": _last_frame,
    "zeroed segment": _zeroed_segment,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_lost_is_told_and_its_lsns_are_not_given_out_again(
    program: Program, store: Path, events: list[Event], loss: str
) -> None:
    first_lost = LOSSES[loss](store)
    readable = [json.loads(line)["lsn"] for line in program("log", store, "--json").out.splitlines()]
    quarantine = repair(program, store)
    assert [line["lsn"] for line in lines(quarantine / "events.jsonl")] == [n for n in readable if n >= first_lost]
    check_log(store, events, first_lost, len(events))


def test_a_missing_last_segment(program: Program, store: Path, events: list[Event]) -> None:
    """Nothing but the tables can tell what it held."""
    first_lost = _missing(-1)(store)
    dry = program("repair", store, "--log-only")
    assert "the segment after this one is missing" in dry.out
    assert "lost         no event that is known" in dry.out
    repair(program, store)
    assert logged(store) == events[: first_lost - 1]


def test_a_missing_log(program: Program, store: Path) -> None:
    MISHAPS["the log missing"][0](store)
    assert "lost         no event that is known" in program("repair", store, "--log-only").out
    repair(program, store)
    assert logged(store) == []


def test_unreadable_bytes_count_as_the_most_events_they_can_have_held(
    program: Program, store: Path, events: list[Event]
) -> None:
    path = segment_paths(store)[-1]
    first = int(path.stem)
    data = path.read_bytes()
    path.write_bytes(data[:128] + b"x" * (len(data) - 128))
    dry = program("repair", store, "--log-only")
    assert " events at most\n" in dry.out
    repair(program, store)
    found = logged(store)
    assert found[: first - 1] == events[: first - 1]
    assert len(events) <= len(found) < len(events) + 200
    assert all(map(is_lost, found[first - 1 :]))


def test_an_event_that_does_not_decode_is_cut(program: Program, store: Path, events: list[Event]) -> None:
    from zlib import crc32

    path = segment_paths(store)[0]
    at = frames(path)[4]
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[at + 12 : at + 16], "little")
    data[at + 64 + 36] = 0xC1  # never valid msgpack
    padded = -(-length // 64) * 64
    data[at + 36 : at + 40] = crc32(data[at + 64 : at + 64 + padded]).to_bytes(4, "little")
    data[at + 60 : at + 64] = crc32(data[at : at + 60]).to_bytes(4, "little")
    data[at + 64 + padded + 32 : at + 64 + padded + 36] = data[at + 60 : at + 64]  # the next one names its checksum
    after = at + 64 + padded
    data[after + 60 : after + 64] = crc32(data[after : after + 60]).to_bytes(4, "little")
    path.write_bytes(data)
    run = program("log", store, "--json")
    assert "LSN 5: the payload does not decode" in run.err
    repair(program, store)
    check_log(store, events, 5, len(events))


def test_repaired_twice(program: Program, store: Path, events: list[Event]) -> None:
    flip(segment_paths(store)[-1], frames(segment_paths(store)[-1])[0] + 80)
    first_lost = int(segment_paths(store)[-1].stem)
    repair(program, store)
    shutil.rmtree(store / "quarantine")
    more = sample(20)
    with open_log(store) as log:
        append(log, more)
    flip(segment_paths(store)[0], frames(segment_paths(store)[0])[1] + 80)
    quarantine = repair(program, store)
    found = lines(quarantine / "events.jsonl")
    assert {line["type"] for line in found} == {"added", "updated", "deleted"}  # placeholders are no events
    assert [line["lsn"] for line in found] == [*range(3, first_lost), *range(len(events) + 1, len(events) + 21)]
    check_log(store, events, 2, len(events) + 20)
    table = program("log", store, "--from", 2, "--limit", 1).out
    assert "lost" in table
    assert table.endswith("(removed by a repair)\n")


def test_any_flipped_bit_or_cut(program: Program, tmp_path: Path) -> None:
    given = sample(24)
    clean = make_log(tmp_path / "clean", given)
    chance = random.Random(11)
    repaired = 0
    for number in range(40):
        store = tmp_path / f"store-{number}"
        shutil.copytree(clean, store)
        path = chance.choice(segment_paths(store)[:-1] if number % 2 else segment_paths(store))
        data = bytearray(path.read_bytes())
        at = chance.randrange(len(data))
        if number % 3:
            data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data if number % 3 else data[:at])
        before = contents(store)
        if program("verify", store, "--log-only").status == 0:
            continue
        repaired += 1
        assert program("repair", store, "--log-only", "--yes").status == 0
        check_that_nothing_is_gone(before, store)
        found = logged(store)
        kept = next((n for n, event in enumerate(found) if is_lost(event)), len(found))
        assert found[:kept] == given[:kept]
        assert all(map(is_lost, found[kept:]))
        assert len(found) >= len(given) or path == segment_paths(clean)[-1]
    assert repaired > 25


# --------------------------------------------------------------------------------------------------- interruptions


class StoppedError(Exception):
    pass


class InterruptedFiles(Files):
    """Stops before its Nth change."""

    def __init__(self, changes: int) -> None:
        self.changes_left = changes

    def _change(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise StoppedError

    def write(self, fd: int, data: Buffer, byte_offset: int) -> int:
        self._change()
        return super().write(fd, data, byte_offset)

    def rename(self, source: Path, target: Path) -> None:
        self._change()
        super().rename(source, target)

    def truncate(self, fd: int, length: int) -> None:
        self._change()
        super().truncate(fd, length)


@pytest.mark.parametrize("loss", ["a header", "first segment missing", "last frame", "swapped"])
def test_an_interrupted_repair_can_be_done_again(program: Program, tmp_path: Path, loss: str) -> None:
    given = sample(44)
    damaged = make_log(tmp_path / "damaged", given)
    if loss == "swapped":
        MISHAPS["swapped segments"][0](damaged)
        first_lost, readable = len(given) + 1, set(range(1, len(given) + 1))
    else:
        first_lost = LOSSES[loss](damaged)
        readable = {json.loads(line)["lsn"] for line in program("log", damaged, "--json").out.splitlines()}
    before = contents(damaged)
    changes = 0
    while True:
        store = tmp_path / f"store-{changes}"
        shutil.copytree(damaged, store)
        try:
            apply_repair(plan_repair(store), files=InterruptedFiles(changes))
        except StoppedError:
            pass
        else:
            break
        check_that_nothing_is_gone(before, store)
        assert program("repair", store, "--log-only", "--yes").status == 0
        check_that_nothing_is_gone(before, store)
        check_log(store, given, first_lost, len(given))
        saved = {line["lsn"] for path in store.glob("quarantine/*/events.jsonl") for line in lines(path)}
        assert saved >= {lsn for lsn in readable if lsn >= first_lost}
        shutil.rmtree(store)
        changes += 1
    assert changes > 4


# ------------------------------------------------------------------------------------------------- when it does not


def test_a_clean_store_needs_none(program: Program, store: Path) -> None:
    before = contents(store)
    run = program("repair", store, "--log-only")
    assert (run.status, "damage       none: there is nothing to repair" in run.out) == (0, True)
    assert contents(store) == before
    assert program("repair", store, "--log-only", "--yes").status == 0
    assert contents(store) == {**before, "LOCK": contents(store)["LOCK"]}


def test_a_torn_tail_is_left_to_the_next_open(program: Program, store: Path, events: list[Event]) -> None:
    path = segment_paths(store)[-1]
    path.write_bytes(path.read_bytes()[: frames(path)[-2] + 70])
    run = program("repair", store, "--log-only", "--yes")
    assert run.status == 0
    assert "torn tail    70 bytes that were never acknowledged; the next open sets them aside" in run.out
    assert logged(store) == events[:-1]


def test_a_store_that_is_open(program: Program, store: Path) -> None:
    flip(segment_paths(store)[0], 300)
    lock = StoreLock.acquire(store / "LOCK")
    try:
        run = program("repair", store, "--log-only", "--yes")
        dry = program("repair", store, "--log-only")
    finally:
        lock.release()
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith(f"pixelmemory: the store is already open in process {os.getpid()} ")
    if Path("/proc/locks").exists():
        assert (dry.status, dry.err) == (2, run.err)
    assert program("repair", store, "--log-only").status == 1


@pytest.mark.parametrize("break_it", [later_version, later_manifest])
def test_a_store_of_a_later_version_is_left_alone(
    program: Program, store: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(store)
    flip(segment_paths(store)[-1], 300)
    before = contents(store)
    run = program("repair", store, "--log-only", "--yes")
    assert run.status == 2
    assert "Repair it with the version that wrote it" in run.err
    assert {**contents(store), "LOCK": b""} == {**before, "LOCK": b""}


def test_nothing_to_go_by(program: Program, store: Path) -> None:
    for path in segment_paths(store):
        path.write_bytes(b"x" * 1000)
    (store / "MANIFEST").write_bytes(b"")
    run = program("repair", store, "--log-only", "--yes")
    assert run.status == 2
    assert "no segment says which store this is" in run.err
