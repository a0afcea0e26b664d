"""The shape of the project: public names and their pages, import direction, parity of sync and async, packaging."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pixelmemory
import pixelmemory.errors
from tests.harness.imports import PACKAGE, ROOT, Import, imports, is_module, package_imports

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

# ------------------------------------------------------------------------------------------------ public names


def test_all_is_what_is_public() -> None:
    names = pixelmemory.__all__
    assert len(set(names)) == len(names)
    public = {name for name in vars(pixelmemory) if not name.startswith("_")}
    submodules = {path.stem for path in PACKAGE.iterdir()}
    assert public - submodules - {"annotations"} <= set(names)
    for name in names:
        assert getattr(pixelmemory, name) is not None


def test_every_public_name_is_in_the_reference() -> None:
    documented = re.findall(r"^\.\. auto\w+:: pixelmemory\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(name for name in pixelmemory.__all__ if name != "__version__")


def test_every_error_is_exported_and_explained() -> None:
    page = (ROOT / "docs/errors.md").read_text()
    classes = [
        name
        for name, value in vars(pixelmemory.errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    ]
    assert len(classes) > 20
    for name in classes:
        assert issubclass(getattr(pixelmemory, name), pixelmemory.PixelmemoryError)
        assert name in pixelmemory.__all__
        assert name in pixelmemory.errors.__all__
        assert f"`{name}`" in page, f"docs/errors.md does not explain {name}"


# ---------------------------------------------------------------------------------------------- import direction

#: rooms that may import those of their own line and of the lines before it; the longest name that fits counts
TIERS = (
    ("errors", "forks", "faults"),
    ("paths", "quiet", "installed", "interrupts", "readers"),
    ("options", "models"),
    ("memory",),
    ("embedding",),
    ("log.contract",),
    ("log",),
    ("projection.changes", "projection.rows", "projection.scaling", "projection.stats"),
    ("projection.contract",),
    ("projection.mismatch", "projection.sql"),
    ("projection.batches", "projection.embed", "projection.overlay", "projection.query", "projection.varied"),
    ("projection.dead_letters", "projection.projector", "projection.projection", "projection.missing"),
    ("projection.pixeltable",),
    ("store",),
    ("engine", "loop_thread"),
    ("aio",),
    ("sync",),
    ("__init__",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, tier in enumerate(TIERS) for room in tier}


def _room(module: str) -> str:
    """The room of a module, which is given without the package's name."""
    parts = module.split(".")
    rooms = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((room for room in rooms if room in RANK), "__init__")


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules <= {room.split(".")[0] for room in RANK}


def test_imports_go_downwards() -> None:
    checked = 0
    for found in package_imports():
        target = found.target.split(".")
        if target[0] != "pixelmemory":
            continue
        checked += 1
        # what is no module is a name of the package itself, whose own imports reach down to aio and sync
        assert RANK[_room(".".join(target[1:]))] <= RANK[_room(found.module)], str(found)
    assert checked > 50


def test_no_modules_import_each_other_in_a_circle() -> None:
    """At import, that is: what stands in a function is there because it loads late."""
    graph: dict[str, set[str]] = {}
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    for found in package_imports():
        target = found.target.removeprefix("pixelmemory.")
        if not found.typing_only and not found.in_function and target in modules:
            graph.setdefault(found.module, set()).add(target)
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, and names them
    assert len(graph) > 50


def _users_of(package: str, *, but: str) -> set[str]:
    """The modules that import ``package``, those whose names begin with ``but`` left out."""
    return {
        found.module
        for found in package_imports()
        if f"{found.target}.".startswith(f"{package}.") and not found.typing_only and not found.module.startswith(but)
    }


def test_what_is_never_imported() -> None:
    assert _users_of("pixeltable", but="projection.pixeltable") == {"projection.embed"}
    assert _users_of("pixelmemory.doctor", but="doctor") <= {"cli.common", "cli.repair", "cli.show", "cli.verify"}
    hosts = ("pixeltable", "pixelmemory.projection.pixeltable", "pixelmemory.projection.embed")
    users = {module for host in hosts for module in _users_of(host, but="projection.pixeltable")}
    assert not {module for module in users if module.startswith(("memory", "projection.sql"))}
    # the rest of the projection knows its host by the contract alone, and the store chooses it in one place
    assert users <= {"projection.embed", "store.host", "doctor.comparison"}


