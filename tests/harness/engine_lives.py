"""Whole lives of a store in processes that are killed: one imports everything once, and forks a child for each life.

``python -m tests.harness.engine_lives`` reads one JSON document a line from stdin (a :class:`Life`), forks, lives it in
the child, and answers with the child's exit code and how often each fault point was met. The child writes what was
acknowledged to ``<home>/acknowledged`` and is killed where the life says.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.harness.engine_tools import GIVEN, open_memory, options_at, script_environment, vector

__all__ = ["Answer", "Life", "Lives", "acknowledged_in", "canary_ids", "lives"]

HANG_SECONDS = 60


class Life(msgspec.Struct):
    """One life: what is done, and where it ends."""

    home: str
    name: str
    seed: int
    #: with a poisoned event, its retry, and a rebuild at the end
    eventful: bool = True
    #: fault point and which hit of it kills; or ""
    point: str = ""
    nth: int = 1
    #: seconds after the first acknowledgement until a SIGKILL from outside; or 0
    kill_after_seconds: float = 0.0
    options: dict[str, Any] = {}
    #: instead of the usual life: "fill" writes memories that hold ``canary``, "erase" erases them
    chore: str = ""
    canary: str = ""


def canary_ids(canary: str) -> list[str]:
    """The ids of the memories that hold ``canary``, and are erased."""
    return [f"{canary} {number}" for number in range(3)]


class Answer(NamedTuple):
    """How a life ended."""

    #: -9 after a SIGKILL, 0 for a life that reached its end
    exit_code: int
    #: fault point -> hits, of a life that reached its end
    hits: dict[str, int]


# ------------------------------------------------------------------------------------------------ in the test process


class Lives:
    """The process that forks the lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=script_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def live(self, life: Life) -> Answer:
        """Live one life to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(life).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks the lives is gone"
        return Answer(*json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def lives() -> Iterator[Lives]:
    """The process that forks the lives, ended after the block."""
    running = Lives()
    try:
        yield running
    finally:
        running.close()


def acknowledged_in(home: Path) -> list[tuple[int, int, str, str]]:
    """(LSN, type code, namespace, memory id) of each acknowledged event, in order."""
    path = home / "acknowledged"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


# ---------------------------------------------------------------------------------------------------- in the child


class _Script:
    """What the child does, and the notes it takes."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.source = random.Random(life.seed)
        self.notes = os.open(Path(life.home) / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.known: dict[tuple[str, str], None] = {}
        self.count = 0

    def acknowledged(self, memory: Any, kind: int, namespace: str, ids: list[str]) -> None:
        first = memory.last_lsn - len(ids) + 1
        lines = [json.dumps([first + n, kind, namespace, memory_id]) + "\n" for n, memory_id in enumerate(ids)]
        os.write(self.notes, "".join(lines).encode())

    def add(self, memory: Any, namespace: str, size: int, content: str = "text") -> None:
        entries = []
        for _ in range(size):
            self.count += 1
            entries.append(
                {
                    "content": f"{content} {self.source.randrange(20)}",
                    "memory_id": f"{self.life.seed}-{self.count}",
                    "metadata": {"n": self.count},
                    "embedding": vector(self.count),
                }
            )
        ids = memory.add_entries(entries, namespace)
        self.acknowledged(memory, 1, namespace, ids)
        self.known |= dict.fromkeys((namespace, memory_id) for memory_id in ids)

    def step(self, memory: Any) -> None:
        choice = self.source.random()
        if choice < 0.45 or len(self.known) < 3:
            self.add(memory, self.source.choice(["a", "b", "c"]), self.source.choice([1, 1, 1, 2, 5]))
        elif choice < 0.75:
            namespace, memory_id = self.source.choice(list(self.known))
            changes: dict[str, Any] = {"metadata": {"changed": self.source.randrange(9)}}
            if self.source.random() < 0.5:
                changes = {
                    "content": f"changed {self.source.randrange(9)}",
                    "embedding": vector(self.source.randrange(99)),
                }
            if memory.update_memory(memory_id, namespace, **changes):
                self.acknowledged(memory, 2, namespace, [memory_id])
        elif choice < 0.9:
            namespace, memory_id = self.source.choice(list(self.known))
            if memory.delete_memory(memory_id, namespace):
                self.acknowledged(memory, 3, namespace, [memory_id])
            del self.known[namespace, memory_id]
        elif choice < 0.95:
            memory.count()
        else:
            time.sleep(self.source.random() * 0.03)

    def run(self) -> None:
        from pixelmemory import Memory

        def opened(**changes: Any) -> Any:
            return Memory(
                self.life.name, None, GIVEN, options=options_at(self.life.home, **{**self.life.options, **changes})
            )

        with opened() as memory:
            for _ in range(30):
                self.step(memory)
            if self.life.eventful:
                self.refuse_one(memory)
                self.add(memory, "b", 2)
                memory.get_namespace_table("b")
                self.add(memory, "b", 2)
        if self.life.eventful:
            with opened(rebuild=True) as memory:
                for _ in range(5):
                    self.step(memory)

    def run_chore(self) -> None:
        from pixelmemory import Layout

        options = {**self.life.options, "layout": Layout(self.life.options["layout"])}
        with open_memory(self.life.home, self.life.name, **options) as memory:
            if self.life.chore == "erase":
                memory.erase_memories(canary_ids(self.life.canary), "b")
            else:
                self.fill(memory, self.life.canary)

    def fill(self, memory: Any, canary: str) -> None:
        """Others, and memories that hold the canary wherever a caller can put it; some of them changed, one deleted."""
        from tests.harness.refusals import refuse_marked

        for _ in range(4):
            self.add(memory, "a", 3)
            self.add(memory, "b", 3)
        long = " ".join(f"{self.source.getrandbits(64):x}" for _ in range(600))
        for memory_id in canary_ids(canary):
            metadata = {"tag": canary, canary: {"nested": [canary]}, "long": long}
            memory.add_entry(
                f"{canary} {long}", "b", metadata, memory_id=memory_id, embedding=vector(self.life.seed + 10**6)
            )
        memory.flush()
        refuse_marked(self.life.name, "b")
        first, second, third = canary_ids(canary)
        memory.update_memory(first, "b", f"changed {canary}", embedding=vector(1))
        memory.update_memory(second, "b", metadata={"changed": f"{canary} {long[::-1]}"})
        memory.update_memory(second, "b", f"refused {canary}", embedding=vector(1))
        memory.delete_memory(third, "b")
        self.add(memory, "b", 3)
        memory.flush()

    def refuse_one(self, memory: Any) -> None:
        from tests.harness.refusals import accept_marked, refuse_marked

        self.add(memory, "a", 1)
        memory.flush()
        refuse_marked(self.life.name, "a")
        self.add(memory, "a", 3)
        self.add(memory, "a", 1, "refused")
        self.add(memory, "a", 2)
        for _ in range(5):
            self.step(memory)
        memory.flush()
        accept_marked(self.life.name, "a")
        memory.retry_dead_letters()


def _child(life: Life) -> None:
    signal.alarm(HANG_SECONDS)  # a hang shows as SIGALRM
    from pixelmemory.faults import set_fault_hook

    hits: Counter[str] = Counter()

    def hook(name: str) -> None:
        hits[name] += 1
        if name == life.point and hits[name] == life.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    set_fault_hook(hook)
    script = _Script(life)
    if life.chore:
        script.run_chore()
    else:
        script.run()
    (Path(life.home) / "hits").write_text(json.dumps(hits))


def _fork(life: Life) -> int:
    home = Path(life.home)
    home.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _child(life)
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not come back; the exit code tells
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if life.kill_after_seconds:
        while not acknowledged_in(home):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.002)
        time.sleep(life.kill_after_seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _main() -> None:
    import pixeltable  # noqa: F401

    import pixelmemory.projection.projection
    import pixelmemory.projection.query  # noqa: F401
    from tests.harness import refusals  # noqa: F401 - imported once, before the forks

    for line in sys.stdin:
        life = msgspec.json.decode(line, type=Life)
        exit_code = _fork(life)
        hits = Path(life.home) / "hits"
        print(json.dumps([exit_code, json.loads(hits.read_text()) if hits.exists() else {}]), flush=True)


if __name__ == "__main__":
    _main()
