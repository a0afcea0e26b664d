"""A store on a mount that is taken away under it; run by ``test_log_moved_folder`` in a mount namespace of its own.

Says ``try``, ``ack`` and ``err`` as :mod:`log_writer` does, and ``moved <how>`` for each time. What it asserts, it
asserts in its own process: the exit status is 0 where all of it held.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.ground_tools import append_until_refused, check_reads, contents, held_store
from tests.harness.log_harness import Book, Store
from tests.harness.log_writer import say


class SayingBook(Book):
    """Says what it learns."""

    def new(self, count: int) -> int:
        number = super().new(count)
        say("try", number, count)
        return number


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def unmount(*arguments: object) -> None:
    subprocess.run(["umount", *map(str, arguments)], check=True)


def check_moved(store: Store, path: Path, how: str) -> None:
    """What is at ``path`` now is left alone, and the store says that it is not where it was."""
    say("moved", how)
    before = contents(path)
    append_until_refused(store)
    check_reads(store)
    assert contents(path) == before


def main() -> None:
    real, mounted, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    book = SayingBook()
    mount("--bind", real, mounted)
    path = mounted / "store"  # under the mount, and in ``decoy``, there is another store of that name
    with held_store(book, path) as store:
        for _ in range(rounds):
            assert store.append(3)
            unmount("--lazy", mounted)
            check_moved(store, path, "lazily unmounted")
            mount("--bind", real, mounted)
            assert store.append()
            mount("--bind", mounted.with_name("decoy"), mounted)
            check_moved(store, path, "bind-mounted over")
            unmount(mounted)
            assert store.append()
            mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", path)
            check_moved(store, path, "mounted over")
            unmount(path)
            assert store.append()
            assert store.log.problem is None
            store.log.rewrite(lambda stored: stored.event)
            check_reads(store)
    for number in sorted(book.acked):
        say("ack", number)
    for number in sorted(book.gone):
        say("err", number)


if __name__ == "__main__":
    main()
