"""ctrl_c: keys are pressed at any moment of any call. None is lost, nothing hangs, and the store stays usable."""

from __future__ import annotations

from pathlib import Path

from tests.harness.engine_oracle import check_store
from tests.harness.engine_tools import answer_of, run_script
from tests.harness.fault_report import LONG_FORM, FaultReport, Verdict, timed_rounds

#: of one process
INTERRUPTS = 40

STORM = """
    import json, sys
    from tests.harness.interrupted_lives import storm
    home, name, seed, interrupts = sys.argv[1:]
    print(json.dumps(storm(home, name, int(seed), int(interrupts))))
"""

STEPS = """
    import json, sys
    from tests.harness.interrupted_lives import every_step
    home, name, stride = sys.argv[1:]
    print(json.dumps(every_step(home, name, int(stride))))
"""

OBSTACLES = """
    import json, sys
    from tests.harness.interrupted_lives import obstacles
    print(json.dumps(obstacles(*sys.argv[1:])))
"""


def test_keys_at_any_moment(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    for number in timed_rounds("ctrl_c", 1):
        name = f"{store_name}_{number}"
        answer = answer_of(run_script(STORM, tmp_path, name, number, INTERRUPTS))
        fault_report.add("ctrl_c: interrupted calls", sum(answer["interrupted"].values()))
        lost, torn = len(answer["lost"]), len(answer["torn"])
        fault_report.judge(Verdict(answer["acknowledged"], lost, 0, 0, torn))
        del answer["interrupted"], answer["acknowledged"]
        assert answer == {"lost": [], "torn": [], "swallowed": [], "health": [True, []]}
        check_store(tmp_path, name)


def test_a_key_at_every_step(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    seconds = 3000.0 if LONG_FORM else 400.0
    steps = answer_of(run_script(STEPS, tmp_path, store_name, 1 if LONG_FORM else 29, timeout_seconds=seconds))
    fault_report.add("ctrl_c: interrupted steps of a call", sum(steps.values()))
    assert steps.keys() == {"add", "search", "close", "open", "drop"}
    assert min(steps.values()) > 2, steps


def test_a_key_ends_a_call_that_would_not_end(tmp_path: Path, store_name: str, fault_report: FaultReport) -> None:
    """A wait for the projection or for room, a close and an open, with what they wait for still in the way."""
    answer = answer_of(run_script(OBSTACLES, tmp_path, store_name))
    fault_report.add("ctrl_c: interrupted calls", len(answer))
    assert answer == {
        "search": [True, 1],
        "flush": [True, 1],
        "add": [True, 1],
        "close": [True, 1],
        "with": [True, 1],
        "open: start of the database": [True, 0],
        "open: model": [True, 1],
        "open: rebuild": [True, 1],
    }
