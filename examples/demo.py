"""The main job on real input that every machine has: ``make demo``, or ``python examples/demo.py``.

First the memory of an agent with two users (``agent.py``). Then the docstrings of Python's standard library (read from
its source files, nothing is imported) become memories; searches of each kind find them again; a notebook of a few notes
shows time, update and delete; the store is closed and opened again to show that everything is still there. All data
lies in ``./.demo/``: a second run finds the documentation there and goes straight to the searches.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import datetime as dt
import os
import platform
import signal
import sys
import sysconfig
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import agent
import anyio
from agent import DEMO, DemoError, console, embedding_config, options
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pixelmemory import AsyncMemory, PixelmemoryError, StoreLockedError

STORE = "python_docs"
DOCS, NOTES = "docs", "notes"
#: memories given to one ``add_entries``: one atomic batch of the log
BATCH_ENTRIES = 64
MEMORIES_MAX = 4000
CONTENT_CHARS_MAX = 300
#: shorter paragraphs say too little to be found by meaning
CONTENT_CHARS_MIN = 30
#: shown of each search
RESULTS = 3
NAME_CHARS = 28
#: folders that hold tests, programs, bundled or deprecated packages rather than the library
SKIPPED = frozenset(
    "site-packages dist-packages test tests idlelib turtledemo pydoc_data _bundled tkinter lib2to3 distutils".split()
)

Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

BARS = (TextColumn("{task.description:20}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())

# -- input: the standard library's docstrings


def collect(progress: Progress) -> list[dict[str, Any]]:
    """An entry for each public module, class, function and method that has a docstring, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [
        path for path in sorted(library.rglob("*.py")) if not SKIPPED.intersection(path.relative_to(library).parts)
    ]
    entries: dict[str, dict[str, Any]] = {}
    for path in progress.track(paths, description="files read"):
        module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        if any(part.startswith("_") for part in module.split(".")):
            continue
        with warnings.catch_warnings(), contextlib.suppress(SyntaxError):
            warnings.simplefilter("ignore")  # old escapes in old sources
            for entry in _entries(ast.parse(path.read_bytes()), module, module, "module"):
                entries.setdefault(entry["memory_id"], entry)
    return list(entries.values())[:MEMORIES_MAX]


def _entries(node: Documented, module: str, name: str, kind: str) -> Iterator[dict[str, Any]]:
    text = ast.get_docstring(node) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())[:CONTENT_CHARS_MAX]
    if len(paragraph) >= CONTENT_CHARS_MIN:
        tags = [*module.split("."), *(["async"] if isinstance(node, ast.AsyncFunctionDef) else [])]
        metadata = {"module": module, "kind": kind, "name": name, "length": len(text), "tags": tags}
        yield {"memory_id": name, "content": paragraph, "metadata": metadata}
    for child in node.body:
        if isinstance(child, Documented) and not child.name.startswith("_"):
            inner = "class" if isinstance(child, ast.ClassDef) else "method" if kind == "class" else "function"
            yield from _entries(child, module, f"{name}.{child.name}", inner)


# -- the store


@asynccontextmanager
async def opened(what: str) -> AsyncIterator[AsyncMemory]:
    """The demo's store, with a line that says how long opening it took."""
    with console.status(f"{what} ..."):
        started = time.perf_counter()
        mem = await AsyncMemory.open(STORE, embedding_config=embedding_config(), options=options())
    console.print(f"{what}: {time.perf_counter() - started:.1f} s")
    async with mem:
        yield mem


async def remember(mem: AsyncMemory, entries: Sequence[dict[str, Any]]) -> None:
    """Add what is not there yet; shows what the log holds and, behind it, what searches find."""
    there = {found["memory_id"] for found in await mem.search(DOCS, limit=len(entries))}
    missing = [entry for entry in entries if entry["memory_id"] not in there]
    if not missing:
        console.print(f"[green]already there[/]: {len(there):,} memories of an earlier run, so nothing is added again")
        return
    if there:
        console.print(f"{len(there):,} memories are there from an earlier run; the other {len(missing):,} follow")
    first_lsn = (await mem.stats()).durable_lsn
    with Progress(*BARS, console=console) as progress:
        recorded = progress.add_task("recorded in the log", total=len(missing))
        searchable = progress.add_task("searchable", total=len(missing))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_follow, mem, first_lsn, progress, searchable)
            for start in range(0, len(missing), BATCH_ENTRIES):
                batch = missing[start : start + BATCH_ENTRIES]
                await mem.add_entries(batch, DOCS)
                progress.advance(recorded, len(batch))


