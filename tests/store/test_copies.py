"""A copy of a store's folder, under another name, is a store of its own; a handle cannot be copied at all."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelmemory import AsyncMemory, InvalidTypeError, Memory, PixelmemoryError
from tests.harness.engine_tools import async_memory, open_memory, vector


class Mine(Memory):
    """A subclass of a user's."""


def test_a_store_and_its_copy_keep_their_vectors_apart(tmp_path: Path, store_name: str) -> None:
    with open_memory(tmp_path, store_name) as first:
        first.add_entry("before", embedding=vector(0))
    shutil.copytree(tmp_path / store_name, tmp_path / f"{store_name}_copy")
    with open_memory(tmp_path, store_name) as first:
        with open_memory(tmp_path, f"{store_name}_copy") as copy:
            first.add_entry("of the first", embedding=vector(1))
            copy.add_entry("of the copy", embedding=vector(2))
            assert [each["content"] for each in first.search(vector=vector(1), min_score=0.99)] == ["of the first"]
            assert [each["content"] for each in copy.search(vector=vector(2), min_score=0.99)] == ["of the copy"]
        first.add_entry("after the copy was closed", embedding=vector(3))
        found = first.search(vector=vector(3), min_score=0.99)
        assert [each["content"] for each in found] == ["after the copy was closed"]
        assert first.health().ok, first.health()


def start_a_process_with(handle: object) -> None:
    multiprocessing.get_context("spawn").Process(target=print, args=(handle,)).start()


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy, start_a_process_with])
def test_a_handle_cannot_be_pickled_or_copied(
    tmp_path: Path, store_name: str, duplicate: Callable[[Any], object]
) -> None:
    def refused(handle: Memory | AsyncMemory, name: str) -> None:
        with pytest.raises(TypeError, match=f"^{name} cannot be pickled or copied: .* one process at a time") as raised:
            duplicate({"nested": [handle]} if duplicate is not copy.copy else handle)
        assert isinstance(raised.value, InvalidTypeError)
        assert isinstance(raised.value, PixelmemoryError)

    with open_memory(tmp_path, store_name) as mem:
        refused(mem, "Memory")
        mem.add_entry("it works on", embedding=vector(0))
        assert mem.count() == 1
    refused(mem, "Memory")  # closed, and then too
    refused(async_memory(tmp_path, store_name), "AsyncMemory")  # not open
    with Mine(store_name, None, {"dimensions": 8}, options=mem._memory._options) as own:
        refused(own, "Mine")
