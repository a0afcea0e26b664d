"""What the commands share: finding the store, and text that is safe to print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from pixelmemory.doctor.salvage import Damage
from pixelmemory.errors import StoreError
from pixelmemory.options import Options
from pixelmemory.paths import absolute_path

__all__ = [
    "CANNOT",
    "CLEAN",
    "FOUND",
    "Commands",
    "add_command",
    "damage_text",
    "find_store",
    "lsn_range",
    "plural",
    "printable",
    "progress",
    "shorten",
    "show",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

#: exit statuses
CLEAN, FOUND, CANNOT = 0, 1, 2
#: smaller logs are read before a progress bar would say anything
PROGRESS_BYTES_MIN = 64 << 20


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """A command with the arguments that all have."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", help="a store's folder, or the name of a store in the home")
    parser.add_argument(
        "--home",
        metavar="FOLDER",
        help="where stores are looked up by name (default: PIXELMEMORY_HOME, else user data)",
    )
    parser.set_defaults(run=run)
    return parser


def find_store(arguments: argparse.Namespace) -> Path:
    """The folder of the store that was asked for.

    Raises:
        StoreError: there is none.
    """
    text: str = arguments.store
    home = Options(home=arguments.home).home_path()
    is_path = os.sep in text or text in (".", "..") or text.startswith("~")
    looked = [] if is_path else [home / text]
    looked.append(absolute_path(text, "STORE"))
    for folder in looked:
        if any((folder / name).exists() for name in ("MANIFEST", "log", "log.old")):
            return folder.resolve()
    existing = next((folder for folder in looked if folder.exists()), None)
    if existing is not None:
        raise StoreError(f"{existing} is no store: it has neither a MANIFEST nor a log")
    there = sorted(path.parent.name for path in home.glob("*/MANIFEST")) if home.is_dir() and not is_path else []
    known = f"; stores there: {', '.join(there[:20])}" if there else ""
    raise StoreError(f"there is no store {' or '.join(map(str, looked))}{known}")


def printable(text: str) -> str:
    """``text`` with every character escaped that a terminal would act upon, or hide."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, width: int) -> str:
    """The beginning of ``text``, printable, in at most ``width`` characters."""
    shown = printable(text[: width + 1])
    return shown if len(shown) <= width and len(text) <= width else shown[: width - 3] + "..."


def show(label: str, *lines: str) -> None:
    """Print lines under a label. The lines are printable already, or of our own making."""
    for number, line in enumerate(lines):
        sys.stdout.write(f"{label if number == 0 else '':<13}{line}".rstrip() + "\n")


def plural(count: int, word: str) -> str:
    """``1 event``, ``1,234 events``."""
    if count == 1:
        return f"1 {word}"
    return f"{count:,} {word[:-1] + 'ies' if word.endswith('y') else word + ('es' if word.endswith('ch') else 's')}"


def lsn_range(first_lsn: int, last_lsn: int | None) -> str:
    """``LSN 5``, ``LSN 5 to 9``, ``LSN 5 and later``."""
    if last_lsn is None:
        return f"LSN {first_lsn} and later"
    return f"LSN {first_lsn}" if first_lsn == last_lsn else f"LSN {first_lsn} to {last_lsn}"


def damage_text(damage: Damage) -> str:
    """Where and what, in one line."""
    place = printable(damage.path.name)
    if damage.path.suffix == ".log":
        place += f", byte {damage.byte_offset}"
        if damage.byte_count:
            place += f" ({plural(damage.byte_count, 'byte')})"
    if damage.first_lsn is not None and (damage.last_lsn is None or damage.last_lsn >= damage.first_lsn):
        place += f", {lsn_range(damage.first_lsn, damage.last_lsn)}"
    return f"{place}: {printable(damage.reason)}"


@contextmanager
def progress(total_bytes: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for a big log, where stderr is a terminal. Gives what to call with each number of bytes read."""
    if total_bytes < PROGRESS_BYTES_MIN or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total_bytes, desc=what, unit="B", unit_scale=True, leave=False) as bar:
        yield bar.update
