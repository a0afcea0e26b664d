"""Schemas and their typed columns; where vectors come from, and what another source means."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pixeltable as pxt
import pytest
from numpy.typing import NDArray

from pixelmemory import (
    InvalidArgumentError,
    Layout,
    Memory,
    MemoryExistsError,
    ModelMismatchError,
    Options,
    ProjectionMismatchError,
    SchemaViolationError,
)
from pixelmemory.memory.filters import matches, parse_filter
from tests.harness import tiny_models
from tests.harness.embedders import DIMENSIONS, REFUSED, cosine, embed_length, embed_words, failing, words_vector

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

SCHEMA = {
    "kind": str,
    "year": int,
    "score": float,
    "done": bool,
    "at": dt.datetime,
    "tags": list[str],
    "note": str | None,
}
NOON = "2024-05-01T12:00:00+02:00"

FITTING: list[dict[str, Any]] = [
    {},
    {"kind": "paper", "year": 2020, "score": 0.5, "done": True, "at": NOON, "tags": ["a", "b"], "note": None},
    {"kind": "Paper", "year": -5, "score": 3, "done": False, "at": "1999-12-31T23:59:59.999999Z", "tags": []},
    {"kind": "x" * 5000, "year": 2**63 - 1, "score": 1e300, "extra": {"any": ["thing"]}},
    {"kind": "", "year": 0, "score": -0.0, "tags": ["b"], "note": "n"},
    {"kind": "paper", "year": 2021, "extra": 1},
]

VIOLATIONS: list[tuple[Any, str]] = [
    ({"kind": 5}, "metadata.kind"),
    ({"kind": None}, "metadata.kind"),
    ({"kind": ["paper"]}, "metadata.kind"),
    ({"year": "2020"}, "metadata.year"),
    ({"year": 2020.5}, "metadata.year"),
    ({"year": True}, "metadata.year"),
    ({"year": 2**63}, "metadata.year"),
    ({"score": "0.5"}, "metadata.score"),
    ({"score": 2**53 + 1}, "metadata.score"),
    ({"done": 1}, "metadata.done"),
    ({"at": "yesterday"}, "metadata.at"),
    ({"at": 1714557600}, "metadata.at"),
    ({"tags": "a"}, "metadata.tags"),
    ({"tags": ["a", 1]}, "metadata.tags[1]"),
    ({"note": 1}, "metadata.note"),
]


def columns(mem: Memory, *names: str) -> list[dict[str, Any]]:
    table = mem.get_namespace_table("default_namespace")
    return list(table.order_by(table.lsn).select(*[getattr(table, name) for name in names]).collect())


# --------------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])
def test_typed_columns(open_memory: OpenMemory, direct_sql: bool) -> None:
    mem = open_memory(schema=SCHEMA, direct_sql=direct_sql)
    mem.add_entries([{"content": str(n), "metadata": metadata} for n, metadata in enumerate(FITTING)])
    mem.flush()
    rows = columns(mem, *SCHEMA)
    for row, metadata in zip(rows, FITTING, strict=True):
        expected = {name: metadata.get(name) for name in SCHEMA}
        if expected["at"] is not None:
            expected["at"] = dt.datetime.fromisoformat(expected["at"])
        assert row == expected
    found = mem.search(limit=100)
    assert [m["metadata"] for m in reversed(found)] == FITTING
    assert [list(m["metadata"]) for m in reversed(found)] == [list(metadata) for metadata in FITTING]

    asked: list[dict[str, Any]] = [
        {"kind": "paper"}, {"kind": {"$ne": "paper"}}, {"kind": {"$gte": "p"}}, {"kind": {"$in": ["Paper", ""]}},
        {"kind": "x" * 5000}, {"kind": {"$gt": "x" * 4999}}, {"kind": 5}, {"kind": {"$exists": False}},
        {"year": 2020}, {"year": 2020.0}, {"year": {"$gt": 2020}}, {"year": {"$lte": -4.5}}, {"year": {"$lt": 10**20}},
        {"year": {"$in": [0, 2**63 - 1]}}, {"year": "2020"}, {"score": 3}, {"score": {"$gte": 0}}, {"score": 0},
        {"done": True}, {"done": 1}, {"done": {"$ne": True}}, {"at": NOON}, {"at": {"$gt": "2000"}}, {"tags": "b"},
        {"tags": {"$contains": "a"}}, {"tags": []}, {"note": None}, {"note": {"$exists": True}}, {"extra.any": "thing"},
        {"$not": {"year": {"$gt": 0}}}, {"$or": [{"done": False}, {"extra": 1}], "year": {"$nin": [2021]}},
    ]  # fmt: skip
    for wanted in asked:
        tree = parse_filter(wanted, Options())
        expected_contents = [str(n) for n, metadata in enumerate(FITTING) if matches(tree, metadata)]
        found = mem.search(limit=100, metadata_filter=wanted)
        assert [m["content"] for m in reversed(found)] == expected_contents, wanted


def test_typed_columns_follow_updates_and_deletes(open_memory: OpenMemory) -> None:
    mem = open_memory(schema=SCHEMA)
    ids = mem.add_entries([{"content": str(n), "metadata": {"kind": "a", "year": n}} for n in range(3)])
    mem.update_memory(ids[0], metadata={"year": 10})
    mem.update_memory(ids[1], content="one")
    mem.delete_memory(ids[2])
    mem.flush()
    rows = {row["content"]: row for row in columns(mem, "content", "kind", "year")}
    assert rows["0"] == {"content": "0", "kind": None, "year": 10}
    assert rows["one"] == {"content": "one", "kind": "a", "year": 1}
    assert len(rows) == 2
    assert [m["content"] for m in mem.search(metadata_filter={"year": {"$gte": 10}})] == ["0"]


@pytest.fixture(scope="module")
def with_schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    options = Options(home=tmp_path_factory.mktemp("home"), progress=False)
    with Memory("violations", SCHEMA, None, options=options) as mem:
        mem.add_entry("good", metadata={"kind": "paper"}, memory_id="good")
        yield mem


@pytest.mark.parametrize(("metadata", "field"), VIOLATIONS)
def test_a_violation_is_refused_before_the_log(with_schema: Memory, metadata: Any, field: str) -> None:
    mem = with_schema
    lsn = mem.stats().durable_lsn
    good = {"content": "x", "metadata": {"year": 1}}
    for call, place in (
        (lambda: mem.add_entry("x", metadata=metadata), field),
        (lambda: mem.update_memory("good", metadata=metadata), field),
        (lambda: mem.update_memory("good", content="x", metadata=metadata), field),
        (lambda: mem.add_entries([good, {"content": "x", "metadata": metadata}]), f"entries[1].{field}"),
    ):
        with pytest.raises(SchemaViolationError) as raised:
            call()
        assert raised.value.field == place
        assert isinstance(raised.value, ValueError)
    assert mem.stats().durable_lsn == lsn
    assert [(m["content"], m["metadata"]) for m in mem.search()] == [("good", {"kind": "paper"})]


class Kind(enum.StrEnum):
    PAPER = "paper"


def test_an_update_accepts_what_an_add_accepts(with_schema: Memory) -> None:
    """Values that are kept as what they are equal to: a text of a subclass, a mapping that is no dict."""
    metadata: Any = OrderedDict(kind=Kind.PAPER, extra=OrderedDict(a=1))
    memory_id = with_schema.add_entry("x", metadata=metadata)
    try:
        assert with_schema.update_memory(memory_id, metadata=metadata)
        found = with_schema.get_memory(memory_id)
        assert found is not None
        assert found["metadata"] == {"kind": "paper", "extra": {"a": 1}}
        assert type(found["metadata"]["kind"]) is str
    finally:
        with_schema.delete_memory(memory_id)


class Paper(msgspec.Struct):
    title: str
    year: int
    rating: float | None = None


def test_a_struct_as_schema(open_memory: OpenMemory) -> None:
    mem = open_memory(schema=Paper)
    mem.add_entry("a", metadata={"title": "T", "year": 2020, "more": True})
    for metadata, field in (
        ({}, "metadata.title"),
        (None, "metadata.title"),
        ({"title": "T"}, "metadata.year"),
        ({"title": "T", "year": 1, "rating": "good"}, "metadata.rating"),
    ):
        with pytest.raises(SchemaViolationError) as raised:
            mem.add_entry("b", metadata=metadata)
        assert raised.value.field == field
    assert mem.last_lsn == 1
    assert mem.count() == 1
    assert columns(mem, "title", "year", "rating") == [{"title": "T", "year": 2020, "rating": None}]


def test_pixeltable_types_as_schema(open_memory: OpenMemory) -> None:
    mem = open_memory(schema={"n": pxt.Int, "text": pxt.String, "any": pxt.Json, "when": pxt.Timestamp})
    mem.add_entry("a", metadata={"n": 1, "text": "t", "any": {"x": [1]}, "when": NOON})
    with pytest.raises(SchemaViolationError):
        mem.add_entry("b", metadata={"n": "1"})
    mem.flush()
    when = dt.datetime.fromisoformat(NOON)
    assert columns(mem, "n", "text", "any", "when") == [{"n": 1, "text": "t", "any": {"x": [1]}, "when": when}]


@pytest.mark.parametrize("layout", list(Layout))
def test_another_schema_needs_a_rebuild(open_memory: OpenMemory, layout: Layout) -> None:
    given: list[dict[str, Any]] = [{"year": 2020}, {"year": "unknown", "kind": "a"}, {"kind": 5, "year": 2**70}, {}]
    with open_memory(layout=layout) as mem:
        mem.add_entries([{"content": str(n), "metadata": metadata} for n, metadata in enumerate(given)])
    schema = {"year": int, "kind": str}
    for attempt in range(2):
        with pytest.raises(ProjectionMismatchError, match="schema") as raised:
            open_memory(schema=schema, layout=layout)
        assert "rebuild=True" in str(raised.value), attempt
    with open_memory(layout=layout) as mem:
        assert mem.count() == 4, "a refused open changes nothing"
    with open_memory(schema=schema, layout=layout, rebuild=True) as mem:
        found = mem.search(limit=10)
        assert [m["metadata"] for m in reversed(found)] == given, "what was written before the schema stays"
        assert columns(mem, "year", "kind") == [
            {"year": 2020, "kind": None},
            {"year": None, "kind": "a"},
            {"year": None, "kind": None},
            {"year": None, "kind": None},
        ]
        wants: list[dict[str, Any]] = [
            {"year": {"$gte": 0}}, {"year": {"$gt": "a"}}, {"kind": 5}, {"kind": {"$gte": 1}}, {"year": 2**70},
            {"year": {"$exists": False}}, {"kind": {"$ne": "a"}},
        ]  # fmt: skip
        for wanted in wants:
            tree = parse_filter(wanted, Options())
            expected = [metadata for metadata in given if matches(tree, metadata)]
            assert [m["metadata"] for m in reversed(mem.search(metadata_filter=wanted))] == expected, wanted
        with pytest.raises(SchemaViolationError):
            mem.add_entry("new", metadata={"year": "unknown"})
        assert mem.health().ok
    with open_memory(schema=dict(reversed(schema.items())), layout=layout) as mem:
        assert mem.count() == 4, "the order of a schema's fields does not matter"
    with pytest.raises(ProjectionMismatchError):
        open_memory(layout=layout)


def test_another_layout_needs_a_rebuild(open_memory: OpenMemory) -> None:
    with open_memory() as mem:
        for space in ("a", "b"):
            mem.add_entry(f"in {space}", space)
    with pytest.raises(ProjectionMismatchError, match="layout"):
        open_memory(layout=Layout.SHARED)
    with open_memory(layout=Layout.SHARED, rebuild=True) as mem:
        assert [m["content"] for m in mem.search("a")] == ["in a"]
        assert mem.namespaces() == ["a", "b"]
        mem.add_entry("more", "b")
    with open_memory(rebuild=True) as mem:
        assert [m["content"] for m in mem.search("b")] == ["more", "in b"]


# ------------------------------------------------------------------------------------------- where vectors come from

WORDS = {"function": embed_words}
GIVEN = {"dimensions": DIMENSIONS}


def test_no_embedding_at_all(open_memory: OpenMemory) -> None:
    mem = open_memory()
    mem.add_entry("found by metadata", metadata={"n": 1})
    assert [m["content"] for m in mem.search(metadata_filter={"n": 1})] == ["found by metadata"]
    with pytest.raises(InvalidArgumentError, match="no semantic search"):
        mem.search(query="anything")


@pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])
def test_vectors_that_are_always_given(open_memory: OpenMemory, direct_sql: bool) -> None:
    mem = open_memory(embedding_config={"dimensions": 3}, direct_sql=direct_sql)
    with pytest.raises(InvalidArgumentError) as raised:
        mem.add_entry("x")
    assert raised.value.field == "embedding"
    ids = mem.add_entries([{"content": "same text", "embedding": axis} for axis in np.eye(3)])
    for memory_id, axis in zip(ids, np.eye(3), strict=True):
        best = mem.search(vector=axis, limit=1)[0]
        assert best["memory_id"] == memory_id
        assert best["similarity_score"] == pytest.approx(1)
    with pytest.raises(InvalidArgumentError, match="no model"):
        mem.search(query="same text")
    assert len(mem.search(vector=[1, 1, 1], limit=10)) == 3


# above 2000 they are indexed in half precision
@pytest.mark.parametrize(
    ("dimensions", "direct_sql"), [(1, True), (2000, True), (2001, True), (4000, True), (2001, False)]
)
def test_vectors_of_any_length(open_memory: OpenMemory, dimensions: int, direct_sql: bool) -> None:
    mem = open_memory(embedding_config={"dimensions": dimensions}, direct_sql=direct_sql)
    vectors = np.random.default_rng(0).standard_normal((20, dimensions))
    mem.add_entries([{"content": str(n), "embedding": vector} for n, vector in enumerate(vectors)])
    for n in range(0, 20, 6):
        found = mem.search(vector=vectors[n], limit=20)
        scores = [m["similarity_score"] for m in found]
        assert len(scores) == 20
        assert scores[0] == pytest.approx(1, abs=1e-3)
        assert all(-1 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        if dimensions > 1:
            assert found[0]["content"] == str(n)


def test_equal_texts_keep_their_vectors(open_memory: OpenMemory) -> None:
    """The model's and those of the caller's own, at once and after rebuilds."""
    axes = np.eye(DIMENSIONS)
    mem = open_memory(embedding_config=WORDS)
    own = [mem.add_entry("same", embedding=axis) for axis in axes[:2]]
    models = [mem.add_entry("same") for _ in range(2)]
    changed = mem.add_entry("other", embedding=axes[2])
    mem.update_memory(changed, content="same")
    given_later = mem.add_entry("other")
    mem.update_memory(given_later, content="same", embedding=axes[3])
    mem.close()
    target = axes[0] + 2 * axes[1] + 3 * axes[3]
    length = float(np.linalg.norm(target))
    of_model = cosine(words_vector("same"), target)
    expected = dict.fromkeys([*models, changed], of_model)
    expected |= {own[0]: 1 / length, own[1]: 2 / length, given_later: 3 / length}
    for options in (dict[str, Any](), dict[str, Any](rebuild=True), dict[str, Any](rebuild=True, direct_sql=False)):
        with open_memory(embedding_config=WORDS, **options) as mem:
            found = {m["memory_id"]: m["similarity_score"] for m in mem.search(vector=target, limit=10)}
            assert found == pytest.approx(expected, abs=1e-5)


def test_rows_without_a_vector_are_found_otherwise(open_memory: OpenMemory) -> None:
    """A user's own row in a store without a model."""
    mem = open_memory(embedding_config={"dimensions": 3})
    mem.add_entry("has one", embedding=[1, 0, 0])
    mem.get_namespace_table("default_namespace").insert([{"memory_id": uuid.uuid4(), "content": "has none"}])
    assert [m["content"] for m in mem.search()] == ["has one", "has none"]
    assert [m["content"] for m in mem.search(vector=[1, 0, 0])] == ["has one"]