async def _follow(mem: AsyncMemory, first_lsn: int, progress: Progress, task: TaskID) -> None:
    total = progress.tasks[task].total or 0
    visible = 0
    while visible < total:
        await anyio.sleep(0.1)
        visible = (await mem.stats()).watermark - first_lsn
        progress.update(task, completed=visible)


# -- searches


async def ask(mem: AsyncMemory, asked: str, namespace: str = DOCS, **arguments: Any) -> None:
    """Search, and show what was asked, how long it took and what came back; a filter is shown as it is."""
    started = time.perf_counter()
    results = await mem.search(namespace, **{"limit": RESULTS, **arguments})
    milliseconds = (time.perf_counter() - started) * 1000
    console.print(Text.assemble((asked, "bold"), (f"  {milliseconds:.0f} ms", "green")))
    if "metadata_filter" in arguments:
        console.print(f"        {arguments['metadata_filter']}", markup=False)
    for found in results:
        score = f"{found['similarity_score']:.3f}" if "similarity_score" in found else ""
        when = found["timestamp"]
        name = found["metadata"].get("name") or (f"{when.astimezone():%d %b %H:%M}" if when else "")
        if len(name) > NAME_CHARS:
            name = f"…{name[1 - NAME_CHARS :]}"
        line = Text.assemble(f"{score:>7} ", (name.ljust(NAME_CHARS), "cyan"), "  ", (found["content"], "dim"))
        console.print(line, no_wrap=True, overflow="ellipsis")
    if not results:
        console.print("        nothing")


async def search_docs(mem: AsyncMemory) -> None:
    """By meaning, by meaning and metadata, by metadata alone."""
    console.rule("searches", style="dim")
    await mem.search(DOCS, query="the first one warms the model up", limit=1)
    for query in ("call a function later, after a delay", "compare two texts line by line"):
        await ask(mem, f"meaning: {query}", query=query)
    await ask(
        mem,
        "meaning + filter: a queue that gives the smallest first",
        query="a queue that gives the smallest first",
        metadata_filter={"kind": "class", "length": {"$gte": 100}},
    )
    await ask(
        mem,
        "meaning + filter: wait for many of them",
        query="wait for many of them",
        metadata_filter={"tags": "asyncio", "kind": {"$in": ["function", "method"]}},
    )
    await ask(
        mem,
        "filter alone",
        metadata_filter={"module": {"$in": ["heapq", "bisect"]}, "$not": {"length": {"$lt": 300}}},
    )


async def keep_notes(mem: AsyncMemory) -> None:
    """Time, update, get and delete, on three notes that are made again in each run."""
    console.rule("notes: by time, update, get, delete", style="dim")
    if NOTES in await mem.namespaces():
        await mem.delete_namespace(NOTES)
    now = dt.datetime.now(dt.UTC)
    week_ago = now - dt.timedelta(days=7)
    old, middle, new = [
        await mem.add_entry(text, NOTES, {"days_ago": days}, timestamp=now - dt.timedelta(days=days))
        for text, days in (
            ("The user asked what a heap is.", 9),
            ("The user prefers short answers.", 3),
            ("The user said good-bye.", 0),
        )
    ]
    await ask(mem, "time: the last 7 days", NOTES, start_time=week_ago)
    await ask(mem, "time: before that", NOTES, end_time=week_ago)
    updated = await mem.update_memory(middle, NOTES, content="The user prefers long answers, with examples.")
    query = "how long should answers be?"
    await ask(mem, f"update says {updated}; meaning: {query}", NOTES, query=query, limit=1)
    deleted = await mem.delete_memory(new, NOTES)
    kept, gone = await mem.get_memory(old, NOTES), await mem.get_memory(new, NOTES)
    await ask(mem, f"delete says {deleted}, get says {gone}; what is left", NOTES)
    if not updated or not deleted or kept is None or gone is not None:
        raise DemoError("an update, a delete or a get did not do what it says")


