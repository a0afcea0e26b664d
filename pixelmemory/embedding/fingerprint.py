"""What identifies a model, and what names it: a digest of the files that decide its vectors; a label.

Configurations and tokenizers are hashed as they are. Weights are covered in full too, not sampled, since a fine-tuned
copy may differ in one tensor: each MiB goes in as its CRC-32 (gigabytes a second), so that two files of one length
differ in the digest unless a changed MiB keeps its CRC, by chance once in 4 billion. The folder's name, README,
unused formats and the library's version bookkeeping stay out, so a copy or a fresh download of a model is the same
model.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["embedding_label", "model_digest", "tell_apart"]

_CHUNK_BYTES = 1024 * 1024
#: written for training or generation, or (prompts) named in the fingerprint by what they come to
_IDLE_CONFIGS = {"config_sentence_transformers.json", "data_config.json", "generation_config.json"}
_IDLE_FOLDERS = {"onnx", "openvino"}
#: read only where there is no tokenizer.json
_SLOW_TOKENIZER = {"vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"}


def model_digest(folder: Path, *, with_code: bool = False) -> str:
    """Digest of the files in ``folder`` that decide the vectors of its model.

    Args:
        folder: a model as sentence-transformers saves it.
        with_code: whether its Python files count, because they will run.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(_deciding_files(folder, with_code), key=lambda path: path.relative_to(folder).as_posix()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        for piece in _summary(path):
            digest.update(piece)
    return digest.hexdigest()


def _deciding_files(folder: Path, with_code: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IDLE_FOLDERS and not name.startswith(".")]
        safe = any(name.endswith(".safetensors") for name in names)
        fast = "tokenizer.json" in names
        for name in names:
            if (
                (name.endswith("config.json") and name not in _IDLE_CONFIGS)
                or name in ("modules.json", "tokenizer.json")
                or name.endswith(".safetensors" if safe else ".bin")
                or (not fast and (name in _SLOW_TOKENIZER or name.endswith(".model")))
                or (with_code and name.endswith(".py"))
            ):
                yield Path(parent, name)


def _summary(path: Path) -> Iterator[bytes]:
    weights = path.suffix in (".safetensors", ".bin")
    chunk = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            yield zlib.crc32(chunk[:count]).to_bytes(4, "little") if weights else bytes(chunk[:count])


#: one setting in a model's fingerprint; prompts are JSON strings
_SETTING = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def embedding_label(fingerprint: str, label: str | None) -> str:
    """How a message names what a store's vectors come from.

    Args:
        fingerprint: of a model or function, or what stands for given vectors and for none.
        label: the model's name, where it is known.
    """
    if label is not None:
        return label
    kind, _, rest = fingerprint.partition(":")
    if fingerprint == "none":
        return "no model"
    if kind == "given":
        return f"vectors of your own ({rest} dimensions)"
    if kind == "function":
        name, _, dimensions = rest.rpartition(":")
        return f"the Pixeltable function {name} ({dimensions} dimensions)"
    if kind == "python":
        name, _, dimensions = rest.rpartition(":")
        return f"the function {name} ({dimensions} dimensions)"
    return fingerprint


def tell_apart(stored: tuple[str, str | None], given: tuple[str, str | None]) -> tuple[str, str]:
    """How a message names two embeddings, each a fingerprint and a label, that are not the same.

    Two models of one name, and one model with other settings, are named with the settings that differ.
    """
    names = embedding_label(*stored), embedding_label(*given)
    settings, others = dict(_SETTING.findall(stored[0])), dict(_SETTING.findall(given[0]))
    one_model = "model" in settings and settings["model"] == others.get("model")
    if names[0] != names[1] and not one_model:
        return names
    differing = [key for key in settings if settings[key] != others.get(key)]

    def named(name: str, of: dict[str, str]) -> str:
        return f"{name} with {', '.join(f'{key}={of.get(key)}' for key in differing)}" if differing else name

    return named(names[0], settings), named(names[1], others)
