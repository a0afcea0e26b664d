"""``pixelmemory log``: print the events of a log."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator

from pixelmemory.cli.common import CLEAN, FOUND, Commands, add_command, damage_text, find_store, shorten
from pixelmemory.doctor.export import LOST, event_fields, event_name, json_line, utc_text
from pixelmemory.doctor.inspection import Damage, DamageKind, LogInspection
from pixelmemory.log.contract import StoredEvent
from pixelmemory.memory.events import EventRemoved, MemoryDeleted

__all__ = ["add_log"]

#: of the table's columns: LSN, time, type, namespace, id; the content gets the rest of the line, at least the last
WIDTHS = (8, 20, 9, 14, 36)
CONTENT_WIDTH_MIN = 23

_DESCRIPTION = """\
Print the events of a store's log, in LSN order, oldest first. The store is not opened: it may be open elsewhere, locked
or damaged. Damage is told on stderr, and reading goes on behind it. A line of type "erased", "compacted" or "lost"
stands for an event that was removed from the log; it is of no memory. What is "lost", a repair had to remove.
"""
_EPILOG = """\
examples:
  pixelmemory log notes --limit 20
  pixelmemory log notes --from 1000 --to 1999 --json > events.jsonl
  pixelmemory log notes --namespace work --memory-id 0197a9c2-7d5e-7c40-9d4e-6a52a1f3b0c8

exit status: 0, or 1 if damage was met, or 2 if the log cannot be read
"""


def add_log(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "log", run_log, "print the events of a store's log", _DESCRIPTION, _EPILOG)
    parser.add_argument("--from", dest="from_lsn", type=_lsn, default=1, metavar="LSN", help="first LSN to print")
    parser.add_argument("--to", dest="to_lsn", type=_lsn, metavar="LSN", help="last LSN to print")
    parser.add_argument("--namespace", metavar="NS", help="only events of this namespace")
    parser.add_argument("--memory-id", metavar="ID", help="only events of this memory")
    parser.add_argument("--limit", type=_count, metavar="N", help="stop after this many events")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with everything the log holds")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _lsn(text: str) -> int:
    if (lsn := _count(text)) < 1:
        raise argparse.ArgumentTypeError("LSNs begin with 1")
    return lsn


def run_log(arguments: argparse.Namespace) -> int:
    """Run the command."""
    inspection = LogInspection(find_store(arguments))
    content_width = max(CONTENT_WIDTH_MIN, shutil.get_terminal_size((120, 24)).columns - sum(WIDTHS) - 2 * len(WIDTHS))
    if not arguments.json:
        sys.stdout.write(_line(("LSN", "time", "type", "namespace", "id"), "content"))
    status = CLEAN
    left: int | None = arguments.limit
    for found in _wanted(inspection, arguments):
        if isinstance(found, Damage):
            sys.stdout.flush()  # so that it stands in its place where both streams are shown
            sys.stderr.write(f"{_damage_label(found)}: {damage_text(found)}\n")
            status = status if found.kind is DamageKind.TORN else FOUND
            continue
        if left is not None:
            if left == 0:
                break
            left -= 1
        sys.stdout.write(json_line(event_fields(found)) + "\n" if arguments.json else _row(found, content_width))
    return status


def _damage_label(damage: Damage) -> str:
    return {DamageKind.TORN: "torn tail", DamageKind.LATER_VERSION: "cannot be read"}.get(damage.kind, "damage")


def _wanted(inspection: LogInspection, arguments: argparse.Namespace) -> Iterator[StoredEvent | Damage]:
    for item in inspection.items(from_lsn=arguments.from_lsn):
        if isinstance(item, Damage):
            yield item
            continue
        if arguments.to_lsn is not None and item.header.first_lsn > arguments.to_lsn:
            return
        yield from (stored for stored in item.events if _matches(stored, arguments))


def _matches(stored: StoredEvent, arguments: argparse.Namespace) -> bool:
    event = stored.event
    namespace, memory_id = (None, None) if isinstance(event, EventRemoved) else (event.namespace, event.memory_id)
    return (
        stored.lsn >= arguments.from_lsn
        and (arguments.to_lsn is None or stored.lsn <= arguments.to_lsn)
        and arguments.namespace in (None, namespace)
        and arguments.memory_id in (None, memory_id)
    )


def _row(stored: StoredEvent, content_width: int) -> str:
    event = stored.event
    time = utc_text(stored.logged_at_ns // 1_000_000_000 * 1_000_000)
    if isinstance(event, EventRemoved):
        when = "by a repair" if event.reason == LOST else utc_text(event.removed_at_us)[:10]
        content = f"(removed {when})"
        return _line((str(stored.lsn), time, event_name(stored), "", ""), shorten(content, content_width))
    content = "" if isinstance(event, MemoryDeleted) else "(metadata)" if event.content is None else event.content
    fields = (str(stored.lsn), time, event_name(stored), event.namespace, event.memory_id)
    return _line(fields, shorten(content, content_width))


def _line(fields: tuple[str, ...], content: str) -> str:
    shown = [shorten(text, width).ljust(width) for text, width in zip(fields[1:], WIDTHS[1:], strict=True)]
    return "  ".join([fields[0].rjust(WIDTHS[0]), *shown, content]).rstrip() + "\n"