# -- the whole


async def evidence(mem: AsyncMemory) -> dict[str, Any]:
    """What has to be equal before and after the store is closed and opened again."""
    nearest = await mem.search(DOCS, query="parse the arguments of the command line", limit=10)
    notes = await mem.search(NOTES, limit=100)
    return {
        "memories": await mem.count(),
        "in each namespace": {name: await mem.count(name) for name in await mem.namespaces()},
        "the notes": [(each["memory_id"], each["content"], each["metadata"]) for each in notes],
        "the nearest ten": [each["memory_id"] for each in nearest],
    }


async def run() -> None:
    """The second part: the documentation of Python, searched."""
    started = time.perf_counter()
    console.rule(f"[bold]Part two[/]: the documentation of Python {platform.python_version()}")
    with Progress(*BARS, console=console) as progress:
        entries = collect(progress)
    async with opened("open the store") as mem:
        await remember(mem, entries)
        await search_docs(mem)
        await keep_notes(mem)
        before = await evidence(mem)
        with console.status("closing ..."):
            closing = time.perf_counter()
            await mem.aclose()
    console.rule("close, open again, compare", style="dim")
    console.print(f"close the store: {time.perf_counter() - closing:.1f} s")
    async with opened("open the store again") as mem:
        after = await evidence(mem)
        stats = await mem.stats()
    if after != before:
        raise DemoError(f"before closing: {before}\nafterwards: {after}")
    console.print(
        f"[green]everything is there[/]: {after['memories']:,} memories {after['in each namespace']}, "
        "the same notes, the same nearest ten"
    )
    console.print(
        f"\nThe log holds {stats.log_events:,} events in {stats.log_bytes / 1e6:.1f} MB. "
        f"This part took {time.perf_counter() - started:.0f} s."
    )


def say_where(started: float) -> None:
    """Where everything lies, and what runs."""
    console.rule("where it lies", style="dim")
    console.print(f"{DEMO.name}/pixelmemory/  the logs of the stores: the memories themselves")
    console.print(
        f"{DEMO.name}/pixeltable/   the tables that searches read, and their PostgreSQL, which is stopped now"
    )
    console.print(
        f"Delete {DEMO.name}/ to begin again. Your own stores share one PostgreSQL, which goes on running: "
        "[bold]pixelmemory stop[/] stops it."
    )
    console.print(f"All of it took {time.perf_counter() - started:.0f} s.")


def stop_database(timeout_seconds: float = 20.0) -> None:
    """Stop the embedded PostgreSQL of the demo's own Pixeltable, which would otherwise go on running."""
    pid_file = DEMO / "pixeltable" / "pgdata" / "postmaster.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text().splitlines()[0])
    deadline = time.monotonic() + timeout_seconds
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)  # what PostgreSQL calls a fast shutdown
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)


def main() -> int:
    """Run the demo and say how it ended, without a stack trace.

    Returns:
        The exit status: 0 if everything was as it should be, 1 if not, 130 after Ctrl-C.
    """
    DEMO.mkdir(exist_ok=True)
    os.environ["PIXELTABLE_HOME"] = str(DEMO / "pixeltable")
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    warnings.simplefilter("ignore")
    atexit.register(stop_database)  # there it also comes after a thread that is still starting it
    try:
        started = time.perf_counter()
        agent.run()
        anyio.run(run)
        say_where(started)
    except StoreLockedError as error:
        atexit.unregister(stop_database)  # it is in use
        console.print(f"[yellow]Another demo is running here[/]: {error}")
        return 1
    except (PixelmemoryError, DemoError) as error:
        console.print(f"[red]{type(error).__name__}[/]: {error}")
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped. What was recorded stays: the next run goes on from there.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
