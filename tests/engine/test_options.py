"""At the ends of its options the store still does all of its work."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pixelmemory import Memory, Options, SyncMode
from tests.harness.embedders import embed_words

if TYPE_CHECKING:
    from tests.conftest import OpenMemory

EXTREMES: list[dict[str, Any]] = [
    {"batch_events_max": 1, "graph_rows_min": 1},
    {"batch_bytes_max": 1, "tail_bytes_max": 0},
    {"lag_events_max": 1},
    {"reader_threads_max": 1},
    {"linger_seconds": 0.0},
    {"linger_seconds_max": 0.0},
    {"segment_bytes_max": 4096, "tail_bytes_max": 0},
    {"buffer_bytes_max": 4096, "append_bytes_max": 4096},
    {"graph_rows_min": 0},
    {"graph_rows_min": 1, "direct_sql": False},
    {"sync_mode": SyncMode.OS},
    # longer than a test may take: a reader does not wait for it
    {"sync_mode": SyncMode.INTERVAL, "sync_interval_seconds": 600.0},
]


def test_help_describes_every_option() -> None:
    described = re.findall(r"^        (\w+): \w", Options.__doc__ or "", re.MULTILINE)
    assert [name for name in described if not name.endswith("Error")] == list(Options.__struct_fields__)


@pytest.mark.parametrize("options", EXTREMES, ids=lambda options: ", ".join(options))
def test_extremes(open_memory: OpenMemory, options: dict[str, Any]) -> None:
    def add_some(mem: Memory, thread: int) -> None:
        for n in range(8):
            mem.add_entry(f"text {n} of {thread}", metadata={"thread": thread})

    with open_memory(embedding_config={"function": embed_words}, **options) as mem:
        threads = [threading.Thread(target=add_some, args=(mem, thread)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ids = mem.add_entries([{"content": f"batch {n}"} for n in range(12)])
        assert mem.update_memory(ids[0], content="changed")
        assert mem.delete_memory(ids[1])
        assert mem.count() == 75
        assert mem.search(query="changed", limit=1)[0]["similarity_score"] == pytest.approx(1)
        assert len(mem.search(limit=100, metadata_filter={"thread": 3})) == 8
        assert mem.flush() == 78
        assert mem.health().ok
    with open_memory(embedding_config={"function": embed_words}, **options) as mem:
        assert mem.last_lsn == 78
        assert mem.count() == 75
        assert mem.search(query="changed", limit=1)[0]["memory_id"] == ids[0]
        assert mem.get_memory(ids[1]) is None
        mem.add_entry("goes on")
        assert mem.count() == 76