def test_a_text_that_cannot_be_embedded(open_memory: OpenMemory) -> None:
    mem = open_memory(embedding_config=WORDS)
    failing[0] = True
    bad = f"some {REFUSED}"
    mem.add_entries([{"content": "before"}, {"content": bad, "memory_id": "bad"}, {"content": "after"}])
    assert [m["content"] for m in mem.search(query="after", limit=1)] == ["after"], "it holds nothing up"
    assert mem.stats().dead_letters == 1
    health = mem.health()
    assert not health.ok
    assert "retry_dead_letters" in health.problems[0]
    assert mem.retry_dead_letters() == 0

    # it was acknowledged, so it exists for whoever writes
    with pytest.raises(MemoryExistsError):
        mem.add_entry("again", memory_id="bad")
    assert mem.update_memory("bad", metadata={"later": True})
    mem.add_entry(bad, memory_id="doomed")
    mem.flush()
    assert mem.delete_memory("doomed")
    mem.flush()
    assert not mem.delete_memory("doomed")
    assert not mem.update_memory("doomed", metadata={})
    mem.close()
    mem = open_memory(embedding_config=WORDS)
    assert mem.update_memory("bad", metadata={"latest": True})
    mem.flush()
    assert mem.stats().dead_letters == 5

    failing[0] = False
    try:
        assert mem.retry_dead_letters() == 5
        found = mem.search(query=bad, limit=1)
        assert found[0]["similarity_score"] == pytest.approx(1)
        assert (found[0]["memory_id"], found[0]["metadata"]) == ("bad", {"latest": True})
        assert mem.health().ok
        assert mem.count() == 3
    finally:
        failing[0] = True


