"""What ``embedding_config`` may be, checked once."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from pixelmemory.errors import InvalidArgumentError, InvalidTypeError, brief, type_name

__all__ = ["DTYPES", "EmbeddingConfig", "is_host_function", "parse_embedding_config"]

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
    #: texts in one pass through the model, or in one call of a Python function; None: 32 for a model on a CPU,
    #: 128 elsewhere
    batch_size: int | None = None
    #: put before every query; None: the model's own, ``""``: none
    query_prompt: str | None = None
    #: put before every memory's content; None: the model's own, ``""``: none
    document_prompt: str | None = None
    #: scale every vector to length 1
    normalize: bool = True
    #: with a model: vectors are cut to this length; with a function: how long its vectors are (None: it is called once
    #: at open to see); with neither: the length of given vectors
    dimensions: int | None = None
    #: let the model's repository run Python code of its own
    trust_remote_code: bool = False
    #: instead of a model: a Python function from a list of texts to as many vectors, sync or async; or a Pixeltable
    #: function from text to vector
    function: Any = None
    #: what identifies a Python function, and so the model behind it; None: its module and qualified name
    name: str | None = None


_TEXT_KEYS = ("model_id", "device", "dtype", "query_prompt", "document_prompt", "name")
_COUNT_KEYS = ("batch_size", "dimensions")
_COUNT_MAX = 2**31 - 1
_NAME_CHARS_MAX = 200
_FLAG_KEYS = ("normalize", "trust_remote_code")
#: what says how a model of ours runs, and so means nothing to a function or to given vectors
_MODEL_KEYS = ("device", "dtype", "batch_size", "query_prompt", "document_prompt", "trust_remote_code")


def parse_embedding_config(value: object) -> EmbeddingConfig | None:
    """Check ``embedding_config`` as the user gave it.

    Args:
        value: a model id or path; a function; a dict with the fields of :class:`EmbeddingConfig` as keys (a key whose
            value is None counts as not given); a dict with ``dimensions`` alone, where vectors are always given; an
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
    elif callable(value) or is_host_function(value):
        value = {"function": value}
    elif not isinstance(value, dict):
        raise InvalidTypeError("embedding_config", f"must be a str, a function, a dict or None, not {type_name(value)}")

    for key in value:
        if key not in EmbeddingConfig.__struct_fields__:
            allowed = ", ".join(EmbeddingConfig.__struct_fields__)
            raise InvalidArgumentError(f"embedding_config[{brief(key)}]", f"is not a known key; the keys are {allowed}")
    given = {key: item for key, item in value.items() if item is not None}
    for key, item in given.items():
        _check_value(key, item)
    _check_source(given)
    if "function" in given and "name" not in given and not is_host_function(given["function"]):
        given["name"] = _name_of(given["function"])
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
    elif isinstance(item, type) or not (callable(item) or is_host_function(item)):
        raise InvalidTypeError(field, f"must be a function of Python or of Pixeltable, not {kind}")


def is_host_function(function: object) -> bool:
    """Whether ``function`` is one of Pixeltable's, as far as can be seen without loading Pixeltable."""
    return hasattr(function, "signatures")


def _name_of(function: object) -> str:
    """What identifies ``function`` where the user gives it no name.

    Raises:
        InvalidArgumentError: nothing does: its qualified name may be that of other functions too.
    """
    name = getattr(function, "__qualname__", None)
    owner = getattr(function, "__self__", None)
    is_of_an_object = owner is not None and not inspect.isclass(owner) and not inspect.ismodule(owner)
    if not isinstance(name, str) or "<" in name or is_of_an_object:
        raise InvalidArgumentError(
            "embedding_config['name']",
            f"is missing: {brief(name) if isinstance(name, str) else type_name(function)} has no name that identifies "
            "it for good. Give one that changes with the model: "
            "embedding_config={'function': ..., 'name': 'my-model-v1'}",
        )
    return f"{getattr(function, '__module__', None) or 'unknown'}.{name}"


def _check_text(key: str, field: str, text: str) -> None:
    if not text.strip() and not key.endswith("_prompt"):
        raise InvalidArgumentError(field, "must not be empty")
    if "\0" in text:
        raise InvalidArgumentError(field, "must not contain NUL")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidArgumentError(field, "must not contain a lone surrogate")
    if key == "name" and len(text) > _NAME_CHARS_MAX:
        raise InvalidArgumentError(field, f"must have at most {_NAME_CHARS_MAX} characters, not {len(text)}")
    if key == "dtype" and text not in DTYPES:
        raise InvalidArgumentError(field, f"must be one of {', '.join(DTYPES)}, not {brief(text)}")


def _check_source(given: dict[str, Any]) -> None:
    """Exactly one of model, function, given vectors; and no key that would have no effect on it."""
    if "model_id" in given and "function" in given:
        raise InvalidArgumentError("embedding_config", "has both model_id and function: give one of them")
    if "model_id" in given:
        if "name" in given:
            raise InvalidArgumentError("embedding_config['name']", "needs a function; a model has its own name")
        return
    if "function" not in given and "dimensions" not in given:
        raise InvalidArgumentError(
            "embedding_config",
            "says no source of vectors: give model_id, or function, or dimensions alone where vectors are always given",
        )
    # False is how trust_remote_code says nothing, so that an EmbeddingConfig parses to itself
    is_python = "function" in given and not is_host_function(given["function"])
    idle = [key for key in _MODEL_KEYS if key in given and given[key] is not False]
    idle = [key for key in idle if not (is_python and key == "batch_size")]
    if idle:
        raise InvalidArgumentError(f"embedding_config[{idle[0]!r}]", "needs a model_id")
    if "name" in given and not is_python:
        raise InvalidArgumentError("embedding_config['name']", "needs a Python function")
