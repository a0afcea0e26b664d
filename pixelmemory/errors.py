"""Every error that Pixelmemory raises, as one tree.

::

    PixelmemoryError
     |- InvalidArgumentError (ValueError)      a value that cannot be accepted
     |   |- InvalidFilterError                 a filter that does not parse
     |   |- SchemaViolationError               metadata that breaks the store's schema
     |   |- LimitExceededError                 a value over a stated limit
     |   '- MemoryExistsError                  an id that is already taken
     |- InvalidTypeError (TypeError)           an argument of the wrong type
     |- StoreError                             the store as a whole
     |   |- StoreLockedError                   another process (or handle) owns it
     |   |- StoreClosedError                   used after close
     |   |- StoreForkedError                   used in a child after a fork
     |   |- WrongThreadError                   used from its own event loop's thread, or another loop
     |   |- PackageConflictError               another package named pixelmemory is installed
     |   '- ManifestError                      MANIFEST missing, damaged or of another format
     |- LogError                               the write-ahead log
     |   |- LogCorruptError                    damage: segment, byte offset, LSN
     |   |- UnknownEventError                  an event type this version does not know
     |   |- LogWriteError                      a write that definitely recorded nothing
     |   |- UnknownOutcomeError                a write that may or may not be recorded
     |   '- LogPoisonedError                   refused after a failed flush, until reopened
     |- EmbeddingError                         the model
     |   |- UnembeddableTextError              one text has no usable vector; says which
     |   |- ModelLoadError                     cannot be loaded; says the remedy
     |   '- ModelMismatchError                 another model than the store's
     |- ProjectionError                        the tables in Pixeltable
     |   |- ProjectionMismatchError            made with another layout or schema
     |   |- CheckpointAheadError               a checkpoint beyond the end of the log
     |   '- ProjectionUnavailableError         the database or the projector is down
     '- WaitTimeoutError (TimeoutError)        a wait for an LSN, or for room, that ran out

Errors carry their data as attributes and build their own message.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "CheckpointAheadError",
    "EmbeddingError",
    "InvalidArgumentError",
    "InvalidFilterError",
    "InvalidTypeError",
    "LimitExceededError",
    "LogCorruptError",
    "LogError",
    "LogPoisonedError",
    "LogWriteError",
    "ManifestError",
    "MemoryExistsError",
    "ModelLoadError",
    "ModelMismatchError",
    "PackageConflictError",
    "PixelmemoryError",
    "ProjectionError",
    "ProjectionMismatchError",
    "ProjectionUnavailableError",
    "SchemaViolationError",
    "StoreClosedError",
    "StoreError",
    "StoreForkedError",
    "StoreLockedError",
    "UnavailableCause",
    "UnembeddableTextError",
    "UnknownEventError",
    "UnknownOutcomeError",
    "WaitTimeoutError",
    "WrongThreadError",
]


def type_name(value: object) -> str:
    """The type of ``value`` as a message names it: with its module unless it is built in, since ``numpy.bool`` and
    ``bool`` are not one type. None is ``None``."""
    kind = type(value)
    if value is None:
        return "None"
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def brief(value: object) -> str:
    """``value`` as a message shows it: its repr, shortened; never fails, however large or odd ``value`` is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - such as an integer of more digits than Python writes out
        text = f"a value of type {type_name(value)}"
    return shortened(text, 100)


def shortened(text: str, chars_max: int) -> str:
    """``text`` in at most ``chars_max`` characters, with those escaped that a terminal or a log would act upon."""
    half = (chars_max - 3) // 2
    if len(text) > chars_max:
        text = f"{text[:half]}...{text[-half:]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


#: what a caller's text may take of a message, of the place and of the reason
_FIELD_CHARS_MAX, _REASON_CHARS_MAX = 300, 1000


class PixelmemoryError(Exception):
    """Base of every error raised by this package. Each can be copied and pickled, with its attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # the arguments of a class are not those of its base, which Exception's own way would call it with
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[PixelmemoryError], args: tuple[Any, ...], attributes: dict[str, Any]) -> PixelmemoryError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


E = TypeVar("E", bound=PixelmemoryError)


def copy_of(error: E) -> E:
    """Another instance of ``error``, for one of several who wait: a traceback belongs to one raise.

    The same class, message and attributes, whatever the class takes to be made.
    """
    return copy.copy(error)


class InvalidArgumentError(PixelmemoryError, ValueError):
    """A value that cannot be accepted. Raised before anything is logged.

    Attributes:
        field: what was wrong, as the caller names it, such as ``content`` or ``entries[3].metadata.tags[0]``.
        reason: why, as a clause that follows the field's name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{shortened(field, _FIELD_CHARS_MAX)} {shortened(reason, _REASON_CHARS_MAX)}")
        self.field = field
        self.reason = reason


class InvalidFilterError(InvalidArgumentError):
    """A ``metadata_filter`` that does not parse: an unknown operator, a wrong operand, a bad path."""


class SchemaViolationError(InvalidArgumentError):
    """Metadata that breaks the schema the store was opened with."""


class LimitExceededError(InvalidArgumentError):
    """A value over one of the limits in :class:`pixelmemory.Options`."""


