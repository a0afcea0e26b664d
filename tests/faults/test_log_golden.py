"""golden: the independent reader finds in the files of every released format version what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fault_report import FaultReport, Verdict
from tests.harness.independent_reader import CLOSE, read_folder

GOLDEN = Path(__file__).parent.parent / "golden"
STORES = sorted(path.parent for path in GOLDEN.glob("*/*/MANIFEST"))


def _plain(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


@pytest.mark.parametrize("folder", STORES, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_golden(folder: Path, fault_report: FaultReport) -> None:
    rows = json.loads((folder.parent / "events.json").read_text())
    log = read_folder(folder)
    assert log.stopped is None
    assert (log.frames[-1].kind == CLOSE) == (folder.name == "closed")
    assert [event.lsn for event in log.events] == [row["lsn"] for row in rows]
    changed = 0
    for event, row in zip(log.events, rows, strict=True):
        wanted = {name: _plain(value) for name, value in row["fields"].items()}
        changed += {name: wanted[name] for name in event.fields} != event.fields
        changed += event.event_id.hex() != row["event_id"] or event.logged_at_ns != row["logged_at_ns"]
    fault_report.judge(Verdict(len(rows), silent_changes=changed))
    assert not changed


def test_golden_files_are_there() -> None:
    assert {folder.name for folder in STORES} == {"closed", "killed"}
