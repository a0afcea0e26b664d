"""What was embedded once is not embedded again: on disk for the tables, in memory alone for reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pixelmemory import UnembeddableTextError
from pixelmemory.embedding import Embedder
from pixelmemory.embedding.cached import MADE_MAX, PASS_MIN, ContentVectors
from pixelmemory.embedding.vector_cache import VectorCache


class Model:
    """Gives each text its length; refuses the empty one."""

    dimensions = 2
    batch_size = 4

    def __init__(self) -> None:
        self.embedded: list[str] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.asked = threading.Event()

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.asked.set()
        self.may_go.wait()
        if "" in texts:
            raise UnembeddableTextError(list(texts).index(""), "it is empty")
        self.embedded += texts
        return vectors_of(texts)


def vectors_of(texts: Sequence[str]) -> Any:
    return np.array([[len(text), 1] for text in texts], dtype=np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VectorCache]:
    opened = VectorCache(tmp_path, "a model", 2)
    yield opened
    opened.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_read_and_the_tables_embed_a_text_once(cache: VectorCache, on_disk: bool) -> None:
    model = Model()
    contents = ContentVectors(cast(Embedder, model), cache if on_disk else None)
    for _ in range(2):
        assert np.array_equal(contents.embed_ahead(["ab", "c"]), vectors_of(["ab", "c"]))
    assert np.array_equal(contents.embed(["c", "def", "ab"]), vectors_of(["c", "def", "ab"]))
    assert model.embedded == ["ab", "c", "def"]
    assert cache.get_many(["ab", "c", "def"])[0].all() == on_disk
    if on_disk:
        assert np.array_equal(contents.embed_ahead(["def"]), vectors_of(["def"]))
        assert model.embedded == ["ab", "c", "def"]


def test_what_a_read_embeds_is_not_on_disk(cache: VectorCache) -> None:
    """An erase that discards its vector before the read has ended would leave it there."""
    ContentVectors(cast(Embedder, Model()), cache).embed_ahead(["secret"])
    assert not cache.get_many(["secret"])[0].any()


def test_what_is_kept_in_memory_is_bounded(cache: VectorCache) -> None:
    model = Model()
    contents = ContentVectors(cast(Embedder, model), cache)
    texts = [f"text {n}" for n in range(MADE_MAX + 1)]
    contents.embed_ahead(texts)
    contents.embed(texts)
    assert model.embedded == [*texts, texts[0]]


@pytest.mark.parametrize("call", ["embed", "embed_ahead"])
def test_a_text_without_a_vector_is_named_by_its_place(cache: VectorCache, call: str) -> None:
    contents = ContentVectors(cast(Embedder, Model()), cache)
    contents.embed(["known"])
    with pytest.raises(UnembeddableTextError) as caught:
        getattr(contents, call)(["known", "new", ""])
    assert caught.value.index == 2


def test_what_the_tables_are_about_to_have_is_not_embedded_for_a_read_too(cache: VectorCache) -> None:
    """Nor does the read wait for more than the pass that goes on."""
    model = Model()
    contents = ContentVectors(cast(Embedder, model), cache)
    texts = [f"{n:0{n + 1}}" for n in range(3 * PASS_MIN)]  # the longest first
    model.may_go.clear()
    with ThreadPoolExecutor(2) as threads:
        whole = threads.submit(contents.embed, texts)
        model.asked.wait()
        read = threads.submit(contents.embed_ahead, [texts[-1], texts[0]])
        model.may_go.set()
        assert np.array_equal(read.result(), vectors_of([texts[-1], texts[0]]))
        assert np.array_equal(whole.result(), vectors_of(texts))
    assert sorted(model.embedded) == sorted(texts)
