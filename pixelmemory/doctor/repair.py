"""Make a damaged log whole again, at a price that is said beforehand.

The log is cut at the first damage. Everything behind it goes to ``quarantine/``, where the events that can still be
read stand as lines of JSON as well. What is lost keeps its LSNs: a placeholder, which changes nothing, stands in the
log for every LSN that was or may have been given out, so that LSNs stay dense and none is ever given out again. The
MANIFEST gets another history id, so that the next open rebuilds a projection that had applied what is lost.

What costs nothing is mended as well: files that are no part of the log, segments under another name, damaged seals, and
the MANIFEST.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pixelmemory.doctor.export import LOST, event_fields, json_line
from pixelmemory.doctor.repair_plan import Cut, RepairPlan, events_behind, frames_up_to
from pixelmemory.doctor.salvage import SegmentView
from pixelmemory.errors import LogCorruptError, StoreError
from pixelmemory.log.file.files import Files, ensure_folder, write_all, write_file
from pixelmemory.log.file.frame import FrameKind, encode_records, new_event_ids, type_code
from pixelmemory.log.file.segment import Segment, create_segment, new_header, segment_name
from pixelmemory.log.file.segment_writer import SegmentWriter
from pixelmemory.log.file.switch import LOG
from pixelmemory.log.file.verification import verify_log
from pixelmemory.memory.events import EventRemoved, encode_event
from pixelmemory.store.manifest import MANIFEST_NAME, Manifest

__all__ = ["Repaired", "apply_repair"]

#: lines of JSON are written in pieces of about this size
WRITE_BYTES = 1 << 20
#: placeholders in one frame
FRAME_PLACEHOLDERS_MAX = 4096


class Repaired(NamedTuple):
    """What a repair did."""

    #: holds everything that was removed, and ``note.json``
    quarantine: Path
    #: events that stand in its ``events.jsonl``
    events: int
    #: rows that stand in its ``rows.jsonl``
    rows: int


def apply_repair(plan: RepairPlan, *, rows: Iterable[dict[str, Any]] = (), files: Files | None = None) -> Repaired:
    """Do it. The caller holds the store's lock, and made the plan under it.

    An interruption at any point leaves a store that can be repaired again, with nothing lost: everything that is going
    to be removed is in ``quarantine/``, synced, before anything is.

    Args:
        plan: from :func:`plan_repair`.
        rows: of the projection, which the next open rebuilds: those that came from events that are lost.
        files: the file operations; for tests.

    Raises:
        OSError: it could not be written; repair again.
        StoreError: the result is not what it should be. Everything that was removed is in ``quarantine/``.
    """
    return _Repair(plan, files or Files()).run(rows)


class _Repair:
    def __init__(self, plan: RepairPlan, files: Files) -> None:
        self._plan = plan
        self._files = files
        self._folder = plan.inspection.folder
        self._log_folder = plan.inspection.log_folder
        self._quarantine = self._make_quarantine()

    def _make_quarantine(self) -> Path:
        now = dt.datetime.now(dt.UTC)
        base = self._folder / "quarantine" / f"repair-{now:%Y%m%dT%H%M%SZ}"
        folder, number = base, 1
        while folder.exists():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        ensure_folder(self._files, folder)
        return folder

    def run(self, rows: Iterable[dict[str, Any]]) -> Repaired:
        plan, files = self._plan, self._files
        if self._log_folder != self._folder / LOG:
            raise StoreError(f"a rewriting of the log in {self._folder} was cut short; finish_switch() comes first")
        ensure_folder(files, self._log_folder)
        event_count, row_count = self._save(rows)
        manifest = self._save_manifest()
        for path, _ in plan.strays:
            files.rename(path, self._quarantine / path.name)
        # two segments may have each other's name
        moving = [(right.with_name(right.stem + ".moving.log"), right) for _, right in plan.renames]
        for (path, _), (between, _) in zip(plan.renames, moving, strict=True):
            files.rename(path, between)
        for between, right in moving:
            files.rename(between, right)
        files.sync_folder(self._quarantine)
        files.sync_folder(self._log_folder)
        for view in plan.seals:
            self._seal(view)
        if plan.cut is not None:
            self._cut(plan.cut, manifest.epoch)
        try:
            verify_log(files, self._log_folder, plan.store_id, manifest.epoch, drop_damaged=False)
        except LogCorruptError as error:
            raise StoreError(
                f"the repaired log is not whole yet: {error.path}, byte {error.byte_offset}: {error.reason}. Repair it "
                f"again; what was removed is in {self._quarantine}"
            ) from error
        return Repaired(self._quarantine, event_count, row_count)

    # -- what is kept aside

    def _save(self, rows: Iterable[dict[str, Any]]) -> tuple[int, int]:
        plan, cut = self._plan, self._plan.cut
        if (manifest := self._folder / MANIFEST_NAME).exists() and plan.manifest_reason is not None:
            self._copy(manifest, self._quarantine / MANIFEST_NAME)
        for view in plan.seals:
            assert view.end is not None
            start = view.end.byte_offset
            if view.size_bytes > start:
                self._copy(view.path, self._quarantine / f"{view.right_path.name}.from-byte-{start}", start)
        event_count = row_count = 0
        if cut is not None:
            if cut.kept is not None:
                self._copy(cut.kept.path, self._quarantine / cut.kept.right_path.name)
            for path in cut.removed:
                if path.name == self._new_path(cut).name:  # it is going to be replaced
                    self._copy(path, self._quarantine / path.name)
            events = events_behind(plan.inspection, cut.first_lsn) if cut.readable_events else iter(())
            event_count = self._write_lines("events.jsonl", (event_fields(event) for event in events))
            row_count = self._write_lines("rows.jsonl", rows)
        note = msgspec.json.format(msgspec.json.encode(self._note(event_count, row_count)), indent=2)
        write_file(self._files, self._quarantine / "note.json", note + b"\n", "quarantine")
        self._files.sync_folder(self._quarantine)
        return event_count, row_count

    def _copy(self, source: Path, target: Path, start: int = 0) -> None:
        fd = self._files.open_read(source)
        try:
            out = self._files.open_new(target)
            try:
                at = start
                while data := self._files.read(fd, 1 << 20, at):
                    write_all(self._files, out, data, at - start)
                    at += len(data)
                self._files.sync(out)
            finally:
                self._files.close(out)
        finally:
            self._files.close(fd)

    def _write_lines(self, name: str, lines: Iterable[dict[str, Any]]) -> int:
        """Write lines of JSON to a new file; none if there are none. Returns how many."""
        count = at = 0
        buffer = bytearray()
        fd: int | None = None
        try:
            for fields in lines:
                if fd is None:
                    fd = self._files.open_new(self._quarantine / name)
                buffer += json_line(fields).encode() + b"\n"
                count += 1
                if len(buffer) >= WRITE_BYTES:
                    write_all(self._files, fd, buffer, at)
                    at += len(buffer)
                    buffer = bytearray()
            if fd is not None:
                write_all(self._files, fd, buffer, at)
                self._files.sync(fd)
        finally:
            if fd is not None:
                self._files.close(fd)
        return count

    def _note(self, events: int, rows: int) -> dict[str, Any]:
        plan, cut = self._plan, self._plan.cut
        note: dict[str, Any] = {
            "what": "removed from a store by 'pixelmemory repair'",
            "store": str(self._folder),
            "store_id": str(plan.store_id),
            "repaired_at": dt.datetime.now(dt.UTC).isoformat(),
            "damage": [
                {
                    "kind": damage.kind.value,
                    "file": damage.path.name,
                    "byte_offset": damage.byte_offset,
                    "byte_count": damage.byte_count,
                    "first_lsn": damage.first_lsn,
                    "last_lsn": damage.last_lsn,
                    "reason": damage.reason,
                }
                for damage in plan.damages
            ],
            "strays": [path.name for path, _ in plan.strays],
        }
        if cut is not None:
            note |= {
                "cut": {
                    "segment": cut.kept.right_path.name if cut.kept is not None else None,
                    "byte_offset": cut.byte_offset,
                    "first_lsn": cut.first_lsn,
                    "last_lsn": cut.last_lsn,
                    "last_lsn_is_exact": cut.exact,
                },
                "segments": [path.name for path in cut.removed],
                "events_in_events_jsonl": events,
                "rows_in_rows_jsonl": rows,
            }
        return note

    # -- what is changed

    def _save_manifest(self) -> Manifest:
        plan, cut = self._plan, self._plan.cut
        old = plan.inspection.manifest
        manifest = old if old is not None else Manifest(store_id=plan.store_id)
        has_log = bool(plan.inspection.segments) if cut is None else bool(cut.kept or cut.last_lsn)
        manifest = msgspec.structs.replace(manifest, epoch=plan.inspection.epoch, has_log=has_log)
        if cut is not None and (cut.last_lsn >= cut.first_lsn or not has_log):
            manifest = msgspec.structs.replace(manifest, history_id=uuid.uuid4())
        if manifest != old:
            manifest.save(self._folder, self._files)
        return manifest

    def _seal(self, view: SegmentView) -> None:
        assert view.header is not None
        assert view.end is not None
        path = view.right_path
        fd = self._files.open_write(path)
        try:
            SegmentWriter(Segment(path, view.header), view.end).write_mark(self._files, fd, FrameKind.SEAL, "seal")
        finally:
            self._files.close(fd)

    def _new_path(self, cut: Cut) -> Path:
        kept = cut.kept.header if cut.kept is not None else None
        return self._log_folder / segment_name(kept.first_lsn if kept is not None else 1)

    def _cut(self, cut: Cut, epoch: int) -> None:
        """Rewrite the last segment, then remove what comes after it.

        In this order, so that after an interruption the placeholders still say which LSNs were given out.
        """
        path = self._new_path(cut)
        last_lsn = max(cut.last_lsn, cut.first_lsn - 1)
        if cut.kept is not None or last_lsn:
            kept = cut.kept.header if cut.kept is not None else None
            header = new_header(
                store_id=self._plan.store_id,
                number=kept.number if kept is not None else 1,
                first_lsn=kept.first_lsn if kept is not None else 1,
                durable_lsn=last_lsn,
                epoch=epoch,
                previous_bytes=kept.previous_bytes if kept is not None else 0,
                previous_checksum=kept.previous_checksum if kept is not None else 0,
            )
            target = Segment(path, header)
            self._files.close(create_segment(self._files, path, header, self._new_frames(cut, target, last_lsn)))
        for removed in reversed(cut.removed):
            if removed != path or not (cut.kept is not None or last_lsn):
                self._files.rename(removed, self._quarantine / removed.name)
        self._files.sync_folder(self._quarantine)
        self._files.sync_folder(self._log_folder)

    def _new_frames(self, cut: Cut, target: Segment, last_lsn: int) -> Iterator[bytearray]:
        """What is kept, the placeholders, and the mark of a clean close, as frames of ``target``."""
        writer = SegmentWriter(target)
        if cut.kept is not None:
            for frame in frames_up_to(self._files, cut.kept, cut.kept.right_path, cut.byte_offset):
                old = frame.header
                yield writer.build(
                    [frame.body], event_count=old.event_count, durable_lsn=old.durable_lsn, flags=old.flags
                )
                writer.advance()
        now_ns = time.time_ns()
        logged_at_ns = max(now_ns, self._plan.logged_at_ns)
        placeholder = EventRemoved(LOST, now_ns // 1000)
        for first_lsn in range(cut.first_lsn, last_lsn + 1, FRAME_PLACEHOLDERS_MAX):
            count = min(FRAME_PLACEHOLDERS_MAX, last_lsn + 1 - first_lsn)
            code = type_code(placeholder)
            body = encode_records(
                [code] * count, [encode_event(placeholder)] * count, new_event_ids(count), logged_at_ns
            )
            yield writer.build([body], event_count=count, durable_lsn=first_lsn - 1, flags=0)
            writer.advance()
        yield writer.mark(FrameKind.CLOSE)
