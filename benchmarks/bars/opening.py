"""Open one store in this process, and print how long Pixeltable's init and then the open took, as JSON.

python -m benchmarks.bars.opening NAME FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from benchmarks.place import Place


def main(name: str, folder: str) -> None:
    started = time.perf_counter()
    from pixelmemory.projection.pixeltable.startup import start_pixeltable

    start_pixeltable(keep_http_server=False)
    initialized = time.perf_counter()
    from pixelmemory import Memory

    with Memory(name, None, None, options=Place(Path(folder), "").options()) as mem:
        opened = time.perf_counter()
        answer = {
            "init_seconds": initialized - started,
            "open_seconds": opened - initialized,
            "count": mem.count(),
        }
    print(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
