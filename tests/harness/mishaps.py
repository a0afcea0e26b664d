"""What can happen to a store's files."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import msgspec

from pixelmemory.store.manifest import Manifest
from tests.harness.cli_tools import flip, frames, make_log, sample
from tests.harness.logs import segment_paths


def delete(number: int) -> Callable[[Path], None]:
    return lambda store: segment_paths(store)[number].unlink()


def _delete_all(store: Path) -> None:
    shutil.rmtree(store / "log")


def _foreign(store: Path) -> None:
    other = make_log(store.parent / "other", sample(5), store_id=uuid.uuid4())
    shutil.copy(segment_paths(other)[0], store / "log" / f"{10**6:020d}.log")


def _copied(store: Path) -> None:
    shutil.copy(segment_paths(store)[1], store / "log" / f"{10**6:020d}.log")


def _renamed(store: Path) -> None:
    segment_paths(store)[1].rename(store / "log" / f"{int(segment_paths(store)[1].stem) + 1:020d}.log")


def _swapped(store: Path) -> None:
    one, two = segment_paths(store)[1:3]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def _stray(store: Path) -> None:
    (store / "log" / "notes.log").write_bytes(b"x")


def _intruder(store: Path) -> None:
    (store / "log" / f"{int(segment_paths(store)[1].stem) - 1:020d}.log").write_bytes(b"x" * 500)


def _bad_seal(store: Path) -> None:
    path = segment_paths(store)[0]
    flip(path, path.stat().st_size - 1)


def _cut_short(store: Path) -> None:
    path = segment_paths(store)[0]
    path.write_bytes(path.read_bytes()[: frames(path)[3]])


def _manifest_damaged(store: Path) -> None:
    flip(store / "MANIFEST", 40)


def _manifest_missing(store: Path) -> None:
    (store / "MANIFEST").unlink()


def _manifest_of_another_store(store: Path) -> None:
    Manifest(store_id=uuid.uuid4(), epoch=9).save(store)


def _manifest_older(store: Path) -> None:
    manifest = Manifest.load(store)
    assert manifest is not None
    msgspec.structs.replace(manifest, epoch=0).save(store)


#: what is done to the store, and the kinds of damage that are found
MISHAPS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "first segment missing": (delete(0), ["events"]),
    "a segment missing": (delete(1), ["events"]),
    "last segment missing": (delete(-1), ["events"]),
    "the log missing": (_delete_all, ["events"]),
    "foreign segment": (_foreign, ["stray"]),
    "copied segment": (_copied, ["stray"]),
    "renamed segment": (_renamed, ["name"]),
    "swapped segments": (_swapped, ["name", "name"]),
    "stray file": (_stray, ["stray"]),
    "file without a header between segments": (_intruder, ["stray"]),
    "damaged seal": (_bad_seal, ["seal"]),
    "segment cut short": (_cut_short, ["events"]),
    "damaged MANIFEST": (_manifest_damaged, ["manifest"]),
    "missing MANIFEST": (_manifest_missing, ["manifest"]),
    "MANIFEST of another store": (_manifest_of_another_store, ["manifest"]),
    "older MANIFEST": (_manifest_older, ["manifest"]),
}


def later_version(store: Path) -> None:
    path = segment_paths(store)[0]
    data = bytearray(path.read_bytes())
    data[8] = 9
    data[124:128] = crc32(data[:124]).to_bytes(4, "little")
    path.write_bytes(data)


def later_manifest(store: Path) -> None:
    raw = b'{"store_id":"0192f0c8-7a3e-7cc2-98ab-1d2e3f405162","format_version":2}'
    (store / "MANIFEST").write_bytes(b'{"checksum":"crc32:%08x","manifest":%s}\n' % (crc32(raw), raw))
