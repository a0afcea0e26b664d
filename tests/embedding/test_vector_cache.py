from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pixelmemory.embedding import VectorCache

DIMENSIONS = 48


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


@pytest.fixture
def cache(folder: Path) -> Iterator[VectorCache]:
    cache = VectorCache(folder, "model=a", DIMENSIONS)
    yield cache
    cache.close()


def texts_of(count: int, start: int = 0) -> list[str]:
    return [f"memory number {number} é" for number in range(start, start + count)]


def vectors_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, DIMENSIONS)).astype(np.float32)


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_what_was_put_is_found_again_by_another_handle(folder: Path, cache: VectorCache) -> None:
    cache.put_many(texts_of(500), vectors_of(500))
    cache.close()
    again = VectorCache(folder, "model=a", DIMENSIONS)
    asked = [*texts_of(500)[::-1], "never put", texts_of(1)[0]]
    found, vectors = again.get_many(asked)
    again.close()
    assert found.tolist() == [True] * 500 + [False, True]
    assert vectors.dtype == np.float32
    expected = np.concatenate([vectors_of(500)[::-1], np.zeros((1, DIMENSIONS), np.float32), vectors_of(500)[:1]])
    assert np.array_equal(vectors, expected)


def test_nothing_asked_is_nothing_found(cache: VectorCache) -> None:
    cache.put_many([], np.empty((0, DIMENSIONS), np.float32))
    found, vectors = cache.get_many([])
    assert found.shape == (0,)
    assert vectors.shape == (0, DIMENSIONS)


def test_the_array_is_the_callers_to_fill(cache: VectorCache) -> None:
    cache.put_many(["a"], vectors_of(1))
    _, vectors = cache.get_many(["a", "b"])
    vectors[1] = 1.0
    vectors[0] = 2.0
    assert np.array_equal(cache.get_many(["a"])[1], vectors_of(1))


def test_a_later_vector_replaces_the_earlier(cache: VectorCache) -> None:
    cache.put_many(["a", "a"], vectors_of(2))
    cache.put_many(["a"], vectors_of(1, seed=5))
    assert np.array_equal(cache.get_many(["a"])[1], vectors_of(1, seed=5))


def test_another_shape_is_refused(cache: VectorCache) -> None:
    with pytest.raises(ValueError, match="shape"):
        cache.put_many(["a"], np.zeros((1, DIMENSIONS + 1), np.float32))
    with pytest.raises(ValueError, match="shape"):
        cache.put_many(["a", "b"], np.zeros((1, DIMENSIONS), np.float32))


def test_files_are_for_their_owner_alone(folder: Path, cache: VectorCache) -> None:
    cache.put_many(["a"], vectors_of(1))
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) >= 2  # the file and the write-ahead log of SQLite
    assert set(modes.values()) == {0o600}


def test_another_model_finds_nothing_and_leaves_nothing_of_the_first(folder: Path, cache: VectorCache) -> None:
    cache.put_many(texts_of(20), vectors_of(20))
    cache.close()
    other = VectorCache(folder, "model=b", DIMENSIONS)
    assert not other.get_many(texts_of(20))[0].any()
    other.close()
    assert vectors_of(1)[0].tobytes() not in all_bytes(folder)


def test_discarded_vectors_leave_no_bytes(folder: Path, cache: VectorCache) -> None:
    # in random order, so that pages were split and cells moved before the erase
    count = 3000
    vectors = vectors_of(count)
    order = np.random.default_rng(1).permutation(count)
    for rows in np.array_split(order, 15):
        cache.put_many([texts_of(1, int(row))[0] for row in rows], vectors[rows])
    cache.put_many(texts_of(300), vectors[:300])
    cache.discard(texts_of(1500))
    left = all_bytes(folder)
    pieces = [vectors[row, start : start + 4].tobytes() for row in range(1500) for start in (0, 20, 44)]
    assert [piece for piece in pieces if piece in left] == []
    assert vectors[2999].tobytes() in left
    found, _ = cache.get_many(texts_of(count))
    assert found.tolist() == [False] * 1500 + [True] * 1500


