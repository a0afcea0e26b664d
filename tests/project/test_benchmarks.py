"""Each benchmark in a tiny form, with its result checked."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import catalogue, data, machine, profiling
from benchmarks.__main__ import report
from benchmarks.bars import (
    acknowledge,
    bulk,
    field,
    gpu,
    growth,
    large,
    namespaces,
    project,
    reads,
    rebuild,
    searchable,
)
from benchmarks.place import Place
from benchmarks.report import Bar, Outcome, Run, WrongResultError, bars_table, check
from benchmarks.stores import peers
from benchmarks.stores.contenders import ALWAYS, NotOfferedError, Session
from benchmarks.stores.peer_process import PeerProcess


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, "tiny")


def test_acknowledge(place: Place) -> None:
    figures = acknowledge.run(place)
    assert figures.counts == {"one": 50 + 64, "many": 256 + 640 + 512}
    assert all(rate > 0 for rate in figures.many_per_second.values())
    assert figures.ticks > 0
    assert [bar.number for bar in figures.bars()] == [1] * 5


def test_bulk(place: Place) -> None:
    figures = bulk.run(place)
    assert figures.count == 4000
    assert [bar.ratio is not None for bar in figures.bars()] == [True, True]


def test_project(place: Place) -> None:
    figures = project.run(place)
    assert 0.99 < figures.dtype.cosine_min <= 1.001
    assert figures.dtype.recall > 0.8
    assert figures.embedded.batch_size in project.BATCH_SIZES
    assert (figures.given.sqlite_vec_per_second is not None) == peers.installed("sqlite-vec")
    assert len(figures.bars()) == 4


def test_searchable(place: Place) -> None:
    figures = searchable.run(place)
    assert figures.found_p50_ms > 0
    assert figures.behind.backlog_events > 0
    assert len(figures.bars()) == 4


def test_reads(place: Place) -> None:
    figures = reads.run(place)
    assert figures.recall == 1.0
    assert [each.recall for each in figures.filtered.values()] == [1.0] * 5
    assert (figures.chroma_p50_ms is not None) == peers.installed("chroma")
    assert len(figures.bars()) == 8


def test_large(place: Place) -> None:
    figures = large.run(place)
    assert figures.recall >= 0.9
    assert figures.shared_recall == 1.0
    assert len(figures.bars()) == 8


def test_growth(place: Place) -> None:
    figures = growth.run(place)
    assert [cost.events for cost in figures.costs] == [100, 1000]
    assert figures.backlog_bytes >= 0
    assert len(figures.bars()) == 7


def test_rebuild(place: Place) -> None:
    figures = rebuild.run(place)
    assert figures.embedder_calls == 0
    assert figures.rebuild_per_second > 0


def test_namespaces(place: Place) -> None:
    figures = namespaces.run(place)
    assert figures.many_per_second > 0
    assert len(figures.bars()) == 3


def test_gpu(place: Place) -> None:
    import torch

    bar = gpu.run(place).bars()[0]
    assert bar.verdict == ("stated" if torch.cuda.is_available() else "not run (torch sees no CUDA here)")


# ----------------------------------------------------------------------------------------------------------- the field


@pytest.mark.parametrize("name", ALWAYS)
def test_contenders_do_what_they_are_asked(name: str, tmp_path: Path) -> None:
    session = Session(ALWAYS[name], tmp_path, 60, 3)
    for operation in Session.OPERATIONS:
        try:
            timed = session.run(operation, 3)
        except NotOfferedError:
            assert name == "sqlite"
            assert operation in ("search", "filtered")
            continue
        assert len(timed.seconds) == (2 if operation == "bulk" else 3)
        assert timed.recall in (None, 1.0)
    session.close()


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_do_what_they_are_asked(name: str, place: Place) -> None:
    if not peers.installed(name):
        pytest.skip(f"{name} is not installed")
    with PeerProcess(place, name, 60, 3) as peer:
        assert peer.version
        for operation in Session.OPERATIONS:
            timed = peer.run(operation, 3)
            assert len(timed.seconds) == (2 if operation == "bulk" else 3)
            assert timed.recall in (None, 1.0)


def test_the_field_reports_what_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "chroma", (("no_such_module",), peers.Chroma))
    sqlite, chroma = field.measure(place, ("sqlite", "chroma")).contenders
    assert sqlite.get_ms is not None
    assert sqlite.search_ms is None
    assert chroma.why.startswith("not installed")


def test_a_wrong_contender_has_no_figures(place: Place) -> None:
    peer = PeerProcess(place, "sqlite", 10, 1)
    assert peer.run("bulk").seconds
    for run in (lambda: peer.run("no-such-operation"), peer.close):
        with pytest.raises(WrongResultError, match="no operation no-such-operation"):
            run()


def test_only_one_module_imports_the_peers() -> None:
    modules = {module for needed, _ in peers.PEERS.values() for module in needed}
    users = {
        path.name
        for path in Path(peers.__file__).parent.glob("*.py")
        if any(f"import {module}" in path.read_text() for module in modules)
    }
    assert users == {"peers.py"}


# ---------------------------------------------------------------------------------------------------- data and report


def test_the_corpus_is_the_same_each_time() -> None:
    first, second = data.corpus(500), data.corpus(500)
    assert first.contents == second.contents
    assert first.metadata == second.metadata
    np.testing.assert_array_equal(first.vectors, second.vectors)
    assert len(set(data.texts(20_000))) == 20_000
    for name, _ in data.FILTERS:
        assert 0.02 < data.matches(first, name).mean() < 0.09


def test_recall_counts_the_nearest() -> None:
    similarity = np.array([0.9, 0.8, 0.7, 0.1], dtype=np.float32)
    assert data.recall(similarity, [0, 1], 2) == 1.0
    assert data.recall(similarity, [0, 3], 2) == 0.5
    assert data.recall(similarity, [0, 0], 2) == 0.5


def test_a_wrong_result_is_not_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_place: Place) -> bulk.Bulk:
        check(False, "one row too few")
        raise AssertionError

    monkeypatch.setattr(bulk, "run", run)
    outcome = catalogue.run_one("bulk", place)
    assert outcome.figures == {}
    assert [bar.verdict for bar in outcome.bars] == ["not run (wrong result: one row too few)"]


def test_the_report() -> None:
    bar = Bar(number=2, name="n", measured="1/s", baseline="2/s", ratio=0.5, wanted=">= 0.5 x", met=True)
    missed = msgspec.structs.replace(bar, number=1, met=False)
    run = Run(
        command="c",
        size="tiny",
        seconds=1.0,
        machine={"python": "3"},
        outcomes=[Outcome(name="bulk", seconds=1.0, bars=[bar, missed], figures={})],
    )
    assert "1 of 2 met, 0 not run." in report(run)
    lines = bars_table(run.bars(), markdown=True).splitlines()
    assert lines[2].startswith("| 1 |")
    assert lines[2].endswith("not met |")
    assert lines[3].endswith("| 0.50 | >= 0.5 x | met |")
    assert msgspec.json.decode(msgspec.json.encode(run), type=Run) == run


def test_the_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import write_plots
    from benchmarks.report import FieldRow

    contenders = [msgspec.to_builtins(FieldRow(name=name, version="1", rows=1, get_ms=1.0)) for name in "ab"]
    costs = [msgspec.to_builtins(growth.Cost(events, 1.0, 1.0, 1.0, 1.0)) for events in (10, 100)]
    bar = Bar(number=2, name="n", measured="1/s", ratio=0.5, met=True)
    outcomes = [
        Outcome(name="growth", seconds=1.0, bars=[bar], figures={"costs": costs}),
        Outcome(name="field", seconds=1.0, bars=[], figures={"contenders": contenders}),
    ]
    written = write_plots(Run(command="c", size="tiny", seconds=1.0, machine={}, outcomes=outcomes), tmp_path)
    assert [path.name for path in written] == ["field.svg", "growth.svg", "ratios.svg"]
    assert all(path.read_text().rstrip().endswith("</svg>") for path in written)


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = machine.describe(tmp_path)
    assert found["pgvector"][0].isdigit()
    assert found["pixeltable"].startswith("0.7")
    assert all(found.values())


def test_a_profile_names_what_ran() -> None:
    def work() -> int:
        ended = time.thread_time() + 0.02
        turns = 0
        while time.thread_time() < ended:
            turns += sum(range(100))
        return turns

    with profiling.profiling() as profiles:
        work()
    assert "work" in profiles.text()
