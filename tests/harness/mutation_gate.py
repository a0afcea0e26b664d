"""The mutation gate: bugs put into a copy of the package, each of which the tests must catch.

One table of bugs an area, in ``test_*_mutations.py``. As part of the test suite a row only checks that its bug can
still be put in; ``make mutations`` runs the named tests on a copy that has it, and writes down what
caught it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness.engine_tools import stop_server
from tests.harness.mutation_table import record

__all__ = ["Mutation", "check_mutation", "check_without_a_bug", "mutation_id", "needs_the_long_form"]

ROOT = Path(__file__).parent.parent.parent
LONG_FORM = bool(os.environ.get("PIXELMEMORY_MUTATIONS"))
#: a test that hangs with the bug is a test that caught it
TEST_SECONDS_MAX, RUN_SECONDS_MAX = 100, 900

needs_the_long_form = pytest.mark.skipif(not LONG_FORM, reason="the mutation gate's long form: make mutations")


class Mutation(NamedTuple):
    """One bug: ``old`` becomes ``new`` in ``module``, and one of ``tests`` fails."""

    name: str
    #: within the package, such as ``log/writer``
    module: str
    #: stands there exactly once
    old: str
    new: str
    #: files or ids within ``tests``, separated by spaces outside of brackets
    tests: tuple[str, ...]

    @property
    def place(self) -> str:
        """The file, within the repository."""
        return f"pixelmemory/{self.module}.py"


def mutation_id(mutation: Mutation) -> str:
    """For pytest."""
    return mutation.name.replace(" ", "_")


def check_mutation(mutation: Mutation) -> None:
    """In the short form that the bug can be put in; in the long form that it is caught as well."""
    source = (ROOT / mutation.place).read_text()
    assert source.count(mutation.old) == 1, "the code has changed: put the bug into what stands there now"
    planted = source.replace(mutation.old, mutation.new)
    compile(planted, mutation.place, "exec")
    for test in mutation.tests:
        _check_named(test)
    if not LONG_FORM:
        return
    with _copy() as folder:
        (folder / mutation.place).write_text(planted)
        code, output = _run_tests(folder, mutation.tests)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    caught_by = failed[1] if failed is not None and code == 1 else None
    record(mutation.name, caught_by)
    assert caught_by is not None, f"not caught: exit code {code}\n{output[-4000:]}"
    # a bug that cannot be imported is none
    assert not re.search(r"^E +(ImportError|NameError|SyntaxError)", output, re.MULTILINE), output[-4000:]


def _check_named(test: str) -> None:
    """That there is such a file or test: a row that names none would catch nothing."""
    path, *names = re.sub(r"\[.*", "", test).split("::")
    text = (ROOT / "tests" / path).read_text()
    for name in names:
        assert re.search(rf"^\s*(async )?(def|class) {name}\b", text, re.MULTILINE), f"{path} has no {name}"


def check_without_a_bug(mutations: Sequence[Mutation]) -> None:
    """The tests that are to catch bugs pass where there is none."""
    with _copy() as folder:
        code, output = _run_tests(folder, tuple(dict.fromkeys(test for each in mutations for test in each.tests)))
    assert code == 0, output[-8000:]


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    """A copy of the package and its tests; what a run leaves behind is stopped and deleted.

    Not in a test's own folder: PostgreSQL runs as another user where the tests run as root, and could not reach it.
    """
    folder = Path(tempfile.mkdtemp(prefix="pixelmemory-mutation-"))
    folder.chmod(0o755)
    try:
        for name in ("pixelmemory", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "tmp").mkdir()
        yield folder
    finally:
        for pid_file in (folder / "tmp").rglob("postmaster.pid"):
            stop_server(pid_file.parent.parent)
        shutil.rmtree(folder, ignore_errors=True)


def _run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run ``tests`` in the copy until one fails; returns pytest's exit code and what it printed."""
    ours = {"PYTEST_ADDOPTS", "PIXELTABLE_HOME", "XDG_RUNTIME_DIR"}
    environment = {
        name: value for name, value in os.environ.items() if name not in ours and not name.startswith("PIXELMEMORY_")
    }
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"timeout={TEST_SECONDS_MAX}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
        cwd=folder,
        env=environment | {"TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=RUN_SECONDS_MAX)
    finally:
        with contextlib.suppress(ProcessLookupError):  # what the tests started and did not end
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, output