def test_another_model_is_refused_until_reembedded(open_memory: OpenMemory) -> None:
    texts = ["a", "bb", "a longer text", "an even much longer text"]
    other = {"function": embed_length}
    with open_memory(embedding_config=WORDS) as mem:
        ids = mem.add_entries([{"content": text, "metadata": {"n": n}} for n, text in enumerate(texts)])
        mem.update_memory(ids[0], content="aaa")
        before = mem.search(limit=10)
    for config in (other, None, GIVEN, {"dimensions": 3}):
        with pytest.raises(ModelMismatchError) as raised:
            open_memory(embedding_config=config)
        assert "embed_words" in raised.value.stored
        assert raised.value.stored != raised.value.given
        assert "reembed=True" in str(raised.value)
    with open_memory(embedding_config=WORDS) as mem:
        assert mem.search(query="bb", limit=1)[0]["similarity_score"] == pytest.approx(1)
    with open_memory(embedding_config=other, reembed=True) as mem:
        assert mem.search(limit=10) == before
        assert mem.search(query="zz", limit=1)[0]["content"] == "bb", "by length now"
        assert mem.health().ok
    with open_memory(embedding_config=other) as mem:
        assert mem.search(query="zzz", limit=1)[0]["content"] == "aaa"
    with pytest.raises(ModelMismatchError):
        open_memory(embedding_config=WORDS)
    with open_memory(embedding_config=None, reembed=True) as mem:
        assert mem.search(limit=10) == before
    with open_memory(embedding_config=WORDS, reembed=True) as mem:
        assert mem.search(limit=10) == before
        assert mem.search(query="aaa", limit=1)[0]["similarity_score"] == pytest.approx(1)


