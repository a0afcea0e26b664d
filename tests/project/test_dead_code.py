"""No file and no name of the package is there for nothing, or for tests alone."""

from __future__ import annotations

from pathlib import Path

import vulture

from tests.harness.imports import PACKAGE, package_imports

#: where programs and users come in; every other module has to be imported by one of the package
ENTRIES = {"__init__", "__main__"}

#: names that no code of the package reads, each with who does
USED_ELSEWHERE = {
    # signatures that a protocol of Python's prescribes
    "aio.py": {"iterate", "traceback"},
    "sync.py": {"iterate", "traceback"},
    "embedding/fair_lock.py": {"traceback"},
    "engine/progress.py": {"traceback"},
    "store/opening_line.py": {"traceback"},
    "quiet.py": {"match"},
    "projection/pixeltable/startup.py": {"cleanup_mode", "_http_address"},
    # users: members and fields of what is public
    "options.py": {"OS"},
    "models.py": {"similarity_score", "log_events", "log_segments", "log_syncs", "events_applied", "ok"},
    # whoever embeds a log: what its opening found, and what it keeps in memory
    "log/contract.py": {"tail_bytes"},
    "log/file/file_log.py": {"recovery"},
    "log/file/recovery.py": {"clean", "copied_bytes"},
    # psycopg and Pixeltable, which read these attributes, call this method or find this function by its decorator
    "doctor/comparison.py": {"itersize"},
    "projection/embed.py": {"_"},
    "projection/pixeltable/copied_inserts.py": {"dump"},
    "projection/pixeltable/inspection.py": {"autocommit", "isolation_level", "read_only"},
    "projection/pixeltable/internals.py": {"ignore_errors"},
}


def unused(folder: Path) -> dict[str, set[str]]:
    """The names in each file of ``folder`` that no file of it uses."""
    search = vulture.Vulture()
    search.scavenge([str(folder)])
    found: dict[str, set[str]] = {}
    for item in search.get_unused_code():
        found.setdefault(Path(item.filename).relative_to(folder).as_posix(), set()).add(item.name)
    return found


def test_every_name_is_used() -> None:
    assert unused(PACKAGE) == USED_ELSEWHERE


def test_a_name_that_nothing_uses_is_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def used(): ...\ndef left_over(): ...\nused()\n")
    assert unused(tmp_path) == {"module.py": {"left_over"}}


def test_every_file_is_imported() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    packages = {module for module in modules if module.endswith(".__init__")}
    imported = {found.target.removeprefix("pixelmemory.") for found in package_imports()}
    assert len(modules) > 100
    assert modules - packages - imported == ENTRIES