def test_clear_forgets_all_and_goes_on(folder: Path, cache: VectorCache) -> None:
    cache.put_many(texts_of(50), vectors_of(50))
    cache.clear()
    assert not cache.get_many(texts_of(50))[0].any()
    assert vectors_of(1)[0].tobytes() not in all_bytes(folder)
    cache.put_many(["a"], vectors_of(1))
    assert cache.get_many(["a"])[0].all()


def test_a_discard_after_close_deletes_the_file(folder: Path, cache: VectorCache) -> None:
    cache.put_many(texts_of(5), vectors_of(5))
    cache.close()
    cache.discard(texts_of(1))
    assert list(folder.iterdir()) == []
    assert not cache.get_many(texts_of(5))[0].any()


def test_a_closed_cache_misses(cache: VectorCache) -> None:
    cache.put_many(["a"], vectors_of(1))
    cache.close()
    cache.close()
    assert not cache.get_many(["a"])[0].any()
    cache.put_many(["b"], vectors_of(1))
    assert "closed" in repr(cache)


def test_any_flipped_byte_is_a_miss_and_never_another_vector(folder: Path, cache: VectorCache) -> None:
    texts, vectors = texts_of(40), vectors_of(40)
    cache.put_many(texts, vectors)
    cache.close()
    path = next(path for path in folder.iterdir() if path.suffix == ".vectors")
    whole = path.read_bytes()
    start = whole.index(vectors[7].tobytes())
    rng = np.random.default_rng(3)
    misses = 0
    for place in [start - 20, start - 3, start, start + 4 * DIMENSIONS - 1, *rng.integers(0, len(whole), 150).tolist()]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        again = VectorCache(folder, "model=a", DIMENSIONS)
        found, read = again.get_many(texts)
        again.close()
        assert np.array_equal(read[found], vectors[found]), place
        misses += int((~found).sum())
    assert misses >= 4


@pytest.mark.parametrize("kept", [0, 10, 100, 5000, 16384, 20000])
def test_a_cut_file_starts_anew(folder: Path, cache: VectorCache, kept: int) -> None:
    texts, vectors = texts_of(200), vectors_of(200)
    cache.put_many(texts, vectors)
    cache.close()
    path = next(path for path in folder.iterdir() if path.suffix == ".vectors")
    os.truncate(path, kept)
    again = VectorCache(folder, "model=a", DIMENSIONS)
    found, read = again.get_many(texts)
    assert np.array_equal(read[found], vectors[found])
    assert not found.all()
    again.put_many(texts, vectors)
    assert again.get_many(texts)[0].all()
    again.close()


def test_a_foreign_file_in_its_place_starts_anew(
    folder: Path, cache: VectorCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.close()
    path = next(path for path in folder.iterdir() if path.suffix == ".vectors")
    path.write_bytes(b"this is no database, whatever its name says" * 1000)
    with caplog.at_level(logging.WARNING, "pixelmemory.embedding"):
        again = VectorCache(folder, "model=a", DIMENSIONS)
    assert "starts again" in caplog.text
    again.put_many(["a"], vectors_of(1))
    assert again.get_many(["a"])[0].all()
    again.close()


def test_an_entry_moved_to_another_key_is_a_miss(folder: Path, cache: VectorCache) -> None:
    """As a collision of keys would be."""
    cache.put_many(["a"], vectors_of(1))
    cache.put_many(["b"], vectors_of(1, seed=1))
    cache.close()
    path = next(path for path in folder.iterdir() if path.suffix == ".vectors")
    database = sqlite3.connect(path)
    (low, first), (high, second) = database.execute("SELECT key, entry FROM vectors ORDER BY key").fetchall()
    database.executemany("UPDATE vectors SET entry = ? WHERE key = ?", [(second, low), (first, high)])
    database.commit()
    database.close()
    again = VectorCache(folder, "model=a", DIMENSIONS)
    assert again.get_many(["a", "b"])[0].tolist() == [False, False]
    again.close()


def test_a_folder_that_cannot_be_made_only_misses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, "pixelmemory.embedding"):
        cache = VectorCache(tmp_path / "file" / "vectors", "model=a", DIMENSIONS)
    assert "cannot be used" in caplog.text
    cache.put_many(["a"], vectors_of(1))
    assert not cache.get_many(["a"])[0].any()
    cache.close()


