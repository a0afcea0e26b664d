"""``pixelmemory log``."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pixelmemory.memory.events import Event, EventRemoved, MemoryAdded, MemoryDeleted, MemoryUpdated
from tests.harness.cli_tools import Program, append, flip, frames, make_log, open_log
from tests.harness.logs import segment_paths


def lsns(out: str) -> list[int]:
    return [json.loads(line)["lsn"] for line in out.splitlines()]


def test_every_event_with_everything_it_holds(program: Program, tmp_path: Path) -> None:
    vector = bytes(range(16))
    given: list[Event] = [
        MemoryAdded("work", "m1", "content", 1_700_000_000_123_456, b'{"b":1,"a":[1.5,null,"\xc3\xa9"]}', vector),
        MemoryUpdated("work", "m1", metadata_json=b"{}"),
        MemoryUpdated("work", "m1", content="", embedding=vector),
        MemoryDeleted("work", "m1"),
    ]
    store = make_log(tmp_path / "notes", given)
    run = program("log", store, "--json")
    assert (run.status, run.err) == (0, "")
    found = [json.loads(line) for line in run.out.splitlines()]
    assert all(len(line.pop("event_id")) == 32 and line.pop("logged_at").endswith("Z") for line in found)
    embedding = base64.b64encode(vector).decode()
    same = {"namespace": "work", "memory_id": "m1"}
    assert found == [
        {
            "lsn": 1,
            "type": "added",
            **same,
            "created_at": "2023-11-14T22:13:20.123456Z",
            "content": "content",
            "metadata": {"b": 1, "a": [1.5, None, "é"]},
            "embedding": embedding,
        },
        {"lsn": 2, "type": "updated", **same, "metadata": {}},
        {"lsn": 3, "type": "updated", **same, "content": "", "embedding": embedding},
        {"lsn": 4, "type": "deleted", **same},
    ]


def test_the_table(program: Program, store: Path, events: list[Event]) -> None:
    run = program("log", "notes", "--home", store.parent)
    lines = run.out.splitlines()
    assert run.status == 0
    assert lines[0].split() == ["LSN", "time", "type", "namespace", "id", "content"]
    assert len(lines) == 1 + len(events)
    assert [int(line.split()[0]) for line in lines[1:]] == list(range(1, len(events) + 1))
    assert lines[1].split()[2:6] == ["added", "work", "id-0", "text"]
    assert lines[2].endswith("(metadata)")


def test_events_that_were_taken_out(program: Program, tmp_path: Path) -> None:
    """They are of no memory, so who asks for one does not get them."""
    given = [MemoryAdded("work", f"m{n}", "content", 1) for n in range(4)]
    store = make_log(tmp_path / "notes", list(given))
    reasons = {2: "erased", 3: "compacted"}
    with open_log(store) as log:
        log.rewrite(
            lambda stored: (
                EventRemoved(reasons[stored.lsn], 1_700_000_000_123_456) if stored.lsn in reasons else stored.event
            )
        )
    found = [json.loads(line) for line in program("log", store, "--json").out.splitlines()]
    assert [line["type"] for line in found] == ["added", "erased", "compacted", "added"]
    assert found[1].keys() == {"lsn", "logged_at", "event_id", "type", "removed_at"}
    assert found[1]["removed_at"] == "2023-11-14T22:13:20.123456Z"
    table = program("log", store).out.splitlines()
    assert table[2].split()[2:] == ["erased", "(removed", "2023-11-14)"]
    assert lsns(program("log", store, "--json", "--namespace", "work").out) == [1, 4]
    assert lsns(program("log", store, "--json", "--memory-id", "m1").out) == []


def test_what_is_asked_for(program: Program, store: Path, events: list[Event]) -> None:
    last = len(events)
    assert lsns(program("log", store, "--json", "--from", 20, "--to", 22).out) == [20, 21, 22]
    assert lsns(program("log", store, "--json", "--from", last).out) == [last]
    assert lsns(program("log", store, "--json", "--from", last + 1).out) == []
    assert lsns(program("log", store, "--json", "--limit", 3).out) == [1, 2, 3]
    assert lsns(program("log", store, "--json", "--limit", 0).out) == []
    mine = [lsn for lsn, event in enumerate(events, 1) if msgspec.structs.asdict(event)["memory_id"] == "id-3"]
    assert lsns(program("log", store, "--json", "--memory-id", "id-3").out) == mine
    assert lsns(program("log", store, "--json", "--namespace", "other").out) == []
    assert len(lsns(program("log", store, "--json", "--namespace", "work").out)) == last


@pytest.mark.parametrize("place", range(4))
def test_damage_in_the_middle(program: Program, store: Path, events: list[Event], place: int) -> None:
    path = segment_paths(store)[1]
    lsn = int(path.stem) + 2
    frame = frames(path)[2]
    flip(path, frame + (0, 33, 64, 100)[place])
    run = program("log", store, "--json")
    assert run.status == 1
    assert lsns(run.out) == [number for number in range(1, len(events) + 1) if number != lsn]
    assert f"damage: {path.name}, byte {frame} (" in run.err
    assert f"LSN {lsn}: " in run.err
    assert run.err.count("\n") == 1


def test_a_damaged_segment_header_hides_no_event(program: Program, store: Path, events: list[Event]) -> None:
    flip(segment_paths(store)[1], 50)
    run = program("log", store, "--json")
    assert run.status == 1
    assert lsns(run.out) == list(range(1, len(events) + 1))
    assert "the segment header fails its checksum" in run.err


def test_a_missing_segment(program: Program, store: Path, events: list[Event]) -> None:
    _, gone, after, *_ = segment_paths(store)
    gone.unlink()
    run = program("log", store, "--json")
    first, last = int(gone.stem), int(after.stem) - 1
    assert run.status == 1
    assert lsns(run.out) == [*range(1, first), *range(last + 1, len(events) + 1)]
    assert f"LSN {first} to {last}" in run.err


def test_a_torn_tail_is_no_damage(program: Program, store: Path, events: list[Event]) -> None:
    path = segment_paths(store)[-1]
    path.write_bytes(path.read_bytes()[: frames(path)[-2] + 70])  # before the closing mark
    run = program("log", store, "--json")
    assert run.status == 0
    assert lsns(run.out) == list(range(1, len(events)))
    assert run.err.startswith(f"torn tail: {path.name}, byte {frames(path)[-1]} (70 bytes), LSN {len(events)}: ")


def test_a_damaged_manifest_does_not_matter(program: Program, store: Path, events: list[Event]) -> None:
    (store / "MANIFEST").write_bytes(b"{")
    run = program("log", store, "--json")
    assert run.status == 1
    assert "MANIFEST: is damaged" in run.err
    assert len(lsns(run.out)) == len(events)


def test_a_store_that_is_open(program: Program, store: Path, events: list[Event]) -> None:
    with open_log(store) as log:
        append(log, [MemoryDeleted("work", "x")])
        run = program("log", store, "--json")
        append(log, [MemoryDeleted("work", "y")])
    assert (run.status, run.err) == (0, "")
    assert lsns(run.out) == list(range(1, len(events) + 2))


def test_hostile_content(program: Program, tmp_path: Path) -> None:
    hostile = "\x1b[2J\x07\r\n\t\x9b31m\x7f\u202egnp.exe\u2028\ufeff\U000e0041"
    given: list[Event] = [
        MemoryAdded(hostile, hostile, hostile, 2**62, b'{"\\u001b":"\xc2\x9b\xe2\x80\xae"}'),
        MemoryAdded("n", "i", "x" * 5_000_000, 0, b'{\n"a": "\xc2\x9b"}'),
        MemoryAdded("n", "i", "é漢字😀" * 100, 0, b"no json \x1b\xff"),
    ]
    store = make_log(tmp_path / "notes", given)
    for json_flag in ([], ["--json"]):
        run = program("log", store, *json_flag)
        assert run.status == 0
        assert all(line.isprintable() for line in run.out.split("\n"))
        assert len(run.out.splitlines()) == 3 + (not json_flag)
    table = program("log", store).out.splitlines()
    assert all(len(line) <= 120 for line in table)
    first, second, third = map(json.loads, program("log", store, "--json").out.splitlines())
    assert (first["namespace"], first["memory_id"], first["content"]) == (hostile, hostile, hostile)
    assert first["metadata"] == {"\x1b": "\x9b\u202e"}
    assert (second["content"], second["metadata"]) == ("x" * 5_000_000, {"a": "\x9b"})
    assert (third["content"], third["metadata_text"]) == ("é漢字😀" * 100, "no json \x1b\\xff")


# ------------------------------------------------------------------------------------------------- as a program


def run_process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pixelmemory", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, **options)  # type: ignore[call-overload,no-any-return]


def test_as_a_process(store: Path, events: list[Event]) -> None:
    environment = {**os.environ, "PIXELMEMORY_HOME": str(store.parent)}
    done = run_process("log", "notes", "--json", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lsns(done.stdout)) == len(events)


def test_a_terminal_that_cannot_show_it(tmp_path: Path) -> None:
    store = make_log(tmp_path / "notes", [MemoryAdded("n", "i", "漢字", 0)])
    done = run_process("log", store, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u6f22\\u5b57" in done.stdout


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    store = make_log(tmp_path / "notes", [MemoryAdded("n", "i", "x" * 3_000_000, 0)] * 2)
    with subprocess.Popen(
        [sys.executable, "-m", "pixelmemory", "log", str(store), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 2
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["log"], "the following arguments are required: STORE"),
        (["mend", "notes"], "invalid choice: 'mend'"),
        (["log", "notes", "--from", "0"], "LSNs begin with 1"),
        (["log", "notes", "--limit", "-1"], "'-1' is not a number from 0 on"),
        (["log", "notes", "--to", "x"], "'x' is not a number from 0 on"),
    ],
)
def test_arguments_that_are_not_understood(
    arguments: list[str], message: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        program(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "log", "repair"])
def test_help_has_examples(command: str, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        program(command, "--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"examples:\n  pixelmemory {command} notes" in out
    assert "exit status" in out


def test_version(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program("--version")
    assert capsys.readouterr().out == "pixelmemory 0.1.0\n"


@pytest.mark.parametrize("command", ["verify", "log", "repair"])
def test_no_such_store(command: str, program: Program, store: Path, tmp_path: Path) -> None:
    run = program(command, "nodes", "--home", store.parent)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith(f"pixelmemory: there is no store {store.parent}/nodes")
    assert run.err.endswith("; stores there: notes\n")
    run = program(command, tmp_path)
    assert run.status == 2
    assert run.err == f"pixelmemory: {tmp_path} is no store: it has neither a MANIFEST nor a log\n"
    assert program(command, tmp_path / "\x1b").err.isprintable() is False
    assert "\x1b" not in program(command, tmp_path / "\x1b").err
