from __future__ import annotations

import json
import uuid
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

from pixelmemory import ManifestError
from pixelmemory.store.manifest import Manifest
from tests.harness.log_tools import FailingFiles

MANIFEST = Manifest(
    store_id=uuid.UUID(int=77),
    epoch=3,
    embedding="e5:abc",
    embedding_label="an e5 (384 dimensions)",
    dimensions=384,
    layout="shared",
    schema={"year": "int"},
    created_at_us=1_700_000,
)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    assert Manifest.load(tmp_path) is None
    MANIFEST.save(tmp_path)
    assert Manifest.load(tmp_path) == MANIFEST
    newer = msgspec.structs.replace(MANIFEST, epoch=4, embedding=None, dimensions=None)
    newer.save(tmp_path)
    assert Manifest.load(tmp_path) == newer
    assert [p.name for p in tmp_path.iterdir()] == ["MANIFEST"]
    assert (tmp_path / "MANIFEST").stat().st_mode & 0o777 == 0o600


def test_every_flipped_bit_and_every_cut_is_seen(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path)
    path = tmp_path / "MANIFEST"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ManifestError):
            Manifest.load(tmp_path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ManifestError) as caught:
            Manifest.load(tmp_path)
        assert caught.value.path == path
    path.write_bytes(data + b" ")
    with pytest.raises(ManifestError):
        Manifest.load(tmp_path)


def write(folder: Path, fields: dict[str, object]) -> None:
    raw = json.dumps(fields).encode()
    (folder / "MANIFEST").write_bytes(b'{"checksum":"crc32:%08x","manifest":%s}\n' % (crc32(raw), raw))


def test_a_later_format_version_is_refused_by_number(tmp_path: Path) -> None:
    write(tmp_path, {"format_version": 2, "whatever": [1]})
    with pytest.raises(ManifestError, match="format version 2"):
        Manifest.load(tmp_path)


def test_fields_that_a_later_minor_version_added_are_let_be(tmp_path: Path) -> None:
    write(tmp_path, {"store_id": str(uuid.UUID(int=5)), "format_version": 1, "new": True})
    assert Manifest.load(tmp_path) == Manifest(store_id=uuid.UUID(int=5))


def test_a_manifest_of_an_earlier_version_names_no_model_and_no_fields(tmp_path: Path) -> None:
    write(tmp_path, {"store_id": str(uuid.UUID(int=5)), "format_version": 1, "embedding": "given:3", "dimensions": 3})
    manifest = Manifest.load(tmp_path)
    assert manifest is not None
    assert (manifest.embedding_label, manifest.schema) == (None, None)


def test_fields_of_a_wrong_type_are_damage(tmp_path: Path) -> None:
    write(tmp_path, {"store_id": "no uuid", "format_version": 1})
    with pytest.raises(ManifestError, match="damaged"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("operation", ["open_new", "write", "sync", "rename", "sync_folder"])
def test_a_save_that_fails_leaves_the_old_manifest_or_the_new_one(tmp_path: Path, operation: str) -> None:
    MANIFEST.save(tmp_path)
    newer = msgspec.structs.replace(MANIFEST, epoch=4)
    files = FailingFiles()
    files.fail[operation] = OSError(28, "No space left on device")
    with pytest.raises(ManifestError, match="No space left"):
        newer.save(tmp_path, files)
    assert Manifest.load(tmp_path) == (newer if operation == "sync_folder" else MANIFEST)
    newer.save(tmp_path)
    assert Manifest.load(tmp_path) == newer


def test_the_order_of_a_save_is_what_makes_it_atomic(tmp_path: Path) -> None:
    files = FailingFiles()
    MANIFEST.save(tmp_path, files)
    assert [operation for operation, _ in files.calls] == ["open_new", "write", "sync", "rename", "sync_folder"]
