"""How far a flush and a close are: told to a function, or shown to a person at a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import textwrap
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from pixelmemory import InvalidTypeError, WaitTimeoutError
from tests.engine.test_closing import stalled_projector
from tests.harness.engine_tools import async_memory, open_memory, script_environment, vector


def test_a_flush_reports_how_far_it_is(tmp_path: Path, store_name: str) -> None:
    reported: list[tuple[int, int]] = []
    with open_memory(tmp_path, store_name) as memory:
        memory.add_entry("before", embedding=vector(0))
        memory.flush()
        with stalled_projector(memory) as go_on:
            memory.add_entries([{"content": f"{n}", "embedding": vector(n)} for n in range(5)])

            def report(done: int, total: int) -> None:
                reported.append((done, total))
                if len(reported) == 3:
                    go_on.set()

            assert memory.flush(progress=report) == 6
        assert reported[:3] == [(0, 5)] * 3, "several times while it waits"
        assert reported[-1] == (5, 5), "and at its end"
        assert reported == sorted(reported)
        reported.clear()
        memory.flush(progress=report)
        assert reported == [(0, 0)], "nothing was left"


@pytest.mark.anyio
async def test_what_the_function_raises_ends_the_flush(tmp_path: Path, store_name: str) -> None:
    async with async_memory(tmp_path, store_name) as memory:
        with stalled_projector(memory):
            await memory.add_entry("x", embedding=vector(1))
            with pytest.raises(ZeroDivisionError), anyio.fail_after(30):
                await memory.flush(progress=lambda _done, _total: 1 // 0)
            with pytest.raises(WaitTimeoutError):
                await memory.flush(0.3, progress=lambda _done, _total: None)
        assert await memory.flush() == 1


def test_a_bar(tmp_path: Path, store_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open_memory(tmp_path, store_name) as memory:
        with stalled_projector(memory) as go_on:
            memory.add_entry("x", embedding=vector(1))
            threading.Timer(0.5, go_on.set).start()
            assert memory.flush(progress=True) == 1
        shown = capsys.readouterr().err
        assert f"flushing {store_name}:   0%" in shown
        assert f"flushing {store_name}: 100%" in shown
        memory.flush(progress=False)
        memory.flush(progress=True)
        assert capsys.readouterr().err == "", "nothing to wait for"
        with pytest.raises(InvalidTypeError, match="progress must be a bool or a function"):
            memory.flush(progress=1)  # type: ignore[arg-type]


CLOSE = """
    import sys, threading
    from pixelmemory import Memory
    from pixelmemory.engine import engine
    from tests.engine.test_closing import stalled_projector
    from tests.harness.engine_tools import GIVEN, options_at, vector

    home, name, seconds, progress = sys.argv[1:]
    engine.CLOSE_BAR_SECONDS = 0.5 if float(seconds) else 60.0
    memory = Memory(name, None, GIVEN, options=options_at(home, progress=progress == "True"))
    with stalled_projector(memory) as go_on:
        memory.add_entry("x", embedding=vector(1))
        threading.Timer(float(seconds), go_on.set).start()
        memory.close()
"""


@pytest.mark.parametrize(
    ("seconds", "terminal", "progress", "is_shown"),
    [(1.5, True, True, True), (0.0, True, True, False), (1.5, False, True, False), (1.5, True, False, False)],
    ids=["long", "short", "no terminal", "by option"],
)
def test_a_long_close_shows_a_bar(
    tmp_path: Path, store_name: str, seconds: float, terminal: bool, progress: bool, is_shown: bool
) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(theirs, (24, 120))
    arguments: list[Any] = [tmp_path, store_name, seconds, progress]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CLOSE), *map(str, arguments)],
        env=script_environment(),
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # Linux: the terminal's other end is closed
            pass
        os.close(ours)
        assert process.wait(120) == 0, shown
    assert (f"closing {store_name}: 100%" in shown.decode()) is is_shown, shown
    assert is_shown or b"closing" not in shown