def test_a_locked_file_misses_and_is_reported_once(
    folder: Path, cache: VectorCache, caplog: pytest.LogCaptureFixture
) -> None:
    path = next(path for path in folder.iterdir() if path.suffix == ".vectors")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING, "pixelmemory.embedding"):
        cache.put_many(["a"], vectors_of(1))
        cache.put_many(["a"], vectors_of(1))
    other.execute("ROLLBACK")
    other.close()
    assert len(caplog.records) == 1
    assert not cache.get_many(["a"])[0].any()
    cache.put_many(["a"], vectors_of(1))
    assert cache.get_many(["a"])[0].all()


def test_a_full_file_gives_way_to_new_vectors(folder: Path) -> None:
    bytes_max = 1024 * 1024
    cache = VectorCache(folder, "model=a", DIMENSIONS, bytes_max=bytes_max)
    for start in range(0, 12_000, 500):
        cache.put_many(texts_of(500, start), vectors_of(500, seed=start))
        assert cache.get_many(texts_of(500, start))[0].all()
    found, _ = cache.get_many(texts_of(12_000))
    cache.close()
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 2 * bytes_max  # the room of entries that go is used again, and not given back
    assert 1500 < found.sum() < 12_000


def test_threads_share_one_cache(cache: VectorCache) -> None:
    vectors = vectors_of(800)
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            start = int(rng.integers(0, 700))
            if seed % 2:
                cache.put_many(texts_of(100, start), vectors[start : start + 100])
            else:
                found, read = cache.get_many(texts_of(100, start))
                if not np.array_equal(read[found], vectors[start : start + 100][found]):
                    wrong.append(f"rows from {start}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.get_many(texts_of(800))[0].any()


# -- a store's folder that is moved


def test_a_cache_whose_folder_was_replaced_touches_nothing_there(tmp_path: Path) -> None:
    """SQLite goes by paths: another store in the place of this one, with a cache of the same model, is left alone."""
    from pixelmemory.store.lock import StoreLock

    ours, theirs, away = tmp_path / "store", tmp_path / "other", tmp_path / "away"
    ours.mkdir()
    lock = StoreLock.acquire(ours / "LOCK")
    cache = VectorCache(ours / "vectors", "model=a", DIMENSIONS, check_folder=lock.check_place)
    cache.put_many(texts_of(100), vectors_of(100))
    other = VectorCache(theirs / "vectors", "model=a", DIMENSIONS)
    other.put_many(texts_of(100), vectors_of(100, seed=1))
    (theirs / "LOCK").touch()
    ours.rename(away)
    theirs.rename(ours)  # open, with its write-ahead file
    before = {path: path.read_bytes() for path in ours.rglob("*") if path.is_file()}
    assert any(path.name.endswith("-wal") for path in before)

    found, _ = cache.get_many(texts_of(100))
    assert not found.any()
    cache.put_many(texts_of(100, start=500), vectors_of(100))
    with pytest.raises(OSError, match="was moved, replaced or unmounted"):
        cache.discard(texts_of(100))
    with pytest.raises(OSError, match="was moved, replaced or unmounted"):
        cache.clear()
    assert {path: path.read_bytes() for path in ours.rglob("*") if path.is_file()} == before

    ours.rename(theirs)
    away.rename(ours)
    found, vectors = cache.get_many(texts_of(100))
    assert found.all()
    assert np.array_equal(vectors, vectors_of(100))
    ours.rename(away)
    theirs.rename(ours)
    cache.close()  # SQLite deletes the write-ahead file of the last that closes
    assert {path: path.read_bytes() for path in ours.rglob("*") if path.is_file()} == before
    other.close()
    lock.release()
