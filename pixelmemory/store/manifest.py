"""MANIFEST: what the store is. One JSON document with a checksum, replaced atomically.

::

    {"checksum":"crc32:8b2f41d0","manifest":{"store_id":"0192...","format_version":1,"epoch":3,...}}

The checksum is of the bytes of the ``manifest`` object exactly as they stand.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes
from zlib import crc32

import msgspec

from pixelmemory.errors import ManifestError
from pixelmemory.faults import fault_point
from pixelmemory.log.file.files import Files, read_file, write_file
from pixelmemory.log.file.switch import log_folder
from pixelmemory.memory.erasure import Erasure

__all__ = ["MANIFEST_NAME", "Manifest", "Place"]

MANIFEST_NAME = "MANIFEST"
#: of the store as a whole: the log's format and what the manifest means
MANIFEST_FORMAT_VERSION = 1


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    checksum: str
    manifest: msgspec.Raw


class _Version(msgspec.Struct):
    format_version: int


class Place(msgspec.Struct, frozen=True):
    """Where a store lies, by which a copy of it is told from the store that was moved."""

    #: absolute, percent-encoded
    path: str
    #: of its LOCK
    device: int
    inode: int

    @classmethod
    def of(cls, folder: Path) -> Place:
        """The place of the store in ``folder``, whose LOCK exists."""
        status = os.stat(folder / "LOCK")
        return cls(quote_from_bytes(os.fsencode(os.path.abspath(folder))), status.st_dev, status.st_ino)

    def is_taken(self) -> bool:
        """Whether the store that this is the place of is still there."""
        try:
            status = os.stat(os.path.join(unquote_to_bytes(self.path), b"LOCK"))
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the store is. New fields need a default that means what their absence meant.

    Change a field with ``msgspec.structs.replace(manifest, epoch=...)`` and :meth:`save` the result.
    """

    store_id: uuid.UUID
    format_version: int = MANIFEST_FORMAT_VERSION
    #: increased at each open
    epoch: int = 0
    #: identifies the model that the store's vectors were made with; None before there is one
    embedding: str | None = None
    #: how messages name that model: nothing of this machine in it; None in a store that an earlier version wrote last
    embedding_label: str | None = None
    #: of those vectors; None where there are none
    dimensions: int | None = None
    #: the projection's layout, a value of ``Layout``
    layout: str = "per_namespace"
    #: the schema's fields that the tables were made with, name to type; empty without a schema, None where an earlier
    #: version wrote the store last
    schema: dict[str, str] | None = None
    #: the log's first segment was made: from then on a log without segments is a loss, and no new log
    has_log: bool = False
    #: when the store was created, microseconds since the epoch, UTC
    created_at_us: int = 0
    #: which history the log tells: a repair that took events out of it gives it another one, so that a projection of
    #: the old one is rebuilt; None is the history that began with the store
    history_id: uuid.UUID | None = None
    #: up to here events were removed from the log by an erase or a compaction: a projection whose checkpoint is older
    #: may have rows whose delete is gone, and is rebuilt
    rewritten_lsn: int = 0
    #: the erase that is not finished; None if none is open
    erasing: Erasure | None = None
    #: where the store lay when it was last opened
    place: Place | None = None
    #: names its folder in Pixeltable where it is a copy of another store, whose tables bear the id that both have
    tables_id: uuid.UUID | None = None

    def placed(self, folder: Path) -> Manifest:
        """This manifest, as that of the store in ``folder``: a copy of a store gets an id of its own for its tables.

        A store that was renamed or moved keeps its tables, and so does one that was restored where nothing is any more.
        """
        here, before = Place.of(folder), self.place
        if before is None or (before.device, before.inode) == (here.device, here.inode) or before.path == here.path:
            return msgspec.structs.replace(self, place=here)
        if not before.is_taken():
            return msgspec.structs.replace(self, place=here)
        return msgspec.structs.replace(self, place=here, tables_id=uuid.uuid4())

    @classmethod
    def load(cls, folder: Path, files: Files | None = None) -> Manifest | None:
        """The manifest of the store in ``folder``, or None if there is none.

        Raises:
            ManifestError: it is damaged, cannot be read, is of a later format version, or is missing beside a log.
        """
        files = files or Files()
        path = folder / MANIFEST_NAME
        try:
            try:
                data = read_file(files, path)
            except FileNotFoundError:
                if not _has_segments(files, folder):
                    return None
                raise ManifestError(path, "is missing, and the store has a log; restore it from a backup") from None
        except OSError as error:
            raise ManifestError(path, f"cannot be read: {error}") from error
        try:
            envelope = msgspec.json.decode(data, type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ManifestError(path, f"is damaged: {error}") from error
        raw = bytes(envelope.manifest)
        if envelope.checksum != _checksum(raw) or data != _encode(raw):
            raise ManifestError(path, "is damaged: it fails its checksum")
        try:
            version = msgspec.json.decode(raw, type=_Version).format_version
            if version != MANIFEST_FORMAT_VERSION:
                raise ManifestError(
                    path,
                    f"is of format version {version}; this version of pixelmemory reads {MANIFEST_FORMAT_VERSION}. "
                    "Open the store with the version that wrote it",
                )
            return msgspec.json.decode(raw, type=cls)
        except msgspec.DecodeError as error:
            raise ManifestError(path, f"is damaged: {error}") from error

    def save(self, folder: Path, files: Files | None = None, check_folder: Callable[[], None] = lambda: None) -> None:
        """Replace the manifest in ``folder``, which must exist: temporary file, sync, rename, sync of the folder.

        Args:
            folder: of the store.
            files: the file operations.
            check_folder: raises an OSError where ``folder`` is not the one that was opened; nothing is written then.

        Raises:
            ManifestError: it could not be written; the old one stands, or the new one.
        """
        files = files or Files()
        path = folder / MANIFEST_NAME
        temporary = folder / (MANIFEST_NAME + ".tmp")
        try:
            check_folder()
            write_file(files, temporary, _encode(msgspec.json.encode(self)), "manifest")
            files.rename(temporary, path)
            fault_point("manifest.after_rename")
            files.sync_folder(folder)
            fault_point("manifest.after_folder_sync")
        except OSError as error:
            raise ManifestError(path, f"cannot be written: {error}") from error


def _has_segments(files: Files, folder: Path) -> bool:
    log = log_folder(folder, files)
    return files.is_folder(log) and any(name.endswith(".log") for name in files.names(log))


def _checksum(raw: bytes) -> str:
    return f"crc32:{crc32(raw):08x}"


def _encode(raw: bytes) -> bytes:
    return b'{"checksum":"%s","manifest":%s}\n' % (_checksum(raw).encode(), raw)
