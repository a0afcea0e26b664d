"""What ``embedding_config`` may be, checked once."""

from __future__ import annotations

from typing import Any

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, brief, type_name

__all__ = ["DTYPES", "EmbeddingConfig", "parse_embedding_config"]

#: the number types that a model's weights may be loaded in
DTYPES = ("float32", "float16", "bfloat16")


class EmbeddingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How texts become vectors.

    Of ``model_id``, ``function`` and ``dimensions`` alone, exactly one says where vectors come from.
    """

    #: an id on the Hugging Face hub, or the path of a model's folder
    model_id: str | None = None
    #: a torch device such as ``cpu`` or ``cuda:1``; None: ``cuda`` where there is one, else ``mps``, else ``cpu``
    device: str | None = None
    #: one of ``DTYPES``; None: float32. Vectors are float32 in any case
    dtype: str | None = None
    #: texts in one pass through the model; None: 32 on a CPU, 128 elsewhere
    batch_size: int | None = None
    #: put before every query; None: the model's own, ``""``: none
    query_prompt: str | None = None
    #: put before every memory's content; None: the model's own, ``""``: none
    document_prompt: str | None = None
    #: scale every vector to length 1
    normalize: bool = True
    #: with a model: vectors are cut to this length; with neither model nor function: the length of given vectors
    dimensions: int | None = None
    #: let the model's repository run Python code of its own
    trust_remote_code: bool = False
    #: a Pixeltable function from text to vector, instead of a model
    function: Any = None


_TEXT_KEYS = ("model_id", "device", "dtype", "query_prompt", "document_prompt")
_COUNT_KEYS = ("batch_size", "dimensions")
_COUNT_MAX = 2**31 - 1
_FLAG_KEYS = ("normalize", "trust_remote_code")
#: what says how a model of ours runs, and so means nothing to a function or to given vectors
_MODEL_KEYS = ("device", "dtype", "batch_size", "query_prompt", "document_prompt", "trust_remote_code")


def parse_embedding_config(value: object) -> EmbeddingConfig | None:
    """Check ``embedding_config`` as the user gave it.

    Args:
        value: a model id or path; a dict with the fields of :class:`EmbeddingConfig` as keys (a key whose value is
            None counts as not given); a dict with ``dimensions`` alone, where vectors are always given; an
            :class:`EmbeddingConfig`; or None for no semantic search.

    Returns:
        The checked configuration, or None for no semantic search.

    Raises:
        InvalidArgumentError: an unknown key, a value out of its range, or keys that exclude each other.
        InvalidTypeError: a value of the wrong type.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = {"model_id": value}
    elif isinstance(value, EmbeddingConfig):
        value = msgspec.structs.asdict(value)
    elif not isinstance(value, dict):
        raise InvalidTypeError("embedding_config", f"must be a str, a dict or None, not {type_name(value)}")

    for key in value:
        if key not in EmbeddingConfig.__struct_fields__:
            allowed = ", ".join(EmbeddingConfig.__struct_fields__)
            raise InvalidArgumentError(f"embedding_config[{brief(key)}]", f"is not a known key; the keys are {allowed}")
    given = {key: item for key, item in value.items() if item is not None}
    for key, item in given.items():
        _check_value(key, item)
    _check_source(given)
    return msgspec.convert(given, EmbeddingConfig)


def _check_value(key: str, item: object) -> None:
    field = f"embedding_config[{key!r}]"
    kind = type_name(item)
    if key in _TEXT_KEYS:
        if not isinstance(item, str):
            raise InvalidTypeError(field, f"must be a str, not {kind}")
        _check_text(key, field, item)
    elif key in _COUNT_KEYS:
        if isinstance(item, bool) or not isinstance(item, int):
            raise InvalidTypeError(field, f"must be an int, not {kind}")
        if item < 1:
            raise InvalidArgumentError(field, f"must be at least 1, not {brief(item)}")
        if item > _COUNT_MAX:
            raise InvalidArgumentError(field, f"must be at most {_COUNT_MAX}, not {brief(item)}")
    elif key in _FLAG_KEYS:
        if not isinstance(item, bool):
            raise InvalidTypeError(field, f"must be a bool, not {kind}")
    elif not hasattr(item, "signatures") and not callable(item):
        raise InvalidTypeError(field, f"must be a Pixeltable function, not {kind}")


def _check_text(key: str, field: str, text: str) -> None:
    if not text.strip() and not key.endswith("_prompt"):
        raise InvalidArgumentError(field, "must not be empty")
    if "\0" in text:
        raise InvalidArgumentError(field, "must not contain NUL")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidArgumentError(field, "must not contain a lone surrogate")
    if key == "dtype" and text not in DTYPES:
        raise InvalidArgumentError(field, f"must be one of {', '.join(DTYPES)}, not {brief(text)}")


def _check_source(given: dict[str, Any]) -> None:
    """Exactly one of model, function, given vectors; and no key that would have no effect on it."""
    if "model_id" in given and "function" in given:
        raise InvalidArgumentError("embedding_config", "has both model_id and function: give one of them")
    if "model_id" in given:
        return
    if "function" not in given and "dimensions" not in given:
        raise InvalidArgumentError(
            "embedding_config",
            "says no source of vectors: give model_id, or function, or dimensions alone where vectors are always given",
        )
    # False is how trust_remote_code says nothing, so that an EmbeddingConfig parses to itself
    idle = [key for key in _MODEL_KEYS if key in given and given[key] is not False]
    if idle:
        raise InvalidArgumentError(f"embedding_config[{idle[0]!r}]", "needs a model_id")
