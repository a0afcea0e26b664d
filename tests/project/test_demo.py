"""The demo's first part, with its real model, in a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path

from tests.harness.engine_tools import pixeltable_home, run_script

RUN = """
    import os, sys
    os.chdir(sys.argv[1])
    sys.path.insert(0, sys.argv[2])
    import agent
    agent.run()
"""
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_an_agents_memory_and_its_promise(tmp_path: Path) -> None:
    with pixeltable_home() as home:
        (tmp_path / ".demo").symlink_to(home.parent)
        for _ in range(2):  # the second finds the stores of the first
            done = run_script(RUN, tmp_path, EXAMPLES, PIXELTABLE_HOME=str(home), COLUMNS="200")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Which city is her home?  Ann lives in Lisbon" in done.stdout
            told = re.search(r"acknowledged before the kill: ([\d,]+); found after it: ([\d,]+); lost: 0", done.stdout)
            assert told is not None, done.stdout
            assert told[1] == told[2]
            assert re.search(r"LSN 1  added .*Lisbon.*\n.* updated  .*Porto", done.stdout)
            assert re.search(r"was in [1-9]\d* of the files", done.stdout)
            assert "is in 0 of the files now" in done.stdout
