"""A Python function as the store's model, sync and async: its checks, and a store with it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pixelmemory import (
    EmbeddingError,
    InvalidArgumentError,
    ModelLoadError,
    ModelMismatchError,
    UnembeddableTextError,
)
from pixelmemory.embedding import Embedder, open_embedder, parse_embedding_config
from tests.harness.embedders import DIMENSIONS, words_vector

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

Function = Callable[[list[str]], Any]


def embed_all(texts: list[str]) -> np.ndarray:
    assert isinstance(texts, list)
    return np.array([words_vector(text) for text in texts])


async def embed_all_async(texts: list[str]) -> list[list[float]]:
    await asyncio.sleep(0)
    assert threading.current_thread().name == "pixelmemory-embed"
    vectors: list[list[float]] = embed_all(texts).tolist()
    return vectors


class Client:
    async def __call__(self, texts: list[str]) -> list[list[float]]:
        return await embed_all_async(texts)


def embed_later(texts: list[str]) -> Any:
    """No coroutine function, and still what it returns has to be awaited."""
    return embed_all_async(texts)


KINDS: dict[str, Function] = {
    "sync": embed_all,
    "async": embed_all_async,
    "object": Client(),
    "partial": functools.partial(embed_all_async),
    "awaitable": embed_later,
}


def embedder_of(function: Function, **config: Any) -> Embedder:
    parsed = parse_embedding_config({"function": function, "name": "words-v1", **config})
    assert parsed is not None
    embedder = open_embedder(parsed)
    assert embedder is not None
    return embedder


@pytest.mark.parametrize("kind", KINDS)
def test_texts_become_vectors_of_length_1_in_their_order(kind: str) -> None:
    embedder = embedder_of(KINDS[kind], batch_size=2)
    texts = ["red cat", "blue dog", "red cat", "green bird"]
    expected = embed_all(texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for made in (embedder.embed_documents(texts), embedder.embed_queries(texts)):
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, rtol=1e-6)
    assert embedder.dimensions == DIMENSIONS
    assert embedder.fingerprint == f"python:words-v1:{DIMENSIONS}"
    assert embedder.label == f"the function words-v1 ({DIMENSIONS} dimensions)"


def test_equal_texts_are_embedded_once_and_in_batches() -> None:
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> list[list[float]]:
        calls.append(texts)
        return [[float(len(text)), 0.0] for text in texts]

    embedder = embedder_of(embed, dimensions=2, batch_size=2, normalize=False)
    assert calls == [], "the dimensions are given: no call at open"
    assert embedder.embed_documents(["a", "bb", "a", "ccc"]).tolist() == [[1, 0], [2, 0], [1, 0], [3, 0]]
    assert calls == [["a", "bb"], ["ccc"]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [([0.0, 0.0], "zero"), ([float("nan"), 1.0], "not finite"), ([float("inf"), 1.0], "not finite")],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_text_without_a_usable_vector_is_named(value: list[float], kind: str, normalize: bool) -> None:
    def embed(texts: list[str]) -> list[list[float]]:
        return [value if text == "bad" else [1.0, 2.0] for text in texts]

    embedder = embedder_of(embed, normalize=normalize, batch_size=2)
    with pytest.raises(UnembeddableTextError, match=kind) as caught:
        embedder.embed_documents(["a", "a", "b", "bad"])
    assert caught.value.index == 3


@pytest.mark.parametrize(
    "value",
    [[[1.0, 2.0]], [[1.0, 2.0, 3.0]] * 2, [1.0, 2.0], None, "text", [[1.0], [1.0, 2.0]], [["a", "b"]] * 2],
)
def test_another_shape_is_the_fault_of_the_function(value: Any) -> None:
    embedder = embedder_of(lambda _texts: value, dimensions=2)
    with pytest.raises(EmbeddingError, match="words-v1 returned") as caught:
        embedder.embed_documents(["a", "b"])
    assert not isinstance(caught.value, UnembeddableTextError)


@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_function_raises_is_the_cause(is_async: bool) -> None:
    async def refuse_async(_texts: list[str]) -> Any:
        raise ConnectionError("no route")

    def refuse(_texts: list[str]) -> Any:
        raise ConnectionError("no route")

    function = refuse_async if is_async else refuse
    embedder = embedder_of(function, dimensions=2)
    with pytest.raises(EmbeddingError, match="words-v1 failed: ConnectionError: no route") as caught:
        embedder.embed_queries(["a"])
    assert isinstance(caught.value.__cause__, ConnectionError)
    with pytest.raises(ModelLoadError, match="no route"):
        embedder_of(function)


@pytest.mark.parametrize("value", [[1.0, 2.0], [[1.0], [2.0]], [[]], [[float("nan")]], 3])
def test_a_function_that_gives_no_vector_is_refused_at_open(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="one finite vector a text"):
        embedder_of(lambda _texts: value)


def test_async_calls_overlap_and_sync_ones_do_not() -> None:
    inside, most = 0, 0
    both = threading.Barrier(2)
    met = asyncio.Event()

    async def embed(texts: list[str]) -> list[list[float]]:
        nonlocal inside
        inside += 1
        if inside == 2:
            met.set()
        await asyncio.wait_for(met.wait(), 60)
        return [[1.0] for _ in texts]

    def embed_sync(texts: list[str]) -> list[list[float]]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.05)
        inside -= 1
        return [[1.0] for _ in texts]

    def in_two_threads(embedder: Embedder) -> None:
        def ask() -> None:
            both.wait()
            embedder.embed_queries(["a"])

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    in_two_threads(embedder_of(embed, dimensions=1))
    assert inside == 2
    inside = 0
    in_two_threads(embedder_of(embed_sync, dimensions=1))
    assert most == 1


@pytest.mark.parametrize("function", [embed_all, embed_all_async])
def test_a_store_searches_with_it(open_memory: OpenMemory, function: Function) -> None:
    texts = ["red cat", "blue dog", "green bird"]
    with open_memory(embedding_config=function) as mem:
        mem.add_entries([{"content": text} for text in texts])
        assert [mem.search(query=text, limit=1)[0]["content"] for text in texts] == texts
        mem.flush()
        assert [mem.search(query=text, limit=1)[0]["content"] for text in texts] == texts
    renamed = {"function": function, "name": "words-v2"}
    with pytest.raises(ModelMismatchError, match=f"{function.__name__} .*words-v2"):
        open_memory(embedding_config=renamed)
    with open_memory(embedding_config=renamed, reembed=True) as mem:
        assert mem.search(query="blue dog", limit=1)[0]["content"] == "blue dog"


def test_a_failure_that_passes_is_tried_again_and_another_is_a_dead_letter(open_memory: OpenMemory) -> None:
    failures = iter([ConnectionError("down"), TimeoutError("slow")])

    def embed(texts: list[str]) -> np.ndarray:
        if "red cat" in texts and (failure := next(failures, None)):
            raise failure
        if "refused" in texts:
            raise ValueError("too rude")
        return embed_all(texts)

    config = {"function": embed, "name": "flaky", "dimensions": DIMENSIONS}
    with open_memory(embedding_config=config, retry_seconds_min=0.01) as mem:
        mem.add_entries([{"content": "red cat"}, {"content": "refused"}, {"content": "blue dog"}])
        mem.flush()
        assert next(failures, None) is None
        assert mem.stats().dead_letters == 1
        assert mem.search(query="red cat", limit=1)[0]["content"] == "red cat"


def test_a_store_with_an_async_function_ends_its_process_without_a_word() -> None:
    from tests.harness.engine_tools import run_script

    done = run_script("""
        from pixelmemory.embedding import open_embedder, parse_embedding_config

        async def embed(texts):
            return [[1.0, 2.0] for _ in texts]

        print(open_embedder(parse_embedding_config(embed)).embed_queries(["a"]).shape)
    """)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "(1, 2)", "")
