"""``pixelmemory repair``: show what a repair would cost, and do it if asked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelmemory.cli.common import (
    CLEAN,
    FOUND,
    Commands,
    add_command,
    damage_text,
    find_store,
    lsn_range,
    plural,
    printable,
    progress,
    show,
)
from pixelmemory.doctor.inspection import LogInspection, owner_pid
from pixelmemory.doctor.repair import Repaired, apply_repair
from pixelmemory.doctor.repair_plan import Cut, RepairPlan, plan_repair
from pixelmemory.errors import ProjectionUnavailableError, StoreError, StoreLockedError
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.switch import finish_switch
from pixelmemory.store.lock import StoreLock

if TYPE_CHECKING:
    from pixelmemory.doctor.comparison import ProjectionSnapshot

__all__ = ["add_repair"]

_DESCRIPTION = """\
Show what it would take to make a damaged store open again; with --yes, do it. The log is cut at the first damage, and
everything behind it is kept in quarantine/, where the events that can still be read stand as lines of JSON as well, for
you to add them again. LSNs that are lost are not given out again. What costs no event (a damaged MANIFEST, a file that
does not belong to the log) is mended without a cut.
"""
_EPILOG = """\
Copy the store's folder before you use --yes. A torn tail needs no repair: the next open sets it aside.

The tables are asked for the last LSN that they have applied, and for the rows that came from events that are lost; set
PIXELTABLE_HOME if the store is used with another Pixeltable than ~/.pixeltable. The next open rebuilds them.

examples:
  pixelmemory repair notes
  pixelmemory repair notes --yes

exit status: 0 nothing to repair, or repaired; 1 there is something to repair (without --yes); 2 it cannot be repaired
"""


def add_repair(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "repair", run_repair, "make a damaged store open again", _DESCRIPTION, _EPILOG)
    parser.add_argument("--yes", action="store_true", help="do it; without, nothing is changed")
    parser.add_argument("--log-only", action="store_true", help="do not ask the tables what they have applied")


def run_repair(arguments: argparse.Namespace) -> int:
    """Run the command."""
    folder = find_store(arguments)
    with ExitStack() as stack:
        if arguments.yes:
            lock = StoreLock.acquire(folder / "LOCK")
            stack.callback(lock.release)
            finish_switch(Files(), folder)
        elif (pid := owner_pid(folder)) is not None:  # the lock is not tried: that would write to it
            raise StoreLockedError(folder / "LOCK", pid)
        snapshot, unknown = None, None
        if not arguments.log_only:
            snapshot, unknown = _open_projection(folder, stack)
        known_lsn = snapshot.checkpoint_lsn if snapshot is not None else 0
        total = sum(path.stat().st_size for path in (folder / "log").glob("*.log"))
        with progress(2 * total, "reading the log") as on_read:
            plan = plan_repair(folder, known_lsn=known_lsn, on_read=on_read)
        show("store", printable(str(folder)))
        if not plan.needed:
            _show_nothing(plan)
            return CLEAN
        _show_plan(plan, snapshot, unknown)
        if not arguments.yes:
            show("", "", "Nothing was changed. Copy the store's folder, then add --yes to do this.")
            return FOUND
        rows: Iterator[dict[str, Any]] = iter(())
        if snapshot is not None and plan.cut is not None:
            rows = snapshot.rows_from(plan.cut.first_lsn)
        _check_path(folder)
        _show_done(apply_repair(plan, rows=rows))
    return CLEAN


def _check_path(folder: Path) -> None:
    """Refuse a path that is no UTF-8: what is kept aside is described in JSON, which names it."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise StoreError(f"{folder}: the path is not UTF-8; move the store elsewhere to repair it") from None


def _open_projection(folder: Path, stack: ExitStack) -> tuple[ProjectionSnapshot | None, str | None]:
    """The tables, if they were made from this log; else why they are not asked."""
    from pixelmemory.doctor.comparison import open_snapshot

    inspection = LogInspection(folder)
    if inspection.tables_id is None or inspection.history_id is None:
        return None, "neither the MANIFEST nor the log says which store this is"
    try:
        snapshot = stack.enter_context(open_snapshot(folder.name, inspection.tables_id, inspection.history_id))
    except ProjectionUnavailableError as error:
        return None, str(error)
    if snapshot.state_id != str(inspection.history_id):
        return None, f"they were made from another history ({snapshot.state_id})"
    return snapshot, None


def _show_nothing(plan: RepairPlan) -> None:
    show("damage", "none: there is nothing to repair")
    if plan.torn_bytes:
        show(
            "torn tail",
            f"{plural(plan.torn_bytes, 'byte')} that were never acknowledged; the next open sets them aside",
        )


def _show_plan(plan: RepairPlan, snapshot: ProjectionSnapshot | None, unknown: str | None) -> None:
    show("damage", *(damage_text(damage) for damage in plan.damages if damage.kind.value != "torn"))
    if not plan.damages and snapshot is not None:
        show("damage", f"the log ends before LSN {snapshot.checkpoint_lsn}, which the tables have applied")
    steps = [f"set {printable(path.name)} aside: {printable(reason)}" for path, reason in plan.strays]
    steps += [f"give {path.name} its name back: {right.name}" for path, right in plan.renames]
    steps += [f"seal {view.right_path.name} again" for view in plan.seals]
    if plan.manifest_reason is not None:
        steps.append("rewrite the MANIFEST")
    if plan.cut is not None:
        steps += _cut_steps(plan.cut)
    show("repair", *steps)
    if plan.cut is not None:
        _show_lost(plan.cut)
        if unknown is not None:
            text = "later LSNs that they have applied cannot be kept from being given out again"
            show("tables", f"not asked: {printable(unknown)}", text)


def _cut_steps(cut: Cut) -> list[str]:
    steps = ["begin a new log: nothing before the damage is left"]
    if cut.kept is not None:
        steps = [f"cut the log in {cut.kept.right_path.name} at byte {cut.byte_offset}, before LSN {cut.first_lsn}"]
    steps += [f"set {printable(path.name)} aside" for path in cut.removed]
    return [*steps, f"keep the {plural(cut.removed_bytes, 'byte')} that this removes in quarantine/"]


def _show_lost(cut: Cut) -> None:
    count = cut.last_lsn - cut.first_lsn + 1
    if count <= 0:
        show(
            "lost", "no event" if cut.exact else "no event that is known; what the missing segment held cannot be told"
        )
        return
    unreadable = count - cut.readable_events
    show(
        "lost",
        f"{lsn_range(cut.first_lsn, cut.last_lsn)}: {plural(count, 'event')}{'' if cut.exact else ' at most'}",
        f"{cut.readable_events:,} of them can still be read, and will stand in events.jsonl",
        f"{unreadable:,} of them cannot be read{'' if cut.exact else ', at most'}",
        "their LSNs are not given out again: placeholders, which change nothing, take their place",
        "the next open rebuilds the tables; rows that came from lost events will stand in rows.jsonl",
    )


def _show_done(done: Repaired) -> None:
    show("", "")
    show("done", f"what was removed is in {printable(str(done.quarantine))}")
    show("", f"{plural(done.events, 'event')} in events.jsonl, {plural(done.rows, 'row')} in rows.jsonl; see note.json")
    show("", "the store opens again")
    sys.stdout.flush()
