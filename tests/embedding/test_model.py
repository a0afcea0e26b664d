from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pixelmemory.embedding import Embedder, open_embedder, parse_embedding_config
from pixelmemory.embedding.fair_lock import FairLock
from pixelmemory.embedding.model import SentenceTransformerEmbedder
from pixelmemory.errors import InvalidArgumentError, UnembeddableTextError
from tests.harness.tiny_models import DIMENSIONS, REFUSED_ID, change_weight, save_bert, save_static, set_prompts

TEXTS = ["the cat sat", "a dog ran far", "on the mat", "cat"]
E5_VARIABLE = "PIXELMEMORY_TEST_E5"


@pytest.fixture(scope="session")
def bert_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def bert(bert_master: Path, tmp_path: Path) -> Path:
    """A random BERT, to change at will."""
    return Path(shutil.copytree(bert_master, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def minilm(minilm_path: str) -> Embedder:
    return opened(minilm_path)


def opened(path: Path | str, **keys: object) -> SentenceTransformerEmbedder:
    config = parse_embedding_config({"model_id": str(path), "device": "cpu", **keys})
    assert config is not None
    embedder = open_embedder(config)
    assert isinstance(embedder, SentenceTransformerEmbedder)
    return embedder


def by_hand(path: Path | str, texts: list[str], **keys: Any) -> NDArray[np.float32]:
    """What sentence-transformers itself gives for texts into which the prompts were already written."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    vectors: NDArray[np.float32] = model.encode(
        texts, prompt="", normalize_embeddings=True, show_progress_bar=False, **keys
    )
    return vectors


def assert_prompts(path: Path, query: str, document: str, **keys: object) -> None:
    """The embedder's vectors are those of texts with these prompts written before them."""
    embedder = opened(path, **keys)
    assert (embedder.query_prompt, embedder.document_prompt) == (query, document)
    documents = by_hand(path, [document + text for text in TEXTS])
    queries = by_hand(path, [query + text for text in TEXTS])
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), documents, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_queries(TEXTS), queries, atol=1e-5)


# -- prompts


def test_prompts_change_the_vectors_of_the_tiny_model(bert: Path) -> None:
    """Else the tests of prompts below would show nothing."""
    plain, prompted = by_hand(bert, TEXTS), by_hand(bert, ["query: " + text for text in TEXTS])
    assert np.abs(plain - prompted).max() > 0.01


def test_a_model_without_prompts_gets_none(bert: Path) -> None:
    assert_prompts(bert, "", "")


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_a_models_own_prompts_are_taken(bert: Path, name: str) -> None:
    set_prompts(bert, {"query": "query: ", name: "passage: "})
    assert_prompts(bert, "query: ", "passage: ")


def test_a_model_may_prompt_queries_alone_even_if_it_is_named_e5(bert: Path) -> None:
    folder = bert.rename(bert.with_name("my-e5-small"))
    set_prompts(folder, {"query": "the cat : "})
    assert_prompts(folder, "the cat : ", "")


def test_a_default_prompt_stands_for_the_missing_ones(bert: Path) -> None:
    set_prompts(bert, {"query": "query: ", "retrieval": "the mat: "}, default="retrieval")
    assert_prompts(bert, "query: ", "the mat: ")


def test_an_empty_prompt_of_the_users_switches_the_models_off(bert: Path) -> None:
    set_prompts(bert, {"query": "query: ", "document": "passage: ", "other": "dog "}, default="other")
    assert_prompts(bert, "", "", query_prompt="", document_prompt="")


def test_the_users_prompts_win(bert: Path) -> None:
    set_prompts(bert, {"query": "query: ", "document": "passage: "})
    assert_prompts(bert, "a dog: ", "passage: ", query_prompt="a dog: ")


@pytest.mark.parametrize(
    "name", ["e5-large-v2", "multilingual-E5-small", "me5_base", "models--org--e5-x/snapshots/4fe1c0"]
)
def test_an_e5_model_without_prompts_gets_those_of_e5(bert: Path, name: str) -> None:
    folder = bert.parent / name  # the last as in the hub's cache
    folder.parent.mkdir(parents=True, exist_ok=True)
    assert_prompts(bert.rename(folder), "query: ", "passage: ")


def test_a_model_trained_from_e5_gets_its_prompts(bert: Path) -> None:
    config = bert / "config.json"
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "someone/e5-base-v2",', 1))
    assert_prompts(bert, "query: ", "passage: ")


