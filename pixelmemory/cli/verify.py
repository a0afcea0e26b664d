"""``pixelmemory verify``: check a store without changing it."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pixelmemory.cli.common import (
    CANNOT,
    CLEAN,
    FOUND,
    Commands,
    add_command,
    damage_text,
    find_store,
    plural,
    printable,
    progress,
    show,
)
from pixelmemory.doctor.export import is_placeholder, json_line
from pixelmemory.doctor.inspection import Damage, DamageKind, DecodedFrame, LogInspection, owner_pid
from pixelmemory.embedding import embedding_label
from pixelmemory.errors import ProjectionUnavailableError
from pixelmemory.log.file.frame import FrameKind
from pixelmemory.memory.events import EventRemoved
from pixelmemory.store.manifest import Manifest

if TYPE_CHECKING:
    from pixelmemory.doctor.comparison import Comparison, Fold, ProjectionSnapshot, RowFinding

__all__ = ["add_verify"]

#: the store may be opened or rotate while it is checked: then what was found is looked at again, so often
LOOKS_MAX = 3

_DESCRIPTION = """\
Check a store and change nothing: every frame of every segment (checksums, their chain, LSNs without a gap, events that
decode), the MANIFEST, the checkpoint against the log's end, and the tables against the fold of the log, row by row.
Vectors and typed columns are not compared. The store may be open elsewhere; then what is checked is the log and the
tables as they were at one moment. It may be damaged, too.
"""
_EPILOG = """\
The tables are looked up in the Pixeltable of PIXELTABLE_HOME (default ~/.pixeltable), in the folder of pixelmemory/
whose name ends with the store's id. Set PIXELTABLE_HOME if the store is used with another; with --log-only no database
is touched. Rows that were inserted directly through Pixeltable are counted, and are no fault.

examples:
  pixelmemory verify notes
  pixelmemory verify ./backup/notes --log-only
  PIXELTABLE_HOME=/srv/pixeltable pixelmemory verify notes --home /srv/memory --json

