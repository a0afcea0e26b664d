"""How much of a text a model reads: which texts are cut, held against the vectors that the model gives them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece

from pixelmemory.embedding import open_embedder, parse_embedding_config
from pixelmemory.embedding.model import SentenceTransformerEmbedder
from pixelmemory.embedding.window import Window, tokens_bound, window_of
from tests.harness.tiny_models import save_bert, save_static

#: tokens that the tiny BERT reads, with the two that mark a text's ends
TOKENS_MAX = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("window") / "tiny")


def opened(path: Path | str, **keys: object) -> SentenceTransformerEmbedder:
    config = parse_embedding_config({"model_id": str(path), "device": "cpu", **keys})
    assert config is not None
    embedder = open_embedder(config)
    assert isinstance(embedder, SentenceTransformerEmbedder)
    return embedder


@pytest.mark.parametrize(
    ("prompt", "prompt_tokens"), [("", 0), ("passage: ", 2), ("the cat sat on the mat ", 6)], ids=["none", "E5", "long"]
)
def test_the_first_text_that_is_cut(folder: Path, prompt: str, prompt_tokens: int) -> None:
    embedder = opened(folder, document_prompt=prompt)
    fits = TOKENS_MAX - 2 - prompt_tokens
    texts = [" ".join(["cat"] * words) for words in range(fits - 3, fits + 4)]
    assert embedder.truncated(texts) == [False] * 4 + [True] * 3
    # what the model makes of them: another word at the end counts only as long as it is read
    for text, is_cut in ((texts[2], False), (texts[3], True), (texts[4], True)):
        longer = embedder.embed_documents([text, f"{text} dog"])
        assert np.allclose(longer[0], longer[1], atol=1e-6) is is_cut


def test_texts_of_every_kind(folder: Path) -> None:
    embedder = opened(folder)
    window = embedder.window
    assert window == Window(TOKENS_MAX, TOKENS_MAX - 3, (TOKENS_MAX - 3) // 22)
    texts = {
        "": False,
        "a" * (TOKENS_MAX - 2): False,
        "a" * (TOKENS_MAX - 1): True,  # spelled: a token a letter
        "x" * 1000: False,  # a word so long that it is one unknown token
        " " * 1000: False,
        "cat " * 62 + " " * 1000: False,
        "cat " * 63: True,
        "mat. " * 40: True,
        "ü" * 62: False,
        "ü" * 63: True,
        "ﬃ" * 100: False,  # one unknown token
        "猫 " * 62: False,
        "猫" * 63: True,  # a token a character, whatever the vocabulary
    }
    assert dict(zip(texts, embedder.truncated(list(texts)), strict=True)) == texts
    assert embedder.truncated([]) == []
    assert not any(window.may_cut(text) for text in ("", "a" * 61, "ü" * 10))


def test_a_model_that_reads_everything_cuts_nothing(tmp_path: Path) -> None:
    embedder = opened(save_static(tmp_path / "static", zero_word="refused"))
    assert embedder.window is None
    assert embedder.truncated(["cat " * 100_000, ""]) == [False, False]


def test_a_limit_that_is_none() -> None:
    for tokens_max in (None, math.inf, 10**30):
        assert window_of(tokens_max, 2, "") is None
    assert window_of(512, 2, "passage: ") == Window(512, 500, 22)
    assert window_of(4, 2, "a long prompt") == Window(4, 0, 0), "then every text may be too long"


def test_a_real_model(minilm_path: str) -> None:
    embedder = opened(minilm_path)
    assert embedder.window == Window(256, 253, 11)
    assert embedder.truncated(["word " * 254, "word " * 255, "The weather report. " * 600]) == [False, True, True]


def _byte_level() -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(BPE({char: place for place, char in enumerate(sorted(alphabet))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


def _byte_fallback(normalizer: normalizers.Normalizer) -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -1.0), *((f"<0x{byte:02X}>", -5.0) for byte in range(256))]
    made = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=True))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.ByteFallback()
    return made


def _word_piece() -> Tokenizer:
    letters = {chr(code): place for place, code in enumerate(range(33, 0x500))}
    vocabulary = {"[UNK]": 9999, **letters, **{f"##{char}": 5000 + place for char, place in letters.items()}}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


#: tokenizers that split as finely as their kind can: a token a byte, or a token a character
FINEST = {
    "byte level": _byte_level(),
    "byte fallback": _byte_fallback(normalizers.Sequence([])),
    "NFKC": _byte_fallback(normalizers.NFKC()),
    "NFKD, lower case": _byte_fallback(normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])),
    "lower case": _byte_fallback(normalizers.Lowercase()),
    "word piece": _word_piece(),
}
_texts = st.text(max_size=40) | st.text(st.sampled_from("ﷺﬃİẞȺΐ①㌀한e\u0301\u0345 Aßaé\t"), max_size=40)


@pytest.mark.parametrize("name", list(FINEST))
@given(text=_texts)
def test_tokens_never_outnumber_their_bound(name: str, text: str) -> None:
    tokens = len(FINEST[name].encode(text).ids)
    assert tokens <= tokens_bound(text) + 1, "one for the space that some put before a text"
    assert tokens_bound(text) <= len(text.encode()) * 22, "what the database is asked for"
