"""Look into a log without opening it: what can be read, before and behind damage, and where the damage is.

Nothing is written and no lock is taken, so it serves a damaged store and one that is open elsewhere alike. Whether bad
bytes at the end are a torn tail or damage is decided by :mod:`pixelmemory.log.file.verification`, as at an open.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pixelmemory.doctor.salvage import (
    LOOK_PAUSE_SECONDS,
    Damage,
    DamageKind,
    DecodedFrame,
    SegmentView,
    Verdict,
    view_segment,
    walk_segment,
)
from pixelmemory.errors import LogCorruptError, ManifestError, UnknownEventError
from pixelmemory.log.file.files import Files
from pixelmemory.log.file.segment import segment_name
from pixelmemory.log.file.switch import log_folder
from pixelmemory.log.file.verification import verify_log
from pixelmemory.store.manifest import MANIFEST_NAME, Manifest

__all__ = ["Damage", "DamageKind", "DecodedFrame", "LogInspection", "SegmentView", "owner_pid"]


class LogInspection:
    """The log of the store in ``folder`` (``<home>/<name>``), and its MANIFEST.

    Args:
        folder: the store's.
        live: another process may be writing to it: what looks wrong at its end is looked at again.
        on_read: called with the number of bytes of every read, for a progress bar.

    Attributes:
        manifest: None where it is missing or damaged; then ``manifest_error`` says why.
        store_id: of the MANIFEST, else of the segments; None if neither can be read.
        segments: in LSN order, without strays.
        strays: files that are no part of the log, with the reason.

    Raises:
        OSError: the folder cannot be read.
    """

    def __init__(self, folder: Path, *, live: bool = True, on_read: Callable[[int], None] | None = None) -> None:
        self.folder = folder
        self._live = live
        self._files = _CountingFiles(on_read)
        self.log_folder = log_folder(folder, self._files)
        self._tidied = _TidiedFiles(on_read)
        self.manifest: Manifest | None = None
        self.manifest_error: ManifestError | None = None
        try:
            self.manifest = Manifest.load(folder, self._files)
            if self.manifest is None:
                self.manifest_error = ManifestError(folder / MANIFEST_NAME, "is missing")
        except ManifestError as error:
            self.manifest_error = error
        self.store_id: uuid.UUID | None = self.manifest.store_id if self.manifest is not None else None
        self.segments: list[SegmentView] = []
        self.strays: list[tuple[Path, str]] = []
        self._verdict: Verdict = None
        try:
            self._load()
        except FileNotFoundError:  # its owner has put a rewritten log in its place
            if not live:
                raise
            self.log_folder = log_folder(folder, self._files)
            self.segments, self.strays = [], []
            self._tidied.seen.clear()
            self._load()

    @property
    def history_id(self) -> uuid.UUID | None:
        """Which history the log tells; None if neither the MANIFEST nor the log says."""
        return self.store_id if self.manifest is None else self.manifest.history_id or self.store_id

    @property
    def tables_id(self) -> uuid.UUID | None:
        """What names the store's tables; of a copy that was never opened an id that no table has."""
        if self.manifest is None:
            return self.store_id
        with contextlib.suppress(OSError):  # no LOCK: it was never opened where it lies
            return self.manifest.placed(self.folder).tables_id or self.store_id
        return self.manifest.tables_id or self.store_id

    @property
    def epoch(self) -> int:
        """The highest that the MANIFEST or a segment speaks of."""
        epochs = [view.header.epoch for view in self.segments if view.header is not None]
        return max([*epochs, 0 if self.manifest is None else self.manifest.epoch])

    @property
    def log_bytes(self) -> int:
        """Size of the segments on disk."""
        return sum(view.size_bytes for view in self.segments)

    def listing(self) -> set[tuple[str, int]]:
        """The files of the log as they are now, by name and inode: another one than before means another log."""
        if not self._files.is_folder(self.log_folder):
            return set()
        return {(path.name, path.stat().st_ino) for path in self.log_folder.glob("*.log")}

    # -- the files

    def _load(self) -> bool:
        """Look for segments that were not seen before. Whether there were any."""
        names = self._files.names(self.log_folder) if self._files.is_folder(self.log_folder) else []
        loaded: list[SegmentView] = []
        for name in names:
            if not name.endswith(".log") or name in self._tidied.seen:
                continue
            self._tidied.seen.add(name)
            loaded.append(view_segment(self._files, self.log_folder / name))
        self._identify([view.header.store_id for view in loaded if view.header is not None])
        found = len(self.segments)
        # those that bear their own name first, so that of two copies that one counts
        for view in sorted(loaded, key=lambda view: view.path != view.right_path):
            if not view.first_lsn:
                self.strays.append((view.path, "it has neither the name nor the header of a segment"))
            elif view.header is not None and view.header.store_id != self.store_id:
                self.strays.append((view.path, f"the segment belongs to another store ({view.header.store_id})"))
            elif any(view.first_lsn == other.first_lsn for other in self.segments):
                self.strays.append((view.path, f"it is another copy of segment {view.right_path.name}"))
            else:
                view.looks_left = view.looks_left if self._live else 0
                self.segments.append(view)
        self.segments.sort(key=lambda view: view.first_lsn)
        self._drop_intruders()
        self._tidied.segments = {view.right_path.name: view.path for view in self.segments}
        return len(self.segments) > found

    def _drop_intruders(self) -> None:
        """A file without a readable header, between two segments that belong together, is none of them."""
        before = 0
        for view, following in list(pairwise(self.segments)):
            if view.header is not None:
                before = view.header.number
            elif following.header is not None and following.header.number == before + 1:
                self.segments.remove(view)
                self.strays.append((view.path, "its header is damaged, and nothing is missing where it stands"))

    def _identify(self, store_ids: Sequence[uuid.UUID]) -> None:
        """Whose log it is. Where no segment is of the MANIFEST's store, the MANIFEST is the wrong one, and not they."""
        if not store_ids or self.segments or self.store_id in store_ids:
            return
        (log_id, _), *_ = Counter(store_ids).most_common(1)
        if self.store_id is not None:
            reason = f"is of store {self.store_id}, and the log is of store {log_id}"
            self.manifest, self.manifest_error = None, ManifestError(self.folder / MANIFEST_NAME, reason)
        self.store_id = log_id

    # -- the verdict of recovery

    def verdict(self) -> Verdict:
        """What an open would say, were the MANIFEST in order, the strays gone and every segment under its name."""
        if self._verdict is None and self.store_id is not None and self.segments:
            self._verdict = self._judge(self.store_id)
        return self._verdict

    def _judge(self, store_id: uuid.UUID) -> Verdict:
        """The owner may rotate or write meanwhile: an error counts when it is found twice in the same place."""
        last: tuple[object, ...] | None = None
        while True:
            try:
                return verify_log(self._tidied, self.log_folder, store_id, 2**64 - 1, drop_damaged=False)
            except (LogCorruptError, UnknownEventError) as error:
                if not self._live or last == (error.path, error.byte_offset):
                    return error
                last = (error.path, error.byte_offset)
            time.sleep(LOOK_PAUSE_SECONDS)

    # -- what there is

    def items(self, *, from_lsn: int = 1, thorough: bool = False) -> Iterator[DecodedFrame | Damage]:
        """Every intact frame, and everything that is wrong, in the order of the log. Memory: a megabyte, or one frame.

        Args:
            from_lsn: segments that end before it are left out.
            thorough: in the end, whatever else an open would refuse.

        Raises:
            OSError: a file cannot be read.
        """
        reported: set[DamageKind] = set()
        for item in self._items(from_lsn):
            if isinstance(item, Damage):
                reported.add(item.kind)
            yield item
        if thorough and not reported & {DamageKind.EVENTS, DamageKind.SEAL, DamageKind.LATER_VERSION}:
            error = self.verdict()
            if isinstance(error, LogCorruptError):
                yield Damage(DamageKind.EVENTS, error.path, error.byte_offset, 0, error.lsn, None, error.reason)

    def _items(self, from_lsn: int) -> Iterator[DecodedFrame | Damage]:
        yield from self._check_manifest()
        if self.manifest is not None and self.manifest.has_log and not self.segments:
            first = self.log_folder / segment_name(1)
            yield Damage(DamageKind.EVENTS, first, 0, 0, 1, None, "the log is missing")
        for path, reason in self.strays:
            yield Damage(DamageKind.STRAY, path, 0, path.stat().st_size, None, None, reason)
        next_lsn = 1
        index = 0
        while index < len(self.segments):
            view = self.segments[index]
            following = self.segments[index + 1] if index + 1 < len(self.segments) else None
            if following is None or following.first_lsn > from_lsn or from_lsn == 1:
                yield from self._check_start(view, self.segments[index - 1] if index else None, next_lsn)
                try:
                    yield from walk_segment(self._files, view, following, self.verdict)
                except FileNotFoundError:  # its owner has rewritten the log
                    reason = "the segment went away while it was looked at"
                    yield Damage(DamageKind.EVENTS, view.path, 0, 0, None, None, reason)
            next_lsn = view.end.lsn if view.end is not None else (following or view).first_lsn
            index += 1
            # an owner makes the next segment before it seals this one
            if following is None and view.sealed and not self._load():
                reason = "the segment after this one is missing"
                yield Damage(DamageKind.EVENTS, view.path, view.size_bytes, 0, next_lsn, None, reason)

    def _check_manifest(self) -> Iterator[Damage]:
        path = self.folder / MANIFEST_NAME
        if (error := self.manifest_error) is not None:
            if self.segments or path.exists():
                later = "is of format version" in error.reason
                kind = DamageKind.LATER_VERSION if later else DamageKind.MANIFEST
                yield Damage(kind, path, 0, 0, None, None, error.reason)
            return
        manifest = Manifest.load(self.folder, self._files)  # the store may have been opened since
        if manifest is not None and manifest.epoch < self.epoch:
            reason = f"is of epoch {manifest.epoch}, and the log of epoch {self.epoch}: it is an older copy"
            yield Damage(DamageKind.MANIFEST, path, 0, 0, None, None, reason)

    def _check_start(self, view: SegmentView, before: SegmentView | None, next_lsn: int) -> Iterator[Damage]:
        """Compare a segment with the one before it, which ended before ``next_lsn``."""
        if view.right_path != view.path:
            reason = f"the segment was named {view.right_path.name}"
            yield Damage(DamageKind.NAME, view.path, 0, 0, None, None, reason)
        header = view.header
        if header is None or (before is not None and before.end is None):
            return  # its start, or the end before it, is reported as damage
        number = 1 if before is None else before.header.number + 1 if before.header is not None else header.number
        lost_lsns: tuple[int | None, int | None] = (None, None)
        if header.first_lsn > next_lsn:
            lost_lsns = (next_lsn, header.first_lsn - 1)
        if header.number > number:
            reason = f"this is segment {header.number}, and segment {number} should be here"
            yield Damage(DamageKind.EVENTS, view.path, 0, 0, *lost_lsns, reason)
        elif header.first_lsn != next_lsn:
            end, path = (before.end, before.path) if before is not None else (None, view.path)
            reason = f"LSN {next_lsn} should be here, and the next segment starts with LSN {header.first_lsn}"
            yield Damage(DamageKind.EVENTS, path, end.byte_offset if end is not None else 0, 0, *lost_lsns, reason)
        elif before is not None and before.header is not None and before.end is not None:
            end = before.end
            if (end.byte_offset, end.previous_checksum) != (header.previous_bytes, header.previous_checksum):
                reason = f"it does not follow {before.path.name}"
                yield Damage(DamageKind.EVENTS, view.path, 0, 0, None, None, reason)


