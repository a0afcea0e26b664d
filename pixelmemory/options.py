"""Every limit and every tunable, with its unit, validated in one place."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, StoreError, brief, type_name
from pixelmemory.paths import absolute_path

__all__ = ["Layout", "Options", "SyncMode"]


class SyncMode(enum.Enum):
    """When an append is acknowledged, and what it then survives."""

    #: After ``fdatasync`` of its bytes. Survives a kill of the process, a crash of the operating system and, where
    #: the device honours flushes, power loss.
    ALWAYS = "always"
    #: After the write; a flush follows at most ``sync_interval_seconds`` later. Survives a kill of the process; an
    #: operating-system crash or power loss may take the last interval.
    INTERVAL = "interval"
    #: After the write; the operating system flushes when it likes. Survives a kill of the process only.
    OS = "os"


class Layout(enum.Enum):
    """How namespaces map to tables."""

    #: Namespaces share a table until one of them has ``graph_rows_min`` rows, 10,000 at most, or its table is asked
    #: for: it then moves to a table of its own.
    AUTO = "auto"
    #: One table per namespace, created with its first memory.
    PER_NAMESPACE = "per_namespace"
    #: One table with a namespace column: for many thousands of small namespaces.
    SHARED = "shared"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a store is opened. Every field has a default that suits an agent on a laptop.

    Attributes:
        home: the folder that holds the stores; without it ``PIXELMEMORY_HOME``, else the user data folder of the
            platform
        sync_mode: when an append is acknowledged, and what it then survives
        sync_interval_seconds: longest time between flushes in ``SyncMode.INTERVAL``
        segment_bytes_max: size at which a segment of the log is closed, and the next one begun
        append_bytes_max: encoded size of one call (one ``add_entries``), and so of one frame
        buffer_bytes_max: encoded size of all calls that wait for the writer; a call beyond it waits for room
        tail_bytes_max: newest events kept decoded for the projector, so that it need not read them back
        drop_damaged_final_frame: drop a final frame of full length whose checksum fails (it may have been
            acknowledged); its bytes are kept in ``quarantine/``
        content_chars_max: characters of a content
        metadata_bytes_max: bytes of the JSON text of the metadata of one memory
        metadata_depth_max: levels of nesting of the metadata
        metadata_int_digits_max: decimal digits of one integer in the metadata
        namespace_chars_max: characters of a namespace
        memory_id_chars_max: characters of a memory id
        filter_nodes_max: nodes of one filter
        filter_depth_max: levels of nesting of one filter
        batch_events_max: events applied in one transaction
        batch_bytes_max: encoded bytes applied in one transaction (a single frame may exceed it)
        linger_seconds: how long the projector lets a batch gather while no reader waits; 0: not at all
        linger_seconds_max: the same while thousands of events a second come in
        lag_events_max: events that may be durable and not yet visible; a writer beyond it waits
        lag_timeout_seconds: how long such a writer waits before it gets ``WaitTimeoutError``
        memtable_bytes_max: bytes of durable events that are kept in memory for reads until the tables have them; a read
            of a namespace that has more waits for the tables
        retry_seconds_min: first pause between tries after an infrastructure error
        retry_seconds_max: longest pause between such tries
        layout: how namespaces map to tables
        graph_rows_min: rows from which a table's HNSW index is built; smaller tables are searched exactly
        rebuild: delete the projection and rebuild it from the log at open
        reembed: accept another embedding model than the store's, and embed every memory again at open
        vector_cache: keep vectors on disk by (model, content), so that a rebuild does not embed again
        wait_timeout_seconds: default of ``consistency=`` waits
        open_without_tables: open the store also where its tables cannot be built or reached: adds are taken, reads
            fail, health says why
        close_timeout_seconds: how long a close waits for the batch that is being applied
        read_timeout_seconds: how long one read may take in the database
        reader_threads_max: threads that read at the same time
        connections_max: connections to the database that the reads of all stores of this process have in use at the
            same time
        connection_idle_seconds: how long a connection is kept that nobody uses
        direct_sql: use prepared SQL on Pixeltable's store tables for hot reads; False forces Pixeltable's public API
        database_timeout_seconds: how long to wait for the database: for its start, here or in another process, and for
            a connection to it
        stop_database: stop the embedded PostgreSQL at the close of the store, if nobody else is connected; an open
            starts it again
        keep_pixeltable_http_server: keep the HTTP server that Pixeltable opens on loopback (it serves the whole file
            system to any local user)
        progress: show on stderr what takes long: a bar while a projection is rebuilt and, on a terminal after two
            seconds, what an open is doing and how far a close is

    Raises:
        InvalidArgumentError: a value out of its range.
        InvalidTypeError: a value of the wrong type.
    """

    # -- where
    home: str | os.PathLike[str] | None = None

    # -- the log
    sync_mode: SyncMode = SyncMode.ALWAYS
    sync_interval_seconds: float = 0.1
    segment_bytes_max: int = 64 * 1024 * 1024
    append_bytes_max: int = 64 * 1024 * 1024
    buffer_bytes_max: int = 128 * 1024 * 1024
    tail_bytes_max: int = 32 * 1024 * 1024
    drop_damaged_final_frame: bool = False

    # -- values
    content_chars_max: int = 10_000_000
    metadata_bytes_max: int = 1024 * 1024
    metadata_depth_max: int = 64
    metadata_int_digits_max: int = 1000
    namespace_chars_max: int = 255
    memory_id_chars_max: int = 1024
    filter_nodes_max: int = 1000
    filter_depth_max: int = 32

    # -- the projector
    batch_events_max: int = 2000
    batch_bytes_max: int = 16 * 1024 * 1024
    linger_seconds: float = 0.02
    linger_seconds_max: float = 1.0
    lag_events_max: int = 100_000
    lag_timeout_seconds: float = 600.0
    memtable_bytes_max: int = 64 * 1024 * 1024
    retry_seconds_min: float = 0.1
    retry_seconds_max: float = 5.0
    layout: Layout = Layout.AUTO
    graph_rows_min: int = 10_000
    rebuild: bool = False
    reembed: bool = False
    vector_cache: bool = True

    # -- reads
    wait_timeout_seconds: float = 60.0
    open_without_tables: bool = False
    close_timeout_seconds: float = 120.0
    read_timeout_seconds: float = 600.0
    reader_threads_max: int = 4
    connections_max: int = 16
    connection_idle_seconds: float = 30.0
    direct_sql: bool = True

    # -- Pixeltable
    database_timeout_seconds: float = 60.0
    stop_database: bool = False
    keep_pixeltable_http_server: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, kind in self.__annotations__.items():
            _check_field(name, getattr(self, name), kind)
        if self.retry_seconds_max < self.retry_seconds_min:
            raise InvalidArgumentError("retry_seconds_max", "must not be less than retry_seconds_min")
        if self.append_bytes_max > self.buffer_bytes_max:
            raise InvalidArgumentError("append_bytes_max", "must not be more than buffer_bytes_max")

    def home_path(self) -> Path:
        """The folder that holds the stores: ``home``, else ``PIXELMEMORY_HOME``, else the user's data folder.

        Absolute, with ``~`` expanded, so that it still means the same folder after the working directory has changed.

        Raises:
            StoreError: it cannot be a path; the message names the variable that it comes from.
        """
        if self.home is not None:
            return absolute_path(self.home, self.home_origin())
        if configured := os.environ.get("PIXELMEMORY_HOME"):
            return absolute_path(configured, self.home_origin())
        import platformdirs  # it warns on some systems; only where it is needed

        try:
            folder = platformdirs.user_data_dir("pixelmemory")
        except RuntimeError as error:  # older versions of it return a path that begins with ~
            raise StoreError(f"{self.home_origin()} cannot be used: {error}") from error
        return absolute_path(folder, self.home_origin())

    def home_origin(self) -> str:
        """Where :meth:`home_path` comes from, for messages."""
        if self.home is not None:
            return "Options.home"
        if os.environ.get("PIXELMEMORY_HOME"):
            return "PIXELMEMORY_HOME"
        return "the user data folder (set Options.home or PIXELMEMORY_HOME to choose another)"


