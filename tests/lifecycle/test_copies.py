"""A copy of a store's folder, under another name, is a store of its own, open beside the first in one process."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine_tools import open_memory, vector


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