def test_given_vectors_give_way_to_a_model(open_memory: OpenMemory) -> None:
    with open_memory(embedding_config={"dimensions": 3}) as mem:
        mem.add_entries([{"content": text, "embedding": axis} for text, axis in zip("abc", np.eye(3), strict=True)])
    with open_memory(embedding_config=WORDS, reembed=True) as mem:
        for text in "abc":
            best = mem.search(query=text, limit=1)[0]
            assert best["content"] == text
            assert best["similarity_score"] == pytest.approx(1)
        assert mem.health().ok


def test_scores_are_those_of_the_function(open_memory: OpenMemory) -> None:
    mem = open_memory(embedding_config=WORDS)
    texts = [f"{a} {b}" for a in ("red", "green", "") for b in ("car", "boat", "car boat")]
    mem.add_entries([{"content": text} for text in texts])
    for query in ("red boat", "car"):
        scores = {m["content"]: m["similarity_score"] for m in mem.search(query=query, limit=20)}
        expected = {text: cosine(words_vector(text), words_vector(query)) for text in texts}
        assert scores == pytest.approx(expected, abs=1e-5)


# --------------------------------------------------------------------------------------------------- a model's prompts


def by_hand(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """What sentence-transformers itself gives for texts into which the prompts were already written."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    vectors: NDArray[np.float32] = model.encode(texts, prompt="", normalize_embeddings=True, show_progress_bar=False)
    return vectors


def test_prompts_of_an_e5_are_used_at_add_and_at_search(open_memory: OpenMemory, tmp_path: Path) -> None:
    folder = tmp_path / "e5-tiny"
    tiny_models.save_bert(folder)
    texts = ["the cat sat on the mat", "a dog ran far", "mat", "far"]
    passages = by_hand(folder, [f"passage: {text}" for text in texts])
    [query] = by_hand(folder, ["query: a cat"])
    expected = {text: cosine(vector, query) for text, vector in zip(texts, passages, strict=True)}
    bare = by_hand(folder, [*texts, "a cat"])
    unprompted = {text: cosine(vector, bare[-1]) for text, vector in zip(texts, bare[:-1], strict=True)}
    assert max(abs(expected[text] - unprompted[text]) for text in texts) > 0.01, "else this test shows nothing"

    mem = open_memory(embedding_config=str(folder))
    memory_id = mem.add_entry("before an update")
    mem.add_entries([{"content": text} for text in texts[1:]])
    mem.update_memory(memory_id, content=texts[0])
    scores = {m["content"]: m["similarity_score"] for m in mem.search(query="a cat", limit=10)}
    assert scores == pytest.approx(expected, abs=1e-4)
    # a row of the user's is embedded as a passage too
    table = mem.get_namespace_table("default_namespace")
    table.insert([{"memory_id": uuid.uuid4(), "content": "the dog"}])
    [passage] = by_hand(folder, ["passage: the dog"])
    found = {m["content"]: m["similarity_score"] for m in mem.search(query="a cat", limit=10)}
    assert found["the dog"] == pytest.approx(cosine(passage, query), abs=1e-4)
    mem.close()

    # prompts are part of what the vectors are
    with pytest.raises(ModelMismatchError):
        open_memory(embedding_config={"model_id": str(folder), "query_prompt": "", "document_prompt": ""})
    again = open_memory(embedding_config={"model_id": str(folder), "batch_size": 2}, rebuild=True)
    scores = {m["content"]: m["similarity_score"] for m in again.search(query="a cat", limit=10)}
    assert scores == pytest.approx(expected, abs=1e-4)


def test_a_real_model(open_memory: OpenMemory, minilm_path: str) -> None:
    mem = open_memory(embedding_config=minilm_path)
    texts = ["Ada prefers green tea in the morning", "The invoice is due on Friday", "Bob is allergic to peanuts", ""]
    mem.add_entries([{"content": text, "metadata": {"n": n}} for n, text in enumerate(texts)])
    for query, n in (
        ("What does Ada drink?", 0),
        ("When do I have to pay?", 1),
        ("Which food is dangerous for Bob?", 2),
    ):
        found = mem.search(query=query, limit=10)
        assert found[0]["content"] == texts[n]
        assert len(found) == 4
        assert mem.search(query=query, metadata_filter={"n": {"$ne": n}})[0]["content"] != texts[n]
    assert mem.health().ok


def test_reembed_needs_a_model(store_name: str, open_memory: OpenMemory) -> None:
    mem = open_memory(store_name, embedding_config={"dimensions": 8})
    mem.add_entry("kept", memory_id="a", embedding=[1.0] * 8)
    mem.close()
    with pytest.raises(InvalidArgumentError, match="names no model"):
        open_memory(store_name, embedding_config={"dimensions": 4}, reembed=True)
    again = open_memory(store_name, embedding_config={"dimensions": 8})
    assert again.search(vector=[1.0] * 8)[0]["memory_id"] == "a"