#: smallest accepted value of each number, where it is not 1
_MINIMUM: dict[str, float] = {
    "sync_interval_seconds": 0.001,
    "segment_bytes_max": 4096,
    "append_bytes_max": 1024,
    "tail_bytes_max": 0,
    "linger_seconds": 0.0,
    "linger_seconds_max": 0.0,
    "lag_timeout_seconds": 0.0,
    "retry_seconds_min": 0.001,
    "retry_seconds_max": 0.001,
    "graph_rows_min": 0,
    "wait_timeout_seconds": 0.0,
    "close_timeout_seconds": 0.0,
    "read_timeout_seconds": 0.001,
    "connection_idle_seconds": 0.1,
    "database_timeout_seconds": 0.0,
}

#: largest accepted value of each number that has one
_MAXIMUM: dict[str, int] = {
    "namespace_chars_max": 255,
    # Python has limits of its own beyond these: of recursion, and of the digits it reads as an integer.
    "metadata_depth_max": 256,
    "filter_depth_max": 128,
    "metadata_int_digits_max": 4299,
}


def _check_field(name: str, value: object, kind: str) -> None:
    if kind == "bool":
        if not isinstance(value, bool):
            raise InvalidTypeError(name, f"must be a bool, not {type_name(value)}")
    elif kind in ("int", "float"):
        number = int if kind == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, number):
            raise InvalidTypeError(name, f"must be {'an int' if kind == 'int' else 'a number'}, not {type_name(value)}")
        minimum = _MINIMUM.get(name, 1)
        if not minimum <= value < float("inf"):
            raise InvalidArgumentError(name, f"must be a finite number of at least {minimum:g}, not {brief(value)}")
        if value > (maximum := _MAXIMUM.get(name, value)):
            raise InvalidArgumentError(name, f"must not be more than {maximum}")
    elif kind in ("SyncMode", "Layout"):
        expected = {"SyncMode": SyncMode, "Layout": Layout}[kind]
        if not isinstance(value, expected):
            raise InvalidTypeError(name, f"must be a {kind}, not {type_name(value)}")
    elif value is not None and not isinstance(value, (str, os.PathLike)):
        raise InvalidTypeError(name, f"must be a path, not {type_name(value)}")