class MemoryExistsError(InvalidArgumentError):
    """An id given to add that the namespace already holds (or that stands twice in one call).

    A retry of an add whose outcome was unknown is therefore safe: this error says that it was recorded.

    Attributes:
        memory_id: the id; the first of them where an add of several names more.
        memory_ids: every id of the call that exists.
        namespace: where it exists.
    """

    def __init__(
        self, memory_id: str, namespace: str, field: str = "memory_id", memory_ids: Sequence[str] | None = None
    ) -> None:
        ids = [memory_id] if memory_ids is None else list(memory_ids)
        others = f", and so do {len(ids) - 1} more of the call's ids" if len(ids) > 1 else ""
        super().__init__(
            field,
            f"{memory_id!r} already exists in namespace {namespace!r}{others}. Pass if_exists='ignore' to keep what is "
            "there, or if_exists='replace'",
        )
        self.memory_id = memory_id
        self.memory_ids = ids
        self.namespace = namespace


class InvalidTypeError(PixelmemoryError, TypeError):
    """An argument of the wrong type. Raised before anything is logged.

    Attributes:
        field: as in :class:`InvalidArgumentError`.
        reason: why, as a clause that follows the field's name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{shortened(field, _FIELD_CHARS_MAX)} {shortened(reason, _REASON_CHARS_MAX)}")
        self.field = field
        self.reason = reason


class StoreError(PixelmemoryError):
    """The store as a whole cannot be used as asked."""


class StoreLockedError(StoreError):
    """Another process has the store open; or this one has, in another event loop or with other arguments.

    Attributes:
        path: the lock's path, or the name of the projection that is in use.
        pid: the owner's process id, or None where it cannot be read.
        how: for an owner in this process, how it differs, as a clause; else None.
    """

    def __init__(self, path: Path | str, pid: int | None, how: str | None = None) -> None:
        if how is not None:
            message = f"the store is already open in this process (pid {pid}), {how} (lock: {path}). Use the handle "
            message += "that has it open, or close that first"
        else:
            owner = f"process {pid}" if pid is not None else "another process"
            message = f"the store is already open in {owner} (lock: {path}). Only one process can open a store: close "
            message += "it there, or open another store by another name or home"
        super().__init__(message)
        self.path = path
        self.pid = pid
        self.how = how


class StoreClosedError(StoreError):
    """The handle was closed, or never opened."""


class StoreForkedError(StoreError):
    """The handle came through a fork; only the process that opened it may use it."""


class WrongThreadError(StoreError):
    """A call from the store's own thread, where it would deadlock, or from another event loop than it was opened in."""


class PackageConflictError(StoreError):
    """The distribution ``pixelmemory`` is installed, another project's, beside ``pixelmemory-engine``.

    Both put files into one folder, so that whichever was installed last has replaced files of the other.

    Attributes:
        version: of that distribution.
        path: where it is installed.
    """

    def __init__(self, version: str, path: Path) -> None:
        super().__init__(
            f"another project's package 'pixelmemory' {version} is installed in {path}, and has the same import name "
            "as this one, 'pixelmemory-engine': files of the two replace each other. Run 'pip uninstall pixelmemory', "
            "then install pixelmemory-engine again (pip install --force-reinstall --no-deps, with its wheel or clone), "
            "or use a virtual environment for each"
        )
        self.version = version
        self.path = path


class ManifestError(StoreError):
    """The MANIFEST is missing, damaged, or of a format this version does not read.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class LogError(PixelmemoryError):
    """The write-ahead log."""


class LogCorruptError(LogError):
    """Damage in the log. The open stops; nothing is dropped.

    Attributes:
        path: the segment.
        byte_offset: where in it the damage was found.
        lsn: the first LSN that is affected, or None where it cannot be known.
        reason: what was found.
    """

    def __init__(self, path: Path, byte_offset: int, lsn: int | None, reason: str) -> None:
        at = f", LSN {lsn}" if lsn is not None else ""
        super().__init__(f"the log is damaged: {path}, byte {byte_offset}{at}: {reason}. Nothing was changed")
        self.path = path
        self.byte_offset = byte_offset
        self.lsn = lsn
        self.reason = reason


class UnknownEventError(LogError):
    """An event type that this version does not know: the log was written by a later one. Never skipped.

    Attributes:
        type_code: the record's type.
        path, byte_offset, lsn: where it stands.
    """

    def __init__(self, type_code: int, path: Path, byte_offset: int, lsn: int) -> None:
        super().__init__(
            f"unknown event type {type_code} at LSN {lsn} ({path}, byte {byte_offset}): "
            "the log was written by a later version of pixelmemory; upgrade to read it"
        )
        self.type_code = type_code
        self.path = path
        self.byte_offset = byte_offset
        self.lsn = lsn


class LogWriteError(LogError):
    """A write that failed with a definite outcome: nothing of it is recorded (a full disk, say). Later writes are
    tried again."""


class UnknownOutcomeError(LogError):
    """A write that may or may not be recorded: its flush failed. Reopen the store; a retry with the same id is safe."""


class LogPoisonedError(LogError):
    """A write refused because an earlier flush failed. Reads go on; reopen the store to write again."""


class EmbeddingError(PixelmemoryError):
    """The embedding model failed."""


class UnembeddableTextError(EmbeddingError):
    """One text has no usable vector, however often it is tried: the fault is the text's and the model's together.

    Attributes:
        index: the text's place in the list that was given.
        reason: why, as a clause.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"text {index} cannot be embedded: {reason}")
        self.index = index
        self.reason = reason