def test_the_main_thread_waits_for_nothing_that_ctrl_c_tears() -> None:
    """A portal's futures are such; see ``loop_thread``."""
    for path in PACKAGE.rglob("*.py"):
        assert "BlockingPortal" not in path.read_text()
        assert "start_blocking_portal" not in path.read_text()
    for name in ("sync.py", "loop_thread.py"):
        text = (PACKAGE / name).read_text()
        assert not re.findall(r"concurrent\.futures import|threading\.(?:Thread|Event|Condition|Semaphore)\(", text)


def test_nothing_pickles_and_the_library_does_not_print() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"
    assert not {str(found) for found in package_imports() if _top(found) in ("pickle", "cloudpickle", "shelve")}


def test_import_is_light_and_silent() -> None:
    script = (
        "import sys, pixelmemory\n"
        "heavy = {'torch', 'pixeltable', 'sentence_transformers', 'transformers', 'psycopg', 'sqlalchemy', 'numpy'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found - {'numpy'}, found\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ----------------------------------------------------------------------------------------- parity of sync and async

#: what one of the two has by its nature, with what it corresponds to
ONLY_SYNC = {"close"}
ONLY_ASYNC = {"aclose", "open"}


def _public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_sync_and_async_have_the_same_methods() -> None:
    assert _public(pixelmemory.Memory) - ONLY_SYNC == _public(pixelmemory.AsyncMemory) - ONLY_ASYNC


@pytest.mark.parametrize("name", sorted((_public(pixelmemory.Memory) - ONLY_SYNC) | {"__init__"}))
def test_sync_and_async_are_alike(name: str) -> None:
    sync = inspect.getattr_static(pixelmemory.Memory, name)
    other = inspect.getattr_static(pixelmemory.AsyncMemory, name)
    assert type(sync) is type(other)
    if isinstance(sync, classmethod):
        sync, other = sync.__func__, other.__func__
    if isinstance(sync, property):
        assert isinstance(other, property)
        assert sync.fset is None
        assert other.fset is None
        sync, other = sync.fget, other.fget
    assert not inspect.iscoroutinefunction(sync)
    gives = _signature(other).return_annotation.removeprefix("Async")  # an iterator is one of the other kind
    assert _signature(sync) == _signature(other).replace(return_annotation=gives)
    if name != "__init__":
        assert inspect.getdoc(other)
        expected = (inspect.getdoc(other) or "").split()
        assert (inspect.getdoc(sync) or "").split() == _without_a_loop(" ".join(expected)).split()


def _without_a_loop(text: str) -> str:
    """What a docstring of ``AsyncMemory`` becomes at ``Memory``."""
    for ours, theirs in (
        ("The store; ``async with`` opens it.", "The store, open."),
        ("A cancelled call goes on to its end. ", ""),
        ("fails or is cancelled", "fails or is interrupted"),
        ("called in the event loop.", "called in another thread."),
        ("async with ", "with "),
        ("async for ", "for "),
        ("await ", ""),
        ("AsyncMemory", "Memory"),
    ):
        text = text.replace(ours, theirs)
    return text


def _signature(function: Any) -> inspect.Signature:
    """Names, kinds, defaults and annotations; that of a coroutine function says what awaiting it gives."""
    return inspect.signature(function)


def test_open_takes_what_the_constructor_takes() -> None:
    constructor = list(_signature(pixelmemory.Memory.__init__).parameters.values())[1:]
    assert list(_signature(pixelmemory.AsyncMemory.open).parameters.values()) == constructor


def test_the_fixed_signatures() -> None:
    """The part of the surface that was promised with names and defaults; what came later is keyword-only."""
    promised = {
        "__init__": {"name": "default_memory", "schema": None, "embedding_config": "intfloat/e5-large-v2"},
        "add_entry": {"content": ..., "namespace": "default_namespace", "metadata": None},
        "add_entries": {"entries": ..., "namespace": "default_namespace"},
        "get_memory": {"memory_id": ..., "namespace": "default_namespace"},
        "search": {
            "namespace": "default_namespace",
            "query": None,
            "limit": 5,
            "metadata_filter": None,
            "start_time": None,
            "end_time": None,
        },
        "update_memory": {"memory_id": ..., "namespace": "default_namespace", "content": None, "metadata": None},
        "delete_memory": {"memory_id": ..., "namespace": "default_namespace"},
        "delete_memories": {"memory_ids": ..., "namespace": "default_namespace"},
        "get_namespace_table": {"namespace": ...},
    }
    for name, expected in promised.items():
        parameters = _signature(getattr(pixelmemory.Memory, name)).parameters
        positional = {
            each.name: ... if each.default is each.empty else each.default
            for each in parameters.values()
            if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self"
        }
        assert positional == expected, name
        assert list(positional) == list(expected), name


# ------------------------------------------------------------------------------------------------------- the pages


def _python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_in_pages_parses(page: Path) -> None:
    for block in _python_blocks(page):
        compile(block, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_in_pages_exist(page: Path) -> None:
    for block in _python_blocks(page):
        for node in ast.walk(compile(block, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
            if isinstance(node, ast.ImportFrom) and node.module == "pixelmemory":
                for alias in node.names:
                    assert alias.name in pixelmemory.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_prints_what_it_shows(minilm_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELMEMORY_HOME", str(tmp_path))
    page = (ROOT / "README.md").read_text()
    assert page.count('"sentence-transformers/all-MiniLM-L6-v2"') == 3
    page = page.replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(minilm_path))
    parts = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page, re.MULTILINE | re.DOTALL)
    first, chat, other = _run_snippets([snippet for snippet, _ in parts], tmp_path)
    assert (first, chat) == (parts[0][1], parts[1][1])
    assert other == "Topic Z needs a second experiment. {'year': 2024, 'tags': ['todo', 'z'], 'done': True}\n"


#: runs the snippets of a page, read from stdin as JSON, one after the other; after each a line that ends its output
RUN_SNIPPETS = """
import json, sys
namespace = {"__name__": "__main__"}
for number, snippet in enumerate(json.load(sys.stdin)):
    exec(compile(snippet, f"<snippet {number}>", "exec"), namespace)
    print("\\0", flush=True)
"""


def _run_snippets(snippets: list[str], folder: Path) -> list[str]:
    """What each of ``snippets`` prints, run in one process whose working directory is ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_SNIPPETS],
        input=json.dumps(snippets),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PIXELMEMORY_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.split("\0\n")[:-1]


def _with_rounded_scores(text: str) -> tuple[str, list[float]]:
    """``text`` without its decimals, and those: another processor may round the last digit otherwise."""
    scores = re.findall(r"\b\d\.\d\d\b", text)
    return re.sub(r"\b\d\.\d\d\b", "#", text), [float(score) for score in scores]


def _named(name: str) -> object:
    """What ``name`` within the package stands for, such as ``aio.AsyncMemory.search``; AttributeError if nothing."""
    found: object = pixelmemory
    module = "pixelmemory"
    for part in name.split("."):
        if isinstance(found, types.ModuleType) and is_module(module, part):
            module = f"{module}.{part}"
            found = importlib.import_module(module)
        else:
            found = getattr(found, part)
    return found


def test_the_functions_on_the_way_of_a_write_exist() -> None:
    page = (ROOT / "docs/life-of-a-write.md").read_text()
    names = re.findall(r"`(\w+(?:\.\w+)+)`", page)
    assert len(names) > 50
    for name in names:
        assert _named(name) is not None
    rows = re.findall(r"^\| \d+ \|.*$", page, re.MULTILINE)
    assert len(rows) > 40
    for row in rows:
        assert callable(_named(row.split("`")[1])), row
    with pytest.raises(AttributeError):
        _named("aio.AsyncMemory.no_such_method")


@pytest.mark.usefixtures("minilm_path")  # the page uses that package
def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs/tutorial.md").read_text()
    parts = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", page, re.MULTILINE | re.DOTALL)
    printed = _run_snippets([snippet for snippet, _ in parts], tmp_path)
    for (snippet, shown), output in zip(parts, printed, strict=True):
        (words, scores), (shown_words, shown_scores) = map(_with_rounded_scores, (output, shown))
        assert words == shown_words, snippet
        assert scores == pytest.approx(shown_scores, abs=0.011), snippet
    assert (tmp_path / "agent-data/agent/log").is_dir(), "where the page says"


VISIT_THE_WEB_APP = """
import anyio, types

async def visit():
    app = types.SimpleNamespace(state=types.SimpleNamespace())
    async with lifespan(app):
        request = types.SimpleNamespace(app=app)
        await remember(request, "ada", "Ada has a dog.")
        await app.state.memory.flush()
        print(len(await recall(request, "ada", "pets")))

anyio.run(visit)
"""


@pytest.mark.usefixtures("minilm_path")  # the page uses that package
def test_the_recipes_run(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to.md").read_text()
    assert page.count("range(1500)") == 1
    snippets = [snippet.replace("range(1500)", "range(150)") for snippet in _python_blocks(ROOT / "docs/how-to.md")]
    *printed, visited = _run_snippets([*snippets, VISIT_THE_WEB_APP], tmp_path)
    assert visited == "1\n"
    for words in ("1 memories erased", "0 saved changes are not searchable", "bytes freed", "the log is older"):
        assert sum(words in output for output in printed) == 1, words
    assert any("expected `int`" in output for output in printed)


@pytest.mark.parametrize("name", ["agent.py", "demo.py"])
def test_the_demo_uses_the_public_names_alone(name: str) -> None:
    tree = ast.parse((ROOT / "examples" / name).read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "pixelmemory"]
    assert {alias.name for node in froms for alias in node.names} <= set(pixelmemory.__all__)
    assert {found.target for found in imports(ROOT / "examples" / name) if _top(found) == "pixelmemory"} == {
        "pixelmemory"
    }


def test_the_demo_finds_its_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from rich.progress import Progress

    monkeypatch.syspath_prepend(ROOT / "examples")
    demo: Any = types.SimpleNamespace(**runpy.run_path(str(ROOT / "examples/demo.py")))
    with Progress(console=Console(quiet=True)) as progress:
        entries = demo.collect(progress)
    assert 2000 < len(entries) <= demo.MEMORIES_MAX
    assert len({entry["memory_id"] for entry in entries}) == len(entries)
    known = {entry["memory_id"]: entry for entry in entries}
    assert known["heapq.merge"]["metadata"] | {"length": 0} == {
        "module": "heapq",
        "kind": "function",
        "name": "heapq.merge",
        "length": 0,
        "tags": ["heapq"],
    }
    assert {entry["metadata"]["kind"] for entry in entries} == {"module", "class", "function", "method"}
    assert max(len(entry["content"]) for entry in entries) <= demo.CONTENT_CHARS_MAX
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------------- packaging


@functools.cache
def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)  # no paths, no local versions
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return pins


def _top(found: Import) -> str:
    return found.target.split(".")[0]


def test_declared_dependencies_are_the_imported_ones() -> None:
    providers = importlib.metadata.packages_distributions()
    imported: dict[str, str] = {}
    for found in package_imports():
        top = _top(found)
        if top != "pixelmemory" and top not in sys.stdlib_module_names:
            imported[canonicalize_name(providers[top][0])] = str(found)
    declared = {canonicalize_name(Requirement(text).name) for text in _project()["dependencies"]}
    assert not {name: where for name, where in imported.items() if name not in declared}
    assert not declared - set(imported)


def test_every_requirement_is_bounded_pinned_and_explained() -> None:
    pins = _constraints()
    page = (ROOT / "docs/contributing.md").read_text()
    extras: dict[str, list[str]] = _project()["optional-dependencies"]
    for text in [*_project()["dependencies"], *(each for extra in extras.values() for each in extra)]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(pins[name]), f"{text} excludes the tested {pins[name]}"
        assert ">=" in text
        assert name in page
    assert "torch" in pins


def test_no_page_installs_the_package_of_another_project() -> None:
    """Ours is ``pixelmemory-engine``, and not on the index; ``pixelmemory`` there is another."""
    project = _project()
    assert project["name"] == "pixelmemory-engine"
    assert project["scripts"] == {"pixelmemory": "pixelmemory.cli:main"}
    assert project["version"] == pixelmemory.__version__
    bare = re.compile(r"pip3? install[^\n#]*[\s'\"]pixelmemory(?![\w-])")
    assert bare.search("pip install -U 'pixelmemory[demo]'")
    assert not bare.search("pip install dist/pixelmemory_engine-0.1.0-py3-none-any.whl")
    assert not bare.search((ROOT / "README.md").read_text())
    for path in [*PAGES, *PACKAGE.rglob("*.py")]:
        text = path.read_text()
        blocks = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL) if path.suffix == ".md" else [text]
        assert not any(map(bare.search, blocks)), path


def test_make_lists_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = {name for line in re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE) for name in line.split()}
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^ +make (\S+)  +\S", listed, re.MULTILINE)) == phony
    assert {"help", "demo", "test", "lint", "docs", "check", "wheel"} <= phony


def test_continuous_integration_runs_make_alone() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    commands = [line.split("||")[0].strip() for line in script.read_text().splitlines() if line.startswith("make")]
    assert commands == ["make -k lint docs", "make test"]
