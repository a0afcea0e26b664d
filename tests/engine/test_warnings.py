"""Where warnings are errors a store opens and works, and what it ignores it ignores on its own thread alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings

import pytest

from pixelmemory.quiet import ignore_warnings
from tests.harness.engine_tools import run_script

LIFE = """
    import sys, warnings
    if "in_process" in sys.argv:
        warnings.simplefilter("error")
    from pixelmemory import Memory, Options

    home, model, how = sys.argv[1:]
    for name, config in ((f"{how}_plain", None), (f"{how}_modelled", model)):
        for _ in range(2):
            options = Options(home=home, progress=False)
            with Memory(name, {"year": int}, config, options=options) as mem:
                mem.add_entries([{"content": "tea", "metadata": {"year": 1}}, {"content": "invoice"}])
                assert mem.search(metadata_filter={"year": 1})
                if config is not None:
                    assert mem.search(query="tea", limit=1)[0]["content"] == "tea"
                assert mem.get_namespace_table("default_namespace").count() > 0
    # a warning in the user's own code is an error still
    try:
        warnings.warn("the user's own")
    except UserWarning:
        print("done")
"""


@pytest.mark.parametrize("how", ["command_line", "in_process"])
def test_a_store_works_where_warnings_are_errors(tmp_path: object, minilm_path: str, how: str) -> None:
    python = ("-X", "dev", "-W", "error") if how == "command_line" else ()
    # XDG_RUNTIME_DIR: without one, a package beneath warns
    done = run_script(LIFE, tmp_path, minilm_path, how, python=python, XDG_RUNTIME_DIR="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_only_the_thread_that_loads_is_quiet() -> None:
    inside, warned = threading.Event(), threading.Event()

    def load() -> None:
        with ignore_warnings():
            warnings.warn("of a package beneath", stacklevel=1)
            inside.set()
            assert warned.wait(20)
            warnings.warn("of a package beneath", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=load)
        thread.start()
        try:
            assert inside.wait(20)
            with pytest.raises(UserWarning):
                warnings.warn("of this thread", stacklevel=1)
        finally:
            warned.set()
            thread.join()
        with pytest.raises(UserWarning):
            warnings.warn("afterwards", stacklevel=1)


def test_blocks_that_overlap_leave_the_filters_as_they_were() -> None:
    """Two stores that load at once, and a caller whose own block begins during one of ours and ends after it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        first, second, theirs = ignore_warnings(), ignore_warnings(), warnings.catch_warnings()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert list(warnings.filters) == before

        first = ignore_warnings()
        first.__enter__()
        theirs.__enter__()
        first.__exit__(None, None, None)
        with pytest.raises(UserWarning):
            warnings.warn("in a copy of the filters that ours was in", stacklevel=1)
        theirs.__exit__(None, None, None)
        assert list(warnings.filters) == before


def test_the_python_form_of_the_machinery_asks_the_same_way() -> None:
    """``warnings`` without its C part, as other interpreters have it."""
    script = (
        "import sys; sys.modules['_warnings'] = None\n"
        "import warnings\n"
        "from pixelmemory.quiet import ignore_warnings\n"
        "warnings.simplefilter('error')\n"
        "with ignore_warnings():\n"
        "    warnings.warn('ignored')\n"
        "try:\n"
        "    warnings.warn('raised')\n"
        "except UserWarning:\n"
        "    print('as asked')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400)
    assert done.stdout == "as asked\n", done.stderr