exit status: 0 clean; 1 something was found (damage, rows that differ, dead letters); 2 it could not be checked
"""


def add_verify(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "verify", run_verify, "check a store without changing it", _DESCRIPTION, _EPILOG)
    parser.add_argument("--log-only", action="store_true", help="check the files only, not the tables")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_verify(arguments: argparse.Namespace) -> int:
    """Run the command."""
    report = verify_store(find_store(arguments), log_only=arguments.log_only)
    if arguments.json:
        sys.stdout.write(json_line(report.fields()) + "\n")
    else:
        report.show()
    return report.status


class LogReport(msgspec.Struct):
    """What the log holds."""

    segments: int = 0
    #: frames that hold events
    frames: int = msgspec.field(default=0, name="batches")
    events: int = 0
    #: of them, those that stand for events that a repair took out
    placeholders: int = 0
    #: and for events that an erase or a compaction took out
    removed: int = 0
    bytes: int = 0
    first_lsn: int | None = None
    last_lsn: int | None = None
    torn_bytes: int = 0
    #: its last frame is the mark of a clean close
    closed: bool = False
    #: events behind the first damage
    readable_behind_damage: int = 0
    damage: list[Damage] = []
    later_version: list[Damage] = []

    @property
    def broken(self) -> bool:
        """Whether events are lost or cannot be read."""
        return bool(self.later_version) or any(damage.kind is DamageKind.EVENTS for damage in self.damage)

    def add(self, item: DecodedFrame | Damage) -> None:
        """The next thing that was found."""
        if isinstance(item, Damage):
            self.closed = False
            if item.kind is DamageKind.TORN:
                self.torn_bytes += item.byte_count
            else:
                (self.later_version if item.kind is DamageKind.LATER_VERSION else self.damage).append(item)
            return
        self.closed = item.header.kind == FrameKind.CLOSE
        if item.events:
            self.frames += 1
            self.events += len(item.events)
            lost = sum(map(is_placeholder, item.events))
            self.placeholders += lost
            self.removed += sum(isinstance(stored.event, EventRemoved) for stored in item.events) - lost
            self.readable_behind_damage += len(item.events) if self.broken else 0
            self.first_lsn = self.first_lsn or item.events[0].lsn
            self.last_lsn = item.events[-1].lsn


class Report(msgspec.Struct):
    """What verifying a store found."""

    store: Path
    store_id: str | None
    epoch: int
    open_in_process: int | None
    log: LogReport
    #: the tables' folder in Pixeltable
    projection: str
    #: None where it was not compared; then ``reason`` says why, unless that was asked for
    comparison: Comparison | None = None
    checkpoint_lsn: int | None = None
    reason: str | None = None
    #: an erase was begun and is not finished
    erasing: bool = False
    #: what the store's vectors come from, and the fields of its schema; None where the MANIFEST does not say
    model: str | None = None
    schema: dict[str, str] | None = None

    @property
    def findings(self) -> int:
        """How much is wrong."""
        found = len(self.log.damage) + self.checkpoint_ahead
        if self.comparison is not None:
            found += self.comparison.faults + self.comparison.dead_letters
        return found

    @property
    def checkpoint_ahead(self) -> bool:
        """Whether the tables have applied what the log does not hold."""
        return self.checkpoint_lsn is not None and self.checkpoint_lsn > (self.log.last_lsn or 0)

    @property
    def status(self) -> int:
        """The exit status."""
        if self.findings:
            return FOUND
        return CANNOT if self.reason is not None or self.log.later_version else CLEAN

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        log = {field.encode_name: getattr(self.log, field.name) for field in msgspec.structs.fields(self.log)}
        for kind in ("damage", "later_version"):
            log[kind] = [_damage_fields(damage) for damage in log[kind]]
        return {
            "store": _plain(str(self.store)),
            "store_id": self.store_id,
            "epoch": self.epoch,
            "model": self.model,
            "schema": self.schema,
            "open_in_process": self.open_in_process,
            "erasing": self.erasing,
            "log": log,
            "projection": {
                "path": _plain(self.projection),
                "checkpoint_lsn": self.checkpoint_lsn,
                "compared": self.comparison is not None,
                "not_compared_because": self.reason,
                **(msgspec.to_builtins(self.comparison) if self.comparison is not None else {}),
            },
            "findings": self.findings,
            "status": self.status,
        }

    # -- for people

    def show(self) -> None:
        """Print it."""
        show("store", printable(str(self.store)), f"id {self.store_id or 'unknown'}, epoch {self.epoch}")
        if self.model is not None:
            show("model", printable(self.model))
        if self.schema:
            show("schema", printable(", ".join(f"{name}: {kind}" for name, kind in self.schema.items())))
        if self.open_in_process is not None:
            show("open", f"in process {self.open_in_process}; what is said here is as of the check")
        manifest = [d for d in [*self.log.damage, *self.log.later_version] if d.path.name == "MANIFEST"]
        show("MANIFEST", printable(manifest[0].reason) if manifest else "ok")
        self._show_log()
        self._show_projection()
        if self.findings:
            show("result", plural(self.findings, "finding"))
        else:
            show("result", "clean" if self.status == CLEAN else "not everything could be checked")

    def _show_log(self) -> None:
        log = self.log
        counts = [plural(log.segments, "segment"), plural(log.frames, "frame"), plural(log.events, "event")]
        show("log", f"{', '.join(counts)}, {plural(log.bytes, 'byte')}")
        if log.last_lsn is not None:
            closed = "closed properly" if log.closed else "not closed"
            show("", f"LSN {log.first_lsn} to {log.last_lsn}; {closed}")
        if log.placeholders:
            show("", f"{plural(log.placeholders, 'event')} of them stand for what a repair took out")
        if log.removed:
            show("", f"{plural(log.removed, 'event')} of them stand for what an erase or a compaction took out")
        if self.erasing:
            show("", "an erase is not finished: the next open goes on with it")
        if log.torn_bytes:
            text = "of a frame that was never acknowledged; the next open sets them aside: no fault"
            show("torn tail", f"{plural(log.torn_bytes, 'byte')} {text}")
        found = [damage for damage in log.damage if damage.path.name != "MANIFEST"]
        show("damage", *(damage_text(damage) for damage in found)) if found else show("damage", "none")
        if log.readable_behind_damage:
            show("", f"{plural(log.readable_behind_damage, 'event')} behind it can be read: see pixelmemory log")
        if found:
            show("", "see pixelmemory repair, which shows what it would do")
        for damage in log.later_version:
            show("not read", damage_text(damage))

    def _show_projection(self) -> None:
        if self.checkpoint_lsn is not None:
            behind = (self.log.last_lsn or 0) - self.checkpoint_lsn
            text = f"{plural(behind, 'event')} behind the log" if behind >= 0 else "beyond the end of the log"
            show("tables", f"{printable(self.projection)}: checkpoint LSN {self.checkpoint_lsn}, {text}")
        found = self.comparison
        if found is None:
            show("rows", f"not compared: {printable(self.reason or 'as asked')}")
            return
        counts = f"{found.missing:,} missing, {found.extra:,} extra, {found.different:,} different"
        show("rows", f"{found.rows:,} compared: {counts}")
        for finding in found.examples:
            show("", _finding_text(finding))
        if len(found.examples) < found.faults:
            show("", f"... and {plural(found.faults - len(found.examples), 'row')} more")
        if found.faults:
            show("", "the log is the truth: Options(rebuild=True) rebuilds the tables from it")
        if found.inserted_directly:
            show("", f"{plural(found.inserted_directly, 'row')} inserted directly through Pixeltable: no fault")
        hint = "; see Memory.stats() and retry_dead_letters()" if found.dead_letters else ""
        show("dead letters", f"{found.dead_letters:,}{hint}")


def _damage_fields(damage: Damage) -> dict[str, Any]:
    return damage._asdict() | {
        "kind": damage.kind.value,
        "path": _plain(str(damage.path)),
        "reason": _plain(damage.reason),
    }


def _plain(path: str) -> str:
    """A path as JSON can have it: bytes that are no UTF-8 become escapes."""
    return path.encode(errors="backslashreplace").decode()


def _finding_text(finding: RowFinding) -> str:
    what = f"{finding.kind} ({', '.join(finding.columns)})" if finding.columns else finding.kind
    namespace = "unknown" if finding.namespace is None else printable(repr(finding.namespace))
    return f"{what}: {printable(repr(finding.memory_id))} in namespace {namespace}, LSN {finding.lsn}"


# ---------------------------------------------------------------------------------------------------------- checking


def verify_store(folder: Path, *, log_only: bool) -> Report:
    """Check the store in ``folder``; nothing is written.

    Raises:
        OSError: it cannot be read.
    """
    with ExitStack() as stack:
        snapshot: ProjectionSnapshot | None = None
        reason: str | None = None
        if not log_only:
            snapshot, reason = _open_projection(folder, stack)
        for _ in range(LOOKS_MAX):
            report, fold = _look(folder, snapshot, reason)
            if report is not None:
                break
        else:
            report, fold = _look(folder, snapshot, reason, final=True)
        assert report is not None
        if snapshot is not None and report.reason is None:
            assert fold is not None
            _compare(report, snapshot, fold)
        return report


def _open_projection(folder: Path, stack: ExitStack) -> tuple[ProjectionSnapshot | None, str | None]:
    """The tables as they are now, or why they cannot be read."""
    from pixelmemory.doctor.comparison import open_snapshot

    inspection = LogInspection(folder)
    if inspection.tables_id is None or inspection.history_id is None:
        return None, "neither the MANIFEST nor the log says which store this is"
    try:
        return stack.enter_context(open_snapshot(folder.name, inspection.tables_id, inspection.history_id)), None
    except ProjectionUnavailableError as error:
        return None, str(error)


def _look(
    folder: Path, snapshot: ProjectionSnapshot | None, reason: str | None, *, final: bool = False
) -> tuple[Report | None, Fold | None]:
    """Read the log once, and fold it for the comparison; no report if the log was replaced meanwhile."""
    total = sum(path.stat().st_size for path in (folder / "log").glob("*.log"))
    with progress(2 * total, "reading the log") as on_read:  # it is read by recovery's rules, and event by event
        inspection = LogInspection(folder, on_read=on_read)
        manifest = inspection.manifest
        report = Report(
            folder,
            str(inspection.store_id) if inspection.store_id is not None else None,
            inspection.epoch,
            owner_pid(folder),
            LogReport(),
            "pixelmemory" if snapshot is None else snapshot.path,
            reason=reason,
            erasing=manifest is not None and manifest.erasing is not None,
            model=_model(manifest),
            schema=None if manifest is None else manifest.schema,
        )
        fold: Fold | None = None
        if snapshot is not None:
            fold = _prepare_fold(report, inspection, snapshot)
        before = inspection.listing()
        for item in inspection.items(thorough=True):
            report.log.add(item)
            if fold is not None and isinstance(item, DecodedFrame) and not report.log.broken:
                for stored in item.events:
                    if stored.lsn <= (report.checkpoint_lsn or 0):
                        fold.add(stored)
    report.log.segments = len(inspection.segments)
    report.log.bytes = inspection.log_bytes
    if report.log.damage and not final and before != inspection.listing():
        return None, None
    return report, fold


def _model(manifest: Manifest | None) -> str | None:
    """The store's model as the MANIFEST has it, by name or else by fingerprint."""
    if manifest is None or manifest.embedding is None:
        return None
    return embedding_label(manifest.embedding, manifest.embedding_label)


def _prepare_fold(report: Report, inspection: LogInspection, snapshot: ProjectionSnapshot) -> Fold | None:
    from pixelmemory.doctor.comparison import Fold

    manifest = inspection.manifest
    if snapshot.state_id != str(inspection.history_id):
        report.reason = (
            f"the tables were made from another history ({snapshot.state_id}: another store of this name, or before a "
            "repair). The next open rebuilds them"
        )
        return None
    report.checkpoint_lsn = snapshot.checkpoint_lsn
    if manifest is not None and 0 < snapshot.checkpoint_lsn < manifest.rewritten_lsn:
        report.reason = "the tables are older than what was removed from the log. The next open rebuilds them"
        return None
    return Fold(snapshot.dead_lsns)


def _compare(report: Report, snapshot: ProjectionSnapshot, fold: Fold) -> None:
    if report.checkpoint_ahead and not report.log.broken:
        report.reason = "the tables have applied events that the log does not hold"
    elif report.log.broken:
        report.reason = "the log is damaged before the tables' checkpoint"
    else:
        try:
            report.comparison = snapshot.compare(fold)
        except ProjectionUnavailableError as error:
            report.reason = str(error)
