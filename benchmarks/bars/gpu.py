"""Bar 9: the same as bar 3 with a model on a GPU: how busy the embedder is, and what bounds it then."""

from __future__ import annotations

import anyio
import msgspec

from benchmarks.bars.project import Dtype, Embedded, dtypes, embedded, embedded_bar
from benchmarks.place import Place
from benchmarks.report import Bar, not_run

#: texts, rounds, texts that choose the batch size
SIZES = {"tiny": (256, 1, 64), "small": (5_000, 1, 1_024), "full": (50_000, 2, 4_096)}


class Gpu(msgspec.Struct):
    #: None: torch sees no CUDA
    embedded: Embedded | None = None
    dtype: Dtype | None = None
    device_name: str = ""

    def bars(self) -> list[Bar]:
        if self.embedded is None:
            return [not_run(9, "MiniLM on a GPU: texts/s to searchable", "torch sees no CUDA here")]
        bar = embedded_bar(9, self.embedded)
        return [msgspec.structs.replace(bar, name=f"{bar.name}, {self.device_name}", wanted="-", met=None)]


async def measure(place: Place) -> Gpu:
    texts, rounds, sample = place.sized(SIZES)
    import torch

    return Gpu(
        embedded=await embedded(place, "cuda", texts, rounds, sample),
        dtype=await anyio.to_thread.run_sync(dtypes, "cuda", sample),
        device_name=torch.cuda.get_device_name(),
    )


def run(place: Place) -> Gpu:
    import torch

    return anyio.run(measure, place) if torch.cuda.is_available() else Gpu()