class ModelLoadError(EmbeddingError):
    """The model cannot be loaded. The message names the remedy.

    Attributes:
        model: the id or path that was asked for.
    """

    def __init__(self, model: str, reason: str, remedy: str) -> None:
        super().__init__(f"the embedding model {model!r} cannot be loaded: {reason}. {remedy}")
        self.model = model
        self.reason = reason
        self.remedy = remedy


class ModelMismatchError(EmbeddingError):
    """The store was written with another embedding model.

    Attributes:
        stored: the fingerprint that the store holds.
        given: the fingerprint of the model it was opened with.
        stored_model, given_model: the two as the message names them: the fingerprint where no name is known.
    """

    def __init__(
        self, stored: str, given: str, stored_model: str | None = None, given_model: str | None = None
    ) -> None:
        self.stored = stored
        self.given = given
        self.stored_model = stored if stored_model is None else stored_model
        self.given_model = given if given_model is None else given_model
        super().__init__(
            f"the store was made with {self.stored_model}, and was opened with {self.given_model}. Open it with the "
            "same model, or re-embed every memory with the new one: pass options=Options(reembed=True) once"
        )


class ProjectionError(PixelmemoryError):
    """The tables in Pixeltable."""


class CheckpointAheadError(ProjectionError):
    """The projection has applied events that the log does not hold: the log was replaced by an older copy.

    Attributes:
        checkpoint_lsn: what the projection says.
        durable_lsn: the last LSN of the log.
    """

    def __init__(self, checkpoint_lsn: int, durable_lsn: int) -> None:
        super().__init__(
            f"the projection's checkpoint is LSN {checkpoint_lsn}, and the log ends at LSN {durable_lsn}: the log is "
            "older than its projection. Restore the newer log, or rebuild the projection from this one: pass "
            "options=Options(rebuild=True) once"
        )
        self.checkpoint_lsn = checkpoint_lsn
        self.durable_lsn = durable_lsn


class ProjectionMismatchError(ProjectionError):
    """The projection was made with another layout or schema than the store is opened with.

    Attributes:
        differences: what differs, for a person.
        stored_fields: the schema's fields that the tables were made with, name to type; None where they are not known
            (an earlier version wrote the store last).
        given_fields: those that the store was opened with.
    """

    def __init__(
        self,
        differences: str,
        stored_fields: Mapping[str, str] | None = None,
        given_fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            f"the store's tables do not fit what it was opened with: {differences}. Open the store as before, or "
            "rebuild its tables from the log: pass options=Options(rebuild=True) once (columns and rows that were "
            "added to the tables directly are lost)"
        )
        self.differences = differences
        self.stored_fields = stored_fields
        self.given_fields = given_fields


class UnavailableCause(enum.Enum):
    """Why the tables cannot be used."""

    #: the database, or Pixeltable, does not start
    NOT_STARTED = "not started"
    #: the database cannot be reached, or failed during a call
    DATABASE_DOWN = "database down"
    #: no connection is left, of the server's or of this process's
    NO_CONNECTION = "no connection"
    #: the database did not answer in time
    TIMEOUT = "timeout"
    #: a table, column or index of ours is gone
    TABLE_GONE = "table gone"
    #: the tables refuse every row
    ROWS_REFUSED = "rows refused"
    #: the tables could not be built from the log, or not yet
    NOT_BUILT = "not built"
    #: the projector has stopped: what is logged does not become visible until the store is opened again
    PROJECTOR_STOPPED = "projector stopped"
    #: the store was opened without its tables, as ``Options.open_without_tables`` allows
    WITHOUT_TABLES = "without tables"


class ProjectionUnavailableError(ProjectionError):
    """The tables cannot be used at the moment. The log goes on; the message says what to do.

    Attributes:
        cause: why.
    """

    def __init__(self, message: str, cause: UnavailableCause) -> None:
        super().__init__(message)
        self.cause = cause


class WaitTimeoutError(PixelmemoryError, TimeoutError):
    """A wait that ran out: for an LSN to become visible, or for the projector to make room.

    Attributes:
        lsn: what was waited for.
        watermark: the last LSN that is visible.
        timeout_seconds: how long was waited.
        cause: what keeps the projector, where it is known.
    """

    def __init__(self, lsn: int, watermark: int, timeout_seconds: float, cause: str | None = None) -> None:
        super().__init__(
            f"LSN {lsn} was not visible after {timeout_seconds:g} s: the projection is at LSN {watermark}, "
            f"{lsn - watermark} events behind" + (f"; {cause}" if cause else "")
        )
        self.lsn = lsn
        self.watermark = watermark
        self.timeout_seconds = timeout_seconds
        self.cause = cause
