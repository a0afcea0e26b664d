"""``Memory`` in a running event loop: it warns of that, and not in a notebook, whose loop waits for a cell anyway."""

from __future__ import annotations

import pytest

from tests.harness.engine_tools import run_script

SCRIPT = """
    import asyncio, sys, types, warnings
    from pixelmemory import sync

    shell = {"none": None, "terminal": types.SimpleNamespace(), "kernel": types.SimpleNamespace(kernel=object())}
    if sys.argv[1] != "plain":
        sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell[sys.argv[1]])

    async def cell():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sync._warn_of_running_loop()
            sync._warn_of_running_loop()
        print(len(caught))

    asyncio.run(cell())
"""


@pytest.mark.parametrize(("shell", "warned"), [("plain", 1), ("none", 1), ("terminal", 1), ("kernel", 0)])
def test_it_warns_once_except_in_a_notebook(shell: str, warned: int) -> None:
    done = run_script(SCRIPT, shell)
    assert done.stdout.split() == [str(warned)], done.stderr