class _CountingFiles(Files):
    """Tells how much was read."""

    def __init__(self, on_read: Callable[[int], None] | None) -> None:
        self._on_read = on_read

    def read(self, fd: int, count: int, byte_offset: int) -> bytes:
        data = super().read(fd, count, byte_offset)
        if self._on_read is not None:
            self._on_read(len(data))
        return data


class _TidiedFiles(_CountingFiles):
    """Shows the log with every segment under its name, and without strays."""

    def __init__(self, on_read: Callable[[int], None] | None) -> None:
        super().__init__(on_read)
        #: right name -> where it is
        self.segments: dict[str, Path] = {}
        #: names of all files that were looked at
        self.seen: set[str] = set()

    def names(self, path: Path) -> list[str]:
        # files that came since are the owner's new segments
        others = [name for name in super().names(path) if name not in self.seen]
        return sorted([*others, *self.segments])

    def open_read(self, path: Path) -> int:
        return super().open_read(self.segments.get(path.name, path))


def owner_pid(folder: Path) -> int | None:
    """The process that has the store in ``folder`` open; None if none has, or if the system does not say.

    Asks the system's list of locks (Linux) and does not try the lock: that could turn away a program that opens the
    store at the same moment.
    """
    try:
        inode = str((folder / "LOCK").stat().st_ino)
        locks = Path("/proc/locks").read_text()
        text = (folder / "LOCK").read_text().strip()
    except OSError:
        return None
    for line in locks.splitlines():
        fields = line.split()
        if "FLOCK" in fields and len(fields) >= 8 and fields[-3].rpartition(":")[2] == inode:
            return int(text) if text.isdigit() else int(fields[-4])
    return None
