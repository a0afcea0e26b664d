"""What a store says that is opened with another model, schema or layout than its own: by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pixelmemory import Layout, ModelMismatchError, ProjectionMismatchError
from pixelmemory.cli import main
from pixelmemory.embedding.fingerprint import embedding_label, tell_apart
from pixelmemory.store.manifest import Manifest
from tests.harness.embedders import DIMENSIONS, embed_words

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

NO_MODEL = "no model"
OWN_VECTORS = f"vectors of your own ({DIMENSIONS} dimensions)"
FUNCTION = f"the Pixeltable function tests.harness.embedders.embed_words ({DIMENSIONS} dimensions)"


def manifest_of(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    assert manifest is not None
    return manifest


def as_before_labels(folder: Path) -> None:
    """The MANIFEST as a version wrote it that kept neither a label nor fields."""
    msgspec.structs.replace(manifest_of(folder), embedding_label=None, schema=None).save(folder)


# -- models


def test_a_model_in_a_folder_is_named_by_its_last_part(
    open_memory: OpenMemory, store_name: str, minilm_path: str, tmp_path: Path
) -> None:
    folder = tmp_path / "my-minilm"
    shutil.copytree(minilm_path, folder)
    name = "my-minilm (a folder, 384 dimensions)"
    store = tmp_path / store_name
    open_memory(embedding_config=str(folder)).close()
    assert manifest_of(store).embedding_label == name
    assert str(folder) not in (store / "MANIFEST").read_text()

    given: list[tuple[Any, str]] = [
        (None, NO_MODEL),
        ({"dimensions": DIMENSIONS}, OWN_VECTORS),
        ({"function": embed_words}, FUNCTION),
    ]
    for config, other in given:
        with pytest.raises(ModelMismatchError) as raised:
            open_memory(embedding_config=config)
        assert (raised.value.stored_model, raised.value.given_model) == (name, other)
        assert f"was made with {name}, and was opened with {other}." in str(raised.value)
        assert raised.value.stored.startswith("model=")

    with pytest.raises(ModelMismatchError) as raised:
        open_memory(embedding_config={"model_id": str(folder), "normalize": False, "query_prompt": "q: "})
    assert raised.value.stored_model == f'{name} with normalize=yes, query=""'
    assert raised.value.given_model == f'{name} with normalize=no, query="q: "'

    # an older store: the fingerprint is all it has, until it is opened with its model
    as_before_labels(store)
    with pytest.raises(ModelMismatchError) as raised:
        open_memory(embedding_config=None)
    assert raised.value.stored_model == raised.value.stored
    assert raised.value.stored in str(raised.value)
    assert manifest_of(store).embedding_label is None, "a refused open writes nothing"
    open_memory(embedding_config=minilm_path).close()
    assert manifest_of(store).embedding_label == "model (a folder, 384 dimensions)", "as it was opened last"


@pytest.mark.parametrize(
    ("config", "name"),
    [(None, NO_MODEL), ({"dimensions": DIMENSIONS}, OWN_VECTORS), ({"function": embed_words}, FUNCTION)],
)
def test_what_is_no_model_is_named_in_older_stores_too(
    open_memory: OpenMemory, store_name: str, tmp_path: Path, config: Any, name: str
) -> None:
    open_memory(embedding_config=config).close()
    assert manifest_of(tmp_path / store_name).embedding_label == name
    as_before_labels(tmp_path / store_name)
    with pytest.raises(ModelMismatchError) as raised:
        open_memory(embedding_config={"dimensions": 3})
    assert raised.value.stored_model == name
    assert raised.value.given_model == "vectors of your own (3 dimensions)"


def fingerprint(**changes: str) -> str:
    settings = {"model": "aa", "dimensions": "3", "query": '"a \\"b\\" c=d"', "document": '""'} | changes
    return " ".join(f"{key}={value}" for key, value in settings.items())


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ((fingerprint(), "x"), (fingerprint(model="bb"), "y"), ("x", "y")),
        ((fingerprint(), "x"), (fingerprint(model="bb"), "x"), ("x with model=aa", "x with model=bb")),
        # one model under two names, and a prompt with all that could mislead
        ((fingerprint(), "x"), (fingerprint(query='"q"'), "y"), ('x with query="a \\"b\\" c=d"', 'y with query="q"')),
        ((fingerprint(), None), ("none", None), (fingerprint(), "no model")),
        (("given:3", None), ("given:4", None), tuple(f"vectors of your own ({n} dimensions)" for n in (3, 4))),
    ],
)
def test_two_that_share_a_name_are_told_apart(
    stored: tuple[str, str | None], given: tuple[str, str | None], expected: tuple[str, str]
) -> None:
    assert tell_apart(stored, given) == expected


def test_a_function_with_colons_in_its_name_keeps_them() -> None:
    assert embedding_label("function:a:b:3", None) == "the Pixeltable function a:b (3 dimensions)"


# -- schemas and layouts


@pytest.mark.parametrize(
    ("stored", "given", "differences"),
    [
        ({"year": int, "author": str}, {"year": str, "author": str}, "the field 'year' was int and is now string"),
        ({"year": int}, {"year": int, "tags": list[str]}, "the field 'tags' (json) is new"),
        ({"year": int, "ok": bool}, {"year": int}, "the field 'ok' (bool) is missing"),
        (None, {"year": int}, "the field 'year' (int) is new"),
        ({"year": float}, None, "the field 'year' (float) is missing"),
    ],
)
def test_the_field_that_differs_is_named(
    open_memory: OpenMemory,
    store_name: str,
    tmp_path: Path,
    stored: Mapping[str, Any] | None,
    given: Mapping[str, Any] | None,
    differences: str,
) -> None:
    open_memory(schema=stored).close()
    for _ in range(2):  # the refused open has changed nothing that the message is made from
        with pytest.raises(ProjectionMismatchError) as raised:
            open_memory(schema=given)
        assert raised.value.differences == f"in the schema, {differences}"
        assert differences in str(raised.value)
        assert list(raised.value.stored_fields or {}) == list(stored or {})
        assert list(raised.value.given_fields or {}) == list(given or {})
    open_memory(schema=given, rebuild=True).close()
    assert list(manifest_of(tmp_path / store_name).schema or {}) == list(given or {})
    open_memory(schema=given).close()


def test_many_fields_are_not_all_named(open_memory: OpenMemory) -> None:
    open_memory(schema={f"f{n}": int for n in range(15)}).close()
    with pytest.raises(ProjectionMismatchError, match=r"'f9' \(int\) is missing, and 5 more\. Open"):
        open_memory()


def test_fields_that_are_not_known_are_not_guessed(open_memory: OpenMemory, store_name: str, tmp_path: Path) -> None:
    """An older store, and one whose fields were written down before its tables were made with others."""
    store = tmp_path / store_name
    open_memory(schema={"year": int}).close()
    as_before_labels(store)
    for recorded in (None, {"year": "bool"}):
        msgspec.structs.replace(manifest_of(store), schema=recorded).save(store)
        with pytest.raises(
            ProjectionMismatchError, match=r"the schema was the one of the fingerprint [0-9a-f]{32}"
        ) as raised:
            open_memory(schema={"year": str})
        assert raised.value.stored_fields is None
        assert "(year: string)" in str(raised.value)
    open_memory(schema={"year": int}).close()
    assert manifest_of(store).schema == {"year": "int"}, "it gains them"
    with pytest.raises(ProjectionMismatchError, match="'year' was int and is now string"):
        open_memory(schema={"year": str})


def test_a_layout_is_said_in_words(open_memory: OpenMemory) -> None:
    open_memory(layout=Layout.PER_NAMESPACE).close()
    with pytest.raises(ProjectionMismatchError) as raised:
        open_memory(layout=Layout.SHARED)
    expected = "the layout was a table for each namespace (per_namespace) and is now one table for all (shared)"
    assert raised.value.differences == expected
    with pytest.raises(ProjectionMismatchError) as raised:
        open_memory(layout=Layout.SHARED, schema={"year": int})
    assert raised.value.differences == f"in the schema, the field 'year' (int) is new; {expected}"


# -- the program


def test_verify_shows_model_and_schema(
    open_memory: OpenMemory, store_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / store_name
    open_memory(schema={"year": int, "author": str}, embedding_config={"dimensions": DIMENSIONS}).close()
    assert main(["verify", str(store), "--log-only"]) == 0
    text = capsys.readouterr().out
    assert f"model        {OWN_VECTORS}\n" in text
    assert "schema       year: int, author: string\n" in text
    assert main(["verify", str(store), "--log-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["schema"]) == (OWN_VECTORS, {"year": "int", "author": "string"})

    msgspec.structs.replace(manifest_of(store), embedding="model=aa", embedding_label=None, schema=None).save(store)
    assert main(["verify", str(store), "--log-only"]) == 0
    text = capsys.readouterr().out
    assert "model        model=aa\n" in text
    assert "\nschema" not in text
