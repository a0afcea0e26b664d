"""Real models of a few kilobytes, made on the spot and saved by sentence-transformers: random BERTs, a static one."""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from pathlib import Path

WORDS = "query passage : the a cat dog sat on mat ran far refused".split()
DIMENSIONS = 32
_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
_VOCABULARY += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
REFUSED_ID = _VOCABULARY.index("refused")


def save_bert(folder: Path, *, seed: int = 0) -> Path:
    """A random BERT of one layer with mean pooling, without prompts. It knows WORDS, and spells what else there is."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    base = folder.with_name(folder.name + "-base")
    base.mkdir(parents=True)
    vocabulary = base / "vocab.txt"
    vocabulary.write_text("\n".join(_VOCABULARY) + "\n")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        # deprecated in 6.2, but where 5.2 has them too
        parts = importlib.import_module("sentence_transformers.models")
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(_VOCABULARY),
            hidden_size=DIMENSIONS,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(base)
        AutoTokenizer.from_pretrained(base, model_max_length=64).save_pretrained(base)
        modules = [parts.Transformer(str(base)), parts.Pooling(DIMENSIONS, pooling_mode="mean")]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(base)
    return folder


def save_static(folder: Path, zero_word: str) -> Path:
    """A model that averages one vector per word; the vector of ``zero_word`` is zero."""
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        parts = importlib.import_module("sentence_transformers.models")
        torch.manual_seed(0)
        weights = torch.randn(len(WORDS) + 1, DIMENSIONS)
        weights[tokenizer.token_to_id(zero_word)] = 0.0
        static = parts.StaticEmbedding(tokenizer, embedding_weights=weights)
        SentenceTransformer(modules=[static], device="cpu").save(str(folder), create_model_card=False)
    return folder


def set_prompts(folder: Path, prompts: dict[str, str], default: str | None = None) -> None:
    """Write ``prompts`` into the model's own configuration."""
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": default}))


def change_weight(folder: Path, name: str, row: int, value: float) -> None:
    """Set the row ``row`` of one weight to ``value``."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[name][row] = value
    save_file(weights, path, metadata={"format": "pt"})
