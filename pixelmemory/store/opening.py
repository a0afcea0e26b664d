"""Opening a store: every part in its order, and all of them closed again where one fails.

Blocking; runs on a worker thread. The order matters: the lock first (a second opener gets its error at once), then
the model and Pixeltable (a store is not made for what does not load or start), the log (recovered before anything reads
it), and the projection.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from pixelmemory.embedding import (
    EmbeddingConfig,
    VectorCache,
    embedding_label,
    open_embedder,
    parse_embedding_config,
    tell_apart,
)
from pixelmemory.embedding.cached import ContentVectors
from pixelmemory.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    ModelMismatchError,
    ProjectionUnavailableError,
    StoreError,
    shortened,
    type_name,
)
from pixelmemory.installed import check_installed
from pixelmemory.log.contract import Append, EventLog
from pixelmemory.log.file.file_log import FileLog
from pixelmemory.log.file.files import Files, ensure_folder
from pixelmemory.log.file.segment import FORMAT_VERSION
from pixelmemory.memory.rules import Rules
from pixelmemory.memory.schema import parse_schema
from pixelmemory.options import Options
from pixelmemory.store.erase import Eraser
from pixelmemory.store.host import as_unavailable, function_embedder, keep_database, open_host, start_host
from pixelmemory.store.lock import StoreLock
from pixelmemory.store.maintenance import Maintenance
from pixelmemory.store.manifest import Manifest
from pixelmemory.store.opening_line import OpeningLine
from pixelmemory.store.store import OpenStore
from pixelmemory.store.stores import check_not_destroyed, drop_temporary

if TYPE_CHECKING:
    from pixelmemory.projection.projection import Projection

__all__ = ["check_name", "open_store"]

_logger = logging.getLogger("pixelmemory")

#: which log a store has: the one place where it is chosen. Called as :meth:`FileLog.open` is
open_log: Callable[..., EventLog] = FileLog.open

#: what the manifest says of a store without semantic search
NO_EMBEDDING = "none"


def check_name(name: object) -> str:
    """A store's name: 1 to 64 letters, digits, ``_``, ``-``, ``.``, beginning with a letter or digit.

    Raises:
        InvalidTypeError, InvalidArgumentError: anything else; it becomes a folder's name.
    """
    if not isinstance(name, str):
        raise InvalidTypeError("name", f"must be a str, not {type_name(name)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise InvalidArgumentError(
            "name",
            "must be 1 to 64 ASCII letters, digits, '_', '-' or '.', beginning with a letter or digit, "
            f"not {name[:80]!r}",
        )
    return name


def open_store(
    name: object,
    schema: object,
    embedding_config: object,
    options: Options,
    *,
    on_commit: Callable[[Sequence[Append]], None],
    on_watermark: Callable[[int], None],
    folder: Path | None = None,
    check: Callable[[], None] = lambda: None,
    temporary: bool = False,
) -> OpenStore:
    """Open, or make, the store ``name``. The projector is not started yet.

    Args:
        folder: of the store, absolute. Default: in the home that ``options`` name.
        check: called between steps and while waiting; what it raises ends the open.
        temporary: ``folder``'s parent and the tables are the store's alone, and go with its close.

    Raises:
        InvalidArgumentError, InvalidTypeError: a bad argument; nothing was touched.
        PackageConflictError: another package has the same import name; asked at the first open of a process.
        StoreLockedError: the store is open elsewhere.
        StoreError: its folder cannot be made or used.
        ManifestError, LogError: its files are damaged.
        ModelLoadError, ModelMismatchError: its model.
        ProjectionError: its tables.
    """
    check_installed()
    checked_name = check_name(name)
    parsed_schema = parse_schema(schema)
    config = parse_embedding_config(embedding_config)
    folder = folder or options.home_path() / checked_name
    files = Files()
    with OpeningLine(checked_name, shown=options.progress) as line, ExitStack() as stack:
        store = OpenStore(checked_name, folder, options, stack)
        store.schema = parsed_schema
        store.is_temporary = temporary
        if temporary:  # the last step of its end, also where it cannot be opened
            stack.callback(shutil.rmtree, folder.parent, ignore_errors=True)
        try:
            ensure_folder(files, folder)
            if folder.stat().st_mode & 0o077:  # a copy that was made with other modes, say
                folder.chmod(0o700)
            lock = StoreLock.acquire(folder / "LOCK")
        except OSError as error:
            where = f"{shortened(str(folder), 300)}, in {options.home_origin()},"
            raise StoreError(f"the store's folder {where} cannot be used: {error}") from error
        stack.callback(lock.release)
        files.hold_folder(folder, lock.folder_fd)
        stack.callback(files.release_folder)
        check_not_destroyed(folder, checked_name)
        manifest = Manifest.load(folder, files)
        if config is not None and (model := config.model_id or config.name) is not None:
            line.doing(f"loading the model {model}")
        embedding, label = _open_embedding(store, config)
        reembedded = _check_embedding(manifest, embedding, label, options)
        if reembedded and store.embedder is None and store.dimensions is not None:
            raise InvalidArgumentError("embedding_config", "names no model, and reembed needs one to embed with")
        check()
        line.doing("starting the database")
        stack.enter_context(keep_database(stop=options.stop_database, check=check))
        missing = _start_host(store.dimensions, options, check)
        fields = {} if store.schema is None else store.schema.fields
        manifest = _renewed(manifest, embedding, label, store.dimensions, fields, options).placed(folder)
        manifest.save(folder, files, lock.check_place)
        store.log = open_log(
            folder,
            store_id=manifest.store_id,
            epoch=manifest.epoch,
            options=options,
            on_commit=on_commit,
            files=files,
            has_log=manifest.has_log,
            check_folder=lock.check_place,
        )
        stack.callback(store.log.close)
        manifest = _saved(manifest, folder, files, lock.check_place, has_log=True)
        if temporary:  # once the projection is closed
            stack.callback(drop_temporary, checked_name, manifest)
        store.last_logged_us = store.log.last_logged_at_ns // 1000
        cache = _open_cache(store, embedding, options, lock.check_place)
        check()
        line.doing("opening the tables")
        if missing is None:
            missing = _open_projection(
                store, manifest, embedding, options, cache, on_watermark, options.rebuild or reembedded
            )
        if missing is None:  # only now do the tables have it
            manifest = _saved(manifest, folder, files, lock.check_place, schema=fields)
        else:
            _go_without(store, missing)
        store.rules = Rules(options, store.schema, store.dimensions, store.embedder is not None)
        store.maintenance = Maintenance(
            *(folder, manifest),
            log=store.log,
            projection=store.projection,
            cache=cache,
            files=files,
            check_folder=lock.check_place,
        )
        store.eraser = Eraser(store.maintenance)
        stack.callback(store.maintenance.close)
        if missing is None:
            store.eraser.resume()
        check()
        store._stack = stack.pop_all()
    return store


def _open_embedding(store: OpenStore, config: EmbeddingConfig | None) -> tuple[str, str]:
    """Load the model, and return the text that identifies it and the one that names it."""
    if config is None:
        return NO_EMBEDDING, embedding_label(NO_EMBEDDING, None)
    store.embedder = open_embedder(config, function_embedder)
    if store.embedder is not None:
        store.dimensions = store.embedder.dimensions
        return store.embedder.fingerprint, store.embedder.label
    store.dimensions = config.dimensions
    given = f"given:{config.dimensions}"
    return given, embedding_label(given, None)


def _check_embedding(manifest: Manifest | None, embedding: str, label: str, options: Options) -> bool:
    """Whether every memory has to be embedded again, as the user asked.

    Raises:
        ModelMismatchError: it would have to be, and the user did not ask.
    """
    if manifest is None or manifest.embedding in (None, embedding):
        return False
    stored = str(manifest.embedding)
    names = tell_apart((stored, manifest.embedding_label), (embedding, label))
    if not options.reembed:
        raise ModelMismatchError(stored, embedding, *names)
    _logger.warning("re-embedding the store: %s becomes %s", *names)
    return True


def _renewed(
    manifest: Manifest | None,
    embedding: str,
    label: str,
    dimensions: int | None,
    fields: dict[str, str],
    options: Options,
) -> Manifest:
    """The manifest of this open: made if there is none, and with the next epoch.

    The schema of one that exists stays for now: it says how its tables were made.
    """
    if manifest is None:
        manifest = Manifest(store_id=uuid.uuid4(), created_at_us=time.time_ns() // 1000, schema=fields)
    return msgspec.structs.replace(
        manifest,
        format_version=FORMAT_VERSION,
        epoch=manifest.epoch + 1,
        embedding=embedding,
        embedding_label=label,
        dimensions=dimensions,
        layout=options.layout.value,
    )


def _saved(
    manifest: Manifest, folder: Path, files: Files, check_folder: Callable[[], None], **changes: Any
) -> Manifest:
    """``manifest`` with ``changes``, written if they change anything."""
    changed = msgspec.structs.replace(manifest, **changes)
    if changed != manifest:
        changed.save(folder, files, check_folder)
    return changed


def _start_host(
    dimensions: int | None, options: Options, check: Callable[[], None]
) -> ProjectionUnavailableError | None:
    """None; or why the tables' host does not start, if the store is opened all the same."""
    try:
        start_host(dimensions, options, check)
    except ProjectionUnavailableError as error:
        if not options.open_without_tables:
            raise
        return error
    return None


