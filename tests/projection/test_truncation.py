"""Texts that are longer than the model reads are counted, and can be listed."""

from __future__ import annotations

import datetime as dt
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pixelmemory import InvalidArgumentError, Layout, Memory
from pixelmemory.projection.contract import PAGE_ROWS
from tests.harness import tiny_models
from tests.harness.embedders import DIMENSIONS, embed_words

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

#: words that the tiny model reads: its window is 64 tokens, of which two mark the text's ends
WORDS_MAX = 62
LONG, SHORT = "cat " * (WORDS_MAX + 1), "cat " * WORDS_MAX
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that reads 64 tokens, without prompts."""
    return str(tiny_models.save_bert(tmp_path_factory.mktemp("truncation") / "tiny"))


def listed(mem: Memory, *arguments: Any) -> list[str]:
    return [memory["memory_id"] for memory in mem.truncated_memories(*arguments)]


def test_they_are_counted_whoever_makes_the_vector(open_memory: OpenMemory, model: str) -> None:
    with open_memory(embedding_config=model) as mem:
        mem.add_entries([{"content": text} for text in (LONG + "a", SHORT, LONG + "b", "", LONG + "a")])
        mem.flush()
        assert mem.stats().texts_truncated == 2, "a text that stands there twice is embedded once"
        memory_id = mem.add_entry(SHORT)
        mem.update_memory(memory_id, content=LONG + "c")
        mem.flush()
        assert mem.stats().texts_truncated == 3
        assert mem.stats().texts_embedded >= 5
    with open_memory(embedding_config=model) as mem:
        assert mem.stats().texts_truncated == 0, "of this handle, since it was opened"
        mem.add_entry(LONG + "a")
        mem.flush()
        assert mem.stats().texts_truncated == 1, "its vector comes from the cache"
    with open_memory(embedding_config=model, rebuild=True) as mem:
        assert mem.stats().texts_truncated == 3
    with open_memory(embedding_config=model, rebuild=True, vector_cache=False) as mem:
        assert mem.stats().texts_truncated == 3


@pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])
@pytest.mark.parametrize("layout", list(Layout))
def test_they_are_listed_newest_first(open_memory: OpenMemory, model: str, layout: Layout, direct_sql: bool) -> None:
    options: dict[str, Any] = {"layout": layout, "direct_sql": direct_sql}
    contents = {
        "short": SHORT,
        "long": LONG,
        "empty": "",
        "umlauts": "ü" * 63,
        "few umlauts": "ü" * 62,
        "blanks": " " * 1000,
        "chinese": "猫" * 63,
        "last": "cat. " * 40,
    }
    expected = ["last", "chinese", "umlauts", "long"]
    with open_memory(embedding_config=model, **options) as mem:
        # the times are in the order of the names, and the writes are not
        entries = [
            {"memory_id": key, "content": text, "timestamp": START + dt.timedelta(days=n), "metadata": {"n": n}}
            for n, (key, text) in enumerate(contents.items())
        ]
        mem.add_entries(entries[::-1])
        mem.add_entry(LONG, "other", memory_id="elsewhere")
        found = mem.truncated_memories()
        assert [memory["memory_id"] for memory in found] == expected
        assert found == [mem.get_memory(key) for key in expected]
        assert [listed(mem, "default_namespace", limit) for limit in (0, 1, 3, 4, 10**20)] == [
            [], ["last"], ["last", "chinese", "umlauts"], expected, expected,
        ]  # fmt: skip
        assert listed(mem, "other") == ["elsewhere"]
        assert listed(mem, "no such namespace") == []
        mem.delete_memory("chinese")
        mem.update_memory("last", content="cat")
        mem.update_memory("short", content=LONG)
        mem.update_memory("umlauts", metadata={"n": "other metadata"})
        expected = ["umlauts", "long", "short"]
        assert listed(mem) == expected, "the contents as they are now"
    with open_memory(embedding_config=model, **options) as mem:
        assert listed(mem) == expected, "after a restart, where nothing is embedded"
    with open_memory(embedding_config=model, rebuild=True, **options) as mem:
        assert listed(mem) == expected, "and after a rebuild"


@pytest.mark.parametrize("direct_sql", [True, False], ids=["sql", "public API"])
def test_more_than_a_page_of_them(open_memory: OpenMemory, model: str, direct_sql: bool) -> None:
    mem = open_memory(embedding_config=model, direct_sql=direct_sql)
    count = 2 * PAGE_ROWS + 7
    # every second one is long for its bytes and short for its tokens
    ids = mem.add_entries([{"content": f"{n} " + (LONG if n % 2 else "x" * 500)} for n in range(count)])
    expected = ids[1::2][::-1]
    assert listed(mem, "default_namespace", count) == expected
    assert listed(mem, "default_namespace", PAGE_ROWS) == expected[:PAGE_ROWS]
    assert listed(mem, "default_namespace", 3) == expected[:3]
    assert len(mem.search(limit=count)) == count, "a listing that ended early leaves the reads as they were"


def test_rows_and_vectors_of_a_users_own(open_memory: OpenMemory, model: str) -> None:
    mem = open_memory(embedding_config=model)
    given = mem.add_entry(LONG, embedding=np.ones(32))
    mem.flush()
    assert mem.stats().texts_truncated == 0, "no text was given to the model"
    key = uuid.uuid4()
    mem.get_namespace_table("default_namespace").insert([{"memory_id": key, "content": LONG}])
    assert listed(mem) == [given, str(key)], "the tables do not say where a vector came from"


def test_the_prompt_counts(open_memory: OpenMemory, model: str, store_name: str) -> None:
    for name, prompt, fits in ((store_name, "passage: ", 60), (f"{store_name}_query", "", 62)):
        config = {"model_id": model, "document_prompt": prompt, "query_prompt": "query: "}
        mem = open_memory(name, embedding_config=config)
        mem.add_entry("cat " * fits)
        long = mem.add_entry("cat " * (fits + 1))
        assert listed(mem) == [long]
        assert mem.stats().texts_truncated == 1


@pytest.mark.parametrize("config", [None, {"dimensions": DIMENSIONS}, {"function": embed_words}, "static"])
def test_where_nothing_is_cut(open_memory: OpenMemory, tmp_path: Path, config: Any) -> None:
    if config == "static":
        config = str(tiny_models.save_static(tmp_path / "static", zero_word="refused"))
    mem = open_memory(embedding_config=config)
    given: dict[str, Any] = {"embedding": np.ones(DIMENSIONS)} if config == {"dimensions": DIMENSIONS} else {}
    mem.add_entry(LONG * 100, **given)
    assert mem.truncated_memories() == []
    assert mem.stats().texts_truncated == 0
    for arguments in ({"limit": -1}, {"namespace": ""}):
        with pytest.raises(InvalidArgumentError):
            mem.truncated_memories(**arguments)


def test_a_text_without_a_vector_is_named(
    open_memory: OpenMemory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mem = open_memory(embedding_config=str(tiny_models.save_static(tmp_path / "static", zero_word="refused")))
    mem.add_entries([{"content": "a cat"}, {"content": "refused", "memory_id": "mine"}], "some space")
    mem.add_entry("refused", "other space", memory_id="theirs")
    mem.add_entry("", "other space", memory_id="empty")
    mem.flush()
    said = [record.getMessage() for record in caplog.records if record.name == "pixelmemory.projector"]
    reason = "has no vector and is found by metadata and time only: the model gives it a zero vector"
    assert said == [f"memory 'mine' in namespace 'some space' {reason}"], "the first one alone"
    assert mem.stats().texts_unembeddable >= 2, "the others are counted"
    assert mem.count() == 4
    assert mem.stats().dead_letters == 0
    assert [m["content"] for m in mem.search("some space", query="refused cat")] == ["a cat"]
