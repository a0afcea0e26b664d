"""The distribution: the wheel that is built from here, installed alone and beside another of the same import name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import pixelmemory
from pixelmemory import PackageConflictError
from pixelmemory.installed import check_installed

ROOT = Path(__file__).parent.parent.parent

#: opens a store and says where the package came from
OPEN = """
import sys, pixelmemory, importlib.metadata
from pixelmemory import Memory, Options
with Memory("installed", embedding_config=None, options=Options(home=sys.argv[1], progress=False)) as mem:
    mem.add_entry("kept")
    print(mem.count(), pixelmemory.__file__, importlib.metadata.version("pixelmemory-engine"))
"""


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        cwd=environment.get("PWD", ROOT),
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``make wheel`` does."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    if done.returncode != 0 and re.search("No matching distribution found for hatchling", done.stdout + done.stderr):
        pytest.skip("no index that has the build backend can be reached")
    assert done.returncode == 0, done.stderr
    [built] = folder.iterdir()
    return built


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """A folder of installed packages with ours alone."""
    folder = tmp_path / "site"
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel)
    assert done.returncode == 0, done.stderr
    return folder


def lay_distribution(site: Path, name: str, version: str, *files: str) -> None:
    """What is left in a folder of installed packages of a distribution with these files."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))


def test_the_wheel_has_its_own_name(wheel: Path) -> None:
    assert wheel.name == f"pixelmemory_engine-{pixelmemory.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"pixelmemory_engine-{pixelmemory.__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("pixelmemory-engine", pixelmemory.__version__)
    assert "pixelmemory = pixelmemory.cli:main" in scripts
    assert {name.partition("/")[0] for name in names} == {"pixelmemory", info}
    in_tree = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pixelmemory").rglob("*.py")}
    assert in_tree <= set(names)


def test_the_wheel_works_by_itself(site: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(site), "PWD": str(tmp_path)}
    done = run(sys.executable, "-c", OPEN, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", str(site / "pixelmemory/__init__.py"), pixelmemory.__version__]
    done = run(sys.executable, site / "bin/pixelmemory", "--version", **environment)
    assert (done.returncode, done.stdout) == (0, f"pixelmemory {pixelmemory.__version__}\n")


def test_it_refuses_to_run_beside_the_other_package(site: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(site), "PWD": str(tmp_path)}
    # what version 0.2.0 of the other one lists
    modules = ("__init__", "config", "context", "indexing", "memory", "vision")
    lay_distribution(site, "pixelmemory", "0.2.0", *(f"pixelmemory/{module}.py" for module in modules))
    done = run(sys.executable, "-W", "error", "-c", "import pixelmemory; pixelmemory.Options()", **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "importing it is not refused"

    done = run(sys.executable, "-c", OPEN, tmp_path / "home", **environment)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("pixelmemory.errors.PackageConflictError: another project's package 'pixelmemory' 0.2.0")
    for part in (str(site), "'pip uninstall pixelmemory'", "install pixelmemory-engine again"):
        assert part in error
    assert not (tmp_path / "home").exists(), "nothing was touched"

    done = run(sys.executable, site / "bin/pixelmemory", "--version", **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pixelmemory: another project's package")


@pytest.mark.parametrize(
    ("name", "files", "refused"),
    [
        ("pixelmemory", ["pixelmemory/__init__.py"], True),
        ("pixelmemory", ["_pixelmemory.pth"], False),  # an editable install of ours, under the earlier name
        ("pixelmemory", [], False),
        ("pixelmemory_engine", ["pixelmemory/__init__.py"], False),
        ("pixelmemory_extra", ["pixelmemory/__init__.py"], False),
    ],
)
def test_which_distribution_is_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: list[str], refused: bool
) -> None:
    lay_distribution(tmp_path, name, "0.2.0", *files)
    monkeypatch.syspath_prepend(tmp_path)
    check_installed.cache_clear()
    try:
        for _ in range(2):  # an error is raised again
            if not refused:
                check_installed()
                continue
            with pytest.raises(PackageConflictError) as raised:
                check_installed()
            assert (raised.value.version, raised.value.path) == ("0.2.0", tmp_path)
    finally:
        check_installed.cache_clear()