def _go_without(store: OpenStore, cause: ProjectionUnavailableError) -> None:
    """Let the store take adds although it has no tables, as the user asked."""
    from pixelmemory.projection.missing import MissingProjection

    _logger.error("the store %s is open without its tables: %s", store.name, cause)
    store.projection = cast("Projection", MissingProjection(cause))
    store.query = store.projection.query


def _open_cache(
    store: OpenStore, embedding: str, options: Options, check_folder: Callable[[], None]
) -> VectorCache | None:
    if store.embedder is None or not options.vector_cache:
        return None
    cache = VectorCache(store.folder / "vectors", embedding, store.embedder.dimensions, check_folder=check_folder)
    store._stack.callback(cache.close)
    return cache


def _open_projection(
    store: OpenStore,
    manifest: Manifest,
    embedding: str,
    options: Options,
    cache: VectorCache | None,
    on_watermark: Callable[[int], None],
    rebuild: bool,
) -> ProjectionUnavailableError | None:
    """Open the projection; or return why it cannot be, if the store is opened all the same."""
    from pixelmemory.projection.contract import ProjectionState
    from pixelmemory.projection.projection import Projection

    state = ProjectionState(
        store_id=str(manifest.history_id or manifest.store_id),
        layout=options.layout.value,
        embedding=embedding,
        dimensions=store.dimensions,
        schema=store.schema.fingerprint if store.schema is not None else None,
    )
    contents = store.contents = None if store.embedder is None else ContentVectors(store.embedder, cache)
    embed_texts = None if contents is None else contents.embed
    try:
        store.projection = Projection.open(
            open_host(
                store.name,
                manifest.tables_id or manifest.store_id,
                state,
                schema=store.schema,
                embed_texts=embed_texts,
                options=options,
            ),
            state,
            log=store.log,
            schema=store.schema,
            embed_texts=embed_texts,
            embed_ahead=None if contents is None else contents.embed_ahead,
            truncated_texts=None if store.embedder is None else store.embedder.truncated,
            options=options,
            rebuild=rebuild,
            recorded_fields=manifest.schema,
            rewritten_lsn=manifest.rewritten_lsn,
            on_watermark=on_watermark,
        )
    except Exception as error:
        unavailable = as_unavailable(error)
        if unavailable is None:
            raise
        if not options.open_without_tables:
            raise unavailable from error
        return unavailable
    store._stack.callback(store.projection.close)
    store.query = store.projection.query
    return None
