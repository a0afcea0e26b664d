from __future__ import annotations

import functools
from typing import Any

import pytest

from pixelmemory.embedding import EmbeddingConfig, open_embedder, parse_embedding_config
from pixelmemory.errors import InvalidArgumentError, InvalidTypeError
from tests.harness.embedders import embed_words


def some_function(text: str) -> str:
    return text


def test_none_is_no_semantic_search() -> None:
    assert parse_embedding_config(None) is None


def test_a_string_is_a_model() -> None:
    assert parse_embedding_config("intfloat/e5-large-v2") == EmbeddingConfig(model_id="intfloat/e5-large-v2")


def test_every_key_is_kept() -> None:
    given: dict[str, Any] = {
        "model_id": "some/model",
        "device": "cpu",
        "dtype": "bfloat16",
        "batch_size": 8,
        "query_prompt": "q: ",
        "document_prompt": "",
        "normalize": False,
        "dimensions": 64,
        "trust_remote_code": True,
    }
    config = parse_embedding_config(given)
    assert config is not None
    assert {key: getattr(config, key) for key in given} == given


def test_none_in_a_dict_is_the_default() -> None:
    assert parse_embedding_config({"model_id": "m", "normalize": None, "device": None}) == EmbeddingConfig(model_id="m")


def test_dimensions_alone_are_given_vectors_and_need_no_embedder() -> None:
    config = parse_embedding_config({"dimensions": 3})
    assert config == EmbeddingConfig(dimensions=3)
    assert open_embedder(config) is None


def test_a_config_parses_to_itself() -> None:
    for config in (EmbeddingConfig(model_id="m", device="cpu"), EmbeddingConfig(dimensions=4)):
        assert parse_embedding_config(config) == config


def test_a_python_function_is_named_by_its_module_and_qualified_name() -> None:
    expected = EmbeddingConfig(function=some_function, name="tests.embedding.test_config.some_function")
    for given in (some_function, {"function": some_function}, expected):
        assert parse_embedding_config(given) == expected
    named = parse_embedding_config({"function": lambda texts: texts, "name": "my-model-v1", "batch_size": 7})
    assert named is not None
    assert (named.name, named.batch_size) == ("my-model-v1", 7)


class Client:
    def embed(self, texts: list[str]) -> list[list[float]]:
        return [[1.0] for _ in texts]

    def __call__(self, texts: list[str]) -> list[list[float]]:
        return self.embed(texts)


@pytest.mark.parametrize(
    "function",
    [lambda texts: texts, Client().embed, Client(), functools.partial(some_function)],
    ids=["lambda", "method", "object", "partial"],
)
def test_a_function_that_its_name_does_not_identify_needs_one(function: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"embedding_config\['name'\].*'name': 'my-model-v1'"):
        parse_embedding_config(function)
    assert parse_embedding_config({"function": function, "name": "m"}) is not None


def test_a_nested_function_needs_a_name() -> None:
    def nested(texts: list[str]) -> list[str]:
        return texts

    with pytest.raises(InvalidArgumentError, match="locals"):
        parse_embedding_config(nested)


def test_a_pixeltable_function_goes_to_the_factory() -> None:
    config = parse_embedding_config({"function": embed_words, "dimensions": 3})
    assert config is not None
    asked: list[EmbeddingConfig] = []

    class RefusalError(Exception):
        pass

    def factory(config: EmbeddingConfig) -> Any:
        asked.append(config)
        raise RefusalError

    with pytest.raises(RefusalError):
        open_embedder(config, factory)
    assert asked == [config]
    assert config.function is not None
    with pytest.raises(InvalidArgumentError, match="function"):
        open_embedder(config)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"model": "m"}, "model"),
        ({"model_id": "m", "Device": "cpu"}, "Device"),
        ({"model_id": "m", 3: 4}, "3"),
        ({"model_id": "m", "dtype": "float64"}, "dtype"),
        ({"model_id": "m", "batch_size": 0}, "batch_size"),
        ({"model_id": "m", "dimensions": -1}, "dimensions"),
        ({"model_id": ""}, "model_id"),
        ("  ", "model_id"),
        ("a\0b", "model_id"),
        ({"model_id": "m", "function": some_function}, "both model_id and function"),
        ({}, "no source of vectors"),
        ({"device": "cpu"}, "no source of vectors"),
        ({"dimensions": 3, "device": "cpu"}, "device"),
        ({"function": some_function, "query_prompt": "q: "}, "query_prompt"),
        ({"function": some_function, "name": " "}, "name"),
        ({"function": some_function, "name": "x" * 201}, "at most 200 characters"),
        ({"function": embed_words, "name": "m"}, "name"),
        ({"function": embed_words, "batch_size": 4}, "batch_size"),
        ({"model_id": "m", "name": "m"}, "name"),
        ({"dimensions": 3, "name": "m"}, "name"),
    ],
)
def test_a_bad_value_is_named(value: object, named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named) as caught:
        parse_embedding_config(value)
    assert caught.value.field.startswith("embedding_config")


@pytest.mark.parametrize(
    "value",
    [
        3,
        ["m"],
        b"m",
        {"model_id": 3},
        {"model_id": "m", "batch_size": 2.0},
        {"model_id": "m", "batch_size": True},
        {"model_id": "m", "normalize": 1},
        {"model_id": "m", "trust_remote_code": "yes"},
        {"model_id": "m", "query_prompt": 3},
        {"dimensions": "3"},
        {"function": "intfloat/e5-large-v2"},
        {"function": some_function, "name": 3},
        Client,
    ],
)
def test_a_wrong_type_is_a_type_error(value: object) -> None:
    with pytest.raises(InvalidTypeError) as caught:
        parse_embedding_config(value)
    assert caught.value.field.startswith("embedding_config")