@pytest.mark.parametrize("name", ["multilingual-e5-large-instruct", "type5", "he5llo", "the-5e"])
def test_other_names_are_no_e5(bert: Path, name: str) -> None:
    assert_prompts(bert.rename(bert.with_name(name)), "", "")


# -- vectors


def test_a_real_model_finds_what_is_meant(minilm: Embedder) -> None:
    documents = ["The invoice is due on Friday.", "Cats sleep most of the day.", "The server ran out of memory."]
    vectors = minilm.embed_documents(documents)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    for query, best in [("when must the bill be paid?", 0), ("pets and their habits", 1), ("out of RAM", 2)]:
        assert int(np.argmax(vectors @ minilm.embed_queries([query])[0])) == best


def test_vectors_have_length_one_unless_asked_otherwise(bert: Path) -> None:
    scaled, raw = opened(bert), opened(bert, normalize=False)
    lengths = np.linalg.norm(raw.embed_documents(TEXTS), axis=1)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(np.linalg.norm(scaled.embed_documents(TEXTS), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(raw.embed_documents(TEXTS) / lengths[:, None], scaled.embed_documents(TEXTS), atol=1e-6)
    assert scaled.fingerprint != raw.fingerprint


def test_equal_texts_are_embedded_once_and_the_order_is_kept(bert: Path) -> None:
    embedder = opened(bert, batch_size=3)
    seen: list[int] = []
    handle = embedder._model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    texts = [TEXTS[place] for place in (3, 0, 1, 0, 2, 3, 3, 1)]
    vectors = embedder.embed_documents(texts)
    handle.remove()
    assert seen == [3, 1]
    np.testing.assert_allclose(vectors, by_hand(bert, texts), atol=1e-5)
    assert np.array_equal(vectors[1], vectors[3])


def test_a_batch_holds_texts_of_like_length(bert: Path) -> None:
    embedder = opened(bert, batch_size=2)
    widths: list[int] = []
    handle = embedder._model[0].register_forward_pre_hook(
        lambda _, inputs: widths.append(inputs[0]["input_ids"].shape[1])
    )
    embedder.embed_documents(["cat", "cat " * 20, "dog", "dog " * 20])
    handle.remove()
    assert widths == [22, 3]


def test_nothing_gives_nothing(bert: Path) -> None:
    assert opened(bert).embed_documents([]).shape == (0, DIMENSIONS)


def test_odd_texts_have_vectors(minilm: Embedder) -> None:
    odd = ["", " ", "\n", "nul\0inside", "\u202e\u0300", "https://example.com/cat.png", "photo.jpg", "x" * 200_000]
    vectors = minilm.embed_documents(odd)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_dimensions_cut_the_vectors(bert: Path) -> None:
    embedder = opened(bert, dimensions=8)
    assert embedder.dimensions == 8
    np.testing.assert_allclose(embedder.embed_documents(TEXTS), by_hand(bert, TEXTS, truncate_dim=8), atol=1e-5)
    assert embedder.embed_queries(["cat"])[0].shape == (8,)


def test_dimensions_beyond_the_models_are_refused(bert: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="33, but the model's vectors have 32"):
        opened(bert, dimensions=DIMENSIONS + 1)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_refused(bert: Path, device: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"device.*{device}"):
        opened(bert, device=device)


def test_half_precision_gives_float32_near_the_full(bert: Path) -> None:
    full, half = opened(bert), opened(bert, dtype="bfloat16")
    vectors = half.embed_documents(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    similarities = (vectors * full.embed_documents(TEXTS)).sum(axis=1)
    assert similarities.min() > 0.999
    assert not np.array_equal(vectors, full.embed_documents(TEXTS))
    assert half.fingerprint != full.fingerprint


# -- texts without a vector


def test_a_vector_that_is_not_finite_names_its_text(bert: Path) -> None:
    change_weight(bert, "embeddings.word_embeddings.weight", REFUSED_ID, float("nan"))
    embedder = opened(bert, batch_size=2)
    texts = ["a cat", "the dog ran", "a cat", "a refused", "the mat"]
    with pytest.raises(UnembeddableTextError, match="not finite") as caught:
        embedder.embed_documents(texts)
    assert caught.value.index == 3
    del texts[3]
    assert np.isfinite(embedder.embed_documents(texts)).all()
    with pytest.raises(UnembeddableTextError) as caught:
        embedder.embed_queries(["refused"])[0]
    assert caught.value.index == 0


def test_a_zero_vector_names_its_text(tmp_path: Path) -> None:
    embedder = opened(save_static(tmp_path / "static", zero_word="refused"))
    with pytest.raises(UnembeddableTextError, match="zero") as caught:
        embedder.embed_documents(["cat", "dog", "refused"])
    assert caught.value.index == 2
    with pytest.raises(UnembeddableTextError):
        embedder.embed_queries([""])[0]


# -- fingerprints


def test_a_copy_elsewhere_is_the_same_model(bert: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "far" / "away" / "copy"
    shutil.copytree(bert, elsewhere)
    (elsewhere / "README.md").write_text("a note")
    (elsewhere / "onnx").mkdir()
    (elsewhere / "onnx" / "model.onnx").write_bytes(b"unused")
    (elsewhere / ".git").mkdir()
    (elsewhere / ".git" / "config.json").write_text("{}")
    first, second = opened(bert), opened(elsewhere, batch_size=7)
    assert first.fingerprint == second.fingerprint
    assert str(tmp_path) not in first.fingerprint
    assert "tiny" not in first.fingerprint


def test_whatever_changes_vectors_changes_the_fingerprint(bert: Path, tmp_path: Path) -> None:
    fingerprints = {
        opened(bert).fingerprint,
        opened(bert, dimensions=16).fingerprint,
        opened(bert, normalize=False).fingerprint,
        opened(bert, dtype="float16").fingerprint,
        opened(bert, query_prompt="a ").fingerprint,
        opened(bert, document_prompt="a ").fingerprint,
        opened(save_bert(tmp_path / "other", seed=1)).fingerprint,
    }
    for name, row in [("embeddings.word_embeddings.weight", 9), ("encoder.layer.0.output.LayerNorm.bias", 3)]:
        changed = Path(shutil.copytree(bert, tmp_path / name))
        change_weight(changed, name, row, 0.25)
        fingerprints.add(opened(changed).fingerprint)
    pooled = Path(shutil.copytree(bert, tmp_path / "pooled"))
    pooling = pooled / "1_Pooling" / "config.json"
    before = pooling.read_text()
    pooling.write_text(before.replace('"mean"', '"cls"'))
    assert pooling.read_text() != before
    fingerprints.add(opened(pooled).fingerprint)
    assert len(fingerprints) == 10


def test_the_types_of_half_precision_are_one_model(bert: Path) -> None:
    assert opened(bert, dtype="float16").fingerprint == opened(bert, dtype="bfloat16").fingerprint
    assert opened(bert, dtype="float32").fingerprint == opened(bert).fingerprint


# -- threads


def test_threads_share_one_model(bert: Path) -> None:
    embedder = opened(bert, batch_size=2)
    expected, query = embedder.embed_documents(TEXTS), embedder.embed_queries(["cat"])[0]
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(10):
            if number % 2 and not np.allclose(embedder.embed_queries(["cat"])[0], query, atol=1e-6):
                wrong.append("query")
            if not number % 2 and not np.allclose(embedder.embed_documents(TEXTS), expected, atol=1e-6):
                wrong.append("documents")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_model_is_granted_in_the_order_of_asking() -> None:
    lock = FairLock()
    order: list[int] = []

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._line) < number + 2:  # the holder, and those who came so far
                pass
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_failure_under_the_lock_gives_it_back() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        pass


# -- a real E5


@pytest.mark.skipif(E5_VARIABLE not in os.environ, reason=f"{E5_VARIABLE} names no folder with an E5 model")
def test_a_real_e5_model_is_given_its_prompts() -> None:
    path = Path(os.environ[E5_VARIABLE])
    assert_prompts(path, "query: ", "passage: ")
    embedder = opened(path)
    vectors = embedder.embed_documents(["The invoice is due on Friday.", "Cats sleep most of the day."])
    assert int(np.argmax(vectors @ embedder.embed_queries(["when must the bill be paid?"])[0])) == 0
    assert int(np.argmax(vectors @ embedder.embed_queries(["what do pets do?"])[0])) == 1


@pytest.mark.skipif(E5_VARIABLE not in os.environ, reason=f"{E5_VARIABLE} names no folder with an E5 model")
def test_a_real_e5_model_without_its_own_prompts_is_known_by_its_name(tmp_path: Path) -> None:
    original = Path(os.environ[E5_VARIABLE])
    folder = Path(shutil.copytree(original, tmp_path / "multilingual-e5-small"))
    set_prompts(folder, {"query": "", "document": ""})
    np.testing.assert_allclose(
        opened(folder).embed_queries(["cat"])[0], opened(original).embed_queries(["cat"])[0], atol=1e-5
    )
    assert opened(folder).fingerprint == opened(original).fingerprint
